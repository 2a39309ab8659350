//! Frames: a length (u32, little-endian) and that many bytes of strict postcard.
//!
//! A frame over its limit is refused before a byte of it is read or stored.

use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::code;
use crate::error_code::ErrorCode;
use crate::wire::{self, DecodeError};

/// Bytes of the length before a frame.
pub const PREFIX_LEN: usize = 4;

/// A frame that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than this kind of frame may be.
    #[error("a frame of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not the message expected.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The stream ended where a frame could begin.
    #[error("the stream ended")]
    Ended,
    /// The other side reset or stopped the stream.
    #[error("{}", code::describe(*.0))]
    Reset(VarInt),
    /// The connection is gone.
    #[error("{}", code::describe_end(.0))]
    Connection(#[from] quinn::ConnectionError),
    /// Its time is over.
    #[error("a frame took too long")]
    TimedOut,
}

impl FrameError {
    /// Whether the other side broke the protocol, rather than the network or its own trouble.
    pub fn is_misbehaviour(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Decode(_) | Self::Truncated)
    }

    /// The code to answer with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::FrameTooLarge,
            Self::Decode(_) | Self::Truncated => ErrorCode::Protocol,
            Self::TimedOut => ErrorCode::TimedOut,
            Self::Ended | Self::Reset(_) | Self::Connection(_) => ErrorCode::Done,
        }
    }
}

/// The bytes of a frame holding `message`.
///
/// # Panics
/// When the message is over 4 GiB, which no message is.
pub fn frame_bytes<T: Serialize>(message: &T) -> Vec<u8> {
    let body = wire::encode(message);
    let len = u32::try_from(body.len()).expect("invariant: messages are far below 4 GiB");
    let mut bytes = Vec::with_capacity(PREFIX_LEN + body.len());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Writes one frame.
///
/// # Errors
/// [`FrameError`] when the stream or the connection is gone.
pub async fn write_frame<T: Serialize>(
    stream: &mut SendStream,
    message: &T,
) -> Result<(), FrameError> {
    stream.write_all(&frame_bytes(message)).await.map_err(|error| match error {
        quinn::WriteError::Stopped(code) => FrameError::Reset(code),
        quinn::WriteError::ConnectionLost(error) => FrameError::Connection(error),
        quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => FrameError::Ended,
    })
}

/// Reads one frame of at most `limit` bytes.
///
/// # Errors
/// [`FrameError`]; [`FrameError::Ended`] when the stream ends cleanly before it.
pub async fn read_frame<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<T, FrameError> {
    let mut prefix = [0; PREFIX_LEN];
    stream.read_exact(&mut prefix).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(0) => FrameError::Ended,
        other => read_error(other),
    })?;
    let len = u32::from_le_bytes(prefix) as usize;
    if len > limit {
        return Err(FrameError::TooLarge { len, limit });
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.map_err(read_error)?;
    Ok(wire::decode(&body)?)
}

/// Reads one frame within `deadline`.
///
/// # Errors
/// As [`read_frame`], and [`FrameError::TimedOut`].
pub async fn read_frame_within<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
    deadline: std::time::Duration,
) -> Result<T, FrameError> {
    tokio::time::timeout(deadline, read_frame(stream, limit))
        .await
        .unwrap_or(Err(FrameError::TimedOut))
}

fn read_error(error: ReadExactError) -> FrameError {
    match error {
        ReadExactError::FinishedEarly(_) => FrameError::Truncated,
        ReadExactError::ReadError(error) => error.into(),
    }
}

impl From<quinn::ReadError> for FrameError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code),
            quinn::ReadError::ConnectionLost(error) => Self::Connection(error),
            _ => Self::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_its_length_and_its_postcard() {
        assert_eq!(frame_bytes(&(1u8, "ab")), [4, 0, 0, 0, 1, 2, b'a', b'b']);
    }
}
