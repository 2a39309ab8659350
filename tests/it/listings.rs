//! Listings, search and news, as members see them.

use std::fs;

use mtq::client::metafile::MetafileTo;
use mtq::client::report::Notice;
use mtq::error_code::ErrorCode;
use mtq::hash::Blake3Hash;
use mtq::manifest::ContentId;
use mtq::name::{FileName, Selector};
use mtq::tracker::message::{FileRow, Matching, Reply, Request};
use mtq::tracker::stub::TrackerConnection;

use crate::net::{Net, granted, group, refused, request_id, sign_up, soon, user};
use crate::world::{DEADLINE, content};

fn manifest(number: u32) -> mtq::manifest::Manifest {
    let bytes = number.to_le_bytes();
    let layout = mtq::piece::PieceLayout::new(4).expect("small");
    let piece = layout.piece(0).expect("one");
    let hashes = mtq::manifest::PieceHashes::of(layout, piece, &bytes);
    let sha1 = mtq::hash::sha1(&bytes);
    mtq::manifest::Manifest::new(layout, sha1, vec![hashes]).expect("consistent")
}

/// Lists a tiny file of its own under `name`.
pub async fn list(line: &TrackerConnection, name: &str, number: u32) -> ContentId {
    let manifest = manifest(number);
    let share = || Request::Share {
        request_id: request_id(),
        group: group(),
        name: name.parse().expect("a name"),
        head: manifest.head().encode(),
    };
    let content = manifest.content_id();
    if let Reply::PagesMissing { pages } = granted(line, share()).await {
        assert_eq!(pages, [0]);
        granted(line, Request::PutPage { content, page: 0, bytes: manifest.page(0) }).await;
        assert!(matches!(granted(line, share()).await, Reply::Shared { .. }));
    }
    content
}

async fn search(line: &TrackerConnection, pattern: &str, matching: Matching) -> Vec<String> {
    let request =
        Request::Search { pattern: pattern.to_owned(), matching, group: None, after: None };
    let Reply::Files { rows, .. } = granted(line, request).await else { panic!("no files") };
    rows.into_iter().map(|row| row.name.to_string()).collect()
}

#[tokio::test]
async fn search_by_part_beginning_and_expression() {
    let net = Net::new();
    let (_endpoint, line, _pushes) = net.intruder().await;
    sign_up(&line, "ann").await;
    let create = Request::CreateGroup { request_id: request_id(), group: group(), hidden: false };
    granted(&line, create).await;
    for (name, number) in
        [("Genome-01.fa", 1), ("genome-02.fa", 2), ("notes (genome).txt", 3), ("film.mkv", 4)]
    {
        list(&line, name, number).await;
    }
    let all = ["Genome-01.fa", "genome-02.fa", "notes (genome).txt"];
    assert_eq!(search(&line, "GENOME", Matching::Contains).await, all);
    assert_eq!(search(&line, "genome", Matching::Prefix).await, all[..2]);
    assert_eq!(search(&line, "(genome)", Matching::Contains).await, all[2..]);
    assert_eq!(search(&line, r"^genome-\d+\.fa$", Matching::Regex).await, all[..2]);
    assert_eq!(search(&line, "GENOME-0?.*", Matching::Glob).await, all[..2]);
    assert!(search(&line, "genome", Matching::Glob).await.is_empty(), "not the whole name");
    assert!(search(&line, "nothing", Matching::Contains).await.is_empty());
    let elsewhere = |group: &str| Request::Search {
        pattern: "*".to_owned(),
        matching: Matching::Glob,
        group: Some(group.parse().expect("a name")),
        after: None,
    };
    let Reply::Files { rows, more: false } = granted(&line, elsewhere("public")).await else {
        panic!("no files")
    };
    assert!(rows.is_empty(), "{rows:?}");
    assert_eq!(refused(&line, elsewhere("strangers")).await, "no-such-group");
    let bad = |pattern: &str| Request::Search {
        pattern: pattern.to_owned(),
        matching: Matching::Regex,
        group: None,
        after: None,
    };
    assert_eq!(refused(&line, bad("(unclosed")).await, "bad-pattern");
    // A small text that means a large machine.
    assert_eq!(refused(&line, bad("(((x{100}){100}){100}){100}")).await, "bad-pattern");
    assert_eq!(refused(&line, bad(&"x".repeat(300))).await, "limit");
    // Nobody searches in groups of others.
    let (_other, other, _pushes) = net.intruder().await;
    sign_up(&other, "eve").await;
    assert!(search(&other, "genome", Matching::Contains).await.is_empty());
    net.end([]).await;
}

