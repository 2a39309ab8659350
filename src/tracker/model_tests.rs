//! A naive model of accounts, groups and listings, against which random commands are checked.
//!
//! The model keeps lists and searches them; it knows no ids, no ops and no index. After every
//! command it must have given the same verdict, and everybody must see the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::command::{Actor, Command};
use super::decide::testing::{Court, device, user};
use super::message::Standing;
use super::op::{Chains, Op};
use super::refusal::Refusal;
use super::state::State;
use super::view::{self, Live};
use crate::clock::UnixMillis;
use crate::hash::blake3;
use crate::id::{GroupId, RequestId, UserId, derived};
use crate::limits::{MAX_DEVICES_PER_USER, REJECTED_WAIT};
use crate::manifest::Manifest;
use crate::manifest::testing::manifest_of;
use crate::name::{FileName, GroupName, Selector};

const USERS: [&str; 4] = ["ann", "ben", "cat", "dan"];
const DEVICES: [&str; 7] = ["d0", "d1", "d2", "d3", "d4", "d5", "d6"];
const GROUPS: [&str; 4] = ["g0", "g1", "g2", "public"];
const FILES: [&str; 3] = ["f0", "f1", "f2"];

type Verdict = Result<(), &'static str>;

#[derive(Default)]
struct ModelUser {
    devices: Vec<String>,
    disabled: bool,
}

struct ModelMember {
    name: String,
    since: u64,
}

struct ModelShare {
    user: String,
    file: String,
    content: u8,
}

#[derive(Default)]
struct ModelGroup {
    hidden: bool,
    members: Vec<ModelMember>,
    /// When whom it was given to, or who is to follow, became a member.
    given: Option<u64>,
    nominee: Option<u64>,
    requests: Vec<(String, u64)>,
    rejected: Vec<(String, u64)>,
    shares: Vec<ModelShare>,
}

impl ModelGroup {
    fn is_member(&self, name: &str) -> bool {
        self.members.iter().any(|member| member.name == name)
    }

    fn since(&self, name: &str) -> Option<u64> {
        Some(self.members.iter().find(|member| member.name == name)?.since)
    }

    fn owner(&self) -> Option<String> {
        let at = |since: Option<u64>| self.members.iter().find(|m| Some(m.since) == since);
        let first = || self.members.iter().min_by_key(|member| member.since);
        at(self.given).or_else(|| at(self.nominee)).or_else(first).map(|m| m.name.clone())
    }

    fn drop_member(&mut self, name: &str) {
        self.members.retain(|member| member.name != name);
        self.shares.retain(|share| share.user != name);
    }
}

#[derive(Default)]
struct Model {
    users: BTreeMap<String, ModelUser>,
    /// Living groups, and `public`, whose members are not listed.
    groups: BTreeMap<String, ModelGroup>,
}

impl Model {
    fn user_of(&self, device: &str) -> Option<String> {
        let mut all = self.users.iter();
        let (name, _) = all.find(|(_, u)| !u.disabled && u.devices.iter().any(|d| d == device))?;
        Some(name.clone())
    }

    fn is_member(&self, group: &str, name: &str) -> bool {
        match group {
            "public" => self.users.get(name).is_some_and(|user| !user.disabled),
            _ => self.groups.get(group).is_some_and(|group| group.is_member(name)),
        }
    }

    fn group_of_member(&mut self, group: &str, me: &str) -> Result<&mut ModelGroup, &'static str> {
        if !self.groups.contains_key(group) {
            return Err("no-such-group");
        }
        if !self.is_member(group, me) {
            return Err("not-a-member");
        }
        Ok(self.groups.get_mut(group).expect("just seen"))
    }

    fn owned(&mut self, group: &str, me: &str) -> Result<&mut ModelGroup, &'static str> {
        let found = self.group_of_member(group, me)?;
        match group {
            "public" => Err("everybodys-group"),
            _ if found.owner().as_deref() == Some(me) => Ok(found),
            _ => Err("not-the-owner"),
        }
    }

    fn other(
        &mut self,
        group: &str,
        me: &str,
        name: &str,
    ) -> Result<&mut ModelGroup, &'static str> {
        let exists = self.users.contains_key(name);
        let found = self.owned(group, me)?;
        match () {
            () if !exists => Err("no-such-member"),
            () if name == me => Err("yourself"),
            () if !found.is_member(name) => Err("no-such-member"),
            () => Ok(found),
        }
    }

    fn bury(&mut self) {
        self.groups.retain(|name, group| name == "public" || !group.members.is_empty());
    }

    /// Withdraws what `file` means among the shares that `whose` picks.
    fn withdraw(
        group: &mut ModelGroup,
        file: (Option<&str>, &str),
        whose: impl Fn(&str) -> bool,
        none: &'static str,
    ) -> Verdict {
        let meant = |share: &ModelShare| {
            share.file == file.1
                && file.0.is_none_or(|user| user == share.user)
                && whose(&share.user)
        };
        let contents: BTreeSet<_> =
            group.shares.iter().filter(|share| meant(share)).map(|share| share.content).collect();
        match contents.len() {
            0 => Err(none),
            1 => {
                group.shares.retain(|share| !meant(share));
                Ok(())
            }
            _ => Err("ambiguous"),
        }
    }
}

