//! What a client and a tracker say to each other. PROTOCOL.md is the normative description.
//!
//! Enums only ever grow at their end: a variant's position is its number on the wire.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::refusal::Refusal;
use crate::clock::UnixMillis;
use crate::id::{GroupId, OpId, RequestId};
use crate::manifest::ContentId;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::peer_id::PeerId;
use crate::tracker_link::TrackerLink;

/// A password in a request; wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A position in a listing: rows after it are wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileCursor {
    /// Group of the last row seen.
    pub group: GroupName,
    /// Its name.
    pub name: FileName,
    /// Its content.
    pub content: ContentId,
}

/// One request, on a bidirectional stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make an account.
    CreateUser {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The account.
        user: UserName,
        /// Its password.
        password: Password,
        /// The code of an invitation.
        invite: Option<String>,
    },
    /// Become `user` on this connection and enrol this device.
    Login {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The account.
        user: UserName,
        /// Its password.
        password: Password,
    },
    /// Become the user this device is enrolled for.
    LoginByKey,
    /// Stop being anybody; the device is no longer enrolled.
    Logout,
    /// Make a group and be its owner.
    CreateGroup {
        /// Repeats carry the same.
        request_id: RequestId,
        /// Its name.
        group: GroupName,
        /// Whether only members see that it exists.
        hidden: bool,
    },
    /// Groups after a name, in order of name.
    ListGroups {
        /// The last one seen.
        after: Option<GroupName>,
    },
    /// Ask to become a member.
    JoinGroup {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
    },
    /// End one's own membership.
    LeaveGroup {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
    },
    /// Who asks to join: for the owner.
    ListRequests {
        /// The group.
        group: GroupName,
    },
    /// Let somebody in.
    AcceptRequest {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Who asked.
        user: UserName,
    },
    /// Turn somebody away.
    RejectRequest {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Who asked.
        user: UserName,
    },
    /// Members after a name, in order of name.
    ListMembers {
        /// The group.
        group: GroupName,
        /// The last one seen.
        after: Option<UserName>,
    },
    /// List a file; answered by the hash pages still missing, or done.
    Share {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// The label.
        name: FileName,
        /// The encoded manifest head.
        head: Vec<u8>,
    },
    /// Bytes of one hash page of a share begun on this connection.
    PutPage {
        /// Which content.
        content: ContentId,
        /// Which page.
        page: u32,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Withdraw one's own listing.
    StopShare {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Which of one's files.
        file: Selector,
    },
    /// Files of a group after a position.
    ListFiles {
        /// The group.
        group: GroupName,
        /// The last row seen.
        after: Option<FileCursor>,
    },
    /// Files of one's groups by their names, whatever the case.
    Search {
        /// The text.
        pattern: String,
        /// What it is.
        matching: Matching,
        /// Only those of this group.
        group: Option<GroupName>,
        /// The last row seen.
        after: Option<FileCursor>,
    },
    /// Which contents selectors mean.
    FindFiles {
        /// The group.
        group: GroupName,
        /// The files.
        files: Vec<Selector>,
    },
    /// Hash pages of listed files.
    Pages {
        /// The group.
        group: GroupName,
        /// Which pages of which contents.
        pages: Vec<(ContentId, u32)>,
    },
    /// This device holds these contents, wholly (`true`) or in part.
    Announce {
        /// The group.
        group: GroupName,
        /// What it holds.
        contents: Vec<(ContentId, bool)>,
    },
    /// This device no longer holds these contents.
    Withdraw {
        /// The group.
        group: GroupName,
        /// What it held.
        contents: Vec<ContentId>,
    },
    /// Who is online with contents.
    Peers {
        /// The group.
        group: GroupName,
        /// Which contents.
        contents: Vec<ContentId>,
    },
    /// A ticket for one's membership in a group.
    Ticket {
        /// The group.
        group: GroupName,
    },
    /// Change one's password; all other devices have to log in anew.
    ChangePassword {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The password so far.
        old: Password,
        /// The new one.
        new: Password,
    },
    /// The devices enrolled for one's account.
    ListDevices,
    /// Forget a device of one's own.
    RemoveDevice {
        /// Repeats carry the same.
        request_id: RequestId,
        /// Which.
        device: PeerId,
    },
    /// End somebody's membership: for the owner.
    Kick {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Whose.
        user: UserName,
    },
    /// Say who shall own the group when its owner leaves: for the owner.
    Nominate {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Who; the longest-standing member otherwise.
        user: Option<UserName>,
    },
    /// Make another member the owner: for the owner.
    TransferGroup {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Who.
        user: UserName,
    },
    /// Change a group's settings: for the owner.
    SetGroup {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Seconds for which seeders cut off from all trackers go on with running transfers.
        offline_grace: u32,
    },
    /// Withdraw a listing whoever shares it: for the owner.
    Unlist {
        /// Repeats carry the same.
        request_id: RequestId,
        /// The group.
        group: GroupName,
        /// Which file.
        file: Selector,
    },
    /// The trackers there are, and which of them have an op.
    Trackers {
        /// The op, such as an earlier [`Written`] named.
        op: Option<OpId>,
    },
}

