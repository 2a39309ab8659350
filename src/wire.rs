//! Strict postcard: the one binary encoding of every message and signed body.
//!
//! Decoding accepts exactly one value and no trailing bytes. Lengths are the caller's business:
//! a frame is bounded before it gets here.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that are not the value they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Truncated, an unknown variant, or a field that fails its own rules.
    #[error("malformed message")]
    Malformed,
    /// A value and then something else.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
}

/// Encodes `value`.
///
/// # Panics
/// Never for mtq's own messages: they have no type postcard cannot express.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("invariant: every message type is expressible in postcard")
}

/// Decodes exactly one `T`.
///
/// # Errors
/// [`DecodeError`] when `bytes` is anything but one whole `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError::Trailing(rest.len())),
        Err(_) => Err(DecodeError::Malformed),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Checks every decoder owes: truncations fail, junk never panics.

    use super::*;

    /// Asserts that `value` survives the trip and that no proper prefix of it decodes.
    pub(crate) fn round_trip<T>(value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let bytes = encode(value);
        assert_eq!(&decode::<T>(&bytes).expect("own encoding decodes"), value);
        for len in 0..bytes.len() {
            assert!(decode::<T>(&bytes[..len]).is_err(), "prefix of {len} bytes decoded");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(decode::<T>(&longer), Err(DecodeError::Trailing(1)));
    }
}
