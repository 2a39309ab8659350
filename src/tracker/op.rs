//! The durable changes of tracker state, and the log entries that carry them.
//!
//! An [`Op`] is an envelope around one [`Change`]: who asked for it, when, on which tracker, after
//! which op of the same origin. State is nothing but the fold of ops. A body of a kind this
//! version does not know is kept as it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lattice::Stamp;
use super::vector::{Knowledge, Vector};
use crate::clock::UnixMillis;
use crate::hash::{Blake3Hash, blake3};
use crate::id::{
    EnrolmentId, GroupId, InviteId, JoinRequestId, MembershipId, OpId, OriginId, RequestId,
    ShareId, UserId,
};
use crate::limits::MAX_SEALED;
use crate::manifest::ContentId;
use crate::name::{FileName, GroupName, UserName};
use crate::peer_id::PeerId;
use crate::wire::{self, DecodeError};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Which run of which tracker made it.
    pub origin: OriginId,
    /// Its number in that run, from 1.
    pub seq: u64,
    /// BLAKE3 of the encoding of the op before it; zeros before the first.
    pub previous: Blake3Hash,
    /// When: not before any op that tracker knew, and after all of other origins.
    pub clock: UnixMillis,
    /// The device that asked for it; the tracker itself for what its operator did.
    pub actor: PeerId,
    /// Its request, which is granted once.
    pub request: RequestId,
    /// Which change; numbers are never used again.
    pub kind: u16,
    /// The change's fields.
    pub body: Vec<u8>,
}

impl Op {
    /// When and where it was made.
    pub fn stamp(&self) -> Stamp {
        Stamp { at: self.clock, origin: self.origin, seq: self.seq }
    }

    /// Which it is.
    pub fn id(&self) -> OpId {
        self.stamp().op()
    }

    /// Its bytes in the log.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads log bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(bytes)
    }

    /// What it changes; nothing when this version does not know.
    pub fn change(&self) -> Option<Change> {
        // The first byte of a change is its variant, and thereby its kind.
        let kind = u8::try_from(self.kind).ok().filter(|kind| *kind < 128)?;
        wire::decode(&[&[kind], &self.body[..]].concat()).ok()
    }
}

/// A device's enrolment that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unenrolled {
    /// Which.
    pub enrolment: EnrolmentId,
    /// Whose.
    pub user: UserId,
    /// The device.
    pub device: PeerId,
}

