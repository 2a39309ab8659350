//! Where the bytes of one content are: a part file that fills, or a whole file.
//!
//! One door in: [`PieceStore::write_piece`] verifies, then writes. What goes out is verified too: a
//! disk that rots or a file that changes costs us a piece, never a peer's trust. Positioned reads
//! and writes, never mmap. An existing file is never opened for writing and never replaced.
//!
//! A disk that fails leaves the store as it was: what is here stays here, the piece that was not
//! written is missing, and [`PieceStore::recover`] goes on where it can. It does not wait, does not
//! retry, and knows no peers: when to try again is for who owns it. Everything here blocks.

use std::collections::BTreeSet;
use std::iter::once;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::buffers::Buffers;
use super::chunks::Chunks;
use super::claims::{Claims, Settling};
use super::disk::{Disk, RealDisk};
pub use super::filling::Recovered;
use super::filling::{Filling, Replacement, verify};
use super::midstates::{Link, Midstates};
use super::pace::Pace;
use super::part::{Left, Part};
pub use super::part::{MAX_NUMBERED, PART_DIR, part_path, remove_part};
use super::running_sha1::{FalsePiece, Linked, RunningSha1, Source};
use super::stamp::Stamp;
use super::storage_error::is_gone;
pub use super::storage_error::{ReadError, StorageError, WriteError};
use crate::bitfield::Bitfield;
use crate::manifest::Manifest;
use crate::piece::PieceIndex;

/// Pieces that are read back at once for the whole file's SHA-1: about a millisecond's work. More
/// than one, so that the SHA-1 gains on the pieces that wait for it.
const CATCH_UP: usize = 4;

/// Where the bytes of one content are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Part(Arc<Filling>),
    Whole {
        path: PathBuf,
        stamp: Stamp,
    },
    Changed {
        path: PathBuf,
    },
    /// Given up: nothing of it is open, and nobody is served from it.
    Released(Left),
}

/// What else came of verifying a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The whole file's SHA-1 has seen it, and needs this one next; nothing when it has seen all.
    Hashed(Option<PieceIndex>),
    /// Its midstates are so, and it is not needed again. Where nobody was at it, the whole file's SHA-1
    /// needs this one next.
    Proven(Option<Option<PieceIndex>>),
    /// The whole file's SHA-1 has not seen it.
    Apart,
}

/// What changes of a content on this machine.
#[derive(Debug)]
pub(super) struct State {
    pub(super) have: Bitfield,
    pub(super) place: Place,
    /// Pieces that went bad and nobody has been told of.
    lost: Vec<PieceIndex>,
    /// How often pieces went bad.
    pub(super) losses: u64,
    /// Pieces that could not be read, and may be readable when the disk is well again.
    pub(super) unreadable: BTreeSet<PieceIndex>,
    /// The directory in which the name of a finished file has not reached the disk.
    pub(super) unsynced_name: Option<PathBuf>,
}

/// One content on this machine.
///
/// Locks are taken in this order, each held shortly but for the first two: gate, SHA-1, links, claims,
/// state. Only the state's is ever taken to answer a peer whose piece is right.
#[derive(Debug)]
pub struct PieceStore {
    manifest: Arc<Manifest>,
    pub(super) disk: Arc<dyn Disk>,
    /// Shared by those who write pieces; alone by who closes, names or replaces the part file.
    gate: RwLock<()>,
    sha1: Mutex<RunningSha1>,
    /// What the SHA-1 is to be told by who has it next.
    links: Mutex<Vec<(PieceIndex, Link)>>,
    state: Mutex<State>,
    /// How long it took to read the last piece for a peer.
    pub(super) pace: Pace,
}

impl PieceStore {
    /// A whole file, hashed when it looked like `stamp`.
    pub fn whole(manifest: Arc<Manifest>, path: PathBuf, stamp: Stamp) -> Self {
        Self::whole_on(Arc::new(RealDisk), manifest, path, stamp)
    }

    pub(super) fn whole_on(
        disk: Arc<dyn Disk>,
        manifest: Arc<Manifest>,
        path: PathBuf,
        stamp: Stamp,
    ) -> Self {
        let have = Bitfield::all(manifest.layout());
        Self::new(disk, manifest, have, Place::Whole { path, stamp })
    }

