//! Runs one client command: the one set of handlers behind script and prompt.

use std::time::Duration;

use serde_json::{Value, json};

use super::client_args::ClientCommand;
use super::exit::Failure;
use super::files::{self, Many};
use super::output::Answer;
use super::rate::Rate;
use super::request::Request;
use super::text::{self, or_none, table};
use super::transfers;
use crate::client::agent::Agent;
use crate::client::report::Cancelled;
use crate::client::status::{Status, TrackerStatus};
use crate::name::{GroupName, Selector};
use crate::swarm::rates::RateLimits;
use crate::tracker::message::{FileRow, Matching, Password, Standing, Written};

/// The code of the failure of a command that needs a password and has none.
pub const PASSWORD_NEEDED: &str = "password-needed";

/// Runs `command`; `request` has what else was said with it.
///
/// # Errors
/// [`Failure`].
pub async fn run(
    agent: &Agent,
    request: &Request,
    command: ClientCommand,
) -> Result<Answer, Failure> {
    match command {
        ClientCommand::CreateUser { user, password, invite } => {
            let password = secret(password, &request.password)?;
            let written = agent.create_user(user.clone(), password, invite).await?;
            let (provisional, warning) = provisional(written, user.as_str());
            let json = json!({"user": user, "provisional": provisional});
            let answer = Answer::new(json, format!("user {user} created"));
            Ok(answer.warn_if(warning))
        }
        ClientCommand::Login { user, password } => {
            // A device that logged in before needs no password.
            let known = match &password {
                Some(_) => None,
                None => agent.login_by_key(&user).await?,
            };
            let logged_in = match known {
                Some(logged_in) => logged_in,
                None => {
                    let password = secret(password, &request.password)?;
                    agent.login(user, password).await?
                }
            };
            Ok(transfers::logged_in(&logged_in))
        }
        ClientCommand::Passwd { old, new } => {
            let old = secret(old, &request.password)?;
            let new = secret(new, &request.new_password)?;
            agent.change_password(old, new).await?;
            let text = "password changed; your other devices have to log in again";
            Ok(Answer::new(json!({}), text))
        }
        ClientCommand::Devices => {
            let rows = agent.devices().await?;
            let me = agent.peer_id();
            let lines: Vec<_> = rows
                .iter()
                .map(|row| {
                    vec![
                        row.peer_id.short(),
                        if row.peer_id == me { "this device" } else { "" }.to_owned(),
                        if row.online { "online" } else { "offline" }.to_owned(),
                        format!("since {}", row.since),
                    ]
                })
                .collect();
            let json = rows.iter().map(|row| {
                json!({
                    "peer_id": row.peer_id, "this": row.peer_id == me, "online": row.online,
                    "since": row.since,
                })
            });
            Ok(Answer::new(json!({"devices": json.collect::<Value>()}), table(&lines)))
        }
        ClientCommand::RemoveDevice { device } => {
            let rows = agent.devices().await?;
            let mut hits = rows.iter().filter(|row| row.peer_id.to_string().starts_with(&device));
            let (Some(hit), None) = (hits.next(), hits.next()) else {
                let message = format!("{device} is not the beginning of the id of one device");
                return Err(Failure::new("no-such-device", message)
                    .hint("devices lists yours with their ids"));
            };
            if hit.peer_id == agent.peer_id() {
                return Err(
                    Failure::usage("this is the device you are using").hint("logout forgets it")
                );
            }
            agent.remove_device(hit.peer_id).await?;
            let text = format!("device {} is forgotten", hit.peer_id.short());
            Ok(Answer::new(json!({"peer_id": hit.peer_id}), text))
        }
        ClientCommand::Logout => {
            let stopped = agent.logout().await?;
            let text = match stopped {
                0 => "logged out".to_owned(),
                n => format!(
                    "logged out; no more sharing and downloading of {}",
                    text::count(n, "file")
                ),
            };
            Ok(Answer::new(json!({"stopped": stopped}), text))
        }
        ClientCommand::Whoami => {
            let peer = agent.peer_id();
            // A login may have ended while this client did not run.
            let asked = match agent.user() {
                Some(user) => agent.login_by_key(&user).await.is_ok(),
                None => true,
            };
            let user = agent.user();
            let name = user.as_ref().map_or("nobody".to_owned(), ToString::to_string);
            let note = if asked { "" } else { " (no tracker can be asked)" };
            let text = format!("{name}, on device {peer}{note}");
            Ok(Answer::new(json!({"user": user, "peer_id": peer}), text))
        }
        ClientCommand::CreateGroup { group, hidden } => {
            let written = agent.create_group(group.clone(), hidden).await?;
            let (provisional, warning) = provisional(written, group.as_str());
            let json = json!({"group": group, "provisional": provisional});
            let answer = Answer::new(json, format!("group {group} created; you own it"));
            Ok(answer.warn_if(warning))
        }
        ClientCommand::ListGroups => {
            let rows = agent.list_groups().await?;
            let lines: Vec<_> = rows
                .iter()
                .map(|row| {
                    let standing = match row.standing {
                        Standing::Owner => "owner",
                        Standing::Member => "member",
                        Standing::Requested => "requested",
                        Standing::None => "",
                    };
                    vec![
                        row.name.to_string(),
                        match &row.owner {
                            Some(owner) => format!("owner {owner}"),
                            None => "everybody's".to_owned(),
                        },
                        text::count(row.member_count as usize, "member"),
                        standing.to_owned(),
                    ]
                })
                .collect();
            let json = rows.iter().map(|row| {
                json!({
                    "group": row.name, "owner": row.owner, "members": row.member_count,
                    "standing": row.standing, "hidden": row.hidden,
                })
            });
            Ok(Answer::new(json!({"groups": json.collect::<Value>()}), or_none(&lines, "groups")))
        }
        ClientCommand::JoinGroup { group } => {
            agent.join_group(group.clone()).await?;
            let text = format!("asked to join {group}; its owner decides");
            Ok(Answer::new(json!({"group": group}), text))
        }
        ClientCommand::LeaveGroup { group } => {
            let last = agent.list_members(group.clone()).await?.len() == 1;
            agent.leave_group(group.clone()).await?;
            let text = match last {
                true => {
                    format!("left {group}; nobody else was in it: it is archived with its list")
                }
                false => format!("left {group}"),
            };
            Ok(Answer::new(json!({"group": group, "archived": last}), text))
        }
        ClientCommand::ListRequests { group } => {
            let rows = agent.list_requests(group.clone()).await?;
            let lines: Vec<_> = rows
                .iter()
                .map(|row| vec![row.user.to_string(), format!("since {}", row.at)])
                .collect();
            let json = rows.iter().map(|row| json!({"user": row.user, "at": row.at}));
            let json = json!({"group": group, "requests": json.collect::<Value>()});
            Ok(Answer::new(json, or_none(&lines, "requests")))
        }
        ClientCommand::AcceptRequest { group, user } => {
            agent.accept_request(group.clone(), user.clone()).await?;
            let text = format!("{user} is now a member of {group}");
            Ok(Answer::new(json!({"group": group, "user": user}), text))
        }
        ClientCommand::RejectRequest { group, user } => {
            agent.reject_request(group.clone(), user.clone()).await?;
            let text = format!("the request of {user} to join {group} is rejected");
            Ok(Answer::new(json!({"group": group, "user": user}), text))
        }
        ClientCommand::Kick { group, user } => {
            agent.kick(group.clone(), user.clone()).await?;
            let text = format!("{user} is no longer a member of {group}");
            Ok(Answer::new(json!({"group": group, "user": user}), text))
        }
        ClientCommand::Nominate { group, user } => {
            agent.nominate(group.clone(), user.clone()).await?;
            let text = match &user {
                Some(user) => format!("{user} will own {group} when you leave"),
                None => format!("the longest-standing member will own {group} when you leave"),
            };
            Ok(Answer::new(json!({"group": group, "user": user}), text))
        }
        ClientCommand::TransferGroup { group, user } => {
            agent.transfer_group(group.clone(), user.clone()).await?;
            let text = format!("{user} now owns {group}");
            Ok(Answer::new(json!({"group": group, "user": user}), text))
        }
        ClientCommand::SetGroup { group, offline_grace } => {
            agent.set_group(group.clone(), offline_grace).await?;
            let text = match offline_grace.is_zero() {
                true => format!("transfers in {group} end when no tracker can be reached"),
                false => format!(
                    "running transfers in {group} go on for {} without any tracker",
                    humantime::format_duration(offline_grace)
                ),
            };
            let json = json!({"group": group, "offline_grace_secs": offline_grace.as_secs()});
            Ok(Answer::new(json, text))
        }
        ClientCommand::Unlist { group, file } => {
            agent.unlist(group.clone(), file.clone()).await?;
            let text = format!("{file} is off the list of {group}");
            Ok(Answer::new(json!({"group": group, "file": file.to_string()}), text))
        }
        ClientCommand::ListMembers { group } => {
            let rows = agent.list_members(group.clone()).await?;
            let lines: Vec<_> = rows
                .iter()
                .map(|row| {
                    vec![
                        row.user.to_string(),
                        match (row.owner, row.nominee) {
                            (true, _) => "owner",
                            (_, true) => "member, next owner",
                            _ => "member",
                        }
                        .to_owned(),
                        match (row.online, row.last_seen) {
                            (true, _) => "online".to_owned(),
                            (_, Some(at)) => format!("last seen {at}"),
                            _ => "offline".to_owned(),
                        },
                        format!("since {}", row.since),
                    ]
                })
                .collect();
            let json = rows.iter().map(|row| {
                json!({
                    "user": row.user, "owner": row.owner, "nominee": row.nominee,
                    "online": row.online, "last_seen": row.last_seen, "since": row.since,
                })
            });
            let json = json!({"group": group, "members": json.collect::<Value>()});
            Ok(Answer::new(json, table(&lines)))
        }
        ClientCommand::Share { words, group, name, mtorrent } => {
            files::share(agent, request, words, group, name, mtorrent).await
        }
        ClientCommand::ListFiles { group } => {
            let rows = agent.list_files(group.clone()).await?;
            let json = rows.iter().map(file_json).collect::<Value>();
            let lines: Vec<_> = rows.iter().map(file_line).collect();
            Ok(Answer::new(json!({"group": group, "files": json}), or_none(&lines, "files")))
        }
        ClientCommand::Search { pattern, prefix, regex, glob } => {
            let matching = match (prefix, regex, glob) {
                (true, ..) => Matching::Prefix,
                (_, true, _) => Matching::Regex,
                (.., true) => Matching::Glob,
                _ => Matching::Contains,
            };
            let rows = agent.search(&pattern, matching).await?;
            let json = rows.iter().map(file_json).collect::<Value>();
            let lines: Vec<_> = rows
                .iter()
                .map(|row| [vec![row.group.to_string()], file_line(row)].concat())
                .collect();
            Ok(Answer::new(json!({"pattern": pattern, "files": json}), or_none(&lines, "files")))
        }
        ClientCommand::Get { source, file, dest, glob, regex, list, wait } => {
            let many = match (glob, regex, list) {
                (true, ..) => Some(Many::Matching(Matching::Glob)),
                (_, true, _) => Some(Many::Matching(Matching::Regex)),
                (.., true) => Some(Many::List),
                _ => None,
            };
            match many {
                Some(many) => {
                    files::get_many(agent, request, many, &source, &file, dest.as_deref(), wait)
                        .await
                }
                None => files::get(agent, &source, &file, dest.as_deref(), wait).await,
            }
        }
        ClientCommand::Downloads { .. } => {
            agent.look_for_changes().await;
            Ok(transfers::downloads(agent))
        }
        ClientCommand::Pause { group, file } => {
            Ok(transfers::one("paused", &agent.pause(&group, &file).await?))
        }
        ClientCommand::Resume { group, file } => {
            Ok(transfers::one("resumed", &agent.resume(&group, &file).await?))
        }
        ClientCommand::Cancel { group, file, keep } => {
            let Cancelled { row, deleted_bytes } = agent.cancel(&group, &file, keep).await?;
            let mut answer = transfers::one("cancelled", &row);
            answer.json["deleted_bytes"] = json!(deleted_bytes);
            Ok(answer)
        }
        ClientCommand::StopShare { group, file } => {
            agent.stop_share(group.clone(), file.clone()).await?;
            let text = format!("{file} in {group} is no longer shared");
            Ok(Answer::new(json!({"group": group, "file": file.to_string()}), text))
        }
        ClientCommand::Remove { metafile } => {
            let (group, name) = agent.remove(&metafile).await?;
            let text = format!("{name} in {group} is no longer shared; its data stays");
            let json = json!({"group": group, "name": name, "mtorrent": text::lossy(&metafile)});
            Ok(Answer::new(json, text))
        }
        ClientCommand::Wait { group, files, timeout } => {
            files::wait(agent, group.map(|group| (group, files)), timeout).await
        }
        ClientCommand::Limit { up, down, group, file } => limit(agent, group.zip(file), up, down),
        ClientCommand::Peers { group, file } => transfers::peers(agent, group.zip(file)),
        ClientCommand::Status => Ok(status(agent, &agent.status().await)),
        // Both mean the connection on which they come, and what the agent runs in.
        ClientCommand::Events { .. } => Ok(Answer::new(json!({}), "")),
        ClientCommand::Quit => Ok(Answer::new(json!({}), "the agent ends")),
    }
}

