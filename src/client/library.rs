//! What this agent holds: files it shares and files it downloads, with their states.
//!
//! Plain maps; the agent acts on them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::Batch;
use super::destination::Destination;
use super::error::{AgentError, DownloadFailure};
use super::record::{KeptPath, Place, Record, Stage};
use super::transfer::Transfer;
use crate::clock::UnixMillis;
use crate::id::GroupId;
use crate::limits::MAX_CANDIDATES;
use crate::manifest::{ContentId, Manifest};
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::swarm::meter::Meter;
use crate::swarm::session::SwarmKey;
use crate::swarm::stamp::Stamp;
use crate::swarm::storage::{MAX_NUMBERED, PieceStore, part_path};
use crate::tracker::refusal::Refusal;

/// Where an entry is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// What is there already is looked at.
    Checking,
    /// Pieces come in.
    Downloading,
    /// Every piece is here; the whole file is checked and named.
    Finishing,
    /// It waits until the user resumes it.
    Paused,
    /// Complete; served to others as long as its file is what it was.
    Seeding,
    /// It will not go on.
    Failed(DownloadFailure),
}

impl EntryState {
    /// Whether it may still become complete without anybody's help.
    pub fn is_under_way(&self) -> bool {
        matches!(self, Self::Checking | Self::Downloading | Self::Finishing)
    }
}

/// Where the bytes of an entry are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a whole file, which looked like this.
    File {
        /// The file.
        path: PathBuf,
        /// What it looked like.
        stamp: Stamp,
    },
    /// In a part file below the directory where the file will be.
    Part(Destination),
}

/// What is known of a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It was not looked at since the agent began, or the user logged in.
    Unseen,
    /// It is what it was.
    Here,
    /// It is not there.
    Missing,
    /// The system does not let us look at it.
    Unreadable(io::ErrorKind),
    /// It is something else now.
    Changed,
}

impl Sight {
    /// In words, why it cannot be served though it may be what it was.
    pub fn absence(self) -> Option<String> {
        match self {
            Self::Missing => Some("is missing".to_owned()),
            Self::Unreadable(why) => Some(format!("cannot be read: {why}")),
            Self::Unseen | Self::Here | Self::Changed => None,
        }
    }
}

/// One content in one group on this machine.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The number shown to people.
    pub number: u64,
    /// When it was begun.
    pub since: UnixMillis,
    /// The group's name.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Who published it.
    pub publisher: Option<UserName>,
    /// Whether it was shared from here, rather than downloaded.
    pub shared: bool,
    /// Its metafile.
    pub metafile: Option<PathBuf>,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Where its bytes are.
    pub home: Home,
    /// What is known of its file, when it is whole.
    pub sight: Sight,
    /// Its bytes, where they can be used.
    pub store: Option<Arc<PieceStore>>,
    /// How far it is; nothing for a file that was here from the start.
    pub meter: Option<Arc<Meter>>,
    /// Bytes that were here when its download began, was paused, or was kept last.
    pub kept_bytes: u64,
    /// Where it is in its life.
    pub state: EntryState,
    /// Whether its failure was told to somebody who waited.
    pub told: bool,
    /// Whether the user asked for it since the agent began; what comes back by itself was not.
    pub asked: bool,
    /// Why its part file could not be opened, where that may change by itself.
    pub waits: Option<DownloadFailure>,
    /// Whether there is nothing of it yet, not even its part file.
    pub fresh: bool,
    /// Whether it waits for its turn to be taken up.
    pub queued: bool,
    /// The many that were asked for at once, of which it is one.
    pub batch: Option<Arc<Batch>>,
    /// Its download, while that is under way or about to end.
    pub transfer: Option<Transfer>,
}

