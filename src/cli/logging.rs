//! Where the log goes: standard error, or a file; as lines for people, or as JSON.

use std::fs::OpenOptions;
use std::io::IsTerminal as _;
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::exit::Failure;
use super::operator_args::LogFormat;

/// Starts logging from `level` up, or as `MTQ_LOG` says (for example `debug` or `mtq=trace`).
///
/// # Errors
/// [`Failure`] when the file cannot be written.
pub fn start(file: Option<&Path>, level: &str, format: LogFormat) -> Result<(), Failure> {
    // The transport library's own words are for its developers.
    let default = format!("{level},quinn=error,quinn_proto=error,quinn_udp=error");
    let filter = EnvFilter::try_from_env("MTQ_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let (writer, colours) = match file {
        None => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
        Some(path) => {
            let log =
                OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                    Failure::new("disk", format!("{}: {error}", path.display()))
                })?;
            (BoxMakeWriter::new(log), false)
        }
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Human => builder.with_target(false).with_ansi(colours).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