fn limit(
    agent: &Agent,
    which: Option<(GroupName, Selector)>,
    up: Option<Rate>,
    down: Option<Rate>,
) -> Result<Answer, Failure> {
    let limits = agent.limit(which.as_ref(), |limits| {
        limits.up = up.map_or(limits.up, |rate| rate.0);
        limits.down = down.map_or(limits.down, |rate| rate.0);
    })?;
    let (group, file) = which.unzip();
    let what = match (&group, &file) {
        (Some(group), Some(file)) => format!("{file} in {group}"),
        _ => "everything together".to_owned(),
    };
    let text = format!("{what}: {}", limits_text(limits));
    let json = json!({
        "group": group, "file": file.map(|file| file.to_string()),
        "up_bytes_per_sec": limits.up, "down_bytes_per_sec": limits.down,
    });
    Ok(Answer::new(json, text))
}

fn limits_text(limits: RateLimits) -> String {
    let words = |rate: Option<u64>| rate.map_or("no limit".to_owned(), text::rate);
    format!("up {}, down {}", words(limits.up), words(limits.down))
}

/// Whether a name may yet turn out to be taken, and what the person is told then.
fn provisional(written: Option<Written>, name: &str) -> (bool, Option<String>) {
    let provisional = written.is_some_and(|written| written.provisional);
    let warning = provisional.then(|| {
        format!(
            "not all trackers could be asked for {name}: if one of them has given it away, the \
             earlier keeps it and yours gets a mark"
        )
    });
    (provisional, warning)
}