    /// The part file of `manifest` for a download into `directory`: made and its room reserved,
    /// or found from an earlier attempt. After a clean stop it is as it was; otherwise every piece
    /// that may be in it is verified again. `progress` is told the bytes looked at, and ends that by
    /// returning `false`: the part file is let go as it was found.
    ///
    /// # Errors
    /// [`StorageError`], [`StorageError::Released`] when it was ended; nothing new is left behind then.
    pub fn part(
        manifest: Arc<Manifest>,
        directory: &Path,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<Self, StorageError> {
        Self::part_on(Arc::new(RealDisk), manifest, directory, progress)
    }

    pub(super) fn part_on(
        disk: Arc<dyn Disk>,
        manifest: Arc<Manifest>,
        directory: &Path,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<Self, StorageError> {
        let opened = Part::open(&disk, directory, &manifest, progress)?;
        let have = opened.have.clone();
        let filling = Filling::of(opened, manifest.clone());
        Ok(Self::new(disk, manifest, have, Place::Part(Arc::new(filling))))
    }

    fn new(disk: Arc<dyn Disk>, manifest: Arc<Manifest>, have: Bitfield, place: Place) -> Self {
        let sha1 = Mutex::new(RunningSha1::new(manifest.layout()));
        let state = Mutex::new(State {
            have,
            place,
            lost: Vec::new(),
            losses: 0,
            unreadable: BTreeSet::new(),
            unsynced_name: None,
        });
        let (gate, links) = (RwLock::new(()), Mutex::default());
        Self { manifest, disk, gate, sha1, links, state, pace: Pace::default() }
    }

    /// What the content is.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The pieces that are here.
    pub fn bitfield(&self) -> Bitfield {
        self.lock().have.clone()
    }

    /// How many pieces are not here.
    pub fn missing_count(&self) -> u32 {
        self.manifest.layout().piece_count() - self.lock().have.count()
    }

    /// A number that grows whenever pieces that were here went bad.
    pub fn losses(&self) -> u64 {
        self.lock().losses
    }

    /// Whether `piece` is here.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.lock().have.contains(piece)
    }

    /// Pieces that were here and went bad, since this was last asked: they must be fetched again,
    /// and nobody told any longer that they are here.
    pub fn take_lost(&self) -> Vec<PieceIndex> {
        self.lock().take_lost()
    }

    /// Whether the file was found changed; looks at it.
    pub fn is_changed(&self) -> bool {
        let place = self.lock().place.clone();
        match place {
            Place::Part(_) | Place::Released(_) => false,
            Place::Changed { .. } => true,
            Place::Whole { path, stamp } => {
                let changed = match self.disk.stamp(&path) {
                    Ok(now) => now != stamp,
                    // A disk that does not answer may have the file as it was.
                    Err(error) => is_gone(&error),
                };
                if changed {
                    self.mark_changed(path);
                }
                changed
            }
        }
    }

    /// Whether the file was found changed before; looks at nothing.
    pub fn known_changed(&self) -> bool {
        matches!(self.lock().place, Place::Changed { .. })
    }

    /// Where the bytes are now.
    pub fn path(&self) -> PathBuf {
        match &self.lock().place {
            Place::Part(filling) => filling.part().path().to_owned(),
            Place::Whole { path, .. } | Place::Changed { path } => path.clone(),
            Place::Released(left) => left.path().to_owned(),
        }
    }

    /// What the whole file looks like, when there is one.
    pub fn stamp(&self) -> Option<Stamp> {
        if let Place::Whole { stamp, .. } = self.lock().place { Some(stamp) } else { None }
    }

    /// Bytes of the part file that were read back for the whole file's SHA-1.
    pub fn reread_bytes(&self) -> u64 {
        self.lock_sha1().reread_bytes()
    }

    /// The pieces whose midstates are known to be those of the file.
    pub fn followed(&self) -> Bitfield {
        self.lock_sha1().followed().clone()
    }

    /// The piece that the whole file's SHA-1 needs next; nothing when it has seen all.
    pub fn next_to_hash(&self) -> Option<PieceIndex> {
        self.lock_sha1().next()
    }

    /// The one door in: verifies that `chunks` are `piece`, says so to `verified`, writes them, and only
    /// then counts the piece as here. Takes the whole file's SHA-1 further in the same go, and checks
    /// that of the piece, when that needs this very piece and nobody else is at it. With `midstates`, and
    /// chunks that were brought together, that needs no order.
    ///
    /// # Errors
    /// [`WriteError`]; the piece is missing then, and all else as it was.
    pub fn write_piece(
        &self,
        piece: PieceIndex,
        (chunks, midstates): (&Chunks, Option<&Midstates>),
        verified: impl FnOnce(Written),
    ) -> Result<Written, WriteError> {
        let written = match midstates.zip(chunks.joined()) {
            Some((midstates, bytes)) => {
                verify(&self.manifest, piece, chunks, None)?;
                let link = midstates.prove(bytes, self.manifest.piece(piece).sha1);
                if link.is_none() {
                    tracing::debug!(%piece, "came with midstates that are not so");
                }
                link.map_or(Written::Apart, |link| self.link(piece, link))
            }
            None => {
                let mut sha1 = self.try_lock_sha1().filter(|sha1| sha1.next() == Some(piece));
                verify(&self.manifest, piece, chunks, sha1.as_deref_mut())?;
                sha1.map_or(Written::Apart, |sha1| Written::Hashed(sha1.next()))
            }
        };
        verified(written);
        let _gate = self.share_gate();
        let filling = {
            let state = self.lock();
            match &state.place {
                // Written again, a file just named would look changed.
                Place::Part(filling) if !state.have.contains(piece) => filling.clone(),
                Place::Released(left) => return Err(left.error().into()),
                _ => return Ok(written),
            }
        };
        filling.write(piece, chunks)?;
        self.lock().have.insert(piece);
        Ok(written)
    }

    /// Takes the whole file's SHA-1 further, over pieces that were just written and follow each other,
    /// and over a few that are here and were not kept in memory; their own are checked too. The piece
    /// that it needs next; nothing when it has seen all.
    ///
    /// For one thread at a time: another would only wait.
    ///
    /// # Errors
    /// [`FalsePiece`].
    pub fn hash_ahead(
        &self,
        written: &[(PieceIndex, Chunks)],
    ) -> Result<Option<PieceIndex>, FalsePiece> {
        let mut sha1 = self.lock_sha1();
        for (piece, chunks) in written {
            let expected = self.manifest.piece(*piece).sha1;
            sha1.feed((*piece, expected), chunks.parts(), Source::Memory)?;
        }
        let Place::Part(filling) = self.lock().place.clone() else { return Ok(sha1.next()) };
        let buffers = Buffers::default();
        for _ in 0..CATCH_UP {
            let Some(next) = sha1.next().filter(|next| self.has(*next)) else { break };
            // What is here may have been linked meanwhile, before it was.
            self.tell_links(&mut sha1);
            if sha1.next() != Some(next) {
                continue;
            }
            // What cannot be read, or went bad, is for the end to find.
            let Ok(Some(buffer)) = filling.read(next, &buffers) else { break };
            if !self.feed_back(&mut sha1, next, buffer.as_ref())? {
                break;
            }
        }
        Ok(sha1.next())
    }

    /// Feeds the SHA-1 what was read back, if that is what it needs; whether it still is the piece. Its BLAKE3
    /// is taken again only where the SHA-1 does not say so.
    ///
    /// # Errors
    /// [`FalsePiece`].
    pub(super) fn feed_back(
        &self,
        sha1: &mut RunningSha1,
        piece: PieceIndex,
        bytes: &[u8],
    ) -> Result<bool, FalsePiece> {
        let expected = self.manifest.piece(piece).sha1;
        match sha1.feed((piece, expected), once(bytes), Source::Disk) {
            Ok(true) => Ok(true),
            Err(error) if self.manifest.is_piece(piece, bytes) => Err(error),
            Err(_) => Ok(false),
            Ok(false) => Ok(self.manifest.is_piece(piece, bytes)),
        }
    }

    /// Brings what was written to the disk, then a record that claims it: from here on a power cut
    /// takes none of it back. For every few seconds, not for every piece.
    ///
    /// # Errors
    /// [`StorageError`], also when the part file is not at its path any more.
    pub fn checkpoint(&self) -> Result<(), StorageError> {
        let Place::Part(filling) = self.lock().place.clone() else { return Ok(()) };
        self.settle(&filling, Settling::Midway)
    }

    /// The clean stop: a checkpoint whose record lets the next opening look at nothing. A write
    /// after it is safe, and makes the stop unclean again.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub fn close(&self) -> Result<(), StorageError> {
        let _gate = self.close_gate();
        self.close_behind_gate()
    }

