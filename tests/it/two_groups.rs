//! One content wanted in two groups: fetched and stored once, from the seeders of both.

use std::fs;
use std::sync::Arc;

use mtq::client::agent::Agent;
use mtq::client::library::EntryState;
use mtq::client::metafile::MetafileTo;
use mtq::name::{GroupName, Selector};

use crate::net::{Net, user};
use crate::swarm::{MIB, P, begin, gave, limit_up, progress, until};
use crate::world::{DEADLINE, content};

/// Alice seeds in `g1`, carol the same content under another name in `g2`, and bob is a member of both.
struct Scene {
    net: Net,
    alice: Agent,
    carol: Agent,
    bob: Agent,
    bytes: Arc<Vec<u8>>,
}

fn g(number: u8) -> GroupName {
    format!("g{number}").parse().expect("a name")
}

impl Scene {
    async fn new(len: usize, seed: u64) -> Self {
        let net = Net::new();
        let bytes = Arc::new(content(len, seed));
        let (alice, carol) = (net.agent("alice").await, net.agent("carol").await);
        let bob = net.agent("bob").await;
        for (number, owner, name) in [(1, &alice, "file.bin"), (2, &carol, "same.bin")] {
            owner.create_group(g(number), false).await.expect("created");
            bob.join_group(g(number)).await.expect("asked");
            owner.accept_request(g(number), user("bob")).await.expect("accepted");
            let path = net.path(name);
            fs::write(&path, &*bytes).expect("written");
            owner.share(&path, g(number), None, MetafileTo::Beside).await.expect("shared");
            limit_up(owner, 2 * MIB);
        }
        Self { net, alice, carol, bob, bytes }
    }

    /// Bob begins in both groups, in the second while the first is under way.
    async fn begin(&self) {
        begin(&self.bob, g(1), "file.bin", &self.net.path("dest")).await;
        until("a piece", || (progress(&self.bob).stored_bytes > 0).then_some(())).await;
        let second = begin(&self.bob, g(2), "same.bin", &self.net.path("other")).await;
        assert!(second.stored_bytes > 0, "what is here already is used");
    }

    fn part_files(&self) -> usize {
        let parts = ["dest", "other"].map(|name| fs::read_dir(self.net.path(name).join(".mtq")));
        let files = parts.into_iter().flatten().flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|kind| kind == "part")).count()
    }

    async fn end(self) {
        self.net.end([self.alice, self.carol, self.bob]).await;
    }
}

#[tokio::test]
async fn it_is_stored_once_and_seeders_of_both_groups_give() {
    let scene = Scene::new(16 * MIB as usize, 71).await;
    scene.begin().await;
    until("pieces of both", || {
        let now = progress(&scene.bob);
        (gave(&now, "alice") > 0 && gave(&now, "carol") > 0).then_some(())
    })
    .await;
    assert_eq!(scene.part_files(), 1);
    let rows = scene.bob.wait(Some(DEADLINE)).await.expect("complete");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.state == EntryState::Seeding));
    assert_eq!(rows[0].path, rows[1].path, "one file");
    assert!(fs::read(&rows[0].path).expect("arrived") == *scene.bytes);
    let (alice, carol) = (gave(&rows[0].progress, "alice"), gave(&rows[0].progress, "carol"));
    println!("{alice} bytes of the one group's seeder, {carol} of the other's");
    assert_eq!(alice + carol, scene.bytes.len() as u64, "each piece once");
    assert_eq!(scene.part_files(), 0);
    // It is served in both.
    for (number, owner) in [(1, &scene.alice), (2, &scene.carol)] {
        until("both to seed", || Some(())).await;
        crate::net::soon("the listing", async {
            while owner.list_files(g(number)).await.expect("listed")[0].seeders != 2 {}
        })
        .await;
    }
    scene.end().await;
}

#[tokio::test]
async fn stopped_in_one_group_it_goes_on_in_the_other() {
    let scene = Scene::new(12 * MIB as usize, 72).await;
    scene.begin().await;
    until("pieces of both", || {
        let now = progress(&scene.bob);
        (gave(&now, "alice") > 0 && gave(&now, "carol") > 0).then_some(())
    })
    .await;
    let file: Selector = "file.bin".parse().expect("a selector");
    scene.bob.stop_share(g(1), file).await.expect("stopped");
    let rows = scene.bob.downloads();
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0].group, &rows[0].state), (&g(2), &EntryState::Downloading));
    let alice = gave(&rows[0].progress, "alice");
    let rows = scene.bob.wait(Some(DEADLINE)).await.expect("complete");
    assert!(fs::read(&rows[0].path).expect("arrived") == *scene.bytes);
    // Who is in the first group only is asked no more; what was on its way may still have been stored.
    assert!(gave(&rows[0].progress, "alice") <= alice + 8 * P as u64);
    scene.end().await;
}

#[tokio::test]
async fn stopped_in_both_it_ends_and_begins_anew_where_it_was() {
    let scene = Scene::new(12 * MIB as usize, 73).await;
    scene.begin().await;
    for (number, name) in [(1, "file.bin"), (2, "same.bin")] {
        let file: Selector = name.parse().expect("a selector");
        scene.bob.stop_share(g(number), file).await.expect("stopped");
    }
    assert!(scene.bob.downloads().is_empty());
    // In the other group first, this time, and where the part file is.
    let again = begin(&scene.bob, g(2), "same.bin", &scene.net.path("dest")).await;
    assert!(again.stored_bytes > 0);
    let rows = scene.bob.wait(Some(DEADLINE)).await.expect("complete");
    assert!(fs::read(&rows[0].path).expect("arrived") == *scene.bytes);
    assert_eq!(gave(&rows[0].progress, "alice"), 0, "she is not in this group");
    scene.end().await;
}
