//! What trackers tell each other of who is online with what, and the journal it is told from.
//!
//! A tracker tells of the clients connected to it, never what it heard from others: first all of them,
//! then what changes. A journal notes *that* something changed; what it is now is read when it is
//! told, so that many changes of one thing are told once. It never waits and has a bound; past that it
//! forgets what it noted and tells everything again. Nothing here knows how the words travel.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use serde::{Deserialize, Serialize};

use super::seats::{ConnectionNumber, Login};
use crate::clock::UnixMillis;
use crate::id::{GroupId, UserId};
use crate::manifest::ContentId;
use crate::name::UserName;
use crate::peer_id::PeerId;

/// A content in a group.
pub type SwarmId = (GroupId, ContentId);

/// One thing a tracker tells of its own clients. Only who is logged in is told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// Everything follows, up to [`News::End`].
    Begin,
    /// A device is connected, or is reached or called otherwise than before. In a session other
    /// than the one told before it holds nothing yet.
    Online {
        /// The device.
        device: PeerId,
        /// Which run of its agent.
        session: u64,
        /// Its user.
        user: UserId,
        /// What the user is called.
        name: UserName,
        /// Where the tracker sees it.
        observed: SocketAddr,
        /// Where it says it is.
        declared: Vec<SocketAddr>,
    },
    /// A device is gone, with all it held.
    Offline {
        /// The device.
        device: PeerId,
        /// The session that was told.
        session: u64,
    },
    /// A device holds a content.
    Holds {
        /// The device.
        device: PeerId,
        /// The session that was told.
        session: u64,
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
        /// Whether it holds all of it.
        complete: bool,
    },
    /// A device no longer holds a content.
    Lets {
        /// The device.
        device: PeerId,
        /// The session that was told.
        session: u64,
        /// The group.
        group: GroupId,
        /// The content.
        content: ContentId,
    },
    /// That was everything: what was told before and was not repeated is no more.
    End,
}

/// What there is to tell: the clients of this tracker.
pub trait Here {
    /// All devices somebody is logged in with.
    fn devices(&self) -> Vec<PeerId>;
    /// The newest login of a device.
    fn login(&self, device: PeerId) -> Option<Arc<Login>>;
    /// What a device holds in a session.
    fn contents(&self, device: PeerId, session: u64) -> Vec<SwarmId>;
    /// Which is the newest session of a device that holds a content, and whether all of it.
    fn held(&self, device: PeerId, swarm: SwarmId) -> Option<(u64, bool)>;
}

/// Something to be told as it is then.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// A device; `afresh` with all it holds, even if its session was told before.
    Device { device: PeerId, afresh: bool },
    /// What a device says of a content.
    Content(PeerId, SwarmId),
}

/// What changed, each thing once.
#[derive(Debug, Default)]
struct Noted {
    devices: HashMap<PeerId, bool>,
    contents: HashSet<(PeerId, SwarmId)>,
    overflown: bool,
}

impl Noted {
    fn forget(&mut self) {
        self.devices = HashMap::new();
        self.contents = HashSet::new();
    }
}

/// What is on its way to a sibling.
#[derive(Debug, Default)]
struct Desk {
    /// The session told last of each device that was not told to be gone since.
    told: HashMap<PeerId, u64>,
    /// What is told next.
    queue: VecDeque<Item>,
    /// Devices of the full list still to be told; nothing when no list is under way.
    list: Option<VecDeque<PeerId>>,
}

/// What one sibling is still to be told. Dropped, it is noted in no more.
///
/// Whatever changes is noted after it changed, and read after it was taken out of the notes: so the
/// last thing told of anything is what it is.
#[derive(Debug)]
pub struct Journal {
    bound: usize,
    /// Innermost of all locks: nothing is locked while it is held.
    noted: Mutex<Noted>,
    /// Outermost of all locks: held while what is told is read.
    desk: Mutex<Desk>,
}

impl Journal {
    /// A journal of at most `bound` notes; everything is to be told.
    pub fn new(bound: usize) -> Self {
        let noted = Noted { overflown: true, ..Noted::default() };
        Self { bound, noted: Mutex::new(noted), desk: Mutex::default() }
    }

    fn note(&self, note: impl FnOnce(&mut Noted)) {
        let mut noted = lock(&self.noted);
        // Everything will be told anyhow.
        if !noted.overflown {
            note(&mut noted);
            if noted.devices.len() + noted.contents.len() > self.bound {
                noted.forget();
                noted.overflown = true;
            }
        }
    }

