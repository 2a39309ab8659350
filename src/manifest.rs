//! What a file is: its head, its hash pages, and the content id that names it.
//!
//! A [`Manifest`] exists only with every hash consistent: pages match the head, the hash string
//! matches the info hash, the piece BLAKE3s merge to the file's. Whether a *file* matches is for
//! whoever reads the file.

use blake3::hazmat::{self, ChainingValue, HasherExt as _, Mode};

use crate::hash::{self, Blake3Hash, InfoHash, Sha1Hash, Sha1Hasher, fixed_bytes};
use crate::limits::{PAGE_PIECES, PIECE_LEN};
use crate::piece::{PieceIndex, PieceLayout};

/// First bytes of every head: what it is and the version of its layout.
pub const HEAD_TAG: &[u8; 16] = b"mtq manifest 1\r\n";

/// Bytes of a head before its page hashes: tag, size, piece length, SHA-1, info hash, BLAKE3.
const HEAD_FIXED_LEN: usize = 16 + 8 + 4 + 20 + 20 + 32;

/// Bytes of one piece's hashes in a page: SHA-1 and BLAKE3.
pub const PIECE_HASHES_LEN: usize = 20 + 32;

fixed_bytes! {
    /// BLAKE3 of the manifest head: the real identity of a file. Names are labels.
    ContentId, 32
}

/// Bytes that are not what a manifest should be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The head does not begin with [`HEAD_TAG`].
    #[error("not a manifest head of version 1")]
    Tag,
    /// The head is longer or shorter than its size field says.
    #[error("a manifest head of {actual} bytes where {expected} are needed")]
    HeadLen {
        /// Bytes it has.
        actual: usize,
        /// Bytes it must have.
        expected: usize,
    },
    /// The piece length is not the format's.
    #[error("piece length {0} is not {PIECE_LEN}")]
    PieceLen(u32),
    /// The file is too large.
    #[error(transparent)]
    TooLarge(#[from] crate::piece::TooLarge),
    /// A page number beyond the last.
    #[error("there is no hash page {0}")]
    NoSuchPage(u32),
    /// A page whose bytes are not those the head names.
    #[error("hash page {0} does not match the manifest head")]
    Page(u32),
    /// As many hashes as pieces are needed.
    #[error("{actual} hashes for {expected} pieces")]
    HashCount {
        /// Hashes given.
        actual: usize,
        /// Pieces in the file.
        expected: usize,
    },
    /// The SHA-1 of the hash string is not the info hash.
    #[error("the hash string does not match the info hash")]
    InfoHash,
    /// The piece BLAKE3s do not merge to the file's BLAKE3.
    #[error("the BLAKE3 of the pieces does not match the file's")]
    Root,
}

/// Size and top hashes of a file; 100 bytes and 32 for each hash page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    layout: PieceLayout,
    sha1: Sha1Hash,
    info_hash: InfoHash,
    blake3: Blake3Hash,
    page_hashes: Vec<Blake3Hash>,
}

