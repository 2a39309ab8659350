//! A disk that rots under a leecher: it serves nothing false, says what it lost, and fetches it again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use mtq::bitfield::Bitfield;
use mtq::client::agent::Agent;
use mtq::name::Selector;
use mtq::swarm::message::{Control, Nack, PieceHeader};
use mtq::tracker::message::{Reply, Request};

use crate::net::{Net, group, soon};
use crate::raw_peer::{RawPeer, ticket};
use crate::world::{DEADLINE, content};

const P: usize = 524_288;

/// Where the other agent is, by what the tracker says of who holds the content.
async fn address_of(
    line: &mtq::tracker::stub::TrackerConnection,
    content: mtq::manifest::ContentId,
    agent: &Agent,
) -> std::net::SocketAddr {
    let asked = line.call(&Request::Peers { group: group(), contents: vec![content] }).await;
    let Ok(Reply::Peers { holders }) = asked else { panic!("{asked:?}") };
    let found = holders[0].iter().find(|peer| peer.peer_id == agent.peer_id());
    found.expect("the agent announced itself").addresses[0]
}

#[tokio::test]
async fn what_rots_is_refused_with_what_is_left_and_fetched_again() {
    let net = Net::new();
    let bytes = content(24 * P, 7);
    let (alice, manifest) = net.seeder(&bytes).await;
    let content = manifest.content_id();
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let shown = ticket(&line).await;
    let bob = net.member("bob", &alice).await;
    let dest = net.path("dest");
    fs::create_dir(&dest).expect("made");
    // Slow enough to stay under way until it is let go.
    alice.limit(None, |limits| limits.up = Some(512 * 1024)).expect("limited");
    let file: Selector = "file.bin".parse().expect("a selector");
    bob.get(group(), file, &dest).await.expect("begun");
    soon("a piece", async {
        while bob.downloads()[0].progress.stored_bytes < P as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    let at = address_of(&line, content, &bob).await;
    let mut peer = RawPeer::dial(&endpoint, (bob.peer_id(), at)).await;
    peer.say(&Control::Ticket { ticket: shown.1 }).await;
    peer.say(&Control::Open { swarm: 3, group: shown.0, content }).await;
    let bits = loop {
        if let Control::Bitfield { bits, .. } = peer.hear().await {
            break bits;
        }
    };
    let had = Bitfield::from_bytes(manifest.layout(), &bits).expect("a bitfield");
    let victim = had.iter().next().expect("a piece");
    let part = File::options().write(true).open(bob.downloads()[0].path.clone()).expect("opens");
    part.write_all_at(b"rot", manifest.layout().offset(victim) + 77).expect("written");

    let answer = peer.request(3, victim.get()).await.expect("an answer");
    let PieceHeader::Nack(Nack::NotHave { bits: Some(bits) }) = answer else {
        panic!("{answer:?}")
    };
    let left = Bitfield::from_bytes(manifest.layout(), &bits).expect("a bitfield");
    assert!(!left.contains(victim));
    // Everybody who was told of it is told that it is gone.
    loop {
        if let Control::Bitfield { bits, .. } = peer.hear().await {
            let told = Bitfield::from_bytes(manifest.layout(), &bits).expect("a bitfield");
            assert!(!told.contains(victim));
            break;
        }
    }
    alice.limit(None, |limits| limits.up = None).expect("let go");
    let rows = bob.wait(Some(DEADLINE)).await.expect("complete");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
    let pieces: u32 = rows[0].progress.sources.values().map(|source| source.pieces).sum();
    assert_eq!(pieces, 25, "one of them came twice");
    net.end([alice, bob]).await;
}