/// What an op changes. A variant's position is its kind: they are only ever added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A tracker began an origin; the first op of each.
    OriginBegan {
        /// Which tracker.
        tracker: PeerId,
        /// What it knew then: the last op of each other origin.
        vector: Vec<(OriginId, u64)>,
    },
    /// An account came to be.
    UserCreated {
        /// Its id.
        user: UserId,
        /// Its name.
        name: UserName,
        /// Its Argon2id PHC string.
        password: String,
        /// The invitation it used up.
        invite: Option<InviteId>,
    },
    /// A password is another now, and devices have to log in with it.
    PasswordChanged {
        /// Whose.
        user: UserId,
        /// Its Argon2id PHC string.
        password: String,
        /// The devices that were enrolled.
        unenrolled: Vec<Unenrolled>,
    },
    /// The operator disabled an account.
    UserDisabled {
        /// Which.
        user: UserId,
        /// Its memberships, which end.
        memberships: Vec<(MembershipId, GroupId)>,
        /// Its devices.
        unenrolled: Vec<Unenrolled>,
    },
    /// The operator enabled an account again.
    UserEnabled {
        /// Which.
        user: UserId,
    },
    /// A device may act for a user without the password.
    DeviceEnrolled {
        /// The enrolment.
        enrolment: EnrolmentId,
        /// The user.
        user: UserId,
        /// The device.
        device: PeerId,
        /// Enrolments that make room for it.
        unenrolled: Vec<Unenrolled>,
    },
    /// Devices may no longer.
    DeviceRemoved {
        /// Their enrolments.
        unenrolled: Vec<Unenrolled>,
    },
    /// The operator made an invitation.
    InviteMade {
        /// Its id.
        invite: InviteId,
        /// Until when it may be used.
        expires: UnixMillis,
    },
    /// A group came to be, with its first member.
    GroupCreated {
        /// Its id, which is also the id of the first membership.
        group: GroupId,
        /// Its name.
        name: GroupName,
        /// Whether only members see it.
        hidden: bool,
        /// Its first member.
        user: UserId,
    },
    /// A group's settings are these now.
    GroupSet {
        /// Which.
        group: GroupId,
        /// Seconds for which seeders cut off from all trackers go on with running transfers.
        offline_grace: u32,
    },
    /// Somebody asks to join.
    JoinRequested {
        /// The request.
        request: JoinRequestId,
        /// The group.
        group: GroupId,
        /// Who.
        user: UserId,
    },
    /// A request was granted.
    JoinAccepted {
        /// The request.
        request: JoinRequestId,
        /// The group.
        group: GroupId,
        /// Who asked.
        user: UserId,
        /// The membership it became.
        membership: MembershipId,
    },
    /// A request was turned down.
    JoinRejected {
        /// The request.
        request: JoinRequestId,
        /// The group.
        group: GroupId,
        /// Who asked.
        user: UserId,
    },
    /// Somebody's time in a group ended.
    MembershipEnded {
        /// The group.
        group: GroupId,
        /// The memberships; more than one only where trackers had been split.
        memberships: Vec<MembershipId>,
        /// Whether the owner ended it.
        kicked: bool,
    },
    /// The owner said who follows.
    NomineeSet {
        /// The group.
        group: GroupId,
        /// The owner's membership.
        owner: MembershipId,
        /// The nominee's; nothing for nobody.
        nominee: Option<MembershipId>,
    },
    /// The owner made somebody else the owner.
    OwnerAssigned {
        /// The group.
        group: GroupId,
        /// The new owner's membership.
        owner: MembershipId,
    },
    /// A user shares a content under a name.
    ShareAdded {
        /// The share.
        share: ShareId,
        /// The group.
        group: GroupId,
        /// The membership it rests on.
        membership: MembershipId,
        /// Who.
        user: UserId,
        /// Under which name.
        name: FileName,
        /// What: the encoded manifest head.
        head: Vec<u8>,
    },
    /// Shares were withdrawn.
    SharesWithdrawn {
        /// The group.
        group: GroupId,
        /// What they share.
        content: ContentId,
        /// Which.
        shares: Vec<ShareId>,
        /// Whether the group's owner did it, to whoever shared it.
        by_owner: bool,
    },
    /// The operator ended all memberships of a group.
    GroupArchived {
        /// Which.
        group: GroupId,
        /// All its memberships.
        memberships: Vec<MembershipId>,
    },
}

impl Change {
    /// Its kind and body in an op.
    pub fn encode(&self) -> (u16, Vec<u8>) {
        let mut bytes = wire::encode(self);
        let kind = bytes.remove(0);
        (u16::from(kind), bytes)
    }
}

/// Where the chain of one origin has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// The number of its last op.
    pub seq: u64,
    /// The hash of that op.
    pub hash: Blake3Hash,
    /// The tracker that began it, if its first op says so.
    pub tracker: Option<PeerId>,
    /// When it began.
    pub began: UnixMillis,
}

/// An origin that everybody has whole, as far as anybody knows. Should somebody who was away have
/// had more of it after all, it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sealed {
    tip: Tip,
    /// When that became known.
    at: UnixMillis,
}

/// An op that does not follow what is known of its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("op {seq} of origin {} does not follow op {known}", .origin.short())]
pub struct BrokenChain {
    /// The origin.
    pub origin: OriginId,
    /// The op's number.
    pub seq: u64,
    /// The last one known.
    pub known: u64,
}

/// How an op stands to what is known of its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the next.
    Next,
    /// It is known already.
    Known,
    /// Ops before it are missing.
    Early,
    /// It has the next number and follows another op than the one that is known: two made it.
    Forked,
}

/// The chains of all origins: which ops are known, with the hash each number stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chains {
    tips: BTreeMap<OriginId, Tip>,
    sealed: BTreeMap<OriginId, Sealed>,
}

