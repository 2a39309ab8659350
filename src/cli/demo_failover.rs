//! The demo in which a tracker is killed: two trackers, downloads and commands under way, and the
//! tracker in use goes without a word.
//!
//! What must hold: no command fails, no piece is fetched twice or in vain, all copies are equal,
//! and the tracker, once back, knows what the other one knows.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::MultiProgress;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::demo_stage::{
    ClientProcess, Fetched, START_LIMIT, Source, TrackerProcess, failed, meet, report,
};
use super::exit::{Failure, status};
use super::progress::bytes_bar;
use super::text;
use crate::clock;

/// Bytes of the file when nothing else is said: some seconds' worth.
pub const SIZE: u64 = 512 << 20;

/// The tracker is killed when this part of all downloads is there.
const KILLED_AT: f64 = 0.25;

/// Commands that are answered at least before the tracker is killed.
const BEFORE: usize = 6;

/// And after.
const AFTER: usize = 20;

/// Between two commands.
const PAUSE: Duration = Duration::from_millis(20);

/// How often something that is awaited is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Plays it; the status is 0 only when everything held.
///
/// # Errors
/// [`Failure`] when any step fails.
pub async fn play(home: &Path, count: usize, size: u64) -> Result<u8, Failure> {
    println!(
        "{count} clients, two trackers, one file of {}; everything is in {}",
        text::size(size),
        text::path(home)
    );
    let story = Story { begun: clock::monotonic(), bars: MultiProgress::new() };
    let mut trackers = TrackerProcess::start_all(home, 2).await?;
    let addresses: Vec<_> = trackers.iter().map(|tracker| tracker.address.to_string()).collect();
    story.say(format!("trackers 1 and 2 are up, at {}", addresses.join(" and ")));
    let mut clients = Vec::new();
    for index in 0..count {
        clients.push(ClientProcess::start(home, index)?);
    }
    meet(&mut clients).await?;
    // Takes no part in the downloads: it joins groups and leaves them.
    let mut guest = ClientProcess::start(home, count)?;
    guest.enter().await?;
    for client in clients.iter_mut().chain([&mut guest]) {
        until(client, "it is not logged in at both trackers", is_logged_in_everywhere).await?;
    }
    story.say("everybody has an account, and is logged in at both trackers".to_owned());

    let mut owner = clients.remove(0);
    let source = Source::share(&mut owner, size).await?;
    story.say(format!("{} shares the file, and everybody else gets it", owner.name));
    story.say(format!("{} and {} make small groups, join and leave them", owner.name, guest.name));
    for client in &mut clients {
        client.get().await?;
    }
    let watched = Watched::new(&clients, size);
    let (mut fetched, asked) = tokio::try_join!(
        download(&story, clients, &watched),
        command(&story, (&mut owner, &mut guest), &mut trackers, &watched),
    )?;
    asked.tell(&story);
    let whole = tell_downloads(&story, &fetched, &watched, &source, asked.killed);

    let meanwhile = behind(&trackers[1 - asked.victim]).await?;
    let killed = &mut trackers[asked.victim];
    killed.start().await?;
    let up = clock::monotonic();
    story.say(format!("tracker {} is up again, {meanwhile} ops behind", killed.number));
    tell_level(&story, &trackers, up).await?;

    let equal = report(&owner, &fetched, &source)?;
    for client in fetched.iter_mut().map(|(client, _)| client).chain([&mut owner, &mut guest]) {
        client.quit().await;
    }
    for tracker in &mut trackers {
        tracker.end().await;
    }
    println!("{}", if equal { EQUAL } else { "the copies differ from the source" });
    Ok(match (equal, whole) {
        (true, true) => 0,
        (true, false) => status::FAILED,
        (false, _) => status::INTEGRITY,
    })
}

/// What is said when it went well.
const EQUAL: &str = "all copies are equal to the source, and both trackers know the same";

/// Says what happens, and when.
struct Story {
    begun: Instant,
    bars: MultiProgress,
}

