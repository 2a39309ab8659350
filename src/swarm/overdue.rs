//! What time alone brings about in a scheduler: who counts as dead, who keeps us waiting for what it
//! promised, and what is forgiven because we were asleep ourselves.

use std::time::Duration;

use super::event::{Action, Cause, PeerKey};
use super::scheduler::Scheduler;

/// A peer that promised bytes and gives fewer than so many in such a time holds us up: a link of 64
/// KiB/s that fifty share gives five times as many.
const STALL: (Duration, u64) = (Duration::from_secs(30), 8 * 1024);

/// With so much from all who promised, our own link is busy: then whoever gives a good part of an equal
/// share does not hold us up, though it be less than that.
const BUSY: (u64, u64) = (256 * 1024, 4);

/// When this long passed unnoticed we were asleep ourselves, and nobody else is to blame for it.
const ASLEEP: Duration = Duration::from_secs(3);

impl Scheduler {
    /// Something came from a peer; whether it had counted as dead.
    pub(super) fn hear(&mut self, now: Duration, key: PeerKey) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else { return false };
        let was_silent = peer.hear(now);
        if was_silent {
            // It is listened for again, also if nothing more is asked of it.
            let end = peer.silence_ends();
            self.wake_at(end);
        }
        was_silent
    }

    /// A peer promised bytes: it is looked at again when they should have come.
    pub(super) fn watch_for_stall(&mut self, key: PeerKey) {
        let check = self.peers.get(&key).and_then(|peer| peer.pipe.stall_check(STALL.0));
        check.into_iter().for_each(|at| self.wake_at(at));
    }

    /// What nobody noticed because we were asleep is not held against anybody.
    pub(super) fn forgive_sleep(&mut self, now: Duration) {
        let Some(overdue) = self.wake.and_then(|at| now.checked_sub(at)) else { return };
        if overdue > ASLEEP {
            self.peers.values_mut().for_each(|peer| peer.shift(overdue));
            self.wake = Some(now);
        }
    }

    /// Does what time alone brings about, and finds out when that is due again.
    pub(super) fn pass_time(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.wake = None;
        let stall = (STALL.0, self.least());
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            if peer.rests_until.is_some_and(|until| until <= now) {
                peer.rests_until = None;
            }
            let looks_again = Some(peer.looks_again).filter(|at| *at > now);
            let mut due = vec![peer.rests_until, peer.suspect.filter(|at| *at > now), looks_again];
            if peer.is_asked() && !peer.silent {
                let end = peer.silence_ends();
                if end <= now {
                    self.fall_silent(key, actions);
                } else if peer.pipe.is_stalled(now, stall) {
                    self.stalled(now, key, actions);
                } else {
                    due.extend([Some(end), peer.pipe.stall_check(STALL.0)]);
                }
            }
            due.into_iter().flatten().for_each(|at| self.wake_at(at));
        }
    }

    /// Bytes that a peer which promised some must give, lest it hold us up.
    fn least(&self) -> u64 {
        let fed = self.peers.values().filter_map(|peer| peer.pipe.promised_and_fed());
        let (count, sum) = fed.fold((0, 0), |(count, sum), fed| (count + 1, sum + fed));
        if sum < BUSY.0 { STALL.1 } else { STALL.1.min(sum / count / BUSY.1) }
    }

    /// A peer counts as dead: what somebody else can give is taken from it. What nobody else has stays
    /// with it, in case it comes back.
    fn fall_silent(&mut self, key: PeerKey, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.silent = true;
        let asked: Vec<_> = peer.pipe.asked().iter().map(|asked| asked.piece).collect();
        for piece in asked {
            let mut others = self.peers.values().filter(|peer| !peer.silent);
            if others.any(|peer| peer.pieces.contains(piece)) {
                self.cancel(key, piece, Cause::Silent, actions);
            }
        }
    }

    /// A peer keeps us waiting for bytes that it promised.
    fn stalled(&mut self, now: Duration, key: PeerKey, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get(&key) else { return };
        let user = peer.user.clone();
        let promised = peer.pipe.asked().iter().filter(|asked| asked.begun);
        let promised: Vec<_> = promised.map(|asked| asked.piece).collect();
        for piece in promised {
            self.cancel(key, piece, Cause::Stalled, actions);
            self.fail(now, &user, piece, actions);
        }
    }
}