impl Chains {
    /// Where an origin has come to; number 0 and zeros for a new one.
    pub fn tip(&self, origin: OriginId) -> Tip {
        let hash = Blake3Hash([0; 32]);
        let none = Tip { seq: 0, hash, tracker: None, began: UnixMillis(0) };
        let sealed = self.sealed.get(&origin).map(|sealed| sealed.tip);
        self.tips.get(&origin).copied().or(sealed).unwrap_or(none)
    }

    /// How many origins are not sealed.
    pub fn count(&self) -> usize {
        self.tips.len()
    }

    /// The version vector: what is known of origins that are not sealed.
    pub fn vector(&self) -> Vector {
        self.tips.iter().map(|(origin, tip)| (*origin, tip.seq)).collect()
    }

    /// Origins that are sealed, with their last numbers.
    pub fn sealed(&self) -> impl Iterator<Item = (OriginId, u64)> {
        self.sealed.iter().map(|(origin, sealed)| (*origin, sealed.tip.seq))
    }

    /// All that is known.
    pub fn knowledge(&self) -> Knowledge {
        Knowledge { vector: self.vector(), sealed: self.sealed().collect() }
    }

    /// How an op stands to what is known.
    pub fn standing(&self, op: &Op) -> Standing {
        let tip = self.tip(op.origin);
        if op.seq <= tip.seq {
            Standing::Known
        } else if op.seq > tip.seq + 1 {
            Standing::Early
        } else if op.previous == tip.hash {
            Standing::Next
        } else {
            Standing::Forked
        }
    }

    /// Adds an op, whose log bytes are `encoded`, to the chain of its origin.
    ///
    /// # Errors
    /// [`BrokenChain`]; nothing changed then.
    pub fn extend(&mut self, op: &Op, encoded: &[u8]) -> Result<(), BrokenChain> {
        let mut tip = self.tip(op.origin);
        if self.standing(op) != Standing::Next {
            return Err(BrokenChain { origin: op.origin, seq: op.seq, known: tip.seq });
        }
        if tip.seq == 0 {
            tip.began = op.clock;
            if let Some(Change::OriginBegan { tracker, .. }) = op.change() {
                tip.tracker = Some(tracker);
            }
        }
        self.sealed.remove(&op.origin);
        self.tips.insert(op.origin, Tip { seq: op.seq, hash: blake3(encoded), ..tip });
        Ok(())
    }

    /// Takes over what somebody else knows beyond it.
    pub fn absorb(&mut self, other: &Self) {
        for (origin, sealed) in &other.sealed {
            if sealed.tip.seq >= self.tip(*origin).seq {
                self.tips.remove(origin);
                self.sealed.insert(*origin, *sealed);
            }
        }
        for (origin, tip) in &other.tips {
            if tip.seq > self.tip(*origin).seq {
                self.sealed.remove(origin);
                self.tips.insert(*origin, *tip);
            }
        }
    }

