//! `mtq client`: an agent alone, a command for one, a script, or a prompt.

use std::io::IsTerminal as _;
use std::sync::Arc;

use clap::ArgMatches;

use super::client_args::{ClientArgs, ClientCommand, ClientVerb};
use super::exit::{Failure, status};
use super::front::Reply;
use super::operator_args::LogFormat;
use super::plan::Plan;
use super::printer::Printer;
use super::screen::{News, Screen};
use super::seat::Seat;
use super::signals::Signals;
use super::stdin::Manner;
use super::terminal::{self, Terminal};
use super::{config, logging, one_shot, script, shell, stdin, text, transfers};

/// What the client is to do.
enum Work {
    Daemon,
    Command(ClientCommand, Vec<String>),
    /// What is said on standard input, or typed at a prompt.
    Script,
}

/// Runs the client; returns the exit status. `matches` are those of its arguments.
///
/// # Errors
/// [`Failure`] when it cannot start.
pub fn run(args: &ClientArgs, matches: &ArgMatches) -> Result<u8, Failure> {
    let work = match (&args.verb, matches.subcommand()) {
        (Some(ClientVerb::Daemon(_)), _) => Work::Daemon,
        (Some(ClientVerb::Command(command)), Some((_, matches))) => {
            if args.stay || args.keep_going {
                let message = "--stay and --keep-going are for scripts on standard input";
                return Err(Failure::usage(message)
                    .hint("mtq client daemon goes on sharing; share does until Ctrl-C"));
            }
            if command.has_password() {
                let message = "passwords are not taken from the command line: others can see it";
                return Err(Failure::usage(message)
                    .hint("put it into MTQ_PASSWORD, or leave it out to be asked"));
            }
            Work::Command(command.clone(), script::words_of(command.name(), matches)?)
        }
        _ => Work::Script,
    };
    let settings = match &args.verb {
        Some(ClientVerb::Daemon(behind)) => config::load(&args.options.and(behind))?,
        _ => config::load(&args.options)?,
    };
    let is_prompt = matches!(work, Work::Script) && terminal::can_edit() && !settings.json.value;
    logging::start(settings.log_file.value.as_deref(), "warn", LogFormat::Human)?;
    // Whoever types commands on a terminal that can do nothing else can type the next one.
    let is_typed = matches!(work, Work::Script) && !is_prompt && std::io::stdin().is_terminal();
    let keep_going = args.keep_going || is_typed;
    let manner = Manner { json: settings.json.value, keep_going, stay: args.stay };
    let plan = Plan::new(settings)?;
    // One thread moves all bytes; hashing and disk work go to the blocking pool.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("internal", error.to_string()))?;
    let result = runtime.block_on(session(plan, manner, work, is_prompt));
    // A blocking read of standard input must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn session(plan: Plan, manner: Manner, work: Work, is_prompt: bool) -> Result<u8, Failure> {
    let mut signals = Signals::new(is_prompt)?;
    let printer = Printer::start().map_err(|error| Failure::new("internal", error.to_string()))?;
    let terminal = Terminal::keep(printer.clone());
    let stays = manner.stay || is_prompt || matches!(work, Work::Daemon);
    let news = match (&work, manner.json) {
        (Work::Daemon | Work::Command(ClientCommand::Events { .. }, _), true) => News::Json,
        (Work::Daemon | Work::Command(ClientCommand::Events { .. }, _), false) => News::All,
        _ if stays => News::Others,
        _ => News::Grave,
    };
    let screen = Arc::new(Screen::new(printer.clone(), news));
    let shown = screen.clone();
    logging::hand_to(move |lines| shown.say(lines));
    let mut seat = Seat::new(plan, screen.clone(), stays);
    let interrupted = || {
        let words = "interrupted: ending in order; once more ends at once";
        (Ok(status::INTERRUPTED), Some(words))
    };
    let quit = seat.quit();
    // What is said to whoever waits for what an agent that was told to end does not do any more.
    let stopped = match &work {
        Work::Daemon => None,
        Work::Command(command, _) => Some(command.name()),
        Work::Script => Some(""),
    };
    let (result, words) = if is_prompt {
        terminal.hush();
        match shell::run(&mut seat, &mut signals).await.transpose() {
            Some(result) => (result, None),
            None => interrupted(),
        }
    } else {
        tokio::select! {
            result = carry_out(&mut seat, manner, work) => (result, None),
            () = quit.cancelled() => match stopped {
                None => (Ok(0), None),
                Some(name) => {
                    let failure = Failure::new("stopped", "the agent was told to end");
                    let reply = Reply::here(name, Err(failure));
                    (Ok(reply.tell(&screen, manner.json && !name.is_empty(), "")), None)
                }
            },
            () = signals.next() => interrupted(),
        }
    };
    screen.hide();
    if let Some(words) = words.filter(|_| seat.host().is_some()) {
        screen.say(words);
    }
    let status = result.unwrap_or_else(|failure| {
        screen.insist(&failure.words("error: "));
        failure.status
    });
    // Once more means now.
    let is_cut = tokio::select! {
        () = seat.end() => false,
        () = signals.next() => true,
    };
    // Whoever waits for the data directory need not wait for a reader.
    drop(seat);
    let is_cut = is_cut
        || tokio::select! {
            () = printer.finish() => false,
            () = signals.next() => true,
        };
    match printer.take_lost() {
        Some(error) => Err(Failure::new("disk", format!("standard output: {error}"))),
        None if is_cut && printer.has_results() => Ok(status::INTERRUPTED),
        None => Ok(status),
    }
}

async fn carry_out(seat: &mut Seat, manner: Manner, work: Work) -> Result<u8, Failure> {
    match work {
        Work::Daemon => daemon(seat).await,
        Work::Command(command, words) => Ok(one_shot::run(seat, manner.json, command, words).await),
        Work::Script => stdin::run(seat, manner).await,
    }
}

/// Runs the agent alone.
async fn daemon(seat: &mut Seat) -> Result<u8, Failure> {
    let agent = seat.run_next_agent().await?.agent().clone();
    let _news = seat.front().await?;
    let screen = seat.screen();
    screen.say(&format!("the agent is up on {}", text::path(agent.data_dir())));
    match agent.user() {
        Some(user) => {
            let (words, _) = transfers::overview(&agent.overview());
            screen.say(&format!("{user} is logged in{words}"));
        }
        None => screen.say("nobody is logged in: mtq client login USER"),
    }
    std::future::pending().await
}
