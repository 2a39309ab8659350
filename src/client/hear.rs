//! What an agent does unasked: hears its trackers, follows the one in use, announces what it holds,
//! renews tickets.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{Core, blocking};
use super::data_dir;
use super::echo::Echo;
use super::error::{AgentError, DownloadFailure};
use super::failover::Number;
use super::library::EntryState;
use super::line::LineEvent;
use super::report::{Notice, Skipped};
use crate::clock;
use crate::error_code::ErrorCode;
use crate::id::GroupId;
use crate::limits;
use crate::manifest::ContentId;
use crate::name::GroupName;
use crate::peer_id::PeerId;
use crate::swarm::session::SwarmKey;
use crate::tracker::message::Request;
use crate::tracker::push::Push;
use crate::tracker::refusal::Refusal;
use crate::wire;

/// How often tickets are looked at for renewal, and files for change.
const WATCH: Duration = Duration::from_secs(10);

/// What was announced is announced again so long after: a tracker that had not heard of the share
/// yet did not take it. Once more after `SYNC_PATIENCE`.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(2);

/// What an agent remembers of what it heard.
#[derive(Default)]
struct Ear {
    echo: Echo,
    /// Groups whose new name was told though no old one was known.
    renamed: HashSet<(GroupId, GroupName)>,
    /// The connection that was in use.
    in_use: Option<Number>,
    connected: bool,
    /// Whether it was told that all trackers are gone.
    told_lost: bool,
}

