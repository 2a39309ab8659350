//! What a download's scheduler is told, and what it wants done.
//!
//! Events can be written to a log; the same log gives the same actions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bitfield::Bitfield;
use crate::name::UserName;
use crate::piece::{PieceIndex, PieceLayout};

/// One session with one peer, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerKey(pub u64);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A peer came with these pieces.
    PeerJoined {
        /// Which session.
        peer: PeerKey,
        /// Whose device it is.
        user: UserName,
        /// What it has.
        pieces: Bitfield,
        /// The connection's round-trip time now.
        rtt: Duration,
    },
    /// A peer has these pieces and no others.
    PeerPieces {
        /// Which session.
        peer: PeerKey,
        /// What it has.
        pieces: Bitfield,
    },
    /// A peer has more pieces.
    PeerHas {
        /// Which session.
        peer: PeerKey,
        /// Which.
        pieces: Vec<PieceIndex>,
    },
    /// A peer is gone; what it was asked for is free again.
    PeerLeft {
        /// Which session.
        peer: PeerKey,
    },
    /// Something came on the connection of a peer since this was last said.
    Alive {
        /// Which session.
        peer: PeerKey,
        /// The connection's round-trip time now.
        rtt: Duration,
    },
    /// Part of a piece is here; none of it when only its bytes were promised.
    Progress {
        /// From which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// Bytes of it.
        received: u32,
    },
    /// A piece's bytes are all here, not yet verified.
    Received {
        /// From which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// The connection's round-trip time now.
        rtt: Duration,
    },
    /// A received piece was verified and written.
    Stored {
        /// Who sent it.
        user: UserName,
        /// Which piece.
        piece: PieceIndex,
    },
    /// A piece, or its form, was not what it should be; when `received`, its bytes had been said to be
    /// here.
    Bad {
        /// From which session; it may be gone.
        peer: PeerKey,
        /// Who sent it.
        user: UserName,
        /// Which piece.
        piece: PieceIndex,
        /// Whether [`Event::Received`] told of it before.
        received: bool,
    },
    /// Pieces that were stored are not there any more.
    Lost {
        /// Which.
        pieces: Vec<PieceIndex>,
    },
    /// Pieces that were missing are there.
    Found {
        /// Which.
        pieces: Vec<PieceIndex>,
    },
    /// A peer will not serve this piece.
    NotServed {
        /// Which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// Why.
        reason: NotServed,
    },
    /// So much may be under way from now on.
    Room {
        /// Bytes under way or being verified.
        bytes: u64,
        /// Bytes that may be asked for before this is said again; any number when nothing.
        credit: Option<u64>,
    },
    /// Nothing more is to be asked for: it could not be written.
    Pause,
    /// As before.
    Resume,
    /// Time passed.
    Tick,
}

/// Why a piece is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotServed {
    /// The peer does not have it.
    NotHave,
    /// The peer serves nothing, until it tells anew what it has.
    Nothing,
    /// The peer has too much to do.
    Busy,
    /// The stream broke; nothing is known of the peer.
    Broken,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Ask a peer for a piece, on a stream of its own.
    Request {
        /// Which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// Why this peer.
        why: Why,
    },
    /// Stop a request: what has come of it is not needed.
    Cancel {
        /// Which session.
        peer: PeerKey,
        /// Which piece.
        piece: PieceIndex,
        /// Why.
        cause: Cause,
    },
    /// Take nothing more from a user.
    Ban {
        /// The user.
        user: UserName,
    },
    /// Everybody who has a piece sends something else than the manifest says.
    SuspectManifest {
        /// Which piece.
        piece: PieceIndex,
    },
    /// Every piece is stored.
    Complete,
}

/// Why a peer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// Nobody else is.
    Missing,
    /// It was taken from a peer that would need much longer.
    Stolen,
    /// Another peer is asked too: it is among the last.
    Endgame,
}

/// Why a request is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Another peer is asked instead, which should be much faster.
    Stolen,
    /// Another peer was first.
    Late,
    /// Nothing at all comes from the peer.
    Silent,
    /// The peer promised bytes that do not come.
    Stalled,
}

impl Event {
    /// Whether every piece and set of pieces in it belongs to `layout`.
    pub fn fits(&self, layout: PieceLayout) -> bool {
        match self {
            Self::PeerJoined { pieces, .. } | Self::PeerPieces { pieces, .. } => {
                pieces.layout() == layout
            }
            Self::PeerHas { pieces, .. } | Self::Lost { pieces } | Self::Found { pieces } => {
                pieces.iter().all(|piece| layout.contains(*piece))
            }
            Self::Progress { piece, .. }
            | Self::Received { piece, .. }
            | Self::Stored { piece, .. }
            | Self::Bad { piece, .. }
            | Self::NotServed { piece, .. } => layout.contains(*piece),
            Self::PeerLeft { .. }
            | Self::Alive { .. }
            | Self::Room { .. }
            | Self::Pause
            | Self::Resume
            | Self::Tick => true,
        }
    }
}
