//! A download from the opening of its part file to its name on disk, or to its end without that.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::batch::Batch;
use super::core::{Core, blocking};
use super::crier::Cry;
use super::destination::Destination;
use super::error::DownloadFailure;
use super::library::{Entry, EntryState, Home, Sight};
use super::looking::{Looking, LookingKind, Note};
use super::report::Notice;
use super::transfer::{Queue, Transfer};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::limits;
use crate::manifest::Manifest;
use crate::swarm::download::{Download, DownloadError, Report};
use crate::swarm::hashing;
use crate::swarm::meter::Meter;
use crate::swarm::session::{Swarm, SwarmKey};
use crate::swarm::sidecars::Sidecars;
use crate::swarm::stamp::Stamp;
use crate::swarm::storage::{PieceStore, StorageError, part_path};

/// A download that was stopped has let go of its part file after this: what was being written is, and
/// the record says so.
const LETTING_GO: Duration = limits::DRAIN;

/// Numbered forms of a name that are looked at for a file that got its name just before a crash.
const NUMBERED: u32 = 9;

/// What is there of a content that is to be downloaded.
pub(super) enum Found {
    /// Nothing or some of it, in its part file.
    Part(Unclaimed),
    /// All of it, in a file that has its name already.
    Whole(Arc<PieceStore>),
}

/// A part file that was just opened. Dropped before a download claims it, it is let go: what was made
/// for it is gone again, what was found stays. That blocks.
pub(super) struct Unclaimed {
    store: Option<Arc<PieceStore>>,
    /// Whether there was none before.
    made: bool,
}

impl Unclaimed {
    /// The open part file.
    pub(super) fn store(&self) -> Arc<PieceStore> {
        self.store.clone().expect("invariant: only claiming it takes it out")
    }

    /// From now on a download has it.
    pub(super) fn claim(mut self) {
        self.store = None;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        match self.store.take() {
            Some(store) if self.made => store.discard(),
            Some(store) => store.release(),
            None => {}
        }
    }
}

/// A place among the downloads that run side by side.
pub(super) type Turn = OwnedSemaphorePermit;

/// When a download is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// At once.
    Now,
    /// When it is its turn: so many run side by side, but for those that do not move.
    InTurn,
}

/// A download that ended.
struct Ended {
    transfer: Transfer,
    store: Arc<PieceStore>,
    result: Result<std::path::PathBuf, DownloadError>,
}

impl Core {
    /// Takes up downloads that were begun before: entries of one content that go to one place.
    /// What is there is looked at meanwhile. Unless begun `anew`, a part file must be there.
    pub(super) fn take_up(self: &Arc<Self>, keys: &[SwarmKey], anew: bool, begin: Begin) {
        let (transfer, queue) = Transfer::new(keys, &self.stop);
        let mut first = None;
        let mut library = self.library();
        for key in keys {
            let Some(entry) = library.find_mut(*key) else { continue };
            (entry.state, entry.queued) = (EntryState::Checking, begin == Begin::InTurn);
            entry.transfer = Some(transfer.clone());
            first.get_or_insert_with(|| entry.clone());
        }
        drop(library);
        self.changed.notify_waiters();
        let Some(entry) = first else { return };
        let core = self.clone();
        self.tasks.spawn(async move {
            let turn = match begin {
                Begin::Now => Some(None),
                Begin::InTurn => core.turn(&transfer).await.map(Some),
            };
            match turn {
                Some(turn) => core.open_and_start(entry, transfer, queue, anew, turn).await,
                // The agent ends, or nobody wants it any more.
                None => core.let_go(&transfer, None),
            }
        });
    }

    /// Waits for the turn of a download; nothing when it is stopped before.
    async fn turn(&self, transfer: &Transfer) -> Option<Turn> {
        let turn = tokio::select! {
            turn = self.turns.clone().acquire_owned() => turn.ok()?,
            () = transfer.stop.cancelled() => return None,
        };
        let mut library = self.library();
        for key in transfer.swarms.all() {
            if let Some(entry) = library.find_mut(key).filter(|entry| entry.is_run_by(transfer)) {
                entry.queued = false;
            }
        }
        Some(turn)
    }

