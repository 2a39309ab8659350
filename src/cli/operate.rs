//! `mtq tracker status`, `invite`, `user`, `group`, `roster`, `backup` and `export`: the operator's verbs.
//!
//! They speak to the running tracker through the socket in its data directory. Only a copy or an
//! export can be had of a tracker that does not run: then its store is opened here, under the
//! lock of the directory.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::Failure;
use super::operator_args::{GroupVerb, OperatorVerb, Place, RosterArgs, RosterVerb, UserVerb};
use super::output::{self, Answer};
use super::text;
use super::tracker::disk_failure;
use crate::client::data_dir;
use crate::control_socket::SocketPath;
use crate::limits::{MAX_CONTROL_ANSWER, MAX_INVITE_LIFE};
use crate::tracker::control::{Fault, Order};
use crate::tracker::disk::{Disk, FILE_NAME};
use crate::tracker::operator::backup_fault;
use crate::tracker::{census, store};

/// A tracker that has not answered by then is stuck. Copies take what they take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does what the operator wants.
///
/// # Errors
/// [`Failure`].
pub fn run(verb: OperatorVerb) -> Result<(), Failure> {
    match verb {
        OperatorVerb::Status { place } => {
            ask(&place, Order::Status, |status| text::table(&status_rows(status)))
        }
        OperatorVerb::Invite { place, expires } => {
            let order = Order::Invite { expires_secs: expires.as_secs() };
            let command = order.name();
            let invite = if expires.as_secs() == 0 || expires > MAX_INVITE_LIFE {
                Err(Failure::usage("an invitation is good for a second to 365 days"))
            } else {
                call(&place, &order)
            };
            let result = invite.map(|invite| {
                eprintln!("good for one account, until {}:", word(&invite, "expires"));
                Answer::new(invite.clone(), word(&invite, "code"))
            });
            say(&place, command, result)
        }
        OperatorVerb::User(verb) => user(verb),
        OperatorVerb::Group(verb) => group(verb),
        OperatorVerb::Roster(args) => roster(args),
        OperatorVerb::Backup { place, file } => backup(&place, &file),
        OperatorVerb::Export { place } => export(&place),
    }
}

fn user(verb: UserVerb) -> Result<(), Failure> {
    match verb {
        UserVerb::List { place } => {
            let rows = list(&place, "users", |after| {
                let after = after.and_then(|id| id.parse().ok());
                Order::UserList { after }
            });
            let result = rows.map(|rows| {
                let lines: Vec<_> = rows.iter().map(user_line).collect();
                Answer::new(json!({"users": rows}), text::or_none(&lines, "users"))
            });
            say(&place, "user-list", result)
        }
        UserVerb::Disable { place, user } => ask(&place, Order::UserDisable { user }, |gone| {
            format!(
                "{} is disabled: {} memberships with {} shares ended, {} devices signed out",
                word(gone, "user"),
                gone["memberships"],
                gone["shares"],
                gone["devices"],
            )
        }),
        UserVerb::Enable { place, user } => ask(&place, Order::UserEnable { user }, |user| {
            let user = word(user, "user");
            format!("{user} may log in again; groups have to be joined anew")
        }),
        UserVerb::ResetPassword { place, user } => {
            let order = Order::UserResetPassword { user };
            let result = call(&place, &order).map(|reset| {
                let (user, devices) = (word(&reset, "user"), &reset["devices"]);
                eprintln!("the new password of {user}, whose {devices} devices are signed out:");
                Answer::new(reset.clone(), word(&reset, "password"))
            });
            say(&place, order.name(), result)
        }
    }
}

