//! SHA-1 midstates: they go from hand to hand, are missed by nobody, and lies in them harm nobody.

use std::fs;
use std::sync::Arc;

use mtq::bitfield::Bitfield;
use mtq::client::agent::Agent;
use mtq::hash::{Sha1Hasher, Sha1State};
use mtq::id::GroupId;
use mtq::manifest::{ContentId, Manifest};
use mtq::swarm::message::{Control, Encoding, PieceHeader, PieceRequest};
use mtq::swarm::midstates::{Midstates, PART_LEN};
use mtq::swarm::sidecars::{PieceRecord, Sidecars};
use mtq::tracker::message::Request;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{read_frame, write_frame};
use tokio::task::JoinSet;

use crate::net::{Net, group, user};
use crate::raw_peer::{RawPeer, ticket};
use crate::world::{DEADLINE, content};

const P: usize = 524_288;

/// The sidecar that an agent keeps of a content.
fn kept(net: &Net, who: &str, content: ContentId) -> Option<Vec<u8>> {
    let directory = net.path(&format!("{who}.data")).join("sidecars");
    fs::read(directory.join(content.to_string())).ok()
}

async fn member(net: &Net, who: &str, owner: &Agent) -> Agent {
    let agent = net.agent(who).await;
    agent.join_group(group()).await.expect("asked");
    owner.accept_request(group(), user(who)).await.expect("accepted");
    agent
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
    let bob = member(&net, "bob", &alice).await;
    let carol = member(&net, "carol", &alice).await;
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
    let bob = member(&net, "bob", &alice).await;
    download(&net, "bob", &bob, &bytes).await;
    assert_eq!(kept(&net, "bob", manifest.content_id()), None);
    net.end([alice, bob]).await;
}

/// The midstates of each piece, where the file's SHA-1 is in `first` before it.
fn midstates_from(first: Sha1State, bytes: &[u8]) -> Vec<Midstates> {
    let mut file = Sha1Hasher::at(first, 0);
    let of_piece = |piece: &[u8]| {
        let (mut own, mut owns, mut states) = (Sha1Hasher::default(), Vec::new(), Vec::new());
        for part in piece.chunks(PART_LEN) {
            states.extend(file.state());
            owns.extend(own.state());
            own.update(part);
            file.update(part);
        }
        Midstates::new(&owns[1..], &states).expect("as many as there should be")
    };
    bytes.chunks_exact(P).map(of_piece).collect()
}

/// Serves the right pieces, with these midstates.
async fn serve(
    endpoint: Endpoint,
    (group, ticket): (GroupId, Vec<u8>),
    manifest: Arc<Manifest>,
    bytes: Vec<u8>,
    midstates: Vec<Midstates>,
) {
    let Some(incoming) = endpoint.accept(10, || {}).await else { return };
    let Some(connection) = incoming.finish().await else { return };
    let mut peer = RawPeer::greet(connection).await;
    peer.say(&Control::Ticket { ticket }).await;
    peer.say(&Control::Open { swarm: 0, group, content: manifest.content_id() }).await;
    let all = Bitfield::all(manifest.layout());
    peer.say(&Control::Bitfield { swarm: 0, bits: all.as_bytes().to_vec() }).await;
    while let Ok((mut send, mut recv)) = peer.connection.accept_bi().await {
        let Ok(request) = read_frame::<PieceRequest>(&mut recv, 64).await else { continue };
        let place = request.piece as usize;
        let midstates = Box::new(midstates[place]);
        let header = PieceHeader::Proven { encoding: Encoding::Identity, len: P as u32, midstates };
        let _ = write_frame(&mut send, &header).await;
        let _ = send.write_all(&bytes[place * P..(place + 1) * P]).await;
        let _ = send.finish();
    }
}

#[tokio::test]
async fn lies_in_them_harm_nobody_and_are_not_kept() {
    let net = Net::new();
    let bytes = content(5 * P, 3);
    let (alice, manifest) = net.seeder(&bytes).await;
    let content = manifest.content_id();
    let bob = member(&net, "bob", &alice).await;
    let (endpoint, line, _pushes) = net.insider("mallory", &alice).await;
    let shown = ticket(&line).await;
    let contents = vec![(content, true)];
    line.call(&Request::Announce { group: group(), contents }).await.expect("announced");
    alice.shutdown().await;

    let truth = midstates_from(Sha1State::FIRST, &bytes);
    let mut said = truth.clone();
    // What leads nowhere; those of another piece; and what is so, but not of this file.
    said[1].0[200] ^= 1;
    said[2] = truth[3];
    said[4] = midstates_from(Sha1State::from_bytes([5; 20]), &bytes[4 * P..])[0];
    let evil = serve(endpoint, shown, manifest.clone(), bytes.clone(), said);
    let evil = JoinSet::from_iter([evil]);
    download(&net, "bob", &bob, &bytes).await;
    let sidecars = Sidecars::new(net.path("bob.data").join("sidecars"));
    for piece in manifest.layout().pieces() {
        let place = piece.get() as usize;
        let bytes = &bytes[place * P..(place + 1) * P];
        let expected = [0, 3].contains(&place).then(|| PieceRecord::of(truth[place], bytes));
        assert_eq!(sidecars.get(content, piece), expected, "{piece}");
    }
    drop(evil);
    net.end([bob]).await;
}
