//! The seeds of a simulation: a run for each, on all cores.
//!
//! `MTQ_SEED=n` in the environment runs one seed and traces it, `MTQ_SEEDS=n` so many from there on.
//! A seed that fails is named. It knows no simulation: the same seed gives the same run because the
//! simulation sees to it.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs as many seeds as are `ordinary`, or those that the environment names: how many there were, and
/// what came of all. `run` is told its seed and whether to trace; `and` adds up what came of two.
pub(crate) fn run<T: Debug + Default + Send>(
    ordinary: u64,
    run: fn(u64, bool) -> T,
    and: fn(T, T) -> T,
) -> (u64, T) {
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let (first, count) = match (number("MTQ_SEED"), number("MTQ_SEEDS")) {
        (Some(seed), None) => (seed, 1),
        (seed, count) => (seed.unwrap_or(0), count.unwrap_or(ordinary)),
    };
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let worker = || {
        let mut tally = T::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return tally;
            }
            let one = std::panic::catch_unwind(|| run(seed, count == 1));
            let one = one.unwrap_or_else(|panic| {
                println!("MTQ_SEED={seed} replays what failed");
                std::panic::resume_unwind(panic)
            });
            tally = and(tally, one);
        }
    };
    let tally = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let done = workers.into_iter().map(|worker| worker.join().expect("no seed fails"));
        done.fold(T::default(), and)
    });
    println!("{count} seeds: {tally:?}");
    (count, tally)
}
