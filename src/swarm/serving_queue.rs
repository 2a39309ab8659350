//! The requests that wait to be served, and which of them is next: deficit round robin among
//! users, in bytes.
//!
//! * A user has one turn a round, whatever the number of devices, connections, swarms and requests
//!   behind it: of any two users who wait all the time, over any span, one is served at most
//!   [`FAIRNESS`] bytes more than the other.
//! * Of one user's requests, the piece sent least often goes first, then the one that came first.
//! * A user who only waits for pieces that were sent before gives way to one who waits for a piece
//!   that never was: a slow first seeder should upload each piece about once, the peers exchange
//!   the rest. It gives way at most [`MAX_PASSED`] times between two of its own pieces, and who is
//!   let through is charged for it, up to [`MAX_ADVANCE`] bytes ahead: asking for rare pieces
//!   changes the order, not the shares.
//! * Somebody is served whenever somebody may be.
//!
//! It knows ids, not requests, and does nothing by itself; the same calls give the same answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits::{MAX_WAITING, MAX_WAITING_PER_USER, PIECE_LEN};
use crate::name::UserName;

/// Bytes a user is granted each turn: the longest piece, so that every turn can serve one.
const QUANTUM: i64 = PIECE_LEN as i64;

/// How often in a row a user gives way.
pub const MAX_PASSED: u32 = 4;

/// Bytes a user may be served ahead of its turns.
pub const MAX_ADVANCE: i64 = 4 * QUANTUM;

/// Bytes by which two users who both wait all the time may differ, over any span: one has at most
/// one turn more than the other, and the credit of each is at least `-MAX_ADVANCE` and below two
/// quanta, at the span's begin and at its end.
pub const FAIRNESS: i64 = QUANTUM + 2 * (MAX_ADVANCE + 2 * QUANTUM);

/// Too many requests of this user wait already, for what the queue has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Requests waiting to be served. `C` names a content.
#[derive(Clone, Debug)]
pub struct ServingQueue<C> {
    /// Users who wait or owe, by turn: the lowest is next.
    ring: BTreeMap<u64, Backlog>,
    turns: BTreeMap<UserName, u64>,
    requests: BTreeMap<u64, Request<C>>,
    /// Who waits for a piece.
    wanted: BTreeMap<(C, u32), BTreeSet<u64>>,
    /// How often each piece was sent, by index; those behind the end never were.
    sent: BTreeMap<C, Vec<u16>>,
    next_turn: u64,
    next_arrival: u64,
}

/// One user's requests and account.
#[derive(Clone, Debug)]
struct Backlog {
    user: UserName,
    /// Bytes granted and not used, or less than nothing.
    credit: i64,
    /// Whether this turn's bytes were granted: it has begun.
    in_turn: bool,
    /// How often it gave way since it was served.
    passed: u32,
    waiting: BTreeSet<Place>,
}

/// A request's place among its user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    sent: u16,
    arrival: u64,
    id: u64,
}

#[derive(Clone, Debug)]
struct Request<C> {
    user: UserName,
    content: C,
    piece: u32,
    len: u32,
    arrival: u64,
}

impl<C> Default for ServingQueue<C> {
    fn default() -> Self {
        Self {
            ring: BTreeMap::new(),
            turns: BTreeMap::new(),
            requests: BTreeMap::new(),
            wanted: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_turn: 0,
            next_arrival: 0,
        }
    }
}

