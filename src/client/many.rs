//! How many downloads begin with one `get`: all are found, recorded and announced together, and run side
//! by side as far as there are turns.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::agent::Agent;
use super::batch::Batch;
use super::core::blocking;
use super::destination::{self, Destination};
use super::error::AgentError;
use super::finding::Listed;
use super::get::{self, Wanted};
use super::library::{Entry, EntryState, Home, Sight};
use super::report::{Notice, Started};
use super::running::Begin;
use crate::clock;
use crate::error_code::ErrorCode;
use crate::manifest::Manifest;
use crate::name::{GroupName, Selector};
use crate::swarm::session::SwarmKey;
use crate::tracker::message::Matching;
use crate::tracker::refusal::Refusal;

/// Which files of a group are wanted.
#[derive(Clone, Debug)]
pub enum Which {
    /// Those whose name matches a pattern.
    Matching {
        /// The pattern.
        pattern: String,
        /// What it is.
        matching: Matching,
    },
    /// These.
    Listed(Vec<Selector>),
}

/// An accepted `get` of many files.
#[derive(Debug)]
pub struct StartedMany {
    /// The group.
    pub group: GroupName,
    /// Where they go.
    pub directory: PathBuf,
    /// What became of each that was meant, and how it was named.
    pub files: Vec<(String, Result<Started, AgentError>)>,
    /// What a person should know besides.
    pub warning: Option<String>,
}

/// A file that is wanted, and what is known of it so far.
struct Asked {
    /// How it was named.
    name: String,
    listed: Result<Listed, AgentError>,
    started: Option<Result<Started, AgentError>>,
}

impl Asked {
    /// The swarm of a file that is still to be begun.
    fn to_begin(&self) -> Option<(SwarmKey, &Listed)> {
        let listed = self.listed.as_ref().ok().filter(|_| self.started.is_none())?;
        let (group, content) = (listed.found.group, listed.head.content_id());
        Some((SwarmKey { group, content }, listed))
    }
}

impl Agent {
    /// Starts downloading many files of a group into a directory: each as [`Agent::get`] does, but for
    /// what may be there of it already, which is looked at once it is its turn. What went wrong with one
    /// keeps no other from beginning.
    ///
    /// # Errors
    /// [`AgentError`] when none can be begun, [`Refusal::NoSuchFile`] when no name matches.
    pub async fn get_many(
        &self,
        group: GroupName,
        which: Which,
        dest: &Path,
    ) -> Result<StartedMany, AgentError> {
        let place = dest.to_owned();
        let directory = blocking(move || destination::directory(&place)).await?;
        let mut all = self.asked(&group, which).await?;
        let to = |listed: &Listed| Destination {
            directory: directory.clone(),
            name: listed.found.name.clone(),
        };
        // What is here already, or on its way.
        let here: BTreeSet<SwarmKey> = {
            let library = self.core.library();
            let keys = all.iter().filter_map(Asked::to_begin).map(|(key, _)| key);
            keys.filter(|key| library.find(*key).is_some()).collect()
        };
        if !here.is_empty() {
            let _ = self.checked(|key, entry| here.contains(&key) && entry.is_unseen()).await;
            self.core.look_at_files(|key, _| here.contains(&key)).await;
        }
        for asked in &mut all {
            let Some((key, listed)) = asked.to_begin().filter(|(key, _)| here.contains(key)) else {
                continue;
            };
            asked.started = self.known_seen(key, &to(listed), true).await.transpose();
        }
        let fresh: Vec<_> = all.iter().filter_map(Asked::to_begin).map(|(_, it)| it).collect();
        if !fresh.is_empty() {
            let id = self.core.ticket(&group).await?;
            if fresh.iter().any(|listed| listed.found.group != id) {
                return Err(AgentError::OtherGroup(group));
            }
            let manifests = self.manifests(&group, &fresh).await?;
            self.begin_many(&group, &directory, &mut all, manifests)?;
        }
        let warning = self.not_kept().await;
        let files = all.into_iter().map(|Asked { name, listed, started }| {
            let started = started.unwrap_or_else(|| match listed {
                Err(error) => Err(error),
                Ok(_) => Err(AgentError::BadAnswer),
            });
            (name, started)
        });
        Ok(StartedMany { files: files.collect(), group, directory, warning })
    }

