//! What tests of the engine have in common: agents that give and take one file under rate limits, and
//! what can be seen of their downloads.

use std::env;
use std::path::Path;
use std::time::Duration;

use mtq::client::agent::{Agent, AgentConfig};
use mtq::client::library::EntryState;
use mtq::client::metafile::MetafileTo;
use mtq::client::report::{DownloadRow, Notice, Started};
use mtq::name::{GroupName, Selector};
use mtq::swarm::hold::Hold;
use mtq::swarm::meter::{Progress, Source};
use mtq::tracker_link::TrackerInfo;
use tokio::sync::broadcast;

use crate::net::{Net, group, loopback, password, soon, user};
use crate::world::{Client, DEADLINE, World};

pub const MIB: u64 = 1 << 20;

/// Bytes of a piece.
pub const P: usize = 524_288;

/// A file of so many MiB; so many times larger where `MTQ_TIMES` says so, for longer runs.
pub fn mib(count: u64) -> usize {
    let times = env::var("MTQ_TIMES").map_or(1, |text| text.parse().expect("a number"));
    (count * MIB * times) as usize
}

/// Limits what an agent sends.
pub fn limit_up(agent: &Agent, bytes_per_sec: u64) {
    agent.limit(None, |limits| limits.up = Some(bytes_per_sec)).expect("limited");
}

impl Net {
    /// An agent that `owner` lets into `lab`.
    pub async fn member(&self, name: &str, owner: &Agent) -> Agent {
        let agent = self.agent(name).await;
        agent.join_group(group()).await.expect("asked");
        owner.accept_request(group(), user(name)).await.expect("accepted");
        agent
    }

    /// A member of `lab` that shares what the first seeder shares.
    pub async fn second_seeder(&self, name: &str, owner: &Agent) -> Agent {
        let agent = self.member(name, owner).await;
        self.share_too(name, &agent).await;
        agent
    }

    /// Shares what the first seeder shares.
    pub async fn share_too(&self, name: &str, agent: &Agent) {
        let (path, metafile) = (self.path("file.bin"), self.path(&format!("{name}.mtorrent")));
        let shared = agent.share(&path, group(), None, MetafileTo::File(metafile)).await;
        shared.expect("shared");
    }

    /// Begins to download `file.bin` into a directory of the agent's name.
    pub async fn begin(&self, name: &str, agent: &Agent) -> Started {
        begin(agent, group(), "file.bin", &self.path(name)).await
    }
}

/// Begins to download a file of a group into a directory, which is made.
pub async fn begin(agent: &Agent, group: GroupName, name: &str, dest: &Path) -> Started {
    std::fs::create_dir_all(dest).expect("made");
    let file: Selector = name.parse().expect("a selector");
    agent.get(group, file, dest).await.expect("begun")
}

/// An agent in this process among the processes of a world, whom `owner` lets into `lab`.
pub async fn agent_in(world: &World, name: &str, owner: &mut Client) -> Agent {
    let trackers = TrackerInfo::new(vec![world.link()]).expect("one tracker");
    let config = AgentConfig::new(world.path(format!("{name}.data")), trackers);
    let agent = Agent::start(AgentConfig { listen: Some(loopback()), ..config }).expect("an agent");
    agent.create_user(user(name), password(), None).await.expect("created");
    agent.login(user(name), password()).await.expect("logged in");
    agent.join_group(group()).await.expect("asked");
    owner.ok(&format!("accept-request lab {name}"));
    agent
}

/// How far an agent's first download is.
pub fn progress(agent: &Agent) -> Progress {
    agent.downloads().swap_remove(0).progress
}

/// What a user gave to a download; nothing yet, perhaps.
pub fn source(progress: &Progress, name: &str) -> Option<Source> {
    progress.sources.values().find(|source| source.user == user(name)).cloned()
}

/// Bytes of use that a user gave to a download.
pub fn gave(progress: &Progress, name: &str) -> u64 {
    source(progress, name).map_or(0, |source| source.bytes)
}

/// Waits until `event` gives something.
pub async fn until<T>(what: &str, mut event: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = event() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Waits until so many bytes of an agent's first download are stored.
pub async fn stored(agent: &Agent, bytes: u64) -> Progress {
    until("bytes", || Some(progress(agent)).filter(|progress| progress.stored_bytes >= bytes)).await
}

/// Waits until an agent's downloads are complete; its first row, with the books of bytes checked.
pub async fn complete(agent: &Agent) -> DownloadRow {
    let mut rows = agent.wait(Some(DEADLINE)).await.expect("complete");
    let row = rows.swap_remove(0);
    assert_eq!(row.state, EntryState::Seeding);
    let (received, wasted) = row.progress.received();
    let kept: u64 = row.progress.sources.values().map(|source| source.bytes).sum();
    assert_eq!(received, kept + wasted.total(), "every byte is accounted for: {row:?}");
    row
}

/// Waits until a download says why it does not move.
pub async fn held(notices: &mut broadcast::Receiver<Notice>) -> Hold {
    soon("a pause", async {
        loop {
            if let Notice::Held { hold, .. } = notices.recv().await.expect("news") {
                return hold;
            }
        }
    })
    .await
}

/// Waits until a download says that it moves again.
pub async fn moves(notices: &mut broadcast::Receiver<Notice>) {
    soon("the end of a pause", async {
        while !matches!(notices.recv().await.expect("news"), Notice::Moves { .. }) {}
    })
    .await;
}
