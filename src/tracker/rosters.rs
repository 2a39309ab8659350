//! The roster of a running tracker: kept in its data directory, changed by its operator and by
//! other trackers.
//!
//! A change is durable before anybody hears of it. What is handed on bears this tracker's own
//! signature, whoever made it: whoever trusts this tracker can follow, however much it missed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::clock;
use crate::hash::Blake3Hash;
use crate::limits::MAX_TRACKERS;
use crate::peer_id::PeerId;
use crate::roster::{RosterBook, RosterEntry, RosterError};
use crate::tracker_link::{TrackerInfo, TrackerLink};
use crate::transport::identity::Identity;

/// Name of the file in a tracker's data directory.
pub const FILE_NAME: &str = "roster";

/// Name it has until it is whole.
const NEW_FILE_NAME: &str = "roster.new";

/// Why the roster stays as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RostersError {
    /// What was offered is no roster to be trusted.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// It cannot be kept.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The tracker to add is there.
    #[error("tracker {} is in the roster already", .0.short())]
    Listed(PeerId),
    /// The tracker to change is not there.
    #[error("there is no tracker {} in the roster", .0.short())]
    NoSuchTracker(PeerId),
    /// Nobody would be left.
    #[error("tracker {} is the only one", .0.short())]
    Last(PeerId),
    /// There would be too many.
    #[error("the roster has {MAX_TRACKERS} trackers, which is as many as there may be")]
    Full,
    /// A tracker that nobody counts on cannot say who is to be counted on.
    #[error("this tracker, {}, is not in the roster and cannot change it", .0.short())]
    Outside(PeerId),
    /// Nobody can connect to this.
    #[error("{0} is not an address that others can reach")]
    NoAddress(TrackerLink),
}

/// The roster at one moment.
#[derive(Debug)]
pub struct Known {
    own: PeerId,
    book: RosterBook,
    hash: Option<Blake3Hash>,
    bytes: Option<Vec<u8>>,
}

impl Known {
    fn new(book: RosterBook, identity: &Identity) -> Self {
        let bytes = book.signed_by(identity.public_key(), &|message| identity.sign(message));
        Self { own: identity.peer_id(), hash: book.hash(), book, bytes }
    }

    /// The trackers, their order, and former ones.
    pub fn book(&self) -> &RosterBook {
        &self.book
    }

    /// The wire bytes to hand on, if there is a roster: signed by this tracker.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.bytes.as_deref()
    }

    /// What a client says of the roster it knows, if it knows this one.
    pub fn hash(&self) -> Option<Blake3Hash> {
        self.hash
    }

    /// Whether this tracker is one of them.
    pub fn is_listed(&self) -> bool {
        self.book.find(self.own).is_some()
    }

    /// The other trackers.
    pub fn siblings(&self) -> impl Iterator<Item = &RosterEntry> {
        self.book.entries().iter().filter(|entry| entry.peer_id() != self.own)
    }

    /// Says it in the log.
    fn log(&self, what: &str) {
        let siblings: Vec<_> =
            self.siblings().flat_map(|entry| &entry.links).map(TrackerLink::to_string).collect();
        let number = self.book.number();
        tracing::info!(number, siblings = siblings.join(" "), "{what}");
        if !self.is_listed() {
            tracing::warn!(
                number,
                tracker = %self.own,
                "this tracker is not in the roster: clients and other trackers do not count on it"
            );
        }
        // What this tracker's own operator took out needs no telling.
        let foreign = self.book.roster().is_some_and(|roster| roster.signer() != self.own);
        let missing = |link: &&TrackerLink| self.book.find(link.peer_id()).is_none();
        for link in self.book.info().links().iter().filter(missing).filter(|_| foreign) {
            tracing::warn!(
                number,
                %link,
                "a tracker of tracker_info.txt is not in the roster, which is a later one"
            );
        }
    }
}

/// The roster, and what may be done to it. Whatever changes it writes a file: from an async task
/// call it where that may block.
#[derive(Debug)]
pub struct Rosters {
    identity: Arc<Identity>,
    directory: PathBuf,
    /// Held by whoever changes it.
    changing: Mutex<()>,
    known: watch::Sender<Arc<Known>>,
}

