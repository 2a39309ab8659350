//! The `.mtorrent` metafile: a plaintext description of a file and where its group lives.
//!
//! It is TOML, version 1, and carries no secret. Parsing proves that its hashes reproduce its
//! content id; its trackers are informative only. PROTOCOL.md lists the fields.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::hash::{Blake3Hash, InfoHash, Sha1Hash};
use crate::limits::{MAX_METAFILE_WORDS, PIECE_LEN};
use crate::manifest::{ContentId, Manifest, ManifestError, PieceHashes};
use crate::name::{FileName, GroupName};
use crate::piece::PieceLayout;
use crate::tracker_link::TrackerLink;

/// The version this program writes and reads.
pub const VERSION: u64 = 1;

/// Text that is not a metafile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetainfoError {
    /// Not TOML, a field missing, or a value of the wrong shape.
    #[error("not a .mtorrent file: {0}")]
    Syntax(String),
    /// A version this program does not know.
    #[error("version {0} of the .mtorrent format is not known, only {VERSION}")]
    Version(u64),
    /// The hash string or the piece BLAKE3s are not whole hashes.
    #[error("{field} is not hex of {expected} hashes")]
    HashString {
        /// Which field.
        field: &'static str,
        /// Hashes it must have.
        expected: usize,
    },
    /// The hashes contradict each other.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A field does not follow from the hashes.
    #[error("{0} does not match the hashes")]
    Mismatch(&'static str),
}

/// A parsed metafile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    /// Trackers of the sharer, for information.
    pub trackers: Vec<TrackerLink>,
    /// The group it was shared in.
    pub group: GroupName,
    /// The name it was shared under.
    pub name: FileName,
    /// What the file is.
    pub manifest: Manifest,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Text {
    trackers: Vec<TrackerLink>,
    group: GroupName,
    name: FileName,
    size: u64,
    piece_length: u32,
    sha1: Sha1Hash,
    info_hash: InfoHash,
    blake3: Blake3Hash,
    content_id: ContentId,
    hash_string: String,
    piece_blake3: String,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

impl Metainfo {
    /// Parses a metafile and checks every hash in it against the others.
    ///
    /// # Errors
    /// [`MetainfoError`] names the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, MetainfoError> {
        let syntax = |error: toml::de::Error| {
            MetainfoError::Syntax(error.message().lines().next().unwrap_or("malformed").to_owned())
        };
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.bytes().filter(|byte| !is_hex(byte)).nth(MAX_METAFILE_WORDS).is_some() {
            let message = format!("it has over {MAX_METAFILE_WORDS} bytes that are no hashes");
            return Err(MetainfoError::Syntax(message));
        }
        let VersionOnly { version } = toml::from_str(text).map_err(syntax)?;
        if version != VERSION {
            return Err(MetainfoError::Version(version));
        }
        let text: Text = toml::from_str(text).map_err(syntax)?;
        if text.piece_length != PIECE_LEN {
            return Err(ManifestError::PieceLen(text.piece_length).into());
        }
        let layout = PieceLayout::new(text.size).map_err(ManifestError::from)?;
        let count = layout.piece_count() as usize;
        let sha1s = hashes::<20>(&text.hash_string, count, "hash-string")?;
        let blake3s = hashes::<32>(&text.piece_blake3, count, "piece-blake3")?;
        let pieces = sha1s
            .into_iter()
            .zip(blake3s)
            .map(|(sha1, blake3)| PieceHashes { sha1: Sha1Hash(sha1), blake3: Blake3Hash(blake3) })
            .collect();
        let manifest = Manifest::new(layout, text.sha1, pieces)?;
        for (field, matches) in [
            ("info-hash", manifest.head().info_hash() == text.info_hash),
            ("blake3", manifest.head().blake3() == text.blake3),
            ("content-id", manifest.content_id() == text.content_id),
        ] {
            if !matches {
                return Err(MetainfoError::Mismatch(field));
            }
        }
        Ok(Self { trackers: text.trackers, group: text.group, name: text.name, manifest })
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        let head = self.manifest.head();
        let pieces = self.manifest.pieces();
        let mut text = String::with_capacity(1024 + pieces.len() * 104);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# mtq metafile: get it with  mtq client  and  get FILE.mtorrent DEST\n\
             version = {VERSION}\n\
             name = {}\n\
             group = \"{}\"\n\
             size = {}\n\
             piece-length = {PIECE_LEN}\n\
             sha1 = \"{}\"\n\
             info-hash = \"{}\"\n\
             blake3 = \"{}\"\n\
             content-id = \"{}\"\n\
             trackers = [\n",
            toml::Value::String(self.name.as_str().to_owned()),
            self.group,
            head.layout().size(),
            head.sha1(),
            head.info_hash(),
            head.blake3(),
            self.manifest.content_id(),
        );
        for tracker in &self.trackers {
            let _ = writeln!(text, "  \"{tracker}\",");
        }
        text.push_str("]\nhash-string = \"");
        pieces.iter().for_each(|p| text.push_str(&hex::encode(p.sha1.0)));
        text.push_str("\"\npiece-blake3 = \"");
        pieces.iter().for_each(|p| text.push_str(&hex::encode(p.blake3.0)));
        text.push_str("\"\n");
        text
    }
}

