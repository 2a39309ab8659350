//! A disk in memory that fails when told to and forgets what was not synced when the power goes.
//!
//! A power cut keeps what was synced. Of every 4 KiB block written since, it keeps the old, the new,
//! or some bytes of both; of the directory changes since a directory was synced, the first few. A
//! sync that fails calls its blocks written, as Linux does, and never writes them by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};
use super::stamp::Stamp;

const BLOCK: usize = 4096;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// EIO; nothing was done.
    Eio,
    /// ENOSPC; nothing was done.
    Full,
    /// Half of a write was done, then EIO. Other operations fail as with [`Self::Eio`].
    Short,
}

/// When operations fail, counted from one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    /// The first that fails, and how.
    pub(super) fail: Option<(usize, Fault)>,
    /// Whether all after it fail as well.
    pub(super) for_good: bool,
    /// The operation at which the power goes: it and all after fail, and none changes anything.
    pub(super) cut_at: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Blocks written since the last sync.
    dirty: BTreeSet<usize>,
    /// Blocks that a failed sync called written.
    forsaken: BTreeSet<usize>,
    /// Blocks that cannot be read until they are written.
    unreadable: BTreeSet<usize>,
    /// Blocks ever written.
    blocks: BTreeSet<usize>,
    modified: i64,
    locked: bool,
}

#[derive(Clone, Debug)]
enum Named {
    Directory,
    File(u64),
}

/// A change of names that a directory sync makes durable.
#[derive(Clone, Debug)]
enum Change {
    Add(PathBuf, Named),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Named),
}

type Names = BTreeMap<PathBuf, Named>;

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Add(path, named) => _ = names.insert(path.clone(), named.clone()),
            Self::Remove(path) => _ = names.remove(path),
            Self::Rename(from, to, named) => {
                names.remove(from);
                names.insert(to.clone(), named.clone());
            }
        }
    }

    fn touches(&self, directory: &Path) -> bool {
        let inside = |path: &Path| path.parent() == Some(directory);
        match self {
            Self::Add(path, _) | Self::Remove(path) => inside(path),
            Self::Rename(from, to, _) => inside(from) || inside(to),
        }
    }
}

/// All that is on the disk, or on its way there.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    nodes: BTreeMap<u64, Node>,
    names: Names,
    durable_names: Names,
    changes: Vec<Change>,
    last_inode: u64,
    clock: i64,
    /// Operations so far.
    pub(super) operations: usize,
    /// Syncs of files and directories so far.
    pub(super) syncs: usize,
    /// What goes wrong.
    pub(super) plan: Plan,
    /// Whether there is room for records, but for no piece.
    pub(super) full: bool,
    /// The name that the next file gets just before it is locked: another process finished it.
    pub(super) finished_as: Option<PathBuf>,
    /// Whether the clock stands still.
    pub(super) frozen: bool,
    /// Nothing is in memory: whoever reads waits for it.
    pub(super) cold: bool,
    /// Bytes read from files.
    pub(super) bytes_read: u64,
}

/// A handle to the disk, which outlives every store on it.
#[derive(Clone, Default)]
pub(super) struct MemoryDisk(Arc<Mutex<Image>>);

impl MemoryDisk {
    /// A disk with one empty directory.
    pub(super) fn with(directory: &Path) -> Self {
        let disk = Self::default();
        disk.make_directory(directory);
        disk
    }

