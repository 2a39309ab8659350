//! 128-bit ids of things trackers keep, and the random id of a request.

use crate::hash::fixed_bytes;
use crate::peer_id::PeerId;

fixed_bytes! {
    /// Drawn by a client for every write; a repeat with the same id changes nothing.
    RequestId, 16
}

fixed_bytes! {
    /// An account; its name may change, this does not.
    UserId, 16
}

fixed_bytes! {
    /// One password login of one device, until its logout or removal.
    EnrolmentId, 16
}

fixed_bytes! {
    /// An invitation: what its code hashes to.
    InviteId, 16
}

fixed_bytes! {
    /// One run of one tracker: whose ops are numbered and chained.
    OriginId, 16
}

fixed_bytes! {
    /// A group; its name may change, this does not.
    GroupId, 16
}

fixed_bytes! {
    /// One user's time in one group: made when accepted, ended by leave, kick or disable.
    MembershipId, 16
}

fixed_bytes! {
    /// A request to join a group.
    JoinRequestId, 16
}

fixed_bytes! {
    /// One user's share of one content under one name in one group.
    ShareId, 16
}

impl RequestId {
    /// A fresh id out of `rng`.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        Self(rng.u128(..).to_le_bytes())
    }

    /// The id of the object this request creates: BLAKE3 of the actor's peer id and the request
    /// id, cut to 128 bits. A repeat on any tracker creates the same object.
    pub fn created(self, actor: PeerId) -> [u8; 16] {
        derived(&[actor.as_bytes(), &self.0])
    }
}

impl OriginId {
    /// A fresh one out of `rng`.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        Self(rng.u128(..).to_le_bytes())
    }
}

/// One op of the log: which run of which tracker made it, and its number there.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct OpId {
    /// The run.
    pub origin: OriginId,
    /// The number, from 1.
    pub seq: u64,
}

/// BLAKE3 of `parts`, one after the other, cut to 128 bits.
pub fn derived(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let created = RequestId([7; 16]).created(PeerId([1; 32]));
        assert_eq!(hex::encode(created), "5fc8e241ea510de7114cd5c1f4e7400a");
    }

    #[test]
    fn created_ids_depend_on_actor_and_request() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (a, b) = (RequestId::random(&mut rng), RequestId::random(&mut rng));
        let (p, q) = (PeerId([1; 32]), PeerId([2; 32]));
        assert_eq!(a.created(p), a.created(p));
        assert_ne!(a.created(p), b.created(p));
        assert_ne!(a.created(p), a.created(q));
    }
}
