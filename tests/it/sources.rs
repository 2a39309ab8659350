//! Whom a download takes from: a slow source costs nothing, leechers spare the seeder, who comes late is
//! of use.
//!
//! All rates are limits, so what is measured does not depend on the machine. For longer runs, with less
//! at their ends: `MTQ_TIMES=5`.

use std::fs;
use std::time::Duration;

use mtq::clock;

use crate::net::Net;
use crate::swarm::{MIB, complete, gave, limit_up, mib, stored};
use crate::world::content;

/// How long a download of `len` bytes takes from seeders that send at these rates.
async fn time_from<const N: usize>(rates: [u64; N], len: usize) -> Duration {
    let net = Net::new();
    let bytes = content(len, 41);
    let (alice, _) = net.seeder(&bytes).await;
    let bob = net.member("bob", &alice).await;
    let mut seeders = vec![alice];
    for number in 1..N {
        let seeder = net.second_seeder(&format!("seeder{number}"), &seeders[0]).await;
        seeders.push(seeder);
    }
    seeders.iter().zip(rates).for_each(|(seeder, rate)| limit_up(seeder, rate));
    let begun = clock::monotonic();
    net.begin("bob", &bob).await;
    let row = complete(&bob).await;
    let took = begun.elapsed();
    assert!(fs::read(net.path("bob/file.bin")).expect("arrived") == bytes);
    println!(
        "{rates:?}: {took:.2?}, {:?}, {:?}",
        row.progress.received().1,
        row.progress.requests()
    );
    net.end(seeders.into_iter().chain([bob])).await;
    took
}

#[tokio::test]
async fn a_slow_source_costs_hardly_any_time() {
    let fast = 3 * MIB;
    // Side by side: whatever disturbs one disturbs the other.
    let (without, with) = tokio::join!(
        time_from([fast, fast], mib(24)),
        time_from([fast, fast, 64 * 1024], mib(24)),
    );
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!("with a source of 64 KiB/s it takes {ratio:.3} times as long");
    assert!(ratio < 1.3, "{with:?} instead of {without:?}");
}

#[tokio::test]
async fn a_slow_first_source_costs_hardly_any_time() {
    // The slow one is found first and has most to lose.
    let fast = 3 * MIB;
    let (without, with) =
        tokio::join!(time_from([fast], mib(12)), time_from([64 * 1024, fast], mib(12)));
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!("with a source of 64 KiB/s before it, it takes {ratio:.3} times as long");
    assert!(ratio < 1.3, "{with:?} instead of {without:?}");
}

#[tokio::test]
async fn leechers_that_begin_together_exchange_what_the_seeder_sends_once() {
    let net = Net::new();
    let len = mib(16);
    let bytes = content(len, 42);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, 4 * MIB);
    let (bob, carol) = (net.member("bob", &alice).await, net.member("carol", &alice).await);
    tokio::join!(net.begin("bob", &bob), net.begin("carol", &carol));
    let (of_bob, of_carol) = tokio::join!(complete(&bob), complete(&carol));
    for name in ["bob", "carol"] {
        assert!(fs::read(net.path(name).join("file.bin")).expect("arrived") == bytes);
    }
    let uploaded = alice.downloads()[0].uploaded_bytes;
    let ratio = uploaded as f64 / len as f64;
    println!(
        "the seeder sent {ratio:.3} of the file; bob {:?}, carol {:?}",
        of_bob.progress.received().1,
        of_carol.progress.received().1
    );
    assert!(ratio < 1.5, "the seeder sent {uploaded} bytes");
    assert!(gave(&of_bob.progress, "carol") > 0 && gave(&of_carol.progress, "bob") > 0);
    net.end([alice, bob, carol]).await;
}

#[tokio::test]
async fn who_comes_late_gives_and_gets_its_part() {
    let net = Net::new();
    let len = mib(20) as u64;
    let bytes = content(len as usize, 43);
    let (alice, _) = net.seeder(&bytes).await;
    limit_up(&alice, 2 * MIB);
    let bob = net.member("bob", &alice).await;
    let dave = net.member("dave", &alice).await;
    let erin = net.member("erin", &alice).await;
    limit_up(&dave, 2 * MIB);
    net.begin("bob", &bob).await;
    let before = stored(&bob, len / 5).await;
    // A second seeder, as fast as the first.
    net.share_too("dave", &dave).await;
    let midway = stored(&bob, len * 3 / 5).await;
    let (old, new) = (gave(&midway, "alice") - gave(&before, "alice"), gave(&midway, "dave"));
    println!("since it came, the second seeder gave {new} bytes and the first {old}");
    assert!(new * 3 > old, "the second seeder gave {new} bytes and the first {old}");
    // A leecher that comes late: the first one has most of it.
    net.begin("erin", &erin).await;
    let (of_bob, of_erin) = tokio::join!(complete(&bob), complete(&erin));
    println!(
        "the late leecher got {} of {len} bytes from the first one",
        gave(&of_erin.progress, "bob")
    );
    assert!(gave(&of_erin.progress, "bob") * 4 > len, "{:?}", of_erin.progress.sources);
    assert!(of_bob.progress.received().1.total() < len / 10, "{:?}", of_bob.progress);
    for name in ["bob", "erin"] {
        assert!(fs::read(net.path(name).join("file.bin")).expect("arrived") == bytes);
    }
    net.end([alice, bob, dave, erin]).await;
}