impl Rosters {
    /// Goes on with what `directory` keeps. Where that is nothing, or says something else than
    /// `info` did then, makes a roster of `info`. A tracker without such a file is alone at
    /// `address`, and makes none until it is told to.
    ///
    /// # Errors
    /// [`RostersError::File`].
    pub fn open(
        directory: &Path,
        identity: Arc<Identity>,
        info: Option<TrackerInfo>,
        address: SocketAddr,
    ) -> Result<Self, RostersError> {
        let path = directory.join(FILE_NAME);
        let stored = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(RostersError::File { path, error }),
        };
        let has_info = info.is_some();
        let alone = || {
            let link = TrackerLink::new(address, identity.peer_id());
            TrackerInfo::new(vec![link]).expect("invariant: one link is a list of trackers")
        };
        let (mut book, ignored) = RosterBook::new(info.unwrap_or_else(alone), stored.as_deref());
        if ignored {
            tracing::warn!(
                path = %path.display(),
                "the roster kept here is unreadable or of other trackers; it is left aside"
            );
        }
        if has_info {
            let before = book.number();
            let sign = |message: &[u8]| identity.sign(message);
            if book.begin(identity.public_key(), &sign, clock::now()) && before > 0 {
                tracing::warn!(
                    number = book.number(),
                    "tracker_info.txt was changed: the roster is what it says now, on every tracker"
                );
            }
            if stored.as_ref() != Some(&book.encode()) {
                keep(directory, &book)?;
            }
        }
        let known = Known::new(book, &identity);
        known.log("the roster");
        Ok(Self {
            identity,
            directory: directory.to_owned(),
            changing: Mutex::default(),
            known: watch::Sender::new(Arc::new(known)),
        })
    }

    /// The present one.
    pub fn known(&self) -> Arc<Known> {
        self.known.borrow().clone()
    }

    /// Tells of every change from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<Known>> {
        self.known.subscribe()
    }

    /// Takes a roster that another tracker has, if it is later; says whether it was.
    ///
    /// # Errors
    /// [`RostersError`] unless one of the present trackers signed it; also when it cannot be kept.
    pub fn offer(&self, bytes: &[u8]) -> Result<bool, RostersError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut book = self.known().book.clone();
        let later = book.offer(bytes, clock::now())?;
        if later {
            self.publish(book)?;
        }
        Ok(later)
    }

    /// Adds a tracker.
    ///
    /// # Errors
    /// [`RostersError`].
    pub fn add(&self, link: TrackerLink) -> Result<Arc<Known>, RostersError> {
        self.amend(|entries| {
            if entries.iter().any(|entry| entry.peer_id() == link.peer_id()) {
                return Err(RostersError::Listed(link.peer_id()));
            }
            if entries.len() >= MAX_TRACKERS {
                return Err(RostersError::Full);
            }
            entries.push(RosterEntry::new(link));
            Ok(())
        })
    }

    /// Removes a tracker.
    ///
    /// # Errors
    /// [`RostersError`].
    pub fn remove(&self, tracker: PeerId) -> Result<Arc<Known>, RostersError> {
        self.amend(|entries| {
            let place = place_of(entries, tracker)?;
            if entries.len() == 1 {
                return Err(RostersError::Last(tracker));
            }
            entries.remove(place);
            Ok(())
        })
    }

    /// Gives a tracker another key, or with the same key another address.
    ///
    /// # Errors
    /// [`RostersError`].
    pub fn replace(&self, tracker: PeerId, link: TrackerLink) -> Result<Arc<Known>, RostersError> {
        self.amend(|entries| {
            let place = place_of(entries, tracker)?;
            let id = link.peer_id();
            if id != tracker && entries.iter().any(|entry| entry.peer_id() == id) {
                return Err(RostersError::Listed(id));
            }
            entries[place] = RosterEntry::new(link);
            Ok(())
        })
    }

    /// Makes the next roster, unless there is one and it stays the same.
    fn amend(
        &self,
        change: impl FnOnce(&mut Vec<RosterEntry>) -> Result<(), RostersError>,
    ) -> Result<Arc<Known>, RostersError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known();
        if !known.is_listed() {
            return Err(RostersError::Outside(known.own));
        }
        let mut entries = known.book.entries().to_vec();
        change(&mut entries)?;
        if known.bytes.is_some() && entries == known.book.entries() {
            return Ok(known);
        }
        let mut links = entries.iter().flat_map(|entry| &entry.links);
        if let Some(link) = links.find(|link| !is_address(link)) {
            return Err(RostersError::NoAddress(link.clone()));
        }
        let identity = &self.identity;
        let sign = |message: &[u8]| identity.sign(message);
        let bytes = known.book.amended(entries, identity.public_key(), &sign);
        let mut book = known.book.clone();
        book.offer(&bytes, clock::now())?;
        self.publish(book)
    }

    fn publish(&self, book: RosterBook) -> Result<Arc<Known>, RostersError> {
        keep(&self.directory, &book)?;
        let known = Arc::new(Known::new(book, &self.identity));
        known.log("the roster changed");
        self.known.send_replace(known.clone());
        Ok(known)
    }
}