impl<C: Copy + Ord> ServingQueue<C> {
    /// An empty queue; nothing was sent yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request for `len` bytes waits; `id` is new, and `len` is at most a piece's.
    ///
    /// # Errors
    /// [`Full`]; it does not wait then.
    pub fn push(
        &mut self,
        id: u64,
        user: UserName,
        content: C,
        piece: u32,
        len: u32,
    ) -> Result<(), Full> {
        let turn = self.turns.get(&user).copied();
        let backlog = turn.and_then(|turn| self.ring.get(&turn));
        let waiting = backlog.map_or(0, |backlog| backlog.waiting.len());
        // No more than there is room left: a newcomer finds some, whoever came before.
        let room = MAX_WAITING.saturating_sub(self.requests.len());
        if waiting >= MAX_WAITING_PER_USER.min(room) {
            return Err(Full);
        }
        let turn = turn.unwrap_or_else(|| {
            let (user, waiting) = (user.clone(), BTreeSet::new());
            self.put_last(Backlog { user, credit: 0, in_turn: false, passed: 0, waiting })
        });
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        let sent = self.sent(content, piece);
        if let Some(backlog) = self.ring.get_mut(&turn) {
            backlog.waiting.insert(Place { sent, arrival, id });
        }
        self.wanted.entry((content, piece)).or_default().insert(id);
        self.requests.insert(id, Request { user, content, piece, len, arrival });
        Ok(())
    }

    /// The request to serve now, taken out and counted as sent; nothing when none waits.
    pub fn pop(&mut self) -> Option<u64> {
        self.pop_where(|_| true, |_| true)
    }

    /// The same among the users and requests that may be served now; the others keep their turns
    /// and their credit.
    pub fn pop_where(
        &mut self,
        user_may: impl Fn(&UserName) -> bool,
        request_may: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        // Each user's first request that may, in the order of their turns.
        let first = |backlog: &Backlog| {
            let mut places = backlog.waiting.iter();
            user_may(&backlog.user)
                .then(|| places.find(|place| request_may(place.id)).copied())
                .flatten()
        };
        let heads = self.ring.iter().filter_map(|(turn, backlog)| Some((*turn, first(backlog)?)));
        let mut heads: VecDeque<_> = heads.collect();
        let (turn, place) = loop {
            let (turn, place) = heads.pop_front()?;
            self.settle_before(turn);
            self.begin_turn(turn);
            if self.credit_after(turn, place) >= 0 {
                break (turn, place);
            }
            heads.push_back((self.end_turn(turn), place));
        };
        let rare = |(other, rare): &&(u64, Place)| {
            rare.sent == 0 && self.credit_after(*other, *rare) >= -MAX_ADVANCE
        };
        let passed = self.ring.get(&turn).map_or(0, |backlog| backlog.passed);
        let rare =
            (place.sent > 0 && passed < MAX_PASSED).then(|| heads.iter().find(rare)).flatten();
        match rare.copied() {
            Some((other, rare)) => {
                if let Some(backlog) = self.ring.get_mut(&turn) {
                    backlog.passed += 1;
                }
                self.serve(other, rare);
                Some(rare.id)
            }
            None => {
                self.serve(turn, place);
                Some(place.id)
            }
        }
    }

    /// Withdraws a request; whether it was still waiting.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some(request) = self.requests.remove(&id) else { return false };
        if let Some(ids) = self.wanted.get_mut(&(request.content, request.piece)) {
            ids.remove(&id);
            if ids.is_empty() {
                self.wanted.remove(&(request.content, request.piece));
            }
        }
        let sent = self.sent(request.content, request.piece);
        if let Some(turn) = self.turns.get(&request.user).copied()
            && let Some(backlog) = self.ring.get_mut(&turn)
        {
            backlog.waiting.remove(&Place { sent, arrival: request.arrival, id });
            self.drop_if_done(turn);
        }
        true
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests waiting.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// How often a piece was sent, up to 65,535.
    pub fn sent(&self, content: C, piece: u32) -> u16 {
        let counts = self.sent.get(&content);
        counts.and_then(|counts| counts.get(piece as usize)).copied().unwrap_or(0)
    }

    /// A piece that was counted as sent did not get there.
    pub fn not_sent(&mut self, content: C, piece: u32) {
        let count = self.sent(content, piece);
        // Past the largest count nobody knows how often.
        if (1..u16::MAX).contains(&count) {
            self.count(content, piece, count - 1);
        }
    }

    /// Forgets how often the pieces of a content were sent. Requests for it that wait go on
    /// waiting.
    pub fn forget(&mut self, content: C) {
        let counts = self.sent.get(&content).map_or(0, Vec::len);
        for piece in 0..counts as u32 {
            self.count(content, piece, 0);
        }
        self.sent.remove(&content);
    }

