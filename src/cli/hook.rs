//! A user's own program, run once for every event.
//!
//! One at a time, in the order of the events; one that takes too long is killed. What it prints goes
//! nowhere, and how it ends changes nothing but a line in the log.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

use super::{events, request};
use crate::client::report::Notice;
use crate::clock;
use crate::limits::{DRAIN, HOOK_PATIENCE};

/// Runs `command` by the shell for every notice, until it is `quiet`; then for those that are there, as
/// far as that does not take long. The event stands on its standard input as one JSON object, and its name
/// in `MTQ_EVENT`.
pub async fn run(command: String, mut notices: Receiver<Notice>, quiet: CancellationToken) {
    let late = async {
        quiet.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = obey(&command, &mut notices, &quiet) => {}
        () = late => {
            let count = notices.len();
            tracing::warn!(count, "the program for events was too slow: it is not told of the last");
        }
    }
}

async fn obey(command: &str, notices: &mut Receiver<Notice>, quiet: &CancellationToken) {
    loop {
        let next = tokio::select! {
            biased;
            next = notices.recv() => next,
            () = quiet.cancelled() => match notices.try_recv() {
                Ok(notice) => Ok(notice),
                Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            },
        };
        let event = match next {
            Ok(notice) => events::json(&notice),
            Err(RecvError::Lagged(missed)) => request::lagged(missed),
            Err(RecvError::Closed) => return,
        };
        let name = event["event"].as_str().unwrap_or("").to_owned();
        let line = request::event(event, clock::now());
        match tokio::time::timeout(HOOK_PATIENCE, call(command, &name, &line)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::warn!(event = name, why, "the program for events failed"),
            Err(_) => tracing::warn!(event = name, "the program for events took too long"),
        }
    }
}

/// Runs it once, to its end. It is a process group of its own: what is typed on the terminal does not
/// mean it, and what it began ends with it when it is given up.
async fn call(command: &str, name: &str, line: &str) -> Result<(), String> {
    let words = |error: std::io::Error| error.to_string();
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .env("MTQ_EVENT", name)
        // What is asked of the agent is none of its business.
        .env_remove("MTQ_PASSWORD")
        .env_remove("MTQ_NEW_PASSWORD")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(words)?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it does not want to know.
        let _ = input.write_all(format!("{line}\n").as_bytes()).await;
    }
    let status = child.wait().await.map_err(words)?;
    group.0 = None;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// A program under way, and all it began; killed when this goes.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn every_event_is_told_in_order_and_bad_programs_hold_up_nobody() {
        let dir = tempfile::tempdir().expect("temp dir");
        let told = dir.path().join("told");
        // The first fails, the second does not read.
        let command = format!(
            "case $MTQ_EVENT in trackers-lost) exit 3;; trackers-back) echo unread >> {0};; \
             *) cat >> {0};; esac",
            told.display()
        );
        let (sender, notices) = broadcast::channel(8);
        for notice in [
            Notice::TrackersLost,
            Notice::TrackersBack,
            Notice::SignedOut { user: "bob".parse().expect("a name") },
        ] {
            sender.send(notice).expect("heard");
        }
        let draining = CancellationToken::new();
        draining.cancel();
        run(command, notices, draining).await;
        let told = fs::read_to_string(told).expect("written");
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), 2, "{told}");
        assert_eq!(lines[0], "unread");
        let event: serde_json::Value = serde_json::from_str(lines[1]).expect("JSON");
        assert_eq!((&event["event"], &event["user"]), (&"signed-out".into(), &"bob".into()));
        assert!(event["at"].is_string() && event["message"].is_string(), "{event}");
    }
}
