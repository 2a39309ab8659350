//! Every bound of mtq in one place, each with its reason.
//!
//! Anything a stranger can make grow (a frame, a queue, a map, a stream count) has its limit here.
//! Nothing here is measured at run time and nothing here is configurable.

use std::time::Duration;

/// Bytes in a piece; the last piece of a file may be shorter. Fixed by the format.
pub const PIECE_LEN: u32 = 524_288;

/// Pieces a hash page describes: 4,096 × 52 B = 208 KiB, one comfortable frame.
pub const PAGE_PIECES: u32 = 4_096;

/// Pieces in the largest file: 2 TiB. Its bitfield is 512 KiB and still fits one frame.
pub const MAX_PIECE_COUNT: u32 = 4 * 1024 * 1024;

/// Bytes of a user or group name: fits a table column and a DNS-like label.
pub const MAX_NAME_LEN: usize = 32;

/// UTF-8 bytes of a file name: 255 on common filesystems, less room for ` (999)`.
pub const MAX_FILE_NAME_LEN: usize = 240;

/// Bytes of a password: Argon2 reads all of it, so it must end somewhere.
pub const MAX_PASSWORD_LEN: usize = 1_024;

/// Shortest password accepted. Low on purpose: the operator's policy is a later matter, an empty
/// password is always a mistake.
pub const MIN_PASSWORD_LEN: usize = 4;

/// Bytes of a metafile we read: the largest file's hashes in hex (104 B a piece) and some room.
pub const MAX_METAFILE_LEN: u64 = 448 * 1024 * 1024;

/// Bytes of a metafile that are no hex digits: its keys, its names and 64 KiB of links take a third of
/// it. Parsing them takes a hundred times as much memory, so that some other large text would take all.
pub const MAX_METAFILE_WORDS: usize = 256 * 1024;

/// Bytes of a `tracker_info.txt`: a few hundred links.
pub const MAX_TRACKER_INFO_LEN: u64 = 64 * 1024;

/// Bytes of a `config.toml`: thirteen settings, and as many comments as anybody writes.
pub const MAX_CONFIG_LEN: u64 = 64 * 1024;

/// Trackers in one network. Every one syncs with every other.
pub const MAX_TRACKERS: usize = 16;

/// Bytes of a signed roster: 16 trackers with 8 links of at most 330 B are 42 KiB.
pub const MAX_ROSTER_LEN: usize = 64 * 1024;

/// Former trackers whose last tickets are still honoured: every tracker replaced four times within
/// the life of a ticket.
pub const MAX_RETIRED_TRACKERS: usize = 4 * MAX_TRACKERS;

/// Addresses a roster entry or a peer may carry (DESIGN: at most 8).
pub const MAX_ADDRESSES: usize = 8;

/// Bytes of one frame on any stream: a page (208 KiB) and the largest bitfield (512 KiB) fit.
pub const MAX_FRAME_LEN: usize = 1024 * 1024;

/// Bytes of the first frame of a connection, read before anything is known of its sender.
pub const MAX_HELLO_LEN: usize = 4 * 1024;

/// Bytes of a piece-request frame.
pub const MAX_REQUEST_LEN: usize = 64;

/// Bytes of a signed ticket: names, ids, key and signature take under 300.
pub const MAX_TICKET_LEN: usize = 1_024;

/// Bytes of the agent string in a hello, shown in logs only.
pub const MAX_AGENT_LEN: usize = 64;

/// Tagged extensions in a hello; unknown ones are ignored.
pub const MAX_EXTENSIONS: usize = 16;

/// Rows in one page of a listing answer: keeps it under `MAX_FRAME_LEN` with the longest names.
pub const MAX_LIST_ROWS: usize = 500;

/// Files, hash pages or contents that one question is about: each may be read from the disk.
pub const MAX_FIND_BATCH: usize = MAX_LIST_ROWS;

