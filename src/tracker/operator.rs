//! The operator's hand: a socket in the data directory that only the tracker's own user can open.
//!
//! Who can open it may do everything here; what changes the state goes through the store like
//! any other change, as an op whose actor is the tracker.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::census::{self, Seen, UserRow};
use super::command::{Actor, Command};
use super::control::{self, Fault, Order};
use super::disk::DiskError;
use super::ledger::Ledger;
use super::message::Password;
use super::refusal::Refusal;
use super::rosters::{Known, Rosters, RostersError};
use super::session::{Shared, invite_id};
use super::state::Registration;
use super::status::Status;
use crate::control_socket::{ControlSocket, Lines, Said};
use crate::id::RequestId;
use crate::limits;
use crate::name::{GroupName, UserName};
use crate::peer_id::PeerId;

/// Letters and digits of which none looks like another (Crockford's base 32).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Serves operators until `stop`.
pub async fn serve(
    shared: Arc<Shared>,
    socket: ControlSocket,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let operator = Arc::new(Operator { shared, stop, copies: Semaphore::new(1) });
    let places = Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS));
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = operator.stop.cancelled() => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok(stream) => {
                let operator = operator.clone();
                tasks.spawn(async move {
                    operator.converse(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Who carries out what operators ask.
struct Operator {
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Copies of the store are made one at a time.
    copies: Semaphore,
}

impl Operator {
    /// Answers one connection until it ends, is idle, or says too much.
    async fn converse(&self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut lines = Lines::new(BufReader::new(read), limits::MAX_CONTROL_LINE);
        let mut over = false;
        while !over {
            let next = tokio::select! {
                () = self.stop.cancelled() => return,
                next = tokio::time::timeout(limits::CONTROL_IDLE, lines.next()) => next,
            };
            let answer = match next {
                Ok(Ok(Some(Said::Line(line)))) => self.answer(&line).await,
                Ok(Ok(Some(said @ Said::TooLong(_)))) => {
                    over = true;
                    control::answer("", &Err(Fault::new("usage", said.to_string())))
                }
                _ => return,
            };
            // It may hold a new password.
            let answer = Zeroizing::new(answer + "\n");
            let written = write.write_all(answer.as_bytes());
            tokio::select! {
                () = self.drained() => return,
                written = tokio::time::timeout(limits::CONTROL_IDLE, written) => {
                    let Ok(Ok(())) = written else { return };
                }
            }
        }
    }

    /// When an answer that nobody reads must no longer hold up the end.
    async fn drained(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(limits::DRAIN).await;
    }

    async fn answer(&self, line: &[u8]) -> String {
        let order = match Order::parse(line) {
            Ok(order) => order,
            Err((command, fault)) => return control::answer(&command, &Err(fault)),
        };
        let name = order.name();
        let result = self.obey(order).await;
        match &result {
            Ok(_) => tracing::debug!(command = name, "the operator's command is done"),
            Err(fault) => {
                tracing::warn!(command = name, code = fault.code, "an operator's command failed");
            }
        }
        control::answer(name, &result)
    }

    async fn obey(&self, order: Order) -> Result<Value, Fault> {
        let shared = &self.shared;
        let own = shared.endpoint.identity().peer_id();
        match order {
            Order::Status => {
                let mut status = serde_json::to_value(Status::of(shared))
                    .map_err(|error| Fault::new("internal", error.to_string()))?;
                // Of all there is: worked out only for whoever asks.
                let shared = shared.clone();
                let digest = move || shared.store.read_ledger(Ledger::digest);
                let digest = tokio::task::spawn_blocking(digest).await;
                status["digest"] = json!(digest.map_err(|_| Refusal::Internal)?);
                Ok(status)
            }
            Order::Invite { expires_secs } => self.invite(Duration::from_secs(expires_secs)).await,
            Order::UserList { after } => {
                let (users, more) =
                    self.seen(|seen| shared.store.read(|state| census::users(state, after, seen)));
                Ok(json!({"users": users, "more": more}))
            }
            Order::UserDisable { user } => {
                let row = self.user(&user)?;
                self.change(Command::DisableUser { user: user.clone() }).await?;
                tracing::info!(%user, "account disabled by the operator");
                Ok(json!({
                    "user": user, "memberships": row.groups, "devices": row.devices,
                    "shares": row.shares,
                }))
            }
            Order::UserEnable { user } => {
                self.change(Command::EnableUser { user: user.clone() }).await?;
                tracing::info!(%user, "account enabled by the operator");
                Ok(json!({"user": user}))
            }
            Order::UserResetPassword { user } => self.reset_password(user).await,
            Order::GroupList { after } => {
                let (groups, more) = shared.store.read(|state| census::groups(state, after));
                Ok(json!({"groups": groups, "more": more}))
            }
            Order::GroupArchive { group } => self.archive(group).await,
            Order::Roster => Ok(roster(&shared.rosters.known(), own)),
            Order::RosterAdd { link } => {
                let tracker = link.peer_id();
                tracing::info!(%link, "the operator adds a tracker");
                self.amend(tracker, move |rosters| rosters.add(link)).await
            }
            Order::RosterRemove { tracker } => {
                let tracker = self.tracker(&tracker)?;
                tracing::info!(%tracker, "the operator removes a tracker");
                self.amend(tracker, move |rosters| rosters.remove(tracker)).await
            }
            Order::RosterReplace { tracker, link } => {
                let tracker = self.tracker(&tracker)?;
                tracing::info!(%tracker, %link, "the operator replaces a tracker");
                self.amend(tracker, move |rosters| rosters.replace(tracker, link)).await
            }
            Order::Backup { path, pages } => self.backup(path, pages).await,
        }
    }

    async fn invite(&self, life: Duration) -> Result<Value, Fault> {
        if life.is_zero() || life > limits::MAX_INVITE_LIFE {
            let max = limits::MAX_INVITE_LIFE.as_secs();
            let message = format!("an invitation is good for 1 to {max} seconds");
            return Err(Fault::new("usage", message));
        }
        if self.shared.store.read(|state| state.rules.registration) == Registration::Closed {
            let message = "this tracker was started with --registration closed";
            return Err(Fault::new("registration-closed", message));
        }
        let code = secret()?;
        let (invite, expires) = (invite_id(&code), self.shared.store.time().plus(life));
        self.change(Command::MakeInvite { invite, expires }).await?;
        tracing::info!(invite = %invite.short(), %expires, "invitation made by the operator");
        Ok(json!({"code": *code, "id": invite, "expires": expires}))
    }

    async fn reset_password(&self, user: UserName) -> Result<Value, Fault> {
        let row = self.user(&user)?;
        let password = secret()?;
        let hash = self.shared.passwords.hash(Password(password.to_string())).await?;
        self.change(Command::ResetPassword { user: user.clone(), password: hash }).await?;
        tracing::info!(%user, "password reset by the operator");
        Ok(json!({"user": user, "password": *password, "devices": row.devices}))
    }

    async fn archive(&self, group: GroupName) -> Result<Value, Fault> {
        let row = self.shared.store.read(|state| {
            let id = state.group_named(&group)?;
            census::group(state, id)
        });
        let row = row.ok_or_else(|| Refusal::NoSuchGroup(group.clone()))?;
        self.change(Command::ArchiveGroup { group: group.clone() }).await?;
        tracing::info!(%group, "group archived by the operator");
        Ok(json!({
            "group": group, "id": row.id, "memberships": row.members, "files": row.files,
        }))
    }

    async fn backup(&self, path: PathBuf, pages: bool) -> Result<Value, Fault> {
        if !path.is_absolute() {
            let message = format!("{}: not an absolute path", path.display());
            return Err(Fault::new("usage", message));
        }
        let internal = || Fault::from(Refusal::Internal);
        let permit = self.copies.acquire().await.map_err(|_| internal())?;
        let (disk, stop) = (self.shared.store.disk().clone(), self.stop.clone());
        let target = path.clone();
        let copy = move || disk.backup(&target, pages, &|| stop.is_cancelled());
        let copied = tokio::task::spawn_blocking(copy).await.map_err(|_| internal())?;
        drop(permit);
        copied.map_err(|error| backup_fault(&path, &error))?;
        let bytes = fs::metadata(&path).map_or(0, |file| file.len());
        if pages {
            tracing::info!(path = %path.display(), bytes, "backup written");
        }
        Ok(json!({"path": path, "bytes": bytes}))
    }

    /// Changes the roster; answers with it and the tracker that was meant.
    async fn amend(
        &self,
        tracker: PeerId,
        change: impl FnOnce(&Rosters) -> Result<Arc<Known>, RostersError> + Send + 'static,
    ) -> Result<Value, Fault> {
        let rosters = self.shared.rosters.clone();
        let changed = tokio::task::spawn_blocking(move || change(&rosters)).await;
        let known =
            changed.map_err(|_| Refusal::Internal)?.map_err(|error| roster_fault(&error))?;
        let mut answer = roster(&known, self.shared.endpoint.identity().peer_id());
        answer["peer_id"] = json!(tracker);
        Ok(answer)
    }

    /// The tracker of the roster whose peer id begins like this.
    fn tracker(&self, beginning: &str) -> Result<PeerId, Fault> {
        let hex = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        if !(8..=2 * PeerId::LEN).contains(&beginning.len()) || !beginning.bytes().all(hex) {
            let message = "a tracker is named by at least 8 hex digits of its peer id";
            return Err(hinted(Fault::new("usage", message), ROSTER_HINT));
        }
        let known = self.shared.rosters.known();
        let mut named = known.book().peer_ids();
        named.retain(|id| id.to_string().starts_with(beginning));
        match named[..] {
            [one] => Ok(one),
            [] => {
                let message = format!("there is no tracker {beginning} in the roster");
                Err(hinted(Fault::new("no-such-tracker", message), ROSTER_HINT))
            }
            _ => {
                let message = format!("{} trackers are called {beginning}", named.len());
                Err(hinted(Fault::new("ambiguous", message), "say more of the peer id"))
            }
        }
    }

    /// An account as it is now.
    fn user(&self, name: &UserName) -> Result<UserRow, Refusal> {
        let row = self.seen(|seen| {
            self.shared.store.read(|state| census::user(state, state.user_named(name)?, seen))
        });
        row.ok_or_else(|| Refusal::NoSuchUser(name.clone()))
    }

    fn seen<R>(&self, view: impl FnOnce(Seen<'_>) -> R) -> R {
        let presence = &self.shared.presence;
        view(Seen {
            online: &|user| presence.is_online(user),
            last_seen: &|user| presence.last_seen(user),
        })
    }

    async fn change(&self, command: Command) -> Result<(), Refusal> {
        let actor = Actor::Operator(self.shared.endpoint.identity().peer_id());
        let request = RequestId::random(&mut fastrand::Rng::new());
        self.shared.store.propose(actor, request, command).await.map(drop)
    }
}

const ROSTER_HINT: &str = "mtq tracker roster shows those there are";

fn hinted(fault: Fault, hint: &str) -> Fault {
    Fault { hint: Some(hint.to_owned()), ..fault }
}

/// The roster as an answer, on the tracker `own`.
fn roster(known: &Known, own: PeerId) -> Value {
    let trackers = known.book().entries().iter().map(|entry| {
        let id = entry.peer_id();
        json!({"peer_id": id, "links": entry.links, "own": id == own})
    });
    json!({
        "number": known.book().number(), "hash": known.hash(), "listed": known.is_listed(),
        "trackers": trackers.collect::<Vec<_>>(),
    })
}

/// What a change of the roster that was not made means to whoever asked for it.
fn roster_fault(error: &RostersError) -> Fault {
    let (code, hint) = match error {
        RostersError::Listed(_) => {
            ("tracker-exists", "mtq tracker roster replace gives it another address")
        }
        RostersError::NoSuchTracker(_) => ("no-such-tracker", ROSTER_HINT),
        RostersError::Last(_) => ("last-tracker", "add or replace: a network has a tracker"),
        RostersError::Full => ("limit", "remove one first"),
        RostersError::Outside(_) => ("not-in-roster", "do this on a tracker that is in it"),
        RostersError::NoAddress(_) => (
            "no-address",
            "mtq tracker roster replace PEERID mtq://HOST:PORT#PEERID says where it is reached",
        ),
        RostersError::File { .. } => ("disk", "make the data directory writable, with room in it"),
        RostersError::Roster(_) => ("internal", "see the tracker's log"),
    };
    hinted(Fault::new(code, error.to_string()), hint)
}

/// What a copy that could not be made means to whoever asked for it.
pub fn backup_fault(path: &Path, error: &DiskError) -> Fault {
    let (code, hint) = match error {
        DiskError::Full => ("no-space", Some("make room, or name another place")),
        DiskError::Io(error) => match error.kind() {
            io::ErrorKind::AlreadyExists => ("exists", Some("a backup never replaces a file")),
            io::ErrorKind::NotFound => ("not-found", Some("create the directory first")),
            io::ErrorKind::PermissionDenied => {
                ("permission-denied", Some("the tracker's own user writes the file"))
            }
            _ => ("disk", None),
        },
        DiskError::Stopped => ("stopped", None),
        _ => ("disk", None),
    };
    let hint = hint.map(str::to_owned);
    Fault { hint, ..Fault::new(code, format!("{}: {error}", path.display())) }
}

/// Twenty letters and digits in groups of five: a hundred bits that a person can read out.
fn secret() -> Result<Zeroizing<String>, Refusal> {
    let mut bytes = Zeroizing::new([0; 20]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| Refusal::Internal)?;
    let mut text = Zeroizing::new(String::with_capacity(23));
    for (place, byte) in bytes.iter().enumerate() {
        if place > 0 && place % 5 == 0 {
            text.push('-');
        }
        // 256 is a multiple of 32: every one is as likely.
        text.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::disk::Disk;

    #[test]
    fn secrets_are_readable_and_differ() {
        let (one, other) = (secret().expect("random"), secret().expect("random"));
        assert_ne!(one, other);
        let groups: Vec<_> = one.split('-').collect();
        assert_eq!(groups.len(), 4, "{}", *one);
        assert!(groups.iter().all(|group| group.len() == 5), "{}", *one);
    }

    #[test]
    fn a_code_is_the_same_however_it_is_written() {
        let id = invite_id("ABCDE-01234-FGHJK-56789");
        for written in
            [" abcde-o1234-fghjk-56789\n", "ABCDE0I234FGHJK56789", "abcde 0l234 fghjk 56789"]
        {
            assert_eq!(invite_id(written), id, "{written}");
        }
        assert_ne!(invite_id("ABCDE-01234-FGHJK-56788"), id);
    }

    #[test]
    fn a_copy_that_is_stopped_or_cannot_be_made_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = Disk::open(dir.path()).expect("made");
        let target = dir.path().join("copy");
        let stopped = disk.backup(&target, true, &|| true);
        assert!(matches!(stopped, Err(DiskError::Stopped)), "{stopped:?}");
        fs::write(&target, "mine").expect("written");
        let taken = disk.backup(&target, true, &|| false).expect_err("taken");
        assert_eq!(backup_fault(&target, &taken).code, "exists");
        assert_eq!(fs::read(&target).expect("there"), b"mine");
        fs::remove_file(&target).expect("removed");
        let count = || fs::read_dir(dir.path()).expect("readable").count();
        assert_eq!(count(), 1, "the store alone");
        disk.backup(&target, false, &|| false).expect("copied");
        assert_eq!(count(), 2, "the store and the copy");
    }
}
