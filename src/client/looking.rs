//! What an agent is just looking at: files it hashes, part files it checks, and how far it is.
//!
//! Whoever looks holds a guard; what is dropped is looked at no longer, and the work behind it is
//! told to stop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::name::{FileName, GroupName};

/// Why something is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookingKind {
    /// It is to be shared.
    Hashing,
    /// It is to be downloaded, and may be here already, wholly or in part.
    Checking,
}

/// Something that is being looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looking {
    /// Why.
    pub kind: LookingKind,
    /// For which group.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// The file.
    pub path: PathBuf,
    /// Bytes looked at; counted about once a piece.
    pub done_bytes: u64,
    /// Bytes in all.
    pub size: u64,
}

#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    looks: BTreeMap<u64, (Looking, Arc<Progress>)>,
}

/// All that is being looked at.
#[derive(Clone, Debug, Default)]
pub struct Looks(Arc<Mutex<Inner>>);

impl Looks {
    /// Begins to look at something, from its first byte.
    pub fn begin(&self, looking: Looking) -> Look {
        let mut inner = self.lock();
        let (number, progress) = (inner.next, Arc::new(Progress::default()));
        inner.next += 1;
        inner.looks.insert(number, (looking, progress.clone()));
        drop(inner);
        Look { looks: self.clone(), number, progress }
    }

    /// All of it, in the order in which it was begun.
    pub fn all(&self) -> Vec<Looking> {
        let inner = self.lock();
        let now = |(looking, progress): &(Looking, Arc<Progress>)| Looking {
            done_bytes: progress.done.load(Ordering::Relaxed),
            ..looking.clone()
        };
        inner.looks.values().map(now).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something is being looked at as long as this lives.
#[derive(Debug)]
pub struct Look {
    looks: Looks,
    number: u64,
    progress: Arc<Progress>,
}

impl Look {
    /// Where whoever does the work says how far it is.
    pub fn note(&self) -> Note {
        Note(self.progress.clone())
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.progress.stopped.store(true, Ordering::Relaxed);
        self.looks.lock().looks.remove(&self.number);
    }
}

/// Counts what was looked at.
#[derive(Clone, Debug)]
pub struct Note(Arc<Progress>);

impl Note {
    /// So many bytes were looked at; whether to go on.
    pub fn done(&self, bytes: u64) -> bool {
        self.0.done.store(bytes, Ordering::Relaxed);
        self.goes_on()
    }

    /// Whether anybody still wants it.
    pub fn goes_on(&self) -> bool {
        !self.0.stopped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_stopped_and_shown_no_longer() {
        let looks = Looks::default();
        let looking = |name: &str| Looking {
            kind: LookingKind::Hashing,
            group: "lab".parse().expect("a name"),
            name: name.parse().expect("a name"),
            path: "/d".into(),
            done_bytes: 0,
            size: 9,
        };
        let (first, second) = (looks.begin(looking("a")), looks.begin(looking("b")));
        assert!(first.note().done(4) && second.note().done(5));
        let all = looks.all();
        assert_eq!(all[0], Looking { done_bytes: 4, ..looking("a") });
        assert_eq!(all[1], Looking { done_bytes: 5, ..looking("b") });
        let note = first.note();
        drop(first);
        assert!(!note.done(8) && second.note().goes_on());
        assert_eq!(looks.all().len(), 1);
    }
}
