//! The pipeline to one peer: how fast it delivers, how deep it should be, and when what was asked for
//! should be here.

use std::time::Duration;

use crate::limits::{PIECE_LEN, PIPELINE_MAX, PIPELINE_MIN, PIPELINE_START};
use crate::piece::PieceIndex;

/// Time at the serving side between a request and its first byte that the network does not show:
/// a disk read and some waiting for a core.
const SERVICE_TIME: Duration = Duration::from_millis(20);

/// A peer of which nothing is known yet is taken for this fast, in bytes a second: what home lines
/// send.
const PRESUMED_RATE: f64 = 1_000_000.0;

/// A path with a shorter round trip is short, and this is enough for it: 1.6 GB/s at this round trip.
pub const SHORT: Duration = Duration::from_millis(10);
/// See [`SHORT`].
const PIPELINE_SHORT: usize = 32;

/// A rate is measured over so long at least: pieces come in bursts.
const SAMPLE: Duration = Duration::from_millis(20);

/// One request under way.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Which piece.
    pub piece: PieceIndex,
    /// Its bytes.
    pub len: u32,
    /// When it was asked for.
    pub at: Duration,
    /// Whether its bytes were promised: the header has come.
    pub begun: bool,
    /// Bytes of it that are here.
    pub received: u32,
}

impl Asked {
    /// Bytes that were sent for nothing if it is given up: what is here, and half of the rest, since
    /// nobody knows how much of that is on its way.
    pub fn waste(&self) -> u64 {
        if self.begun { u64::from(self.len).midpoint(self.received.into()) } else { 0 }
    }

    /// Bytes of it that are not here yet.
    fn left(&self) -> u64 {
        u64::from(self.len - self.received)
    }
}

/// When bytes should be here.
#[derive(Clone, Copy, Debug)]
struct Pace {
    bytes_per_sec: f64,
    /// For how long nothing came.
    waiting: Duration,
    rtt: Duration,
}

impl Pace {
    /// How long until so many more bytes are here.
    fn after(self, bytes: u64) -> Duration {
        // Far beyond any deadline is far enough, and no overflow.
        let seconds = (bytes as f64 / self.bytes_per_sec).min(1e6);
        self.rtt + Duration::from_secs_f64(seconds).max(self.waiting)
    }
}

/// What is under way from one peer, oldest first, and how fast it comes.
#[derive(Debug)]
pub struct Pipe {
    asked: Vec<Asked>,
    /// Bytes of all that are not here yet.
    owed: u64,
    depth: usize,
    /// Bytes a second, smoothed; nothing until the first piece.
    rate: Option<f64>,
    /// The same, but more is believed at once: while a connection finds out what its path carries, twice as
    /// much comes each round trip, and what is not asked for by then is missed.
    peak: f64,
    /// Bytes that came since the rate was measured last, and since when they were waited for.
    sample: (u64, Duration),
    rtt: Duration,
    /// When a piece became whole last, and when bytes came last.
    last_piece: Duration,
    fed: Duration,
    /// Bytes that came.
    fed_bytes: u64,
    /// Since when bytes are promised, or it was last looked at, and how many had come by then.
    promised: Option<(Duration, u64)>,
}

impl Pipe {
    /// Nothing under way.
    pub fn new(rtt: Duration) -> Self {
        Self {
            asked: Vec::new(),
            owed: 0,
            depth: PIPELINE_START,
            rate: None,
            peak: 0.0,
            sample: (0, Duration::ZERO),
            rtt,
            last_piece: Duration::ZERO,
            fed: Duration::ZERO,
            fed_bytes: 0,
            promised: None,
        }
    }

    /// What is under way, oldest first.
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// Pieces that should be under way at once.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes a second, once a piece has come.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// The round-trip time last heard of.
    pub fn rtt(&self) -> Duration {
        self.rtt
    }

    /// The round-trip time is this now.
    pub fn set_rtt(&mut self, rtt: Duration) {
        self.rtt = rtt;
    }

