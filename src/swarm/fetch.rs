//! One request for one piece, on a QUIC stream of its own.
//!
//! Reads what the peer answers, in the form it must have; whether the bytes are the piece is for the
//! store to say. Dropped before its end, it stops the peer.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::buffers::Buffers;
use super::chunks::Chunks;
use super::event::PeerKey;
use super::message::{Encoding, Nack, PieceHeader, PieceRequest};
use super::midstates::Midstates;
use super::session::{Session, SwarmKey};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits::MAX_FRAME_LEN;
use crate::piece::PieceIndex;
use crate::transport::code::quic_code;
use crate::transport::connection::RecvStream;
use crate::transport::frame::{FrameError, read_frame};

/// How often a piece that comes slowly tells how much of it is here.
const TELL_PROGRESS: Duration = Duration::from_millis(500);

/// Chunks that are taken from a stream at once: the datagrams of one send, and hardly any more.
const CHUNKS_AT_ONCE: usize = 32;

/// Of a piece of a peer so many bytes are here.
pub type Came = (PeerKey, PieceIndex, u32);

/// What became of one request.
#[derive(Debug)]
pub enum Fetched {
    /// The bytes, not verified, and what was said with them of their SHA-1s.
    Bytes(Chunks, Option<Box<Midstates>>),
    /// The peer will not serve it.
    Refused(Nack),
    /// The stream broke; nothing is known of the peer.
    Broken,
    /// The peer broke the protocol on this stream.
    Misbehaved,
}

/// What is asked for, and of whom.
#[derive(Debug)]
pub struct Fetch {
    /// The session with the peer.
    pub session: Arc<Session>,
    /// Its key in the download.
    pub peer: PeerKey,
    /// The swarm in which it is asked.
    pub swarm: SwarmKey,
    /// The piece.
    pub piece: PieceIndex,
    /// Bytes it has.
    pub len: u32,
    /// Counts the bytes that are here.
    pub received: Arc<AtomicU32>,
    /// Where what comes slowly is copied together.
    pub buffers: Buffers,
    /// Told when the bytes were promised, and now and then how many are here. It may be full: this is
    /// said again.
    pub progress: mpsc::Sender<Came>,
}

/// Stops the answer when the request is dropped before its end.
struct StopOnDrop(RecvStream);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // A stream that ended has nothing to stop.
        let _ = self.0.stop(quic_code(ErrorCode::Cancelled));
    }
}

impl Fetch {
    /// Asks, and reads the answer.
    pub async fn run(&self) -> Fetched {
        match self.exchange().await {
            Ok(fetched) => fetched,
            Err(error) if error.is_misbehaviour() => Fetched::Misbehaved,
            Err(_) => Fetched::Broken,
        }
    }

    async fn exchange(&self) -> Result<Fetched, FrameError> {
        let Some(swarm) = self.session.our_number(self.swarm) else { return Ok(Fetched::Broken) };
        let (_in_use, _expected) = (self.session.in_use(), self.session.expect(self.len));
        let request = PieceRequest { swarm, piece: self.piece.get() };
        let mut recv = StopOnDrop(self.session.connection.ask(&request).await?);
        let mut queued = false;
        let (promised, midstates) = loop {
            match read_frame(&mut recv.0, MAX_FRAME_LEN).await? {
                PieceHeader::Queued if !queued => queued = true,
                PieceHeader::Queued => return Ok(Fetched::Misbehaved),
                PieceHeader::Nack(nack) => return Ok(Fetched::Refused(nack)),
                PieceHeader::Data { encoding: Encoding::Identity, len } => break (len, None),
                PieceHeader::Proven { encoding: Encoding::Identity, len, midstates } => {
                    break (len, Some(midstates));
                }
            }
        };
        if promised != self.len {
            return Ok(Fetched::Misbehaved);
        }
        self.tell(0);
        let mut told = clock::monotonic();
        let mut chunks = Chunks::default();
        let mut came = [const { Bytes::new() }; CHUNKS_AT_ONCE];
        while let Some(count) = recv.0.read_chunks(&mut came).await? {
            for bytes in &mut came[..count] {
                if chunks.len() + bytes.len() > self.len as usize {
                    return Ok(Fetched::Misbehaved);
                }
                chunks.push(mem::take(bytes));
            }
            self.received.store(chunks.len() as u32, Ordering::Relaxed);
            if told.elapsed() >= TELL_PROGRESS {
                told = clock::monotonic();
                self.tell(chunks.len() as u32);
                // Datagrams with little of the piece in them are not kept for long.
                chunks.gather(&self.buffers);
            }
        }
        Ok(if chunks.len() == self.len as usize {
            Fetched::Bytes(chunks, midstates)
        } else {
            Fetched::Misbehaved
        })
    }

    fn tell(&self, received: u32) {
        let _ = self.progress.try_send((self.peer, self.piece, received));
    }
}