/// Bytes of the answer to one; whoever wants more asks again.
pub const MAX_FIND_BYTES: usize = MAX_FRAME_LEN - 256 * 1024;

/// Bytes of a search pattern.
pub const MAX_PATTERN_LEN: usize = 256;

/// Candidates named when a file name is ambiguous: what a person reads.
pub const MAX_CANDIDATES: usize = 20;

/// Peers in one answer: more sources than this do not make a download faster.
pub const MAX_PEERS_PER_ANSWER: usize = 50;

/// Devices of one user in one peer answer: answers count users, not devices.
pub const MAX_DEVICES_PER_USER_IN_SAMPLE: usize = 2;

/// Devices enrolled for one user.
pub const MAX_DEVICES_PER_USER: usize = 16;

/// Accounts on a tracker. About 300 B each in memory.
pub const MAX_USERS: usize = 1_000_000;

/// Groups on a tracker.
pub const MAX_GROUPS: usize = 100_000;

/// Groups one user may be a member of.
pub const MAX_GROUPS_PER_USER: usize = 1_000;

/// Members of one group.
pub const MAX_MEMBERS_PER_GROUP: usize = 10_000;

/// Requests waiting for one group's owner.
pub const MAX_REQUESTS_PER_GROUP: usize = 1_000;

/// Shares one user may hold over all groups.
pub const MAX_SHARES_PER_USER: usize = 100_000;

/// Shares on a tracker. About 1 KiB each in memory.
pub const MAX_SHARES: usize = 2_000_000;

/// Requests to join that one user may have open.
pub const MAX_REQUESTS_PER_USER: usize = 100;

/// Origins in a version vector: every run of every tracker that made changes is one, until all
/// trackers have it whole.
pub const MAX_ORIGINS: usize = 16_384;

/// Origins that are complete everywhere and remembered as such, about 100 bytes each; the oldest go first.
pub const MAX_SEALED: usize = 16_384;

/// Ops in one batch to another tracker, and their bytes: a batch is one frame and one commit.
pub const SYNC_BATCH_OPS: usize = 2_048;
/// See [`SYNC_BATCH_OPS`].
pub const SYNC_BATCH_BYTES: usize = 256 * 1024;

/// Batches on their way to another tracker at once: 2 MiB fill 100 Mbit/s at 160 ms.
pub const SYNC_WINDOW: usize = 8;

/// How often trackers tell each other what they have.
pub const SYNC_TICK: Duration = Duration::from_secs(5);

/// On a connection of trackers something is sent at least this often.
pub const SYNC_PULSE: Duration = Duration::from_millis(400);

/// A tracker of which nothing at all was heard for so long is lost: who was online there is soon
/// doubtful.
pub const SYNC_SILENCE: Duration = Duration::from_secs(6);

/// How often trackers compare their digests.
pub const DIGEST_TICK: Duration = Duration::from_secs(60);

/// How long a tracker that has just started waits for others before it registers names.
pub const NAMES_WAIT: Duration = Duration::from_secs(5);

/// A reserved name is free again after this if nobody registered it.
pub const CLAIM_LIFE: Duration = Duration::from_secs(3);

/// A tracker that does not say in time whether a name is free is not waited for.
pub const CLAIM_PATIENCE: Duration = Duration::from_secs(1);

/// Names reserved at once; more are refused, as if they were taken.
pub const MAX_CLAIMS: usize = 10_000;

/// Wall clocks of trackers that differ by more are an alarm.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// Of what a tracker says its clock shows, the best of one to two such spans counts.
pub const CLOCK_WINDOW: Duration = Duration::from_secs(30);

/// A tracker not heard of for so long is not waited for any more: it is told everything anew.
pub const ABSENT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bytes of everything a tracker knows, on its way to another: a million accounts and as many
/// shares take about half.
pub const MAX_ESSENCE_LEN: usize = 1024 * 1024 * 1024;

