//! Fixed-size byte identities (hashes, ids, keys) and the functions that compute hashes.
//!
//! In text they are lower-case hex, on the wire raw bytes without a length. Parsing accepts
//! nothing else.

use sha1::Digest as _;

/// Text that is not the hex of a fixed-size value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hex digits")]
pub struct HexError {
    /// Digits the value has.
    pub expected: usize,
}

/// Declares a newtype over `[u8; N]` with hex text and raw-byte wire forms.
macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Bytes in this value.
            pub const LEN: usize = $len;

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first eight hex digits: enough for a person and a log line.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::hash::HexError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if !lower || hex::decode_to_slice(text, &mut bytes).is_err() {
                    return Err($crate::hash::HexError { expected: 2 * $len });
                }
                Ok(Self(bytes))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    return serializer.collect_str(self);
                }
                use serde::ser::SerializeTuple as _;
                let mut tuple = serializer.serialize_tuple($len)?;
                for byte in &self.0 {
                    tuple.serialize_element(byte)?;
                }
                tuple.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        write!(f, "{} bytes", $len)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_seq<A: serde::de::SeqAccess<'de>>(
                        self,
                        mut seq: A,
                    ) -> Result<$name, A::Error> {
                        let mut bytes = [0; $len];
                        for (index, byte) in bytes.iter_mut().enumerate() {
                            *byte = seq
                                .next_element()?
                                .ok_or_else(|| serde::de::Error::invalid_length(index, &self))?;
                        }
                        Ok($name(bytes))
                    }
                }
                if d.is_human_readable() {
                    d.deserialize_str(Visitor)
                } else {
                    d.deserialize_tuple($len, Visitor)
                }
            }
        }
    };
}
pub(crate) use fixed_bytes;

fixed_bytes! {
    /// A SHA-1: of a piece or of a file.
    Sha1Hash, 20
}

fixed_bytes! {
    /// SHA-1 of the hash string: shown to people, never a lookup key.
    InfoHash, 20
}

fixed_bytes! {
    /// A BLAKE3 value: of a file, a hash page, or the subtree that is a piece.
    Blake3Hash, 32
}

/// What a SHA-1 is after whole blocks: it goes on from there as if it had seen them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sha1State([u32; 5]);

impl Sha1State {
    /// Bytes in a state.
    pub const LEN: usize = 20;

    /// One that has seen nothing.
    pub const FIRST: Self = Self([0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0]);

    /// Its words, each with its highest byte first.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut all = [0; Self::LEN];
        for (bytes, word) in all.chunks_exact_mut(4).zip(self.0) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        all
    }

    /// The state with these [bytes](Self::to_bytes).
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let (words, _) = bytes.as_chunks();
        Self(std::array::from_fn(|at| u32::from_be_bytes(words[at])))
    }
}

/// SHA-1 of `bytes`.
pub fn sha1(bytes: &[u8]) -> Sha1Hash {
    Sha1Hash(sha1::Sha1::digest(bytes).into())
}

/// BLAKE3 of `bytes`.
pub fn blake3(bytes: &[u8]) -> Blake3Hash {
    Blake3Hash(*blake3::hash(bytes).as_bytes())
}

/// CRC-64/NVME of `bytes`. Finds what changed by chance, as on a disk that rots, and nobody who means to.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// SHA-1 of a stream, fed in order.
#[derive(Clone)]
pub struct Sha1Hasher {
    state: Sha1State,
    /// Bytes seen, and those of them that do not fill a block.
    len: u64,
    rest: [u8; BLOCK],
}

/// Bytes SHA-1 takes at a time.
const BLOCK: usize = 64;

impl Default for Sha1Hasher {
    fn default() -> Self {
        Self::at(Sha1State::FIRST, 0)
    }
}

impl Sha1Hasher {
    /// One that has seen `len` bytes, whole blocks, and was in this state then.
    ///
    /// # Panics
    /// When they are not whole blocks.
    pub fn at(state: Sha1State, len: u64) -> Self {
        assert!(len.is_multiple_of(BLOCK as u64), "a state is one after whole blocks");
        Self { state, len, rest: [0; BLOCK] }
    }