fn group(verb: GroupVerb) -> Result<(), Failure> {
    match verb {
        GroupVerb::List { place } => {
            let rows = list(&place, "groups", |after| {
                let after = after.and_then(|id| id.parse().ok());
                Order::GroupList { after }
            });
            let result = rows.map(|rows| {
                let lines: Vec<_> = rows.iter().map(group_line).collect();
                Answer::new(json!({"groups": rows}), text::or_none(&lines, "groups"))
            });
            say(&place, "group-list", result)
        }
        GroupVerb::Archive { place, group } => ask(&place, Order::GroupArchive { group }, |gone| {
            format!(
                "{} is archived: {} memberships and {} files ended",
                word(gone, "group"),
                gone["memberships"],
                gone["files"],
            )
        }),
    }
}

fn roster(args: RosterArgs) -> Result<(), Failure> {
    match (args.verb, args.place) {
        (Some(RosterVerb::Add { place, link }), _) => {
            let what = format!("tracker {} is added", link.peer_id().short());
            ask(&place, Order::RosterAdd { link }, |roster| format!("{what}; {}", listed(roster)))
        }
        (Some(RosterVerb::Remove { place, tracker }), _) => {
            amended(&place, Order::RosterRemove { tracker }, "removed")
        }
        (Some(RosterVerb::Replace { place, tracker, link }), _) => {
            amended(&place, Order::RosterReplace { tracker, link }, "replaced")
        }
        (None, Some(place)) => ask(&place, Order::Roster, listed),
        (None, None) => Err(Failure::usage("--data-dir is missing")),
    }
}

/// Has the tracker take somebody out of the roster, perhaps itself.
fn amended(place: &Place, order: Order, what: &str) -> Result<(), Failure> {
    let result = call(place, &order).map(|roster| {
        if roster["listed"] == false {
            eprintln!(
                "warning: this tracker itself is no longer in the roster; end it once all others \
                 have the new one"
            );
        }
        let tracker: String = word(&roster, "peer_id").chars().take(8).collect();
        let text = format!("tracker {tracker} is {what}; {}", listed(&roster));
        Answer::new(roster, text)
    });
    say(place, order.name(), result)
}

/// A roster for people: its number, and a line for each address.
fn listed(roster: &Value) -> String {
    let trackers = roster["trackers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = trackers.iter().flat_map(|tracker| {
        let id: String = word(tracker, "peer_id").chars().take(8).collect();
        let own = if tracker["own"] == true { "this tracker" } else { "" };
        let links = tracker["links"].as_array().map(Vec::as_slice).unwrap_or_default();
        links.iter().enumerate().map(move |(place, link)| {
            let first = place == 0;
            let link = text::printable(link.as_str().unwrap_or_default());
            let cells = [if first { &id } else { "" }, &link, if first { own } else { "" }];
            cells.map(str::to_owned).to_vec()
        })
    });
    let number = match roster["number"].as_u64() {
        Some(0) | None => "no roster yet".to_owned(),
        Some(number) => format!("roster {number}"),
    };
    format!("{number}\n{}", text::table(&rows.collect::<Vec<_>>()))
}

fn backup(place: &Place, file: &Path) -> Result<(), Failure> {
    let copied = std::path::absolute(file)
        .map_err(|error| Failure::new("disk", format!("{}: {error}", text::path(file))))
        .and_then(|path| copy(place, path, true));
    let result = copied.map(|copy| {
        let size = text::size(copy["bytes"].as_u64().unwrap_or(0));
        let text = format!("{} ({size})", word(&copy, "path"));
        Answer::new(copy, text)
    });
    say(place, "backup", result)
}

/// Copies the store to `path`: the tracker does where one runs, else this process.
fn copy(place: &Place, path: PathBuf, pages: bool) -> Result<Value, Failure> {
    let order = Order::Backup { path: path.clone(), pages };
    match connect(&place.data_dir)? {
        Some(stream) => exchange(place, stream, &order),
        None => {
            let (disk, _lock) = open(place)?;
            disk.backup(&path, pages, &|| false)
                .map_err(|error| failure(backup_fault(&path, &error)))?;
            let bytes = fs::metadata(&path).map_or(0, |file| file.len());
            Ok(json!({"path": text::lossy(&path), "bytes": bytes}))
        }
    }
}

