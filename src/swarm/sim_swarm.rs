//! Swarms to simulate: who takes part, how fast, for how long, and how honestly.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bitfield::Bitfield;
use crate::piece::PieceLayout;

/// How a peer behaves to those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Honest,
    /// Says to have everything, and sends other bytes.
    Liar,
    /// Says to have everything, promises bytes, and sends none.
    Silent,
    /// Says to have everything, and sends a byte a second.
    Dribbler,
    /// Says to have everything, and denies each piece.
    Denier,
}

/// One peer. Only honest ones download.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How it behaves.
    pub behaviour: Behaviour,
    /// Bytes a second it sends at most; more than zero.
    pub up: f64,
    /// Bytes a second it receives at most; any number.
    pub down: f64,
    /// Half the round-trip time to the middle of the network.
    pub latency: Duration,
    /// What it has at the beginning.
    pub stored: Bitfield,
    /// When it comes.
    pub joins: Duration,
    /// When it goes away, and when it is back.
    pub away: Vec<(Duration, Duration)>,
    /// When it goes, it says nothing: its connections die.
    pub dies: bool,
}

/// A swarm to simulate.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// The file.
    pub layout: PieceLayout,
    /// Who takes part.
    pub peers: Vec<Spec>,
    /// How many others a peer knows, in the mean.
    pub degree: usize,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// The simulation ends then, whoever is not done.
    pub deadline: Duration,
    /// Whose events are recorded.
    pub record: Option<usize>,
}

impl Swarm {
    /// Who knows whom: everybody where there are few, else the same number of others for each, at
    /// random.
    pub fn neighbours(&self) -> Vec<BTreeSet<usize>> {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let count = self.peers.len();
        let mut known = vec![BTreeSet::new(); count];
        for me in 0..count {
            let mut found = 0;
            while found < self.degree.div_ceil(2) && known[me].len() + 1 < count {
                let other = rng.usize(..count);
                if other != me && known[me].insert(other) {
                    known[other].insert(me);
                    found += 1;
                }
            }
            if self.degree + 1 >= count {
                known[me].extend((0..count).filter(|other| *other != me));
            }
        }
        known
    }
}