    async fn open_and_start(
        self: Arc<Self>,
        entry: Entry,
        transfer: Transfer,
        queue: Queue,
        anew: bool,
        turn: Option<Turn>,
    ) {
        let Home::Part(to) = entry.home.clone() else { return };
        let look = self.looks.begin(Looking {
            kind: LookingKind::Checking,
            group: entry.group.clone(),
            name: entry.name.clone(),
            path: entry.path(),
            done_bytes: 0,
            size: entry.size(),
        });
        let found = tokio::select! {
            found = self.open(&entry.manifest, &to, look.note(), anew) => found,
            // The agent ends, or nobody wants it any more.
            () = transfer.stop.cancelled() => Err(StorageError::Released(entry.path())),
        };
        drop(look);
        match found {
            Ok(Found::Part(part)) => {
                let (store, before) = (part.store(), entry.meter.as_deref());
                let started = self.start_download(&transfer, queue, &store, to, before, turn);
                match started.is_empty() {
                    true => {
                        blocking(move || drop(part)).await;
                        self.let_go(&transfer, None);
                    }
                    false => part.claim(),
                }
                let came_back = |key: &SwarmKey| {
                    self.library().find(*key).is_some_and(|entry| entry.batch.is_none())
                };
                for key in started.into_iter().filter(came_back) {
                    self.notify_of(key, |group, name| Notice::Resumed { group, name });
                }
            }
            Ok(Found::Whole(store)) => {
                let path = store.path();
                self.complete(&transfer, &store, &path).await;
                // What came of it before it was whole elsewhere.
                self.drop_part_in(entry.manifest.content_id(), to.directory).await;
            }
            Err(error) => {
                if !transfer.stop.is_cancelled() {
                    self.not_opened(&transfer, &error);
                }
                self.let_go(&transfer, None);
            }
        }
        self.changed.notify_waiters();
    }

    /// Opens the part file of a download, unless all of it is where it is to be already: begun
    /// `anew`, a part file need not be there. A download that was stopped a moment ago may still have
    /// it: that lets go of it soon.
    pub(super) async fn open(
        &self,
        manifest: &Arc<Manifest>,
        to: &Destination,
        note: Note,
        anew: bool,
    ) -> Result<Found, StorageError> {
        let begun = clock::monotonic();
        loop {
            let (manifest, to, note) = (manifest.clone(), to.clone(), note.clone());
            let sidecars = self.registry.sidecars().clone();
            let path = part_path(&to.directory, manifest.content_id());
            let place = path.clone();
            let opened = tokio::task::spawn_blocking(move || {
                let is_there = path.symlink_metadata().is_ok();
                let whole = match (is_there, anew) {
                    (true, false) => None,
                    (true, true) => find_whole(&manifest, &to, 0, (&sidecars, &note)),
                    // Perhaps it got its name, and the machine stopped before that was kept.
                    (false, _) => find_whole(&manifest, &to, NUMBERED, (&sidecars, &note)),
                };
                if let Some(store) = whole {
                    return Ok(Found::Whole(Arc::new(store)));
                }
                // Nobody waits for it any more.
                if !note.goes_on() {
                    return Err(StorageError::Released(path));
                }
                // The directory may be an empty mount point.
                if !is_there && !anew {
                    return Err(StorageError::Gone(path));
                }
                let store = PieceStore::part(manifest, &to.directory, &|done| note.done(done))?;
                Ok(Found::Part(Unclaimed { store: Some(Arc::new(store)), made: !is_there }))
            });
            match opened.await {
                Ok(Err(StorageError::InUse(_))) if begun.elapsed() < LETTING_GO => {
                    tokio::time::sleep(LETTING_GO / 150).await;
                }
                Ok(opened) => return opened,
                Err(error) => {
                    let error = std::io::Error::other(error);
                    return Err(StorageError::Io { path: place, error });
                }
            }
        }
    }

    /// Starts a download whose part file is open, for those of its entries that still want it;
    /// returns them. When there are none, `store` is to be let go.
    pub(super) fn start_download(
        self: &Arc<Self>,
        transfer: &Transfer,
        queue: Queue,
        store: &Arc<PieceStore>,
        to: Destination,
        before: Option<&Meter>,
        turn: Option<Turn>,
    ) -> Vec<SwarmKey> {
        let stored_bytes = stored_bytes(store);
        let meter = Arc::new(Meter::new(stored_bytes));
        if let Some(before) = before.map(Meter::progress) {
            // What peers gave in this run of the agent is not forgotten with a pause.
            meter.change(|progress| {
                progress.sources = before.sources;
                progress.sources.values_mut().for_each(|source| source.connected = false);
            });
        }
        let mut library = self.library();
        let (mut wanted, mut begun) = (Vec::new(), Vec::new());
        for key in transfer.swarms.all() {
            let entry = library.find_mut(key).filter(|entry| entry.is_run_by(transfer));
            let Some(entry) = entry.filter(|entry| entry.state == EntryState::Checking) else {
                continue;
            };
            (entry.state, entry.waits) = (EntryState::Downloading, None);
            entry.store = Some(store.clone());
            entry.meter = Some(meter.clone());
            entry.kept_bytes = stored_bytes;
            if std::mem::take(&mut entry.fresh) {
                begun.push(key);
            }
            let news = Some(transfer.news.clone());
            self.registry.add_swarm(Arc::new(Swarm { key, store: store.clone(), news }));
            wanted.push(key);
        }
        self.save_of(&library, &begun);
        drop(library);
        if wanted.is_empty() {
            return wanted;
        }
        let (reports, heard) = mpsc::channel(limits::REPORT_QUEUE);
        let download = Download {
            swarms: transfer.swarms.clone(),
            store: store.clone(),
            directory: to.directory,
            name: to.name,
            news: queue,
            reports,
            registry: self.registry.clone(),
            meter,
            stop: transfer.stop.clone(),
            seed: fastrand::u64(..),
        };
        let (core, transfer) = (self.clone(), transfer.clone());
        self.tasks.spawn(async move { core.run_download(download, heard, transfer, turn).await });
        wanted
    }