fn status(agent: &Agent, status: &Status) -> Answer {
    let name = status.user.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    let mut text = format!("{name}, on device {}", status.peer_id);
    let data_dir = agent.data_dir();
    text += &format!("\nagent: process {}, {}", std::process::id(), text::path(data_dir));
    if let Some(offset) = status.clock_offset_ms {
        text += &format!("\ntracker time is {offset:+} ms off ours");
    }
    let lines: Vec<_> = status.trackers.iter().map(tracker_line).collect();
    text += &format!("\n{}", table(&lines));
    if let Some(change) = status.last_change {
        text += &format!("\nlast change: on {} of {} trackers", change.on, change.of);
    }
    let (sums, transfers) = transfers::sums(&agent.downloads());
    let limits = agent.limits();
    text += &format!("\n{sums}");
    if limits.up.is_some() || limits.down.is_some() {
        text += &format!("\nlimits: {}", limits_text(limits));
    }
    let trackers = status.trackers.iter().map(|TrackerStatus { line, sync }| {
        json!({
            "peer_id": line.peer_id, "tracker": line.link, "connected": line.connected,
            "logged_in": line.logged_in, "in_use": line.in_use,
            "rtt_ms": line.rtt.map(|rtt| rtt.as_millis() as u64),
            "error": line.missed.as_deref().map(text::printable),
            "sync": sync.map(|sync| json!({
                "connected": sync.connected, "behind": sync.behind, "behind_ms": sync.behind_ms,
                "heard": sync.heard,
            })),
        })
    });
    let json = json!({
        "user": status.user, "peer_id": status.peer_id, "clock_offset_ms": status.clock_offset_ms,
        "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"),
        "data_dir": text::lossy(data_dir),
        "trackers": trackers.collect::<Value>(), "transfers": transfers,
        "up_bytes_per_sec": limits.up, "down_bytes_per_sec": limits.down,
        "last_change": status.last_change.map(|change| json!({"on": change.on, "of": change.of})),
    });
    Answer::new(json, text)
}

