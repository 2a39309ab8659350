//! `mtq client`: an agent, and commands for it from standard input.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

use super::client_args::{ClientArgs, ClientCommand};
use super::exit::{Failure, status};
use super::operator_args::LogFormat;
use super::script::{self, Parsed};
use super::{command, logging, output, text};
use crate::client::agent::{Agent, AgentConfig};
use crate::client::library::EntryState;
use crate::client::report::Notice;
use crate::limits::MAX_LINE_LEN;
use crate::swarm::rates::RateLimits;

/// Runs the client; returns the exit status.
///
/// # Errors
/// [`Failure`] when it cannot start.
pub fn run(args: &ClientArgs) -> Result<u8, Failure> {
    if let Some(first) = args.command.first() {
        let message = format!("{} is not an option", text::printable(first));
        return Err(Failure::usage(message)
            .hint("commands go to standard input, one a line: echo list-groups | mtq client ..."));
    }
    logging::start(args.log_file.as_deref(), "warn", LogFormat::Human)?;
    let trackers = super::tracker::load_trackers(&args.trackers)?;
    let limits = RateLimits { up: args.up.0, down: args.down.0 };
    let data_dir = args.data_dir.clone();
    let config = AgentConfig { data_dir, trackers, listen: args.listen, limits };
    // One thread moves all bytes; hashing and disk work go to the blocking pool.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("internal", error.to_string()))?;
    let result = runtime.block_on(session(config, args));
    // A blocking read of standard input must not hold up the end.
    runtime.shutdown_background();
    result
}

/// A line, or why there is none.
type Lines = mpsc::Receiver<Result<String, Failure>>;

async fn session(config: AgentConfig, args: &ClientArgs) -> Result<u8, Failure> {
    let failed = |error: std::io::Error| Failure::new("internal", error.to_string());
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let agent = Agent::start(config)?;
    let interactive = std::io::stdin().is_terminal();
    let ended = tokio::select! {
        ended = obey(&agent, args, interactive) => Some(ended),
        () = tell_news(agent.notices(), interactive || args.stay) => None,
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if ended.is_none() {
        eprintln!("interrupted: ending in order; once more ends at once");
    }
    tokio::select! {
        () = agent.shutdown() => {}
        // Once more means now.
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(ended.unwrap_or(status::INTERRUPTED))
}

/// Says on standard error what trackers say unasked: everything to whoever stays, to a script
/// only what its user must know.
async fn tell_news(mut notices: broadcast::Receiver<Notice>, all: bool) {
    loop {
        match notices.recv().await {
            Ok(notice) if all || notice.is_grave() => {
                eprintln!("* {}", text::printable(&notice.to_string()));
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            // The agent holds the other end.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Runs commands until they end; returns the first failure's status.
async fn obey(agent: &Agent, args: &ClientArgs, interactive: bool) -> u8 {
    let (wanted, mut lines) = read_lines(interactive);
    let mut first_failure = 0;
    let mut line_number = 0;
    loop {
        // The next prompt appears after the last command is done.
        let _ = wanted.send(());
        let Some(line) = lines.recv().await else { break };
        line_number += 1;
        let (name, result) = match line {
            Ok(line) => match script::parse(&line) {
                Parsed::Nothing => continue,
                Parsed::Help(text) => {
                    let answer = output::Answer::new(serde_json::json!({"text": text}), text);
                    ("help".to_owned(), Ok(answer))
                }
                Parsed::Command(ClientCommand::Quit) => {
                    let answer = output::Answer::new(serde_json::json!({}), "");
                    output::print("quit", &Ok(answer), args.json);
                    return ended(agent, first_failure, interactive);
                }
                Parsed::Command(parsed) => {
                    let name = parsed.name().to_owned();
                    let ask = if interactive { prompt } else { no_ask };
                    (name, command::run(agent, parsed, ask).await)
                }
                Parsed::Wrong(name, failure) => (text::printable(&name), Err(failure)),
            },
            Err(failure) => (String::new(), Err(failure)),
        };
        output::print(&name, &result, args.json);
        if let Err(failure) = result {
            match interactive {
                true => failure.print(),
                false => failure.print_for_line(line_number),
            }
            if first_failure == 0 {
                first_failure = failure.status;
            }
            if !args.keep_going && !interactive {
                return first_failure;
            }
        }
    }
    let rows = agent.downloads();
    let held = rows.len();
    let seeding = rows.iter().filter(|row| row.state == EntryState::Seeding).count();
    if args.stay {
        eprintln!("no more commands; {held} files are shared or downloaded until Ctrl-C");
        std::future::pending::<()>().await;
    } else if seeding > 0 && !interactive {
        eprintln!("no more commands; sharing ends with this client (--stay keeps it on)");
    }
    ended(agent, first_failure, interactive)
}

/// The status to end with. A script that leaves downloads unfinished did not succeed.
fn ended(agent: &Agent, first_failure: u8, interactive: bool) -> u8 {
    let rows = agent.downloads();
    // What came back by itself goes on whenever it can.
    let unfinished = rows.iter().filter(|row| row.state.is_under_way() && row.asked).count();
    if unfinished > 0 {
        eprintln!("{unfinished} downloads are not finished; they go on with the next client");
        eprintln!("hint: wait, as the last command, waits for them");
    }
    match (interactive, first_failure, unfinished) {
        (true, ..) | (_, 0, 0) => 0,
        (_, 0, _) => status::FAILED,
        (_, failure, _) => failure,
    }
}

/// Reads standard input on a thread of its own, a line when one is wanted.
fn read_lines(interactive: bool) -> (std::sync::mpsc::Sender<()>, Lines) {
    let (wanted, wants) = std::sync::mpsc::channel::<()>();
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while wants.recv().is_ok() {
            if interactive {
                eprint!("mtq> ");
            }
            let mut line = Vec::new();
            let limit = MAX_LINE_LEN as u64 + 1;
            let line = match input.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(len) if len > MAX_LINE_LEN && !line.ends_with(b"\n") => {
                    if skip_line(&mut input).is_err() {
                        return;
                    }
                    Err(Failure::usage(format!("a line is over the limit of {MAX_LINE_LEN} bytes")))
                }
                Ok(_) => {
                    String::from_utf8(line).map_err(|_| Failure::usage("a line is not valid UTF-8"))
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

/// Skips what is left of a line that was too long.
fn skip_line(input: &mut std::io::StdinLock<'_>) -> std::io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let (len, found) = match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        input.consume(len);
        if found {
            return Ok(());
        }
    }
}

fn prompt(words: &str) -> Option<String> {
    rpassword::prompt_password(words).ok()
}

fn no_ask(_words: &str) -> Option<String> {
    None
}
