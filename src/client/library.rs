//! What this agent holds: files it shares and files it downloads, with their states.
//!
//! Plain maps; the agent acts on them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::DownloadFailure;
use super::transfer::Transfer;
use crate::id::GroupId;
use crate::manifest::ContentId;
use crate::name::{FileName, GroupName, Selector, UserName};
use crate::swarm::meter::Meter;
use crate::swarm::session::SwarmKey;
use crate::swarm::storage::PieceStore;

/// Where an entry is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// Pieces come in.
    Downloading,
    /// Every piece is here; the whole file is checked and named.
    Finishing,
    /// Complete; served to others.
    Seeding,
    /// It will not go on.
    Failed(DownloadFailure),
}

impl EntryState {
    /// Whether it may still become complete without anybody's help.
    pub fn is_under_way(&self) -> bool {
        matches!(self, Self::Downloading | Self::Finishing)
    }
}

/// One content in one group on this machine.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The number shown to people.
    pub number: u64,
    /// The group's name.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Who published it, for a download.
    pub publisher: Option<UserName>,
    /// Its bytes.
    pub store: Arc<PieceStore>,
    /// How far it is; nothing for a file that was here from the start.
    pub meter: Option<Arc<Meter>>,
    /// Where it is in its life.
    pub state: EntryState,
    /// Whether its failure was told to somebody who waited, or its change to the user.
    pub told: bool,
    /// Where its download will be, for one that is under way.
    pub path: Option<PathBuf>,
    /// Its download, while that is under way.
    pub transfer: Option<Transfer>,
}

impl Entry {
    /// Whether `file` means this entry.
    pub fn is(&self, group: &GroupName, file: &Selector) -> bool {
        let content: ContentId = self.store.manifest().content_id();
        self.group == *group
            && match file {
                Selector::Id(id) => id.matches(content),
                Selector::Name(name) => *name == self.name,
                Selector::UserName(user, name) => {
                    *name == self.name && self.publisher.as_ref() == Some(user)
                }
            }
    }
}

/// All entries of an agent.
#[derive(Debug, Default)]
pub struct Library {
    entries: BTreeMap<SwarmKey, Entry>,
    next_number: u64,
}

impl Library {
    /// Adds an entry, in place of one that failed; returns its number.
    pub fn add(&mut self, key: SwarmKey, mut entry: Entry) -> u64 {
        self.next_number += 1;
        entry.number = self.next_number;
        self.entries.insert(key, entry);
        self.next_number
    }

    /// The entry of a swarm.
    pub fn find(&self, key: SwarmKey) -> Option<&Entry> {
        self.entries.get(&key)
    }

    /// Whether an entry rests on this very store.
    pub fn holds(&self, store: &Arc<PieceStore>) -> bool {
        self.entries.values().any(|entry| Arc::ptr_eq(&entry.store, store))
    }

    /// An entry of the same content in another group, complete or under way.
    pub fn elsewhere(&self, key: SwarmKey) -> Option<&Entry> {
        let others = self
            .entries
            .iter()
            .filter(|(other, _)| other.content == key.content && other.group != key.group);
        let mut others = others.map(|(_, entry)| entry);
        others.find(|entry| match entry.state {
            EntryState::Seeding => !entry.store.known_changed(),
            EntryState::Downloading | EntryState::Finishing => true,
            EntryState::Failed(_) => false,
        })
    }

    /// The swarm of the entry that `file` means in a group.
    pub fn select(&self, group: &GroupName, file: &Selector) -> Option<SwarmKey> {
        self.entries.iter().find(|(_, entry)| entry.is(group, file)).map(|(key, _)| *key)
    }

    /// A group is called `name` now.
    pub fn rename_group(&mut self, group: GroupId, name: &GroupName) {
        for (_, entry) in self.entries.iter_mut().filter(|(key, _)| key.group == group) {
            entry.group = name.clone();
        }
    }

    /// The user was told of an entry's change.
    pub fn set_told(&mut self, key: SwarmKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.told = true;
        }
    }

    /// A download under way came to another stage, if it is still under way.
    pub fn set_stage(&mut self, key: SwarmKey, stage: EntryState) {
        if let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.state.is_under_way()) {
            entry.state = stage;
        }
    }

    /// Changes an entry's state, if it is still there.
    pub fn set_state(&mut self, key: SwarmKey, state: EntryState) {
        if let Some(entry) = self.entries.get_mut(&key) {
            if !state.is_under_way() {
                (entry.transfer, entry.path) = (None, None);
            }
            entry.state = state;
        }
    }

    /// The first failure nobody who waited was told of; all are told with it.
    pub fn take_failure(&mut self) -> Option<(FileName, DownloadFailure)> {
        let mut first: Option<(u64, FileName, DownloadFailure)> = None;
        for entry in self.entries.values_mut().filter(|entry| !entry.told) {
            let EntryState::Failed(failure) = &entry.state else { continue };
            entry.told = true;
            if first.as_ref().is_none_or(|(number, ..)| *number > entry.number) {
                first = Some((entry.number, entry.name.clone(), failure.clone()));
            }
        }
        first.map(|(_, name, failure)| (name, failure))
    }

    /// Removes an entry and stops its download.
    pub fn remove(&mut self, key: SwarmKey) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        if let Some(transfer) = &entry.transfer {
            transfer.leave(key);
        }
        Some(entry)
    }

    /// All entries, in the order they were added.
    pub fn entries(&self) -> Vec<(SwarmKey, Entry)> {
        let mut entries: Vec<_> =
            self.entries.iter().map(|(key, entry)| (*key, entry.clone())).collect();
        entries.sort_by_key(|(_, entry)| entry.number);
        entries
    }
}