fn tracker_line(TrackerStatus { line, sync }: &TrackerStatus) -> Vec<String> {
    let state = match (line.connected, line.in_use, line.rtt, &line.missed) {
        (true, in_use, Some(rtt), _) => {
            let use_ = if in_use { "in use" } else { "connected" };
            format!("{use_}, {} ms away", rtt.as_millis())
        }
        (.., Some(missed)) => text::printable(missed),
        _ => "not reached yet".to_owned(),
    };
    let sync = match sync {
        Some(sync) if sync.behind > 0 => format!(
            "{} behind for {}",
            text::count(sync.behind as usize, "change"),
            humantime::format_duration(Duration::from_secs(sync.behind_ms / 1_000))
        ),
        Some(sync) if sync.connected => "in sync".to_owned(),
        Some(_) => "cut off from the one in use".to_owned(),
        None => String::new(),
    };
    let address = format!("{}:{}", line.link.host(), line.link.port());
    vec![address, line.peer_id.short(), state, sync]
}

fn file_line(row: &FileRow) -> Vec<String> {
    let mut sharers: Vec<_> = row.sharers.iter().map(ToString::to_string).collect();
    if row.sharer_count as usize > sharers.len() {
        sharers.push("...".to_owned());
    }
    vec![
        row.name.to_string(),
        text::size(row.size),
        format!("by {}", sharers.join(", ")),
        match row.last_seen {
            Some(at) => format!("last seen {at}"),
            None => format!("{} seeding", row.seeders),
        },
        format!("{} downloading", row.leechers),
        format!("id:{}", row.content.short()),
    ]
}

fn file_json(row: &FileRow) -> Value {
    json!({
        "group": row.group, "name": row.name, "size": row.size, "content_id": row.content,
        "sharers": row.sharers, "sharer_count": row.sharer_count, "seeders": row.seeders,
        "leechers": row.leechers, "since": row.since, "last_seen": row.last_seen,
    })
}

/// A password, from the words of the command or said with it.
fn secret(given: Option<String>, said: &Option<Password>) -> Result<Password, Failure> {
    given.map(Password).or_else(|| said.clone()).ok_or_else(|| {
        Failure::new(PASSWORD_NEEDED, "a password is needed").hint(
            "put it into MTQ_PASSWORD, a new one for passwd into MTQ_NEW_PASSWORD; in a script it \
             may follow the user name",
        )
    })
}
