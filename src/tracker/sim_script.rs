//! What happens to trackers in memory: commands, partitions, crashes, time.

use super::command::Command;
use super::op::{Change, Op};
use super::sim_world::*;
use crate::id::{GroupId, RequestId, UserId};
use crate::limits::{CLAIM_LIFE, CLAIM_PATIENCE, SYNC_TICK};
use crate::manifest::testing::manifest_of;
use crate::name::{GroupName, Selector};

impl World {
    /// Makes an account, then enrols its device.
    pub(super) fn settle_in(&mut self, n: usize, who: usize) {
        let request = RequestId::random(&mut self.rng);
        let Some(me) = &self.running[n] else { return };
        let state = &me.ledger.state;
        let command = match state.user_named(&user(who)) {
            Some(user) => {
                let verified = state.facts().passwords[&user].last().stamp;
                Command::EnrolDevice { user, verified }
            }
            None => {
                let password = format!("{who}");
                Command::CreateUser { user: user(who), password, invite: None }
            }
        };
        self.propose(n, Order { device: who, operator: false, request, command });
    }

    pub(super) fn random_order(&mut self, n: usize) -> Option<Order> {
        let rng = &mut self.rng;
        let (who, whom) = (rng.usize(..USERS), rng.usize(..USERS));
        let (group, name) = (group(rng.usize(..GROUPS)), user(whom));
        let content = rng.u8(..FILES);
        let (what, some, hidden) = (rng.u8(..60), rng.bool(), rng.bool());
        let mut offline_grace = rng.u32(..5);
        let request = RequestId::random(rng);
        let state = &self.running[n].as_ref()?.ledger.state;
        let own = state.user_of(device(who));
        let verified = |user: UserId| Some(state.facts().passwords.get(&user)?.last().stamp);
        let operator = what >= 58;
        let command = match what {
            0..6 => match own {
                None => match state.user_named(&user(who)) {
                    Some(user) => Command::EnrolDevice { user, verified: verified(user)? },
                    None => {
                        let password = format!("{who}{offline_grace}");
                        Command::CreateUser { user: user(who), password, invite: None }
                    }
                },
                Some(_) => Command::CreateGroup { group, hidden },
            },
            6..9 => Command::CreateGroup { group, hidden },
            9..18 => Command::JoinGroup { group },
            18..28 => {
                // Somebody who really asks.
                let id = state.group_named(&group)?;
                let waiting = state.group_index(id)?.requests.first()?.0;
                Command::AcceptRequest { group, user: state.user_name(waiting)? }
            }
            28 | 29 => Command::RejectRequest { group, user: name },
            30..34 => Command::LeaveGroup { group },
            34..37 => Command::Kick { group, user: name },
            37..40 => Command::Nominate { group, user: some.then_some(name) },
            40..43 => Command::TransferGroup { group, user: name },
            43..49 => {
                let head = manifest_of(&[content]).head().clone().into();
                Command::Share { group, name: file(content), head }
            }
            49..52 => Command::StopShare { group, file: Selector::Name(file(content)) },
            52 | 53 => {
                offline_grace += 1;
                Command::SetGroup { group, offline_grace }
            }
            54 => {
                let verified = verified(own?)?;
                Command::ChangePassword { password: format!("p{offline_grace}"), verified }
            }
            55..58 => Command::RemoveDevice { device: device(who) },
            58 => Command::DisableUser { user: name },
            _ => Command::EnableUser { user: name },
        };
        Some(Order { device: who, operator, request, command })
    }

