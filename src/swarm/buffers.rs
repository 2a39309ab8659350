//! Buffers of a piece each, used again: fresh memory costs more than reading into it.
//!
//! One that is dropped goes back; a few are kept when none are needed.

use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::PIECE_LEN;

/// Buffers kept for later when they are not needed: 16 MiB.
const IDLE_BUFFERS: usize = 32;

/// Where buffers come from and go back to.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

/// The bytes of a piece, or room for them.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer of `len` bytes, at most `PIECE_LEN`: whatever was in it last.
    pub fn take(&self, len: u32) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| vec![0; PIECE_LEN as usize].into_boxed_slice());
        Buffer { len: bytes.len().min(len as usize), bytes, home: self.clone() }
    }

    #[cfg(test)]
    fn idle(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < IDLE_BUFFERS {
            kept.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_few_are_kept() {
        let buffers = Buffers::default();
        let mut first = buffers.take(10);
        first.as_mut().fill(7);
        assert_eq!((first.as_ref().len(), buffers.idle()), (10, 0));
        drop(first);
        assert_eq!(buffers.take(PIECE_LEN).as_ref()[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
        let many: Vec<_> = (0..IDLE_BUFFERS + 5).map(|_| buffers.take(1)).collect();
        assert_eq!(buffers.idle(), 0);
        drop(many);
        assert_eq!(buffers.idle(), IDLE_BUFFERS);
    }
}
