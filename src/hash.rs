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

/// SHA-1 of `bytes`.
pub fn sha1(bytes: &[u8]) -> Sha1Hash {
    Sha1Hash(sha1::Sha1::digest(bytes).into())
}

/// BLAKE3 of `bytes`.
pub fn blake3(bytes: &[u8]) -> Blake3Hash {
    Blake3Hash(*blake3::hash(bytes).as_bytes())
}

/// SHA-1 of a stream, fed in order.
#[derive(Clone, Default)]
pub struct Sha1Hasher(sha1::Sha1);

impl Sha1Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all that was added.
    pub fn finish(self) -> Sha1Hash {
        Sha1Hash(self.0.finalize().into())
    }
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
