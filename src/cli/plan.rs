//! What an agent is run with, and what goes with every request to one: the settings at work.

use std::path::{Path, PathBuf};

use super::client_args::ClientArgs;
use super::exit::Failure;
use super::request::Request;
use crate::client::agent::AgentConfig;
use crate::swarm::rates::RateLimits;

/// The settings at work.
#[derive(Clone, Debug)]
pub struct Plan {
    data_dir: PathBuf,
    trackers: PathBuf,
    listen: Option<std::net::SocketAddr>,
    limits: RateLimits,
    cwd: String,
}

impl Plan {
    /// By these options.
    ///
    /// # Errors
    /// [`Failure`] when there is no current directory, or its path is not Unicode.
    pub fn new(args: &ClientArgs) -> Result<Self, Failure> {
        let cwd = std::env::current_dir()
            .map_err(|error| Failure::new("disk", format!("the current directory: {error}")))?;
        let cwd = cwd
            .into_os_string()
            .into_string()
            .map_err(|_| Failure::usage("the current directory's path is not Unicode"))?;
        Ok(Self {
            data_dir: args.data_dir.clone(),
            trackers: args.trackers.clone(),
            listen: args.listen,
            limits: RateLimits { up: args.up.0, down: args.down.0 },
            cwd,
        })
    }

    /// The agent's data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What an agent is run with.
    ///
    /// # Errors
    /// [`Failure`] when the trackers are not known.
    pub fn agent_config(&self) -> Result<AgentConfig, Failure> {
        Ok(AgentConfig {
            data_dir: self.data_dir.clone(),
            trackers: super::tracker::load_trackers(&self.trackers)?,
            listen: self.listen,
            limits: self.limits,
        })
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
        Request { cwd: Some(self.cwd.clone().into()), ..Request::default() }
    }

    /// Options that mean the agent itself, and nothing to one that runs already.
    pub fn unused_options(&self) -> Vec<&'static str> {
        [
            ("--listen", self.listen.is_some()),
            ("--up", self.limits.up.is_some()),
            ("--down", self.limits.down.is_some()),
        ]
        .into_iter()
        .filter_map(|(option, is_given)| is_given.then_some(option))
        .collect()
    }
}