/// Commands waiting for a tracker's store; senders wait.
pub const STORE_QUEUE: usize = 1_024;

/// Commands in one commit. More do not make it cheaper, only later.
pub const STORE_BATCH: usize = 1_024;

/// Hash pages on their way into the store: 64 × 208 KiB.
pub const PAGES_IN_FLIGHT: usize = 64;

/// Bytes of a store's page cache; the library's own default is 1 GiB.
pub const STORE_CACHE: usize = 32 * 1024 * 1024;

/// Bytes of the page cache of an agent's library: it is read once, at a login.
pub const SHELF_CACHE: usize = 2 * 1024 * 1024;

/// Ops after a snapshot before the next one; with more things than that, as many as there are
/// things, so that snapshots never cost more than the ops between them.
pub const SNAPSHOT_AFTER: usize = 20_000;

/// With more origins than this that are not sealed, a snapshot is due after `SEAL_AFTER` ops.
pub const SEAL_ABOVE: usize = 256;
/// See [`SEAL_ABOVE`].
pub const SEAL_AFTER: u64 = 1_000;

/// What happened longer ago is no news to anybody: a tracker that catches up does not tell it.
pub const NEWS_AGE: Duration = Duration::from_secs(30);

/// Removals are remembered this long: longer than any ticket lives. Rejections are remembered for
/// `REJECTED_WAIT`.
pub const REMOVALS_KEPT: Duration = Duration::from_secs(3600);

/// How long a seeder that reaches no tracker goes on with transfers under way, unless the owner
/// of the group says otherwise.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Remembered outcomes of writes (for repeats of the same request id). Oldest go first; a client
/// repeats within seconds, never after a hundred thousand other writes.
pub const MAX_REMEMBERED_REQUESTS: usize = 100_000;

/// Bytes of hash pages a user's shares may keep on a tracker: 10 TB worth of files.
pub const PAGE_QUOTA_PER_USER: u64 = 1024 * 1024 * 1024;

/// Shares a connection may have begun whose pages are not complete: as many as a client lists side by
/// side. Of each a head is remembered: 200 bytes for most files, 32 KiB at most.
pub const MAX_UNFINISHED_SHARES: usize = 16;

/// A rejected user may ask again after this.
pub const REJECTED_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Life of a ticket in tracker time.
pub const TICKET_LIFE: Duration = Duration::from_secs(600);

/// Clock disagreement a ticket's verifier tolerates.
pub const TICKET_LEEWAY: Duration = Duration::from_secs(60);

/// Password hashes computed at once: each takes 19 MiB and 20 ms of a core.
pub const ARGON2_PARALLEL: usize = 2;

/// Callers waiting for a password hash; one more is told `busy`. 64 × 20 ms / 2 = 0.6 s of wait.
pub const ARGON2_QUEUE: usize = 64;

/// Accounts of one name whose passwords a login is compared with: more than one only where
/// trackers could not ask each other, and each costs a hash.
pub const LOGIN_CANDIDATES: usize = 4;

/// What a failed login costs the caller before the answer, and again as much for each further
/// failure on that connection, up to `LOGIN_DELAY_MAX`.
pub const LOGIN_DELAY_STEP: Duration = Duration::from_millis(250);

/// The longest a failed login is held back.
pub const LOGIN_DELAY_MAX: Duration = Duration::from_secs(5);

/// A name's failed logins count against it until it had none for this long.
pub const FAILURES_FORGOTTEN: Duration = Duration::from_secs(300);

/// Names whose failed logins are remembered; with more, every failure waits the longest.
pub const MAX_FAILURES_KNOWN: usize = 10_000;

/// Requests a second on one connection, and at once.
pub const CONNECTION_REQUESTS: (u32, u32) = (2_000, 4_000);

/// Durable changes a second of one account, and at once: sharing a directory of thousands of
/// files is one burst.
pub const ACCOUNT_CHANGES: (u32, u32) = (500, 2_000);