    /// Its state, where it has seen whole blocks.
    pub fn state(&self) -> Option<Sha1State> {
        (self.filled() == 0).then_some(self.state)
    }

    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let filled = self.filled();
        self.len += bytes.len() as u64;
        if filled > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - filled));
            self.rest[filled..filled + now.len()].copy_from_slice(now);
            if filled + now.len() < BLOCK {
                return;
            }
            sha1_multi::compress([&mut self.state.0], &[self.rest]);
            bytes = later;
        }
        let (blocks, rest) = bytes.as_chunks();
        sha1_multi::compress([&mut self.state.0], blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    /// The hash of all that was added.
    pub fn finish(mut self) -> Sha1Hash {
        let bits = self.len * 8;
        let zeros = (2 * BLOCK - 9 - self.filled()) % BLOCK;
        self.update(&[0x80]);
        self.update(&[0; BLOCK][..zeros]);
        self.update(&bits.to_be_bytes());
        Sha1Hash(self.state.to_bytes())
    }

    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }
}

/// Adds the next bytes to both. Where their blocks begin at the same bytes that is little more work than for
/// one.
pub fn update_both(first: &mut Sha1Hasher, second: &mut Sha1Hasher, bytes: &[u8]) {
    let alone = match first.filled() == second.filled() {
        true => bytes.len().min((BLOCK - first.filled()) % BLOCK),
        false => bytes.len(),
    };
    let (alone, bytes) = bytes.split_at(alone);
    let (blocks, rest) = bytes.as_chunks();
    first.update(alone);
    second.update(alone);
    sha1_multi::compress([&mut first.state.0, &mut second.state.0], blocks);
    for hasher in [first, second] {
        hasher.len += (bytes.len() - rest.len()) as u64;
        hasher.update(rest);
    }
}

/// How many [`sha1_of_each`] should be given at a time: more than one only where the processor takes many at
/// once, at little more work than a few.
pub fn sha1_lanes() -> usize {
    sha1_multi::lanes()
}

/// The SHA-1 of each; of those as long as the first at once, where the processor can do that, and of these
/// also the states after every `step` bytes.
///
/// # Panics
/// When `step` is not whole blocks.
pub fn sha1_of_each(all: &[&[u8]], step: usize) -> Vec<(Sha1Hash, Vec<Sha1State>)> {
    assert!(step.is_multiple_of(BLOCK), "a state is one after whole blocks");
    let blocks = all.first().map_or(0, |first| first.len() / BLOCK);
    let alike: Vec<_> = (0..all.len()).filter(|at| all[*at].len() / BLOCK == blocks).collect();
    let mut states = vec![[Sha1State::FIRST.0]; alike.len()];
    let mut marks = vec![Vec::new(); all.len()];
    for begin in (0..blocks).step_by(step / BLOCK) {
        let end = blocks.min(begin + step / BLOCK);
        let slices: Vec<_> = alike.iter().map(|at| &all[*at].as_chunks().0[begin..end]).collect();
        sha1_multi::compress_each(&mut states, &slices);
        if (end * BLOCK).is_multiple_of(step) {
            alike.iter().zip(&states).for_each(|(at, [state])| marks[*at].push(Sha1State(*state)));
        }
    }
    let mut hashers = vec![Sha1Hasher::default(); all.len()];
    for (at, [state]) in alike.into_iter().zip(states) {
        hashers[at] = Sha1Hasher::at(Sha1State(state), (blocks * BLOCK) as u64);
    }
    let finished = hashers.into_iter().zip(all).map(|(mut hasher, bytes)| {
        // Fits: no more than the bytes there are.
        hasher.update(&bytes[hasher.len as usize..]);
        hasher.finish()
    });
    finished.zip(marks).collect()
}