    /// What is meant, each content once.
    async fn asked(&self, group: &GroupName, which: Which) -> Result<Vec<Asked>, AgentError> {
        let (names, files) = match which {
            Which::Listed(files) => {
                let names: Vec<_> = files.iter().map(ToString::to_string).collect();
                (names, files)
            }
            Which::Matching { pattern, matching } => {
                let mut rows = self.matching(group, &pattern, matching).await?;
                if rows.is_empty() {
                    let group = group.clone();
                    return Err(Refusal::NoSuchFile { file: pattern, group }.into());
                }
                let mut seen = BTreeSet::new();
                rows.retain(|row| seen.insert(row.content));
                let by_id = rows.iter().map(|row| Selector::Id(row.content.into()));
                let mut listed = self.find_files(group, &by_id.collect::<Vec<_>>()).await?;
                // The name that matched, of several that it may have.
                for (listed, row) in listed.iter_mut().zip(&rows) {
                    if let Ok(listed) = listed {
                        listed.found.name = row.name.clone();
                    }
                }
                let names = rows.iter().map(|row| row.name.to_string());
                let asked = |(name, listed)| Asked { name, listed, started: None };
                return Ok(names.zip(listed).map(asked).collect());
            }
        };
        let listed = self.find_files(group, &files).await?;
        let mut seen = BTreeSet::new();
        let all = names.into_iter().zip(listed);
        let once = all.filter(|(_, listed)| {
            listed.as_ref().map_or(true, |listed| seen.insert(listed.head.content_id()))
        });
        Ok(once.map(|(name, listed)| Asked { name, listed, started: None }).collect())
    }

    /// Records and begins those of `all` that are to be begun, of which these are the manifests.
    fn begin_many(
        &self,
        group: &GroupName,
        directory: &Path,
        all: &mut [Asked],
        manifests: Vec<Result<Manifest, AgentError>>,
    ) -> Result<(), AgentError> {
        let mut manifests = manifests.into_iter();
        let mut wanted = Vec::new();
        let mut size = 0;
        for (number, asked) in all.iter_mut().enumerate() {
            let Some((key, listed)) = asked.to_begin() else { continue };
            let own = Wanted {
                group: group.clone(),
                id: key.group,
                name: listed.found.name.clone(),
                publisher: Some(listed.found.sharer.clone()),
                metafile: None,
                to: Destination {
                    directory: directory.to_owned(),
                    name: listed.found.name.clone(),
                },
            };
            match manifests.next() {
                Some(Ok(manifest)) => {
                    size += manifest.layout().size();
                    wanted.push((key, number, own, Arc::new(manifest)));
                }
                Some(Err(error)) => asked.started = Some(Err(error)),
                None => asked.started = Some(Err(AgentError::BadAnswer)),
            }
        }
        let elsewhere: BTreeSet<_> = {
            let library = self.core.library();
            let id = wanted.first().map(|(key, ..)| key.group);
            let others = library.iter().filter(|(key, _)| Some(key.group) != id);
            others.map(|(key, _)| key.content).collect()
        };
        if let Some((key, ..)) = wanted.first()
            && !self.core.groups().contains(key.group)
        {
            return Err(Refusal::NotAMember(group.clone()).into());
        }
        let (to, count) = (directory.to_owned(), wanted.len());
        let batch = Arc::new(Batch::new(group.clone(), to.clone(), count, size));
        let (mut begun, mut olds) = (Vec::new(), Vec::new());
        for (key, number, wanted, manifest) in wanted {
            // What is here because of another group is stored once.
            let joined = match elsewhere.contains(&key.content) {
                true => self.join_elsewhere(&wanted, key),
                false => Ok(None),
            };
            let mut library = self.core.library();
            let entry = match joined {
                Ok(Some(entry)) => Ok(entry),
                Err(error) => Err(error),
                Ok(None) => library.vacate(key).map(|old| {
                    olds.extend(old.map(|old| (key, old)));
                    let entry = queued(wanted, manifest, batch.clone());
                    let number = library.add(key, entry.clone());
                    begun.push(key);
                    Entry { number, ..entry }
                }),
            };
            all[number].started = Some(entry.map(|entry| get::started(key, &entry)));
        }
        // With one commit.
        self.core.save(&begun);
        let files = begun.len();
        self.core.notify(Notice::StartedMany { group: group.clone(), path: to, files, size });
        tracing::info!(%group, count = begun.len(), "downloads begin");
        for (key, old) in olds {
            // Peers that have the swarm open tell anew what they have.
            self.core.registry.remove_swarm(key, ErrorCode::Done);
            self.drop_part_soon(key.content, Some(old));
        }
        for key in begun {
            self.core.take_up(&[key], true, Begin::InTurn);
        }
        Ok(())
    }
}

/// An entry of which there is nothing yet.
fn queued(wanted: Wanted, manifest: Arc<Manifest>, batch: Arc<Batch>) -> Entry {
    Entry {
        number: 0,
        since: clock::now(),
        group: wanted.group,
        name: wanted.name,
        publisher: wanted.publisher,
        shared: false,
        metafile: wanted.metafile,
        manifest,
        home: Home::Part(wanted.to),
        sight: Sight::Unseen,
        store: None,
        meter: None,
        kept_bytes: 0,
        state: EntryState::Checking,
        told: false,
        asked: true,
        waits: None,
        fresh: true,
        queued: true,
        batch: Some(batch),
        transfer: None,
    }
}
