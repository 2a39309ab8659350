//! `mtq tracker`: runs a tracker until a signal.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Failure, status};
use super::files::read_text;
use super::operator_args::{LogFormat, RegistrationMode, RunArgs};
use super::printer::{Kind, LeftOut, Printer, Stream};
use super::{logging, screen, text};
use crate::client::data_dir;
use crate::limits::MAX_TRACKER_INFO_LEN;
use crate::tracker::disk::DiskError;
use crate::tracker::server::{StartError, Tracker, TrackerConfig};
use crate::tracker::state::{Registration, Rules};
use crate::tracker_link::{TrackerInfo, TrackerLink};
use crate::transport::endpoint::{BindError, any_address};
use crate::transport::identity::{FILE_NAME, Identity, IdentityError};
use crate::transport::tuning::Tuning;

/// Runs the tracker; returns the exit status.
///
/// # Errors
/// [`Failure`] when it cannot even say what went wrong in order.
pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    logging::start(args.log_file.as_deref(), "info", args.log_format)?;
    let printer = Printer::start().map_err(refused)?;
    logging::hand_to(log_to(printer.clone(), args.log_format));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(refused)?;
    runtime.block_on(async {
        let status = run_here(args).await.map_or_else(
            |failure| {
                printer.put(Stream::Error, Kind::Result, failure.shown() + "\n");
                failure.status
            },
            |()| 0,
        );
        printer.finish().await;
        Ok(status)
    })
}

/// Prints lines of the log.
fn log_to(printer: Printer, format: LogFormat) -> impl Fn(&str) {
    let left_out = Mutex::new(LeftOut::default());
    move |lines| {
        let mut left_out = left_out.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, text) = ((Stream::Error, Kind::News), format!("{lines}\n"));
        left_out.put(&printer, to, (text, lines.lines().count()), |missed| {
            let words = screen::left_out(missed);
            let words = match format {
                LogFormat::Human => words,
                LogFormat::Json => json!({"level": "WARN", "message": words}).to_string(),
            };
            (Stream::Error, words)
        });
    }
}

/// What the system does not give.
fn refused(error: io::Error) -> Failure {
    Failure::new("internal", error.to_string())
}

async fn run_here(args: &RunArgs) -> Result<(), Failure> {
    let _lock = data_dir::lock(&args.data_dir)?;
    let identity = match &args.identity {
        Some(path) => Identity::load(path),
        None => Identity::load_or_create(&args.data_dir.join(FILE_NAME)),
    };
    let identity = Arc::new(identity.map_err(identity_failure)?);
    let info = args.trackers.as_deref().map(load_trackers).transpose()?;
    let link = info.as_ref().and_then(|info| info.find(identity.peer_id())).cloned();
    let mut config = TrackerConfig::new(identity, any_address(0));
    config.trackers = info;
    config.rules = rules(args);
    config.metrics = args.metrics;
    config.tuning = Tuning { max_mtu: args.max_mtu, congestion: args.congestion };
    if let Some(most) = args.max_connections_per_address {
        config.connections_per_address = most as usize;
    }
    let tracker = start(args, link.as_ref(), config).await?;
    serve(&tracker).await
}

fn rules(args: &RunArgs) -> Rules {
    let registration = match args.registration {
        RegistrationMode::Open => Registration::Open,
        RegistrationMode::Invite => Registration::Invite,
        RegistrationMode::Closed => Registration::Closed,
    };
    Rules { registration, public: !args.no_public_group }
}

/// Reads a tracker_info.txt.
///
/// # Errors
/// [`Failure`].
pub fn load_trackers(path: &std::path::Path) -> Result<TrackerInfo, Failure> {
    let text = read_text(path, MAX_TRACKER_INFO_LEN)?;
    text.parse().map_err(|error| {
        Failure::new("bad-tracker-info", format!("{}: {error}", text::path(path)))
            .hint("each line is a link mtq://HOST:PORT#PEERID, as mtq certs writes them")
    })
}

fn identity_failure(error: IdentityError) -> Failure {
    crate::client::error::AgentError::Identity(error).into()
}

async fn start(
    args: &RunArgs,
    link: Option<&TrackerLink>,
    config: TrackerConfig,
) -> Result<Tracker, Failure> {
    let start =
        |address| Tracker::start(TrackerConfig { address, ..config.clone() }, &args.data_dir);
    if let Some(address) = args.listen {
        return start(address).map_err(start_failure);
    }
    let Some(link) = link else {
        let id = config.identity.peer_id();
        return Err(Failure::new("not-listed", format!("no line of --trackers is for {id}"))
            .hint("use the matching --identity, or say --listen ADDR"));
    };
    let resolved = tokio::net::lookup_host((link.host(), link.port())).await;
    let resolved = resolved.map_err(|error| {
        Failure::new("bind", format!("{}: {error}", link.host())).hint("or say --listen ADDR")
    })?;
    // A machine's own name often means loopback to itself, where no client would find it.
    let is_name = link.host().parse::<std::net::IpAddr>().is_err() && link.host() != "localhost";
    for address in resolved.filter(|address| !(is_name && address.ip().is_loopback())) {
        match start(address) {
            // The address clients use may be a router's, not ours.
            Err(StartError::Bind(BindError::Socket { error, .. }))
                if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            result => return result.map_err(start_failure),
        }
    }
    tracing::info!(link = %link, "its address is not this machine's; listening on all addresses");
    start(any_address(link.port())).map_err(start_failure)
}

fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Disk(error) => disk_failure(&error),
        StartError::Roster(error) => Failure::new("disk", error.to_string()),
        StartError::Control { .. } => Failure::new("disk", error.to_string())
            .hint("the data directory must be on a file system that has sockets"),
        error => Failure::new("bind", error.to_string()),
    }
}

/// A store that cannot be used.
pub fn disk_failure(error: &DiskError) -> Failure {
    let (code, hint) = match error {
        DiskError::Full => ("no-space", Some("make room and start it again")),
        DiskError::InUse => ("locked", Some("stop the other one first")),
        DiskError::Format(_) => {
            ("store", Some("use the version of mtq that wrote it, or a later one"))
        }
        DiskError::Damaged(_) => ("store", Some("put a backup in its place")),
        _ => ("disk", None),
    };
    let failure = Failure::new(code, format!("the tracker's store: {error}"));
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

async fn serve(tracker: &Tracker) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    let link = tracker.link().map_err(refused)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %link, "tracker is up");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!(clients = tracker.connection_count(), "stopping");
    tokio::select! {
        () = tracker.shutdown() => {}
        _ = interrupt.recv() => std::process::exit(i32::from(status::INTERRUPTED)),
        _ = terminate.recv() => std::process::exit(i32::from(status::INTERRUPTED)),
    }
    tracing::info!("stopped");
    Ok(())
}
