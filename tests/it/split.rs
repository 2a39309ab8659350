//! Two trackers that do not reach each other while clients reach both: what both sides wrote then
//! comes together afterwards, and ends as it is documented.

use std::time::Duration;

use mtq::clock;
use mtq::name::GroupName;
use mtq::tracker::message::{Answer, Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::refusal::Refusal;

use crate::cluster::{Cluster, Device, Line, named};
use crate::net::{password, request_id, sign_up, user};

/// A sibling that does not answer holds up a name for a second.
const PROMPT: Duration = Duration::from_secs(5);

fn create_user(name: &str, invite: Option<String>) -> Request {
    Request::CreateUser { request_id: request_id(), user: user(name), password: password(), invite }
}

/// The answer of a request that gave a name away, and how long it took.
async fn name_given(line: &Line, request: Request) -> (bool, Duration) {
    let begun = clock::monotonic();
    let answer = line.ask(&request).await.expect("granted");
    (answer.written.expect("a change").provisional, begun.elapsed())
}

/// A device's connections to both trackers.
struct Both {
    a: Line,
    b: Line,
}

impl Both {
    /// A new account, made at the first tracker and known at both.
    async fn of(cluster: &Cluster, name: &str) -> (Device, Line) {
        Device::of(name, &cluster.door(0)).await
    }

    async fn known(cluster: &Cluster, (device, a): (Device, Line)) -> Self {
        let b = device.known_at(&cluster.door(1)).await;
        Self { a, b }
    }
}

async fn rename_of(line: &mut Line) -> String {
    line.pushed("the new name", |push| match push {
        Push::Renamed { user } => Some(user.to_string()),
        _ => None,
    })
    .await
}

/// What a login answers.
async fn login(line: &Line, name: &str, password: &str) -> Result<String, Refusal> {
    let password = mtq::tracker::message::Password(password.to_owned());
    match line.ask(&Request::Login { request_id: request_id(), user: user(name), password }).await {
        Ok(Answer { reply: Reply::LoggedIn { user }, .. }) => Ok(user.to_string()),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal),
    }
}