    /// Origins that have ended, of which everybody has what is known here, leave the vector: those
    /// of trackers that began a later one, and of trackers that are `gone`.
    pub fn seal(
        &mut self,
        everybody: &Knowledge,
        own: OriginId,
        gone: impl Fn(PeerId) -> bool,
        now: UnixMillis,
    ) {
        let mut latest: BTreeMap<PeerId, (UnixMillis, OriginId)> = BTreeMap::new();
        for (origin, tip) in &self.tips {
            let Some(tracker) = tip.tracker else { continue };
            let known = latest.entry(tracker).or_insert((tip.began, *origin));
            *known = (tip.began, *origin).max(*known);
        }
        let ended = |origin: &OriginId, tip: &Tip| {
            *origin != own
                && tip.tracker.is_none_or(|tracker| {
                    gone(tracker) || latest.get(&tracker).is_some_and(|(_, last)| last != origin)
                })
        };
        let whole: Vec<_> = self
            .tips
            .iter()
            .filter(|(origin, tip)| ended(origin, tip) && everybody.get(**origin) >= tip.seq)
            .map(|(origin, tip)| (*origin, Sealed { tip: *tip, at: now }))
            .collect();
        for (origin, sealed) in whole {
            self.tips.remove(&origin);
            self.sealed.insert(origin, sealed);
        }
        while self.sealed.len() > MAX_SEALED {
            let oldest = self.sealed.iter().min_by_key(|(origin, s)| (s.at, **origin));
            let Some(oldest) = oldest.map(|(origin, _)| *origin) else { return };
            self.sealed.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;
    use proptest::prelude::*;

    fn op(seq: u64, previous: Blake3Hash) -> Op {
        let change = Change::UserEnabled { user: UserId([3; 16]) };
        let (kind, body) = change.encode();
        let (origin, actor) = (OriginId([1; 16]), PeerId([2; 32]));
        let request = RequestId([4; 16]);
        Op { origin, seq, previous, clock: UnixMillis(1000), actor, request, kind, body }
    }

    #[test]
    fn an_op_round_trips_and_gives_its_change() {
        let op = op(1, Blake3Hash([0; 32]));
        round_trip(&op);
        assert_eq!(op.kind, 4);
        assert_eq!(op.change(), Some(Change::UserEnabled { user: UserId([3; 16]) }));
        // Kinds of later versions, and bodies that are not this version's, are kept and not read.
        for (kind, body) in [(127, vec![]), (4, vec![1]), (300, vec![0]), (4, vec![3; 17])] {
            let strange = Op { kind, body, ..op.clone() };
            round_trip(&strange);
            assert_eq!(strange.change(), None);
        }
    }

    #[test]
    fn a_chain_takes_what_follows_and_nothing_else() {
        let mut chains = Chains::default();
        let first = op(1, Blake3Hash([0; 32]));
        let second = op(2, blake3(&first.encode()));
        assert!(chains.extend(&second, &second.encode()).is_err());
        chains.extend(&first, &first.encode()).expect("the first");
        assert!(chains.extend(&first, &first.encode()).is_err(), "twice");
        let forged = op(2, Blake3Hash([7; 32]));
        assert!(chains.extend(&forged, &forged.encode()).is_err());
        chains.extend(&second, &second.encode()).expect("the second");
        assert_eq!(chains.vector(), [(OriginId([1; 16]), 2)].into_iter().collect());
        assert_eq!(chains.standing(&first), Standing::Known);
        assert_eq!(chains.standing(&op(4, blake3(b""))), Standing::Early);
        assert_eq!(chains.standing(&op(3, blake3(b""))), Standing::Forked);
    }

    #[test]
    fn an_origin_is_sealed_once_it_ended_and_everybody_has_it() {
        let began = |origin: u8, tracker: u8, at: u64| {
            let tracker = PeerId([tracker; 32]);
            let (kind, body) = Change::OriginBegan { tracker, vector: Vec::new() }.encode();
            let (origin, clock) = (OriginId([origin; 16]), UnixMillis(at));
            Op { origin, clock, kind, body, ..op(1, Blake3Hash([0; 32])) }
        };
        let mut chains = Chains::default();
        for op in [began(1, 7, 10), began(2, 7, 20), began(3, 8, 10)] {
            chains.extend(&op, &op.encode()).expect("the first");
        }
        let nobody = |_| false;
        let own = OriginId([3; 16]);
        chains.seal(&Knowledge::default(), own, nobody, UnixMillis(30));
        assert_eq!(chains.vector().iter().count(), 3, "nobody else has any");
        let all = chains.knowledge();
        chains.seal(&all, own, nobody, UnixMillis(30));
        let left: Vec<_> = chains.vector().iter().map(|(origin, _)| origin.0[0]).collect();
        assert_eq!(left, [2, 3], "the later one may go on");
        assert!(chains.knowledge().covers_all(&all));
        assert_eq!(chains.standing(&began(1, 7, 10)), Standing::Known);
        chains.seal(&all, own, |tracker| tracker == PeerId([7; 32]), UnixMillis(30));
        assert_eq!(chains.vector().iter().count(), 1, "its tracker is gone");
    }

    proptest! {
        #[test]
        fn junk_never_panics(
            kind in any::<u16>(),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Op::decode(&body);
            let _ = Op { kind, body, ..op(1, Blake3Hash([0; 32])) }.change();
        }
    }
}