    /// The next things to tell, at most `max` of them (or two); none when all is told.
    pub fn take(&self, here: &impl Here, max: usize) -> Vec<News> {
        let mut desk = lock(&self.desk);
        let mut news = Vec::new();
        if std::mem::take(&mut lock(&self.noted).overflown) {
            *desk = Desk { list: Some(here.devices().into()), ..Desk::default() };
            news.push(News::Begin);
        }
        // One device of the list after each lot of changes: neither waits for the other.
        let mut lists_turn = false;
        // A device told afresh takes two.
        while news.len() + 2 <= max.max(2) {
            if let Some(item) = desk.queue.pop_front() {
                desk.tell(here, item, &mut news);
            } else if !lists_turn && self.draw(&mut desk) {
                lists_turn = true;
            } else if let Some(list) = &mut desk.list {
                lists_turn = false;
                match list.pop_front() {
                    Some(device) => desk.queue.push_back(Item::Device { device, afresh: false }),
                    None => {
                        desk.list = None;
                        news.push(News::End);
                    }
                }
            } else if !std::mem::take(&mut lists_turn) {
                break;
            }
        }
        news
    }

    /// Puts what was noted onto the desk; returns whether there was anything.
    fn draw(&self, desk: &mut Desk) -> bool {
        let mut noted = lock(&self.noted);
        let (devices, contents) =
            (std::mem::take(&mut noted.devices), std::mem::take(&mut noted.contents));
        drop(noted);
        let devices = devices.into_iter();
        desk.queue.extend(devices.map(|(device, afresh)| Item::Device { device, afresh }));
        desk.queue.extend(contents.into_iter().map(|(device, swarm)| Item::Content(device, swarm)));
        !desk.queue.is_empty()
    }
}

impl Desk {
    fn tell(&mut self, here: &impl Here, item: Item, news: &mut Vec<News>) {
        match item {
            Item::Device { device, afresh } => self.tell_device(here, device, afresh, news),
            Item::Content(device, (group, content)) => {
                // Of who is not told yet, all is told then.
                let Some(&session) = self.told.get(&device) else { return };
                news.push(match here.held(device, (group, content)) {
                    Some((held, _)) if held > session => return,
                    Some((held, complete)) if held == session => {
                        News::Holds { device, session, group, content, complete }
                    }
                    _ => News::Lets { device, session, group, content },
                });
            }
        }
    }

    fn tell_device(
        &mut self,
        here: &impl Here,
        device: PeerId,
        afresh: bool,
        news: &mut Vec<News>,
    ) {
        let told = self.told.get(&device).copied();
        let login = here.login(device);
        let same = told.is_some() && told == login.as_ref().map(|login| login.session);
        if let Some(session) = told.filter(|_| login.is_none() || (same && afresh)) {
            self.told.remove(&device);
            news.push(News::Offline { device, session });
        }
        let Some(login) = login else { return };
        let session = login.session;
        self.told.insert(device, session);
        news.push(News::Online {
            device,
            session,
            user: login.user,
            name: login.name.clone(),
            observed: login.observed,
            declared: login.declared.clone(),
        });
        if !same || afresh {
            for swarm in here.contents(device, session) {
                self.queue.push_front(Item::Content(device, swarm));
            }
        }
    }
}

/// The journals of all siblings.
#[derive(Debug, Default)]
pub struct Journals {
    /// How many there are, so that without any nothing is locked.
    count: AtomicUsize,
    all: RwLock<Vec<Weak<Journal>>>,
}

impl Journals {
    /// One more, of at most `bound` notes.
    pub fn open(&self, bound: usize) -> Arc<Journal> {
        let journal = Arc::new(Journal::new(bound));
        self.tidy(Some(Arc::downgrade(&journal)));
        journal
    }

    /// A device came, went or changed. `afresh` when what it held is not noted one by one.
    pub fn note_device(&self, device: PeerId, afresh: bool) {
        self.note(|noted| *noted.devices.entry(device).or_default() |= afresh);
    }

    /// A device says something else of a content.
    pub fn note_content(&self, device: PeerId, swarm: SwarmId) {
        self.note(|noted| {
            noted.contents.insert((device, swarm));
        });
    }

    fn note(&self, note: impl Fn(&mut Noted)) {
        // Nothing seen here: then the first list is read after the change, under the lock it was
        // made under.
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let dropped = all.iter().filter(|journal| match journal.upgrade() {
            Some(journal) => {
                journal.note(&note);
                false
            }
            None => true,
        });
        if dropped.count() > 0 {
            drop(all);
            self.tidy(None);
        }
    }

