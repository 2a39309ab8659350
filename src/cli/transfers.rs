//! Downloads and shares as people and scripts see them: rows, peers, and where every byte came from.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::exit::Failure;
use super::output::Answer;
use super::progress;
use super::text::{self, or_none, table};
use crate::client::agent::Agent;
use crate::client::error::AgentError;
use crate::client::library::EntryState;
use crate::client::looking::LookingKind;
use crate::client::report::{DownloadRow, LoggedIn, Overview, Skipped};
use crate::name::{GroupName, Selector};
use crate::swarm::meter::{Requests, Source, Waste};

/// Lines that are said of one command; more are counted.
pub const LISTED: usize = 20;

/// All of them, one row each, and what is just being hashed.
pub fn downloads(agent: &Agent) -> Answer {
    let rows = agent.downloads();
    let mut lines: Vec<_> = rows.iter().map(line).collect();
    let mut json = rows_json(&rows);
    let mut hashing = agent.looking();
    hashing.retain(|looking| looking.kind == LookingKind::Hashing);
    lines.extend(hashing.iter().map(|looking| {
        vec![
            "[H]".to_owned(),
            looking.group.to_string(),
            looking.name.to_string(),
            text::size(looking.size),
            percent(looking.done_bytes, looking.size),
            "hashing, shared when that is done".to_owned(),
        ]
    }));
    let hashing = hashing.iter().map(|looking| {
        json!({
            "group": looking.group, "name": looking.name, "path": text::lossy(&looking.path),
            "done_bytes": looking.done_bytes, "size": looking.size,
        })
    });
    json["hashing"] = hashing.collect();
    Answer::new(json, or_none(&lines, "downloads or shares"))
}

fn percent(done: u64, size: u64) -> String {
    format!("{}%", (done * 100).checked_div(size).unwrap_or(100))
}

/// With whom pieces are exchanged, of everything or of the one share or download that `which` means.
///
/// # Errors
/// [`Failure`] when there is no such one.
pub fn peers(agent: &Agent, which: Option<(GroupName, Selector)>) -> Result<Answer, Failure> {
    let rows = match &which {
        None => agent.downloads(),
        Some((group, file)) => vec![agent.download(group, file)?],
    };
    let mut text = Vec::new();
    for row in &rows {
        let lines = peer_lines(row);
        if lines.is_empty() && which.is_none() {
            continue;
        }
        text.push(format!("{} {}  {}", mark(row), row.group, row.name));
        let lines = or_none(&lines, "peers");
        text.extend(lines.lines().map(|line| format!("    {line}")));
        text.extend(totals(row).map(|totals| format!("    {totals}")));
    }
    if text.is_empty() {
        text.push("no peers".to_owned());
    }
    Ok(Answer::new(rows_json(&rows), text.join("\n")))
}

/// Rows for scripts.
pub fn rows_json(rows: &[DownloadRow]) -> Value {
    json!({"downloads": rows.iter().map(row_json).collect::<Value>()})
}

/// One row, of which something was just done.
pub fn one(done: &str, row: &DownloadRow) -> Answer {
    let words = [vec![done.to_owned()], line(row)].concat();
    Answer::new(row_json(row), table(&[words]))
}

/// Who is logged in, and what came back.
pub fn logged_in(logged_in: &LoggedIn) -> Answer {
    let (words, mut json) = overview(&logged_in.overview);
    json["user"] = json!(logged_in.user);
    Answer::new(json, format!("logged in as {}{words}", logged_in.user))
}

/// What of a user's shares and downloads is at work: words to go behind others, and fields.
pub fn overview(overview: &Overview) -> (String, Value) {
    let Overview { sharing, downloading, paused, skipped } = overview;
    let mut words = String::new();
    if sharing + downloading + paused > 0 {
        words += &format!("; {sharing} shared, {downloading} downloading, {paused} paused");
    }
    for Skipped { group, name, message, .. } in skipped {
        words += &format!("\nskipped {name} in {group}: {}", text::printable(message));
    }
    let json = json!({
        "sharing": sharing, "downloading": downloading, "paused": paused, "skipped": skipped,
    });
    (words, json)
}

