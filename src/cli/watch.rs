//! `downloads --watch`: the rows anew every second, until somebody has seen enough.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::client_args::ClientCommand;
use super::exit::Failure;
use super::request::Request;
use super::seat::Seat;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);

/// Shows what `request` asks for again and again; returns the status of the first time it failed.
///
/// # Errors
/// [`Failure`] when there is no agent.
pub async fn run(
    seat: &mut Seat,
    command: &ClientCommand,
    request: Request,
    as_json: bool,
) -> Result<u8, Failure> {
    let unread = seat.screen().unread();
    loop {
        seat.goes_on()?;
        let reply = seat.ask(command, request.clone(), None).await?;
        if !as_json && std::io::stdout().is_terminal() {
            // Over what was there.
            seat.screen().clear();
        }
        let status = reply.tell(seat.screen(), as_json, "");
        seat.screen().until_taken().await;
        if status != 0 {
            return Ok(status);
        }
        tokio::select! {
            () = unread.cancelled() => return Ok(0),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