impl ManifestHead {
    /// Parses the fixed byte layout.
    ///
    /// # Errors
    /// [`ManifestError`] unless every byte is accounted for.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let too_short = ManifestError::HeadLen { actual: bytes.len(), expected: HEAD_FIXED_LEN };
        let (tag, rest) = bytes.split_first_chunk::<16>().ok_or(too_short)?;
        if tag != HEAD_TAG {
            return Err(ManifestError::Tag);
        }
        let (size, rest) = rest.split_first_chunk::<8>().ok_or(too_short)?;
        let (piece_len, rest) = rest.split_first_chunk::<4>().ok_or(too_short)?;
        let (sha1, rest) = rest.split_first_chunk::<20>().ok_or(too_short)?;
        let (info_hash, rest) = rest.split_first_chunk::<20>().ok_or(too_short)?;
        let (blake3, rest) = rest.split_first_chunk::<32>().ok_or(too_short)?;
        let piece_len = u32::from_le_bytes(*piece_len);
        if piece_len != PIECE_LEN {
            return Err(ManifestError::PieceLen(piece_len));
        }
        let layout = PieceLayout::new(u64::from_le_bytes(*size))?;
        let expected = HEAD_FIXED_LEN + 32 * layout.page_count() as usize;
        if bytes.len() != expected {
            return Err(ManifestError::HeadLen { actual: bytes.len(), expected });
        }
        let page_hashes = rest.as_chunks::<32>().0.iter().map(|h| Blake3Hash(*h)).collect();
        Ok(Self {
            layout,
            sha1: Sha1Hash(*sha1),
            info_hash: InfoHash(*info_hash),
            blake3: Blake3Hash(*blake3),
            page_hashes,
        })
    }

    /// The fixed byte layout: tag, size (u64 LE), piece length (u32 LE), SHA-1 of the file, info
    /// hash, BLAKE3 of the file, BLAKE3 of each hash page.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        bytes.extend_from_slice(HEAD_TAG);
        bytes.extend_from_slice(&self.layout.size().to_le_bytes());
        bytes.extend_from_slice(&PIECE_LEN.to_le_bytes());
        bytes.extend_from_slice(&self.sha1.0);
        bytes.extend_from_slice(&self.info_hash.0);
        bytes.extend_from_slice(&self.blake3.0);
        for page in &self.page_hashes {
            bytes.extend_from_slice(&page.0);
        }
        bytes
    }

    /// Bytes of the encoded head.
    pub fn encoded_len(&self) -> usize {
        HEAD_FIXED_LEN + 32 * self.page_hashes.len()
    }

    /// BLAKE3 of the encoded head.
    pub fn content_id(&self) -> ContentId {
        ContentId(hash::blake3(&self.encode()).0)
    }

    /// How the file divides into pieces.
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// SHA-1 of the file, as `sha1sum` prints it.
    pub fn sha1(&self) -> Sha1Hash {
        self.sha1
    }

    /// SHA-1 of the hash string.
    pub fn info_hash(&self) -> InfoHash {
        self.info_hash
    }

    /// BLAKE3 of the file, as `b3sum` prints it.
    pub fn blake3(&self) -> Blake3Hash {
        self.blake3
    }

    /// BLAKE3 of each hash page.
    pub fn page_hashes(&self) -> &[Blake3Hash] {
        &self.page_hashes
    }

    /// Checks that `bytes` are page `page`.
    ///
    /// # Errors
    /// [`ManifestError::NoSuchPage`] or [`ManifestError::Page`].
    pub fn check_page(&self, page: u32, bytes: &[u8]) -> Result<(), ManifestError> {
        let expected =
            self.page_hashes.get(page as usize).ok_or(ManifestError::NoSuchPage(page))?;
        let len = self.layout.page_pieces(page).len() * PIECE_HASHES_LEN;
        if bytes.len() == len && hash::blake3(bytes) == *expected {
            Ok(())
        } else {
            Err(ManifestError::Page(page))
        }
    }
}

/// SHA-1 and BLAKE3 subtree value of one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHashes {
    /// SHA-1 of the piece's bytes.
    pub sha1: Sha1Hash,
    /// BLAKE3 chaining value of the subtree that is this piece; of a file of one piece, its root.
    pub blake3: Blake3Hash,
}

/// BLAKE3 takes many blocks at once or is slow: parts of a piece are brought together to so many bytes,
/// which stay in the first caches until it has seen them.
const GATHERED: usize = 64 * 1024;

impl PieceHashes {
    /// Hashes the `bytes` of `piece`.
    ///
    /// # Panics
    /// When `bytes` is not as long as the layout says the piece is.
    pub fn of(layout: PieceLayout, piece: PieceIndex, bytes: &[u8]) -> Self {
        Self::of_parts(layout, piece, std::iter::once(bytes), None)
    }

