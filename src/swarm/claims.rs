//! What the record of a part file may claim: pieces that have reached the disk, and no others.
//!
//! Data is brought to the disk first, then the record that claims it. A sync that failed has
//! dropped, on most systems, what it could not write while calling it written: those pieces are
//! written once more before anything is claimed of them.

use super::buffers::Buffers;
use super::part::{Opened, Part};
use super::record::{CleanStop, Record};
use super::storage_error::StorageError;
use crate::bitfield::Bitfield;
use crate::manifest::Manifest;
use crate::piece::{PieceIndex, PieceLayout};

/// What a record is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Writing goes on.
    Midway,
    /// Nothing is written after it.
    Clean,
    /// After a fault: it is written even if nothing is new, and a piece that cannot be read any
    /// more is lost.
    Healing,
}

/// What is known to be on the disk, and what the record there says.
#[derive(Debug)]
pub struct Claims {
    synced: Bitfield,
    /// What the record claims, if that is known.
    recorded: Option<Bitfield>,
    /// Whether the record may say that the stop was clean.
    may_be_clean: bool,
    /// Whether a sync failed.
    in_doubt: bool,
    lost: Vec<PieceIndex>,
}

impl Claims {
    /// What is known of a file just opened. Pieces that were only found in it may be nowhere but
    /// in memory: the process that wrote them was killed, or the disk lied.
    pub fn of(opened: &Opened, layout: PieceLayout) -> Self {
        let synced = if opened.trusted { opened.have.clone() } else { Bitfield::none(layout) };
        let record = opened.record.as_ref();
        Self {
            synced,
            recorded: record.map(|record| record.claimed.clone()),
            may_be_clean: record.is_some_and(|record| record.clean.is_some()),
            in_doubt: false,
            lost: Vec::new(),
        }
    }

    /// A piece went bad: when it comes again it is new.
    pub fn forget(&mut self, piece: PieceIndex) {
        self.synced.remove(piece);
    }

    /// Pieces found bad since the last time.
    pub fn take_lost(&mut self) -> Vec<PieceIndex> {
        std::mem::take(&mut self.lost)
    }

    /// Makes the record say that writing goes on, before it does.
    ///
    /// # Errors
    /// [`StorageError`]; nothing may be written then.
    pub fn begin(&mut self, part: &Part, manifest: &Manifest) -> Result<(), StorageError> {
        if self.may_be_clean {
            self.save(part, manifest, None)?;
        }
        Ok(())
    }

    /// Brings `have`, whose every write has returned, to the disk, then the record that claims it.
    ///
    /// # Errors
    /// [`StorageError`]; the record on the disk claims nothing false then.
    pub fn settle(
        &mut self,
        part: &Part,
        manifest: &Manifest,
        have: &Bitfield,
        why: Settling,
    ) -> Result<(), StorageError> {
        if part.is_discarded() {
            return Ok(());
        }
        part.here()?;
        // A piece that went bad and came again is claimed, but not on the disk.
        let nothing_new = self.recorded.as_ref() == Some(have) && self.synced == *have;
        if nothing_new && !self.in_doubt && why == Settling::Midway {
            return Ok(());
        }
        self.sync(part, manifest, have, why)?;
        let clean = match why {
            Settling::Clean => Some(CleanStop::at(part.stamp()?)),
            Settling::Midway | Settling::Healing => None,
        };
        self.save(part, manifest, clean)
    }

    /// Brings `have` to the disk.
    ///
    /// # Errors
    /// [`StorageError`]; what was not on the disk before is in doubt then.
    pub fn sync(
        &mut self,
        part: &Part,
        manifest: &Manifest,
        have: &Bitfield,
        why: Settling,
    ) -> Result<(), StorageError> {
        let mut have = have.clone();
        if self.in_doubt {
            let doubtful: Vec<_> =
                have.iter().filter(|piece| !self.synced.contains(*piece)).collect();
            let buffers = Buffers::default();
            for piece in doubtful {
                let mut buffer = buffers.take(manifest.layout().len(piece));
                let right = match part.read(manifest, piece, buffer.as_mut()) {
                    Ok(right) => right,
                    Err(_) if why == Settling::Healing => false,
                    Err(error) => return Err(StorageError::io(part.path(), 0)(error)),
                };
                if right {
                    part.write(manifest.layout(), piece, &buffer.into())?;
                } else {
                    have.remove(piece);
                    self.lost.push(piece);
                }
            }
        }
        if let Err(error) = part.sync(why != Settling::Midway) {
            self.in_doubt = true;
            return Err(error);
        }
        self.in_doubt = false;
        self.synced = have;
        Ok(())
    }

    /// Tries with a real write, of zeros where a piece is missing, whether the disk takes writes
    /// again. Nobody else may be writing.
    ///
    /// # Errors
    /// [`StorageError`] when it does not.
    pub fn probe(
        &mut self,
        part: &Part,
        manifest: &Manifest,
        have: &Bitfield,
    ) -> Result<(), StorageError> {
        let layout = manifest.layout();
        let Some(missing) = layout.pieces().find(|piece| !have.contains(*piece)) else {
            return Ok(());
        };
        let zeros = vec![0; layout.len(missing) as usize];
        part.write(layout, missing, &zeros.into())?;
        part.sync(false).inspect_err(|_| self.in_doubt = true)
    }

    /// Writes the record of what is on the disk.
    fn save(
        &mut self,
        part: &Part,
        manifest: &Manifest,
        clean: Option<CleanStop>,
    ) -> Result<(), StorageError> {
        let record = Record { claimed: self.synced.clone(), clean };
        // Until it is done, either of two may be there.
        self.recorded = None;
        self.may_be_clean |= clean.is_some();
        part.save_record(manifest, &record)?;
        self.recorded = Some(record.claimed);
        self.may_be_clean = clean.is_some();
        Ok(())
    }
}