/// One random command: what, and indexes into the names.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    device: u8,
    user: u8,
    group: u8,
    file: u8,
    pause: u8,
}

fn step() -> impl Strategy<Value = Step> {
    (0u8..27, 0u8..16, 0u8..4, 0u8..12, 0u8..9, 0u8..24).prop_map(
        |(what, device, user, group, file, pause)| Step { what, device, user, group, file, pause },
    )
}

struct Trial {
    model: Model,
    court: Court,
    contents: Vec<Manifest>,
    names: BTreeMap<Vec<u8>, u8>,
}

impl Trial {
    fn new() -> Self {
        let contents: Vec<_> = (0u8..2).map(|content| manifest_of(&[content; 9])).collect();
        let mut court = Court::default();
        for manifest in &contents {
            // Here from the start, so that shares need not wait for them.
            let page = manifest.page(0);
            court.pages.put(UserId([0xee; 16]), blake3(&page), page.len() as u64);
        }
        let ids = contents.iter().map(|manifest| manifest.content_id().0.to_vec());
        let names = ids.zip(0u8..).collect();
        let mut model = Model::default();
        model.groups.insert("public".to_owned(), ModelGroup::default());
        let mut trial = Self { model, court, contents, names };
        trial.begin();
        trial
    }

    /// A beginning without which most commands are refused: three users and their group.
    fn begin(&mut self) {
        let step = |what, device, user| Step { what, device, user, group: 0, file: 1, pause: 11 };
        for n in 0..3 {
            self.take(step(0, n, n));
            self.take(step(1, n, n));
        }
        self.take(step(5, 0, 0));
        for n in 1..3 {
            self.take(step(7, n, n));
            self.take(step(10, 0, n));
        }
        assert_eq!(self.model.groups["g0"].members.len(), 3);
    }

    fn take(&mut self, step: Step) {
        if step.pause == 0 {
            self.court.now += Duration::from_secs(25 * 3600).as_millis() as u64;
        }
        // Mostly those logged in from the beginning.
        let device_name =
            DEVICES[if step.device < 12 { step.device % 3 } else { step.device % 4 + 3 } as usize];
        let name = USERS[step.user as usize];
        // Mostly the same group: things should meet.
        let group_name = GROUPS[[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3][step.group as usize]];
        let (file, content) = (FILES[step.file as usize % 3], step.file / 3 % 2);
        let now = self.court.now + 1000;
        // Asking, letting in and sharing more often than the rest.
        let step = Step {
            what: [step.what, 7, 10, 17][(step.what / 24 * (step.what % 24 + 1)) as usize],
            ..step
        };
        let (command, expected) =
            self.expect(step, device_name, name, group_name, file, content, now);
        let Some(command) = command else { return };
        let request = RequestId(derived(&[&now.to_le_bytes()]));
        let acting = device(device_name);
        let actor = match step.what {
            21..=23 => Actor::Operator(device("operator")),
            _ => Actor::Client { device: acting, user: self.court.state.user_of(acting) },
        };
        let verdict = self.court.judge(actor, request, &command);
        let code = verdict.as_ref().map(|_| ()).map_err(Refusal::code);
        assert_eq!(code, expected, "{command:?} by {device_name}: {verdict:?}");
    }