/// Of those, changes of accounts, groups and memberships: what ended is remembered for a while, and
/// a thousand at once is more than any person does.
pub const ACCOUNT_ACTS: (u32, u32) = (100, 1_000);

/// Passwords tried or set a second from one address, and at once: a class behind one router logs
/// in, and Argon2 does a hundred a second.
pub const ADDRESS_LOGINS: (u32, u32) = (10, 100);

/// Connections from one address, unless the operator says otherwise: a class or an office behind
/// one router.
pub const CONNECTIONS_PER_ADDRESS: usize = 512;

/// How long a client goes on repeating what was refused as too fast.
pub const RATE_PATIENCE: Duration = Duration::from_secs(30);

/// Searches at once; each reads all names of the caller's groups.
pub const SEARCHES_AT_ONCE: usize = 4;

/// Searches under way and waiting; one more is told `busy`.
pub const SEARCH_QUEUE: usize = 64;

/// A tracker's answer is taken within this, or the connection ends: what is not taken stays in
/// memory.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Handshakes under way above which strangers first prove that they are where they say.
pub const RETRY_ABOVE: usize = 128;

/// Bytes a compiled search pattern may take.
pub const PATTERN_SIZE: usize = 1024 * 1024;

/// Memberships and devices in one push of revocations.
pub const MAX_REVOKED_BATCH: usize = 1_000;

/// Connections a tracker holds at once; an idle one costs about 54 KiB.
pub const MAX_TRACKER_CONNECTIONS: usize = 20_000;

/// Connections a client's agent holds with peers.
pub const MAX_PEER_CONNECTIONS: usize = 200;

/// Handshakes begun and not yet finished at an endpoint; a mutual Ed25519 handshake costs 0.2 ms.
pub const MAX_INCOMING: usize = 1_024;

/// Bytes buffered for one handshake not yet accepted, and for all of them.
pub const INCOMING_BUFFER: u64 = 64 * 1024;
/// See [`INCOMING_BUFFER`].
pub const INCOMING_BUFFER_TOTAL: u64 = 16 * 1024 * 1024;

/// A handshake that takes longer is dropped: five round trips of the worst satellite link.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// The first frame must be here this long after the handshake.
pub const FIRST_FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// A request frame must be complete this long after its stream was opened (one byte a second is
/// not a request).
pub const REQUEST_FRAME_DEADLINE: Duration = Duration::from_secs(15);

/// A connection of a client with a tracker without any packet for this long is gone. The clock
/// starts anew with what is sent once after the last packet came, which is at most
/// `TRACKER_KEEP_ALIVE` later: who died is gone within 15 s.
pub const TRACKER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Sent there when nothing else is.
pub const TRACKER_KEEP_ALIVE: Duration = Duration::from_secs(4);

/// A connection of peers without any packet for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Clients known only from a tracker that is lost are kept this long, handed out last: twice
/// `IDLE_TIMEOUT`, within which they have found another tracker, or theirs is back.
pub const PRESENCE_GRACE: Duration = Duration::from_secs(30);

/// Changes of presence noted for one sibling until it is told, 100 B each; with more it is told
/// everything anew. All that one user may share fits, and some.
pub const GOSSIP_JOURNAL: usize = 131_072;

/// Sent when nothing else is: three chances within `IDLE_TIMEOUT`.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Client to tracker: one request waits at most this long for its answer.
pub const TRACKER_REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// Client to tracker: an ordinary request unanswered for so long is repeated at another tracker.
pub const TRACKER_PATIENCE: Duration = Duration::from_secs(1);

/// Client to tracker: a connection on which nothing at all came for so long after a request is
/// dialled anew.
pub const TRACKER_SILENCE: Duration = Duration::from_secs(3);

/// What one tracker acknowledged, the others are believed to know after this: they hear of it
/// within a second, and ask each other every five.
pub const SYNC_PATIENCE: Duration = Duration::from_secs(10);