#[tokio::test]
async fn long_lists_come_in_pages_and_nothing_is_missing_or_twice() {
    let net = Net::new();
    let (_endpoint, line, _pushes) = net.intruder().await;
    sign_up(&line, "ann").await;
    let create = Request::CreateGroup { request_id: request_id(), group: group(), hidden: false };
    granted(&line, create).await;
    let mut expected = Vec::new();
    for number in 0..1_100u32 {
        let name = format!("file {:04}", number * 7 % 1_100);
        list(&line, &name, number).await;
        expected.push(name);
    }
    // One content under two names, and one name for two contents.
    list(&line, "file 0000 again", 0).await;
    list(&line, "file 0003", 0).await;
    expected.extend(["file 0000 again".to_owned(), "file 0003".to_owned()]);
    expected.sort();
    let mut rows: Vec<FileRow> = Vec::new();
    loop {
        let after = rows.last().map(|row| mtq::tracker::message::FileCursor {
            group: row.group.clone(),
            name: row.name.clone(),
            content: row.content,
        });
        let request = Request::ListFiles { group: group(), after };
        let Reply::Files { rows: page, more } = granted(&line, request).await else {
            panic!("no files")
        };
        assert!(page.len() <= mtq::limits::MAX_LIST_ROWS);
        rows.extend(page);
        if !more {
            break;
        }
    }
    let names: Vec<_> = rows.iter().map(|row| row.name.to_string()).collect();
    assert_eq!(names, expected);
    let file: Selector = "file 0003".parse().expect("a selector");
    let find = |file: Selector| Request::FindFiles { group: group(), files: vec![file] };
    let Reply::Found { files } = granted(&line, find(file.clone())).await else {
        panic!("nothing found")
    };
    assert_eq!(files[0].as_ref().expect_err("of two").code(), "ambiguous");
    let content = rows.iter().find(|row| row.name.as_str() == "file 0003").expect("it").content;
    let Reply::Found { files } = granted(&line, find(Selector::Id(content.into()))).await else {
        panic!("nothing found")
    };
    assert!(files[0].is_ok(), "{files:?}");
    let stop = Request::StopShare { request_id: request_id(), group: group(), file };
    assert_eq!(refused(&line, stop).await, "ambiguous");
    net.end([]).await;
}

#[tokio::test]
async fn a_file_whose_sharers_are_gone_says_when_they_were_seen() {
    let net = Net::new();
    let (alice, _) = net.seeder(&content(10, 41)).await;
    let (_endpoint, line, _pushes) = net.insider("bob", &alice).await;
    let row = || async {
        let request = Request::ListFiles { group: group(), after: None };
        let Reply::Files { rows, .. } = granted(&line, request).await else { panic!("no files") };
        rows[0].clone()
    };
    let now = row().await;
    assert_eq!((now.seeders, now.last_seen), (1, None));
    let before = mtq::clock::now();
    alice.shutdown().await;
    soon("her going", async {
        loop {
            let gone = row().await;
            if gone.seeders == 0 {
                assert!(gone.last_seen.is_some_and(|at| at >= before), "{gone:?}");
                return;
            }
        }
    })
    .await;
    net.end([]).await;
}