fn place_of(entries: &[RosterEntry], tracker: PeerId) -> Result<usize, RostersError> {
    let place = entries.iter().position(|entry| entry.peer_id() == tracker);
    place.ok_or(RostersError::NoSuchTracker(tracker))
}

/// Whether there may be somebody at a link: a tracker without a tracker_info.txt may know no more
/// of itself than that it listens everywhere.
fn is_address(link: &TrackerLink) -> bool {
    let everywhere = link.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    !everywhere && link.port() != 0
}

/// Writes the book, whole or not at all.
fn keep(directory: &Path, book: &RosterBook) -> Result<(), RostersError> {
    let (path, new) = (directory.join(FILE_NAME), directory.join(NEW_FILE_NAME));
    let write = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&book.encode())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| RostersError::File { path: path.clone(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn link(identity: &Identity, port: u16) -> TrackerLink {
        TrackerLink::new(([10, 0, 0, 1], port).into(), identity.peer_id())
    }

    fn info(links: &[TrackerLink]) -> Option<TrackerInfo> {
        Some(TrackerInfo::new(links.to_vec()).expect("valid"))
    }

    fn identity() -> Arc<Identity> {
        Arc::new(Identity::generate())
    }

    const EVERYWHERE: ([u8; 4], u16) = ([0, 0, 0, 0], 4000);

    /// A tracker with this file.
    fn open(dir: &Path, own: &Arc<Identity>, links: &[TrackerLink]) -> Rosters {
        Rosters::open(dir, own.clone(), info(links), EVERYWHERE.into()).expect("opened")
    }

    #[test]
    fn changes_are_kept_privately_and_told() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b, c) = (identity(), identity(), identity());
        let file = [link(&a, 1), link(&b, 2)];
        let rosters = open(dir.path(), &a, &file);
        let mut changes = rosters.watch();
        assert_eq!(rosters.known().book().number(), 1);
        assert!(!changes.has_changed().expect("open"));

        rosters.add(link(&c, 3)).expect("added");
        assert!(changes.has_changed().expect("open"));
        assert_eq!(changes.borrow_and_update().book().number(), 2);
        let mode = fs::metadata(dir.path().join(FILE_NAME)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let known = rosters.replace(b.peer_id(), link(&b, 5)).expect("replaced");
        assert_eq!(known.book().links()[1], link(&b, 5));
        let known = rosters.replace(b.peer_id(), link(&b, 5)).expect("the same");
        assert_eq!(known.book().number(), 3, "no other roster");
        let known = rosters.remove(c.peer_id()).expect("removed");
        assert_eq!(known.siblings().map(RosterEntry::peer_id).collect::<Vec<_>>(), [b.peer_id()]);

        let again = open(dir.path(), &a, &file).known();
        assert_eq!((again.book().number(), again.hash()), (4, known.hash()));
        assert!(again.book().trusts(c.peer_id(), clock::now()));
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b) = (identity(), identity());
        let rosters = open(dir.path(), &a, &[link(&a, 1)]);
        let before = rosters.known().hash();
        let (a_id, b_id) = (a.peer_id(), b.peer_id());
        assert!(matches!(rosters.add(link(&a, 9)), Err(RostersError::Listed(id)) if id == a_id));
        assert!(matches!(rosters.remove(a_id), Err(RostersError::Last(_))));
        assert!(matches!(rosters.remove(b_id), Err(RostersError::NoSuchTracker(_))));
        assert!(matches!(rosters.replace(b_id, link(&b, 1)), Err(RostersError::NoSuchTracker(_))));
        let everywhere = TrackerLink::new(EVERYWHERE.into(), b_id);
        assert!(matches!(rosters.add(everywhere), Err(RostersError::NoAddress(_))));
        assert_eq!(rosters.known().hash(), before);

        for port in 2..=MAX_TRACKERS as u16 {
            rosters.add(link(&identity(), port)).expect("added");
        }
        assert!(matches!(rosters.add(link(&b, 99)), Err(RostersError::Full)));
        rosters.replace(a_id, link(&b, 99)).expect("replaced itself");
        assert!(!rosters.known().is_listed());
        assert!(matches!(rosters.remove(b_id), Err(RostersError::Outside(_))));
    }

    #[test]
    fn what_cannot_be_kept_is_not_taken() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b) = (identity(), identity());
        let rosters = open(dir.path(), &a, &[link(&a, 1)]);
        // A directory is in the way, which no file replaces.
        fs::create_dir(dir.path().join(NEW_FILE_NAME)).expect("made");
        assert!(matches!(rosters.add(link(&b, 2)), Err(RostersError::File { .. })));
        assert_eq!(rosters.known().book().number(), 1);
        fs::remove_dir(dir.path().join(NEW_FILE_NAME)).expect("removed");
        rosters.add(link(&b, 2)).expect("added");
    }

    #[test]
    fn a_tracker_hands_on_what_it_took_under_its_own_signature() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("temp dir"));
        let (a, b, c) = (identity(), identity(), identity());
        let file = [link(&a, 1), link(&b, 2)];
        let first = open(dirs[0].path(), &a, &file);
        let second = open(dirs[1].path(), &b, &file);
        assert_eq!(first.known().hash(), second.known().hash(), "both made the same");
        let changed = first.replace(a.peer_id(), link(&c, 3)).expect("replaced");
        assert!(second.offer(changed.bytes().expect("a roster")).expect("signed"));
        assert!(
            !second
                .offer(changed.bytes().expect("a roster"))
                .expect_err("gone")
                .to_string()
                .is_empty()
        );
        let (mut client, _) = RosterBook::new(info(&[link(&b, 2)]).expect("some"), None);
        let handed = second.known();
        let bytes = handed.bytes().expect("a roster");
        assert_eq!(client.offer(bytes, clock::now()), Ok(true));
        assert_eq!(client.hash(), changed.hash());
    }

    #[test]
    fn a_tracker_without_a_file_is_alone_until_it_is_told_its_address() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (a, b) = (identity(), identity());
        let alone = || Rosters::open(dir.path(), a.clone(), None, EVERYWHERE.into());
        let rosters = alone().expect("opened");
        let known = rosters.known();
        assert!(known.bytes().is_none() && known.is_listed() && known.siblings().count() == 0);
        assert!(matches!(rosters.add(link(&b, 2)), Err(RostersError::NoAddress(_))));
        rosters.replace(a.peer_id(), link(&a, 1)).expect("told");
        rosters.add(link(&b, 2)).expect("added");
        let again = alone().expect("opened").known();
        assert_eq!((again.book().number(), again.siblings().count()), (2, 1));

        // One that is not in its own file waits for the roster of those who are.
        let other = tempfile::tempdir().expect("temp dir");
        let outside = open(other.path(), &identity(), &[link(&a, 1), link(&b, 2)]).known();
        assert!(outside.bytes().is_none() && !outside.is_listed());
        assert_eq!(outside.siblings().count(), 2);
    }
}
