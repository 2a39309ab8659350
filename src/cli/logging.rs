//! Where the log goes: standard error, or a file.

use std::fs::OpenOptions;
use std::path::Path;

use tracing_subscriber::EnvFilter;

use super::exit::Failure;

/// Starts logging from `level` up, or as `MTQ_LOG` says (for example `debug` or `mtq=trace`).
///
/// # Errors
/// [`Failure`] when the file cannot be written.
pub fn start(file: Option<&Path>, level: &str) -> Result<(), Failure> {
    // The transport library's own words are for its developers.
    let default = format!("{level},quinn=error,quinn_proto=error,quinn_udp=error");
    let filter = EnvFilter::try_from_env("MTQ_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match file {
        None => builder
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        Some(path) => {
            let log =
                OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                    Failure::new("disk", format!("{}: {error}", path.display()))
                })?;
            builder.with_writer(log).with_ansi(false).init();
        }
    }
    Ok(())
}
