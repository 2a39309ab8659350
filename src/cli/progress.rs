//! Progress bars on standard error; nothing at all when that is no terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::client::agent::Agent;
use crate::client::report::DownloadRow;

/// How often bars that watch something are redrawn.
pub const REDRAW: Duration = Duration::from_millis(150);

/// A bar that counts bytes.
pub fn bytes_bar(len: u64, what: String) -> ProgressBar {
    let bar = ProgressBar::new(len);
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(
        ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> "),
    );
    bar.set_message(what);
    bar
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
            let bar = all.add(bytes_bar(row.size, row.name.to_string()));
            bar.set_position(row.progress.stored_bytes);
            bar.reset_eta();
            bars.push((row.number, bar.clone()));
            bar
        }
        None => return,
    };
    bar.set_position(row.progress.stored_bytes);
    if !row.state.is_under_way() && !bar.is_finished() {
        bar.finish();
    }
}
