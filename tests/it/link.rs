//! The link of `cargo bench --bench link`: its arithmetic, without any network.

use std::time::Duration;

use direction::{Counts, Direction, HEADERS, Shape};

#[path = "../../benches/link/direction.rs"]
mod direction;

const MS: Duration = Duration::from_millis(1);

/// Datagrams of so many bytes on the wire, each another one.
fn datagrams(count: u8, wire: usize) -> Vec<u8> {
    (0..count).flat_map(|byte| vec![byte; wire - HEADERS]).collect()
}

/// First bytes of the datagrams that are through by `now`.
fn through(direction: &mut Direction<()>, now: Duration) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(train) = direction.through(now) {
        all.extend(train.bytes.chunks(train.stride).map(|datagram| datagram[0]));
        direction.take();
    }
    all
}

#[test]
fn a_datagram_takes_its_time_on_the_wire_and_then_the_delay() {
    // 1,000 bytes take a millisecond.
    let shape = Shape { delay: 10 * MS, rate: Some(8_000_000), queue: 5_000, ..Shape::default() };
    let mut direction = Direction::new(shape);
    for byte in 0..3 {
        direction.enter(MS, (), 958, &vec![byte; 958]);
    }
    assert_eq!(direction.due(), Some(12 * MS));
    assert_eq!(through(&mut direction, 12 * MS), [0]);
    assert_eq!(through(&mut direction, 14 * MS - Duration::from_nanos(1)), [1]);
    assert_eq!(through(&mut direction, 14 * MS), [2]);
    // An idle wire saves nothing up.
    direction.enter(100 * MS, (), 958, &datagrams(2, 1_000));
    assert_eq!(direction.due(), Some(112 * MS), "a train is through with its last datagram");
    assert_eq!(direction.counts(), Counts { passed: 5, bytes: 5_000, ..Counts::default() });
}

#[test]
fn what_finds_no_room_in_the_queue_is_dropped() {
    let shape = Shape { rate: Some(8_000_000), queue: 3_500, ..Shape::default() };
    let mut direction = Direction::new(shape);
    direction.enter(Duration::ZERO, (), 958, &datagrams(10, 1_000));
    assert_eq!(direction.counts().dropped, 7);
    // One is through: there is room for one.
    direction.enter(MS, (), 958, &datagrams(10, 1_000)[5 * 958..]);
    assert_eq!(through(&mut direction, 10 * MS), [0, 1, 2, 5]);
    assert_eq!(
        direction.counts(),
        Counts { passed: 4, bytes: 4_000, dropped: 11, ..Counts::default() }
    );
}

#[test]
fn chance_takes_as_many_as_it_should_and_the_same_again() {
    let shape = Shape { loss: 100, seed: 7, ..Shape::default() };
    let played = [(); 2].map(|()| {
        let mut direction = Direction::new(shape);
        for _ in 0..100 {
            direction.enter(Duration::ZERO, (), 58, &datagrams(100, 100));
        }
        (through(&mut direction, Duration::ZERO), direction.counts())
    });
    let (seen, counts) = &played[0];
    assert_eq!(played[0], played[1]);
    assert_eq!((seen.len() as u64, counts.passed + counts.lost), (counts.passed, 10_000));
    assert!((800..1_200).contains(&counts.lost), "{counts:?}");
}

#[test]
fn without_a_rate_everything_passes_at_once() {
    let mut direction = Direction::new(Shape::default());
    direction.enter(MS, "there", 1_452, &datagrams(40, 1_494));
    let train = direction.through(MS).expect("through");
    assert_eq!((train.to, train.bytes.len()), ("there", 40 * 1_452));
    direction.take();
    assert_eq!(direction.due(), None);
}

#[test]
fn what_is_larger_than_the_link_takes_does_not_pass() {
    let mut direction = Direction::new(Shape { mtu: Some(1_500), ..Shape::default() });
    direction.enter(MS, (), 1_472, &datagrams(2, 1_472 + HEADERS));
    direction.enter(MS, (), 1_473, &datagrams(1, 1_473 + HEADERS));
    assert_eq!(through(&mut direction, MS), [0, 1]);
    assert_eq!(direction.counts().too_large, 1);
}