    fn close_behind_gate(&self) -> Result<(), StorageError> {
        let Place::Part(filling) = self.lock().place.clone() else { return Ok(()) };
        filling.fall_asleep();
        self.settle(&filling, Settling::Clean)
    }

    /// The end of a download that will not go on: a clean stop where the disk allows it, and the
    /// part file and its lock are let go, whoever still has this store. What was here is neither
    /// read nor written any more, and the next [`Self::part`] finds it.
    pub fn release(&self) {
        let _gate = self.close_gate();
        if let Err(error) = self.close_behind_gate() {
            tracing::debug!(%error, "let go without a clean stop");
        }
        self.let_go();
    }

    /// Whoever is just using the part file keeps it until he is done, and finds it given up then.
    fn let_go(&self) -> Option<Arc<Filling>> {
        let mut state = self.lock();
        let Place::Part(filling) = state.place.clone() else { return None };
        state.place = Place::Released(filling.part().left());
        Some(filling)
    }

    /// Makes the place usable again after an error that [can heal](StorageError::can_heal), or says
    /// why it is not yet. Nothing that can still be read is fetched again: pieces are copied from
    /// the file that was open all the time if there is another, or none, at its path now. A
    /// directory that is gone must come back by itself.
    ///
    /// # Errors
    /// [`StorageError`]: not yet.
    pub fn recover(&self) -> Result<Recovered, StorageError> {
        let _gate = self.close_gate();
        let (before, place) = {
            let state = self.lock();
            (state.have.clone(), state.place.clone())
        };
        match place {
            Place::Part(filling) => {
                let tried = match filling.part().here() {
                    Ok(()) => self.revive(&filling),
                    gone => gone,
                };
                if let Err(error) = tried {
                    // Even where the file is the same, the disk may have been taken out and put
                    // back: what is open is then dead, and the file at the path free to be opened.
                    match self.replace(&filling) {
                        Err(StorageError::InUse(_)) if !matches!(error, StorageError::Gone(_)) => {
                            return Err(error);
                        }
                        result => result?,
                    }
                }
            }
            Place::Released(left) => return Err(left.error()),
            Place::Whole { .. } | Place::Changed { .. } => {}
        }
        let mut state = self.lock();
        let found = state.have.iter().filter(|piece| !before.contains(*piece)).collect();
        Ok(Recovered { lost: state.take_lost(), found })
    }

