//! What happens, as objects for scripts: one shape for the control socket, the hook and `--json`.

use serde_json::{Value, json};

use super::progress;
use super::text;
use super::transfers;
use crate::client::agent::Agent;
use crate::client::batch::BatchRow;
use crate::client::library::EntryState;
use crate::client::looking::LookingKind;
use crate::client::report::Notice;

/// Something that happened: its fields, in `message` the same in words, and in `grave` whether also
/// those must know who only run a command.
pub fn json(notice: &Notice) -> Value {
    // Names and numbers: that cannot fail.
    let mut event = serde_json::to_value(notice).unwrap_or_else(|_| json!({"event": "unknown"}));
    event["message"] = json!(notice.to_string());
    event["grave"] = json!(notice.is_grave());
    event
}

/// How far everything under way is.
pub fn under_way(agent: &Agent) -> Value {
    let looking = agent.looking().into_iter().map(|looking| {
        let state = match looking.kind {
            LookingKind::Hashing => "hashing",
            LookingKind::Checking => "checking",
        };
        json!({
            "state": state, "group": looking.group, "name": looking.name,
            "path": text::lossy(&looking.path), "done_bytes": looking.done_bytes,
            "size": looking.size,
        })
    });
    let (rows, batches) = agent.under_way_by_batch();
    let of_many: Vec<_> = batches.iter().map(|row| row.batch.directory.as_path()).collect();
    // What is looked at for one of many is counted with them.
    let looking = looking.filter(|item| {
        let path = std::path::Path::new(item["path"].as_str().unwrap_or(""));
        item["state"] == "hashing" || !of_many.iter().any(|directory| path.starts_with(directory))
    });
    let batches = batches.iter().map(|BatchRow { batch, over, stored_bytes }| {
        json!({
            "state": "downloading", "group": batch.group,
            "name": text::count(batch.count, "file"), "path": text::lossy(&batch.directory),
            "done_bytes": stored_bytes, "size": batch.size, "files": batch.count,
            "files_done": over,
        })
    });
    // What is checked is among those looked at.
    let moving = rows.iter().filter(|row| row.state != EntryState::Checking).map(|row| {
        json!({
            "state": transfers::state(row), "group": row.group, "name": row.name,
            "path": text::lossy(&row.path), "done_bytes": row.progress.stored_bytes,
            "size": row.size, "download": row.number,
            "bytes_per_sec": row.progress.bytes_per_sec, "note": progress::note(row),
        })
    });
    batches.chain(looking).chain(moving).collect()
}