/// The first tracker in order is waited for so long when another one is ready before it.
pub const TRACKER_PREFERENCE: Duration = Duration::from_millis(250);

/// A lost tracker is dialled again after the first of these, twice as long each time up to the
/// second.
pub const TRACKER_REDIAL: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(10));

/// News that several trackers tell are compared for so long after they were last told.
pub const ECHO_KEPT: Duration = Duration::from_secs(60);

/// News compared at once: a client that hears more within a minute is told some of them twice.
pub const MAX_ECHOES: usize = 10_000;

/// Dialling one candidate address of a tracker or a peer.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Closing an endpoint waits so long until the other sides were told: a few round trips of any link.
pub const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// A shutdown lets work in flight finish for this long.
pub const DRAIN: Duration = Duration::from_secs(3);

/// An answer waits so long for the disk to take its record: far longer than any that works needs.
pub const KEEP_PATIENCE: Duration = Duration::from_secs(10);

/// A shutdown waits so long for part files and records to reach the disk: one that works brings
/// there what its memory held of them, one that hangs is left to the system.
pub const LAST_WRITES: Duration = Duration::from_secs(30);

/// A `get` waits so long for what is already being looked at.
pub const LOOK_PATIENCE: Duration = Duration::from_secs(60);

/// Disks that an agent looks at for changes at once: those that hang keep a thread each.
pub const LOOKERS: usize = 8;

/// Streams a client may have open at a tracker at once.
pub const TRACKER_STREAMS: u32 = 64;

/// Pieces asked of one peer at once at most: 128 × 512 KiB = 64 MiB are half as much again as 1 Gbit/s holds
/// at 350 ms. Most paths take a fraction of it, and the pipeline follows the path.
pub const PIPELINE_MAX: usize = 128;
/// Piece requests a peer may have open on one connection. A stream counts for a round trip after its last
/// byte: with no more of them than the deepest pipeline, requests would wait for streams.
pub const PEER_STREAMS: u32 = 2 * PIPELINE_MAX as u32;

/// Room kept above the piece bytes in both windows, so that control frames are never blocked by
/// bulk whatever their priority.
pub const WINDOW_HEADROOM: u64 = 1024 * 1024;
/// Bytes of a piece stream in flight: a whole piece and its header, so that no stream ever stalls
/// on its own window.
pub const STREAM_WINDOW: u64 = PIECE_LEN as u64 + 64 * 1024;
/// Bytes we queue to a peer, or let it have in flight to us, on one connection at the very most: the deepest
/// pipeline and control. What is queued at all has its bound in the slots, over all connections; what is in
/// flight to us, in what is asked for, which the budget of an agent's downloads bounds.
pub const PEER_WINDOW: u64 = PIPELINE_MAX as u64 * PIECE_LEN as u64 + WINDOW_HEADROOM;
/// Bytes in flight to us from a peer of which nothing is asked yet, be it a stranger or not: control frames
/// and requests only. Whoever means us harm fills what its window allows, with bytes that cannot be read.
pub const CONTROL_WINDOW: u64 = 2 * WINDOW_HEADROOM;

/// Bytes of a UDP datagram that every path of QUIC carries (RFC 9000, 14): where each connection begins.
pub const MIN_MTU: u16 = 1_200;
/// Bytes of the largest datagram to another machine: a jumbo frame of 9,000 less the headers of IPv6 and UDP.
pub const JUMBO_MTU: u16 = 8_952;
/// Bytes of the largest datagram, sent or received: four fill a send within this machine; of larger ones each agent
/// would make fewer at once. Every endpoint has buffers for 2,048: 32 MiB, of which the system backs what is used.
pub const MAX_MTU: u16 = 16_250;
/// Connections with which it is tried: to find it out takes 150 KB, which fifty peers would send to each other.
pub const LARGE_MTUS: usize = 8;

