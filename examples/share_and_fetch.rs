//! A tracker and two users in one process: accounts, a group, and a file that goes from one to the other.
//!
//!     cargo run --example share_and_fetch

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use mtq::client::{Agent, AgentConfig, MetafileTo, Notice, Password};
use mtq::name::GroupName;
use mtq::tracker::{Tracker, TrackerConfig};
use mtq::tracker_link::TrackerInfo;
use tokio::sync::broadcast::Receiver;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let tracker_dir = dir.path().join("tracker");
    let tracker = Tracker::start(TrackerConfig::open(&tracker_dir, loopback)?, &tracker_dir)?;
    let trackers = TrackerInfo::new(vec![tracker.link()?])?;

    let start = |data_dir: PathBuf| {
        let config = AgentConfig::new(data_dir, trackers.clone());
        Agent::start(AgentConfig { listen: Some(loopback), ..config })
    };
    let alice = start(dir.path().join("alice"))?;
    let bob = start(dir.path().join("bob"))?;
    // Whoever listens from the start misses nothing.
    let (mut alice_news, mut bob_news) = (alice.notices(), bob.notices());
    sign_up(&alice, "alice").await?;
    sign_up(&bob, "bob").await?;

    let lab: GroupName = "lab".parse()?;
    alice.create_group(lab.clone(), false).await?;
    bob.join_group(lab.clone()).await?;
    let asked = heard("alice", &mut alice_news, |n| matches!(n, Notice::JoinRequested { .. }));
    if let Notice::JoinRequested { group, user } = asked.await? {
        alice.accept_request(group, user).await?;
    }
    heard("bob", &mut bob_news, |n| matches!(n, Notice::RequestAnswered { .. })).await?;

    let mut content = vec![0; 8 << 20];
    fastrand::fill(&mut content);
    let original = dir.path().join("noise.bin");
    fs::write(&original, &content)?;
    let shared = alice.share(&original, lab.clone(), None, MetafileTo::Beside).await?;
    println!("alice shares {}: {}", shared.name, shared.manifest.content_id());
    heard("bob", &mut bob_news, |n| matches!(n, Notice::FileListed { .. })).await?;

    let copy = dir.path().join("copy.bin");
    let started = bob.get(lab, "noise.bin".parse()?, &copy).await?;
    println!("bob gets {}, {} bytes", started.name, started.size);
    bob.wait(None).await?;
    heard("bob", &mut bob_news, |n| matches!(n, Notice::Downloaded { .. })).await?;
    if fs::read(&copy)? != content {
        return Err("the copy differs".into());
    }
    println!("the copy is the same");

    bob.shutdown().await;
    alice.shutdown().await;
    tracker.shutdown().await;
    Ok(())
}

/// Makes an account and logs in.
async fn sign_up(agent: &Agent, name: &str) -> Outcome<()> {
    let password = Password(format!("the secret of {name}"));
    agent.create_user(name.parse()?, password.clone(), None).await?;
    agent.login(name.parse()?, password).await?;
    Ok(())
}

/// Prints the news of somebody up to the one that is waited for.
async fn heard(
    who: &str,
    news: &mut Receiver<Notice>,
    is_it: impl Fn(&Notice) -> bool,
) -> Outcome<Notice> {
    loop {
        let notice = news.recv().await?;
        println!("{who} is told: {notice}");
        if is_it(&notice) {
            return Ok(notice);
        }
    }
}
