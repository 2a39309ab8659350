//! Limits on what comes in, and several downloads that share it.

use std::fs;

use mtq::client::library::EntryState;
use mtq::client::metafile::MetafileTo;
use mtq::clock;
use mtq::name::Selector;

use crate::net::{Net, group};
use crate::swarm::{MIB, P, begin, mib, until};
use crate::world::{Client, DEADLINE, World, content, quoted, wait_for};

#[test]
fn a_limit_holds_and_lifting_it_acts_at_once() {
    const RATE: u64 = 2 * MIB;
    let world = World::new();
    let [mut alice] = world.lab(["alice"]);
    let mut bob = world.client_with("bob", &["--down", "2MiB"]);
    bob.sign_up();
    bob.ok("join-group lab");
    alice.ok("accept-request lab bob");
    let len = mib(32) as u64;
    let bytes = content(len as usize, 81);
    let path = world.write("file.bin", &bytes);
    alice.ok(&format!("share {} lab", quoted(&path)));
    let dest = world.make_dir("dest");
    let stored = |bob: &mut Client| bob.row("file.bin")["stored_bytes"].as_u64().expect("a number");
    let begun = clock::monotonic();
    bob.ok(&format!("get lab file.bin {}", quoted(&dest)));
    let at = wait_for("a third", || Some(stored(&mut bob)).filter(|bytes| *bytes >= len / 3));
    let took = begun.elapsed();
    // A second's worth was saved up and goes out at once; the last piece may come on credit.
    let least = (at - RATE - P as u64) as f64 / RATE as f64;
    println!("{at} bytes at 2 MiB/s took {took:.2?}, at least {least:.2} s");
    assert!(took.as_secs_f64() >= least, "{at} bytes came in {took:?}");
    let left = len - stored(&mut bob);
    let lifted = clock::monotonic();
    let limits = bob.ok("limit --down none");
    bob.ok("wait --timeout 110");
    let (took, limited) = (lifted.elapsed(), left as f64 / RATE as f64);
    println!("{limits}: the other {left} bytes took {took:.2?} instead of {limited:.1} s");
    assert!(took.as_secs_f64() < limited / 2.0, "{left} bytes took {took:?}");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    bob.quit();
    alice.quit();
}

#[test]
fn a_limit_outlasts_a_pause_and_ends_with_the_download() {
    let world = World::new();
    let [mut alice, mut bob] = world.lab(["alice", "bob"]);
    let path = world.write("file.bin", &content(mib(8), 82));
    alice.ok(&format!("share {} lab", quoted(&path)));
    alice.ok("limit --up 64KiB");
    let get = format!("get lab file.bin {}", quoted(&world.make_dir("dest")));
    bob.ok(&get);
    let limits = bob.ok("limit lab file.bin --down 1MiB");
    assert_eq!(limits["down_bytes_per_sec"], MIB);
    for change in ["pause", "resume"] {
        bob.ok(&format!("{change} lab file.bin"));
        assert_eq!(bob.ok("limit lab file.bin"), limits, "{change}");
    }
    bob.ok("cancel lab file.bin");
    bob.ok(&get);
    assert!(bob.ok("limit lab file.bin")["down_bytes_per_sec"].is_null());
    bob.ok("cancel lab file.bin");
    bob.quit();
    alice.quit();
}

#[tokio::test]
async fn downloads_at_once_share_what_may_come() {
    let net = Net::new();
    let len = mib(6) as u64;
    let (alice, _) = net.seeder(&content(5, 82)).await;
    let files: Vec<_> = (0..4).map(|number| content(len as usize, 820 + number)).collect();
    for (number, bytes) in files.iter().enumerate() {
        let path = net.path(&format!("f{number}"));
        fs::write(&path, bytes).expect("written");
        alice.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
    }
    let bob = net.member("bob", &alice).await;
    bob.limit(None, |limits| limits.down = Some(4 * MIB)).expect("limited");
    for number in 0..4 {
        begin(&bob, group(), &format!("f{number}"), &net.path("bob")).await;
    }
    let rows = until("the first to be complete", || {
        let rows = bob.downloads();
        rows.iter().any(|row| row.state == EntryState::Seeding).then_some(rows)
    })
    .await;
    let parts: Vec<_> =
        rows.iter().map(|row| row.progress.stored_bytes as f64 / len as f64).collect();
    println!("when the first was complete: {parts:.2?}");
    assert!(parts.iter().all(|part| *part > 0.5), "{parts:?}");
    bob.wait(Some(DEADLINE)).await.expect("complete");
    for (number, bytes) in files.iter().enumerate() {
        let copy = fs::read(net.path("bob").join(format!("f{number}"))).expect("arrived");
        assert!(copy == *bytes, "f{number}");
    }
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn hundreds_of_small_files_at_once_complete_under_a_limit() {
    const COUNT: usize = 200;
    let net = Net::new();
    let (alice, _) = net.seeder(&content(5, 83)).await;
    let bytes = |number: usize| content(1 + number * 331, 8300 + number as u64);
    for number in 0..COUNT {
        let path = net.path(&format!("s{number}"));
        fs::write(&path, bytes(number)).expect("written");
        alice.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
    }
    let bob = net.member("bob", &alice).await;
    bob.limit(None, |limits| limits.down = Some(2 * MIB)).expect("limited");
    let dest = net.path("bob");
    fs::create_dir(&dest).expect("made");
    for number in 0..COUNT {
        let file: Selector = format!("s{number}").parse().expect("a selector");
        bob.get(group(), file, &dest).await.expect("begun");
    }
    bob.wait(Some(DEADLINE)).await.expect("complete");
    for number in 0..COUNT {
        let copy = fs::read(dest.join(format!("s{number}"))).expect("arrived");
        assert!(copy == bytes(number), "s{number}");
    }
    net.end([alice, bob]).await;
}