/// Sums over everything, for `status`: words and fields.
pub fn sums(rows: &[DownloadRow]) -> (String, Value) {
    let count = |which: fn(&DownloadRow) -> bool| rows.iter().filter(|row| which(row)).count();
    let downloading = count(|row| row.state.is_under_way());
    let held = count(|row| row.state.is_under_way() && row.progress.hold.is_some());
    let seeding = count(|row| row.state == EntryState::Seeding && !row.changed && !row.missing);
    // A content that is wanted in several groups comes once.
    let once: BTreeMap<_, _> = rows.iter().map(|row| (row.content, &row.progress)).collect();
    let rate: u64 = once.values().map(|progress| progress.bytes_per_sec).sum();
    let (mut received, mut wasted) = (0, 0);
    for (bytes, waste) in once.values().map(|progress| progress.received()) {
        received += bytes;
        wasted += waste.total();
    }
    let uploaded: u64 = rows.iter().map(|row| row.uploaded_bytes).sum();
    let mut text = format!("{downloading} downloading at {}, ", text::rate(rate));
    if held > 0 {
        text += &format!("{held} of them held up, ");
    }
    text += &format!(
        "{seeding} shared; {} received, {} of it wasted; {} sent",
        text::size(received),
        text::size(wasted),
        text::size(uploaded)
    );
    let json = json!({
        "downloading": downloading, "held": held, "seeding": seeding, "bytes_per_sec": rate,
        "received_bytes": received, "wasted_bytes": wasted, "uploaded_bytes": uploaded,
    });
    (text, json)
}

/// Where a row is in its life, for scripts.
pub fn state(row: &DownloadRow) -> &'static str {
    match &row.state {
        EntryState::Checking if row.queued => "queued",
        EntryState::Checking => "checking",
        EntryState::Downloading => "downloading",
        EntryState::Finishing => "finishing",
        EntryState::Paused => "paused",
        EntryState::Seeding if row.missing => "missing",
        EntryState::Seeding if row.changed => "changed",
        EntryState::Seeding => "seeding",
        EntryState::Failed(_) => "failed",
    }
}

/// `[D]` or `[S]`; `[F]` for what failed.
fn mark(row: &DownloadRow) -> &'static str {
    match row.state {
        EntryState::Checking
        | EntryState::Downloading
        | EntryState::Finishing
        | EntryState::Paused => "[D]",
        EntryState::Seeding => "[S]",
        EntryState::Failed(_) => "[F]",
    }
}

fn line(row: &DownloadRow) -> Vec<String> {
    let note = match &row.state {
        EntryState::Checking | EntryState::Downloading | EntryState::Finishing => {
            progress::note(row)
        }
        EntryState::Paused => "paused".to_owned(),
        EntryState::Seeding if row.missing => {
            format!("missing, not served: {}", text::path(&row.path))
        }
        EntryState::Seeding if row.changed => {
            "changed on disk, no longer served: share it again".to_owned()
        }
        EntryState::Seeding => format!("{} uploaded", text::size(row.uploaded_bytes)),
        EntryState::Failed(failure) => text::printable(&failure.message),
    };
    vec![
        mark(row).to_owned(),
        row.group.to_string(),
        row.name.to_string(),
        text::size(row.size),
        percent(row.progress.stored_bytes, row.size),
        note,
    ]
}

fn peer_lines(row: &DownloadRow) -> Vec<Vec<String>> {
    let pieces = row.size.div_ceil(u64::from(crate::limits::PIECE_LEN)).max(1);
    let sources = row.progress.sources.iter().map(|(peer, source)| {
        let state = if !source.connected {
            vec!["gone".to_owned(), String::new()]
        } else {
            let has = u64::from(source.has) * 100 / pieces;
            let speed =
                format!("{}, {} ms", text::rate(source.bytes_per_sec), source.rtt.as_millis());
            vec![format!("has {has}%"), format!("{speed}, {} asked", source.asked)]
        };
        let mut gave = format!("gave {}", text::size(source.bytes));
        if source.wasted.total() > 0 {
            gave += &format!(" and {} {}", text::size(source.wasted.total()), why(&source.wasted));
        }
        let who = vec![source.user.to_string(), peer.short(), source.address.to_string()];
        [who, state, vec![gave]].concat()
    });
    let uploads = row.uploads.iter().map(|(user, counts)| {
        let mut got = format!("got {}", text::size(counts.delivered_bytes));
        if counts.cut_off_bytes > 0 {
            got += &format!(" and {} that did not arrive whole", text::size(counts.cut_off_bytes));
        }
        let none = String::new;
        vec![user.to_string(), none(), none(), none(), none(), got]
    });
    sources.chain(uploads).collect()
}

/// Why bytes were of no use, the most frequent reason first.
fn why(wasted: &Waste) -> String {
    let mut reasons = [
        (wasted.bad, "false"),
        (wasted.late, "too late"),
        (wasted.stolen, "taken from it"),
        (wasted.broken, "broken off"),
    ];
    reasons.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let words = reasons.iter().filter(|(bytes, _)| *bytes > 0).map(|(_, word)| *word);
    words.collect::<Vec<_>>().join(", ")
}