impl Request {
    /// The id under which it is granted once, of a request that changes something.
    pub fn id(&self) -> Option<RequestId> {
        match self {
            Self::CreateUser { request_id, .. }
            | Self::Login { request_id, .. }
            | Self::CreateGroup { request_id, .. }
            | Self::JoinGroup { request_id, .. }
            | Self::LeaveGroup { request_id, .. }
            | Self::AcceptRequest { request_id, .. }
            | Self::RejectRequest { request_id, .. }
            | Self::Share { request_id, .. }
            | Self::StopShare { request_id, .. }
            | Self::ChangePassword { request_id, .. }
            | Self::RemoveDevice { request_id, .. }
            | Self::Kick { request_id, .. }
            | Self::Nominate { request_id, .. }
            | Self::TransferGroup { request_id, .. }
            | Self::SetGroup { request_id, .. }
            | Self::Unlist { request_id, .. } => Some(*request_id),
            Self::LoginByKey
            | Self::Logout
            | Self::ListGroups { .. }
            | Self::ListRequests { .. }
            | Self::ListMembers { .. }
            | Self::PutPage { .. }
            | Self::ListFiles { .. }
            | Self::Search { .. }
            | Self::FindFiles { .. }
            | Self::Pages { .. }
            | Self::Announce { .. }
            | Self::Withdraw { .. }
            | Self::Peers { .. }
            | Self::Ticket { .. }
            | Self::ListDevices
            | Self::Trackers { .. } => None,
        }
    }

    /// The name of its kind, for logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateUser { .. } => "create-user",
            Self::Login { .. } => "login",
            Self::LoginByKey => "login-by-key",
            Self::Logout => "logout",
            Self::CreateGroup { .. } => "create-group",
            Self::ListGroups { .. } => "list-groups",
            Self::JoinGroup { .. } => "join-group",
            Self::LeaveGroup { .. } => "leave-group",
            Self::ListRequests { .. } => "list-requests",
            Self::AcceptRequest { .. } => "accept-request",
            Self::RejectRequest { .. } => "reject-request",
            Self::ListMembers { .. } => "list-members",
            Self::Share { .. } => "share",
            Self::PutPage { .. } => "put-page",
            Self::StopShare { .. } => "stop-share",
            Self::ListFiles { .. } => "list-files",
            Self::Search { .. } => "search",
            Self::FindFiles { .. } => "find-files",
            Self::Pages { .. } => "pages",
            Self::Announce { .. } => "announce",
            Self::Withdraw { .. } => "withdraw",
            Self::Peers { .. } => "peers",
            Self::Ticket { .. } => "ticket",
            Self::ChangePassword { .. } => "change-password",
            Self::ListDevices => "list-devices",
            Self::RemoveDevice { .. } => "remove-device",
            Self::Kick { .. } => "kick",
            Self::Nominate { .. } => "nominate",
            Self::TransferGroup { .. } => "transfer-group",
            Self::SetGroup { .. } => "set-group",
            Self::Unlist { .. } => "unlist",
            Self::Trackers { .. } => "trackers",
        }
    }
}

/// What a search pattern is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Matching {
    /// Text the name contains.
    #[default]
    Contains,
    /// Text the name begins with.
    Prefix,
    /// A regular expression that matches somewhere in the name.
    Regex,
    /// The whole name, where `*` stands for any characters and `?` for any one.
    Glob,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Its name.
    pub name: GroupName,
    /// Who owns it; nobody owns `public`.
    pub owner: Option<UserName>,
    /// How many members it has.
    pub member_count: u32,
    /// What the asker is to it.
    pub standing: Standing,
    /// Whether only members see it.
    pub hidden: bool,
}

/// What a user is to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Neither member nor waiting.
    None,
    /// Asked to join.
    Requested,
    /// A member.
    Member,
    /// The owner.
    Owner,
}

/// A join request in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// Who asks.
    pub user: UserName,
    /// Since when.
    pub at: UnixMillis,
}

