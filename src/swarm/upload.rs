//! Serves one piece request on its own stream.
//!
//! The answer's header goes out at once and above all pieces; the body goes below every piece
//! asked for before it, so that pieces finish one after the other, and as fast as the rate limits
//! let it. Whose turn it is, `serving` says. A peer that takes nothing holds up nobody else, and is
//! given up after a while: no write is without a deadline.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::task::JoinError;

use super::buffers::Buffer;
use super::message::{Encoding, Nack, PieceHeader, PieceRequest};
use super::midstates::Midstates;
use super::registry::Registry;
use super::serving::Turn;
use super::session::{Session, SwarmKey};
use super::slots::{Body, Depth};
use super::storage::{PieceStore, ReadError};
use crate::error_code::ErrorCode;
use crate::limits::{MAX_REQUEST_LEN, PIECE_DEADLINE, REQUEST_FRAME_DEADLINE, SLOW_WRITE};
use crate::name::UserName;
use crate::piece::PieceIndex;
use crate::transport::code::quic_code;
use crate::transport::connection::{CONTROL_PRIORITY, RecvStream, SendStream};
use crate::transport::frame::{FrameError, read_frame_within, write_frame};

/// A request that waits no longer for its turn is not told that it waits: nobody would do anything about it.
const SHORT_WAIT: Duration = Duration::from_millis(20);

/// Serves the request on a fresh stream; `order` is its place among this session's requests.
///
/// # Errors
/// The code to close the connection with, when the peer broke the protocol.
pub async fn serve(
    registry: Arc<Registry>,
    session: Arc<Session>,
    (mut send, mut recv): (SendStream, RecvStream),
    order: u32,
) -> Result<(), ErrorCode> {
    let _in_use = session.in_use();
    // Above all pieces until the body; a stream already stopped does not care.
    let _ = send.set_priority(CONTROL_PRIORITY - 1);
    let request =
        read_frame_within::<PieceRequest>(&mut recv, MAX_REQUEST_LEN, REQUEST_FRAME_DEADLINE).await;
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            let code = quic_code(error.code());
            let _ = (send.reset(code), recv.stop(code));
            return if error.is_misbehaviour() { Err(error.code()) } else { Ok(()) };
        }
    };
    let admitted = match admit(&registry, &session, request) {
        Ok(admitted) => admitted,
        Err(Denied::Nack(nack)) => {
            count_refusal(&registry, &session, request, &nack);
            let refused = refuse(&mut send, nack).await;
            if matches!(refused, Err(FrameError::TimedOut)) {
                let _ = send.reset(quic_code(ErrorCode::TimedOut));
            }
            return Ok(());
        }
        Err(Denied::Misbehaved) => return Err(ErrorCode::Protocol),
    };
    // The requester may change its mind, and a tracker its, at any point of the rest. Resets of
    // streams that ended meanwhile change nothing.
    let mut stopped = pin!(send.stopped());
    let mut revoked = pin!(registry.revoked(&session, admitted.key.group));
    let mut counted = Counted { registry: &registry, admitted: &admitted, sent: 0, arrived: false };
    let given_up = tokio::select! {
        biased;
        sent = send_piece(&session, &mut send, &mut counted, request, order) => match sent {
            // The slot is taken until the bytes are with the peer: QUIC keeps them until then.
            Ok(Some((turn, slow_after))) => tokio::select! {
                arrived = arrival(&mut stopped, &turn, slow_after) => match arrived {
                    true => {
                        counted.arrived = true;
                        turn.delivered(admitted.len);
                        return Ok(());
                    }
                    false => ErrorCode::Cancelled,
                },
                () = revoked => ErrorCode::Revoked,
            },
            Err(FrameError::TimedOut) => ErrorCode::TimedOut,
            Ok(None) | Err(_) => return Ok(()),
        },
        _ = &mut stopped => ErrorCode::Cancelled,
        () = &mut revoked => ErrorCode::Revoked,
    };
    let _ = send.reset(quic_code(given_up));
    Ok(())
}

