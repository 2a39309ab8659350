//! What is said on a tracker's control socket: one request a line, one answer a line, in JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::refusal::Refusal;
use crate::id::{GroupId, UserId};
use crate::name::{GroupName, UserName};
use crate::tracker_link::TrackerLink;

/// What an operator can ask of a running tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Order {
    /// How it is.
    Status,
    /// Make an invitation.
    Invite {
        /// Seconds it is good for.
        expires_secs: u64,
    },
    /// A page of accounts.
    UserList {
        /// The last one known.
        #[serde(default)]
        after: Option<UserId>,
    },
    /// Disable an account.
    UserDisable {
        /// Which.
        user: UserName,
    },
    /// Enable an account.
    UserEnable {
        /// Which.
        user: UserName,
    },
    /// Give an account a new password.
    UserResetPassword {
        /// Which.
        user: UserName,
    },
    /// A page of groups.
    GroupList {
        /// The last one known.
        #[serde(default)]
        after: Option<GroupId>,
    },
    /// End a group.
    GroupArchive {
        /// Which.
        group: GroupName,
    },
    /// The trackers there are.
    Roster,
    /// Add a tracker.
    RosterAdd {
        /// Which, and where.
        link: TrackerLink,
    },
    /// Remove a tracker.
    RosterRemove {
        /// Its peer id, or how that begins.
        tracker: String,
    },
    /// Give a tracker another key or address.
    RosterReplace {
        /// Its peer id so far, or how that begins.
        tracker: String,
        /// What it has now.
        link: TrackerLink,
    },
    /// Copy the store.
    Backup {
        /// To which new file; an absolute path.
        path: PathBuf,
        /// Whether with the hash pages, without which it can be read but not be put back.
        #[serde(default = "yes")]
        pages: bool,
    },
}

fn yes() -> bool {
    true
}

impl Order {
    /// Its name, as requests and answers have it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Invite { .. } => "invite",
            Self::UserList { .. } => "user-list",
            Self::UserDisable { .. } => "user-disable",
            Self::UserEnable { .. } => "user-enable",
            Self::UserResetPassword { .. } => "user-reset-password",
            Self::GroupList { .. } => "group-list",
            Self::GroupArchive { .. } => "group-archive",
            Self::Roster => "roster",
            Self::RosterAdd { .. } => "roster-add",
            Self::RosterRemove { .. } => "roster-remove",
            Self::RosterReplace { .. } => "roster-replace",
            Self::Backup { .. } => "backup",
        }
    }

    /// The line that asks for it, without its end.
    ///
    /// # Errors
    /// When a path in it is not Unicode.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let mut line = serde_json::to_value(self)?;
        line["v"] = json!(1);
        Ok(line.to_string())
    }

    /// Reads a line.
    ///
    /// # Errors
    /// [`Fault`], with the command the line named, if it named one.
    pub fn parse(line: &[u8]) -> Result<Self, (String, Fault)> {
        let nonsense = |command: &str, error: serde_json::Error| {
            (command.to_owned(), Fault::new("usage", format!("not a request: {error}")))
        };
        let value: Value = serde_json::from_slice(line).map_err(|error| nonsense("", error))?;
        let command = value["command"].as_str().unwrap_or("").to_owned();
        match value["v"].as_u64() {
            Some(1) | None => {}
            Some(other) => {
                let message = format!("a request of version {other}; this tracker knows 1");
                return Err((command, Fault::new("usage", message)));
            }
        }
        serde_json::from_value(value).map_err(|error| nonsense(&command, error))
    }
}

/// Why a request was not granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// A next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Fault {
    /// A fault without a next step.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: None }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let hint = match &refusal {
            Refusal::NoSuchUser(_) => Some("mtq tracker user list shows those there are"),
            Refusal::NoSuchGroup(_) => Some("mtq tracker group list shows those there are"),
            Refusal::EverybodysGroup(_) => Some("start the tracker with --no-public-group"),
            Refusal::Busy => Some("try again in a moment"),
            Refusal::StorageFull => Some("make room on the tracker's disk"),
            Refusal::StorageFailed => Some("see the tracker's log"),
            _ => None,
        };
        Self { hint: hint.map(str::to_owned), ..Self::new(refusal.code(), refusal.to_string()) }
    }
}

/// The line that answers `command`, without its end.
pub fn answer(command: &str, result: &Result<Value, Fault>) -> String {
    let line = match result {
        Ok(result) => json!({"v": 1, "command": command, "ok": true, "result": result}),
        Err(fault) => json!({"v": 1, "command": command, "ok": false, "error": fault}),
    };
    line.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_written_and_read_back() {
        let user: UserName = "bob".parse().expect("a name");
        let group: GroupName = "lab".parse().expect("a name");
        let id = crate::peer_id::PeerId([7; 32]);
        let link = TrackerLink::new(([127, 0, 0, 1], 4000).into(), id);
        for order in [
            Order::Status,
            Order::Invite { expires_secs: 5 },
            Order::UserList { after: Some(UserId([7; 16])) },
            Order::UserDisable { user: user.clone() },
            Order::UserEnable { user: user.clone() },
            Order::UserResetPassword { user },
            Order::GroupList { after: None },
            Order::GroupArchive { group },
            Order::Roster,
            Order::RosterAdd { link: link.clone() },
            Order::RosterRemove { tracker: "0707070707".to_owned() },
            Order::RosterReplace { tracker: "07070707".to_owned(), link },
            Order::Backup { path: "/a\nb".into(), pages: false },
        ] {
            let line = order.line().expect("written");
            assert!(!line.contains('\n'), "{line}");
            assert!(line.contains(&format!("\"command\":\"{}\"", order.name())), "{line}");
            assert_eq!(Order::parse(line.as_bytes()), Ok(order));
        }
        let backup = br#"{"command":"backup","path":"/a"}"#;
        let whole = Order::Backup { path: "/a".into(), pages: true };
        assert_eq!(Order::parse(backup), Ok(whole));
    }

    #[test]
    fn nonsense_is_a_fault_that_names_its_command() {
        for (line, command) in [
            ("", ""),
            ("hello", ""),
            ("[1]", ""),
            ("{}", ""),
            (r#"{"command":7}"#, ""),
            (r#"{"command":"dance"}"#, "dance"),
            (r#"{"command":"status","v":2}"#, "status"),
            (r#"{"command":"user-disable"}"#, "user-disable"),
            (r#"{"command":"user-disable","user":"No Such!"}"#, "user-disable"),
            (r#"{"command":"user-list","after":"12"}"#, "user-list"),
            (r#"{"command":"roster-add","link":"mtq://here:1"}"#, "roster-add"),
        ] {
            let (named, fault) = Order::parse(line.as_bytes()).expect_err(line);
            assert_eq!((named.as_str(), fault.code.as_str()), (command, "usage"), "{line}");
            let answer: Value = serde_json::from_str(&answer(&named, &Err(fault))).expect("JSON");
            assert_eq!(answer["ok"], false);
        }
        assert!(Order::parse(&[0xff, 0xfe]).is_err());
    }
}