/// A member in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Who.
    pub user: UserName,
    /// Since when.
    pub since: UnixMillis,
    /// Whether this one owns the group.
    pub owner: bool,
    /// Whether this one is to own it next.
    pub nominee: bool,
    /// Whether any of the user's devices is connected.
    pub online: bool,
    /// When the last one was, if none is.
    pub last_seen: Option<UnixMillis>,
}

/// A device in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// The device.
    pub peer_id: PeerId,
    /// Since when it is enrolled.
    pub since: UnixMillis,
    /// Whether it is connected and logged in.
    pub online: bool,
}

/// A file in a list: one content under one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    /// Where.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// The content.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// Some of those who share it under this name, in order of name.
    pub sharers: Vec<UserName>,
    /// How many share it under this name.
    pub sharer_count: u32,
    /// Devices online that hold it wholly.
    pub seeders: u32,
    /// Devices online that hold some of it.
    pub leechers: u32,
    /// When it was first listed under this name.
    pub since: UnixMillis,
    /// With no seeder online: when one of its sharers last was.
    pub last_seen: Option<UnixMillis>,
}

/// What a selector meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundFile {
    /// The group.
    pub group: GroupId,
    /// The label it is listed under.
    pub name: FileName,
    /// The encoded manifest head.
    pub head: Vec<u8>,
    /// Who shares it under that name, the first in order of time.
    pub sharer: UserName,
}

/// A device that holds a content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The device.
    pub peer_id: PeerId,
    /// Its user.
    pub user: UserName,
    /// Where it may be reached.
    pub addresses: Vec<SocketAddr>,
    /// Whether it holds all of it.
    pub complete: bool,
    /// Whether it is another device of the asker's own user.
    pub own: bool,
    /// Known only from a tracker that is lost: it may be gone as well.
    pub doubtful: bool,
}

/// A tracker of the network, as the one that is asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerRow {
    /// Which.
    pub peer_id: PeerId,
    /// Where it is said to be.
    pub links: Vec<TrackerLink>,
    /// Whether it is the one that answers.
    pub own: bool,
    /// Whether the one that answers has a connection to it.
    pub connected: bool,
    /// Ops the one that answers has and this one has not said to have.
    pub behind: u64,
    /// Milliseconds for which it has been behind.
    pub behind_ms: u64,
    /// When it was last heard.
    pub heard: Option<UnixMillis>,
    /// Whether it has the op asked for, if one was and that is known.
    pub has_op: Option<bool>,
}

/// What became of a change beyond being durable on the tracker that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The op.
    pub op: OpId,
    /// Other trackers there are.
    pub siblings: u32,
    /// How many of them have it already.
    pub having: u32,
    /// Not all of them could be asked whether the name is free: should another tracker have given
    /// it away meanwhile, the earlier keeps it.
    pub provisional: bool,
}

