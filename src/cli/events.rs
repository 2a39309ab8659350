//! What happens, as objects for scripts: one shape for the control socket, the hook and `--json`.

use serde_json::{Value, json};

use super::progress;
use super::transfers;
use crate::client::agent::Agent;
use crate::client::report::Notice;

/// Something that happened: its fields, in `message` the same in words, and in `grave` whether also
/// those must know who only run a command.
pub fn json(notice: &Notice) -> Value {
    let mut event = json!({"event": "notice"});
    event["message"] = json!(notice.to_string());
    event["grave"] = json!(notice.is_grave());
    event
}

/// Events were lost on the way to somebody who reads too slowly.
pub fn lagged(missed: u64) -> Value {
    let message = format!("{missed} events were missed: they came faster than they were read");
    json!({"event": "lagged", "missed": missed, "message": message, "grave": true})
}

/// How far everything under way is.
pub fn under_way(agent: &Agent) -> Value {
    let rows = agent.under_way();
    let items = rows.iter().map(|row| {
        json!({
            "download": row.number, "state": transfers::state(row), "group": row.group,
            "name": row.name, "done_bytes": row.progress.stored_bytes, "size": row.size,
            "bytes_per_sec": row.progress.bytes_per_sec, "note": progress::note(row),
        })
    });
    items.collect()
}