    /// What is left of a user's credit if this request is served.
    fn credit_after(&self, turn: u64, place: Place) -> i64 {
        let credit = self.ring.get(&turn).map_or(0, |backlog| backlog.credit);
        credit - self.requests.get(&place.id).map_or(0, |request| i64::from(request.len))
    }

    /// Puts a user behind all others; returns its turn.
    fn put_last(&mut self, backlog: Backlog) -> u64 {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.insert(backlog.user.clone(), turn);
        self.ring.insert(turn, backlog);
        turn
    }

    /// A user's turn has come; nothing when it had begun already.
    fn begin_turn(&mut self, turn: u64) {
        if let Some(backlog) = self.ring.get_mut(&turn).filter(|backlog| !backlog.in_turn) {
            backlog.in_turn = true;
            backlog.credit += QUANTUM;
        }
    }

    /// A user's turn is over: the next one is behind all others.
    fn end_turn(&mut self, turn: u64) -> u64 {
        let Some(mut backlog) = self.ring.remove(&turn) else { return turn };
        backlog.in_turn = false;
        self.put_last(backlog)
    }

    /// Users who owe and do not wait have their turns like all others, until they owe nothing.
    fn settle_before(&mut self, turn: u64) {
        let before = self.ring.range(..turn);
        let idle = before.filter(|(_, backlog)| backlog.waiting.is_empty());
        let idle: Vec<_> = idle.map(|(turn, _)| *turn).collect();
        for turn in idle {
            self.begin_turn(turn);
            let turn = self.end_turn(turn);
            self.drop_if_done(turn);
        }
    }

    /// Forgets a user who neither waits nor owes. Credit is not kept: it would be a burst later.
    fn drop_if_done(&mut self, turn: u64) {
        if let Some(backlog) = self.ring.get(&turn)
            && backlog.waiting.is_empty()
            && backlog.credit >= 0
        {
            self.turns.remove(&backlog.user);
            self.ring.remove(&turn);
        }
    }

    fn serve(&mut self, turn: u64, place: Place) {
        let credit = self.credit_after(turn, place);
        if let Some(backlog) = self.ring.get_mut(&turn) {
            backlog.credit = credit;
            backlog.passed = 0;
        }
        let Some(request) = self.requests.get(&place.id) else { return };
        let (content, piece) = (request.content, request.piece);
        self.remove(place.id);
        self.count(content, piece, self.sent(content, piece).saturating_add(1));
    }