    #[allow(clippy::too_many_arguments)]
    fn expect(
        &mut self,
        step: Step,
        device_name: &str,
        name: &str,
        group_name: &str,
        file: &str,
        content: u8,
        now: u64,
    ) -> (Option<Command>, Verdict) {
        let group: GroupName = group_name.parse().expect("name");
        let model = &mut self.model;
        let me = model.user_of(device_name);
        let logged_in = me.clone().ok_or("not-logged-in");
        let file_name: FileName = file.parse().expect("name");
        let by_user = step.file >= 5;
        let selector = match by_user {
            true => Selector::UserName(user(name), file_name.clone()),
            false => Selector::Name(file_name.clone()),
        };
        let selected = (by_user.then_some(name), file);
        let (command, verdict): (Command, Verdict) = match step.what {
            0 => {
                let command =
                    Command::CreateUser { user: user(name), password: "phc".into(), invite: None };
                let verdict = match model.users.contains_key(name) {
                    true => Err("user-exists"),
                    false => {
                        model.users.insert(name.to_owned(), ModelUser::default());
                        Ok(())
                    }
                };
                (command, verdict)
            }
            1 | 2 => {
                let Some(id) = self.court.state.user_named(&user(name)) else {
                    assert!(!model.users.contains_key(name));
                    return (None, Ok(()));
                };
                let verified = self.court.state.facts().passwords[&id].last().stamp;
                let command = Command::EnrolDevice { user: id, verified };
                let verdict = if model.users[name].disabled {
                    Err("disabled")
                } else {
                    let known = model.users[name].devices.iter().any(|d| d == device_name);
                    if !known {
                        for account in model.users.values_mut() {
                            account.devices.retain(|d| d != device_name);
                        }
                        let devices = &mut model.users.get_mut(name).expect("seen").devices;
                        devices.push(device_name.to_owned());
                        assert!(devices.len() <= MAX_DEVICES_PER_USER);
                    }
                    Ok(())
                };
                (command, verdict)
            }
            3 => {
                let other = DEVICES[step.file as usize % DEVICES.len()];
                let verdict = logged_in.and_then(|me| {
                    let devices = &mut model.users.get_mut(&me).expect("logged in").devices;
                    let before = devices.len();
                    devices.retain(|d| d != other);
                    if devices.len() < before { Ok(()) } else { Err("no-such-device") }
                });
                (Command::RemoveDevice { device: device(other) }, verdict)
            }
            4 => {
                let stamp = me.as_ref().and_then(|me| {
                    let id = self.court.state.user_named(&user(me))?;
                    Some(self.court.state.facts().passwords[&id].last().stamp)
                });
                let verified = stamp.unwrap_or(super::lattice::Stamp::EARLIEST);
                let verdict = logged_in.map(|me| {
                    let devices = &mut model.users.get_mut(&me).expect("logged in").devices;
                    devices.retain(|d| d == device_name);
                });
                (Command::ChangePassword { password: "new".into(), verified }, verdict)
            }
            5 | 6 => {
                let hidden = step.file.is_multiple_of(2);
                let verdict = logged_in.and_then(|me| {
                    if model.groups.contains_key(group_name) {
                        return Err("group-exists");
                    }
                    let founder = ModelMember { name: me, since: now };
                    let members = vec![founder];
                    let group =
                        ModelGroup { hidden, members, given: Some(now), ..ModelGroup::default() };
                    model.groups.insert(group_name.to_owned(), group);
                    Ok(())
                });
                (Command::CreateGroup { group, hidden }, verdict)
            }
            7 | 8 => {
                let verdict = logged_in.and_then(|me| {
                    let member = model.is_member(group_name, &me);
                    let group = model.groups.get_mut(group_name).ok_or("no-such-group")?;
                    let last = group.rejected.iter().rev().find(|(name, _)| *name == me);
                    let wait = REJECTED_WAIT.as_millis() as u64;
                    match () {
                        () if member => Err("already-a-member"),
                        () if group.requests.iter().any(|(name, _)| *name == me) => {
                            Err("already-requested")
                        }
                        () if last.is_some_and(|(_, at)| now < at + wait) => Err("rejected-lately"),
                        () => {
                            group.requests.push((me, now));
                            Ok(())
                        }
                    }
                });
                (Command::JoinGroup { group }, verdict)
            }
            9 => {
                if step.pause > 9 {
                    return (None, Ok(()));
                }
                let verdict = logged_in.and_then(|me| {
                    let found = model.group_of_member(group_name, &me)?;
                    if group_name == "public" {
                        return Err("everybodys-group");
                    }
                    found.drop_member(&me);
                    Ok(())
                });
                (Command::LeaveGroup { group }, verdict)
            }
            10..=13 => {
                let accept = step.what < 12;
                let verdict = logged_in.and_then(|me| {
                    let enabled = model.users.get(name).is_some_and(|user| !user.disabled);
                    let found = model.owned(group_name, &me)?;
                    let asked = found.requests.iter().position(|(asker, _)| asker == name);
                    let at = asked.filter(|_| enabled).ok_or("no-such-request")?;
                    found.requests.remove(at);
                    if accept {
                        found.members.push(ModelMember { name: name.to_owned(), since: now });
                    } else {
                        found.rejected.push((name.to_owned(), now));
                    }
                    Ok(())
                });
                let command = match accept {
                    true => Command::AcceptRequest { group, user: user(name) },
                    false => Command::RejectRequest { group, user: user(name) },
                };
                (command, verdict)
            }
            14 => {
                let verdict = logged_in.and_then(|me| {
                    model.other(group_name, &me, name)?.drop_member(name);
                    Ok(())
                });
                (Command::Kick { group, user: user(name) }, verdict)
            }
            15 => {
                let somebody = step.file > 0;
                let verdict = logged_in.and_then(|me| {
                    let found = match somebody {
                        true => model.other(group_name, &me, name)?,
                        false => model.owned(group_name, &me)?,
                    };
                    found.given = found.since(&me);
                    found.nominee = found.since(name).filter(|_| somebody);
                    Ok(())
                });
                (Command::Nominate { group, user: somebody.then(|| user(name)) }, verdict)
            }
            16 => {
                let verdict = logged_in.and_then(|me| {
                    let found = model.other(group_name, &me, name)?;
                    found.given = found.since(name);
                    Ok(())
                });
                (Command::TransferGroup { group, user: user(name) }, verdict)
            }
            17 | 18 => {
                let verdict = logged_in.and_then(|me| {
                    let found = model.group_of_member(group_name, &me)?;
                    let same =
                        |s: &ModelShare| s.user == me && s.file == file && s.content == content;
                    if !found.shares.iter().any(same) {
                        found.shares.push(ModelShare { user: me, file: file.to_owned(), content });
                    }
                    Ok(())
                });
                let head = Arc::new(self.contents[content as usize].head().clone());
                (Command::Share { group, name: file_name, head }, verdict)
            }
            19 => {
                let verdict = logged_in.and_then(|me| {
                    let found = model.group_of_member(group_name, &me)?;
                    Model::withdraw(found, selected, |user| user == me, "not-shared")
                });
                (Command::StopShare { group, file: selector }, verdict)
            }
            20 => {
                let verdict = logged_in.and_then(|me| {
                    let found = model.owned(group_name, &me)?;
                    Model::withdraw(found, selected, |_| true, "no-such-file")
                });
                (Command::Unlist { group, file: selector }, verdict)
            }
            21 => {
                // Not too often, or nobody is left.
                if step.pause > 3 {
                    return (None, Ok(()));
                }
                let verdict = match model.users.get_mut(name) {
                    None => Err("no-such-user"),
                    Some(account) => {
                        account.disabled = true;
                        account.devices.clear();
                        model.groups.values_mut().for_each(|group| group.drop_member(name));
                        Ok(())
                    }
                };
                (Command::DisableUser { user: user(name) }, verdict)
            }
            22 => {
                let verdict = match model.users.get_mut(name) {
                    None => Err("no-such-user"),
                    Some(account) => {
                        account.disabled = false;
                        Ok(())
                    }
                };
                (Command::EnableUser { user: user(name) }, verdict)
            }
            _ => {
                if step.pause > 1 {
                    return (None, Ok(()));
                }
                let verdict = match group_name {
                    "public" => Err("everybodys-group"),
                    _ => model.groups.remove(group_name).map(drop).ok_or("no-such-group"),
                };
                (Command::ArchiveGroup { group }, verdict)
            }
        };
        self.model.bury();
        (Some(command), verdict)
    }