    pub(super) fn image(&self) -> MutexGuard<'_, Image> {
        self.0.lock().expect("no panic")
    }

    /// The same as a seam.
    pub(super) fn seam(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Makes a directory durably, as somebody else would have.
    pub(super) fn make_directory(&self, directory: &Path) {
        let mut image = self.image();
        image.names.insert(directory.to_owned(), Named::Directory);
        image.durable_names.insert(directory.to_owned(), Named::Directory);
    }

    /// Removes a name, and all below it, by somebody else's hand; what is open stays open.
    pub(super) fn remove_tree(&self, path: &Path) {
        let mut image = self.image();
        image.names.retain(|name, _| !name.starts_with(path));
        image.durable_names.retain(|name, _| !name.starts_with(path));
    }

    /// Moves a name, and all below it.
    pub(super) fn move_tree(&self, from: &Path, to: &Path) {
        let mut image = self.image();
        let moved = |name: PathBuf| match name.strip_prefix(from) {
            Ok(below) if below.as_os_str().is_empty() => to.to_owned(),
            Ok(below) => to.join(below),
            Err(_) => name,
        };
        image.names =
            std::mem::take(&mut image.names).into_iter().map(|(n, x)| (moved(n), x)).collect();
    }

    /// A durable file with this content.
    pub(super) fn put(&self, path: &Path, content: &[u8]) {
        let mut image = self.image();
        image.last_inode += 1;
        image.clock += 1;
        let (inode, modified) = (image.last_inode, image.clock);
        let blocks = (0..content.len().div_ceil(BLOCK)).collect();
        let durable = content.to_vec();
        let node = Node { content: durable.clone(), durable, blocks, modified, ..Node::default() };
        image.nodes.insert(inode, node);
        image.names.insert(path.to_owned(), Named::File(inode));
        image.durable_names.insert(path.to_owned(), Named::File(inode));
    }

    /// Changes bytes of a file as a failing disk would: no time changes.
    pub(super) fn rot(&self, path: &Path, offset: usize) {
        let mut image = self.image();
        let node = image.node_at(path).expect("a file");
        node.content[offset] ^= 1;
        if let Some(byte) = node.durable.get_mut(offset) {
            *byte ^= 1;
        }
    }

    /// Makes a block of a file unreadable, until it is written.
    pub(super) fn break_block(&self, path: &Path, offset: usize) {
        self.image().node_at(path).expect("a file").unreadable.insert(offset / BLOCK);
    }

    /// Makes every block of a file readable again.
    pub(super) fn mend(&self, path: &Path) {
        self.image().node_at(path).expect("a file").unreadable.clear();
    }

    /// The content of a file.
    pub(super) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        self.image().node_at(path).map(|node| node.content.clone())
    }

    /// Every name.
    pub(super) fn names(&self) -> Vec<PathBuf> {
        self.image().names.keys().cloned().collect()
    }

    /// Sets what goes wrong from now on, and counts operations anew.
    pub(super) fn plan(&self, plan: Plan) {
        let mut image = self.image();
        image.operations = 0;
        image.plan = plan;
    }

    /// What a machine finds after the power cut, one of many possibilities.
    pub(super) fn after_power_cut(&self, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut image = self.image().clone();
        for change in &image.changes[..rng.usize(..=image.changes.len())] {
            change.apply(&mut image.durable_names);
        }
        image.changes.clear();
        image.names = image.durable_names.clone();
        let names = image.names.clone();
        let parent_is_there = |path: &Path| {
            path.ancestors().skip(1).all(|above| {
                above.parent().is_none_or(|root| root.parent().is_none())
                    || names.contains_key(above)
            })
        };
        image.names.retain(|path, _| parent_is_there(path));
        image.durable_names = image.names.clone();
        for node in image.nodes.values_mut() {
            node.cut(&mut rng);
        }
        image.plan = Plan::default();
        Self(Arc::new(Mutex::new(image)))
    }

    fn operate(&self) -> Result<MutexGuard<'_, Image>, (MutexGuard<'_, Image>, Fault)> {
        let mut image = self.image();
        image.operations += 1;
        let now = image.operations;
        if image.plan.cut_at.is_some_and(|at| now >= at) {
            return Err((image, Fault::Eio));
        }
        match image.plan.fail {
            Some((at, fault)) if now == at || now > at && image.plan.for_good => {
                Err((image, fault))
            }
            _ => Ok(image),
        }
    }

    fn plain(&self) -> io::Result<MutexGuard<'_, Image>> {
        self.operate().map_err(|(_, fault)| fault.into())
    }

    fn handle(&self, inode: u64, writes: bool) -> Box<dyn DiskFile> {
        Box::new(Handle { disk: self.clone(), inode, writes, holds_lock: Mutex::new(false) })
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryDisk")
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full => io::ErrorKind::StorageFull.into(),
            Fault::Eio | Fault::Short => Self::other("injected"),
        }
    }
}