    /// The part file is where it was: tries it.
    fn revive(&self, filling: &Arc<Filling>) -> Result<(), StorageError> {
        let (have, doubtful) = {
            let state = self.lock();
            (state.have.clone(), state.unreadable.iter().copied().collect::<Vec<_>>())
        };
        for piece in filling.revive(&have, &doubtful)? {
            self.lose(filling, piece);
        }
        self.lock().unreadable.clear();
        self.settle(filling, Settling::Healing)
    }

    /// Another part file, or none, is at the path.
    fn replace(&self, old: &Arc<Filling>) -> Result<(), StorageError> {
        let Replacement { filling, have, lost } = old.replacement(&self.disk, &self.bitfield())?;
        let mut state = self.lock();
        if let Err(error) = state.still(old) {
            drop(state);
            filling.part().discard();
            return Err(error);
        }
        state.have = have;
        state.losses += u64::from(!lost.is_empty());
        state.lost.extend(lost);
        state.unreadable.clear();
        state.place = Place::Part(Arc::new(filling));
        Ok(())
    }

    /// Removes the part file of a download nobody wants, and what is beside it, and lets it go as
    /// [`Self::release`] does. Waits for nobody.
    pub fn discard(&self) {
        let filling = self.let_go();
        let place = self.lock().place.clone();
        match (filling, place) {
            (Some(filling), _) => filling.part().discard(),
            (None, Place::Released(left)) => left.remove(&*self.disk),
            _ => {}
        }
    }