impl Story {
    fn say(&self, what: String) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.bars.suspend(|| println!("{seconds:6.1} s  {what}"));
    }
}

/// Asks a client for its `status` until it is as wanted.
async fn until(
    client: &mut ClientProcess,
    otherwise: &str,
    wanted: fn(&Value) -> bool,
) -> Result<(), Failure> {
    let begun = clock::monotonic();
    while !wanted(&client.ask("status").await?) {
        if begun.elapsed() > START_LIMIT {
            return Err(Failure::new("timeout", format!("{}: {otherwise}", client.name)));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn is_logged_in_everywhere(status: &Value) -> bool {
    let rows = status["trackers"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.len() == 2 && rows.iter().all(|row| row["logged_in"] == true)
}

fn is_known_everywhere(status: &Value) -> bool {
    status["last_change"]["on"] == 2
}

/// What was seen of all downloads together.
#[derive(Debug)]
struct Watched {
    size: u64,
    seen: Mutex<Seen>,
    /// Cancelled when all are complete.
    complete: CancellationToken,
}

#[derive(Debug)]
struct Seen {
    /// Bytes that each client has.
    stored: Vec<u64>,
    /// Bytes that all have, from when the first came until the first client had all.
    rows: Vec<(Instant, u64)>,
}

impl Watched {
    fn new(clients: &[ClientProcess], size: u64) -> Arc<Self> {
        let seen = Mutex::new(Seen { stored: vec![0; clients.len()], rows: Vec::new() });
        Arc::new(Self { size, seen, complete: CancellationToken::new() })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, place: usize, stored: u64) {
        let mut seen = self.seen();
        if !seen.stored.contains(&self.size) {
            seen.stored[place] = stored;
            let sum = seen.stored.iter().sum();
            if sum > 0 {
                seen.rows.push((clock::monotonic(), sum));
            }
        }
        seen.stored[place] = stored;
    }

    /// Which part of everything is there.
    fn part(&self) -> f64 {
        let seen = self.seen();
        seen.stored.iter().sum::<u64>() as f64
            / (self.size * seen.stored.len() as u64).max(1) as f64
    }
}

/// Follows all downloads to their ends.
async fn download(
    story: &Story,
    clients: Vec<ClientProcess>,
    watched: &Arc<Watched>,
) -> Result<Vec<(ClientProcess, Fetched)>, Failure> {
    let mut tasks = JoinSet::new();
    for (place, mut client) in clients.into_iter().enumerate() {
        let bar = story.bars.add(bytes_bar(watched.size, format!("{:6}", client.name)));
        let watched = watched.clone();
        tasks.spawn(async move {
            let seen = |stored| {
                bar.set_position(stored);
                watched.note(place, stored);
            };
            let fetched = client.watch(seen).await;
            bar.finish();
            fetched.map(|fetched| (client, fetched))
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.push(done.map_err(|error| failed("a watcher failed", &error))??);
    }
    all.sort_by_key(|(client, _)| client.index);
    watched.complete.cancel();
    Ok(all)
}

/// An answered command.
struct Answered {
    verb: String,
    begun: Instant,
    took: Duration,
}

/// What came of the commands.
struct Asked {
    answers: Vec<Answered>,
    /// Which tracker was killed.
    victim: usize,
    /// And when.
    killed: Instant,
}

/// Has two clients make small groups, join and leave them, one command after the other, until all
/// downloads are complete; kills the tracker in use in the middle.
async fn command(
    story: &Story,
    (owner, guest): (&mut ClientProcess, &mut ClientProcess),
    trackers: &mut [TrackerProcess],
    watched: &Watched,
) -> Result<Asked, Failure> {
    let (mut answers, mut killed) = (Vec::<Answered>::new(), None);
    for number in 1u64.. {
        let group = format!("team-{number}");
        let steps = [
            (true, format!("create-group {group}")),
            (false, format!("join-group {group}")),
            (true, format!("accept-request {group} {}", guest.name)),
            (false, format!("leave-group {group}")),
            (true, format!("leave-group {group}")),
        ];
        for (is_owners, line) in steps {
            let enough = answers.len() >= BEFORE;
            if killed.is_none() && enough && watched.part() >= KILLED_AT {
                // What only the killed tracker knows, comes back with it; what builds upon it has
                // to wait. These commands build upon each other, so the other one is to know.
                for client in [&mut *owner, &mut *guest] {
                    until(client, "its change is not on both trackers", is_known_everywhere)
                        .await?;
                }
                let victim = in_use(owner, trackers).await?;
                let part = 100.0 * watched.part();
                trackers[victim].kill().await?;
                killed = Some((victim, answers.len(), clock::monotonic()));
                story.say(format!(
                    "tracker {}, the one in use, is KILLED: {part:.0} % is downloaded, {} commands \
                     are answered",
                    trackers[victim].number,
                    answers.len()
                ));
            }
            let client = if is_owners { &mut *owner } else { &mut *guest };
            let begun = clock::monotonic();
            client.ask(&line).await?;
            let verb = line.split(' ').next().unwrap_or_default().to_owned();
            answers.push(Answered { verb, begun, took: begun.elapsed() });
            tokio::time::sleep(PAUSE).await;
        }
        if let Some((victim, before, killed)) = killed
            && answers.len() >= before + AFTER
            && watched.complete.is_cancelled()
        {
            return Ok(Asked { answers, victim, killed });
        }
    }
    Err(Failure::new("internal", "there are no more numbers"))
}

/// Which tracker a client uses.
async fn in_use(client: &mut ClientProcess, trackers: &[TrackerProcess]) -> Result<usize, Failure> {
    let status = client.ask("status").await?;
    let mut rows = status["trackers"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["in_use"] == true);
    let link = row.and_then(|row| row["tracker"].as_str()).unwrap_or_default();
    let uses = |tracker: &TrackerProcess| link.contains(&format!("//{}#", tracker.address));
    trackers
        .iter()
        .position(uses)
        .ok_or_else(|| Failure::new("internal", format!("{} uses no tracker", client.name)))
}

impl Asked {
    fn tell(&self, story: &Story) {
        let (before, after): (Vec<_>, Vec<_>) =
            self.answers.iter().partition(|answer| answer.begun < self.killed);
        let mut took: Vec<_> = before.iter().map(|answer| answer.took).collect();
        took.sort();
        let median = took.get(took.len() / 2).copied().unwrap_or_default();
        let longest = after.iter().max_by_key(|answer| answer.took);
        let (verb, longest) = longest.map_or(("", Duration::ZERO), |a| (&a.verb, a.took));
        story.say(format!(
            "commands: {} answered before, {} after, none failed; half within {:.0} ms before; the \
             longest after took {:.2} s ({verb})",
            before.len(),
            after.len(),
            millis(median),
            longest.as_secs_f64(),
        ));
    }
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Says how the downloads went; whether every piece came once, and right.
fn tell_downloads(
    story: &Story,
    fetched: &[(ClientProcess, Fetched)],
    watched: &Watched,
    source: &Source,
    killed: Instant,
) -> bool {
    let pieces = |fetched: &Fetched| fetched.pieces_from.values().sum::<u64>();
    let whole = fetched
        .iter()
        .all(|(_, fetched)| pieces(fetched) == source.pieces && fetched.bad_pieces == 0);
    let counts: Vec<_> = fetched
        .iter()
        .map(|(client, fetched)| {
            let (pieces, bad) = (pieces(fetched), fetched.bad_pieces);
            format!("{} {pieces} pieces and {bad} bad", client.name)
        })
        .collect();
    story.say(match whole {
        true => format!(
            "downloads: {} of {} pieces each, every piece once, none bad",
            fetched.len(),
            source.pieces
        ),
        false => format!("downloads: of {} pieces, {}", source.pieces, counts.join(", ")),
    });
    let rows = watched.seen().rows.clone();
    story.say(match slowest(&rows) {
        Some(Slowest { at, bytes_per_sec, median }) => format!(
            "all together: {}, {} in the slowest second, which began {:.1} s {} the kill",
            text::rate(median),
            text::rate(bytes_per_sec),
            at.max(killed).duration_since(at.min(killed)).as_secs_f64(),
            if at < killed { "before" } else { "after" },
        ),
        None => "that took less than a second: --size shows more".to_owned(),
    });
    whole
}

/// The second in which least came.
#[derive(Debug, PartialEq)]
struct Slowest {
    at: Instant,
    bytes_per_sec: u64,
    /// Of all seconds.
    median: u64,
}

/// Of all seconds that begin with a row; nothing when no second is over.
fn slowest(rows: &[(Instant, u64)]) -> Option<Slowest> {
    let mut seconds = Vec::new();
    let mut end = 0;
    for (begun, before) in rows {
        let over = |(at, _): &(Instant, u64)| at.duration_since(*begun) >= Duration::from_secs(1);
        while end < rows.len() && !over(&rows[end]) {
            end += 1;
        }
        let Some((at, after)) = rows.get(end) else { break };
        let rate = (after - before) as f64 / at.duration_since(*begun).as_secs_f64();
        seconds.push((rate as u64, *begun));
    }
    seconds.sort();
    let (bytes_per_sec, at) = *seconds.first()?;
    Some(Slowest { at, bytes_per_sec, median: seconds[seconds.len() / 2].0 })
}

/// Ops that a tracker has and the other one lacks.
async fn behind(tracker: &TrackerProcess) -> Result<u64, Failure> {
    let status = tracker.status().await?;
    Ok(status["siblings"][0]["behind_ops"].as_u64().unwrap_or(0))
}

/// Waits until the trackers know the same, and say so; tells when, and what.
async fn tell_level(
    story: &Story,
    trackers: &[TrackerProcess],
    up: Instant,
) -> Result<(), Failure> {
    loop {
        let mut all = Vec::new();
        for tracker in trackers {
            all.push((tracker.number, tracker.status().await?));
        }
        let is_level = |status: &Value| {
            let sibling = &status["siblings"][0];
            sibling["connected"] == true && sibling["behind_ops"] == 0 && sibling["ahead_ops"] == 0
        };
        let equal = all.iter().all(|(_, status)| status["digest"] == all[0].1["digest"]);
        if equal && all.iter().all(|(_, status)| is_level(status)) {
            story.say(format!("both are level {:.1} s later:", up.elapsed().as_secs_f64()));
            for (number, status) in all {
                let digest = status["digest"].as_str().unwrap_or_default();
                story.say(format!("  tracker {number}: {} ops, digest {digest}", status["ops"]));
            }
            return Ok(());
        }
        if up.elapsed() > START_LIMIT {
            let digests: Vec<_> = all
                .iter()
                .map(|(number, status)| format!("{number}: {}", status["digest"]))
                .collect();
            let message =
                format!("the trackers do not come to know the same: {}", digests.join(", "));
            return Err(Failure::new("timeout", message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_second_is_found() {
        let begun = clock::monotonic();
        // Ten megabytes every half second, and a gap of a second.
        let times = [0, 500, 1000, 1500, 2500, 3000, 3500, 4000];
        let rows: Vec<_> = times
            .iter()
            .zip(1u64..)
            .map(|(at, count)| (begun + Duration::from_millis(*at), count * 10_000_000))
            .collect();
        let slowest_of_all = slowest(&rows).expect("seconds");
        assert_eq!(slowest_of_all.at, begun + Duration::from_millis(1500));
        assert_eq!((slowest_of_all.bytes_per_sec, slowest_of_all.median), (10_000_000, 20_000_000));
        assert_eq!(slowest(&rows[..2]), None);
        assert_eq!(slowest(&[]), None);
    }
}