impl Node {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.content.len() < end {
            self.content.resize(end, 0);
        }
        self.content[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            for block in offset / BLOCK..=(end - 1) / BLOCK {
                self.dirty.insert(block);
                self.unreadable.remove(&block);
                self.blocks.insert(block);
            }
        }
    }

    fn set_len(&mut self, len: usize) {
        self.content.resize(len, 0);
        self.blocks.retain(|block| block * BLOCK < len);
    }

    /// Brings the dirty blocks, and no others, to the disk.
    fn sync(&mut self) {
        self.durable.resize(self.content.len(), 0);
        for block in std::mem::take(&mut self.dirty) {
            self.forsaken.remove(&block);
            let range = block * BLOCK..(block * BLOCK + BLOCK).min(self.content.len());
            if !range.is_empty() {
                self.durable[range.clone()].copy_from_slice(&self.content[range]);
            }
        }
    }

    fn fail_sync(&mut self) {
        self.forsaken.append(&mut self.dirty);
    }

    fn cut(&mut self, rng: &mut fastrand::Rng) {
        self.locked = false;
        if rng.bool() {
            self.durable.resize(self.content.len(), 0);
        }
        let len = self.durable.len();
        for block in self.dirty.union(&self.forsaken) {
            let start = block * BLOCK;
            let end = (start + BLOCK).min(len).min(self.content.len());
            if start >= end {
                continue;
            }
            // The old, the new, or the first bytes of the new.
            let torn = [start, end, rng.usize(start..=end)][rng.usize(..3)];
            self.durable[start..torn].copy_from_slice(&self.content[start..torn]);
        }
        let holds = |block: &usize| {
            let start = block * BLOCK;
            start < len && self.durable[start..(start + BLOCK).min(len)].iter().any(|b| *b != 0)
        };
        self.blocks.retain(holds);
        self.dirty.clear();
        self.forsaken.clear();
        self.content = self.durable.clone();
    }
}