    /// A piece was sent so often; whoever waits for it finds its new place.
    fn count(&mut self, content: C, piece: u32, count: u16) {
        let before = self.sent(content, piece);
        for id in self.wanted.get(&(content, piece)).into_iter().flatten() {
            let request = self.requests.get(id);
            let Some(Request { user, arrival, .. }) = request else { continue };
            let turn = self.turns.get(user);
            let Some(backlog) = turn.and_then(|turn| self.ring.get_mut(turn)) else { continue };
            let place = Place { sent: before, arrival: *arrival, id: *id };
            if backlog.waiting.remove(&place) {
                backlog.waiting.insert(Place { sent: count, ..place });
            }
        }
        let counts = self.sent.entry(content).or_default();
        let index = piece as usize;
        if counts.len() <= index {
            counts.resize(index + 1, 0);
        }
        counts[index] = count;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    const P: u32 = PIECE_LEN;

    fn user(name: &str) -> UserName {
        name.parse().expect("a name")
    }

    /// Requests drawn as words, `alice:3` for piece 3; ids count from 0.
    fn waiting(words: &str) -> (ServingQueue<u8>, Vec<String>) {
        let mut queue = ServingQueue::new();
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        for (id, word) in words.iter().enumerate() {
            ask(&mut queue, id as u64, word);
        }
        (queue, words)
    }

    fn ask(queue: &mut ServingQueue<u8>, id: u64, word: &str) {
        let (name, piece) = word.split_once(':').expect("a user and a piece");
        let piece = piece.parse().expect("a piece");
        queue.push(id, user(name), 0, piece, P).expect("room");
    }

    /// What is served until nothing waits.
    fn order((mut queue, words): (ServingQueue<u8>, Vec<String>)) -> String {
        let ids = std::iter::from_fn(|| queue.pop());
        let served: Vec<_> = ids.map(|id| words[id as usize].clone()).collect();
        served.join(" ")
    }

    #[test]
    fn users_take_turns_however_much_they_ask() {
        let asked = "eve:0 eve:1 eve:2 eve:3 eve:4 eve:5 bob:6 bob:7 carol:8";
        assert_eq!(
            order(waiting(asked)),
            "eve:0 bob:6 carol:8 eve:1 bob:7 eve:2 eve:3 eve:4 eve:5"
        );
    }

    #[test]
    fn short_pieces_share_a_turn() {
        let mut queue = ServingQueue::new();
        for id in 0..6 {
            queue.push(id, user("many"), 0, id as u32, P / 4).expect("room");
        }
        for id in 6..8 {
            queue.push(id, user("few"), 1, id as u32, P).expect("room");
        }
        let served: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(served, [0, 1, 2, 3, 6, 4, 5, 7]);
    }

    #[test]
    fn of_ones_requests_the_piece_sent_least_often_goes_first() {
        let (mut queue, mut words) = waiting("alice:1 alice:1 alice:1 alice:2");
        assert_eq!(queue.pop(), Some(0));
        ask(&mut queue, 4, "alice:3");
        words.push("alice:3".to_owned());
        assert_eq!(order((queue, words)), "alice:2 alice:3 alice:1 alice:1");
    }

    #[test]
    fn a_user_who_waits_for_what_was_sent_gives_way() {
        // Everybody asks for everything: each piece goes out once before any goes out twice.
        let asked = "alice:0 alice:1 alice:2 alice:3 bob:0 bob:1 bob:2 bob:3";
        assert_eq!(
            order(waiting(asked)),
            "alice:0 bob:1 alice:2 bob:3 alice:1 bob:0 alice:3 bob:2"
        );
        // Bob waits for nothing but piece 0, which alice was sent; she goes on with what is new.
        let asked = "alice:0 bob:0 alice:1 alice:2";
        assert_eq!(order(waiting(asked)), "alice:0 alice:1 alice:2 bob:0");
    }

    #[test]
    fn giving_way_ends_after_a_few_and_is_made_up_for() {
        let (mut queue, mut words) = waiting("eve:100");
        assert_eq!(queue.pop(), Some(0));
        for id in 1..=40 {
            let word = if id <= 20 { "bob:100".to_owned() } else { format!("eve:{id}") };
            ask(&mut queue, id, &word);
            words.push(word);
        }
        let order = order((queue, words));
        let who: String = order.split(' ').map(|word| &word[..1]).collect();
        // Four of eve's go ahead, and then bob's turns until both had as much.
        assert!(who.starts_with("eeeeb"), "{who}");
        for (at, _) in who.char_indices().take(30) {
            let eve = who[..=at].matches('e').count() as i64;
            let bob = who[..=at].matches('b').count() as i64;
            assert!(eve - bob <= 5 && bob - eve <= 1, "{who} at {at}");
        }
    }

    #[test]
    fn whoever_was_let_through_owes_it_also_after_a_pause() {
        // Eve always has one request, for a piece never sent: she is not served more than bob.
        let (mut queue, _) = waiting("eve:0");
        assert_eq!(queue.pop(), Some(0));
        for id in 1..=200 {
            ask(&mut queue, id, "bob:0");
        }
        let mut served = [0, 0];
        for id in 1000..1100 {
            ask(&mut queue, id, &format!("eve:{id}"));
            let next = queue.pop().expect("somebody waits");
            served[usize::from(next >= 1000)] += 1;
            if next < 1000 {
                assert!(queue.remove(id), "eve has another one the next time");
            }
        }
        let [bob, eve] = served;
        assert!(eve <= bob + 5, "eve {eve}, bob {bob}");
    }

    #[test]
    fn those_who_may_not_are_skipped_and_keep_their_turn() {
        let (mut queue, _) = waiting("eve:0 eve:1 bob:2 bob:3");
        let not_eve = |name: &UserName| *name != user("eve");
        assert_eq!(queue.pop_where(not_eve, |_| true), Some(2));
        assert_eq!(queue.pop_where(|_| true, |id| id != 0), Some(1));
        assert_eq!(queue.pop_where(not_eve, |id| id != 3), None);
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(0), Some(3), None));
    }

    #[test]
    fn a_flood_is_refused_beyond_its_users_share_of_the_queue() {
        let mut queue = ServingQueue::new();
        let ask =
            |queue: &mut ServingQueue<u8>, id, name: String| queue.push(id, user(&name), 0, 0, P);
        for id in 0..MAX_WAITING_PER_USER as u64 {
            ask(&mut queue, id, "eve".to_owned()).expect("room");
        }
        assert_eq!(ask(&mut queue, 1 << 20, "eve".to_owned()), Err(Full));
        assert!(queue.remove(5) && !queue.remove(5));
        ask(&mut queue, 5, "eve".to_owned()).expect("room again");
        // However many flood it, there is room for one who does not.
        for id in 1 << 10..1 << 16 {
            let _full = ask(&mut queue, id, format!("u{}", id % 100));
        }
        ask(&mut queue, 1 << 20, "bob".to_owned()).expect("room");
        assert!(queue.len() <= MAX_WAITING);
    }

    #[test]
    fn counts_can_be_taken_back_and_forgotten() {
        let (mut queue, words) = waiting("a:0 a:0 a:1 a:2");
        assert_eq!((queue.pop(), queue.sent(0, 0)), (Some(0), 1));
        assert_eq!(queue.pop(), Some(2));
        queue.not_sent(0, 0);
        assert_eq!((queue.sent(0, 0), queue.sent(0, 1), queue.sent(0, 9)), (0, 1, 0));
        let mut again = queue.clone();
        assert_eq!(order((queue, words)), "a:0 a:2");
        again.forget(0);
        assert_eq!(again.sent(0, 1), 0);
        assert_eq!(again.len(), 2);
    }

    /// What a user does in the property tests.
    #[derive(Clone, Copy, Debug)]
    enum Op {
        Push { user: u8, piece: u8, len: u32 },
        Remove { nth: u8 },
        Pop { barred: u8 },
        NotSent { piece: u8 },
        Forget,
    }

    fn op(users: u8) -> impl Strategy<Value = Op> {
        let len = prop_oneof![1u32..=P, Just(P), Just(1)];
        prop_oneof![
            4 => (0..users, 0u8..20, len).prop_map(|(user, piece, len)| Op::Push { user, piece, len }),
            1 => any::<u8>().prop_map(|nth| Op::Remove { nth }),
            4 => (0..2 * users).prop_map(|barred| Op::Pop { barred }),
            1 => (0u8..20).prop_map(|piece| Op::NotSent { piece }),
            1 => Just(Op::Forget),
        ]
    }

    /// Everything that is kept twice agrees, and nobody is kept for nothing.
    fn check(queue: &ServingQueue<u8>) {
        let mut places = 0;
        for (turn, backlog) in &queue.ring {
            assert_eq!(queue.turns.get(&backlog.user), Some(turn));
            assert!(!backlog.waiting.is_empty() || backlog.credit < 0);
            assert!((-MAX_ADVANCE..2 * QUANTUM).contains(&backlog.credit), "{}", backlog.credit);
            assert!(backlog.passed <= MAX_PASSED);
            for place in &backlog.waiting {
                let request = &queue.requests[&place.id];
                assert_eq!(request.user, backlog.user);
                assert_eq!(place.sent, queue.sent(request.content, request.piece));
                assert!(queue.wanted[&(request.content, request.piece)].contains(&place.id));
                places += 1;
            }
        }
        assert_eq!((places, queue.turns.len()), (queue.requests.len(), queue.ring.len()));
        assert_eq!(queue.wanted.values().map(BTreeSet::len).sum::<usize>(), places);
    }

    fn run(ops: &[Op]) -> Vec<Option<u64>> {
        let mut queue = ServingQueue::new();
        let mut there: BTreeMap<u64, UserName> = BTreeMap::new();
        let mut served = Vec::new();
        for (id, op) in ops.iter().enumerate() {
            match *op {
                Op::Push { user: who, piece, len } => {
                    let name = user(&format!("u{who}"));
                    queue.push(id as u64, name.clone(), 0, u32::from(piece), len).expect("room");
                    there.insert(id as u64, name);
                }
                Op::Remove { nth } => {
                    let found = there.keys().nth(usize::from(nth) % there.len().max(1)).copied();
                    if let Some(id) = found {
                        assert!(queue.remove(id));
                        there.remove(&id);
                    }
                }
                Op::Pop { barred } => {
                    let barred = user(&format!("u{barred}"));
                    let next = queue.pop_where(|name| *name != barred, |_| true);
                    // Somebody is served whenever somebody may be.
                    assert_eq!(next.is_some(), there.values().any(|name| *name != barred));
                    if let Some(id) = next {
                        assert!(there.remove(&id).is_some_and(|name| name != barred));
                    }
                    served.push(next);
                }
                Op::NotSent { piece } => queue.not_sent(0, u32::from(piece)),
                Op::Forget => queue.forget(0),
            }
            check(&queue);
            assert_eq!((queue.is_empty(), queue.len()), (there.is_empty(), there.len()));
        }
        while let Some(id) = queue.pop() {
            there.remove(&id);
        }
        assert!(there.is_empty());
        assert!(queue.is_empty());
        served
    }

    proptest! {
        #[test]
        fn work_is_conserved_and_a_replay_is_the_same(ops in prop::collection::vec(op(4), 1..200)) {
            prop_assert_eq!(run(&ops), run(&ops));
        }

        #[test]
        fn users_who_wait_are_served_alike_whatever_they_ask_for(
            // How many requests each keeps waiting (with one, it does not wait while that is
            // served), how long its pieces are, and of how many
            // different pieces it asks.
            users in prop::collection::vec((2usize..40, 1u32..=P, 1u32..200), 2..6),
            rounds in 50usize..400,
        ) {
            let mut queue = ServingQueue::new();
            let mut whose = BTreeMap::new();
            let mut next_id = 0u64;
            let mut ask = |queue: &mut ServingQueue<u8>, whose: &mut BTreeMap<u64, usize>, at: usize| {
                let (_, len, pieces) = users[at];
                let piece = next_id as u32 % pieces + 1000 * (at as u32 / 2);
                queue.push(next_id, user(&format!("u{at}")), 0, piece, len).expect("room");
                whose.insert(next_id, at);
                next_id += 1;
            };
            for (at, (depth, ..)) in users.iter().enumerate() {
                (0..*depth).for_each(|_| ask(&mut queue, &mut whose, at));
            }
            let mut served = vec![0i64; users.len()];
            let mut since = vec![0u32; users.len()];
            // The least and the most that each was ahead of each other so far.
            let mut ahead = BTreeMap::new();
            for _ in 0..rounds {
                let at = whose[&queue.pop().expect("somebody waits")];
                // Another one takes its place: it waits all the time.
                ask(&mut queue, &mut whose, at);
                served[at] += i64::from(users[at].1);
                since.iter_mut().for_each(|count| *count += 1);
                since[at] = 0;
                for a in 0..users.len() {
                    for b in 0..a {
                        let difference = served[a] - served[b];
                        let (least, most) = ahead.entry((a, b)).or_insert((0, 0));
                        *least = difference.min(*least);
                        *most = difference.max(*most);
                        prop_assert!(*most - *least <= FAIRNESS, "{served:?}");
                    }
                }
                let smallest = users.iter().map(|(_, len, _)| i64::from(*len)).min().unwrap_or(1);
                // Nobody starves: others get no more than that before one's next piece.
                let bound = (users.len() as i64 * FAIRNESS / smallest) as u32 + 1;
                prop_assert!(since.iter().all(|count| *count <= bound), "{since:?}");
            }
        }
    }
}
