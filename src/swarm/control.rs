//! Acts on the control frames of one session.

use std::sync::Arc;

use super::message::Control;
use super::registry::{Registry, tell_download};
use super::session::{News, Session, Swarm, SwarmKey};
use crate::bitfield::Bitfield;
use crate::error_code::ErrorCode;
use crate::limits::{CONTROL_COST, MAX_HAVE_BATCH};
use crate::ticket::TicketError;

/// Acts on one frame.
///
/// # Errors
/// The code to close the connection with, when the peer broke the protocol.
pub async fn handle(
    registry: &Registry,
    session: &Arc<Session>,
    message: Control,
) -> Result<(), ErrorCode> {
    match message {
        Control::Ticket { ticket } => show_ticket(registry, session, &ticket),
        Control::Open { swarm, group, content } => {
            open(registry, session, swarm, SwarmKey { group, content })
        }
        Control::Bitfield { swarm, bits } => bitfield(registry, session, swarm, &bits).await,
        Control::Have { swarm, pieces } => have(registry, session, swarm, &pieces).await,
        Control::Close { swarm, refused, code } => {
            let key = if refused { session.refused(swarm) } else { session.closed_by_peer(swarm) };
            let swarm = key.and_then(|key| registry.swarm(key));
            let code = ErrorCode::from_number(u64::from(code));
            if let Some(swarm) = swarm {
                tell_download(&swarm, News::Closed { session: session.number, code }).await;
            }
            Ok(())
        }
        Control::GoingAway => {
            for key in session.swarms() {
                if let Some(swarm) = registry.swarm(key) {
                    tell_download(&swarm, News::GoingAway { session: session.number }).await;
                }
            }
            Ok(())
        }
    }
}

/// What a frame costs of [`limits::SESSION_CONTROL`](crate::limits::SESSION_CONTROL): those that are
/// cheap to act on cost nothing.
pub fn cost(message: &Control) -> u64 {
    let (bitfield, ticket) = CONTROL_COST;
    match message {
        Control::Bitfield { bits, .. } => bitfield + bits.len() as u64,
        Control::Ticket { .. } => ticket,
        _ => 0,
    }
}

fn show_ticket(registry: &Registry, session: &Session, ticket: &[u8]) -> Result<(), ErrorCode> {
    // Shown again, it says nothing new as long as it holds.
    if session.shows_again(ticket).is_some_and(|group| registry.member(session, group).is_some()) {
        return Ok(());
    }
    let bytes = ticket;
    match registry.verify(bytes, session.connection.remote()) {
        Ok(ticket) => {
            let group = ticket.holder().group;
            let lapsed =
                session.ticket(group).is_some() && registry.member(session, group).is_none();
            let user = ticket.holder().user.clone();
            session.keep_ticket(ticket, bytes);
            if let Some(oldest) = registry.one_too_many(&user) {
                tracing::debug!(%user, "has too many sessions; the oldest ends");
                oldest.connection.close(ErrorCode::LimitReached);
            }
            if lapsed {
                // What was denied meanwhile is to be had again.
                let theirs = session.swarms().into_iter().filter(|key| key.group == group);
                for swarm in theirs.filter_map(|key| registry.swarm(key)) {
                    session.tell_again(swarm.key, &swarm.store);
                }
            }
            Ok(())
        }
        // Another network's tracker, a wrong clock, or not having heard of one's own removal yet is
        // no crime; opens will be refused.
        Err(
            error @ (TicketError::Untrusted(_)
            | TicketError::Expired(_)
            | TicketError::NotYet(_)
            | TicketError::Revoked),
        ) => {
            tracing::debug!(peer = %session.connection.remote().short(), %error, "ticket");
            Ok(())
        }
        Err(error) => {
            tracing::warn!(peer = %session.connection.remote().short(), %error, "false ticket");
            Err(ErrorCode::NoTicket)
        }
    }
}

fn open(
    registry: &Registry,
    session: &Session,
    number: u32,
    key: SwarmKey,
) -> Result<(), ErrorCode> {
    let refuse = |code: ErrorCode| {
        session.send(Control::Close { swarm: number, refused: true, code: code.number() });
        Ok(())
    };
    // Without a ticket nothing is said, not even whether there is such a swarm.
    if registry.member(session, key.group).is_none() {
        // Ours, if we opened it, ends with it: a later attempt begins anew.
        session.forget(key);
        return refuse(ErrorCode::NoTicket);
    }
    let (Some(swarm), Some(ticket)) = (registry.swarm(key), registry.ticket(key.group)) else {
        return refuse(ErrorCode::NotFound);
    };
    session.add_theirs(number, key)?;
    session.open(key, &ticket);
    session.tell(key, &swarm.store);
    Ok(())
}

async fn bitfield(
    registry: &Registry,
    session: &Arc<Session>,
    number: u32,
    bits: &[u8],
) -> Result<(), ErrorCode> {
    let Some((key, swarm)) = known(registry, session, number) else { return Ok(()) };
    let layout = swarm.store.manifest().layout();
    let pieces = Bitfield::from_bytes(layout, bits).map_err(|error| {
        tracing::debug!(peer = %session.connection.remote().short(), %error, "bad bitfield");
        ErrorCode::Protocol
    })?;
    let Some(user) = registry.member(session, key.group) else { return Ok(()) };
    session.touch();
    tell_download(&swarm, News::Opened { session: session.clone(), user, pieces }).await;
    Ok(())
}

async fn have(
    registry: &Registry,
    session: &Session,
    number: u32,
    pieces: &[u32],
) -> Result<(), ErrorCode> {
    let Some((_, swarm)) = known(registry, session, number) else { return Ok(()) };
    let layout = swarm.store.manifest().layout();
    if pieces.len() > MAX_HAVE_BATCH {
        return Err(ErrorCode::LimitReached);
    }
    let pieces: Option<Vec<_>> = pieces.iter().map(|index| layout.piece(*index)).collect();
    let pieces = pieces.ok_or(ErrorCode::Protocol)?;
    session.touch();
    tell_download(&swarm, News::Has { session: session.number, pieces }).await;
    Ok(())
}

/// The swarm the peer means by `number`. One that either side has closed meanwhile is nobody's
/// fault: what is said of it is skipped.
fn known(registry: &Registry, session: &Session, number: u32) -> Option<(SwarmKey, Arc<Swarm>)> {
    let key = session.their_swarm(number)?;
    Some((key, registry.swarm(key)?))
}
