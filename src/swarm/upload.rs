//! Serves one piece request on its own stream.
//!
//! The answer's header goes out at once and above all pieces; the body goes below every piece
//! asked for before it, so that pieces finish one after the other.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;

use super::message::{Encoding, Nack, PieceHeader, PieceRequest};
use super::registry::Registry;
use super::session::{Session, SwarmKey};
use super::storage::{PieceStore, ReadError};
use crate::error_code::ErrorCode;
use crate::limits::{MAX_REQUEST_LEN, PIECE_DEADLINE, REQUEST_FRAME_DEADLINE};
use crate::piece::PieceIndex;
use crate::transport::code::quic_code;
use crate::transport::connection::{CONTROL_PRIORITY, RecvStream, SendStream};
use crate::transport::frame::{FrameError, read_frame_within, write_frame};

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
            refuse(&mut send, nack).await;
            return Ok(());
        }
        Err(Denied::Misbehaved) => return Err(ErrorCode::Protocol),
    };
    // The requester may change its mind, and a tracker its, at any point of the rest. Resets of
    // streams that ended meanwhile change nothing.
    let mut stopped = pin!(send.stopped());
    let mut revoked = pin!(registry.revoked(&session, admitted.key.group));
    let given_up = tokio::select! {
        biased;
        sent = send_piece(&registry, &session, &mut send, &admitted, order) => match sent {
            // The slot is taken until the bytes are with the peer: QUIC keeps them until then.
            Ok(Some((len, _slot))) => tokio::select! {
                delivered = tokio::time::timeout(PIECE_DEADLINE, stopped) => match delivered {
                    Ok(Ok(None)) => {
                        registry.count_upload(admitted.key, u64::from(len));
                        return Ok(());
                    }
                    _ => ErrorCode::Cancelled,
                },
                () = revoked => ErrorCode::Revoked,
            },
            _ => return Ok(()),
        },
        _ = &mut stopped => ErrorCode::Cancelled,
        () = &mut revoked => ErrorCode::Revoked,
    };
    let _ = send.reset(quic_code(given_up));
    Ok(())
}

/// A piece buffer: one of the agent's, and one of those a single session may take.
struct Slot<'a> {
    _session: SemaphorePermit<'a>,
    _agent: SemaphorePermit<'a>,
}

impl<'a> Slot<'a> {
    fn now(registry: &'a Registry, session: &'a Session) -> Option<Self> {
        let of_session = session.upload_slots.try_acquire().ok()?;
        let of_agent = registry.upload_slots.try_acquire().ok()?;
        Some(Self { _session: of_session, _agent: of_agent })
    }

    async fn wait(registry: &'a Registry, session: &'a Session) -> Option<Self> {
        let of_session = session.upload_slots.acquire().await.ok()?;
        let of_agent = registry.upload_slots.acquire().await.ok()?;
        Some(Self { _session: of_session, _agent: of_agent })
    }
}

/// A request that may be served.
struct Admitted {
    store: Arc<PieceStore>,
    key: SwarmKey,
    piece: PieceIndex,
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
    if registry.member(session, key.group).is_none() {
        return Err(Denied::Nack(Nack::Revoked));
    }
    let swarm = registry.swarm(key).ok_or(Denied::Nack(Nack::NoSwarm))?;
    let store = swarm.store.clone();
    let piece = store.manifest().layout().piece(request.piece).ok_or(Denied::Misbehaved)?;
    if store.is_changed() {
        return Err(Denied::Nack(Nack::Changed));
    }
    if !store.has(piece) {
        // Bitfield and HAVEs told the truth, so the whole field is news to nobody.
        return Err(Denied::Nack(Nack::NotHave { bits: None }));
    }
    Ok(Admitted { store, key, piece })
}

/// Waits for a slot, reads the piece and hands it to QUIC; returns its length and the slot, or
/// nothing when it could not be served after all.
async fn send_piece<'a>(
    registry: &'a Registry,
    session: &'a Session,
    send: &mut SendStream,
    Admitted { store, key, piece }: &Admitted,
    order: u32,
) -> Result<Option<(u32, Slot<'a>)>, FrameError> {
    let slot = match Slot::now(registry, session) {
        Some(slot) => Some(slot),
        None => {
            write_frame(send, &PieceHeader::Queued).await?;
            let slot = Slot::wait(registry, session).await;
            // Much may have changed while it waited.
            if registry.member(session, key.group).is_none() {
                refuse(send, Nack::Revoked).await;
                return Ok(None);
            }
            slot
        }
    };
    // The semaphores are never closed.
    let Some(slot) = slot else { return Ok(None) };
    let (reader, piece) = (store.clone(), *piece);
    let read = tokio::task::spawn_blocking(move || reader.read_piece(piece)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => Bytes::from(bytes),
        Ok(Err(error)) => {
            tracing::warn!(path = %store.path().display(), %piece, %error, "cannot serve");
            let nack = match error {
                ReadError::Changed => Nack::Changed,
                ReadError::Missing => Nack::NotHave { bits: None },
                ReadError::Io(_) => Nack::Busy,
            };
            refuse(send, nack).await;
            return Ok(None);
        }
        Err(_panicked) => return Ok(None),
    };
    let len = bytes.len() as u32;
    write_frame(send, &PieceHeader::Data { encoding: Encoding::Identity, len }).await?;
    let _ = send.set_priority(-i32::try_from(order).unwrap_or(i32::MAX));
    if send.write_chunk(bytes).await.is_err() {
        return Ok(None);
    }
    let _ = send.finish();
    Ok(Some((len, slot)))
}

async fn refuse(send: &mut SendStream, nack: Nack) {
    if write_frame(send, &PieceHeader::Nack(nack)).await.is_ok() {
        let _ = send.finish();
        let _ = send.stopped().await;
    }
}