    /// A download from its first peer to its end.
    async fn run_download(
        self: Arc<Self>,
        download: Download,
        mut reports: mpsc::Receiver<Report>,
        transfer: Transfer,
        mut turn: Option<Turn>,
    ) {
        let (store, meter) = (download.store.clone(), download.meter.clone());
        for key in transfer.swarms.all() {
            // Without a ticket nobody can be asked; all is taken up once there is one.
            if self.groups().is_proven(key.group) {
                self.crier.put(key, Cry::WANTED);
            }
        }
        let attend = async {
            while let Some(report) = reports.recv().await {
                if matches!(report, Report::Held(_)) {
                    // Others may move meanwhile.
                    drop(turn.take());
                }
                self.attend(&transfer, report);
            }
        };
        let mut result = tokio::select! {
            result = download.run() => result,
            () = async { attend.await; std::future::pending().await } => return,
        };
        meter.end();
        drop(turn);
        if result.is_err() {
            // What is there is kept for a later attempt, which need not look at it again.
            let discard =
                matches!(&result, Err(DownloadError::Storage(error)) if error.is_false_manifest());
            let closing = store.clone();
            let let_go = move || if discard { closing.discard() } else { closing.release() };
            if let Err(error) = tokio::task::spawn_blocking(let_go).await {
                tracing::error!(%error, "letting go of a part file failed in itself");
            }
            // It may have got its name in the very moment in which it was stopped.
            if store.stamp().is_some() {
                result = Ok(store.path());
            }
        }
        self.ended(Ended { transfer, store, result }).await;
    }

    async fn ended(self: &Arc<Self>, Ended { transfer, store, result }: Ended) {
        match result {
            Ok(path) => self.complete(&transfer, &store, &path).await,
            // Paused, or the agent ends: whoever else stopped it has taken it out of the library.
            Err(_) if transfer.stop.is_cancelled() => self.let_go(&transfer, Some(&store)),
            Err(error) => {
                tracing::error!(%error, "download failed");
                let which = || transfer.swarms.all();
                let keys = self.fail(which, &DownloadFailure::from(&error));
                self.let_go(&transfer, Some(&store));
                for key in keys {
                    // What cannot be said now ends with the connection.
                    let _ = self.withdraw(key).await;
                }
            }
        }
    }

    /// A download has let go of its part file: so do its entries, and whoever waits for that hears
    /// of it.
    fn let_go(&self, transfer: &Transfer, store: Option<&Arc<PieceStore>>) {
        let kept_bytes = store.map(stored_bytes);
        let mut library = self.library();
        let held = library.iter().filter(|(_, entry)| entry.is_run_by(transfer));
        let keys: Vec<_> = held.map(|(key, _)| key).collect();
        for key in &keys {
            let Some(entry) = library.find_mut(*key) else { continue };
            (entry.transfer, entry.store) = (None, None);
            entry.kept_bytes = kept_bytes.unwrap_or(entry.kept_bytes);
        }
        drop(library);
        self.save(&keys);
        transfer.over.cancel();
        self.changed.notify_waiters();
    }