/// The name of the form `name~xxxx` that a list has in place of `name`.
fn is_later(name: &str, than: &str) -> bool {
    name.strip_prefix(than).is_some_and(|rest| rest.starts_with('~') && rest.len() > 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_sides_of_a_split_wrote_comes_together() {
    let cluster = Cluster::with_gates(&[]);
    let (club, den, team) = (named("club"), named("den"), named("team"));
    let mut people = Vec::new();
    for name in ["alice", "bob", "carol", "dave", "erin"] {
        people.push(Both::of(&cluster, name).await);
    }
    // club: alice's, bob is in, carol and dave have asked. den: alice's, erin and bob are in.
    let [alice, bob, carol, dave, erin] = &people[..] else { unreachable!() };
    alice.1.create(&club).await;
    alice.1.create(&den).await;
    for (line, group) in [(&bob.1, &club), (&erin.1, &den), (&bob.1, &den)] {
        line.join(group).await;
    }
    alice.1.accept(&club, "bob").await;
    alice.1.accept(&den, "erin").await;
    alice.1.accept(&den, "bob").await;
    erin.1.share(&den, "before").await;
    for line in [&carol.1, &dave.1] {
        line.join(&club).await;
    }
    cluster.wait_level();
    let mut both = Vec::new();
    for person in people {
        both.push(Both::known(&cluster, person).await);
    }
    let [alice, mut bob, carol, _dave, mut erin]: [Both; 5] =
        both.try_into().unwrap_or_else(|_| unreachable!());
    let begun = clock::monotonic();
    let together = alice.a.create(&named("together")).await.written.expect("a change");
    assert!(!together.provisional, "both were asked");
    println!("a name both trackers were asked for took {:?}", begun.elapsed());
    cluster.wait_level();

    cluster.cut();
    // One user name, first at A.
    let (sam_a, sam_b) = (Device::new(), Device::new());
    let at_a = sam_a.at(&cluster.door(0)).await;
    let mut at_b = sam_b.at(&cluster.door(1)).await;
    for (line, secret) in [(&at_a, "first sam"), (&at_b, "other sam")] {
        let request = match create_user("sam", None) {
            Request::CreateUser { request_id, user, invite, .. } => {
                let password = mtq::tracker::message::Password(secret.to_owned());
                Request::CreateUser { request_id, user, password, invite }
            }
            other => other,
        };
        let (provisional, took) = name_given(line, request).await;
        println!("an account of a split network took {took:?}");
        assert!(provisional && took < PROMPT, "{provisional}, {took:?}");
        assert_eq!(login(line, "sam", secret).await, Ok("sam".to_owned()));
    }
    // What the later one owns.
    let hobby = named("hobby");
    at_b.create(&hobby).await;
    at_b.share(&hobby, "sams.file").await;
    // One group name, first at A.
    for line in [&bob.a, &erin.b] {
        let request_id = request_id();
        let request = Request::CreateGroup { request_id, group: team.clone(), hidden: false };
        let (provisional, took) = name_given(line, request).await;
        println!("a group of a split network took {took:?}");
        assert!(provisional && took < PROMPT, "{provisional}, {took:?}");
    }
    bob.a.share(&team, "bobs").await;
    erin.b.share(&team, "erins").await;
    // The owner leaves here and lets somebody in there.
    alice.a.leave(&club).await;
    alice.b.accept(&club, "carol").await;
    assert_eq!(bob.a.members(&club).await, [("bob".to_owned(), true)]);
    // Somebody is thrown out here and shares there.
    let (id, group) = (request_id(), den.clone());
    alice.a.granted(Request::Kick { request_id: id, group, user: user("erin") }).await;
    erin.b.share(&den, "after").await;

    let digest = |number| cluster.status(number).expect("up")["digest"].clone();
    assert_ne!(digest(0), digest(1), "they were split");

    cluster.heal();
    let healed = clock::monotonic();
    cluster.wait_agreed();
    println!("one digest {:?} after the split", healed.elapsed());
    cluster.wait_level();
    // The earlier ones keep their names; the later ones are told theirs.
    let renamed = rename_of(&mut at_b).await;
    assert!(is_later(&renamed, "sam"), "{renamed}");
    let later_team = erin
        .b
        .pushed("the group's new name", |push| match push {
            Push::GroupRenamed { group, .. } => Some(group.clone()),
            _ => None,
        })
        .await;
    assert!(is_later(later_team.as_str(), "team"), "{later_team}");
    for number in 0..2 {
        let at = |line: GroupName| (cluster.door(number), line);
        let (door, _) = at(team.clone());
        // Each password opens the account it was chosen for, under the name both know.
        let fresh = Device::new().at(&door).await;
        assert_eq!(login(&fresh, "sam", "first sam").await, Ok("sam".to_owned()));
        let fresh = Device::new().at(&door).await;
        assert_eq!(login(&fresh, "sam", "other sam").await, Ok(renamed.clone()));
        let owner = vec![(renamed.clone(), true)];
        assert_eq!(fresh.members(&hobby).await, owner, "it has what it owned");
        let sams = ("sams.file".to_owned(), vec![renamed.clone()]);
        assert_eq!(fresh.files(&hobby).await, [sams]);

        let (bob, erin, carol) = match number {
            0 => (&mut bob.a, &mut erin.a, &carol.a),
            _ => (&mut bob.b, &mut erin.b, &carol.b),
        };
        let one = |name: &str, file: &str| {
            (vec![(name.to_owned(), true)], vec![(file.to_owned(), vec![name.to_owned()])])
        };
        assert_eq!((bob.members(&team).await, bob.files(&team).await), one("bob", "bobs"));
        let seen = (erin.members(&later_team).await, erin.files(&later_team).await);
        assert_eq!(seen, one("erin", "erins"));
        // The owner left; the one let in there is in; the longest there owns; nobody else is in.
        let members = [("bob".to_owned(), true), ("carol".to_owned(), false)];
        assert_eq!(carol.members(&club).await, members);
        let asking = bob.granted(Request::ListRequests { group: club.clone() }).await;
        let Reply::Requests { rows } = asking else { panic!("{asking:?}") };
        let asking: Vec<_> = rows.iter().map(|row| row.user.as_str()).collect();
        assert_eq!(asking, ["dave"]);
        // Whoever was thrown out is, with all that was shared.
        let members = [("alice".to_owned(), true), ("bob".to_owned(), false)];
        assert_eq!(bob.members(&den).await, members);
        assert_eq!(bob.files(&den).await, []);
        let ask = Request::ListFiles { group: den.clone(), after: None };
        assert_eq!(erin.ask(&ask).await, Err(Refusal::NotAMember(den.clone())));
        assert_eq!(cluster.status(number).expect("up")["sync_alarms"], 0);
    }
    let after = alice.a.create(&named("reunited")).await.written.expect("a change");
    assert!(!after.provisional, "both were asked again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_invitation_spent_twice_the_later_account_waits_for_the_operator() {
    let cluster = Cluster::with_gates(&["--registration", "invite"]);
    let invite = cluster.operated(0, "invite")["code"].as_str().expect("a code").to_owned();
    cluster.wait_level();
    cluster.cut();
    let mut lines = Vec::new();
    for (number, name) in ["first", "second"].into_iter().enumerate() {
        let line = Device::new().at(&cluster.door(number)).await;
        let request = create_user(name, Some(invite.clone()));
        let (provisional, took) = name_given(&line, request).await;
        assert!(provisional && took < PROMPT, "{provisional}, {took:?}");
        assert_eq!(login(&line, name, "secret").await, Ok(name.to_owned()));
        lines.push(line);
    }
    lines[1].create(&named("seconds")).await;
    cluster.heal();
    cluster.wait_level();
    lines[1]
        .pushed("the end of the session", |push| matches!(push, Push::SignedOut).then_some(()))
        .await;
    for number in 0..2 {
        let fresh = Device::new().at(&cluster.door(number)).await;
        assert_eq!(login(&fresh, "first", "secret").await, Ok("first".to_owned()));
        let fresh = Device::new().at(&cluster.door(number)).await;
        assert_eq!(login(&fresh, "second", "secret").await, Err(Refusal::Disabled(user("second"))));
    }
    // Asked at one tracker, it holds at both.
    cluster.operated(1, "user enable second");
    cluster.wait_level();
    for number in 0..2 {
        let fresh = Device::new().at(&cluster.door(number)).await;
        assert_eq!(login(&fresh, "second", "secret").await, Ok("second".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_want_one_name_at_once_exactly_one_gets_it() {
    const TIMES: usize = 50;
    let cluster = Cluster::new(2);
    let alice = Device::of("alice", &cluster.link(0)).await.1;
    let bob = Device::of("bob", &cluster.link(1)).await.1;
    cluster.wait_level();
    let mut wins = [0; 2];
    for number in 0..TIMES {
        let group = named(&format!("wanted{number}"));
        let wish = |group: &GroupName| Request::CreateGroup {
            request_id: request_id(),
            group: group.clone(),
            hidden: false,
        };
        let (ours, theirs) = (wish(&group), wish(&group));
        let answers = tokio::join!(alice.ask(&ours), bob.ask(&theirs));
        let taken = Err(Refusal::GroupExists(group.clone()));
        let winner = match &answers {
            (Ok(won), lost) if *lost == taken => (0, won),
            (lost, Ok(won)) if *lost == taken => (1, won),
            other => panic!("{group}: {other:?}"),
        };
        assert!(!winner.1.written.expect("a change").provisional);
        wins[winner.0] += 1;
    }
    println!("of {TIMES} names the first tracker gave away {}, the other {}", wins[0], wins[1]);
    cluster.wait_level();
    let Reply::Groups { rows, .. } = alice.granted(Request::ListGroups { after: None }).await
    else {
        panic!()
    };
    assert_eq!(rows.iter().filter(|row| row.name.as_str().starts_with("wanted")).count(), TIMES);
    assert!(rows.iter().all(|row| !row.name.as_str().contains('~')));
    // And accounts.
    for number in 0..5 {
        let name = format!("wanted{number}");
        let (one, other) = (Device::new(), Device::new());
        let one = one.at(&cluster.link(0)).await;
        let other = other.at(&cluster.link(1)).await;
        let (ours, theirs) = (create_user(&name, None), create_user(&name, None));
        let answers = tokio::join!(one.ask(&ours), other.ask(&theirs));
        let taken = Err(Refusal::UserExists(user(&name)));
        let (a, b) =
            (answers.0.is_ok() && answers.1 == taken, answers.1.is_ok() && answers.0 == taken);
        assert!(a != b, "{name}: {answers:?}");
    }
    sign_up(&Device::new().at(&cluster.link(1)).await.line, "carol").await;
}