/// Bytes of the largest datagram a tracker sends, unless its operator says otherwise: Ethernet's 1,500 less
/// the headers of IPv6 and UDP. Each connection keeps room for ten: 20,000 of them 280 MiB, which would
/// be 1.7 GiB with the largest, for answers of a few hundred bytes.
pub const TRACKER_MTU: u16 = 1_452;

/// Bytes under way before anything is known of a path (RFC 9002, 7.2), or as many of the largest datagrams as
/// `INITIAL_DATAGRAMS` if that is more: one that tries a size, one to be sent, and what else there is. With
/// less room even the end of a connection would wait, for ever.
pub const INITIAL_WINDOW: u64 = 12_000;
/// See [`INITIAL_WINDOW`].
pub const INITIAL_DATAGRAMS: u64 = 4;

/// Bytes of UDP payload in one send, however many datagrams it is cut into: with IP's own headers it is
/// at most 65,535.
pub const MAX_SEND_LEN: usize = 65_000;

/// Bytes of a socket's buffers, each way: a burst of as many is not lost while the process is elsewhere.
/// The system's own default loses thousands of packets a GiB on loopback.
pub const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// A peer that dialled us shows a valid ticket within this, or goes.
pub const TICKET_DEADLINE: Duration = Duration::from_secs(15);

/// A received chunk is kept as it came, with the memory of its datagrams, from so many bytes on:
/// any path carries more of a piece in a datagram. Smaller ones are copied together.
pub const LEAST_CHUNK: usize = 1_024;

/// Bytes in flight on one tracker connection: a few pages.
pub const TRACKER_WINDOW: u64 = 4 * 1024 * 1024;

/// Piece buffers an agent fills for uploads at once, over all peers: 64 × 512 KiB = 32 MiB. More
/// requests wait, told QUEUED.
pub const UPLOAD_SLOTS: usize = 64;
/// Of those, what one session may take: a peer that reads nothing holds up a quarter, no more, and
/// another device of its user is still served.
pub const UPLOAD_SLOTS_PER_SESSION: usize = UPLOAD_SLOTS / 4;
/// Piece buffers besides for bodies on long fat paths, over all peers: another 64 MiB. Only a connection whose
/// path holds more than 5 gets any, as many as fill that path; half of these fill 1 Gbit/s at 250 ms.
pub const FAR_SLOTS: usize = 128;

/// Bodies sent at once however slow the link: for one user one is on its way while the
/// acknowledgement of the other is, and there is one left for whoever comes.
pub const UPLOADS_AT_ONCE_MIN: usize = 3;
/// Bodies sent at once before it is known how fast they go: a fast link is full from the start, and
/// a slow one has half a minute's worth queued at 4 Mbit/s, once.
pub const UPLOADS_AT_ONCE_START: usize = 32;
/// As many bodies are sent at once as arrive within this; it must exceed the longest round trip,
/// or a link of that length is never full.
pub const UPLOADS_SPAN: Duration = Duration::from_secs(1);

/// A body that is not acknowledged so long after it was sent does not count among those that fill
/// the link: thrice what it takes when the link is the reason, but at least the first and at most
/// the second.
pub const SLOW_BODY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(30));
/// A body of which nothing more could be handed to QUIC for so long is held up by its reader.
pub const SLOW_WRITE: Duration = Duration::from_secs(1);

/// Bodies written at once under a rate limit: one waits for credit while the next is read from
/// the disk.
pub const LIMITED_WRITERS: usize = 2;

/// Bodies sent through one connection in a row while other devices of the same user wait, where
/// users compete: changing over costs a round trip, 4 MiB are many of them.
pub const SESSION_STINT: u32 = 8;

