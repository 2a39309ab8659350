//! Where the log goes: standard error, or a file; as lines for people, or as JSON.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::colour;
use super::exit::Failure;
use super::operator_args::LogFormat;

/// Somebody who takes lines.
type Taker = Box<dyn Fn(&str) + Send + Sync>;

/// Who takes those that would go to standard error.
static TAKER: OnceLock<Taker> = OnceLock::new();

/// Starts logging from `level` up, or as `MTQ_LOG` says (for example `debug` or `mtq=trace`).
///
/// # Errors
/// [`Failure`] when the file cannot be written.
pub fn start(file: Option<&Path>, level: &str, format: LogFormat) -> Result<(), Failure> {
    // The transport library's own words are for its developers.
    let default = format!("{level},quinn=error,quinn_proto=error,quinn_udp=error");
    let filter = EnvFilter::try_from_env("MTQ_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let (writer, colours) = match file {
        None => (BoxMakeWriter::new(|| Lines), colour::is_on(&io::stderr())),
        Some(path) => {
            let log =
                OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                    Failure::new("disk", format!("{}: {error}", path.display()))
                })?;
            (BoxMakeWriter::new(log), false)
        }
    };
    // A log that cannot be written is not said on the terminal, event by event.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false);
    match format {
        LogFormat::Human => builder.with_target(false).with_ansi(colours).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// From now on `taker` gets the lines that would go to standard error; only the first one does. It
/// must not log.
pub fn hand_to(taker: impl Fn(&str) + Send + Sync + 'static) {
    let _ = TAKER.set(Box::new(taker));
}

/// Standard error, or who takes its place. An event is written at once, whole lines.
struct Lines;

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match TAKER.get() {
            Some(take) => take(String::from_utf8_lossy(lines).trim_end()),
            None => io::stderr().write_all(lines)?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