fn totals(row: &DownloadRow) -> Option<String> {
    let (received, wasted) = row.progress.received();
    let requests = row.progress.requests();
    let rest = if wasted.total() > 0 { format!(" ({})", why(&wasted)) } else { String::new() };
    (requests.made > 0).then(|| {
        format!(
            "{} received, {} wasted{rest}; {} requests, {} of them again",
            text::size(received),
            text::size(wasted.total()),
            requests.made,
            requests.undone + requests.refused,
        )
    })
}

fn row_json(row: &DownloadRow) -> Value {
    let error = match &row.state {
        EntryState::Failed(failure) => json!({"code": failure.code, "message": failure.message}),
        _ => Value::Null,
    };
    let hold = row.progress.hold.as_ref().filter(|_| row.state.is_under_way());
    let hold = hold
        .map(|hold| json!({"code": hold.code(), "message": text::printable(&hold.to_string())}));
    let sources = row.progress.sources.iter().map(|(peer, source)| {
        let mut json = source_json(source);
        json["peer_id"] = json!(peer);
        json
    });
    let uploads = row.uploads.iter().map(|(user, counts)| {
        json!({
            "user": user, "pieces": counts.pieces, "sent_bytes": counts.sent_bytes,
            "delivered_bytes": counts.delivered_bytes, "cut_off_bytes": counts.cut_off_bytes,
            "refused": counts.refused.all(),
        })
    });
    let (received, wasted) = row.progress.received();
    json!({
        "download": row.number, "state": state(row), "error": error, "hold": hold, "group": row.group,
        "name": row.name, "path": text::lossy(&row.path), "content_id": row.content, "size": row.size,
        "stored_bytes": row.progress.stored_bytes, "bytes_per_sec": row.progress.bytes_per_sec,
        "eta_secs": progress::left(row).map(|left| left.as_secs()), "peers": progress::peers(row),
        "elapsed_ms": row.progress.elapsed.as_millis() as u64,
        "received_bytes": received, "wasted": waste_json(&wasted),
        "requests": requests_json(&row.progress.requests()),
        "sources": sources.collect::<Value>(),
        "uploaded_bytes": row.uploaded_bytes, "uploads": uploads.collect::<Value>(),
    })
}

fn source_json(source: &Source) -> Value {
    json!({
        "user": source.user, "address": source.address, "connected": source.connected,
        "has": source.has, "asked": source.asked, "rtt_ms": source.rtt.as_millis() as u64,
        "bytes_per_sec": source.bytes_per_sec, "pieces": source.pieces, "bytes": source.bytes,
        "bad_pieces": source.bad_pieces, "received_bytes": source.received_bytes,
        "wasted": waste_json(&source.wasted), "requests": requests_json(&source.requests),
    })
}

fn waste_json(wasted: &Waste) -> Value {
    let Waste { bad, late, stolen, broken } = wasted;
    json!({"bad": bad, "late": late, "stolen": stolen, "broken": broken})
}

fn requests_json(requests: &Requests) -> Value {
    let Requests { made, stealing, second, refused, undone } = requests;
    json!({
        "made": made, "stealing": stealing, "second": second, "refused": refused, "undone": undone,
    })
}

/// What became complete, or waits for somebody, for `wait`.
pub fn finished(rows: &[DownloadRow]) -> String {
    let lines: Vec<_> = rows
        .iter()
        .filter_map(|row| match row.state {
            EntryState::Seeding if !row.progress.sources.is_empty() => Some(("complete", row)),
            EntryState::Paused => Some(("paused", row)),
            _ => None,
        })
        .map(|(what, row)| vec![what.to_owned(), row.name.to_string(), text::path(&row.path)])
        .collect();
    match lines.len() {
        0 => "nothing is under way".to_owned(),
        1..=LISTED => table(&lines),
        // What nobody would read.
        count => format!("{count} downloads are over; downloads lists them"),
    }
}

/// How many of those that were waited for made no file, and why the first did not.
pub fn first_failure(rows: &[DownloadRow]) -> Option<Failure> {
    let mut failures = rows.iter().filter_map(|row| match &row.state {
        EntryState::Failed(error) => {
            let name = row.name.to_string();
            Some(Failure::from(AgentError::Download { name, error: error.clone() }))
        }
        EntryState::Paused => Some(Failure::from(AgentError::Paused(row.name.to_string()))),
        _ => None,
    });
    failures.next()
}