fn export(place: &Place) -> Result<(), Failure> {
    // The copy is read, not the living store: the tracker goes on, and the export is of one moment.
    let (disk, _lock) = match connect(&place.data_dir)? {
        None => open(place).map(|(disk, lock)| (disk, Some(lock)))?,
        Some(stream) => {
            let name = format!("export-{}.redb", std::process::id());
            let directory = std::path::absolute(&place.data_dir).map_err(|error| {
                Failure::new("disk", format!("{}: {error}", text::path(&place.data_dir)))
            })?;
            let path = directory.join(name);
            exchange(place, stream, &Order::Backup { path: path.clone(), pages: false })?;
            let disk = Disk::open_file(path.clone());
            // It is open: nobody needs its name any more, and nothing is left if this is killed.
            let _ = fs::remove_file(&path);
            (disk.map_err(|error| disk_failure(&error))?, None)
        }
    };
    let (state, ops) = store::stored(&disk).map_err(|error| disk_failure(&error))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut lines = 0u64;
    let mut print = |kind: &'static str, mut line: Value| {
        line["v"] = json!(1);
        line["kind"] = json!(kind);
        lines += 1;
        writeln!(out, "{line}")
    };
    let written = census::export(&state, &mut print);
    let ended = written.and_then(|()| {
        let end = json!({"v": 1, "kind": "end", "lines": lines, "ops": ops});
        writeln!(out, "{end}").and_then(|()| out.flush())
    });
    match ended {
        // A reader that went away has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("disk", format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Opens the store of a tracker that does not run, which none can be started on meanwhile.
fn open(place: &Place) -> Result<(Disk, File), Failure> {
    let directory = &place.data_dir;
    let path = directory.join(FILE_NAME);
    if !path.is_file() {
        let message = format!("there is no tracker's store in {}", text::path(directory));
        return Err(Failure::new("not-found", message).hint(DIRECTORY_HINT));
    }
    let lock = data_dir::lock(directory).map_err(|error| {
        let failure = Failure::from(error);
        match failure.code.as_str() {
            "locked" => failure.hint("a tracker is starting or ending there: try again"),
            _ => failure,
        }
    })?;
    let disk = Disk::open_file(path).map_err(|error| disk_failure(&error))?;
    Ok((disk, lock))
}

const DIRECTORY_HINT: &str = "--data-dir names the directory the tracker is started with";

/// The tracker that runs on a data directory, if one does.
fn connect(directory: &Path) -> Result<Option<UnixStream>, Failure> {
    let stream = SocketPath::of(directory).and_then(|path| UnixStream::connect(path.path()));
    match stream {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            // Refused: a killed tracker left its socket.
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::ConnectionRefused => Ok(None),
            io::ErrorKind::PermissionDenied => {
                let message =
                    format!("the tracker on {} is not yours to command", text::path(directory));
                Err(Failure::new("permission-denied", message)
                    .hint("run this as the user that runs the tracker"))
            }
            _ => Err(Failure::new("disk", format!("{}: {error}", text::path(directory)))),
        },
    }
}

/// Asks the tracker that runs on `place`.
fn call(place: &Place, order: &Order) -> Result<Value, Failure> {
    let Some(stream) = connect(&place.data_dir)? else {
        let message = format!("no tracker is running on {}", text::path(&place.data_dir));
        return Err(Failure::new("no-tracker", message).hint(DIRECTORY_HINT));
    };
    exchange(place, stream, order)
}