fn hashes<const N: usize>(
    text: &str,
    expected: usize,
    field: &'static str,
) -> Result<Vec<[u8; N]>, MetainfoError> {
    let wrong = MetainfoError::HashString { field, expected };
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != expected * N * 2 || !lower {
        return Err(wrong);
    }
    let bytes = hex::decode(text).map_err(|_| wrong)?;
    Ok(bytes.as_chunks::<N>().0.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::testing::manifest_of;
    use crate::peer_id::PeerId;
    use proptest::prelude::*;

    fn sample(name: &str, len: usize) -> Metainfo {
        let address = "127.0.0.1:9000".parse().expect("address");
        Metainfo {
            trackers: vec![TrackerLink::new(address, PeerId([1; 32]))],
            group: "lab".parse().expect("name"),
            name: name.parse().expect("name"),
            manifest: manifest_of(&vec![7; len]),
        }
    }

    #[test]
    fn round_trips_every_kind_of_name_and_size() {
        for name in ["a.iso", "with space", "quo\"te's", "日本語 [x] # y = z", "-rf"] {
            for len in [0, 1, PIECE_LEN as usize, PIECE_LEN as usize * 2 + 1] {
                let meta = sample(name, len);
                assert_eq!(Metainfo::parse(&meta.to_text()), Ok(meta), "{name} {len}");
            }
        }
    }

    #[test]
    fn golden() {
        let text = sample("a.iso", 3).to_text();
        let sha1 = crate::hash::sha1(&[7; 3]);
        let blake3 = crate::hash::blake3(&[7; 3]);
        assert!(text.contains(&format!("\nsha1 = \"{sha1}\"\n")), "{text}");
        assert!(text.contains(&format!("\nhash-string = \"{sha1}\"\n")), "{text}");
        assert!(text.contains(&format!("\npiece-blake3 = \"{blake3}\"\n")), "{text}");
        assert!(text.contains("\nversion = 1\nname = \"a.iso\"\ngroup = \"lab\"\nsize = 3\n"));
    }

    #[test]
    fn every_changed_hash_is_named() {
        let good = sample("a", PIECE_LEN as usize + 1).to_text();
        let edit = |field: &str| {
            let start = good.find(&format!("\n{field} = \"")).expect("field") + field.len() + 5;
            let mut text = good.clone();
            let digit = if &text[start..=start] == "0" { "1" } else { "0" };
            text.replace_range(start..=start, digit);
            Metainfo::parse(&text)
        };
        assert_eq!(edit("info-hash"), Err(MetainfoError::Mismatch("info-hash")));
        assert_eq!(edit("hash-string"), Err(MetainfoError::Mismatch("info-hash")));
        assert_eq!(edit("blake3"), Err(MetainfoError::Mismatch("blake3")));
        assert_eq!(edit("piece-blake3"), Err(MetainfoError::Mismatch("blake3")));
        assert_eq!(edit("sha1"), Err(MetainfoError::Mismatch("content-id")));
        assert_eq!(edit("content-id"), Err(MetainfoError::Mismatch("content-id")));
    }

    #[test]
    fn malformed_text_says_why() {
        let good = sample("a", 5).to_text();
        assert!(matches!(Metainfo::parse(""), Err(MetainfoError::Syntax(_))));
        assert!(matches!(Metainfo::parse("\u{0}binary"), Err(MetainfoError::Syntax(_))));
        let later = good.replace("version = 1", "version = 2");
        assert_eq!(Metainfo::parse(&later), Err(MetainfoError::Version(2)));
        let grown = good.replace("size = 5", "size = 600000");
        assert_eq!(
            Metainfo::parse(&grown),
            Err(MetainfoError::HashString { field: "hash-string", expected: 2 })
        );
        let name = good.replace("name = \"a\"", "name = \"../a\"");
        assert!(matches!(Metainfo::parse(&name), Err(MetainfoError::Syntax(_))));
        let pieces = good.replace("piece-length = 524288", "piece-length = 16384");
        assert_eq!(Metainfo::parse(&pieces), Err(ManifestError::PieceLen(16384).into()));
        let newer = good.replace("size = 5", "size = 5\nlater-field = true");
        assert!(Metainfo::parse(&newer).is_ok());
        let book = format!("{good}# {}", "x".repeat(MAX_METAFILE_WORDS));
        let message = "it has over 262144 bytes that are no hashes".to_owned();
        assert_eq!(Metainfo::parse(&book), Err(MetainfoError::Syntax(message)));
    }

    proptest! {
        #[test]
        fn cuts_and_junk_never_panic(cut in 0usize..900, junk in "\\PC{0,60}") {
            let good = sample("a", 5).to_text();
            let cut = cut.min(good.len());
            let _ = Metainfo::parse(&format!("{}{junk}", &good[..cut]));
            let _ = Metainfo::parse(&junk);
        }
    }
}