    fn settle(&self, filling: &Arc<Filling>, why: Settling) -> Result<(), StorageError> {
        self.with_claims(filling, |claims| {
            // Only now, when nobody else can settle: the later has all that the earlier had.
            let have = self.bitfield();
            claims.settle(filling.part(), &self.manifest, &have, why)
        })
    }

    /// Works on the claims, and drops the pieces that were found bad meanwhile.
    pub(super) fn with_claims<T>(
        &self,
        filling: &Arc<Filling>,
        work: impl FnOnce(&mut Claims) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let mut claims = filling.lock_claims();
        let result = work(&mut claims);
        let lost = claims.take_lost();
        let mut state = self.lock();
        for piece in lost {
            state.drop_piece(piece);
        }
        result
    }

    /// A piece is not what it should be, or not any more.
    pub(super) fn lose(&self, filling: &Arc<Filling>, piece: PieceIndex) {
        let mut claims = filling.lock_claims();
        let mut state = self.lock();
        // What was read from a file that has been replaced says nothing of the new one.
        if state.still(filling).is_ok() {
            claims.forget(piece);
            state.drop_piece(piece);
            tracing::warn!(%piece, path = %filling.part().path().display(), "went bad on the disk");
        }
    }

    pub(super) fn mark_changed(&self, path: PathBuf) -> ReadError {
        self.lock().place = Place::Changed { path };
        ReadError::Changed
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_sha1(&self) -> MutexGuard<'_, RunningSha1> {
        self.up_to_date(self.sha1.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn try_lock_sha1(&self) -> Option<MutexGuard<'_, RunningSha1>> {
        self.sha1.try_lock().ok().map(|sha1| self.up_to_date(sha1))
    }

    fn up_to_date<'a>(&self, mut sha1: MutexGuard<'a, RunningSha1>) -> MutexGuard<'a, RunningSha1> {
        self.tell_links(&mut sha1);
        sha1
    }

    fn tell_links(&self, sha1: &mut RunningSha1) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.drain(..).for_each(|(piece, link)| _ = sha1.link(piece, link));
    }

    /// Tells the SHA-1 what a piece does to it, now or when whoever is at it is done: that may take long.
    fn link(&self, piece: PieceIndex, link: Link) -> Written {
        let Some(mut sha1) = self.try_lock_sha1() else {
            self.links.lock().unwrap_or_else(PoisonError::into_inner).push((piece, link));
            return Written::Proven(None);
        };
        match sha1.link(piece, link) {
            Linked::Taken => Written::Proven(Some(sha1.next())),
            Linked::Seen => Written::Hashed(sha1.next()),
            Linked::Astray => Written::Apart,
        }
    }

    fn share_gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Checks that `filling` is still what is filled.
    pub(super) fn still(&self, filling: &Arc<Filling>) -> Result<(), StorageError> {
        match &self.place {
            Place::Part(now) if Arc::ptr_eq(now, filling) => Ok(()),
            Place::Released(left) => Err(left.error()),
            _ => Err(StorageError::Gone(filling.part().path().to_owned())),
        }
    }

    fn take_lost(&mut self) -> Vec<PieceIndex> {
        let mut lost = std::mem::take(&mut self.lost);
        // It may have come again before anybody asked.
        lost.retain(|piece| !self.have.contains(*piece));
        lost
    }

    fn drop_piece(&mut self, piece: PieceIndex) {
        if self.have.remove(piece) {
            self.lost.push(piece);
            self.losses += 1;
        }
        self.unreadable.remove(&piece);
    }
}