    /// Forgets the dropped ones, adds one.
    fn tidy(&self, one_more: Option<Weak<Journal>>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|journal| journal.strong_count() > 0);
        all.extend(one_more);
        self.count.store(all.len(), Ordering::Relaxed);
    }
}

/// A device as a sibling told of it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What stands for the connection.
    pub connection: ConnectionNumber,
    /// The list it was last told in or after.
    pub round: u32,
    /// When it is dropped unless it is told again, if its tracker is lost.
    pub until: Option<UnixMillis>,
}

/// What a sibling told.
#[derive(Debug, Default)]
pub struct Heard {
    /// How many lists it began.
    pub round: u32,
    /// Whether one is under way.
    pub listing: bool,
    /// Who is there, as far as was not found out here.
    pub devices: HashMap<PeerId, Known>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::round_trip;

    const DEVICE: PeerId = PeerId([1; 32]);
    const OTHER: PeerId = PeerId([2; 32]);

    fn swarm(content: u8) -> SwarmId {
        (GroupId([9; 16]), ContentId([content; 32]))
    }

    /// Devices, their sessions, and what they hold.
    #[derive(Default)]
    struct Table(RefCell<BTreeMap<PeerId, (u64, Contents)>>);

    type Contents = BTreeMap<SwarmId, bool>;

    impl Table {
        fn enter(&self, device: PeerId, session: u64, contents: &[u8]) {
            let held = contents.iter().map(|content| (swarm(*content), true)).collect();
            self.0.borrow_mut().insert(device, (session, held));
        }

        fn leave(&self, device: PeerId) {
            self.0.borrow_mut().remove(&device);
        }
    }

    impl Here for Table {
        fn devices(&self) -> Vec<PeerId> {
            self.0.borrow().keys().copied().collect()
        }

        fn login(&self, device: PeerId) -> Option<Arc<Login>> {
            let session = self.0.borrow().get(&device)?.0;
            Some(Arc::new(Login {
                connection: 1,
                device,
                session,
                user: UserId([3; 16]),
                name: "bob".parse().expect("name"),
                observed: "203.0.113.7:9".parse().expect("address"),
                declared: Vec::new(),
                via: None,
                doubtful: false,
            }))
        }

        fn contents(&self, device: PeerId, _session: u64) -> Vec<SwarmId> {
            let table = self.0.borrow();
            table.get(&device).into_iter().flat_map(|(_, held)| held.keys().copied()).collect()
        }

        fn held(&self, device: PeerId, swarm: SwarmId) -> Option<(u64, bool)> {
            let table = self.0.borrow();
            let (session, held) = table.get(&device)?;
            Some((*session, *held.get(&swarm)?))
        }
    }