    /// A download is whole and has its name: it is served from there.
    async fn complete(&self, transfer: &Transfer, store: &Arc<PieceStore>, path: &Path) {
        tracing::info!(path = %path.display(), "download complete");
        let mut notices = Vec::new();
        let keys = {
            // Nobody joins the download between this and its end.
            let mut library = self.library();
            let mut keys = transfer.swarms.all();
            keys.retain(|key| {
                let entry = library.find_mut(*key).filter(|entry| entry.is_run_by(transfer));
                let Some(entry) = entry else { return false };
                self.registry.unwant(*key);
                let swarm = Swarm { key: *key, store: store.clone(), news: None };
                self.registry.add_swarm(Arc::new(swarm));
                // One that was changed in the meantime looks like nothing.
                let nothing = Stamp { size: 0, modified: (0, 0), inode: (0, 0) };
                let stamp = store.stamp().unwrap_or(nothing);
                entry.home = Home::File { path: path.to_owned(), stamp };
                (entry.state, entry.sight) = (EntryState::Seeding, Sight::Here);
                (entry.store, entry.transfer) = (Some(store.clone()), None);
                let (group, name) = (entry.group.clone(), entry.name.clone());
                let (path, of_many) = (path.to_owned(), entry.batch.is_some());
                notices.push(Notice::Downloaded { group, name, path, of_many });
                (entry.fresh, entry.queued) = (false, false);
                true
            });
            keys
        };
        self.save(&keys);
        transfer.over.cancel();
        notices.into_iter().for_each(|notice| self.notify(notice));
        self.tell_batches(&keys);
        self.changed.notify_waiters();
        for key in keys {
            self.registry.tell_again(key);
            self.present(key).await;
        }
    }

    /// Does what a download wants done, and passes on what it says.
    fn attend(self: &Arc<Self>, transfer: &Transfer, report: Report) {
        for key in transfer.swarms.all() {
            let entry = self.library().find(key).filter(|entry| entry.is_fetched()).cloned();
            let Some(Entry { group, name, batch, .. }) = entry else { continue };
            let is_news = |is_held| batch.as_ref().is_none_or(|batch| batch.held(is_held));
            match &report {
                Report::PeersWanted => _ = self.crier.put(key, Cry::PEERS),
                Report::Held(hold) if !is_news(true) => {
                    tracing::debug!(%group, %name, %hold, "does not move, as others");
                }
                Report::Moves if !is_news(false) => {}
                Report::Held(hold) => {
                    self.notify(Notice::Held { group, name, hold: hold.clone() });
                }
                Report::Moves => self.notify(Notice::Moves { group, name }),
                Report::Finishing => self.library().set_stage(key, EntryState::Finishing),
                Report::Downloading => self.library().set_stage(key, EntryState::Downloading),
            }
        }
    }

    /// Marks downloads as failed, and leaves their swarms; a false manifest is its publisher's doing.
    /// Nobody joins them between `which` being asked and that. Returns which they were.
    pub(super) fn fail(
        &self,
        which: impl FnOnce() -> Vec<SwarmKey>,
        failure: &DownloadFailure,
    ) -> Vec<SwarmKey> {
        let mut library = self.library();
        let keys = which();
        let mut notices = Vec::new();
        for key in &keys {
            self.registry.rest_swarm(*key, ErrorCode::Done);
            let Some(entry) = library.find_mut(*key) else { continue };
            let failure = match (failure.code.as_str(), &entry.publisher) {
                ("false-manifest", Some(user)) => DownloadFailure::false_manifest(failure, user),
                _ => failure.clone(),
            };
            entry.kept_bytes = entry.stored_bytes();
            if let Some(transfer) = &entry.transfer {
                transfer.leave(*key);
            }
            // For others it may go on; one that ends has its part file for a moment more.
            entry.transfer = entry.transfer.take().filter(|own| own.stop.is_cancelled());
            entry.state = EntryState::Failed(failure.clone());
            (entry.store, entry.waits) = (None, None);
            let (group, name) = (entry.group.clone(), entry.name.clone());
            notices.push(Notice::DownloadFailed { group, name, failure });
        }
        drop(library);
        self.save(&keys);
        notices.into_iter().for_each(|notice| self.notify(notice));
        self.tell_batches(&keys);
        self.changed.notify_waiters();
        keys
    }

    /// Tells of those who were asked for together with these that all are over, where that is so.
    fn tell_batches(&self, keys: &[SwarmKey]) {
        let notices: Vec<_> = {
            let library = self.library();
            let batches = keys.iter().filter_map(|key| library.find(*key)?.batch.clone());
            let mut batches: Vec<Arc<Batch>> = batches.collect();
            batches.dedup_by(|one, other| Arc::ptr_eq(one, other));
            let is_of = |entry: &Entry, batch: &Arc<Batch>| {
                entry.batch.as_ref().is_some_and(|own| Arc::ptr_eq(own, batch))
            };
            batches.retain(|batch| {
                !library.any(|_, entry| entry.state.is_under_way() && is_of(entry, batch))
            });
            let notice = |batch: Arc<Batch>| {
                let own = || library.iter().filter(|(_, entry)| is_of(entry, &batch));
                let failed = |entry: &Entry| matches!(entry.state, EntryState::Failed(_));
                Notice::DownloadedMany {
                    files: own().filter(|(_, entry)| entry.state == EntryState::Seeding).count(),
                    failed: own().filter(|(_, entry)| failed(entry)).count(),
                    group: batch.group.clone(),
                    path: batch.directory.clone(),
                }
            };
            batches.into_iter().map(notice).collect()
        };
        notices.into_iter().for_each(|notice| self.notify(notice));
    }