/// Asks one thing on a connection.
fn exchange(place: &Place, stream: UnixStream, order: &Order) -> Result<Value, Failure> {
    let lost = |why: &dyn std::fmt::Display| {
        let directory = text::path(&place.data_dir);
        Failure::new("tracker-lost", format!("the tracker on {directory} did not answer: {why}"))
    };
    let line = order.line().map_err(|error| Failure::usage(error.to_string()))?;
    let patience = if matches!(order, Order::Backup { .. }) { None } else { Some(PATIENCE) };
    let sent = stream.set_read_timeout(patience).and_then(|()| writeln!(&stream, "{line}"));
    sent.map_err(|error| lost(&error))?;
    let mut answer = Vec::new();
    BufReader::new(&stream)
        .take(MAX_CONTROL_ANSWER)
        .read_until(b'\n', &mut answer)
        .map_err(|error| lost(&error))?;
    if answer.is_empty() {
        return Err(lost(&"it ended"));
    }
    let mut answer: Value = serde_json::from_slice(&answer).map_err(|error| lost(&error))?;
    if answer["ok"] == true {
        return Ok(answer["result"].take());
    }
    let fault: Result<Fault, _> = serde_json::from_value(answer["error"].take());
    Err(failure(fault.map_err(|error| lost(&error))?))
}

fn failure(fault: Fault) -> Failure {
    let failure = Failure::new(&fault.code, text::printable(&fault.message));
    Failure { hint: fault.hint, ..failure }
}

/// All rows of a list, page by page, in order of name.
fn list(
    place: &Place,
    field: &str,
    order: impl Fn(Option<&str>) -> Order,
) -> Result<Vec<Value>, Failure> {
    let mut rows: Vec<Value> = Vec::new();
    loop {
        let after = rows.last().and_then(|row| row["id"].as_str());
        let mut page = call(place, &order(after))?;
        let more = page["more"] == true;
        let new = page[field].as_array_mut().map(std::mem::take).unwrap_or_default();
        let ended = new.is_empty() || !more;
        rows.extend(new);
        if ended {
            let name = field.trim_end_matches('s');
            rows.sort_by(|a, b| {
                (word(a, name), word(a, "id")).cmp(&(word(b, name), word(b, "id")))
            });
            return Ok(rows);
        }
    }
}

/// Asks the tracker and says its answer, for people as `words` puts it.
fn ask(place: &Place, order: Order, words: impl Fn(&Value) -> String) -> Result<(), Failure> {
    let result = call(place, &order).map(|result| {
        let text = words(&result);
        Answer::new(result, text)
    });
    say(place, order.name(), result)
}

fn say(place: &Place, command: &str, result: Result<Answer, Failure>) -> Result<(), Failure> {
    output::print(command, &result, place.json);
    result.map(drop)
}

