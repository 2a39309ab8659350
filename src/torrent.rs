//! A file as BitTorrent knows it: a metainfo of version 1 (BEP 3) whose pieces are ours.
//!
//! Any client of BitTorrent can hold a file against it, since the pieces are as long and have the same
//! SHA-1s. It is canonical: the same name and content give the same bytes in every release, but for
//! `created by`. It names no tracker, and mtq does not speak BitTorrent.
//!
//! Bencoding is written here, in the few lines that a string, a number and two fixed dictionaries take:
//! nothing is ever parsed, and the crates there are bring a parser and a tree of values with them.

use std::ops::Range;

use crate::hash::{self, fixed_bytes};
use crate::limits::PIECE_LEN;
use crate::manifest::Manifest;
use crate::name::FileName;

fixed_bytes! {
    /// SHA-1 of the bencoded info dictionary: what BitTorrent calls this file, under this name.
    TorrentInfoHash, 20
}

/// A bencoded metainfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torrent {
    bytes: Vec<u8>,
    /// Where the info dictionary is.
    info: Range<usize>,
}

impl Torrent {
    /// The metainfo of a file called `name`.
    pub fn new(name: &FileName, manifest: &Manifest) -> Self {
        let mut pieces = Vec::with_capacity(manifest.pieces().len() * 20);
        manifest.pieces().iter().for_each(|piece| pieces.extend_from_slice(&piece.sha1.0));
        let mut bytes = Vec::with_capacity(pieces.len() + 512);
        bytes.push(b'd');
        string(&mut bytes, b"created by");
        string(&mut bytes, crate::AGENT.as_bytes());
        string(&mut bytes, b"info");
        let start = bytes.len();
        // The keys of a dictionary are in order.
        bytes.push(b'd');
        string(&mut bytes, b"length");
        number(&mut bytes, manifest.layout().size());
        string(&mut bytes, b"name");
        string(&mut bytes, name.as_str().as_bytes());
        string(&mut bytes, b"piece length");
        number(&mut bytes, u64::from(PIECE_LEN));
        string(&mut bytes, b"pieces");
        string(&mut bytes, &pieces);
        bytes.push(b'e');
        let info = start..bytes.len();
        bytes.push(b'e');
        Self { bytes, info }
    }

    /// The bytes of a `.torrent` file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What BitTorrent calls it.
    pub fn info_hash(&self) -> TorrentInfoHash {
        TorrentInfoHash(hash::sha1(&self.bytes[self.info.clone()]).0)
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(format!("i{value}e").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::testing::manifest_of;

    fn torrent(name: &str, content: &[u8]) -> Torrent {
        Torrent::new(&name.parse().expect("name"), &manifest_of(content))
    }

    #[test]
    fn golden() {
        let torrent = torrent("a.iso", &[7; 3]);
        let mut expected = format!("d10:created by{}:{}4:info", crate::AGENT.len(), crate::AGENT);
        expected.push_str("d6:lengthi3e4:name5:a.iso12:piece lengthi524288e6:pieces20:");
        let mut expected = expected.into_bytes();
        // SHA-1 of the only piece.
        expected.extend(hex::decode("381a8d92c69637ebb04909dcd1dbf60f217b7c45").expect("hex"));
        expected.extend(b"ee");
        assert_eq!(torrent.as_bytes(), expected);
        // By another implementation, as all info hashes here.
        assert_eq!(torrent.info_hash().to_string(), "08f510570522e0568d088ca0c691352b3e211a35");
    }

    #[test]
    fn names_are_counted_in_bytes_and_pieces_are_in_order() {
        let torrent = torrent("日本語 é.bin", &vec![7; 2 * PIECE_LEN as usize + 1]);
        let text = String::from_utf8_lossy(torrent.as_bytes());
        assert!(text.contains("d6:lengthi1048577e4:name16:日本語 é.bin12:"), "{text}");
        assert!(text.contains("6:pieces60:"), "{text}");
        assert_eq!(torrent.info_hash().to_string(), "82b9300cb04f58d3ae5001a9e74906513173cd8c");
    }

    #[test]
    fn an_empty_file_has_no_pieces() {
        let torrent = torrent("empty", b"");
        let end = b"4:infod6:lengthi0e4:name5:empty12:piece lengthi524288e6:pieces0:ee";
        assert!(torrent.as_bytes().ends_with(end), "{torrent:?}");
        assert_eq!(torrent.info_hash().to_string(), "a8212bc211f07e4874774da9685c730915eee537");
    }
}
