//! What an agent is run with, and what goes with every request to one: the settings at work, here.

use std::path::{Path, PathBuf};

use super::config;
use super::exit::Failure;
use super::request::Request;
use super::settings::{Origin, Settings};
use crate::client::agent::{Agent, AgentConfig};

/// The settings at work.
#[derive(Clone, Debug)]
pub struct Plan {
    settings: Settings,
    cwd: PathBuf,
}

impl Plan {
    /// By these settings, in the current directory.
    ///
    /// # Errors
    /// [`Failure`] when there is none, or its path is not Unicode.
    pub fn new(mut settings: Settings) -> Result<Self, Failure> {
        let cwd = std::env::current_dir()
            .map_err(|error| Failure::new("disk", format!("the current directory: {error}")))?;
        if cwd.to_str().is_none() {
            return Err(Failure::usage("the current directory's path is not Unicode"));
        }
        settings.data_dir.value = cwd.join(&settings.data_dir.value);
        Ok(Self { settings, cwd })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The agent's data directory.
    pub fn data_dir(&self) -> &Path {
        &self.settings.data_dir.value
    }

    /// Runs an agent, in a tokio runtime.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn agent(&self) -> Result<Agent, Failure> {
        let config: AgentConfig = config::agent(&self.settings)?;
        let trackers = config.trackers.clone();
        let agent = Agent::start(config)?;
        config::remember(agent.data_dir(), &trackers);
        Ok(agent)
    }

    /// A request for what these words say.
    pub fn request_words(&self, words: Vec<String>) -> Request {
        Request { args: Some(words), ..self.request() }
    }

    /// A request for what a line says.
    pub fn request_line(&self, line: String) -> Request {
        Request { line: Some(line), ..self.request() }
    }

    fn request(&self) -> Request {
        let Settings { default_group, mtorrent_dir, .. } = &self.settings;
        Request {
            cwd: Some(self.cwd.clone()),
            default_group: default_group.value.as_ref().map(ToString::to_string),
            mtorrent_dir: mtorrent_dir.value.as_ref().map(|directory| self.cwd.join(directory)),
            ..Request::default()
        }
    }

    /// Flags that mean the agent itself, and nothing to one that runs already.
    pub fn unused_flags(&self) -> Vec<&'static str> {
        let Settings { trackers, listen, up, down, max_mtu, congestion, on_event, .. } =
            &self.settings;
        let origins = [
            &trackers.origin,
            &listen.origin,
            &up.origin,
            &down.origin,
            &max_mtu.origin,
            &congestion.origin,
            &on_event.origin,
        ];
        let flags = origins.into_iter().filter_map(|origin| match origin {
            Origin::Flag(flag) => Some(*flag),
            _ => None,
        });
        flags.collect()
    }
}
