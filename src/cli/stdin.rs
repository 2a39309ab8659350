//! Commands from standard input, one a line: a script.

use std::io::{BufRead as _, Read as _};

use serde_json::json;
use tokio::sync::mpsc;

use super::client_args::ClientCommand;
use super::exit::{Failure, status};
use super::front::Reply;
use super::output::Answer;
use super::screen::News;
use super::script::{self, Parsed};
use super::seat::Seat;
use super::text;
use crate::client::library::EntryState;
use crate::limits::MAX_LINE_LEN;

/// How commands are taken, and answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Whether answers are for scripts.
    pub json: bool,
    /// Whether a failure is not the end.
    pub keep_going: bool,
    /// Whether the end of the commands is not the end.
    pub stay: bool,
}

/// A line, or why there is none.
type Lines = mpsc::Receiver<Result<String, Failure>>;

/// Has the commands of standard input done; returns the status of the first that failed.
///
/// # Errors
/// [`Failure`] when there is no agent to do them.
pub async fn run(seat: &mut Seat, manner: Manner) -> Result<u8, Failure> {
    seat.front().await?;
    seat.screen().show(|_| true);
    let (wanted, mut lines) = read_lines();
    let mut first_failure = 0;
    let mut line_number = 0;
    loop {
        // Nothing is read ahead of what is done: whoever wrote a line sees what became of it.
        let _ = wanted.send(());
        let Some(line) = lines.recv().await else { break };
        line_number += 1;
        let (parsed, line) = match line {
            Ok(line) => (script::parse(&line), line),
            Err(failure) => (Parsed::Wrong(String::new(), failure), String::new()),
        };
        let reply = match parsed {
            Parsed::Nothing => continue,
            Parsed::Command(ClientCommand::Quit) => {
                let reply = Reply::here("quit", Ok(Answer::new(json!({}), "")));
                reply.tell(seat.screen(), manner.json, "");
                return Ok(ended(seat, first_failure));
            }
            Parsed::Command(ClientCommand::Events { .. }) => {
                // From now on; the agent tells them anyway.
                let news = if manner.json { News::Json } else { News::All };
                seat.screen().set_news(news);
                Reply::here("events", Ok(Answer::new(json!({}), "")))
            }
            Parsed::Command(command) => {
                let request = seat.plan().request_line(line);
                seat.ask(&command, request, None).await?
            }
            Parsed::Help(text) => Reply::help(text),
            Parsed::Wrong(name, failure) => Reply::here(&text::printable(&name), Err(failure)),
        };
        let status = reply.tell(seat.screen(), manner.json, &format!("line {line_number}: "));
        seat.screen().until_taken().await;
        if first_failure == 0 {
            first_failure = status;
        }
        if status != 0 && !manner.keep_going {
            return Ok(status);
        }
    }
    let rows = seat.host().map(|host| host.agent().downloads()).unwrap_or_default();
    let seeding = rows.iter().filter(|row| row.state == EntryState::Seeding).count();
    if manner.stay {
        let words = match seat.host() {
            Some(_) => format!(
                "no more commands; {} shared or downloaded until Ctrl-C",
                text::count(rows.len(), "file")
            ),
            None => "no more commands; the agent goes on, also after Ctrl-C".to_owned(),
        };
        seat.screen().say(&words);
        match seat.stay().await? {}
    } else if seeding > 0 {
        let words = "no more commands; sharing ends with this client (--stay keeps it on)";
        seat.screen().say(words);
    }
    Ok(ended(seat, first_failure))
}

/// The status to end with. A script that leaves downloads unfinished did not succeed.
fn ended(seat: &Seat, first_failure: u8) -> u8 {
    let is_finished = unfinished(seat) == 0;
    if !is_finished {
        seat.screen().say("hint: wait, as the last command, waits for them");
    }
    match (first_failure, is_finished) {
        (0, false) => status::FAILED,
        (failure, _) => failure,
    }
}

/// Says how many downloads of an agent run here are not finished when it ends; returns it.
pub fn unfinished(seat: &Seat) -> usize {
    let rows = seat.host().map(|host| host.agent().under_way()).unwrap_or_default();
    // What came back by itself goes on whenever it can.
    let count = rows.iter().filter(|row| row.asked).count();
    if count > 0 {
        let words = match count {
            1 => "1 download is not finished; it goes on with the next client".to_owned(),
            _ => format!("{count} downloads are not finished; they go on with the next client"),
        };
        seat.screen().say(&words);
    }
    count
}

/// Reads standard input on a thread of its own, a line when one is wanted.
fn read_lines() -> (std::sync::mpsc::Sender<()>, Lines) {
    let (wanted, wants) = std::sync::mpsc::channel::<()>();
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while wants.recv().is_ok() {
            let mut line = Vec::new();
            let limit = MAX_LINE_LEN as u64 + 1;
            let line = match input.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(len) if len > MAX_LINE_LEN && !line.ends_with(b"\n") => {
                    // As much of the rest as there is belongs to the same line.
                    if input.skip_until(b'\n').is_err() {
                        return;
                    }
                    Err(Failure::usage(format!("it is over the limit of {MAX_LINE_LEN} bytes")))
                }
                Ok(_) => {
                    String::from_utf8(line).map_err(|_| Failure::usage("it is not valid UTF-8"))
                }
                Err(error) => Err(Failure::new("disk", format!("standard input: {error}"))),
            };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    (wanted, lines)
}