    /// Hashes the bytes of `piece`, which come in parts, and takes the SHA-1 `beside` further over them:
    /// both SHA-1s at once are little more work than one.
    ///
    /// # Panics
    /// When they are not as many as the layout says the piece has.
    pub fn of_parts<'a>(
        layout: PieceLayout,
        piece: PieceIndex,
        parts: impl Iterator<Item = &'a [u8]>,
        mut beside: Option<&mut Sha1Hasher>,
    ) -> Self {
        let (mut sha1, mut blake3) = (Sha1Hasher::default(), subtree_hasher(layout, piece));
        // Its time hides that of the first look at what another core received; copying would wait for it.
        let parts = parts.inspect(|part| match &mut beside {
            Some(beside) => hash::update_both(&mut sha1, beside, part),
            None => sha1.update(part),
        });
        let len = in_large_parts(parts, |bytes| _ = blake3.update(bytes));
        assert_eq!(len, layout.len(piece) as usize, "invariant: callers pass whole pieces");
        Self { sha1: sha1.finish(), blake3: subtree_value(layout, &blake3) }
    }

    /// The BLAKE3 alone, a fifth of the work: enough to know whether bytes are those of the piece.
    ///
    /// # Panics
    /// When `bytes` is not as long as the layout says the piece is.
    pub fn blake3_of(layout: PieceLayout, piece: PieceIndex, bytes: &[u8]) -> Blake3Hash {
        Self::blake3_of_parts(layout, piece, std::iter::once(bytes))
    }

    /// The same of bytes that come in parts.
    ///
    /// # Panics
    /// As [`Self::blake3_of`].
    pub fn blake3_of_parts<'a>(
        layout: PieceLayout,
        piece: PieceIndex,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Blake3Hash {
        let mut blake3 = subtree_hasher(layout, piece);
        let len = in_large_parts(parts, |bytes| _ = blake3.update(bytes));
        assert_eq!(len, layout.len(piece) as usize, "invariant: callers pass whole pieces");
        subtree_value(layout, &blake3)
    }
}

/// Hands on what comes in parts, in parts that are large enough to be hashed quickly, some of them copied
/// together; how many bytes they have.
fn in_large_parts<'a>(parts: impl Iterator<Item = &'a [u8]>, mut add: impl FnMut(&[u8])) -> usize {
    let mut len = 0;
    let mut gathered = Vec::new();
    for mut part in parts {
        len += part.len();
        while !part.is_empty() {
            if gathered.is_empty() && part.len() >= GATHERED {
                add(part);
                break;
            }
            gathered.reserve_exact(GATHERED - gathered.len());
            let (now, rest) = part.split_at(part.len().min(GATHERED - gathered.len()));
            gathered.extend_from_slice(now);
            part = rest;
            if gathered.len() == GATHERED {
                add(&gathered);
                gathered.clear();
            }
        }
    }
    add(&gathered);
    len
}

/// A BLAKE3 that takes the bytes of `piece`.
fn subtree_hasher(layout: PieceLayout, piece: PieceIndex) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(layout.offset(piece));
    hasher
}

/// Its value once it has them all; a piece that is the whole file has the file's.
fn subtree_value(layout: PieceLayout, hasher: &blake3::Hasher) -> Blake3Hash {
    match layout.piece_count() {
        1 => Blake3Hash(*hasher.finalize().as_bytes()),
        _ => Blake3Hash(hasher.finalize_non_root()),
    }
}

/// A head and all the piece hashes it stands for, mutually consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    head: ManifestHead,
    content_id: ContentId,
    pieces: Vec<PieceHashes>,
}

impl Manifest {
    /// Makes the manifest of a file whose hashes were computed or read from a metafile.
    ///
    /// # Errors
    /// [`ManifestError::HashCount`] when there are not as many hashes as pieces.
    pub fn new(
        layout: PieceLayout,
        sha1: Sha1Hash,
        pieces: Vec<PieceHashes>,
    ) -> Result<Self, ManifestError> {
        let expected = layout.piece_count() as usize;
        if pieces.len() != expected {
            return Err(ManifestError::HashCount { actual: pieces.len(), expected });
        }
        let page_hashes = pieces
            .chunks(PAGE_PIECES as usize)
            .map(|page| hash::blake3(&page_bytes(page)))
            .collect();
        let head = ManifestHead {
            layout,
            sha1,
            info_hash: info_hash(&pieces),
            blake3: merge_root(&pieces),
            page_hashes,
        };
        let content_id = head.content_id();
        Ok(Self { head, content_id, pieces })
    }

    /// Joins a head with the bytes of all its pages, in order.
    ///
    /// # Errors
    /// [`ManifestError`] when a page is not the head's or the head contradicts its pages.
    pub fn assemble<P: AsRef<[u8]>>(
        head: ManifestHead,
        pages: &[P],
    ) -> Result<Self, ManifestError> {
        let mut pieces = Vec::with_capacity(head.layout.piece_count() as usize);
        for (number, page) in (0..head.layout.page_count()).zip(pages) {
            let bytes = page.as_ref();
            head.check_page(number, bytes)?;
            let count = head.layout.page_pieces(number).len();
            let (sha1s, blake3s) = bytes.split_at(count * 20);
            let sha1s = sha1s.as_chunks::<20>().0;
            let blake3s = blake3s.as_chunks::<32>().0;
            pieces.extend(sha1s.iter().zip(blake3s).map(|(sha1, blake3)| PieceHashes {
                sha1: Sha1Hash(*sha1),
                blake3: Blake3Hash(*blake3),
            }));
        }
        let expected = head.layout.piece_count() as usize;
        if pieces.len() != expected {
            return Err(ManifestError::HashCount { actual: pieces.len(), expected });
        }
        if info_hash(&pieces) != head.info_hash {
            return Err(ManifestError::InfoHash);
        }
        if merge_root(&pieces) != head.blake3 {
            return Err(ManifestError::Root);
        }
        let content_id = head.content_id();
        Ok(Self { head, content_id, pieces })
    }