impl Entry {
    /// Whether `file` means this entry.
    pub fn is(&self, group: &GroupName, file: &Selector) -> bool {
        self.group == *group
            && match file {
                Selector::Id(id) => id.matches(self.manifest.content_id()),
                Selector::Name(name) => *name == self.name,
                Selector::UserName(user, name) => {
                    *name == self.name && self.publisher.as_ref() == Some(user)
                }
            }
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> u64 {
        self.manifest.layout().size()
    }

    /// Whether its file was found changed, as far as is known without looking.
    pub fn is_changed(&self) -> bool {
        let found = || self.store.as_ref().is_some_and(|store| store.known_changed());
        match self.sight {
            Sight::Changed => true,
            Sight::Here => found(),
            Sight::Unseen | Sight::Missing | Sight::Unreadable(_) => false,
        }
    }

    /// Whether it is complete and can be served, as far as is known without looking.
    pub fn is_served(&self) -> bool {
        self.state == EntryState::Seeding
            && self.sight == Sight::Here
            && self.store.as_ref().is_some_and(|store| !store.known_changed())
    }

    /// Says that another may take its place: it failed, or its file is not what it was.
    ///
    /// # Errors
    /// [`AgentError::Downloading`] and [`AgentError::Have`], when it is needed.
    pub fn is_replaceable(&self) -> Result<(), AgentError> {
        match self.state {
            EntryState::Failed(_) => Ok(()),
            EntryState::Seeding if self.is_served() || self.is_unseen() => {
                Err(AgentError::Have(self.path()))
            }
            EntryState::Seeding => Ok(()),
            _ => Err(AgentError::Downloading(self.name.to_string())),
        }
    }

    /// Whether it is complete and its file was not looked at yet.
    pub fn is_unseen(&self) -> bool {
        self.state == EntryState::Seeding && self.sight == Sight::Unseen
    }

    /// Whether it is being fetched: its swarm is one that peers can be found for.
    pub fn is_fetched(&self) -> bool {
        matches!(self.state, EntryState::Downloading | EntryState::Finishing)
    }

    /// Whether `transfer` is its download.
    pub fn is_run_by(&self, transfer: &Transfer) -> bool {
        self.transfer.as_ref().is_some_and(|own| own.is(transfer))
    }

    /// Whether it is, or will be, at `destination`, perhaps with a number.
    pub fn goes_to(&self, destination: &Destination) -> bool {
        let Home::File { path, .. } = &self.home else {
            return self.home == Home::Part(destination.clone());
        };
        let own = path.file_name().unwrap_or_default();
        let numbered = || (1..=MAX_NUMBERED).map(|number| destination.name.numbered(number));
        path.parent() == Some(&destination.directory)
            && (own == destination.name.as_str() || numbered().any(|name| own == name.as_str()))
    }

    /// Where its bytes are now.
    pub fn path(&self) -> PathBuf {
        match (&self.home, &self.store) {
            (Home::File { path, .. }, _) => path.clone(),
            (_, Some(store)) => store.path(),
            (Home::Part(to), None) => part_path(&to.directory, self.manifest.content_id()),
        }
    }

    /// Where the file is or will be.
    pub fn target(&self) -> PathBuf {
        match &self.home {
            Home::File { path, .. } => path.clone(),
            Home::Part(to) => to.directory.join(to.name.as_str()),
        }
    }

    /// Bytes of it that are here.
    pub fn stored_bytes(&self) -> u64 {
        match (&self.meter, &self.home) {
            (_, Home::File { .. }) => self.size(),
            (Some(meter), _) if self.state.is_under_way() => meter.stored_bytes(),
            _ => self.kept_bytes,
        }
    }

    /// What is to be kept of it.
    pub fn record(&self) -> Record {
        let stage = match &self.state {
            EntryState::Paused => Stage::Paused,
            // The next start tries it again.
            EntryState::Failed(_) if self.waits.is_some() => Stage::Going,
            EntryState::Failed(DownloadFailure { code, message }) => {
                Stage::Failed { code: code.clone(), message: message.clone() }
            }
            _ if self.fresh => Stage::Fresh,
            _ => Stage::Going,
        };
        let place = match &self.home {
            Home::File { path, stamp } => {
                Place::Whole { path: KeptPath(path.clone()), stamp: *stamp }
            }
            Home::Part(to) => Place::Part {
                directory: KeptPath(to.directory.clone()),
                name: to.name.clone(),
                stored_bytes: self.stored_bytes(),
                stage,
            },
        };
        Record {
            number: self.number,
            since: self.since,
            group: self.group.clone(),
            name: self.name.clone(),
            publisher: self.publisher.clone(),
            shared: self.shared,
            metafile: self.metafile.clone().map(KeptPath),
            place,
        }
    }

    /// What `record` was kept of, before anything was looked at: a download that was under way is
    /// about to be checked.
    pub fn of_record(record: Record, manifest: Arc<Manifest>) -> Self {
        let fresh = matches!(record.place, Place::Part { stage: Stage::Fresh, .. });
        let (home, state, kept_bytes) = match record.place {
            Place::Whole { path, stamp } => {
                let home = Home::File { path: path.0, stamp };
                (home, EntryState::Seeding, manifest.layout().size())
            }
            Place::Part { directory, name, stored_bytes, stage } => {
                let state = match stage {
                    Stage::Going | Stage::Fresh => EntryState::Checking,
                    Stage::Paused => EntryState::Paused,
                    Stage::Failed { code, message } => {
                        EntryState::Failed(DownloadFailure { code, message })
                    }
                };
                (Home::Part(Destination { directory: directory.0, name }), state, stored_bytes)
            }
        };
        Self {
            number: record.number,
            since: record.since,
            group: record.group,
            name: record.name,
            publisher: record.publisher,
            shared: record.shared,
            metafile: record.metafile.map(|path| path.0),
            manifest,
            home,
            sight: Sight::Unseen,
            store: None,
            meter: None,
            kept_bytes,
            state,
            // Whoever waited for it is not here any more.
            told: true,
            asked: false,
            waits: None,
            fresh,
            queued: false,
            batch: None,
            transfer: None,
        }
    }
}

/// All entries of an agent: those of the user that is logged in.
#[derive(Debug, Default)]
pub struct Library {
    user: Option<UserName>,
    entries: BTreeMap<SwarmKey, Entry>,
    last_number: u64,
    /// Groups that could not be taken up again, and why.
    troubles: BTreeMap<GroupId, DownloadFailure>,
}

impl Library {
    /// A library of nobody; numbers up to `last_number` are taken.
    pub fn new(last_number: u64) -> Self {
        Self { last_number, ..Self::default() }
    }

