//! The codes on every QUIC reset, stop and close: one table, from which all else derives.

use std::fmt;

/// Declares the table: name, number, sentence.
macro_rules! codes {
    ($($name:ident = $number:literal, $sentence:literal;)*) => {
        /// Why a stream was reset or stopped, or a connection closed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(#[doc = $sentence] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number on the wire.
            pub fn number(self) -> u32 {
                match self { $(Self::$name => $number),* }
            }

            /// The code with this number, if this version knows it.
            pub fn from_number(number: u64) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// What it means, for a person.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence),* }
            }
        }
    };
}

codes! {
    Done = 0, "finished in order";
    Internal = 1, "the sender failed in itself";
    Protocol = 2, "the other side broke the protocol";
    FrameTooLarge = 3, "a frame was over its limit";
    TimedOut = 4, "an answer took too long";
    GoingAway = 5, "the sender is shutting down";
    Duplicate = 6, "another connection of the same two peers stays";
    Cancelled = 7, "the requester no longer wants it";
    NoTicket = 8, "no valid ticket for this group was shown";
    Revoked = 9, "the membership or device was revoked";
    NotFound = 10, "there is no such swarm here";
    Changed = 11, "the file changed on the sender's disk";
    Busy = 12, "too much is asked at once; try again later";
    Banned = 13, "this user sent false pieces";
    LimitReached = 14, "a limit of the receiver is reached";
    LoggedOut = 15, "the user logged out";
    NotATracker = 16, "the other side is no tracker of the roster";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_come_back() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index);
            assert_eq!(ErrorCode::from_number(index as u64), Some(*code));
        }
        assert_eq!(ErrorCode::from_number(ErrorCode::ALL.len() as u64), None);
    }

    #[test]
    fn protocol_md_has_the_same_table() {
        let page = include_str!("../PROTOCOL.md");
        for code in ErrorCode::ALL {
            let row = format!("| {} | {code:?} | {} |", code.number(), code.sentence());
            assert!(page.contains(&row), "PROTOCOL.md lacks the row {row}");
        }
    }
}
