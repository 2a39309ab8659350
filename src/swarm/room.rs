//! How many bytes of a download are in flight, and how many may be.

use crate::limits::PIECE_LEN;

/// No more is asked for while more pieces than these wait to be verified: what is slow then is this machine,
/// and asking would only fill its memory.
pub const MAX_VERIFYING: usize = 16;

/// Bytes asked for, bytes being verified, and the bounds on them.
#[derive(Debug)]
pub struct Room {
    bytes: u64,
    credit: Option<u64>,
    asked: u64,
    verifying: u64,
}

impl Room {
    /// Room for `bytes`, asked for at any rate.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, credit: None, asked: 0, verifying: 0 }
    }

    /// From now on `bytes` may be in flight, and `credit` may be asked for before this is said again.
    pub fn set(&mut self, bytes: u64, credit: Option<u64>) {
        (self.bytes, self.credit) = (bytes, credit);
    }

    /// Whether `len` more may be asked for; where nothing is asked of a peer yet, as long as there is any
    /// room at all: however many peers there are, each has something to do while this machine keeps up.
    pub fn has(&self, len: u64, is_first: bool) -> bool {
        let fits = self.asked + self.verifying + len <= self.bytes;
        let first = is_first && self.bytes >= len;
        self.keeps_up() && (fits || first) && self.credit != Some(0)
    }

    /// Whether what comes is verified about as fast.
    pub fn keeps_up(&self) -> bool {
        self.verifying <= MAX_VERIFYING as u64 * u64::from(PIECE_LEN)
    }

    /// `len` are asked for.
    pub fn ask(&mut self, len: u32) {
        self.asked += u64::from(len);
        self.credit = self.credit.map(|credit| credit.saturating_sub(len.into()));
    }

    /// `len` are not asked for any more.
    pub fn unask(&mut self, len: u32) {
        self.asked -= u64::from(len);
    }

    /// `len` go to be verified.
    pub fn verify(&mut self, len: u32) {
        self.verifying += u64::from(len);
    }

    /// `len` are not being verified any more.
    pub fn verified(&mut self, len: u32) {
        self.verifying -= u64::from(len);
    }

    /// Bytes asked for, and bytes being verified.
    pub fn in_flight(&self) -> (u64, u64) {
        (self.asked, self.verifying)
    }
}
