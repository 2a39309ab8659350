//! One command a process: `mtq client COMMAND`.
//!
//! What needs an agent to go on, a share or a download, stays until it is over where there is no agent that
//! does.

use std::io::IsTerminal as _;
use std::path::Path;

use serde_json::{Value, json};

use super::client_args::ClientCommand;
use super::exit::Failure;
use super::files::{self, MAX_LIST_LEN, STANDARD_INPUT};
use super::front::Reply;
use super::output::Answer;
use super::request::Request;
use super::screen::News;
use super::seat::Seat;
use super::{secret, text, watch};

/// Downloads that one request waits for: of more the words would be too long.
const WAITED: usize = 500;

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
            let reply = ask(seat, &command, words, None).await?;
            let status = reply.tell(seat.screen(), as_json, "");
            // Of several, what could be shared is.
            let is_shared = status == 0 || reply.json["result"]["count"].as_u64() > Some(0);
            if !is_shared || seat.is_lasting() {
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
            let reply = ask(seat, &command, words, None).await?;
            Ok(reply.tell(seat.screen(), as_json, ""))
        }
    }
}

async fn ask(
    seat: &mut Seat,
    command: &ClientCommand,
    words: Vec<String>,
    input: Option<String>,
) -> Result<Reply, Failure> {
    let request = Request { input, ..seat.plan().request_words(words) };
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
    let input = match command {
        ClientCommand::Get { list: true, file, .. } if file == STANDARD_INPUT => {
            let path = Path::new("/dev/stdin");
            Some(tokio::task::spawn_blocking(|| files::read_text(path, MAX_LIST_LEN)))
        }
        _ => None,
    };
    let input = match input {
        Some(read) => {
            Some(read.await.map_err(|error| Failure::new("internal", error.to_string()))??)
        }
        None => None,
    };
    seat.screen().show(|item| item["state"] == "checking");
    let begun = ask(seat, command, words, input).await?;
    let is_begun = begun.result.is_ok() || begun.json["result"].is_object();
    let waits = is_begun && (waits || !seat.is_lasting());
    if !waits {
        let status = begun.tell(seat.screen(), as_json, "");
        if is_begun && !as_json {
            seat.screen().say("the agent goes on with it: mtq client wait, downloads --watch");
        }
        return Ok(status);
    }
    if !as_json {
        // What could not be begun is the end's to tell.
        let words = begun.result.clone().unwrap_or(begun.done.clone());
        Reply { result: Ok(words), ..begun.clone() }.tell(seat.screen(), as_json, "");
    }
    seat.screen().show(|item| item["state"] != "hashing");
    let result = &begun.json["result"];
    let group = result["group"].as_str().unwrap_or("").to_owned();
    let is_many = result["files"].is_array();
    let files = match &result["files"] {
        Value::Array(files) => {
            files.iter().filter_map(|file| file["content_id"].as_str()).collect()
        }
        _ => vec![result["content_id"].as_str().unwrap_or("")],
    };
    let files: Vec<_> = files.into_iter().map(|id| format!("id:{id}")).collect();
    let mut rows = Vec::new();
    let mut over: Option<Reply> = None;
    for some in files.chunks(WAITED) {
        let wait = ClientCommand::Wait { group: None, files: Vec::new(), timeout: None };
        let words = ["wait", "--", &group].map(str::to_owned).into_iter();
        let reply = ask(seat, &wait, words.chain(some.iter().cloned()).collect(), None).await?;
        let downloads = reply.json["result"]["downloads"].as_array();
        rows.extend(downloads.cloned().unwrap_or_default());
        // The first that failed stays.
        over = Some(over.take().filter(|over| over.result.is_err()).unwrap_or(reply));
    }
    let Some(mut over) = over else { return Ok(begun.tell(seat.screen(), as_json, "")) };
    if is_many {
        let complete = rows.iter().filter(|row| row["state"] == "seeding").count();
        let place = result["path"].as_str().map(text::printable).unwrap_or_default();
        let words = format!("{} complete in {place}", text::count(complete, "file"));
        match &mut over.result {
            Ok(said) => *said = words,
            Err(_) => over.done = words,
        }
        over.warnings = failed(&rows);
        if over.result.is_ok() && begun.result.is_err() {
            (over.done, over.result) = (over.result.unwrap_or_default(), begun.result.clone());
        }
    }
    if !as_json {
        return Ok(over.tell(seat.screen(), as_json, ""));
    }
    // One answer for both.
    let mut json = match (&begun.result, is_many) {
        (Err(_), _) => begun.json,
        (Ok(_), true) => {
            let mut json = begun.json;
            if over.result.is_err() {
                (json["ok"], json["error"]) = (false.into(), over.json["error"].clone());
            }
            json
        }
        (Ok(_), false) if over.result.is_ok() => begun.json,
        (Ok(_), false) => over.json,
    };
    if json["result"].is_object() {
        json["result"]["downloads"] = rows.into();
    }
    json["command"] = begun.command.as_str().into();
    let reply = Reply { json, ..over };
    Ok(reply.tell(seat.screen(), as_json, ""))
}

/// What went wrong with each of many downloads, as many as somebody would read.
fn failed(rows: &[Value]) -> Vec<String> {
    let failed = rows.iter().filter_map(|row| {
        let words = row["error"]["message"].as_str()?;
        Some(text::printable(&format!("{}: {words}", row["name"].as_str().unwrap_or(""))))
    });
    files::bounded(failed.collect())
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