/// A field of an answer as text.
fn word(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::String(text) => text::printable(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn user_line(row: &Value) -> Vec<String> {
    vec![
        word(row, "user"),
        if row["disabled"] == true { "disabled" } else { "" }.to_owned(),
        format!("{} devices", row["devices"]),
        format!("{} groups", row["groups"]),
        format!("{} shares", row["shares"]),
        match (row["online"] == true, &row["last_seen"]) {
            (true, _) => "online".to_owned(),
            (_, Value::String(at)) => format!("last seen {at}"),
            _ => "offline".to_owned(),
        },
        format!("since {}", word(row, "created")),
    ]
}

fn group_line(row: &Value) -> Vec<String> {
    let marks = [(row["hidden"] == true, "hidden"), (row["archived"] == true, "archived")];
    let marks: Vec<_> = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
    vec![
        word(row, "group"),
        match &row["owner"] {
            Value::String(owner) => format!("owner {owner}"),
            _ => "no owner".to_owned(),
        },
        text::count(row["members"].as_u64().unwrap_or(0) as usize, "member"),
        format!("{} files", row["files"]),
        marks.join(", "),
        match &row["created"] {
            Value::String(at) => format!("since {at}"),
            _ => String::new(),
        },
    ]
}

/// Another tracker in a line.
fn sibling_text(sibling: &Value) -> String {
    let count = |field: &str| sibling[field].as_u64().unwrap_or(0);
    let link =
        sibling["links"][0].as_str().map_or_else(|| word(sibling, "peer_id"), text::printable);
    let mut parts = vec![link];
    parts.push(match (sibling["connected"] == true, &sibling["heard"]) {
        (true, _) if count("silent_ms") > 2_000 => {
            format!("SILENT for {} s", count("silent_ms") / 1_000)
        }
        (true, _) => "connected".to_owned(),
        (false, Value::String(at)) => format!("NOT CONNECTED, last heard {at}"),
        (false, _) => return format!("{}, NOT CONNECTED, never heard", parts[0]),
    });
    parts.push(match (count("behind_ops"), count("ahead_ops")) {
        (0, 0) => "level".to_owned(),
        (0, ahead) => format!("{ahead} ops ahead"),
        (behind, _) => {
            let since = humantime::format_duration(Duration::from_millis(count("behind_ms")));
            format!("{behind} ops behind for {since}")
        }
    });
    parts.push(match (sibling["disagrees"] == true, &sibling["agreed"]) {
        (true, _) => "DIGESTS DISAGREE: see the log".to_owned(),
        (false, Value::String(at)) => format!("digests agreed {at}"),
        (false, _) => "digests not compared yet".to_owned(),
    });
    parts.join(", ")
}

fn status_rows(status: &Value) -> Vec<Vec<String>> {
    let bytes = |field: &str| text::size(status[field].as_u64().unwrap_or(0));
    let up = Duration::from_secs(status["uptime_secs"].as_u64().unwrap_or(0));
    let limits = status["limits_hit"].as_object().filter(|limits| !limits.is_empty());
    let limits = limits.map(|limits| {
        let hits: Vec<_> = limits.iter().map(|(limit, hits)| format!("{limit} {hits}")).collect();
        hits.join(", ")
    });
    let registration = match status["public_group"] == true {
        true => word(status, "registration"),
        false => format!("{}, no group public", word(status, "registration")),
    };
    let rows = [
        ("version", word(status, "version")),
        ("tracker", word(status, "peer_id")),
        ("address", word(status, "address")),
        ("metrics", word(status, "metrics")),
        ("up", humantime::format_duration(up).to_string()),
        ("registration", registration),
        ("accounts", word(status, "accounts")),
        ("groups", word(status, "groups")),
        ("files", format!("{} ({} shares)", status["files"], status["shares"])),
        ("online", format!("{} users, {} devices", status["users_online"], status["connections"])),
        ("swarms", word(status, "swarms")),
        ("ops", format!("{}, the latest {}", status["ops"], word(status, "latest_op"))),
        ("hash pages", format!("{} ({})", status["pages"], bytes("page_bytes"))),
        (
            "store",
            match status["store_writable"] == false {
                true => format!("{}, CANNOT BE WRITTEN: see the log", bytes("store_bytes")),
                false => bytes("store_bytes"),
            },
        ),
        ("limits hit", limits.unwrap_or_else(|| "none".to_owned())),
        ("digest", word(status, "digest")),
    ];
    let mut rows: Vec<_> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    if let Some(millis) = status["clock_off_ms"].as_u64() {
        let off = humantime::format_duration(Duration::from_millis(millis));
        rows.push(vec!["clock".to_owned(), format!("OFF by {off}: no changes are taken")]);
    }
    if status["listed"] == false && status["roster"].as_u64() > Some(0) {
        let text = "this tracker is NOT IN THE ROSTER: nobody counts on it";
        rows.push(vec!["roster".to_owned(), text.to_owned()]);
    }
    if status["sync_alarms"].as_u64().unwrap_or(0) > 0 {
        rows.push(vec![
            "sync alarms".to_owned(),
            format!("{}: see the log", status["sync_alarms"]),
        ]);
    }
    let siblings = status["siblings"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.extend(siblings.iter().map(|sibling| vec!["sibling".to_owned(), sibling_text(sibling)]));
    rows
}