    /// Whose entries these are.
    pub fn user(&self) -> Option<&UserName> {
        self.user.as_ref()
    }

    /// From now on these are the entries of `user`.
    pub fn set_user(&mut self, user: Option<UserName>) {
        self.user = user;
        self.troubles.clear();
    }

    /// Adds an entry where there is none; returns its number.
    pub fn add(&mut self, key: SwarmKey, mut entry: Entry) -> u64 {
        self.last_number += 1;
        entry.number = self.last_number;
        self.entries.insert(key, entry);
        self.last_number
    }

    /// Adds an entry that was kept, under the number it had; not where there is one. Returns whether
    /// it was added.
    pub fn add_kept(&mut self, key: SwarmKey, entry: Entry) -> bool {
        self.last_number = self.last_number.max(entry.number);
        let is_new = !self.entries.contains_key(&key);
        self.entries.entry(key).or_insert(entry);
        is_new
    }

    /// The entry of a swarm.
    pub fn find(&self, key: SwarmKey) -> Option<&Entry> {
        self.entries.get(&key)
    }

    /// The same, to change it.
    pub fn find_mut(&mut self, key: SwarmKey) -> Option<&mut Entry> {
        self.entries.get_mut(&key)
    }

    /// An entry of the same content in another group that can be used in this one too: complete or
    /// under way.
    pub fn elsewhere(&self, key: SwarmKey) -> Option<&Entry> {
        let mut others = self
            .entries
            .iter()
            .filter(|(other, _)| other.content == key.content && other.group != key.group);
        let usable = |entry: &Entry| match entry.state {
            EntryState::Seeding => entry.is_served(),
            EntryState::Downloading | EntryState::Finishing => entry.transfer.is_some(),
            EntryState::Checking | EntryState::Paused | EntryState::Failed(_) => false,
        };
        others.find(|(_, entry)| usable(entry)).map(|(_, entry)| entry)
    }

    /// The entries of a content, in whatever groups.
    pub fn of_content(&self, content: ContentId) -> Vec<SwarmKey> {
        self.entries.keys().copied().filter(|key| key.content == content).collect()
    }

    /// The entries of a group.
    pub fn of_group(&self, group: GroupId) -> Vec<SwarmKey> {
        self.entries.keys().copied().filter(|key| key.group == group).collect()
    }

    /// The entries that are one download with that of `key`: of the same content, into the same
    /// place.
    pub fn companions(&self, key: SwarmKey) -> Vec<SwarmKey> {
        let Some(Home::Part(to)) = self.find(key).map(|entry| &entry.home) else {
            return Vec::new();
        };
        let same = |other: &SwarmKey| {
            self.find(*other)
                .is_some_and(|entry| matches!(&entry.home, Home::Part(own) if own == to))
        };
        self.of_content(key.content).into_iter().filter(same).collect()
    }

