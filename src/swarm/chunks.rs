//! The bytes of a piece as they came from the network: one chunk after the other, none copied.
//!
//! Each chunk keeps the memory of the datagrams alive that it came in with; what is too small to be
//! worth that is copied together, and so is everything that has to wait ([`Chunks::gather`]).

use bytes::{Bytes, BytesMut};

use super::buffers::{Buffer, Buffers};
use crate::limits::{LEAST_CHUNK, PIECE_LEN};

/// Bytes that follow each other, in one or more parts.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    parts: Vec<Bytes>,
    /// What follows the parts, copied together.
    loose: BytesMut,
    len: usize,
}

impl Chunks {
    /// Adds the next bytes.
    pub fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < LEAST_CHUNK {
            self.loose.extend_from_slice(&bytes);
        } else {
            self.flush();
            self.parts.push(bytes);
        }
    }

    /// Copies all that is here together, so that no datagram is kept for it any longer; into a buffer
    /// of these where the bytes of a whole piece are here.
    pub fn gather(&mut self, buffers: &Buffers) {
        if self.parts.len() + usize::from(!self.loose.is_empty()) <= 1 {
            return;
        }
        self.flush();
        if self.len == PIECE_LEN as usize {
            let mut buffer = buffers.take(PIECE_LEN);
            let mut left = buffer.as_mut();
            for part in self.parts.drain(..) {
                let (now, later) = left.split_at_mut(part.len());
                now.copy_from_slice(&part);
                left = later;
            }
            self.parts.push(Bytes::from_owner(buffer));
        } else {
            let mut all = BytesMut::with_capacity(self.len);
            self.parts.drain(..).for_each(|part| all.extend_from_slice(&part));
            self.loose = all;
        }
    }

    /// Bytes in all parts.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes, where they are in one part.
    pub fn joined(&self) -> Option<&[u8]> {
        let mut parts = self.parts();
        parts.next().filter(|_| parts.next().is_none())
    }

    /// The parts, in order; none of them is empty.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let loose = (!self.loose.is_empty()).then_some(&self.loose[..]);
        self.parts.iter().map(|part| &part[..]).chain(loose)
    }

    fn flush(&mut self) {
        if !self.loose.is_empty() {
            self.parts.push(self.loose.split().freeze());
        }
    }
}

impl From<Vec<u8>> for Chunks {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        let parts = if bytes.is_empty() { Vec::new() } else { vec![bytes.into()] };
        Self { parts, loose: BytesMut::new(), len }
    }
}

impl From<Buffer> for Chunks {
    fn from(buffer: Buffer) -> Self {
        let mut chunks = Self::default();
        chunks.push(Bytes::from_owner(buffer));
        chunks
    }
}

#[cfg(test)]
impl From<&[u8]> for Chunks {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(chunks: &Chunks) -> Vec<u8> {
        chunks.parts().flatten().copied().collect()
    }

    #[test]
    fn small_ones_are_copied_together_and_the_order_stays() {
        let whole: Vec<u8> = (0..PIECE_LEN).map(|i| (i ^ (i >> 7)) as u8).collect();
        let mut rng = fastrand::Rng::with_seed(1);
        let buffers = Buffers::default();
        for round in 0..50 {
            let all = &whole[..if round % 2 == 0 { whole.len() } else { 100_000 }];
            let mut chunks = Chunks::default();
            let mut rest = Bytes::from(all.to_vec());
            while !rest.is_empty() {
                let len = [1, LEAST_CHUNK - 1, LEAST_CHUNK, 9_000][rng.usize(..4)].min(rest.len());
                chunks.push(rest.split_to(len));
            }
            assert_eq!(chunks.len(), all.len());
            assert!(gathered(&chunks) == all);
            assert!(chunks.parts().count() <= 2 * (all.len() / LEAST_CHUNK) + 1);
            chunks.gather(&buffers);
            assert_eq!(chunks.parts().count(), 1);
            assert!(gathered(&chunks) == all);
            chunks.push(Bytes::from_static(&[7; LEAST_CHUNK]));
            assert_eq!(chunks.parts().count(), 2);
            assert!(gathered(&chunks)[..all.len()] == *all);
        }
        assert!(Chunks::default().is_empty());
        assert_eq!(Chunks::from(Vec::new()).parts().count(), 0);
    }
}
