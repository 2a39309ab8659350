//! Progress bars on standard error; nothing at all when that is no terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::text;
use crate::client::agent::Agent;
use crate::client::library::EntryState;
use crate::client::report::DownloadRow;

/// How often bars that watch something are redrawn.
pub const REDRAW: Duration = Duration::from_millis(150);

/// A bar that counts bytes.
pub fn bytes_bar(len: u64, what: String) -> ProgressBar {
    let bar = styled(len, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_message(what);
    bar
}

fn styled(len: u64, template: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style.progress_chars("=> "))
}

/// Shows a bar for every download under way until dropped futures end it.
pub async fn watch(agent: &Agent) {
    let all = MultiProgress::new();
    let mut bars: Vec<(u64, ProgressBar)> = Vec::new();
    loop {
        for row in agent.downloads() {
            show(&all, &mut bars, &row);
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn show(all: &MultiProgress, bars: &mut Vec<(u64, ProgressBar)>, row: &DownloadRow) {
    let known = bars.iter().find(|(number, _)| *number == row.number).map(|(_, bar)| bar.clone());
    let bar = match known {
        Some(bar) => bar,
        None if row.state.is_under_way() => {
            let bar = all.add(styled(row.size, "{msg} [{bar:30}] {bytes}/{total_bytes} {prefix}"));
            bar.set_message(row.name.to_string());
            bars.push((row.number, bar.clone()));
            bar
        }
        None => return,
    };
    bar.set_position(row.progress.stored_bytes);
    bar.set_prefix(note(row));
    if !row.state.is_under_way() && !bar.is_finished() {
        bar.finish();
    }
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