    /// Everybody sees what the model says.
    fn compare(&self) {
        let (state, model) = (&self.court.state, &self.model);
        for (name, account) in &model.users {
            let id = state.user_named(&user(name)).expect("exists");
            assert_eq!(state.is_enabled(id), !account.disabled);
            let mut devices: Vec<_> = account.devices.iter().map(|name| device(name)).collect();
            let rows = view::devices(state, id, |_| false);
            let mut seen: Vec<_> = rows.into_iter().map(|row| row.peer_id).collect();
            devices.sort();
            seen.sort();
            assert_eq!(seen, devices, "devices of {name}");
            if account.disabled {
                continue;
            }
            let rows = view::groups(state, id, None).0;
            let seen: Vec<_> = rows
                .into_iter()
                .map(|row| {
                    let owner = row.owner.map(|owner| owner.to_string());
                    (row.name.to_string(), owner, row.standing, row.hidden)
                })
                .collect();
            let visible = model.groups.iter().filter_map(|(group_name, group)| {
                let standing = match () {
                    () if group.owner().as_deref() == Some(name) => Standing::Owner,
                    () if model.is_member(group_name, name) => Standing::Member,
                    () if group.requests.iter().any(|(asker, _)| asker == name) => {
                        Standing::Requested
                    }
                    () => Standing::None,
                };
                let hidden = group.hidden && standing == Standing::None;
                let row = (group_name.clone(), group.owner(), standing, group.hidden);
                (!hidden).then_some(row)
            });
            assert_eq!(seen, visible.collect::<Vec<_>>(), "groups {name} sees");
        }
        for (group_name, group) in &model.groups {
            let id = state.group_named(&group_name.parse().expect("name")).expect("living");
            self.compare_group(id, group_name, group);
        }
        state.check_invariants();
    }