    /// The place of a download cannot be used. Where that may change by itself, it is tried again as
    /// soon as there is a part file, and with the next start.
    fn not_opened(&self, transfer: &Transfer, error: &StorageError) {
        tracing::warn!(%error, "download not taken up");
        let failure = DownloadFailure::from(error);
        let mut library = self.library();
        let (mut notices, mut changed) = (Vec::new(), Vec::new());
        for key in &transfer.swarms.all() {
            let entry = library.find_mut(*key).filter(|entry| entry.is_run_by(transfer));
            let Some(entry) = entry.filter(|entry| entry.state == EntryState::Checking) else {
                continue;
            };
            (entry.state, entry.transfer) = (EntryState::Failed(failure.clone()), None);
            // A check that was stopped has the part file until it has noticed.
            let heals = error.can_heal() || matches!(error, StorageError::InUse(_));
            let waits = heals.then(|| failure.clone());
            // What is tried again and again is told, and kept, once.
            if waits.is_none() || entry.waits != waits {
                changed.push(*key);
                let (group, name) = (entry.group.clone(), entry.name.clone());
                notices.push(Notice::DownloadFailed { group, name, failure: failure.clone() });
            }
            entry.waits = waits;
        }
        drop(library);
        self.save(&changed);
        notices.into_iter().for_each(|notice| self.notify(notice));
    }

    /// Waits a while until downloads that were stopped have let go of their part files: their records
    /// are clean then. A disk that hangs is not waited for.
    pub(super) async fn until_let_go(&self, transfers: Vec<Transfer>) {
        let all = async {
            for transfer in transfers.into_iter().filter(|one| one.stop.is_cancelled()) {
                transfer.over.cancelled().await;
            }
        };
        let _ = tokio::time::timeout(LETTING_GO, all).await;
    }

    /// Waits until nothing of a content is being checked.
    pub(super) async fn until_checked(&self, which: impl Fn(SwarmKey, &Entry) -> bool) {
        loop {
            let changed = self.changed.notified();
            let checking = |entry: &Entry| entry.state == EntryState::Checking || entry.is_unseen();
            if !self.library().any(|key, entry| checking(entry) && which(key, entry)) {
                return;
            }
            changed.await;
        }
    }

    /// Tells of an entry, if it is still there.
    pub(super) fn notify_of(
        &self,
        key: SwarmKey,
        notice: impl FnOnce(crate::name::GroupName, crate::name::FileName) -> Notice,
    ) {
        let entry = self.library().find(key).cloned();
        if let Some(Entry { group, name, .. }) = entry {
            self.notify(notice(group, name));
        }
    }
}

/// Bytes of the pieces that are here.
pub(super) fn stored_bytes(store: &Arc<PieceStore>) -> u64 {
    let layout = store.manifest().layout();
    store.bitfield().iter().map(|piece| u64::from(layout.len(piece))).sum()
}

/// The file that is wanted, if it is where it is to be already: under its name, or under one of so
/// many numbered forms of it. Blocks.
pub(super) fn find_whole(
    manifest: &Arc<Manifest>,
    to: &Destination,
    numbered: u32,
    (sidecars, note): (&Sidecars, &Note),
) -> Option<PieceStore> {
    let names = (1..=numbered).map(|number| to.name.numbered(number));
    for name in std::iter::once(to.name.as_str().to_owned()).chain(names) {
        let path = to.directory.join(name);
        // One number may be free, and the next not.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if !metadata.is_file() || metadata.len() != manifest.layout().size() {
            continue;
        }
        let new = sidecars.begin(metadata.len());
        match hashing::hash_and_mark(&path, new.as_ref(), &|done| note.done(done)) {
            Ok((found, stamp)) if found.content_id() == manifest.content_id() => {
                new.into_iter().for_each(|new| new.keep(manifest.content_id()));
                return Some(PieceStore::whole(manifest.clone(), path, stamp));
            }
            _ => {}
        }
    }
    None
}
