//! Processes that die or stand still in the midst of a transfer: what was verified is never fetched
//! again, and of the rest no more is than was on its way.

use std::fs;
use std::thread;
use std::time::Duration;

use mtq::clock;
use mtq::limits::PIPELINE_START;
use rustix::process::Signal;
use serde_json::Value;

use crate::net::group;
use crate::swarm::{MIB, P, agent_in, begin, complete, gave, mib, progress, source, stored, until};
use crate::world::{Client, World, content, quoted, wait_for};

const KILLS: usize = 20;

/// Shares the bytes as `file.bin` from a directory of the client's own, sent at such a rate.
fn share(world: &World, client: &mut Client, bytes: &[u8], rate: &str) {
    let path = world.write(&format!("{}/file.bin", client.name), bytes);
    client.ok(&format!("limit --up {rate}"));
    client.ok(&format!("share {} lab", quoted(&path)));
}

fn bytes_of(value: &Value, field: &str) -> u64 {
    value[field].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_seeder_costs_no_more_than_was_on_its_way() {
    let world = World::new();
    let [mut alice, mut carol] = world.lab(["alice", "carol"]);
    let len = mib(32) as u64;
    let bytes = content(len as usize, 51);
    for seeder in [&mut alice, &mut carol] {
        share(&world, seeder, &bytes, "4MiB");
    }
    let bob = agent_in(&world, "bob", &mut alice).await;
    begin(&bob, group(), "file.bin", &world.path("bob")).await;
    let before = until("pieces of both", || {
        let now = progress(&bob);
        (gave(&now, "alice") >= 2 * MIB && gave(&now, "carol") >= 2 * MIB).then_some(now)
    })
    .await;
    let killed = clock::monotonic();
    carol.kill();
    let row = complete(&bob).await;
    let left = len - before.stored_bytes;
    let (took, dead) = (killed.elapsed(), source(&row.progress, "carol").expect("a source"));
    println!("{left} bytes more at 4 MiB/s took {took:.1?}; of the dead one: {dead:?}");
    let depth = u64::from(before.sources.values().map(|source| source.asked).max().unwrap_or(0));
    let on_its_way = depth.max(PIPELINE_START as u64) * P as u64;
    assert!(dead.wasted.total() <= on_its_way, "{dead:?}");
    // Of the living one nothing came in vain, but for second copies at the end.
    let alive = source(&row.progress, "alice").expect("a source");
    assert!(alive.wasted.total() <= 4 * P as u64, "{alive:?}");
    assert!(fs::read(world.path("bob/file.bin")).expect("arrived") == bytes);
    bob.shutdown().await;
}

#[test]
fn a_leecher_killed_again_and_again_fetches_nothing_twice() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let len = mib(80) as u64;
    let bytes = content(len as usize, 52);
    share(&world, &mut alice, &bytes, "3MiB");
    let dest = world.make_dir("dest");
    let get = format!("get lab file.bin {}", quoted(&dest));
    let mut rng = fastrand::Rng::with_seed(52);
    let mut reported = 0;
    for kill in 0..KILLS {
        if kill % 2 == 0 {
            let kept = bytes_of(&bob.ok(&get), "stored_bytes");
            assert!(kept >= reported, "{kept} of {reported} bytes were kept before kill {kill}");
            let more = rng.u64(1..=6) * P as u64;
            reported = wait_for("some pieces more", || {
                let now = bytes_of(&bob.row("file.bin"), "stored_bytes");
                (now >= kept + more).then_some(now)
            });
        } else {
            // At any moment, also while what is here is looked at, and before a peer is found.
            bob.say(&get);
            thread::sleep(Duration::from_millis(rng.u64(0..400)));
        }
        bob.kill();
        bob = world.client("bob");
        // By the key of the device.
        bob.ok("login bob");
    }
    alice.ok("limit --up none");
    let kept = bytes_of(&bob.ok(&get), "stored_bytes");
    assert!(kept >= reported && kept < len, "{kept} of {reported} bytes were kept");
    bob.ok("wait --timeout 110");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    let uploaded = wait_for("the last piece to be counted", || {
        let uploaded = bytes_of(&alice.row("file.bin"), "uploaded_bytes");
        (uploaded >= len - kept).then_some(uploaded)
    });
    println!("{KILLS} kills, the last with {kept} bytes kept: {uploaded} bytes sent for {len}");
    // So slow a peer is asked for no more than this at once.
    let on_its_way = (KILLS * PIPELINE_START * P) as u64;
    assert!(uploaded <= len + on_its_way, "{uploaded} bytes were sent for {len}");
    bob.quit();
    alice.quit();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_stands_still_is_done_without_and_used_again() {
    let world = World::new();
    let [mut alice, mut carol] = world.lab(["alice", "carol"]);
    let bytes = content(mib(32), 53);
    for seeder in [&mut alice, &mut carol] {
        share(&world, seeder, &bytes, "2MiB");
    }
    let bob = agent_in(&world, "bob", &mut alice).await;
    begin(&bob, group(), "file.bin", &world.path("bob")).await;
    stored(&bob, 4 * MIB).await;
    let asked_of_her = |now: &_| source(now, "carol").map_or(0, |source| source.asked);
    until("her to be asked for more", || (asked_of_her(&progress(&bob)) > 0).then_some(())).await;
    carol.signal(Signal::STOP);
    let (stopped, before) = (clock::monotonic(), progress(&bob));
    let then = until("her pieces to be asked of the other, who gives on", || {
        let now = progress(&bob);
        let goes_on = gave(&now, "alice") > gave(&before, "alice");
        (asked_of_her(&now) == 0 && goes_on).then_some(now)
    })
    .await;
    let meanwhile = gave(&then, "alice") - gave(&before, "alice");
    println!(
        "her pieces came back after {:.1?}; the other gave {meanwhile} bytes meanwhile",
        stopped.elapsed()
    );
    assert!(gave(&then, "carol") <= gave(&before, "carol") + 4 * P as u64);
    stored(&bob, then.stored_bytes + 2 * MIB).await;
    carol.signal(Signal::CONT);
    let (gone_on, given) = (clock::monotonic(), gave(&progress(&bob), "carol"));
    let again = until("pieces of her", || {
        let now = progress(&bob);
        (gave(&now, "carol") >= given + P as u64).then_some(now)
    })
    .await;
    println!("she gives again after {:.1?}, at {} bytes", gone_on.elapsed(), again.stored_bytes);
    let row = complete(&bob).await;
    let (_, wasted) = row.progress.received();
    println!("{wasted:?} {:?}", row.progress.requests());
    assert!(wasted.total() <= 8 * P as u64, "{wasted:?}");
    assert!(fs::read(world.path("bob/file.bin")).expect("arrived") == bytes);
    bob.shutdown().await;
}