/// Waits until a body that was sent is acknowledged; whether it was.
async fn arrival<C, E>(
    stopped: &mut (impl Future<Output = Result<Option<C>, E>> + Unpin),
    turn: &Turn<'_>,
    slow_after: Duration,
) -> bool {
    let mut ended = tokio::time::timeout(slow_after, &mut *stopped).await;
    if ended.is_err() {
        turn.is_slow();
        ended = tokio::time::timeout(PIECE_DEADLINE, stopped).await;
    }
    matches!(ended, Ok(Ok(None)))
}

/// A request that may be served.
struct Admitted {
    store: Arc<PieceStore>,
    key: SwarmKey,
    user: UserName,
    piece: PieceIndex,
    len: u32,
}

enum Denied {
    Nack(Nack),
    Misbehaved,
}

/// Whether the request names something we may serve to this peer.
fn admit(
    registry: &Registry,
    session: &Session,
    request: PieceRequest,
) -> Result<Admitted, Denied> {
    let key = session.their_swarm(request.swarm).ok_or(Denied::Nack(Nack::NoSwarm))?;
    let user = registry.member(session, key.group).ok_or(Denied::Nack(Nack::Revoked))?;
    let swarm = registry.swarm(key).ok_or(Denied::Nack(Nack::NoSwarm))?;
    let store = swarm.store.clone();
    let layout = store.manifest().layout();
    let piece = layout.piece(request.piece).ok_or(Denied::Misbehaved)?;
    // What is known already: only reading looks at the disk, where it may block.
    if store.known_changed() {
        return Err(Denied::Nack(Nack::Changed));
    }
    if !store.has(piece) {
        let bits = session.bits_for_refusal(key, &store);
        return Err(Denied::Nack(Nack::NotHave { bits }));
    }
    Ok(Admitted { store, key, user, piece, len: layout.len(piece) })
}

/// Counts what is handed to QUIC, and in the end whether it arrived.
struct Counted<'a> {
    registry: &'a Registry,
    admitted: &'a Admitted,
    sent: u64,
    arrived: bool,
}

impl Counted<'_> {
    fn sends(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        let Admitted { key, user, .. } = self.admitted;
        self.registry.count_upload(*key, user, |counts| counts.sent_bytes += bytes as u64);
    }

    fn refuses(&self, nack: &Nack) {
        let Admitted { key, user, .. } = self.admitted;
        self.registry.count_upload(*key, user, |counts| counts.refused.count(nack));
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.sent > 0 {
            let Admitted { key, user, .. } = self.admitted;
            self.registry.count_upload(*key, user, |counts| {
                if self.arrived {
                    counts.pieces += 1;
                    counts.delivered_bytes += self.sent;
                } else {
                    counts.cut_off_bytes += self.sent;
                }
            });
        }
    }
}

/// Counts a request that was refused at once, where it is known whose and what for.
fn count_refusal(registry: &Registry, session: &Session, request: PieceRequest, nack: &Nack) {
    let key = session.their_swarm(request.swarm);
    if let (Some(key), Some(user)) = (key, session.user()) {
        registry.count_upload(key, &user, |counts| counts.refused.count(nack));
    }
}

/// Waits for the request's turn, reads the piece and hands it to QUIC; returns the turn and after
/// how long it is slow, or nothing when it could not be served after all.
async fn send_piece<'a>(
    session: &Session,
    send: &mut SendStream,
    counted: &mut Counted<'a>,
    request: PieceRequest,
    order: u32,
) -> Result<Option<(Turn<'a>, Duration)>, FrameError> {
    let Counted { registry, admitted, .. } = *counted;
    let turn = match wait_for_turn(session, send, registry, admitted, request).await? {
        Ok(turn) => turn,
        Err(nack) => {
            counted.refuses(&nack);
            refuse(send, nack).await?;
            return Ok(None);
        }
    };
    let (bytes, midstates) = match read(registry, admitted).await {
        Ok(Ok((buffer, midstates))) => (Bytes::from_owner(buffer), midstates),
        Ok(Err(error)) => {
            let (path, piece) = (admitted.store.path(), admitted.piece);
            tracing::warn!(path = %path.display(), %piece, %error, "cannot serve");
            let nack =
                unreadable(&error, || session.bits_for_refusal(admitted.key, &admitted.store));
            drop(turn);
            counted.refuses(&nack);
            refuse(send, nack).await?;
            return Ok(None);
        }
        Err(_panicked) => return Ok(None),
    };
    let len = bytes.len() as u32;
    let encoding = Encoding::Identity;
    let header = match midstates.filter(|_| session.takes_midstates) {
        Some(midstates) => PieceHeader::Proven { encoding, len, midstates },
        None => PieceHeader::Data { encoding, len },
    };
    handed_over(&turn, write_frame(send, &header)).await??;
    let _ = send.set_priority(-i32::try_from(order).unwrap_or(i32::MAX));
    if !write_body(send, bytes, &turn, counted).await? {
        return Ok(None);
    }
    let _ = send.finish();
    let slow_after = turn.is_sent();
    Ok(Some((turn, slow_after)))
}