    /// The head.
    pub fn head(&self) -> &ManifestHead {
        &self.head
    }

    /// The identity of this content.
    pub fn content_id(&self) -> ContentId {
        self.content_id
    }

    /// How the file divides into pieces.
    pub fn layout(&self) -> PieceLayout {
        self.head.layout
    }

    /// Hashes of all pieces, in order.
    pub fn pieces(&self) -> &[PieceHashes] {
        &self.pieces
    }

    /// Whether `bytes`, as many as it has, are those of `piece`, as its BLAKE3 says.
    pub fn is_piece(&self, piece: PieceIndex, bytes: &[u8]) -> bool {
        PieceHashes::blake3_of(self.layout(), piece, bytes) == self.piece(piece).blake3
    }

    /// Hashes of one piece.
    pub fn piece(&self, piece: PieceIndex) -> PieceHashes {
        self.pieces[piece.as_usize()]
    }

    /// Bytes of hash page `page`: its SHA-1s, then its BLAKE3 values. Empty beyond the last.
    pub fn page(&self, page: u32) -> Vec<u8> {
        let range = self.head.layout.page_pieces(page);
        page_bytes(&self.pieces[range.start as usize..range.end as usize])
    }
}

fn page_bytes(pieces: &[PieceHashes]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(pieces.len() * PIECE_HASHES_LEN);
    bytes.extend(pieces.iter().flat_map(|p| p.sha1.0));
    bytes.extend(pieces.iter().flat_map(|p| p.blake3.0));
    bytes
}

fn info_hash(pieces: &[PieceHashes]) -> InfoHash {
    let mut hasher = hash::Sha1Hasher::default();
    for piece in pieces {
        hasher.update(&piece.sha1.0);
    }
    InfoHash(hasher.finish().0)
}

/// BLAKE3 of the file from the subtree values of its pieces. A piece is a complete subtree, and a
/// BLAKE3 tree puts the largest power of two of them on the left.
fn merge_root(pieces: &[PieceHashes]) -> Blake3Hash {
    match pieces {
        [] => hash::blake3(b""),
        [only] => only.blake3,
        _ => {
            let (left, right) = pieces.split_at(left_count(pieces.len()));
            let root = hazmat::merge_subtrees_root(&merge(left), &merge(right), Mode::Hash);
            Blake3Hash(*root.as_bytes())
        }
    }
}

