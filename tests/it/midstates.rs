//! SHA-1 midstates: they go from hand to hand, are missed by nobody, and lies in them harm nobody.

use std::fs;

use mtq::client::agent::Agent;
use mtq::manifest::ContentId;
use mtq::swarm::hashing::hash_and_mark;
use mtq::swarm::message::{Encoding, PieceHeader};
use mtq::swarm::sidecars::{PieceRecord, Sidecars};
use mtq::tracker::message::Request;
use tokio::task::JoinSet;

use crate::net::{Net, group};
use crate::raw_peer::{serve_pieces, ticket};
use crate::swarm::P;
use crate::world::{DEADLINE, content};

/// The sidecar that an agent keeps of a content.
fn kept(net: &Net, who: &str, content: ContentId) -> Option<Vec<u8>> {
    let directory = net.path(&format!("{who}.data")).join("sidecars");
    fs::read(directory.join(content.to_string())).ok()
}

/// Downloads the file, which is as it should be then.
async fn download(net: &Net, who: &str, agent: &Agent, bytes: &[u8]) {
    let dest = net.path(&format!("{who}.dest"));
    fs::create_dir(&dest).expect("made");
    agent.get(group(), "file.bin".parse().expect("a selector"), &dest).await.expect("begun");
    agent.wait(Some(DEADLINE)).await.expect("complete");
    assert!(fs::read(dest.join("file.bin")).expect("arrived") == bytes);
}

#[tokio::test]
async fn they_go_from_hand_to_hand_and_go_with_the_last_share() {
    let net = Net::new();
    let bytes = content(6 * P + 5, 1);
    let (alice, manifest) = net.seeder(&bytes).await;
    let content = manifest.content_id();
    let bob = net.member("bob", &alice).await;
    let carol = net.member("carol", &alice).await;
    let first = kept(&net, "alice", content).expect("made as it was hashed");
    download(&net, "bob", &bob, &bytes).await;
    assert_eq!(kept(&net, "bob", content), Some(first.clone()));
    alice.shutdown().await;
    download(&net, "carol", &carol, &bytes).await;
    assert_eq!(kept(&net, "carol", content), Some(first));
    carol.stop_share(group(), "file.bin".parse().expect("a selector")).await.expect("stopped");
    assert_eq!(kept(&net, "carol", content), None);
    assert!(kept(&net, "bob", content).is_some());
    net.end([bob, carol]).await;
}

#[tokio::test]
async fn without_them_a_file_comes_all_the_same() {
    let net = Net::new();
    let bytes = content(6 * P + 5, 2);
    let (alice, manifest) = net.seeder(&bytes).await;
    fs::remove_dir_all(net.path("alice.data").join("sidecars")).expect("removed");
    let bob = net.member("bob", &alice).await;
    download(&net, "bob", &bob, &bytes).await;
    assert_eq!(kept(&net, "bob", manifest.content_id()), None);
    net.end([alice, bob]).await;
}

/// What a sidecar has of each piece of a file of whole pieces.
fn records_of(net: &Net, bytes: &[u8]) -> Vec<PieceRecord> {
    let (path, sidecars) = (net.path("hashed"), Sidecars::new(net.path("hashed.sidecars")));
    fs::write(&path, bytes).expect("written");
    let new = sidecars.begin(bytes.len() as u64).expect("made");
    let (manifest, _) = hash_and_mark(&path, Some(&new), &|_| true).expect("hashed");
    new.keep(manifest.content_id());
    let record = |piece| sidecars.get(manifest.content_id(), piece).expect("of each");
    manifest.layout().pieces().map(record).collect()
}

#[tokio::test]
async fn lies_in_them_harm_nobody_and_are_not_kept() {
    let net = Net::new();
    let bytes = content(5 * P, 3);
    let (alice, manifest) = net.seeder(&bytes).await;
    let content = manifest.content_id();
    let bob = net.member("bob", &alice).await;
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let shown = ticket(&line).await;
    let contents = vec![(content, true)];
    line.call(&Request::Announce { group: group(), contents }).await.expect("announced");
    alice.shutdown().await;

    let truth = records_of(&net, &bytes);
    let mut other = bytes.clone();
    other[0] ^= 1;
    let mut said: Vec<_> = truth.iter().map(|record| record.midstates).collect();
    // What leads nowhere; those of another piece; and what is so, but not of this file.
    said[1].0[200] ^= 1;
    said[2] = said[3];
    said[4] = records_of(&net, &other)[4].midstates;
    let header = move |place: usize| {
        let (encoding, midstates) = (Encoding::Identity, Box::new(said[place]));
        PieceHeader::Proven { encoding, len: P as u32, midstates }
    };
    let evil = serve_pieces(endpoint, shown, manifest.clone(), bytes.clone(), header);
    let evil = JoinSet::from_iter([evil]);
    download(&net, "bob", &bob, &bytes).await;
    let sidecars = Sidecars::new(net.path("bob.data").join("sidecars"));
    for piece in manifest.layout().pieces() {
        let place = piece.get() as usize;
        let expected = [0, 3].contains(&place).then_some(truth[place]);
        assert_eq!(sidecars.get(content, piece), expected, "{piece}");
    }
    drop(evil);
    net.end([bob]).await;
}
