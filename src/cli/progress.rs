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
    let bar = styled(len, "{msg} [{bar:20}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_message(what);
    bar
}

fn styled(len: u64, template: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style.progress_chars("=> "))
}

/// A bar that counts bytes, with a note behind it.
pub fn noted_bar() -> ProgressBar {
    styled(0, "{msg} [{bar:20}] {bytes}/{total_bytes} {prefix}")
}

/// What a download is doing, in a few words.
pub fn note(row: &DownloadRow) -> String {
    let connected = row.progress.sources.values().filter(|source| source.connected).count();
    let rate = row.progress.bytes_per_sec;
    let left = row.size.saturating_sub(row.progress.stored_bytes);
    if let Some(hold) = row.progress.hold.as_ref().filter(|_| row.state.is_under_way()) {
        return text::printable(&format!("waiting: {hold}"));
    }
    match &row.state {
        EntryState::Checking => "looking at what is there".to_owned(),
        EntryState::Finishing => "checking the whole file".to_owned(),
        EntryState::Downloading if connected == 0 => "waiting for a peer".to_owned(),
        EntryState::Downloading => {
            let peers =
                if connected == 1 { "1 peer".to_owned() } else { format!("{connected} peers") };
            let eta = left.checked_div(rate).map_or(String::new(), |seconds| {
                format!("  {} left", humantime::format_duration(Duration::from_secs(seconds)))
            });
            format!("{}  {peers}{eta}", text::rate(rate))
        }
        EntryState::Paused | EntryState::Seeding | EntryState::Failed(_) => String::new(),
    }
}