fn merge(pieces: &[PieceHashes]) -> ChainingValue {
    match pieces {
        [only] => only.blake3.0,
        _ => {
            let (left, right) = pieces.split_at(left_count(pieces.len()));
            hazmat::merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// The largest power of two smaller than `count`, for `count` of at least two.
fn left_count(count: usize) -> usize {
    count.next_power_of_two() / 2
}

#[cfg(test)]
pub(crate) mod testing {
    //! Manifests of byte strings, for tests of everything above.

    use super::*;

    /// The manifest of `content`.
    pub(crate) fn manifest_of(content: &[u8]) -> Manifest {
        let layout = PieceLayout::new(content.len() as u64).expect("fits");
        let pieces = layout
            .pieces()
            .map(|piece| {
                let start = layout.offset(piece) as usize;
                let end = start + layout.len(piece) as usize;
                PieceHashes::of(layout, piece, &content[start..end])
            })
            .collect();
        Manifest::new(layout, hash::sha1(content), pieces).expect("as many hashes as pieces")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::manifest_of;
    use super::*;
    use proptest::prelude::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn the_root_is_what_b3sum_prints_at_every_edge() {
        let p = PIECE_LEN as usize;
        for len in [0, 1, p - 1, p, p + 1, 2 * p, 3 * p, 3 * p + 5, 5 * p, 7 * p - 1] {
            let bytes = content(len);
            let manifest = manifest_of(&bytes);
            assert_eq!(manifest.head().blake3(), hash::blake3(&bytes), "{len}");
            assert_eq!(manifest.head().sha1(), hash::sha1(&bytes), "{len}");
        }
    }

    #[test]
    fn head_golden() {
        let head = manifest_of(&content(PIECE_LEN as usize + 1)).head().clone();
        let expected = concat!(
            "6d7471206d616e696665737420310d0a",         // tag
            "0100080000000000",                         // size
            "00000800",                                 // piece length
            "c138474ffc65b52338029229373c13bffa25c1e6", // SHA-1 of the file
            "139ce913a8fcbc0d259c50bdde3edc99b35e88cc", // info hash
            // BLAKE3 of the file, then of its one page.
            "9a9f467d4b3457172a4732f949fff2017c02a2a965ae4185a11ac7c92095ad8c",
        );
        let hex = hex::encode(head.encode());
        assert_eq!(&hex[..2 * HEAD_FIXED_LEN], expected);
        assert_eq!(
            &hex[2 * HEAD_FIXED_LEN..],
            "3b21a9d3a5e66be0226ded9a3994e56127170fc60b6ceb76d21e8125378c508f"
        );
        let content_id = "9cea7684b0a1892469704b915ea787518fc1e89f486b294dfed8b296f19b051c";
        assert_eq!(head.content_id().to_string(), content_id);
        assert_eq!(ManifestHead::parse(&head.encode()), Ok(head));
    }

    #[test]
    fn assembles_from_its_pages_and_from_nothing_else() {
        let manifest = manifest_of(&content(3 * PIECE_LEN as usize));
        let page = manifest.page(0);
        let head = manifest.head().clone();
        assert_eq!(Manifest::assemble(head.clone(), &[&page]), Ok(manifest.clone()));
        let none: [&[u8]; 0] = [];
        assert!(matches!(
            Manifest::assemble(head.clone(), &none),
            Err(ManifestError::HashCount { actual: 0, expected: 3 })
        ));
        let mut wrong = page.clone();
        wrong[0] ^= 1;
        assert_eq!(Manifest::assemble(head.clone(), &[wrong]), Err(ManifestError::Page(0)));
        // A head that names the page but lies about what follows from it.
        let lie = ManifestHead { info_hash: InfoHash([0; 20]), ..head.clone() };
        assert_eq!(Manifest::assemble(lie, &[&page]), Err(ManifestError::InfoHash));
        let lie = ManifestHead { blake3: Blake3Hash([0; 32]), ..head };
        assert_eq!(Manifest::assemble(lie, &[&page]), Err(ManifestError::Root));
    }

    #[test]
    fn more_than_one_page() {
        let count = PAGE_PIECES as usize + 3;
        let layout = PieceLayout::new(count as u64 * u64::from(PIECE_LEN)).expect("fits");
        let pieces: Vec<_> = (0..count)
            .map(|i| PieceHashes {
                sha1: hash::sha1(&i.to_le_bytes()),
                blake3: hash::blake3(&i.to_le_bytes()),
            })
            .collect();
        let manifest = Manifest::new(layout, hash::sha1(b""), pieces).expect("consistent");
        let pages = [manifest.page(0), manifest.page(1)];
        assert_eq!((pages[0].len(), pages[1].len()), (4096 * 52, 3 * 52));
        let head = ManifestHead::parse(&manifest.head().encode()).expect("parses");
        assert_eq!(Manifest::assemble(head, &pages), Ok(manifest));
    }

    #[test]
    fn every_truncation_of_a_head_is_an_error() {
        let bytes = manifest_of(&content(10)).head().encode();
        for len in 0..bytes.len() {
            assert!(ManifestHead::parse(&bytes[..len]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(ManifestHead::parse(&longer).is_err());
        let mut other = bytes;
        other[24] = 1;
        assert!(matches!(ManifestHead::parse(&other), Err(ManifestError::PieceLen(_))));
    }

    proptest! {
        #[test]
        fn junk_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300), tagged in any::<bool>()) {
            if tagged && bytes.len() > 16 {
                bytes[..16].copy_from_slice(HEAD_TAG);
            }
            let _ = ManifestHead::parse(&bytes);
        }
    }
}