    /// Whether an entry needs the part file of a content below a directory.
    pub fn needs_part(&self, content: ContentId, directory: &Path) -> bool {
        let below =
            |entry: &Entry| matches!(&entry.home, Home::Part(to) if to.directory == directory);
        self.of_content(content).into_iter().filter_map(|key| self.find(key)).any(below)
    }

    /// The swarm of the one entry that `file` means in a group, if there is any.
    ///
    /// # Errors
    /// [`Refusal::Ambiguous`] with candidates: of several none is chosen for whoever may be about to
    /// delete it.
    pub fn select(&self, group: &GroupName, file: &Selector) -> Result<Option<SwarmKey>, Refusal> {
        let meant = |file: &Selector| -> Vec<_> {
            self.entries.iter().filter(|(_, entry)| entry.is(group, file)).collect()
        };
        let hits = meant(file);
        if hits.len() <= 1 {
            return Ok(hits.first().map(|(key, _)| **key));
        }
        let candidate = |(key, entry): &(&SwarmKey, &Entry)| {
            let of_user = |user: &UserName| Selector::UserName(user.clone(), entry.name.clone());
            let of_user = entry.publisher.as_ref().map(of_user);
            match of_user.filter(|of_user| meant(of_user).len() == 1) {
                Some(of_user) => of_user.to_string(),
                None => format!("id:{}", key.content),
            }
        };
        Err(Refusal::Ambiguous {
            file: file.to_string(),
            group: group.clone(),
            candidates: hits.iter().take(MAX_CANDIDATES).map(candidate).collect(),
        })
    }

    /// Makes room for a new entry: takes out one that failed, or whose file is not what it was. Who
    /// adds the new one without letting go of the library in between overwrites nothing that came
    /// while he was busy.
    ///
    /// # Errors
    /// [`AgentError`]: nobody is logged in, or there is one that is needed.
    pub fn vacate(&mut self, key: SwarmKey) -> Result<Option<Entry>, AgentError> {
        if self.user.is_none() {
            return Err(Refusal::NotLoggedIn.into());
        }
        self.find(key).map_or(Ok(()), Entry::is_replaceable)?;
        Ok(self.remove(key))
    }

    /// The swarm of the entry whose metafile is, or was, at `path`.
    pub fn with_metafile(&self, path: &Path) -> Option<SwarmKey> {
        let is_it = |entry: &Entry| entry.metafile.as_deref() == Some(path);
        self.entries.iter().find(|(_, entry)| is_it(entry)).map(|(key, _)| *key)
    }

    /// A group is called `name` now.
    pub fn rename_group(&mut self, group: GroupId, name: &GroupName) {
        self.troubles.remove(&group);
        for (_, entry) in self.entries.iter_mut().filter(|(key, _)| key.group == group) {
            entry.group = name.clone();
        }
    }

    /// Why a group cannot be taken up again, or that it was.
    pub fn set_trouble(&mut self, group: GroupId, trouble: Option<DownloadFailure>) {
        match trouble {
            Some(trouble) => _ = self.troubles.insert(group, trouble),
            None => _ = self.troubles.remove(&group),
        }
    }

    /// Why a group cannot be taken up again.
    pub fn trouble(&self, group: GroupId) -> Option<&DownloadFailure> {
        self.troubles.get(&group)
    }

    /// A download under way came to another stage, if it is still under way.
    pub fn set_stage(&mut self, key: SwarmKey, stage: EntryState) {
        if let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.state.is_under_way()) {
            entry.state = stage;
        }
    }

    /// The first failure nobody who waited was told of; all are told with it.
    pub fn take_failure(&mut self) -> Option<(FileName, DownloadFailure)> {
        let mut first: Option<(u64, FileName, DownloadFailure)> = None;
        for entry in self.entries.values_mut().filter(|entry| !entry.told) {
            let EntryState::Failed(failure) = &entry.state else { continue };
            entry.told = true;
            if first.as_ref().is_none_or(|(number, ..)| *number > entry.number) {
                first = Some((entry.number, entry.name.clone(), failure.clone()));
            }
        }
        first.map(|(_, name, failure)| (name, failure))
    }