    /// Two trackers are asked for one name at once. While all can speak, exactly one gives it.
    pub(super) fn race(&mut self, n: usize) {
        let m = self.rng.usize(..self.count());
        let name = group(self.rng.usize(..GROUPS));
        let askers = [self.rng.usize(..USERS), self.rng.usize(..USERS)];
        let lossy = std::mem::replace(&mut self.lossy, false);
        let fair = n != m && self.all_can_speak() && {
            // Long enough for what is under way to be over.
            self.pass(CLAIM_LIFE.as_millis() as u64 + 3 * SYNC_TICK.as_millis() as u64);
            [n, m].iter().zip(askers).all(|(at, who)| self.may_create(*at, who, &name))
        };
        let mut ids = Vec::new();
        for (at, device) in [n, m].into_iter().zip(askers) {
            let request = RequestId::random(&mut self.rng);
            ids.push(GroupId(request.created(super::sim_world::device(device))));
            let command = Command::CreateGroup { group: name.clone(), hidden: false };
            self.propose(at, Order { device, operator: false, request, command });
            let millis = self.rng.u64(..3);
            self.pass(millis);
        }
        if fair {
            self.pass(CLAIM_PATIENCE.as_millis() as u64 + 200);
            let made = self.ops.values().filter_map(Op::change);
            let made = made.filter(|change| match change {
                Change::GroupCreated { group, .. } => ids.contains(group),
                _ => false,
            });
            assert_eq!(made.count(), 1, "of two that wanted {name} one has it");
            self.races += 1;
        }
        self.lossy = lossy;
    }

    fn all_can_speak(&self) -> bool {
        let now = self.now;
        self.cut.is_empty()
            && self.running.iter().all(|me| {
                me.as_ref().is_some_and(|me| {
                    now > me.names_from
                        && me.links.len() + 1 == self.count()
                        && me.links.values().all(|link| link.feed.is_some())
                })
            })
    }

    fn may_create(&self, n: usize, who: usize, name: &GroupName) -> bool {
        let Some(me) = &self.running[n] else { return false };
        let state = &me.ledger.state;
        state.user_of(device(who)).is_some() && state.group_named(name).is_none()
    }

    /// An owner changes something twice, and the first time is asked for again elsewhere.
    pub(super) fn stutter(&mut self, n: usize) {
        let (m, name) = (self.rng.usize(..self.count()), group(self.rng.usize(..GROUPS)));
        let Some(me) = &self.running[n] else { return };
        let state = &me.ledger.state;
        let owner = state.group_named(&name).and_then(|id| state.owner(id));
        let device = (0..USERS).find(|who| owner.is_some() && state.user_of(device(*who)) == owner);
        let Some(device) = device else { return };
        let mut order = || {
            let (request, offline_grace) = (RequestId::random(&mut self.rng), self.rng.u32(..90));
            let command = Command::SetGroup { group: name.clone(), offline_grace };
            Order { device, operator: false, request, command }
        };
        let (first, second) = (order(), order());
        for (at, order) in [(n, first.clone()), (n, second), (m, first)] {
            self.propose(at, order);
            let millis = self.rng.u64(..100);
            self.pass(millis);
        }
    }

    pub(super) fn step(&mut self) {
        let n = self.rng.usize(..self.count());
        match self.rng.u8(..100) {
            0..60 => {
                if let Some(order) = self.random_order(n) {
                    self.propose(n, order);
                }
            }
            60..66 => {
                let at = self.rng.usize(..self.retries.len().max(1));
                if at < self.retries.len() {
                    let order = self.retries.swap_remove(at);
                    self.say(|| format!("{n} is asked again for {:?}", order.command));
                    self.propose(n, order);
                }
            }
            66..70 => {
                let m = self.rng.usize(..self.count());
                if m != n && self.cut.insert(pair(n, m)) {
                    self.say(|| format!("{n} and {m} are cut off from each other"));
                    self.disconnect(n, m);
                }
            }
            70..76 => {
                let cut: Vec<_> = self.cut.iter().copied().collect();
                if let Some((a, b)) = self.rng.choice(cut) {
                    self.cut.remove(&(a, b));
                    self.say(|| format!("{a} and {b} speak again"));
                    self.connect(a, b);
                }
            }
            76..79 => self.crash(n),
            79..86 => self.start(n),
            86 => self.backups[n] = self.disks[n].clone(),
            87 if self.rng.u8(..4) == 0 => self.restore(n),
            88 if self.rng.u8(..4) == 0 => {
                // Long enough for removals to be forgotten.
                self.pass(1_000);
                self.now += 2 * 3600 * 1000;
                self.next_tick = self.now;
            }
            89 => self.skew[n] = self.rng.u64(..8_000),
            90..93 => self.snapshot(n),
            93..95 => self.race(n),
            95..97 => self.stutter(n),
            _ => {
                let millis = self.rng.u64(..8_000);
                self.pass(millis);
            }
        }
        let millis = self.rng.u64(..300);
        self.pass(millis);
    }
}