/// Requests of one user that wait to be served, over all sessions: the deepest pipelines of as many devices
/// as an account may have.
pub const MAX_WAITING_PER_USER: usize = MAX_DEVICES_PER_USER * PIPELINE_MAX;
/// Requests that wait to be served, about 300 B each. No user may have more of them than there is
/// room left for others; one more is answered BUSY.
pub const MAX_WAITING: usize = 8 * MAX_WAITING_PER_USER;

/// Piece requests a second taken from one session, and at once: 4,000 whole pieces are 2 GB/s,
/// twice what a link of 10 Gbit/s carries, and of small files they are as many files. Others wait
/// in their streams, of which there are `PEER_STREAMS`.
pub const SESSION_REQUESTS: (u64, u64) = (4_000, 8_000);
/// Bytes a second of costly control frames taken from one session, and at once: the bitfields of
/// 10,000 small files, which may all come when a connection is made, are 3 MiB, and a dozen of the
/// largest fit. Others wait on their stream.
pub const SESSION_CONTROL: (u64, u64) = (256 * 1024, 8 * 1024 * 1024);
/// What a bitfield costs of that besides its bytes, and what a ticket does: verifying one takes
/// 0.1 ms, and a device has one for each group.
pub const CONTROL_COST: (u64, u64) = (256, 4 * 1024);

/// Sessions of one user: one of each device. More come of devices that were removed meanwhile.
pub const MAX_SESSIONS_PER_USER: usize = MAX_DEVICES_PER_USER;

/// A session on which no piece was asked for and nothing new was told for so long may have to make
/// room for others, when connections are full.
pub const USELESS_AFTER: Duration = Duration::from_secs(60);

/// Connections that others began and on which no valid ticket was shown yet: a quarter of all.
/// Honest ones show it within two round trips.
pub const MAX_STRANGERS: usize = MAX_PEER_CONNECTIONS / 4;

/// Bytes handed to QUIC at once under a rate limit: a twentieth of a second at 5 Mbit/s.
pub const LIMITED_CHUNK: usize = 32 * 1024;

/// The lowest rate limit, in bytes a second: two pieces sent at once take 64 s then, well within
/// `PIECE_DEADLINE`.
pub const MIN_RATE: u64 = 16 * 1024;

/// Users whose uploads are counted apart in one swarm, about 200 B each; further ones are counted
/// in the sum alone.
pub const MAX_COUNTED_USERS: usize = 1_000;

/// Bytes an agent has in flight or in verification over all its downloads: the deepest pipeline to one peer.
/// Of what is in flight little is in memory, as pieces come one after the other. Above it, each peer of a
/// download that has any room is asked for one piece.
pub const DOWNLOAD_BYTES: u64 = PIPELINE_MAX as u64 * PIECE_LEN as u64;

/// Who sent false pieces of a content is asked for nothing of it for this long.
pub const BAN: Duration = Duration::from_secs(24 * 3600);

/// Downloads of one `get` of many, or that came back, which run side by side: enough that none waits for
/// a round trip or a disk. Each has a file open, of 1,024 that most systems allow.
pub const DOWNLOADS_AT_ONCE: usize = 64;

/// Bans remembered at once: more false peers than any group has members.
pub const MAX_BANS: usize = 10_000;

/// Pieces asked of a new peer before its rate is known.
pub const PIPELINE_START: usize = 4;
/// Pieces always asked of a useful peer, so that one arrives while the next is on its way.
pub const PIPELINE_MIN: usize = 2;

/// Swarms one connection may have open at once.
pub const MAX_SWARMS_PER_CONNECTION: usize = 10_000;

/// Contents in one announce: 33 KiB.
pub const MAX_ANNOUNCE_BATCH: usize = 1_000;

/// Piece indexes in one HAVE.
pub const MAX_HAVE_BATCH: usize = 1_024;

/// Frames waiting to be written to one peer's control stream: three for each swarm that may be
/// open, since all of them may open at once when a connection is made.
pub const CONTROL_QUEUE: usize = 3 * MAX_SWARMS_PER_CONNECTION;