/// The answer to a request that was not refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked for.
    pub reply: Reply,
    /// Of a request that changed something, now or when it was first made.
    pub written: Option<Written>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// You are this user.
    LoggedIn {
        /// Who.
        user: UserName,
    },
    /// A page of groups; `more` says there are others.
    Groups {
        /// The rows.
        rows: Vec<GroupRow>,
        /// Whether rows follow.
        more: bool,
    },
    /// Join requests.
    Requests {
        /// The rows.
        rows: Vec<RequestRow>,
    },
    /// A page of members.
    Members {
        /// The rows.
        rows: Vec<MemberRow>,
        /// Whether rows follow.
        more: bool,
    },
    /// The share is listed.
    Shared {
        /// Its group.
        group: GroupId,
    },
    /// Put these pages, then ask again.
    PagesMissing {
        /// Page numbers.
        pages: Vec<u32>,
    },
    /// A page of files.
    Files {
        /// The rows.
        rows: Vec<FileRow>,
        /// Whether rows follow.
        more: bool,
    },
    /// What selectors meant: of the first of those asked for, as many as fit.
    Found {
        /// For each, in their order.
        files: Vec<Result<FoundFile, Refusal>>,
    },
    /// Hash pages: of the first of those asked for, as many as fit.
    Pages {
        /// The bytes of each, in their order; nothing of one that is not here.
        pages: Vec<Option<Vec<u8>>>,
    },
    /// Who holds contents: of the first of those asked for, as many as fit.
    Peers {
        /// For each, in their order, a bounded sample.
        holders: Vec<Vec<PeerRecord>>,
    },
    /// A signed ticket.
    Ticket {
        /// The group it is for.
        group: GroupId,
        /// Its wire bytes.
        ticket: Vec<u8>,
    },
    /// What was withdrawn.
    Stopped {
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
        /// Whether the user still shares it in this group under another name.
        still_shared: bool,
    },
    /// One's devices.
    Devices {
        /// The rows.
        rows: Vec<DeviceRow>,
    },
    /// The trackers there are.
    Trackers {
        /// The rows.
        rows: Vec<TrackerRow>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{MembershipId, OriginId};
    use crate::tracker::push::Push;
    use crate::wire::testing::round_trip;
    use proptest::prelude::*;

    fn group() -> GroupName {
        "lab".parse().expect("name")
    }

    #[test]
    fn messages_round_trip_and_truncations_fail() {
        round_trip(&Request::Login {
            request_id: RequestId([3; 16]),
            user: "bob".parse().expect("name"),
            password: Password("secret".into()),
        });
        round_trip(&Request::Announce {
            group: group(),
            contents: vec![(ContentId([1; 32]), true)],
        });
        let refusal = Refusal::Limit { what: "groups".into(), max: 3 };
        round_trip(&Err::<Answer, _>(refusal));
        let op = OpId { origin: OriginId([6; 16]), seq: 300 };
        let written = Written { op, siblings: 2, having: 1, provisional: true };
        round_trip(&Ok::<_, Refusal>(Answer { reply: Reply::Done, written: Some(written) }));
        let peer = PeerRecord {
            peer_id: PeerId([1; 32]),
            user: "bob".parse().expect("name"),
            addresses: vec!["[::1]:3".parse().expect("address")],
            complete: false,
            own: true,
            doubtful: false,
        };
        round_trip(&Reply::Peers { holders: vec![vec![peer], Vec::new()] });
        round_trip(&Reply::Pages { pages: vec![Some(vec![7; 3]), None] });
        let found = FoundFile {
            group: GroupId([9; 16]),
            name: "a b".parse().expect("name"),
            head: vec![8; 5],
            sharer: "bob".parse().expect("name"),
        };
        round_trip(&Reply::Found { files: vec![Ok(found), Err(Refusal::NotAMember(group()))] });
        round_trip(&Push::Revoked {
            memberships: vec![MembershipId([4; 16])],
            devices: vec![(PeerId([5; 32]), UnixMillis(6))],
        });
    }

    #[test]
    fn golden_request_bytes() {
        let request = Request::JoinGroup { request_id: RequestId([7; 16]), group: group() };
        let hex = hex::encode(crate::wire::encode(&request));
        // Variant 6, sixteen id bytes, a name of three bytes.
        assert_eq!(hex, format!("06{}036c6162", "07".repeat(16)));
        let (content, id) = (ContentId([1; 32]), "01".repeat(32));
        let hex = |request: &Request| hex::encode(crate::wire::encode(request));
        let files = vec!["a".parse().expect("a selector")];
        // Variant 17, the name, one selector: variant 0, a name of one byte.
        assert_eq!(hex(&Request::FindFiles { group: group(), files }), "11036c616201000161");
        // Variant 18, the name, one content and its page 300.
        let pages = Request::Pages { group: group(), pages: vec![(content, 300)] };
        assert_eq!(hex(&pages), format!("12036c616201{id}ac02"));
        // Variant 21, the name, two contents.
        let peers = Request::Peers { group: group(), contents: vec![content; 2] };
        assert_eq!(hex(&peers), format!("15036c616202{id}{id}"));
        let search = Request::Search {
            pattern: "*".into(),
            matching: Matching::Glob,
            group: Some(group()),
            after: None,
        };
        // Variant 16, a pattern of one byte, variant 3, a name, nothing.
        assert_eq!(hex(&search), "10012a0301036c616200");
        let address = |text: &str| {
            hex::encode(crate::wire::encode(&text.parse::<SocketAddr>().expect("address")))
        };
        assert_eq!(address("10.0.0.1:4000"), "000a000001a01f");
        assert_eq!(address("[::1]:3"), format!("01{}0103", "00".repeat(15)));
        let done = Answer { reply: Reply::Done, written: None };
        let ok = crate::wire::encode(&Ok::<_, Refusal>(done));
        assert_eq!(ok, [0, 0, 0]);
        let refused = crate::wire::encode(&Err::<Answer, _>(Refusal::NotAMember(group())));
        assert_eq!(refused, [1, 8, 3, b'l', b'a', b'b']);
    }

    #[test]
    fn passwords_are_not_printed() {
        let request = Request::Login {
            request_id: RequestId([3; 16]),
            user: "bob".parse().expect("name"),
            password: Password("secret".into()),
        };
        assert!(!format!("{request:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = crate::wire::decode::<Request>(&bytes);
            let _ = crate::wire::decode::<Result<Answer, Refusal>>(&bytes);
            let _ = crate::wire::decode::<Push>(&bytes);
        }
    }
}
