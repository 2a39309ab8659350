//! Downloads that were asked for at once, and how far they are together.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::name::GroupName;

/// Downloads that were asked for at once.
#[derive(Debug)]
pub struct Batch {
    /// From which group.
    pub group: GroupName,
    /// Where they go.
    pub directory: PathBuf,
    /// How many files.
    pub count: usize,
    /// Bytes of them all.
    pub size: u64,
    /// How many do not move.
    held: AtomicUsize,
}

impl Batch {
    /// So many files, of so many bytes together.
    pub fn new(group: GroupName, directory: PathBuf, count: usize, size: u64) -> Self {
        Self { group, directory, count, size, held: AtomicUsize::new(0) }
    }

    /// One of them does not move any more, or moves again; whether that is news: it is said of the first
    /// and of the last, not of thousands.
    pub fn held(&self, is_held: bool) -> bool {
        let change = |held: usize| Some(if is_held { held + 1 } else { held.saturating_sub(1) });
        let before = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        before == Ok(usize::from(!is_held))
    }
}

/// How far they are.
#[derive(Clone, Debug)]
pub struct BatchRow {
    /// Which.
    pub batch: Arc<Batch>,
    /// Files that are not under way any more.
    pub over: usize,
    /// Bytes verified and stored, those of files that are over counted as a whole.
    pub stored_bytes: u64,
}

impl BatchRow {
    /// As if all were over; [`Self::under_way`] takes off what is not.
    pub fn over(batch: Arc<Batch>) -> Self {
        Self { over: batch.count, stored_bytes: batch.size, batch }
    }

    /// One of them is under way, with so many bytes of its size stored.
    pub fn under_way(&mut self, size: u64, stored_bytes: u64) {
        self.over = self.over.saturating_sub(1);
        let missing = size.saturating_sub(stored_bytes);
        self.stored_bytes = self.stored_bytes.saturating_sub(missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_taken_off() {
        let batch = Batch::new("lab".parse().expect("a name"), "/d".into(), 3, 30);
        let news = [true, true, false, false, true].map(|is_held| batch.held(is_held));
        assert_eq!(news, [true, false, false, true, true]);
        let mut row = BatchRow::over(Arc::new(batch));
        row.under_way(10, 4);
        row.under_way(5, 0);
        assert_eq!((row.over, row.stored_bytes), (1, 19));
    }
}
