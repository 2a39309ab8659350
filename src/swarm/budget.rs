//! The bytes that all downloads of an agent together may have in flight, shared out fairly.
//!
//! Each download says what it could well use, and gets that or an equal share of what there is; what one
//! leaves, others get. Of very many downloads the oldest get something and the rest wait their turn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::limits::PIECE_LEN;

/// Shares `total` bytes among `demands`, oldest first: nobody gets more than it asks for, and nobody less
/// than another unless it asks for less, or there is too little to give everybody a piece.
pub fn fair_shares(total: u64, demands: &[u64]) -> Vec<u64> {
    let piece = u64::from(PIECE_LEN);
    let mut shares = vec![0; demands.len()];
    let mut left = total;
    let mut open: Vec<_> = (0..demands.len()).filter(|who| demands[*who] > 0).collect();
    loop {
        // The rest is shared again until all are content or an equal part is less than a piece.
        let part = left.checked_div(open.len() as u64).unwrap_or(0) / piece * piece;
        if part == 0 {
            break;
        }
        for who in &open {
            let more = part.min(demands[*who] - shares[*who]);
            shares[*who] += more;
            left -= more;
        }
        open.retain(|who| shares[*who] < demands[*who]);
    }
    while left > 0 && !open.is_empty() {
        for who in &open {
            let more = piece.min(demands[*who] - shares[*who]).min(left);
            shares[*who] += more;
            left -= more;
        }
        open.retain(|who| shares[*who] < demands[*who]);
    }
    shares
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    /// What each asks for, and where it is told what it gets.
    seats: BTreeMap<u64, (u64, watch::Sender<u64>)>,
}

/// What all downloads share.
#[derive(Clone, Debug)]
pub struct Budget {
    total: u64,
    seats: Arc<Mutex<Seats>>,
}

/// One download's part; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    number: u64,
    budget: Budget,
    share: watch::Receiver<u64>,
}

impl Budget {
    /// `total` bytes to share.
    pub fn new(total: u64) -> Self {
        Self { total, seats: Arc::default() }
    }

    /// A seat for one more download, which asks for nothing yet.
    pub fn join(&self) -> Seat {
        let mut seats = self.lock();
        seats.next += 1;
        let number = seats.next;
        let (sender, share) = watch::channel(0);
        seats.seats.insert(number, (0, sender));
        drop(seats);
        Seat { number, budget: self.clone(), share }
    }

    fn share_out(&self, seats: &Seats) {
        let demands: Vec<_> = seats.seats.values().map(|(demand, _)| *demand).collect();
        let shares = fair_shares(self.total, &demands);
        for ((_, sender), share) in seats.seats.values().zip(shares) {
            sender.send_if_modified(|old| std::mem::replace(old, share) != share);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Asks for so much from now on.
    pub fn ask(&self, demand: u64) {
        let mut seats = self.budget.lock();
        if let Some((old, _)) = seats.seats.get_mut(&self.number)
            && std::mem::replace(old, demand) != demand
        {
            self.budget.share_out(&seats);
        }
    }

    /// What it gets now.
    pub fn share(&self) -> u64 {
        *self.share.borrow()
    }

    /// Resolves when it gets something else.
    pub async fn changed(&mut self) {
        if self.share.changed().await.is_err() {
            // Cannot be: the other end is in the budget until this seat is dropped.
            std::future::pending().await
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.budget.lock();
        seats.seats.remove(&self.number);
        self.budget.share_out(&seats);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: u64 = PIECE_LEN as u64;

    #[test]
    fn what_one_leaves_others_get() {
        assert_eq!(fair_shares(10 * P, &[2 * P, 20 * P, 20 * P]), [2 * P, 4 * P, 4 * P]);
        assert_eq!(fair_shares(10 * P, &[20 * P]), [10 * P]);
        assert_eq!(fair_shares(10 * P, &[3 * P, 0, 2 * P]), [3 * P, 0, 2 * P]);
        assert_eq!(fair_shares(2 * P, &[P, P, P]), [P, P, 0], "the oldest first");
        assert_eq!(fair_shares(10 * P, &[]), Vec::<u64>::new());
    }

    #[test]
    fn seats_come_and_go() {
        let budget = Budget::new(8 * P);
        let first = budget.join();
        first.ask(100 * P);
        assert_eq!(first.share(), 8 * P);
        let second = budget.join();
        second.ask(6 * P);
        assert_eq!((first.share(), second.share()), (4 * P, 4 * P));
        second.ask(P);
        assert_eq!((first.share(), second.share()), (7 * P, P));
        drop(second);
        assert_eq!(first.share(), 8 * P);
    }

    proptest! {
        #[test]
        fn shares_are_fair(
            total in 0..100 * P,
            demands in prop::collection::vec(prop_oneof![Just(0), 0..40 * P], 0..30),
        ) {
            let shares = fair_shares(total, &demands);
            let given: u64 = shares.iter().sum();
            prop_assert!(given <= total);
            prop_assert!(shares.iter().zip(&demands).all(|(share, demand)| share <= demand));
            let unmet: Vec<_> = shares.iter().zip(&demands).filter(|(s, d)| s < d).map(|(s, _)| *s).collect();
            if let (Some(least), Some(most)) = (unmet.iter().min(), shares.iter().max()) {
                prop_assert!(most - least <= P, "{shares:?}");
                prop_assert_eq!(given, total, "nothing is left while somebody wants it");
            }
        }
    }
}