    fn compare_group(&self, id: GroupId, group_name: &str, group: &ModelGroup) {
        let (state, model) = (&self.court.state, &self.model);
        let live = Live { holders: &|_, _| (0, 0), online: &|_| false, last_seen: &|_| None };
        let members: BTreeSet<String> = match group_name {
            "public" => {
                let enabled = model.users.iter().filter(|(_, user)| !user.disabled);
                enabled.map(|(name, _)| name.clone()).collect()
            }
            _ => group.members.iter().map(|member| member.name.clone()).collect(),
        };
        let rows = view::members(state, id, None, live).0;
        let seen: BTreeSet<_> = rows.iter().map(|row| row.user.to_string()).collect();
        assert_eq!(rows.len(), seen.len(), "nobody twice");
        assert_eq!(seen, members, "members of {group_name}");
        let mut asking: Vec<_> = group.requests.clone();
        asking.retain(|(name, _)| !model.users[name].disabled);
        let seen: Vec<_> = view::requests(state, id)
            .into_iter()
            .map(|row| (row.user.to_string(), row.at.0))
            .collect();
        assert_eq!(seen, asking, "requests in {group_name}");
        let rows = view::files(state, std::iter::once(id), None, |_| true, live).0;
        let seen: BTreeMap<_, BTreeSet<String>> = rows
            .into_iter()
            .map(|row| {
                let content = self.names[row.content.as_bytes().as_slice()];
                let sharers = row.sharers.iter().map(ToString::to_string).collect();
                ((row.name.to_string(), content), sharers)
            })
            .collect();
        let mut files: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for share in &group.shares {
            let sharers = files.entry((share.file.clone(), share.content)).or_default();
            sharers.insert(share.user.clone());
        }
        assert_eq!(seen, files, "files of {group_name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn random_commands_do_what_a_naive_model_says(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut trial = Trial::new();
        for step in steps {
            trial.take(step);
        }
        trial.compare();
        let mut again = State::default();
        trial.court.log.iter().for_each(|op| drop(again.apply(op)));
        prop_assert_eq!(again.facts(), trial.court.state.facts());
    }
}

/// A log this version wrote, of every kind of change and one of the future, as hex, an op a line.
/// It must go on folding to the same facts, whatever later versions do.
#[test]
fn a_golden_log_folds_to_a_golden_digest() {
    let mut state = State::default();
    let (mut chains, mut latest) = (Chains::default(), UnixMillis(0));
    for line in include_str!("../../tests/golden/oplog.hex").lines() {
        let bytes = hex::decode(line).expect("hex");
        let op = Op::decode(&bytes).expect("an op");
        assert_eq!(op.encode(), bytes);
        chains.extend(&op, &bytes).expect("it follows");
        state.apply(&op);
        latest = latest.max(op.clock);
    }
    state.check_invariants();
    assert_eq!(chains.vector().iter().count(), 2, "origins");
    assert_eq!(
        state.digest(latest).to_string(),
        "8dd52278874d588f81f3a6161a16debb30686722e8087e6394085ea1dd09b559"
    );
}
