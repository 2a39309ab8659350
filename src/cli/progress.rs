//! Progress bars and what they say.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::text;
use crate::client::library::EntryState;
use crate::client::report::DownloadRow;

/// How often bars that watch something are redrawn.
pub const REDRAW: Duration = Duration::from_millis(150);

/// A bar that counts bytes.
pub fn bytes_bar(len: u64, what: String) -> ProgressBar {
    let bar = ProgressBar::new(len).with_style(counting());
    bar.set_message(what);
    bar
}

/// Bytes, how fast they come, and when all are there.
pub fn counting() -> ProgressStyle {
    style("{msg} [{bar:20}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// Bytes, with a note behind them.
pub fn noted() -> ProgressStyle {
    style("{msg} [{bar:20}] {bytes}/{total_bytes} {prefix}")
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// Peers that take part in a download now.
pub fn peers(row: &DownloadRow) -> usize {
    row.progress.sources.values().filter(|source| source.connected).count()
}

/// When a download will be complete at the rate it has; nothing when it has none, or is not moving.
pub fn left(row: &DownloadRow) -> Option<Duration> {
    let bytes = row.size.saturating_sub(row.progress.stored_bytes);
    let is_moving = row.state == EntryState::Downloading;
    bytes.checked_div(row.progress.bytes_per_sec).filter(|_| is_moving).map(Duration::from_secs)
}

/// What a download is doing, in a few words.
pub fn note(row: &DownloadRow) -> String {
    if let Some(hold) = row.progress.hold.as_ref().filter(|_| row.state.is_under_way()) {
        return text::printable(&format!("waiting: {hold}"));
    }
    match (&row.state, peers(row)) {
        (EntryState::Checking, _) if row.queued => "waiting for its turn".to_owned(),
        (EntryState::Checking, _) => "looking at what is there".to_owned(),
        (EntryState::Finishing, _) => "checking the whole file".to_owned(),
        (EntryState::Downloading, 0) => "waiting for a peer".to_owned(),
        (EntryState::Downloading, peers) => {
            let left = left(row).map_or(String::new(), |left| {
                format!("  {} left", humantime::format_duration(left))
            });
            let peers = if peers == 1 { "1 peer".to_owned() } else { format!("{peers} peers") };
            format!("{}{left}  {peers}", text::rate(row.progress.bytes_per_sec))
        }
        (EntryState::Paused | EntryState::Seeding | EntryState::Failed(_), _) => String::new(),
    }
}
