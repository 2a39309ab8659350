//! One command a process: `mtq client COMMAND`.
//!
//! What needs an agent to go on, a share or a download, stays until it is over where there is no agent that
//! does.

use std::io::IsTerminal as _;

use serde_json::json;

use super::client_args::ClientCommand;
use super::exit::Failure;
use super::front::Reply;
use super::output::Answer;
use super::screen::News;
use super::seat::Seat;
use super::{secret, watch};

/// Has a command done that was given as these words; returns the exit status.
pub async fn run(seat: &mut Seat, as_json: bool, command: ClientCommand, words: Vec<String>) -> u8 {
    let name = command.name();
    match obey(seat, as_json, command, words).await {
        Ok(status) => status,
        Err(failure) => Reply::here(name, Err(failure)).tell(seat.screen(), as_json, ""),
    }
}

async fn obey(
    seat: &mut Seat,
    as_json: bool,
    command: ClientCommand,
    words: Vec<String>,
) -> Result<u8, Failure> {
    match command {
        ClientCommand::Quit => quit(seat, as_json).await,
        ClientCommand::Events { progress } => {
            if progress {
                seat.tell_progress();
                seat.screen().show(|_| true);
            }
            stay(seat).await
        }
        ClientCommand::Downloads { watch: true } => {
            let request = seat.plan().request_words(words);
            watch::run(seat, &command, request, as_json).await
        }
        ClientCommand::Share { .. } => {
            seat.screen().show(|item| item["state"] == "hashing");
            let reply = ask(seat, &command, words).await?;
            let status = reply.tell(seat.screen(), as_json, "");
            if status != 0 || seat.is_lasting() {
                return Ok(status);
            }
            seat.screen().set_news(News::Others);
            let words = "sharing until interrupted (a running mtq client daemon does it for good)";
            seat.screen().say(words);
            stay(seat).await
        }
        ClientCommand::Get { wait, .. } => get(seat, as_json, &command, words, wait).await,
        _ => {
            seat.screen().show(|item| item["state"] != "hashing");
            let reply = ask(seat, &command, words).await?;
            Ok(reply.tell(seat.screen(), as_json, ""))
        }
    }
}

async fn ask(
    seat: &mut Seat,
    command: &ClientCommand,
    words: Vec<String>,
) -> Result<Reply, Failure> {
    let request = seat.plan().request_words(words);
    let person = std::io::stdin().is_terminal();
    seat.ask(command, request, person.then_some(secret::ask)).await
}

/// Stays until somebody interrupts, or the agent there was is ended, or nobody reads what is said.
async fn stay(seat: &mut Seat) -> Result<u8, Failure> {
    let unread = seat.screen().unread();
    tokio::select! {
        ended = seat.stay() => match ended? {},
        () = unread.cancelled() => Ok(0),
    }
}

/// Begins a download, and waits for it where it is asked for or where no agent goes on with it.
async fn get(
    seat: &mut Seat,
    as_json: bool,
    command: &ClientCommand,
    mut words: Vec<String>,
    waits: bool,
) -> Result<u8, Failure> {
    // Waited for apart: that can go on with another agent.
    let options = words.iter().position(|word| word == "--").unwrap_or(words.len());
    if let Some(at) = words[..options].iter().position(|word| word == "--wait") {
        words.remove(at);
    }
    seat.screen().show(|item| item["state"] == "checking");
    let mut begun = ask(seat, command, words).await?;
    let waits = begun.result.is_ok() && (waits || !seat.is_lasting());
    if !waits || !as_json {
        let status = begun.tell(seat.screen(), as_json, "");
        if !waits {
            if status == 0 && !as_json {
                seat.screen().say("the agent goes on with it: mtq client wait, downloads --watch");
            }
            return Ok(status);
        }
    }
    seat.screen().show(|item| item["state"] != "hashing");
    let result = &mut begun.json["result"];
    let word = |field: &str| result[field].as_str().unwrap_or("").to_owned();
    let (group, file) = (word("group"), format!("id:{}", word("content_id")));
    let wait = ClientCommand::Wait { group: None, file: None, timeout: None };
    let over = ask(seat, &wait, vec!["wait".to_owned(), "--".to_owned(), group, file]).await?;
    if !as_json {
        return Ok(over.tell(seat.screen(), as_json, ""));
    }
    // One answer for both.
    result["downloads"] = over.json["result"]["downloads"].clone();
    let mut json = if over.result.is_ok() { begun.json } else { over.json };
    json["command"] = begun.command.as_str().into();
    let reply = Reply { json, result: over.result, ..begun };
    Ok(reply.tell(seat.screen(), as_json, ""))
}

/// Ends the agent that runs on the data directory.
async fn quit(seat: &mut Seat, as_json: bool) -> Result<u8, Failure> {
    let Some(front) = seat.found().await? else {
        // One that ends already is what was wanted.
        seat.until_free().await;
        let message = "no agent runs on the data directory";
        return Err(Failure::new("no-agent", message).hint("mtq client daemon runs one"));
    };
    let request = seat.plan().request_words(vec!["quit".to_owned()]);
    match front.ask(request).await {
        Ok(reply) => {
            let status = reply.tell(seat.screen(), as_json, "");
            // Whoever starts another one next need not wait.
            front.gone().await;
            seat.until_free().await;
            Ok(status)
        }
        // It was just ending.
        Err(_) => {
            seat.until_free().await;
            let answer = Answer::new(json!({}), "the agent ends");
            Ok(Reply::here("quit", Ok(answer)).tell(seat.screen(), as_json, ""))
        }
    }
}
