//! `mtq demo`: trackers and clients as real processes on this machine move a real file.

use std::path::Path;

use indicatif::MultiProgress;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::args::{DemoArgs, Scenario};
use super::demo_failover;
use super::demo_stage::{ClientProcess, Home, Source, TrackerProcess, failed, meet, report};
use super::exit::{Failure, status};
use super::progress::bytes_bar;
use super::text;

/// Bytes of the file when nothing else is said.
const SIZE: u64 = 256 << 20;

/// Runs the demo; the status is 0 only when every copy equals the source and all else held.
///
/// # Errors
/// [`Failure`] when any step fails.
pub fn run(args: &DemoArgs) -> Result<u8, Failure> {
    let home = Home::new(args.keep.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("cannot start", &error))?;
    let (peers, size) = (usize::from(args.peers), args.size.map(|size| size.as_u64()));
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|error| failed("cannot wait for signals", &error))?;
        let played = async {
            match args.scenario {
                Scenario::Plain => play(&home.path, peers, size.unwrap_or(SIZE)).await,
                Scenario::Failover => {
                    demo_failover::play(&home.path, peers, size.unwrap_or(demo_failover::SIZE))
                        .await
                }
            }
        };
        tokio::select! {
            result = played => result,
            _ = tokio::signal::ctrl_c() => Ok(status::INTERRUPTED),
            _ = terminate.recv() => Ok(status::INTERRUPTED),
        }
    })
}

async fn play(home: &Path, count: usize, size: u64) -> Result<u8, Failure> {
    println!(
        "{count} clients, one tracker, one file of {}; everything is in {}",
        text::size(size),
        text::path(home)
    );
    let mut trackers = TrackerProcess::start_all(home, 1).await?;
    let mut clients = Vec::new();
    for index in 0..count {
        clients.push(ClientProcess::start(home, index)?);
    }
    println!("accounts and a group");
    meet(&mut clients).await?;
    let (first, others) = clients.split_at_mut(1);
    let first = &mut first[0];
    println!("{} makes and shares the file", first.name);
    let source = Source::share(first, size).await?;
    println!("everybody else gets it, all at once");
    for client in others {
        client.get().await?;
    }
    let bars = MultiProgress::new();
    let mut watched = JoinSet::new();
    for mut client in clients.drain(1..) {
        let bar = bars.add(bytes_bar(size, format!("{:6}", client.name)));
        watched.spawn(async move {
            let row = client.watch(|stored| bar.set_position(stored)).await;
            bar.finish();
            row.map(|row| (client, row))
        });
    }
    let mut fetched = Vec::new();
    while let Some(done) = watched.join_next().await {
        fetched.push(done.map_err(|error| failed("a watcher failed", &error))??);
    }
    fetched.sort_by_key(|(client, _)| client.index);

    let equal = report(&clients[0], &fetched, &source)?;
    for client in clients.iter_mut().chain(fetched.iter_mut().map(|(client, _)| client)) {
        client.quit().await;
    }
    for tracker in &mut trackers {
        tracker.end().await;
    }
    if equal {
        println!("all copies are equal to the source");
        Ok(0)
    } else {
        println!("the copies differ from the source");
        Ok(status::INTEGRITY)
    }
}