    /// News in short: `[`, `1+7` online in session 7, `1-7` offline, `1=5` holds, `1~5` lets, `]`.
    fn short(news: &[News]) -> String {
        let words = news.iter().map(|news| match news {
            News::Begin => "[".to_owned(),
            News::Online { device, session, .. } => format!("{}+{session}", device.0[0]),
            News::Offline { device, session } => format!("{}-{session}", device.0[0]),
            News::Holds { device, content, .. } => format!("{}={}", device.0[0], content.0[0]),
            News::Lets { device, content, .. } => format!("{}~{}", device.0[0], content.0[0]),
            News::End => "]".to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn told(journal: &Journal, table: &Table) -> String {
        short(&journal.take(table, 100))
    }

    #[test]
    fn first_everything_then_what_changed_each_thing_once() {
        let (table, journals) = (Table::default(), Journals::default());
        let journal = journals.open(10);
        table.enter(DEVICE, 7, &[5]);
        // Before anything is told, nothing need be noted.
        journals.note_device(DEVICE, false);
        assert_eq!(told(&journal, &table), "[ 1+7 1=5 ]");
        assert_eq!(told(&journal, &table), "");
        table.enter(DEVICE, 7, &[5, 6]);
        (0..9).for_each(|_| journals.note_content(DEVICE, swarm(6)));
        assert_eq!(told(&journal, &table), "1=6");
        // Come and gone between two takes: as if it had not been.
        journals.note_content(DEVICE, swarm(8));
        table.enter(OTHER, 1, &[5]);
        journals.note_device(OTHER, false);
        table.leave(OTHER);
        journals.note_device(OTHER, true);
        assert_eq!(told(&journal, &table), "1~8");
        table.leave(DEVICE);
        journals.note_device(DEVICE, true);
        assert_eq!(told(&journal, &table), "1-7");
    }

    #[test]
    fn a_new_session_is_told_with_all_it_holds_and_an_old_one_that_is_back_too() {
        let (table, journals) = (Table::default(), Journals::default());
        let journal = journals.open(10);
        table.enter(DEVICE, 7, &[5]);
        told(&journal, &table);
        table.enter(DEVICE, 8, &[6]);
        // Noted before the device is: it comes with the device.
        journals.note_content(DEVICE, swarm(6));
        assert_eq!(told(&journal, &table), "");
        journals.note_device(DEVICE, false);
        assert_eq!(told(&journal, &table), "1+8 1=6");
        table.enter(DEVICE, 7, &[5]);
        journals.note_device(DEVICE, false);
        assert_eq!(told(&journal, &table), "1+7 1=5");
        // Described anew, it keeps what it holds; gone and back, it is told afresh.
        journals.note_device(DEVICE, false);
        assert_eq!(told(&journal, &table), "1+7");
        journals.note_device(DEVICE, true);
        assert_eq!(told(&journal, &table), "1-7 1+7 1=5");
    }

    #[test]
    fn a_journal_that_overflows_tells_everything_again() {
        let (table, journals) = (Table::default(), Journals::default());
        let journal = journals.open(3);
        told(&journal, &table);
        table.enter(DEVICE, 7, &[5, 6]);
        journals.note_device(DEVICE, false);
        (1..=2).for_each(|content| journals.note_content(DEVICE, swarm(content)));
        assert_eq!(lock(&journal.noted).contents.len(), 2, "just full");
        journals.note_content(DEVICE, swarm(3));
        assert!(lock(&journal.noted).contents.is_empty());
        assert_eq!(told(&journal, &table), "[ 1+7 1=6 1=5 ]");
        assert_eq!(told(&journal, &table), "");
    }

    #[test]
    fn a_long_list_comes_in_lots_with_changes_between() {
        let (table, journals) = (Table::default(), Journals::default());
        let journal = journals.open(100);
        (1..=4).for_each(|id| table.enter(PeerId([id; 32]), 1, &[5, 6, 7]));
        let mut all = Vec::new();
        for lot in 0.. {
            let news = journal.take(&table, 3);
            assert!(news.len() <= 3);
            if news.is_empty() {
                break;
            }
            all.extend(news);
            if lot == 0 {
                table.leave(PeerId([1; 32]));
                journals.note_device(PeerId([1; 32]), true);
            }
        }
        let text = short(&all);
        assert!(text.starts_with("[ 1+1") && text.ends_with(']'), "{text}");
        let gone = text.find("1-1").expect("told");
        assert!(gone < text.find("4+1").expect("told"), "changes do not wait: {text}");
        assert_eq!(text.matches('=').count(), 9, "{text}");
    }

    #[test]
    fn without_subscribers_nothing_is_noted_and_dropped_ones_are_forgotten() {
        let journals = Journals::default();
        journals.note_device(DEVICE, false);
        let (one, two) = (journals.open(10), journals.open(10));
        assert_eq!(journals.count.load(Ordering::Relaxed), 2);
        drop(one);
        journals.note_device(DEVICE, false);
        assert_eq!(journals.count.load(Ordering::Relaxed), 1);
        drop(two);
        journals.note_device(DEVICE, false);
        assert_eq!(journals.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn news_round_trip_and_keep_their_bytes() {
        let (device, (group, content)) = (DEVICE, swarm(5));
        let online = News::Online {
            device,
            session: 300,
            user: UserId([3; 16]),
            name: "bob".parse().expect("name"),
            observed: "203.0.113.7:4000".parse().expect("address"),
            declared: vec!["[fe80::1]:3".parse().expect("address")],
        };
        let holds = News::Holds { device, session: 1, group, content, complete: true };
        let all = [
            News::Begin,
            online,
            News::Offline { device, session: 1 },
            holds.clone(),
            News::Lets { device, session: 1, group, content },
            News::End,
        ];
        for (variant, news) in all.iter().enumerate() {
            round_trip(news);
            assert_eq!(usize::from(crate::wire::encode(news)[0]), variant);
        }
        let hex = hex::encode(crate::wire::encode(&holds));
        let ids = [("01", 32), ("", 0), ("09", 16), ("05", 32)];
        let [device, _, group, content] = ids.map(|(byte, count)| byte.repeat(count));
        assert_eq!(hex, format!("03{device}01{group}{content}01"));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = crate::wire::decode::<News>(&bytes);
            let _ = crate::wire::decode::<Vec<News>>(&bytes);
        }
    }
}
