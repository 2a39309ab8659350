//! A tracker in this process, agents beside it, and raw clients that send what they like.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mtq::client::agent::{Agent, AgentConfig};
use mtq::client::metafile::MetafileTo;
use mtq::id::RequestId;
use mtq::limits::CONNECTIONS_PER_ADDRESS;
use mtq::manifest::Manifest;
use mtq::name::{GroupName, UserName};
use mtq::tracker::greeting::Hello;
use mtq::tracker::message::{Password, Reply, Request};
use mtq::tracker::refusal::Refusal;
use mtq::tracker::server::{Tracker, TrackerConfig};
use mtq::tracker::state::Rules;
use mtq::tracker::stub::{CallError, ConnectError, PushQueue, TrackerConnection};
use mtq::tracker_link::{TrackerInfo, TrackerLink};
use mtq::transport::endpoint::Endpoint;
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use tempfile::TempDir;

use crate::world::DEADLINE;

/// A tracker and a directory, in this process.
pub struct Net {
    pub dir: TempDir,
    pub tracker: Tracker,
    pub link: TrackerLink,
}

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

pub fn group() -> GroupName {
    "lab".parse().expect("a name")
}

pub fn user(name: &str) -> UserName {
    name.parse().expect("a name")
}

pub fn password() -> Password {
    Password("secret".to_owned())
}

pub fn request_id() -> RequestId {
    RequestId::random(&mut fastrand::Rng::new())
}

/// Whatever a test waits for must come; this only bounds a hang.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(DEADLINE, future).await;
    waited.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

impl Net {
    pub fn new() -> Self {
        Self::with(Rules::default(), CONNECTIONS_PER_ADDRESS)
    }

    /// A tracker with these rules.
    pub fn with(rules: Rules, connections_per_address: usize) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let identity = Arc::new(Identity::generate());
        let id = identity.peer_id();
        let config = TrackerConfig {
            rules,
            connections_per_address,
            ..TrackerConfig::new(identity, loopback())
        };
        let tracker = Tracker::start(config, dir.path()).expect("a tracker");
        let link = TrackerLink::new(tracker.local_address().expect("an address"), id);
        Self { dir, tracker, link }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn agent(&self, name: &str) -> Agent {
        let trackers = TrackerInfo::new(vec![self.link.clone()]).expect("one tracker");
        let data_dir = self.path(&format!("{name}.data"));
        let agent = Agent::start(AgentConfig {
            listen: Some(loopback()),
            ..AgentConfig::new(data_dir, trackers)
        });
        let agent = agent.expect("an agent");
        agent.create_user(user(name), password(), None).await.expect("created");
        agent.login(user(name), password()).await.expect("logged in");
        agent
    }

    /// An agent that owns `lab` and shares `bytes` in it.
    pub async fn seeder(&self, bytes: &[u8]) -> (Agent, Arc<Manifest>) {
        let alice = self.agent("alice").await;
        alice.create_group(group(), false).await.expect("created");
        let path = self.path("file.bin");
        fs::write(&path, bytes).expect("written");
        let shared = alice.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
        (alice, shared.manifest)
    }

    /// A raw client: an endpoint and a connection to the tracker.
    pub async fn intruder(&self) -> (Endpoint, TrackerConnection, PushQueue) {
        intruder_at(&self.link, "127.0.0.1:0").await.expect("connected")
    }

    /// Another connection of a raw client.
    pub async fn reconnect(&self, endpoint: &Endpoint) -> (TrackerConnection, PushQueue) {
        TrackerConnection::open(endpoint, &self.link, &hello(2)).await.expect("connected")
    }

    /// A raw client with an account that `owner` lets into `lab`.
    pub async fn insider(
        &self,
        name: &str,
        owner: &Agent,
    ) -> (Endpoint, TrackerConnection, PushQueue) {
        let (endpoint, line, pushes) = self.intruder().await;
        for request in [
            Request::CreateUser {
                request_id: request_id(),
                user: user(name),
                password: password(),
                invite: None,
            },
            Request::Login { request_id: request_id(), user: user(name), password: password() },
            Request::JoinGroup { request_id: request_id(), group: group() },
        ] {
            line.call(&request).await.expect("granted");
        }
        owner.accept_request(group(), user(name)).await.expect("accepted");
        (endpoint, line, pushes)
    }

    pub async fn end(self, agents: impl IntoIterator<Item = Agent>) {
        for agent in agents {
            agent.shutdown().await;
        }
        self.tracker.shutdown().await;
    }
}

/// The hello of a raw client.
pub fn hello(session: u64) -> Hello {
    let (addresses, extensions) = (Vec::new(), Vec::new());
    Hello { features: 0, agent: "evil".to_owned(), session, addresses, roster: None, extensions }
}

/// A raw client of the tracker at `link`, seen by it at `from`.
pub async fn intruder_at(
    link: &TrackerLink,
    from: &str,
) -> Result<(Endpoint, TrackerConnection, PushQueue), ConnectError> {
    let from = from.parse().expect("an address");
    let endpoint =
        Endpoint::bind(Arc::new(Identity::generate()), from, &[Alpn::Peer]).expect("bound");
    let (line, pushes) = TrackerConnection::open(&endpoint, link, &hello(1)).await?;
    Ok((endpoint, line, pushes))
}

/// The refusal's code.
pub async fn refused(line: &TrackerConnection, request: Request) -> &'static str {
    match line.call(&request).await {
        Err(CallError::Refused(refusal)) => refusal.code(),
        answer => panic!("{request:?}: {answer:?}"),
    }
}

/// Asks until the tracker has time: tests ask faster than people.
pub async fn granted(line: &TrackerConnection, request: Request) -> Reply {
    loop {
        match line.call(&request).await {
            Ok(reply) => return reply,
            Err(CallError::Refused(Refusal::RateLimited { retry_after_ms })) => {
                tokio::time::sleep(std::time::Duration::from_millis(retry_after_ms)).await;
            }
            Err(CallError::Refused(Refusal::Busy)) => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{request:?}: {error}"),
        }
    }
}

/// Makes the account and logs in.
pub async fn sign_up(line: &TrackerConnection, name: &str) {
    let (request_id, user) = (request_id(), user(name));
    let create =
        Request::CreateUser { request_id, user: user.clone(), password: password(), invite: None };
    granted(line, create).await;
    let request_id = RequestId::random(&mut fastrand::Rng::new());
    granted(line, Request::Login { request_id, user, password: password() }).await;
}