/// The bytes of the piece, and its midstates where they are known: at once where the system is likely to
/// have both in memory, else by a thread that may wait for the disk.
async fn read(
    registry: &Registry,
    Admitted { store, piece, .. }: &Admitted,
) -> Result<Result<(Buffer, Option<Box<Midstates>>), ReadError>, JoinError> {
    let (content, piece) = (store.manifest().content_id(), *piece);
    let (buffers, sidecars) = (registry.buffers().clone(), registry.sidecars().clone());
    let looked_up = store.is_quick().then(|| sidecars.get_at_once(content, piece)).flatten();
    if let Some(Some(known)) = looked_up
        && let Some(buffer) = store.read_at_once(piece, known.crc, &buffers)
    {
        return Ok(Ok((buffer, Some(Box::new(known.midstates)))));
    }
    let store = store.clone();
    let read = tokio::task::spawn_blocking(move || {
        let known = looked_up.unwrap_or_else(|| sidecars.get(content, piece));
        let buffer = store.read_piece(piece, known.map(|known| known.crc), &buffers)?;
        Ok((buffer, known.map(|known| Box::new(known.midstates))))
    });
    read.await
}

/// The request's turn once it has come, or the answer to give instead.
async fn wait_for_turn<'a>(
    session: &Session,
    send: &mut SendStream,
    registry: &'a Registry,
    Admitted { store, key, user, piece, len }: &Admitted,
    request: PieceRequest,
) -> Result<Result<Turn<'a>, Nack>, FrameError> {
    let path = session.connection.path();
    let depth = Depth::of(path.window, path.rtt, store.is_slow());
    let body = Body { user: user.clone(), session: session.number, content: *key, depth };
    let mut turn = match registry.serving().enter(body, piece.get(), *len) {
        Ok(turn) => turn,
        Err(nack) => return Ok(Err(nack)),
    };
    if let Some(decided) = turn.decided() {
        return Ok(decided.map(|()| turn));
    }
    if let Err(nack) = say_queued(send, &mut turn).await? {
        return Ok(Err(nack));
    }
    // Much may have changed while it waited.
    Ok(match admit(registry, session, request) {
        Ok(again) if again.key == *key => Ok(turn),
        // Another swarm under this number than when it was asked.
        Ok(_) | Err(Denied::Misbehaved) => Err(Nack::NoSwarm),
        Err(Denied::Nack(nack)) => Err(nack),
    })
}

/// Waits, and says so where that takes long; what was decided.
async fn say_queued(
    send: &mut SendStream,
    turn: &mut Turn<'_>,
) -> Result<Result<(), Nack>, FrameError> {
    if let Ok(decided) = tokio::time::timeout(SHORT_WAIT, turn.wait()).await {
        return Ok(decided);
    }
    let mut said = pin!(write_frame(send, &PieceHeader::Queued));
    let decided = tokio::select! {
        biased;
        said = tokio::time::timeout(PIECE_DEADLINE, &mut said) => {
            said.unwrap_or(Err(FrameError::TimedOut))?;
            return Ok(turn.wait().await);
        }
        decided = turn.wait() => decided,
    };
    // Its turn came while its reader takes nothing: that holds up nobody else.
    handed_over(turn, said).await??;
    Ok(decided)
}

/// Hands a body to QUIC: at once without a rate limit, bit by bit under one. Whether all of it.
async fn write_body(
    send: &mut SendStream,
    mut bytes: Bytes,
    turn: &Turn<'_>,
    counted: &mut Counted<'_>,
) -> Result<bool, FrameError> {
    while !bytes.is_empty() {
        let len = counted.registry.rates().up_turn(counted.admitted.key, bytes.len()).await;
        if handed_over(turn, send.write_chunk(bytes.split_to(len))).await?.is_err() {
            return Ok(false);
        }
        counted.sends(len);
    }
    Ok(true)
}

