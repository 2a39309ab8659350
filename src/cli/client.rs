//! `mtq client`: an agent alone, a command for one, a script, or a prompt.

use std::io::IsTerminal as _;
use std::sync::Arc;

use clap::ArgMatches;

use super::client_args::{ClientArgs, ClientCommand, ClientVerb};
use super::exit::{Failure, status};
use super::operator_args::LogFormat;
use super::plan::Plan;
use super::screen::{News, Screen};
use super::seat::Seat;
use super::signals::Signals;
use super::stdin::Manner;
use super::terminal::{self, Terminal};
use super::{config, logging, script, secret, shell, stdin, watch};

/// What the client is to do.
enum Work {
    Daemon,
    Command(ClientCommand, Vec<String>),
    Script,
    Prompt,
}

/// Runs the client; returns the exit status. `matches` are those of its arguments.
///
/// # Errors
/// [`Failure`] when it cannot start.
pub fn run(args: &ClientArgs, matches: &ArgMatches) -> Result<u8, Failure> {
    let work = match (&args.verb, matches.subcommand()) {
        (Some(ClientVerb::Daemon), _) => Work::Daemon,
        (Some(ClientVerb::Command(command)), Some((_, matches))) => {
            if command.has_password() {
                let message = "passwords are not taken from the command line: others can see it";
                return Err(Failure::usage(message)
                    .hint("put it into MTQ_PASSWORD, or leave it out to be asked"));
            }
            Work::Command(command.clone(), script::words_of(command.name(), matches)?)
        }
        _ => Work::Script,
    };
    let settings = config::load(&args.options)?;
    let work = match work {
        Work::Script if terminal::can_edit() && !settings.json.value => Work::Prompt,
        work => work,
    };
    logging::start(settings.log_file.value.as_deref(), "warn", LogFormat::Human)?;
    // Whoever types commands on a terminal that can do nothing else can type the next one.
    let is_typed = matches!(work, Work::Script) && std::io::stdin().is_terminal();
    let keep_going = args.keep_going || is_typed;
    let manner = Manner { json: settings.json.value, keep_going, stay: args.stay };
    let plan = Plan::new(settings)?;
    // One thread moves all bytes; hashing and disk work go to the blocking pool.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("internal", error.to_string()))?;
    let result = runtime.block_on(session(plan, manner, work));
    // A blocking read of standard input must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn session(plan: Plan, manner: Manner, work: Work) -> Result<u8, Failure> {
    let mut signals = Signals::new(matches!(work, Work::Prompt))?;
    let terminal = Terminal::keep();
    let stays = manner.stay || matches!(work, Work::Daemon | Work::Prompt);
    let news = match (&work, manner.json) {
        (Work::Daemon | Work::Command(ClientCommand::Events { .. }, _), true) => News::Json,
        (Work::Command(ClientCommand::Events { .. }, _), false) => News::All,
        _ if stays => News::All,
        _ => News::Grave,
    };
    let screen = Arc::new(Screen::new(news));
    let shown = screen.clone();
    logging::hand_to(move |lines| shown.say(lines));
    let mut seat = Seat::new(plan, screen.clone(), stays);
    let result = if matches!(work, Work::Prompt) {
        terminal.hush();
        shell::run(&mut seat, &mut signals).await.transpose()
    } else {
        tokio::select! {
            result = carry_out(&mut seat, manner, work) => Some(result),
            () = signals.next() => None,
        }
    };
    screen.hide();
    if result.is_none() && seat.host().is_some() {
        screen.say("interrupted: ending in order; once more ends at once");
    }
    tokio::select! {
        () = seat.end() => {}
        // Once more means now.
        () = signals.next() => {}
    }
    result.unwrap_or(Ok(status::INTERRUPTED))
}

async fn carry_out(seat: &mut Seat, manner: Manner, work: Work) -> Result<u8, Failure> {
    match work {
        Work::Daemon => daemon(seat).await,
        Work::Command(command, words) => one_shot(seat, manner.json, command, words).await,
        Work::Script | Work::Prompt => stdin::run(seat, manner).await,
    }
}

/// Runs the agent until somebody wants it to end.
async fn daemon(seat: &mut Seat) -> Result<u8, Failure> {
    seat.run_agent()?;
    let _news = seat.front().await?;
    let host = seat.host().ok_or_else(|| Failure::new("internal", "there is no agent"))?;
    let directory = super::text::path(host.agent().data_dir());
    seat.screen().say(&format!("the agent is up on {directory}"));
    host.asked_to_quit().await;
    Ok(0)
}

/// Has one command done.
async fn one_shot(
    seat: &mut Seat,
    as_json: bool,
    command: ClientCommand,
    words: Vec<String>,
) -> Result<u8, Failure> {
    match command {
        ClientCommand::Quit => return quit(seat, as_json).await,
        ClientCommand::Events { .. } => loop {
            seat.front().await?.ended().await;
        },
        ClientCommand::Downloads { watch: true } => {
            let request = seat.plan().request_words(words);
            return watch::run(seat, &command, request, as_json).await;
        }
        _ => {}
    }
    match command {
        ClientCommand::Share { .. } => seat.screen().show(|item| item["state"] == "hashing"),
        ClientCommand::Get { wait: false, .. } => {
            seat.screen().show(|item| item["state"] == "checking");
        }
        _ => seat.screen().show(|item| item["state"] != "hashing"),
    }
    let terminal = std::io::stdin().is_terminal();
    let request = seat.plan().request_words(words);
    let reply = seat.ask(&command, request, terminal.then_some(secret::ask)).await?;
    let status = reply.tell(seat.screen(), as_json, "");
    if status != 0 || seat.is_lasting() {
        return Ok(status);
    }
    match command {
        ClientCommand::Share { .. } => {
            seat.screen().set_news(News::All);
            seat.screen()
                .say("sharing until interrupted (mtq client daemon does it in the background)");
            loop {
                seat.front().await?.ended().await;
            }
        }
        ClientCommand::Get { wait: false, .. } => {
            seat.screen().show(|item| item["state"] != "hashing");
            let result = &reply.json["result"];
            let word = |field: &str| result[field].as_str().unwrap_or("").to_owned();
            let (group, file) = (word("group"), format!("id:{}", word("content_id")));
            let words = vec!["wait".to_owned(), "--".to_owned(), group, file];
            let wait = ClientCommand::Wait { group: None, file: None, timeout: None };
            let request = seat.plan().request_words(words);
            let reply = seat.ask(&wait, request, None).await?;
            Ok(reply.tell(seat.screen(), as_json, ""))
        }
        _ => Ok(status),
    }
}

/// Ends the agent that runs on the data directory.
async fn quit(seat: &mut Seat, as_json: bool) -> Result<u8, Failure> {
    let Some(front) = seat.found().await? else {
        let message = "no agent runs on the data directory";
        return Err(Failure::new("no-agent", message).hint("mtq client daemon runs one"));
    };
    let request = seat.plan().request_words(vec!["quit".to_owned()]);
    match front.ask(request).await {
        Ok(reply) => {
            let status = reply.tell(seat.screen(), as_json, "");
            // Whoever starts another one next need not wait.
            front.gone().await;
            Ok(status)
        }
        Err(_) => Ok(0),
    }
}