impl Core {
    /// Hears what trackers say unasked, and which of them is in use.
    pub(super) async fn hear(self: Arc<Self>, mut queue: mpsc::Receiver<LineEvent>) {
        let mut ear = Ear::default();
        let mut changes = self.line.changes();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = changes.changed() => self.follow(&mut ear),
                event = queue.recv() => match event {
                    None => return,
                    Some(event) => self.hear_event(&mut ear, event),
                },
            }
        }
    }

    /// Another connection is in use, or none is left.
    fn follow(self: &Arc<Self>, ear: &mut Ear) {
        let (in_use, connected) = (self.line.in_use(), self.line.is_connected());
        let logged_in = self.line.user().is_some();
        if ear.connected && !connected && logged_in && !ear.told_lost {
            ear.told_lost = true;
            self.notify(Notice::TrackersLost);
        }
        if in_use.is_some() && std::mem::take(&mut ear.told_lost) {
            self.notify(Notice::TrackersBack);
        }
        let changed = in_use.is_some() && ear.in_use != in_use;
        (ear.in_use, ear.connected) = (in_use, connected);
        if changed && logged_in {
            let core = self.clone();
            self.tasks.spawn(async move { core.resume().await });
        }
    }

    fn hear_event(self: &Arc<Self>, ear: &mut Ear, event: LineEvent) {
        match event {
            LineEvent::Push { tracker, number, push } => {
                if self.line.is_current(number) {
                    self.hear_push(ear, tracker, number, push);
                }
            }
            // The one in use is followed anyway.
            LineEvent::LoggedIn { number } if self.line.in_use() == Some(number) => {}
            LineEvent::LoggedIn { number } => {
                let core = self.clone();
                self.tasks.spawn(async move { core.announce_on(number).await });
            }
            LineEvent::LoggedOut { user } => self.signed_out(user),
            LineEvent::Renamed { from, user } => self.renamed(from, user),
        }
    }

    fn hear_push(self: &Arc<Self>, ear: &mut Ear, tracker: PeerId, number: Number, push: Push) {
        // What several trackers say of one event is heard once. The rest is the same however often
        // it is said.
        let once = matches!(
            push,
            Push::JoinRequested { .. }
                | Push::RequestAnswered { .. }
                | Push::MemberJoined { .. }
                | Push::MemberLeft { .. }
                | Push::OwnerChanged { .. }
                | Push::FileListed { .. }
        );
        if once && !ear.echo.is_new(tracker, &wire::encode(&push), self.line.now()) {
            return;
        }
        let in_use = self.line.in_use();
        let is_in_use = in_use == Some(number);
        let is_hearsay = in_use.is_some() && !is_in_use;
        match push {
            Push::SwarmJoined { group, content, peer } => {
                let key = SwarmKey { group, content };
                let wants = self.library().find(key).is_some_and(|entry| entry.is_fetched());
                if wants {
                    self.hub.connect(peer.peer_id, peer.addresses, key);
                }
            }
            // Another tracker may know the peer still.
            Push::SwarmLeft { group, content, peer_id } => {
                if is_in_use {
                    self.registry.unwant_from(peer_id, SwarmKey { group, content });
                }
            }
            Push::Revoked { memberships, devices } => self.registry.revoke(&memberships, &devices),
            Push::SignedOut => {
                if let Some(user) = self.line.signed_out(number) {
                    self.signed_out(user);
                }
            }
            // Not here: it asks the tracker, whose pushes would wait meanwhile.
            Push::Lagged if is_in_use => {
                let core = self.clone();
                self.tasks.spawn(async move { core.find_all_peers().await });
            }
            Push::Lagged => {}
            // One that catches up tells of what has changed again since; the one in use knows.
            Push::Removed { .. } | Push::Unlisted { .. } if is_hearsay => {}
            Push::Removed { group, id } => self.removed(id, &group),
            Push::Unlisted { group, content } => {
                let key = SwarmKey { group, content };
                let entry = self.library().find(key).cloned();
                if let Some(entry) = entry.filter(|entry| entry.state == EntryState::Seeding) {
                    self.library().remove(key);
                    self.registry.remove_swarm(key, ErrorCode::Done);
                    self.save(&[key]);
                    self.notify(Notice::Unlisted { group: entry.group, name: entry.name });
                }
            }
            Push::Roster { bytes } => self.hear_roster(&bytes),
            Push::Renamed { user } => {
                if let Some(from) = self.line.renamed(&user) {
                    self.renamed(from, user);
                }
            }
            Push::GroupRenamed { id, group } => self.group_renamed(ear, id, group),
            Push::JoinRequested { group, user } => {
                self.notify(Notice::JoinRequested { group, user });
            }
            Push::RequestAnswered { group, accepted } => {
                self.notify(Notice::RequestAnswered { group, accepted });
            }
            Push::MemberJoined { group, user } => {
                self.notify(Notice::MemberJoined { group, user });
            }
            Push::MemberLeft { group, user } => self.notify(Notice::MemberLeft { group, user }),
            Push::OwnerChanged { group, owner } => {
                self.notify(Notice::OwnerChanged { group, owner });
            }
            Push::FileListed { group, name, size, user, content: _ } => {
                if self.line.user().as_ref() != Some(&user) {
                    self.notify(Notice::FileListed { group, name, size, user });
                }
            }
        }
    }

    /// The trackers are others now, if one of them that was trusted before says so.
    fn hear_roster(self: &Arc<Self>, bytes: &[u8]) {
        let mut book = self.book();
        match book.offer(bytes, clock::now()) {
            Ok(true) => {
                tracing::info!(number = book.number(), "the trackers are others now");
                drop(book);
                self.follow_book();
                let core = self.clone();
                self.tasks.spawn(async move { core.keep_book().await });
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a roster is not taken"),
        }
    }

    async fn keep_book(&self) {
        // Whoever is last writes what is true by then.
        let _turn = self.roster_turn.lock().await;
        let (data_dir, bytes) = (self.data_dir.clone(), self.book().encode());
        if let Err(error) = blocking(move || data_dir::keep_roster(&data_dir, &bytes)).await {
            tracing::warn!(%error, "cannot keep what the trackers are");
        }
    }

    /// A group of ours is called otherwise: all that is kept of it goes by the new name.
    fn group_renamed(&self, ear: &mut Ear, id: GroupId, group: GroupName) {
        let known = self.groups().contains(id);
        let from = self.groups().rename(id, &group);
        let entries = {
            let mut library = self.library();
            library.rename_group(id, &group);
            library.of_group(id)
        };
        self.save(&entries);
        let from = match from {
            Some(from) => from,
            // Said again.
            None if known => return,
            None => {
                let room = ear.renamed.len() < limits::MAX_GROUPS_PER_USER;
                if !room || !ear.renamed.insert((id, group.clone())) {
                    return;
                }
                group.parts().0
            }
        };
        // The other tracker need not tell it a second time.
        if ear.renamed.len() < limits::MAX_GROUPS_PER_USER {
            ear.renamed.insert((id, group.clone()));
        }
        self.notify(Notice::GroupRenamed { from, group });
    }

    /// Our membership in a group is over. Told when it was not this device that ended it.
    fn removed(&self, id: GroupId, group: &GroupName) {
        let held = self.groups().contains(id);
        if held {
            let message = format!("you are no longer a member of {group}");
            let failure = DownloadFailure { code: "not-a-member".to_owned(), message };
            let entries = self.library().entries_where(|key, _| key.group == id).into_iter();
            // Whoever waits for a download must hear that it will not come; its part file stays.
            let (shares, downloads): (Vec<_>, Vec<_>) =
                entries.partition(|(_, entry)| entry.state == EntryState::Seeding);
            let to_come = downloads.into_iter().filter(|(_, entry)| {
                entry.state.is_under_way() || entry.state == EntryState::Paused
            });
            let to_come: Vec<_> = to_come.map(|(key, _)| key).collect();
            self.fail(|| to_come, &failure);
            let lost = shares.into_iter().map(|(_, entry)| Skipped {
                path: entry.target(),
                group: entry.group,
                name: entry.name,
                code: failure.code.clone(),
                message: failure.message.clone(),
            });
            self.lost().extend(lost);
        }
        self.leave(id);
        if held {
            self.notify(Notice::Removed { group: group.clone() });
        }
    }

    /// Takes up again, with the tracker in use, what rests on trackers: tickets, announcements,
    /// peers.
    pub(super) async fn resume(&self) {
        // Peers that answer the announcement are to see tickets that hold.
        self.renew_due().await;
        if let Some(number) = self.line.in_use() {
            self.announce_on(number).await;
        }
        self.find_all_peers().await;
        // It may be behind the one in use before.
        self.announced.notify_one();
    }

    /// Announces everything this device holds on one connection.
    async fn announce_on(&self, number: Number) {
        let mut by_group: HashMap<GroupId, Vec<ContentId>> = HashMap::new();
        for (key, _) in self.library().iter() {
            by_group.entry(key.group).or_default().push(key.content);
        }
        // As it is when it is said: what was stopped meanwhile is withdrawn, and stays so.
        let held = |group: GroupId, content: ContentId| {
            self.held(SwarmKey { group, content }).map(|complete| (content, complete))
        };
        for (id, contents) in by_group {
            let Some(group) = self.groups().name_of(id) else { continue };
            for batch in contents.chunks(limits::MAX_ANNOUNCE_BATCH) {
                let contents: Vec<_> =
                    batch.iter().filter_map(|content| held(id, *content)).collect();
                if contents.is_empty() {
                    continue;
                }
                let request = Request::Announce { group: group.clone(), contents };
                match self.line.ask_on(number, &request).await {
                    Ok(_) => self.say_what_changed(id, &request),
                    Err(AgentError::Refused(Refusal::NotAMember(_) | Refusal::NoSuchGroup(_)))
                        if self.line.in_use() == Some(number) =>
                    {
                        // Whether that is so is seen by the ticket.
                        let now = self.registry.tracker_time();
                        self.groups().make_due(id, now);
                        self.renew(id, &group).await;
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%group, %error, "cannot announce");
                        break;
                    }
                }
            }
        }
    }

    /// Announces again what was announced before all trackers knew of it, and looks again for peers
    /// that they did not know.
    pub(super) async fn repeat_announcements(self: Arc<Self>) {
        let work = async {
            loop {
                self.announced.notified().await;
                for pause in [ANNOUNCE_AGAIN, limits::SYNC_PATIENCE] {
                    tokio::time::sleep(pause).await;
                    // One that is alone is behind nobody.
                    if self.line.is_single() {
                        break;
                    }
                    for number in self.line.logged_in() {
                        self.announce_on(number).await;
                    }
                    self.find_all_peers().await;
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Renews tickets half-way through their life.
    pub(super) async fn renew_tickets(self: Arc<Self>) {
        let work = async {
            loop {
                tokio::time::sleep(WATCH).await;
                for group in self.renew_due().await {
                    self.take_part(group).await;
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Takes back what changed on disk.
    pub(super) async fn watch(self: Arc<Self>) {
        let work = async {
            loop {
                tokio::time::sleep(WATCH).await;
                self.look_for_parts();
                self.look_at_files(|_, _| true).await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Announces what is held of a group and looks for peers: its first ticket came.
    async fn take_part(self: &Arc<Self>, group: GroupId) {
        let mut held = Vec::new();
        for (key, entry) in self.library().iter().filter(|(key, _)| key.group == group) {
            let complete = entry.is_served();
            if complete || entry.is_fetched() {
                held.push((key.content, complete));
            }
        }
        if let Err(error) = self.announce(group, &held).await {
            tracing::debug!(%error, "it is announced with the next connection");
        }
        let partial = held.into_iter().filter(|(_, complete)| !complete);
        let wanted: Vec<_> = partial.map(|(content, _)| content).collect();
        self.find_peers(group, &wanted).await;
    }

    /// Renews the tickets that are due; returns groups whose first one came.
    async fn renew_due(&self) -> Vec<GroupId> {
        let now = self.registry.tracker_time();
        let due = self.groups().due(now);
        let mut new = Vec::new();
        for (id, group) in due {
            let was_proven = self.groups().is_proven(id);
            self.renew(id, &group).await;
            if !was_proven && self.groups().is_proven(id) {
                new.push(id);
            }
        }
        new
    }

    /// Renews the ticket for a group, or finds out that there is none any more.
    async fn renew(&self, id: GroupId, group: &GroupName) {
        let over = match self.ticket(group).await {
            Ok(found) if found == id => {
                tracing::debug!(%group, "ticket renewed");
                return self.library().set_trouble(id, None);
            }
            // The name is another's now, and what this group is called is not known yet.
            Ok(_) => {
                let error = AgentError::OtherGroup(group.clone());
                let (code, message) = (error.code().to_owned(), error.to_string());
                let trouble = DownloadFailure { code, message };
                return self.library().set_trouble(id, Some(trouble));
            }
            // What nobody could tell us while we were away; unless the tracker is behind.
            Err(AgentError::Refused(Refusal::NotAMember(_) | Refusal::NoSuchGroup(_))) => {
                self.line.is_settled()
            }
            Err(error) => {
                tracing::debug!(%group, %error, "ticket not renewed yet");
                matches!(error, AgentError::OtherGroup(_) | AgentError::Refused(_))
                    && self.groups().is_over(id, self.registry.tracker_time())
            }
        };
        if over {
            self.removed(id, group);
        }
    }
}