impl Image {
    fn node_at(&mut self, path: &Path) -> Option<&mut Node> {
        match self.names.get(path)? {
            Named::File(inode) => self.nodes.get_mut(inode),
            Named::Directory => None,
        }
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        self.parent(path)?;
        match self.names.get(path) {
            Some(Named::File(inode)) => Ok(*inode),
            Some(Named::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().expect("never the root");
        match self.names.get(parent) {
            Some(Named::Directory) => Ok(()),
            _ if parent.parent().is_none() => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn free(&self, path: &Path) -> io::Result<()> {
        self.parent(path)?;
        match self.names.contains_key(path) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn tick(&mut self) -> i64 {
        if !self.frozen {
            self.clock += 1;
        }
        self.clock
    }

    fn stamp(&self, inode: u64) -> Stamp {
        let node = &self.nodes[&inode];
        Stamp { size: node.content.len() as u64, modified: (node.modified, 0), inode: (1, inode) }
    }
}

impl Disk for MemoryDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut image = self.plain()?;
        image.free(path)?;
        image.change(Change::Add(path.to_owned(), Named::Directory));
        Ok(())
    }

    fn is_dir_in(&self, path: &Path, _parent: &Path) -> io::Result<bool> {
        match self.plain()?.names.get(path) {
            Some(named) => Ok(matches!(named, Named::Directory)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut image = self.plain()?;
        if image.names.keys().any(|name| name.parent() == Some(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if !image.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        image.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut image = self.plain()?;
        image.free(path)?;
        image.last_inode += 1;
        let (inode, modified) = (image.last_inode, image.tick());
        image.nodes.insert(inode, Node { modified, ..Node::default() });
        image.change(Change::Add(path.to_owned(), Named::File(inode)));
        drop(image);
        Ok(self.handle(inode, true))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.plain()?.file(path)?;
        Ok(self.handle(inode, true))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.plain()?.file(path)?;
        Ok(self.handle(inode, false))
    }

    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let image = self.plain()?;
        let content = &image.nodes[&image.file(path)?].content;
        Ok(content[..limit.min(content.len())].to_vec())
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        let image = self.plain()?;
        Ok(image.stamp(image.file(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut image = self.plain()?;
        let named = Named::File(image.file(from)?);
        image.parent(to)?;
        image.change(Change::Rename(from.to_owned(), to.to_owned(), named));
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut image = self.plain()?;
        let named = Named::File(image.file(from)?);
        image.free(to)?;
        image.change(Change::Rename(from.to_owned(), to.to_owned(), named));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut image = self.plain()?;
        image.file(path)?;
        image.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut image = self.plain()?;
        image.syncs += 1;
        if !image.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let changes = std::mem::take(&mut image.changes);
        for change in changes {
            if change.touches(path) {
                change.apply(&mut image.durable_names);
            } else {
                image.changes.push(change);
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Handle {
    disk: MemoryDisk,
    inode: u64,
    writes: bool,
    holds_lock: Mutex<bool>,
}

impl Handle {
    fn sync(&self) -> io::Result<()> {
        match self.disk.operate() {
            Ok(mut image) => {
                image.syncs += 1;
                image.nodes.get_mut(&self.inode).expect("nodes stay").sync();
                Ok(())
            }
            Err((mut image, fault)) => {
                if image.plan.cut_at.is_none() {
                    image.nodes.get_mut(&self.inode).expect("nodes stay").fail_sync();
                }
                Err(fault.into())
            }
        }
    }
}

impl DiskFile for Handle {
    fn try_lock(&self) -> io::Result<bool> {
        let mut image = self.disk.plain()?;
        if let Some(name) = image.finished_as.take() {
            let is_it = |named: &Named| matches!(named, Named::File(inode) if *inode == self.inode);
            image.names.retain(|_, named| !is_it(named));
            image.names.insert(name, Named::File(self.inode));
        }
        let node = image.nodes.get_mut(&self.inode).expect("nodes stay");
        let free = !std::mem::replace(&mut node.locked, true);
        *self.holds_lock.lock().expect("no panic") |= free;
        Ok(free)
    }

    fn names_and_owner(&self) -> io::Result<(u64, u32)> {
        drop(self.disk.plain()?);
        Ok((1, rustix::process::geteuid().as_raw()))
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(self.disk.plain()?.stamp(self.inode))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.disk.plain()?.nodes[&self.inode].content.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        assert!(self.writes, "opened for reading only");
        let mut image = self.disk.plain()?;
        let now = image.tick();
        let node = image.nodes.get_mut(&self.inode).expect("nodes stay");
        node.set_len(len as usize);
        node.modified = now;
        Ok(())
    }

    fn reserve(&self, _size: u64) -> io::Result<()> {
        self.disk.plain().map(|_| ())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut image = self.disk.plain()?;
        image.bytes_read += bytes.len() as u64;
        let Node { content, unreadable, .. } = &image.nodes[&self.inode];
        let range = offset as usize..offset as usize + bytes.len();
        if unreadable.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).next().is_some() {
            return Err(io::Error::other("a bad sector"));
        }
        bytes.copy_from_slice(content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn read_ready_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let is_cold = self.disk.plain()?.cold;
        if is_cold {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read_exact_at(bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(self.writes, "opened for reading only");
        let (mut image, written) = match self.disk.operate() {
            Ok(image) => (image, Ok(bytes)),
            Err((image, Fault::Short)) => (image, Err(Fault::Short)),
            Err((_, fault)) => return Err(fault.into()),
        };
        if image.full && bytes.len() > BLOCK {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let now = image.tick();
        let node = image.nodes.get_mut(&self.inode).expect("nodes stay");
        node.write(written.unwrap_or(&bytes[..bytes.len() / 2]), offset as usize);
        node.modified = now;
        Ok(written.map(|_| ())?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let image = self.disk.plain()?;
        let node = &image.nodes[&self.inode];
        let at = offset as usize / BLOCK;
        let Some(first) = node.blocks.range(at..).next().copied() else { return Ok(None) };
        let mut end = first;
        while node.blocks.contains(&end) {
            end += 1;
        }
        let start = (first * BLOCK).max(offset as usize) as u64;
        Ok(Some(start..((end * BLOCK).min(node.content.len())) as u64))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if *self.holds_lock.lock().expect("no panic") {
            let mut image = self.disk.image();
            image.nodes.get_mut(&self.inode).expect("nodes stay").locked = false;
        }
    }
}