#[tokio::test]
async fn everybody_shares_in_public_and_only_there_unless_let_in() {
    let net = Net::new();
    let (alice, bob) = (net.agent("alice").await, net.agent("bob").await);
    let path = net.path("for all.bin");
    fs::write(&path, content(600_000, 42)).expect("written");
    let public: mtq::name::GroupName = "public".parse().expect("a name");
    alice.share(&path, public.clone(), None, MetafileTo::Beside).await.expect("shared");
    let dest = net.path("dest");
    fs::create_dir(&dest).expect("made");
    let file: Selector = "for all.bin".parse().expect("a selector");
    bob.get(public.clone(), file, &dest).await.expect("started");
    bob.wait(Some(DEADLINE)).await.expect("complete");
    assert!(fs::read(dest.join("for all.bin")).expect("there") == content(600_000, 42));
    let error = bob.leave_group(public.clone()).await.expect_err("everybody's");
    assert_eq!(error.code(), "everybodys-group");
    let members = bob.list_members(public).await.expect("listed");
    let names: Vec<_> = members.iter().map(|row| row.user.to_string()).collect();
    assert_eq!(names, ["alice", "bob"]);
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn news_reach_whom_they_concern() {
    let net = Net::new();
    let (alice, bob) = (net.agent("alice").await, net.agent("bob").await);
    let (mut to_alice, mut to_bob) = (alice.notices(), bob.notices());
    alice.create_group(group(), false).await.expect("created");
    bob.join_group(group()).await.expect("asked");
    let next = |mut queue: tokio::sync::broadcast::Receiver<Notice>| async move {
        let notice = soon("news", queue.recv()).await.expect("news");
        (notice, queue)
    };
    let (notice, queue) = next(to_alice).await;
    to_alice = queue;
    assert_eq!(notice, Notice::JoinRequested { group: group(), user: user("bob") });
    alice.accept_request(group(), user("bob")).await.expect("accepted");
    let (notice, queue) = next(to_bob).await;
    to_bob = queue;
    assert_eq!(notice, Notice::RequestAnswered { group: group(), accepted: true });
    let (notice, queue) = next(to_alice).await;
    to_alice = queue;
    assert_eq!(notice, Notice::MemberJoined { group: group(), user: user("bob") });

    let path = net.path("a.bin");
    fs::write(&path, content(100, 43)).expect("written");
    bob.share(&path, group(), None, MetafileTo::Beside).await.expect("shared");
    let name: FileName = "a.bin".parse().expect("a name");
    let (notice, queue) = next(to_bob).await;
    to_bob = queue;
    let path = path.canonicalize().expect("there");
    assert_eq!(notice, Notice::Shared { group: group(), name: name.clone(), path, size: 100 });
    let listed =
        Notice::FileListed { group: group(), name: name.clone(), size: 100, user: user("bob") };
    let (notice, queue) = next(to_alice).await;
    to_alice = queue;
    assert_eq!(notice, listed);
    // The owner takes it off the list: bob serves it no longer.
    alice.unlist(group(), "bob/a.bin".parse().expect("a selector")).await.expect("unlisted");
    let (notice, queue) = next(to_bob).await;
    to_bob = queue;
    assert_eq!(notice, Notice::Unlisted { group: group(), name });
    assert!(bob.downloads().is_empty());
    assert!(alice.list_files(group()).await.expect("listed").is_empty());

    alice.nominate(group(), Some(user("bob"))).await.expect("nominated");
    alice.leave_group(group()).await.expect("left");
    let (notice, queue) = next(to_bob).await;
    to_bob = queue;
    assert_eq!(notice, Notice::MemberLeft { group: group(), user: user("alice") });
    let (notice, queue) = next(to_bob).await;
    assert_eq!(notice, Notice::OwnerChanged { group: group(), owner: user("bob") });
    // Who asks again and is turned away hears that too.
    alice.join_group(group()).await.expect("asked");
    bob.reject_request(group(), user("alice")).await.expect("rejected");
    let (notice, _) = next(to_alice).await;
    assert_eq!(notice, Notice::RequestAnswered { group: group(), accepted: false });
    drop(queue);
    net.end([alice, bob]).await;
}

#[tokio::test]
async fn a_client_that_was_away_is_still_logged_in() {
    let net = Net::new();
    let (endpoint, line, _pushes) = net.intruder().await;
    sign_up(&line, "ann").await;
    line.close(ErrorCode::Done);
    let (line, _pushes) = net.reconnect(&endpoint).await;
    let refusal = refused(&line, Request::ListDevices).await;
    assert_eq!(refusal, "not-logged-in", "a connection begins with nobody");
    assert_eq!(granted(&line, Request::LoginByKey).await, Reply::LoggedIn { user: user("ann") });
    granted(&line, Request::Logout).await;
    assert_eq!(refused(&line, Request::LoginByKey).await, "unknown-device");
    net.end([]).await;
}

/// A manifest head of whole hash pages.
fn made_up_head(seed: u8, pages: &[Blake3Hash]) -> Vec<u8> {
    let pieces = pages.len() as u64 * 4_096;
    let mut head = b"mtq manifest 1\r\n".to_vec();
    head.extend((pieces * 524_288).to_le_bytes());
    head.extend(524_288u32.to_le_bytes());
    head.extend([seed; 20 + 20 + 32]);
    pages.iter().for_each(|hash| head.extend(hash.0));
    head
}

/// The content of a head.
fn content_of(head: &[u8]) -> ContentId {
    ContentId(mtq::hash::blake3(head).0)
}

#[tokio::test]
async fn whoever_is_over_the_quota_takes_no_pages_of_others_along() {
    let net = Net::new();
    let (_alices, alice, _pushes) = net.intruder().await;
    sign_up(&alice, "alice").await;
    let create = Request::CreateGroup { request_id: request_id(), group: group(), hidden: false };
    granted(&alice, create).await;
    let her_page = vec![5; 4_096 * 52];
    let theirs = mtq::hash::blake3(&her_page);
    let head = made_up_head(9, &[theirs]);
    let hers = content_of(&head);
    let share = |name: String, head: &[u8]| Request::Share {
        request_id: request_id(),
        group: group(),
        name: name.parse().expect("a name"),
        head: head.to_vec(),
    };
    granted(&alice, share("hers".to_owned(), &head)).await;
    granted(&alice, Request::PutPage { content: hers, page: 0, bytes: her_page.clone() }).await;
    granted(&alice, share("hers".to_owned(), &head)).await;
    let (_endpoint, eve, _pushes) = net.intruder().await;
    sign_up(&eve, "eve").await;
    granted(&eve, Request::JoinGroup { request_id: request_id(), group: group() }).await;
    let accept =
        Request::AcceptRequest { request_id: request_id(), group: group(), user: user("eve") };
    granted(&alice, accept).await;
    // Nearly all of eve's gibibyte: large files that are one page over and over, then small ones.
    let page = vec![7; 4_096 * 52];
    let hash = mtq::hash::blake3(&page);
    for (seed, count) in [(1, 1_024), (2, 1_024), (3, 1_024), (4, 1_024), (5, 944)] {
        let head = made_up_head(seed, &vec![hash; count]);
        if let Reply::PagesMissing { .. } = granted(&eve, share(format!("{seed}"), &head)).await {
            let content = content_of(&head);
            granted(&eve, Request::PutPage { content, page: 0, bytes: page.clone() }).await;
            granted(&eve, share(format!("{seed}"), &head)).await;
        }
    }
    let mut small = 1_000;
    loop {
        small += 1;
        let (head, page) = (manifest(small).head().encode(), manifest(small).page(0));
        match eve.call(&share(format!("s{small}"), &head)).await {
            Ok(Reply::PagesMissing { .. }) => {}
            other => panic!("{other:?}"),
        }
        let put = Request::PutPage { content: content_of(&head), page: 0, bytes: page };
        if eve.call(&put).await.is_err()
            || eve.call(&share(format!("s{small}"), &head)).await.is_err()
        {
            break;
        }
    }
    // Both pages are refused, at once; the second one is alice's.
    let other = vec![9; 4_096 * 52];
    let head = made_up_head(6, &[mtq::hash::blake3(&other), theirs]);
    let begun = granted(&eve, share("x".to_owned(), &head)).await;
    assert_eq!(begun, Reply::PagesMissing { pages: vec![0] });
    let content = content_of(&head);
    let new = Request::PutPage { content, page: 0, bytes: other };
    let known = Request::PutPage { content, page: 1, bytes: her_page.clone() };
    let (new, known) = tokio::join!(refused(&eve, new), refused(&eve, known));
    assert!([new, known].contains(&"limit"), "{new}, {known}");
    // Hers is there, for everybody, and for as long as she shares it.
    for line in [&alice, &eve] {
        let request = Request::Pages { group: group(), pages: vec![(hers, 0), (hers, 1)] };
        let pages = vec![Some(her_page.clone()), None];
        assert_eq!(granted(line, request).await, Reply::Pages { pages });
    }
    net.end([]).await;
}
