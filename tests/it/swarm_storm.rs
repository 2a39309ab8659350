//! Seeders that are killed and started again, stand still, and change their pace, all at random: every
//! download completes, equal, nobody is blamed, and hardly a byte comes in vain.
//!
//! For longer runs: `MTQ_TIMES=5`; another course of events: `MTQ_SEED=7`.

use std::env;
use std::fs;
use std::thread;
use std::time::Duration;

use mtq::client::agent::Agent;
use mtq::client::library::EntryState;
use mtq::clock;
use rustix::process::Signal;

use crate::net::group;
use crate::swarm::{P, agent_in, begin, complete, limit_up, mib};
use crate::world::{Client, DEADLINE, World, content, quoted};

/// Seeders, each with the file in a directory of its own.
struct Seeders<'a> {
    world: &'a World,
    clients: [Option<Client>; 3],
    rng: fastrand::Rng,
    kills: u64,
}

impl Seeders<'_> {
    fn share(&mut self, number: usize) {
        let rate = ["1MiB", "2MiB", "4MiB"][self.rng.usize(0..3)];
        let client = self.clients[number].as_mut().expect("alive");
        client.ok(&format!("limit --up {rate}"));
        let path = self.world.path(format!("{}/file.bin", client.name));
        client.ok(&format!("share {} lab", quoted(&path)));
    }

    fn kill(&mut self, number: usize) {
        let old = self.clients[number].take().expect("alive");
        let name = old.name.clone();
        old.kill();
        self.kills += 1;
        self.pause(500);
        let mut new = self.world.client(&name);
        new.ok(&format!("login {name}"));
        self.clients[number] = Some(new);
        self.share(number);
    }

    fn stop(&mut self, number: usize) {
        let client = self.clients[number].as_ref().expect("alive");
        client.signal(Signal::STOP);
        self.pause(4_000);
        let client = self.clients[number].as_ref().expect("alive");
        client.signal(Signal::CONT);
    }

    /// A random time.
    fn pause(&mut self, at_most: u64) {
        thread::sleep(Duration::from_millis(self.rng.u64(0..at_most)));
    }
}

fn is_complete(agent: &Agent) -> bool {
    agent.downloads()[0].state == EntryState::Seeding
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_befalls_seeders_downloads_complete() {
    let world = World::new();
    let seed = env::var("MTQ_SEED").map_or(91, |text| text.parse().expect("a number"));
    let bytes = content(mib(32), 91);
    let clients = world.lab(["s0", "s1", "s2"]);
    for client in &clients {
        world.write(&format!("{}/file.bin", client.name), &bytes);
    }
    let rng = fastrand::Rng::with_seed(seed);
    let mut seeders = Seeders { world: &world, clients: clients.map(Some), rng, kills: 0 };
    (0..3).for_each(|number| seeders.share(number));
    let mut owner = seeders.clients[0].take().expect("alive");
    let (bob, dave) =
        (agent_in(&world, "bob", &mut owner).await, agent_in(&world, "dave", &mut owner).await);
    seeders.clients[0] = Some(owner);
    for (name, leecher) in [("bob", &bob), ("dave", &dave)] {
        limit_up(leecher, 4 << 20);
        begin(leecher, group(), "file.bin", &world.path(name)).await;
    }
    let begun = clock::monotonic();
    while !(is_complete(&bob) && is_complete(&dave)) {
        assert!(begun.elapsed() < DEADLINE, "{:?} {:?}", bob.downloads(), dave.downloads());
        let number = seeders.rng.usize(0..3);
        match seeders.rng.u8(0..4) {
            0 => seeders.kill(number),
            1 => seeders.stop(number),
            2 => seeders.share(number),
            _ => seeders.pause(500),
        }
    }
    for (name, leecher) in [("bob", &bob), ("dave", &dave)] {
        let row = complete(leecher).await;
        assert!(fs::read(world.path(name).join("file.bin")).expect("arrived") == bytes);
        let sources = &row.progress.sources;
        assert!(sources.values().all(|source| source.bad_pieces == 0), "{sources:?}");
        let (received, wasted) = row.progress.received();
        println!(
            "{name}: {:.1?}, {} kills, of {received} bytes {wasted:?}, {:?}",
            row.progress.elapsed,
            seeders.kills,
            row.progress.requests()
        );
        // What was on its way from the killed and the halted, and at the very end.
        let on_its_way = (seeders.kills + 8) * 4 * P as u64;
        assert!(wasted.total() < on_its_way, "{wasted:?}");
    }
    bob.shutdown().await;
    dave.shutdown().await;
}