    /// A piece is asked for.
    pub fn ask(&mut self, now: Duration, piece: PieceIndex, len: u32) {
        self.owed += u64::from(len);
        self.asked.push(Asked { piece, len, at: now, begun: false, received: 0 });
    }

    /// A piece is not under way any more; what was known of it, if it was.
    pub fn forget(&mut self, piece: PieceIndex) -> Option<Asked> {
        let place = self.asked.iter().position(|asked| asked.piece == piece)?;
        let asked = self.asked.remove(place);
        self.owed -= asked.left();
        if self.asked.iter().all(|asked| !asked.begun) {
            self.promised = None;
        }
        Some(asked)
    }

    /// So many bytes of a piece are here; none when only its header is.
    pub fn progress(&mut self, now: Duration, piece: PieceIndex, received: u32) {
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.piece == piece) else { return };
        asked.begun = true;
        self.promised.get_or_insert((now, self.fed_bytes));
        let received = received.min(asked.len);
        if received > asked.received {
            self.fed_bytes += u64::from(received - asked.received);
            self.owed -= u64::from(received - asked.received);
            asked.received = received;
            self.fed = now;
        }
    }

    /// When it is time to look whether promised bytes come: `span` after that was last done.
    pub fn stall_check(&self, span: Duration) -> Option<Duration> {
        self.promised.map(|(since, _)| since + span)
    }

    /// How many of the promised bytes came since that was last looked at, if any are promised.
    pub fn promised_and_fed(&self) -> Option<u64> {
        self.promised.map(|(_, before)| self.fed_bytes - before)
    }

    /// Whether fewer than `least` of the promised bytes came in the last `span`; looked at once a span.
    pub fn is_stalled(&mut self, now: Duration, (span, least): (Duration, u64)) -> bool {
        match self.promised {
            Some((since, before)) if since + span <= now => {
                self.promised = Some((now, self.fed_bytes));
                self.fed_bytes - before < least
            }
            _ => false,
        }
    }

    /// Time stood still for us: nothing that was waited for is so much later.
    pub fn shift(&mut self, span: Duration) {
        self.asked.iter_mut().for_each(|asked| asked.at += span);
        self.sample.1 += span;
        self.last_piece += span;
        self.fed += span;
        if let Some((since, _)) = &mut self.promised {
            *since += span;
        }
    }

    /// A piece is here. Measures the rate by it, and makes the pipeline as deep as rate and round trip
    /// ask for, half as much again so that it can grow. Returns what was known of it.
    pub fn received(&mut self, now: Duration, piece: PieceIndex, rtt: Duration) -> Option<Asked> {
        self.rtt = rtt;
        let asked = self.forget(piece)?;
        let (bytes, since) = match self.sample {
            (0, _) => (u64::from(asked.len), asked.at.max(self.last_piece)),
            (bytes, since) => (bytes + u64::from(asked.len), since),
        };
        (self.last_piece, self.fed) = (now, now);
        self.fed_bytes += u64::from(asked.len - asked.received);
        let took = now.saturating_sub(since);
        if took < SAMPLE.max(rtt / 8) {
            self.sample = (bytes, since);
            return Some(asked);
        }
        self.sample = (0, now);
        let sample = bytes as f64 / took.as_secs_f64();
        let rate = self.rate.map_or(sample, |rate| 0.75 * rate + 0.25 * sample);
        self.rate = Some(rate);
        self.peak = sample.max(0.75 * self.peak + 0.25 * sample);
        let in_transit = self.peak * (rtt + SERVICE_TIME).as_secs_f64() / f64::from(PIECE_LEN);
        let depth = (1.5 * in_transit).ceil() as usize + PIPELINE_MIN;
        // What a short path brings in bursts says nothing of what it holds, and takes memory.
        let most = if self.rtt < SHORT { PIPELINE_SHORT } else { PIPELINE_MAX };
        self.depth = depth.min(most);
        Some(asked)
    }

    /// What is under way, the last first, and how long until it should be here.
    pub fn expectations(&self, now: Duration) -> impl Iterator<Item = (&Asked, Duration)> {
        let pace = (!self.asked.is_empty()).then(|| self.pace(now));
        let mut bytes = self.owed;
        self.asked.iter().rev().zip(pace.into_iter().cycle()).map(move |(asked, pace)| {
            let expected = pace.after(bytes);
            bytes -= asked.left();
            (asked, expected)
        })
    }

    /// How long until one more piece of `len` bytes would be here, were it asked for now.
    pub fn expected_next(&self, now: Duration, len: u32) -> Duration {
        self.pace(now).after(self.owed + u64::from(len))
    }

    fn pace(&self, now: Duration) -> Pace {
        // Who has given nothing for a while is presumed to give nothing for as long again.
        let waiting = self
            .asked
            .first()
            .map_or(Duration::ZERO, |oldest| now.saturating_sub(oldest.at.max(self.fed)));
        Pace { bytes_per_sec: self.speed(now), waiting, rtt: self.rtt }
    }

    /// Bytes a second, as far as is known now.
    fn speed(&self, now: Duration) -> f64 {
        let Some(oldest) = self.asked.first() else { return self.rate.unwrap_or(PRESUMED_RATE) };
        let since = oldest.at.max(self.last_piece);
        let took = now.saturating_sub(since).as_secs_f64();
        let len = f64::from(oldest.len);
        // Bytes are told of now and then: they count up to when they were.
        let told = self.fed.saturating_sub(since).as_secs_f64();
        let lately = (oldest.received > 0 && told > 0.0).then(|| f64::from(oldest.received) / told);
        match self.rate {
            // It does not keep to what it did before. When nothing was told, it is presumed to be half
            // done.
            Some(rate) if took * rate > len => lately.unwrap_or(len / (2.0 * took)),
            Some(rate) => rate,
            None => lately.unwrap_or(PRESUMED_RATE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::testing::layout;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn pieces(count: usize) -> Vec<PieceIndex> {
        layout(count).pieces().collect()
    }

    #[test]
    fn the_pipeline_follows_rate_and_round_trip() {
        let mut pipe = Pipe::new(MS);
        assert_eq!(pipe.depth(), PIPELINE_START);
        let rtt = 50 * MS;
        // 1 Gbit/s at 50 ms: a piece every 4.2 ms.
        let mut now = Duration::ZERO;
        for piece in &pieces(120)[..60] {
            pipe.ask(now, *piece, PIECE_LEN);
            now += Duration::from_micros(4200);
            assert!(pipe.received(now, *piece, rtt).is_some());
        }
        assert!((16..=32).contains(&pipe.depth()), "{}", pipe.depth());
        // 64 KiB/s: one piece in 8 s.
        for piece in &pieces(120)[60..] {
            pipe.ask(now, *piece, PIECE_LEN);
            now += 8 * SECOND;
            pipe.received(now, *piece, rtt);
        }
        assert!(pipe.depth() <= PIPELINE_MIN + 1, "{}", pipe.depth());
    }

    #[test]
    fn a_burst_on_a_short_path_is_no_reason_to_ask_for_everything() {
        let mut pipe = Pipe::new(MS);
        let mut now = Duration::ZERO;
        for piece in pieces(400) {
            // 5 GB/s.
            pipe.ask(now, piece, PIECE_LEN);
            now += Duration::from_micros(100);
            pipe.received(now, piece, MS);
        }
        assert_eq!(pipe.depth(), PIPELINE_SHORT);
    }

    #[test]
    fn the_pipeline_grows_as_fast_as_a_connection_that_begins() {
        let (rtt, begin) = (Duration::from_millis(200), 36_000.0);
        let mut pipe = Pipe::new(rtt);
        let mut deepest = 0;
        for (number, piece) in pieces(100).into_iter().enumerate() {
            // Twice as much comes every round trip, up to 1 Gbit/s and for half a second more.
            let bytes = f64::from(PIECE_LEN) * (number + 1) as f64;
            let full = 125e6 * 0.2 / 2.0_f64.ln();
            let doubled = bytes.min(full);
            let seconds = 0.2 * (1.0 + doubled / begin).log2() + (bytes - doubled) / 125e6;
            let now = Duration::from_secs_f64(seconds);
            pipe.ask(now.saturating_sub(2 * rtt), piece, PIECE_LEN);
            pipe.received(now, piece, rtt);
            let in_transit = (doubled * 2.0_f64.ln() / f64::from(PIECE_LEN)) as usize;
            assert!(pipe.depth() > in_transit, "{now:?}: {} of {in_transit}", pipe.depth());
            deepest = deepest.max(pipe.depth());
        }
        assert!((72..=PIPELINE_MAX).contains(&deepest), "{deepest}");
        // A burst is no reason to stay deep.
        let mut now = Duration::from_secs(10);
        for piece in pieces(40) {
            now += Duration::from_millis(50);
            pipe.ask(now - rtt, piece, PIECE_LEN);
            pipe.received(now, piece, rtt);
        }
        assert!((6..=12).contains(&pipe.depth()), "{}", pipe.depth());
    }

    #[test]
    fn what_is_expected_follows_what_is_seen() {
        let [a, b] = [0, 1].map(|index| pieces(2)[index]);
        let mut pipe = Pipe::new(Duration::ZERO);
        let expected = |pipe: &Pipe, now, piece| {
            pipe.expectations(now).find(|(asked, _)| asked.piece == piece).expect("asked").1
        };
        pipe.ask(Duration::ZERO, a, PIECE_LEN);
        pipe.ask(Duration::ZERO, b, PIECE_LEN);
        // Nothing is known: about half a second a piece, until it turns out to take longer.
        assert!((400..600).contains(&expected(&pipe, MS, a).as_millis()));
        assert!((900..1200).contains(&expected(&pipe, MS, b).as_millis()));
        assert_eq!(expected(&pipe, 20 * SECOND, a), 20 * SECOND);
        // A quarter in four seconds: twelve more, and sixteen for the next.
        pipe.progress(4 * SECOND, a, PIECE_LEN / 4);
        assert_eq!(expected(&pipe, 4 * SECOND, a).as_secs(), 12);
        assert_eq!(expected(&pipe, 4 * SECOND, b).as_secs(), 28);
        assert_eq!(pipe.expected_next(4 * SECOND, PIECE_LEN).as_secs(), 44);
        // Whole at last, at 32 KiB/s; then nothing at all.
        pipe.received(16 * SECOND, a, Duration::ZERO);
        assert_eq!(expected(&pipe, 16 * SECOND, b).as_secs(), 16);
        assert!(expected(&pipe, 60 * SECOND, b) >= 44 * SECOND);
        assert!(pipe.forget(a).is_none() && pipe.forget(b).is_some());
    }

    #[test]
    fn who_has_not_told_of_bytes_yet_is_not_taken_for_stuck() {
        let [a, b] = [0, 1].map(|index| pieces(2)[index]);
        let mut pipe = Pipe::new(Duration::ZERO);
        // Four pieces a second.
        pipe.ask(Duration::ZERO, a, PIECE_LEN);
        pipe.received(250 * MS, a, Duration::ZERO);
        pipe.ask(250 * MS, b, PIECE_LEN);
        pipe.progress(260 * MS, b, 0);
        // A little late: as late again, not for ever.
        let expected = pipe.expectations(600 * MS).next().expect("asked").1;
        assert!((600..800).contains(&expected.as_millis()), "{expected:?}");
        // An eighth in half a second, and nothing was told for as long since.
        pipe.progress(750 * MS, b, PIECE_LEN / 8);
        let expected = pipe.expectations(SECOND).next().expect("asked").1;
        assert!((3400..3600).contains(&expected.as_millis()), "{expected:?}");
    }
}