/// Takes each pair of states over bytes of its own, whole blocks and as many for each.
///
/// # Panics
/// When they are not.
pub fn advance_pairs<const N: usize>(pairs: &mut [[Sha1State; 2]; N], bytes: [&[u8]; N]) {
    let blocks = bytes.map(|bytes| match bytes.as_chunks() {
        (blocks, []) => blocks,
        _ => panic!("a state is one after whole blocks"),
    });
    let mut states = pairs.map(|pair| pair.map(|state| state.0));
    sha1_multi::compress_each(&mut states, &blocks);
    *pairs = states.map(|pair| pair.map(Sha1State));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn known_answers() {
        assert_eq!(sha1(b"abc").to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            blake3(b"abc").to_string(),
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
        let mut stream = Sha1Hasher::default();
        stream.update(b"a");
        stream.update(b"bc");
        assert_eq!(stream.finish(), sha1(b"abc"));
    }

    #[test]
    fn the_crc_is_that_of_nvme() {
        // The check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
    }

    #[test]
    fn streams_agree_with_the_whole_however_they_are_cut() {
        let bytes: Vec<u8> = (0..5_000u32).map(|i| (i ^ (i >> 5)) as u8).collect();
        let mut rng = fastrand::Rng::with_seed(1);
        for len in (0..300).chain([4_096, 5_000]) {
            let mut stream = Sha1Hasher::default();
            let mut rest = &bytes[..len];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.usize(..=rest.len().min(200)));
                stream.update(now);
                rest = later;
            }
            assert_eq!(stream.finish(), sha1(&bytes[..len]), "{len}");
        }
    }

    #[test]
    fn two_at_once_are_what_each_is_alone() {
        let bytes: Vec<u8> = (0..9_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
        for before in [0, 1, 63, 64, 128, 3_000] {
            for len in [0, 1, 64, 65, 640, 5_000] {
                let (mut piece, mut file) = (Sha1Hasher::default(), Sha1Hasher::default());
                file.update(&bytes[..before]);
                let middle = before + len / 2;
                update_both(&mut piece, &mut file, &bytes[before..middle]);
                update_both(&mut piece, &mut file, &bytes[middle..before + len]);
                assert_eq!(file.finish(), sha1(&bytes[..before + len]), "{before} {len}");
                assert_eq!(piece.finish(), sha1(&bytes[before..before + len]), "{before} {len}");
            }
        }
    }

    #[test]
    fn many_at_once_are_what_each_is_alone() {
        let bytes: Vec<u8> = (0..9_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
        for count in [0, 1, 5, 6, 15, 16, 17, 33] {
            for len in [0, 1, 63, 64, 640, 700] {
                // Most of them alike, one shorter and one longer.
                let len_of = |place| match place {
                    2 => len / 3,
                    4 => len + 65,
                    _ => len,
                };
                let all: Vec<&[u8]> =
                    (0..count).map(|place| &bytes[place..place + len_of(place)]).collect();
                for (place, (hash, states)) in sha1_of_each(&all, 128).into_iter().enumerate() {
                    assert_eq!(hash, sha1(all[place]), "{place} of {count} of {len}");
                    if all[place].len() / BLOCK == len / BLOCK {
                        assert_eq!(states.len(), len / 128);
                    }
                    for (at, state) in states.into_iter().enumerate() {
                        let seen = 128 * (at + 1);
                        let mut rest = Sha1Hasher::at(state, seen as u64);
                        rest.update(&all[place][seen..]);
                        assert_eq!(rest.finish(), hash, "from {seen}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_state_is_its_bytes_and_there_is_none_within_a_block() {
        let mut hasher = Sha1Hasher::default();
        assert_eq!(hasher.state(), Some(Sha1State::FIRST));
        hasher.update(&[7; 64]);
        let state = hasher.state().expect("one block");
        assert_eq!(Sha1State::from_bytes(state.to_bytes()), state);
        assert_eq!(
            &Sha1State::FIRST.to_bytes()[..8],
            hex::decode("67452301efcdab89").expect("hex")
        );
        hasher.update(&[7]);
        assert_eq!(hasher.state(), None);
    }

    #[test]
    fn pairs_go_on_as_each_state_alone() {
        let bytes: Vec<u8> = (0..2_000u32).map(|i| (i ^ (i >> 3)) as u8).collect();
        let mut pairs = [[Sha1State([1; 5]), Sha1State([2; 5])]; 16];
        let parts: [&[u8]; 16] = std::array::from_fn(|at| &bytes[at * 11..][..640]);
        advance_pairs(&mut pairs, parts);
        for (pair, part) in pairs.into_iter().zip(parts) {
            for (state, first) in pair.into_iter().zip([1, 2]) {
                let mut alone = Sha1Hasher::at(Sha1State([first; 5]), 64);
                alone.update(part);
                assert_eq!(alone.state(), Some(state));
            }
        }
    }

    #[test]
    fn text_is_lower_case_hex_and_nothing_else() {
        let hash = sha1(b"x");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for bad in ["", "zz", &hash.to_string()[1..], &hash.to_string().to_uppercase()] {
            assert_eq!(bad.parse::<Sha1Hash>(), Err(HexError { expected: 40 }), "{bad}");
        }
    }

    #[test]
    fn wire_is_raw_and_json_is_hex() {
        let hash = blake3(b"x");
        assert_eq!(crate::wire::encode(&hash), hash.0);
        round_trip(&hash);
        let json = serde_json::to_string(&hash).expect("serializes");
        assert_eq!(json, format!("\"{hash}\""));
        assert_eq!(serde_json::from_str::<Blake3Hash>(&json).expect("parses"), hash);
    }
}