/// What comes of a write that its reader lets go on, or not: soon it holds up nobody else, and in
/// the end it is given up.
///
/// # Errors
/// [`FrameError::TimedOut`].
async fn handed_over<T>(turn: &Turn<'_>, write: impl Future<Output = T>) -> Result<T, FrameError> {
    patiently((SLOW_WRITE, PIECE_DEADLINE), turn, write).await
}

async fn patiently<T>(
    (slow_after, given_up_after): (Duration, Duration),
    turn: &Turn<'_>,
    write: impl Future<Output = T>,
) -> Result<T, FrameError> {
    let mut write = pin!(write);
    if let Ok(written) = tokio::time::timeout(slow_after, &mut write).await {
        return Ok(written);
    }
    turn.is_slow();
    tokio::time::timeout(given_up_after, write).await.map_err(|_elapsed| FrameError::TimedOut)
}

/// The answer to a request for a piece that cannot be read.
fn unreadable(error: &ReadError, bits: impl FnOnce() -> Option<Vec<u8>>) -> Nack {
    // Here it may go better next time; of a disk that fails, others are to be asked instead.
    const SCARCE: [Errno; 3] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    match error {
        ReadError::Changed => Nack::Changed,
        ReadError::Io(error)
            if Errno::from_io_error(error).is_some_and(|e| SCARCE.contains(&e)) =>
        {
            Nack::Busy
        }
        ReadError::Missing | ReadError::Io(_) => Nack::NotHave { bits: bits() },
    }
}

async fn refuse(send: &mut SendStream, nack: Nack) -> Result<(), FrameError> {
    let taken = async {
        if write_frame(send, &PieceHeader::Nack(nack)).await.is_ok() {
            let _ = send.finish();
            let _ = send.stopped().await;
        }
    };
    tokio::time::timeout(PIECE_DEADLINE, taken).await.map_err(|_elapsed| FrameError::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::manifest::ContentId;
    use crate::swarm::rates::{RateLimits, Rates};
    use crate::swarm::serving::Serving;
    use std::io;

    fn body() -> Body<SwarmKey> {
        let key = SwarmKey { group: GroupId([1; 16]), content: ContentId([2; 32]) };
        Body {
            user: "bob".parse().expect("a name"),
            session: 1,
            content: key,
            depth: Depth::default(),
        }
    }

    #[tokio::test]
    async fn a_write_that_stands_still_holds_up_nobody_and_is_given_up() {
        // Two bodies are written at once.
        let limits = RateLimits { up: Some(1024 * 1024), down: None };
        let serving = Serving::new(Arc::new(Rates::new(limits)));
        let first = serving.enter(body(), 0, 1).expect("room");
        let _second = serving.enter(body(), 1, 1).expect("room");
        let mut waits = serving.enter(body(), 2, 1).expect("room");
        let (never, patience) = (std::future::pending::<()>(), Duration::from_millis(1));
        let given_up = patiently((patience, patience), &first, never);
        let (given_up, waited) = tokio::join!(given_up, waits.wait());
        assert!(matches!(given_up, Err(FrameError::TimedOut)));
        assert_eq!(waited, Ok(()));
        let done = handed_over(&first, std::future::ready(1)).await;
        assert_eq!(done.expect("in time"), 1);
    }

    #[test]
    fn what_cannot_be_read_is_had_elsewhere_and_what_is_scarce_is_tried_again() {
        let io = |code: Errno| ReadError::Io(io::Error::from(code));
        let bits = Some(vec![3]);
        let answer = |error: &ReadError| unreadable(error, || Some(vec![3]));
        for code in [Errno::IO, Errno::ACCESS] {
            assert_eq!(answer(&io(code)), Nack::NotHave { bits: bits.clone() });
        }
        for code in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert_eq!(answer(&io(code)), Nack::Busy);
        }
        assert_eq!(answer(&ReadError::Missing), Nack::NotHave { bits });
        assert_eq!(answer(&ReadError::Changed), Nack::Changed);
    }
}