    /// Removes an entry and stops its download.
    pub fn remove(&mut self, key: SwarmKey) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        if let Some(transfer) = &entry.transfer {
            transfer.leave(key);
        }
        Some(entry)
    }

    /// Whether there is an entry of this kind.
    pub fn any(&self, is_it: impl Fn(SwarmKey, &Entry) -> bool) -> bool {
        self.entries.iter().any(|(key, entry)| is_it(*key, entry))
    }

    /// Some entry of this kind.
    pub fn find_where(&self, is_it: impl Fn(SwarmKey, &Entry) -> bool) -> Option<&Entry> {
        self.entries.iter().find(|(key, entry)| is_it(**key, entry)).map(|(_, entry)| entry)
    }

    /// The entries of this kind, in the order they were added.
    pub fn entries_where(
        &self,
        is_it: impl Fn(SwarmKey, &Entry) -> bool,
    ) -> Vec<(SwarmKey, Entry)> {
        let of_kind = self.entries.iter().filter(|(key, entry)| is_it(**key, entry));
        let mut entries: Vec<_> = of_kind.map(|(key, entry)| (*key, entry.clone())).collect();
        entries.sort_by_key(|(_, entry)| entry.number);
        entries
    }

    /// All entries, without an order.
    pub fn iter(&self) -> impl Iterator<Item = (SwarmKey, &Entry)> {
        self.entries.iter().map(|(key, entry)| (*key, entry))
    }

    /// All entries, in the order they were added.
    pub fn entries(&self) -> Vec<(SwarmKey, Entry)> {
        self.entries_where(|_, _| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::sha1;
    use crate::manifest::PieceHashes;
    use crate::piece::PieceLayout;

    fn manifest() -> Arc<Manifest> {
        manifest_of(b"abc")
    }

    fn manifest_of(bytes: &[u8; 3]) -> Arc<Manifest> {
        let layout = PieceLayout::new(3).expect("small");
        let pieces = layout.pieces().map(|piece| PieceHashes::of(layout, piece, bytes)).collect();
        Arc::new(Manifest::new(layout, sha1(bytes), pieces).expect("consistent"))
    }

    fn kept(place: Place) -> Entry {
        let record = Record {
            number: 5,
            since: UnixMillis(9),
            group: "lab".parse().expect("a name"),
            name: "f".parse().expect("a name"),
            publisher: Some("ann".parse().expect("a name")),
            shared: false,
            metafile: Some(KeptPath("/d/f.mtorrent".into())),
            place,
        };
        let entry = Entry::of_record(record.clone(), manifest());
        assert_eq!(entry.record(), record, "nothing is lost on the way");
        entry
    }

    fn part(directory: &str, stage: Stage) -> Place {
        let name = "f".parse().expect("a name");
        Place::Part { directory: KeptPath(directory.into()), name, stored_bytes: 2, stage }
    }

    fn key(group: u8) -> SwarmKey {
        SwarmKey { group: GroupId([group; 16]), content: manifest().content_id() }
    }

    #[test]
    fn what_was_kept_comes_back_as_it_was() {
        let stamp = Stamp { size: 3, modified: (1, 2), inode: (3, 4) };
        let whole = kept(Place::Whole { path: KeptPath("/d/f".into()), stamp });
        assert_eq!((&whole.state, whole.sight), (&EntryState::Seeding, Sight::Unseen));
        assert!(!whole.is_served() && !whole.is_changed(), "nobody has looked yet");
        assert_eq!(whole.stored_bytes(), 3);
        let failed = Stage::Failed { code: "disk".to_owned(), message: "broken".to_owned() };
        let states = [Stage::Going, Stage::Paused, failed].map(|stage| {
            let entry = kept(part("/d", stage));
            assert_eq!(entry.stored_bytes(), 2);
            assert!(entry.path().starts_with("/d/.mtq") && entry.target() == Path::new("/d/f"));
            entry.state
        });
        let failure = DownloadFailure { code: "disk".to_owned(), message: "broken".to_owned() };
        assert_eq!(states, [EntryState::Checking, EntryState::Paused, EntryState::Failed(failure)]);
    }

    #[test]
    fn of_several_that_a_name_means_none_is_chosen() {
        let mut library = Library::new(0);
        let (lab, selector) = ("lab".parse().expect("a name"), |text: &str| text.parse());
        let select = |library: &Library, text: &str| {
            library.select(&lab, &selector(text).expect("a selector"))
        };
        assert_eq!(select(&library, "f").expect("no doubt"), None);
        let entry = kept(part("/d", Stage::Going));
        library.add_kept(key(1), entry.clone());
        assert_eq!(select(&library, "f").expect("no doubt"), Some(key(1)));
        let [second, third] = [b"abd", b"abe"].map(manifest_of);
        let other = |of: &Manifest| SwarmKey { content: of.content_id(), ..key(1) };
        let carol = Entry { publisher: Some("carol".parse().expect("a name")), ..entry };
        library.add_kept(other(&second), Entry { manifest: second.clone(), ..carol.clone() });
        let Err(Refusal::Ambiguous { mut candidates, .. }) = select(&library, "f") else {
            panic!("one of two was chosen");
        };
        candidates.sort();
        assert_eq!(candidates, ["ann/f", "carol/f"]);
        assert_eq!(select(&library, "carol/f").expect("no doubt"), Some(other(&second)));
        // Two versions of one publisher are told apart by what they are.
        library.add_kept(other(&third), Entry { manifest: third.clone(), ..carol });
        let Err(Refusal::Ambiguous { mut candidates, .. }) = select(&library, "carol/f") else {
            panic!("one of two was chosen");
        };
        candidates.sort();
        let mut ids = [&second, &third].map(|of| format!("id:{}", of.content_id()));
        ids.sort();
        assert_eq!(candidates, ids);
        for candidate in candidates {
            assert!(select(&library, &candidate).expect("no doubt").is_some());
        }
    }

    #[test]
    fn room_is_made_where_nothing_is_needed_and_for_somebody() {
        let mut library = Library::new(0);
        assert!(matches!(library.vacate(key(1)), Err(AgentError::Refused(Refusal::NotLoggedIn))));
        library.set_user(Some("ann".parse().expect("a name")));
        assert!(library.vacate(key(1)).expect("empty").is_none());
        let stamp = Stamp { size: 3, modified: (1, 2), inode: (3, 4) };
        for place in [part("/d", Stage::Going), part("/d", Stage::Paused)] {
            library.add(key(1), kept(place));
            assert!(matches!(library.vacate(key(1)), Err(AgentError::Downloading(_))));
            library.remove(key(1));
        }
        let mut whole = kept(Place::Whole { path: KeptPath("/d/f".into()), stamp });
        library.add(key(1), whole.clone());
        assert!(matches!(library.vacate(key(1)), Err(AgentError::Have(_))), "it may be there");
        library.remove(key(1));
        whole.sight = Sight::Missing;
        library.add(key(1), whole);
        assert!(library.vacate(key(1)).expect("no use").is_some());
        let failed = Stage::Failed { code: "disk".to_owned(), message: "broken".to_owned() };
        library.add(key(1), kept(part("/d", failed)));
        assert!(library.vacate(key(1)).expect("no use").is_some());
    }

    #[test]
    fn a_whole_file_goes_where_its_name_is_wanted() {
        let stamp = Stamp { size: 3, modified: (1, 2), inode: (3, 4) };
        let at = |path: &str| kept(Place::Whole { path: KeptPath(path.into()), stamp });
        let to = |directory: &str, name: &str| Destination {
            directory: directory.into(),
            name: name.parse().expect("a name"),
        };
        assert!(at("/d/f.bin").goes_to(&to("/d", "f.bin")));
        assert!(at("/d/f (2).bin").goes_to(&to("/d", "f.bin")));
        assert!(!at("/d/f.bin").goes_to(&to("/d", "g.bin")));
        assert!(!at("/d/f.bin").goes_to(&to("/e", "f.bin")));
    }

    #[test]
    fn one_download_is_that_into_one_place() {
        let mut library = Library::new(3);
        library.add_kept(key(1), kept(part("/d", Stage::Paused)));
        library.add_kept(key(2), kept(part("/d", Stage::Paused)));
        library.add_kept(key(3), kept(part("/e", Stage::Paused)));
        assert_eq!(library.companions(key(1)), [key(1), key(2)]);
        assert_eq!(library.companions(key(3)), [key(3)]);
        assert!(library.needs_part(key(1).content, Path::new("/e")));
        library.remove(key(3));
        assert!(!library.needs_part(key(1).content, Path::new("/e")));
        assert!(library.elsewhere(key(3)).is_none(), "paused ones are of no use to others");
        assert_eq!(library.with_metafile(Path::new("/d/f.mtorrent")), Some(key(1)));
        assert_eq!(
            library.add(key(4), kept(part("/f", Stage::Going))),
            6,
            "after all that were kept"
        );
    }
}