/// Bytes of those frames: small ones for all swarms, or a few of the largest bitfields. A peer
/// that leaves more unread is cut off.
pub const CONTROL_QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// Pushes waiting for one client, and events waiting for an agent. A client that leaves more
/// unread is cut off.
pub const PUSH_QUEUE: usize = 1_024;

/// What a download says that waits to be acted on; more is left out and can be seen.
pub const REPORT_QUEUE: usize = 64;

/// Events waiting for one download's scheduler; senders wait.
pub const DOWNLOAD_QUEUE: usize = 1_024;

/// A piece asked for and not finished after this long is asked for elsewhere: at 64 KiB/s a piece
/// takes 8 s, 32 of them four minutes, and of one so slow few are asked for.
pub const PIECE_DEADLINE: Duration = Duration::from_secs(300);

/// A line of a script: a path, a name and their quotes.
pub const MAX_LINE_LEN: usize = 64 * 1024;

/// Lines typed at the prompt that are remembered: some months of them, read at once.
pub const HISTORY_LINES: usize = 2_000;

/// Words offered for the one being typed: more than anybody reads.
pub const CHOICES: usize = 200;

/// News that wait while they cannot be shown, each with its lines; of more, the oldest go.
pub const SCREEN_LINES: usize = 1_000;
/// Bytes printed that nobody takes; of more, news are left out.
pub const UNREAD_OUTPUT: usize = 16 * 1024 * 1024;

/// Bytes of one request on a tracker's control socket: a path of 4,096 bytes, every one escaped.
pub const MAX_CONTROL_LINE: usize = 32 * 1024;

/// Bytes of one answer there: a full page of rows takes under 400 KiB.
pub const MAX_CONTROL_ANSWER: u64 = 1024 * 1024;

/// Accounts or groups in one answer there: what the state is read for at a time, about a
/// millisecond.
pub const CONTROL_ROWS: usize = 1_000;

/// Connections to a tracker's control socket at once; more wait to be accepted.
pub const CONTROL_CONNECTIONS: usize = 16;

/// Connections to a control socket that wait to be accepted; the system may allow fewer. Hundreds of
/// processes may ask at the same moment.
pub const CONTROL_BACKLOG: u32 = 1024;

/// A control connection that asks nothing, or does not read its answer, for this long is closed.
pub const CONTROL_IDLE: Duration = Duration::from_secs(60);

/// Bytes of one request on a client's control socket: a line of a script, every byte escaped,
/// and two directories.
pub const MAX_REQUEST_LINE: usize = 8 * MAX_LINE_LEN;

/// Bytes of one answer of an agent: the rows of 20,000 downloads with their sources.
pub const MAX_REPLY_LINE: usize = 64 * 1024 * 1024;

/// Connections to a client's control socket at once; more are told that it is busy. Each may be a shell
/// that stays for days.
pub const CONTROL_CLIENTS: usize = 512;

/// Requests of one such connection under way at once.
pub const CONTROL_REQUESTS: usize = 64;

/// Answers and events waiting for one such connection; one that does not read them holds up only what
/// it asked for.
pub const CONTROL_LINES: usize = 64;

/// A program that a user has run for an event is killed after so long: the next event waits for it.
pub const HOOK_PATIENCE: Duration = Duration::from_secs(60);

/// An invitation is good for this long, unless the operator says otherwise.
pub const INVITE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest an invitation may be good for.
pub const MAX_INVITE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Connections to a tracker's metrics at once; more wait to be accepted. A scraper needs one.
pub const METRICS_CONNECTIONS: usize = 16;

/// The head of a request for metrics must be here after this, and the answer taken after as much
/// again: it is one of a few hundred bytes, and one of a few KiB.
pub const METRICS_DEADLINE: Duration = Duration::from_secs(10);

/// Accepting failed, for example because no file descriptor is free: the next attempt is so much
/// later.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
