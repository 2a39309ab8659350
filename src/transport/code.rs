//! Error codes as they travel in QUIC, and what to tell a person of them.

use quinn::{ConnectionError, VarInt};

use crate::error_code::ErrorCode;

/// What a code on the wire means, also when a later version sent it.
pub fn describe(code: VarInt) -> String {
    match ErrorCode::from_number(code.into_inner()) {
        Some(known) => known.sentence().to_owned(),
        None => format!("code {code}"),
    }
}

/// A code as quinn wants it.
pub fn quic_code(code: ErrorCode) -> VarInt {
    VarInt::from_u32(code.number())
}

/// Why a connection is gone, for a person.
pub fn describe_end(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => describe(close.error_code),
        ConnectionError::TimedOut => "the connection timed out".to_owned(),
        ConnectionError::Reset => "the other side restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_have_sentences_and_later_ones_numbers() {
        assert_eq!(describe(quic_code(ErrorCode::Changed)), ErrorCode::Changed.sentence());
        assert_eq!(describe(VarInt::from_u32(999)), "code 999");
    }
}
