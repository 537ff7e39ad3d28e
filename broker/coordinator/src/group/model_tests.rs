#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Random histories of clients against one group, which moves from coordinator to coordinator. After every step: each ticket is
//! answered at most once; members that believe in the current generation all believe in the same protocol and leader; assignments
//! are the leader's; and at the end, with enough time, everything that waits has been answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::offsets::GroupRecord;

const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A client joins with what it knows, perhaps with another subscription.
    Join {
        client: usize,
        changed: bool,
    },
    /// A client forgets everything and starts again.
    Restart {
        client: usize,
    },
    Sync {
        client: usize,
    },
    Heartbeat {
        client: usize,
    },
    Commit {
        client: usize,
    },
    Leave {
        client: usize,
    },
    Wait {
        millis: u64,
    },
    /// Another broker coordinates the group, which knows what was kept of it.
    Move,
}

fn any_step() -> impl Strategy<Value = Step> {
    let client = || 0..CLIENTS;
    prop_oneof![
        6 => (client(), prop::bool::weighted(0.2)).prop_map(|(client, changed)| Step::Join { client, changed }),
        1 => client().prop_map(|client| Step::Restart { client }),
        6 => client().prop_map(|client| Step::Sync { client }),
        4 => client().prop_map(|client| Step::Heartbeat { client }),
        2 => client().prop_map(|client| Step::Commit { client }),
        1 => client().prop_map(|client| Step::Leave { client }),
        2 => (1..20_000_u64).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Move),
    ]
}

/// What a client knows: only what it was told.
#[derive(Clone, Debug, Default)]
struct Client {
    instance: Option<String>,
    member: String,
    joined: Option<Joined>,
    subscription: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Join,
    Sync,
}

struct World {
    settings: GroupSettings,
    groups: Groups,
    /// What is kept of the group.
    kept: Option<GroupRecord>,
    now: Instant,
    clients: Vec<Client>,
    open: BTreeMap<Ticket, (usize, Kind, i32)>,
    /// What each generation's leader assigned.
    assigned: BTreeMap<i32, BTreeMap<String, Bytes>>,
    /// Protocol and leader of each generation, as told to its members.
    generations: BTreeMap<i32, (String, String)>,
    newest: i32,
    next: u64,
}

impl World {
    fn new(delay: u64, statics: [bool; CLIENTS]) -> Self {
        let clients = statics
            .into_iter()
            .enumerate()
            .map(|(index, is_static)| Client {
                instance: is_static.then(|| format!("instance-{index}")),
                ..Client::default()
            });
        let settings = GroupSettings {
            initial_rebalance_delay: Duration::from_millis(delay),
            ..GroupSettings::default()
        };
        Self {
            groups: Groups::new(settings.clone()),
            settings,
            kept: None,
            now: Instant::now(),
            clients: clients.collect(),
            open: BTreeMap::new(),
            assigned: BTreeMap::new(),
            generations: BTreeMap::new(),
            newest: 0,
            next: 0,
        }
    }

    fn ticket(&mut self, client: usize, kind: Kind, generation: i32) -> Ticket {
        self.next += 1;
        self.open
            .insert(Ticket(self.next), (client, kind, generation));
        Ticket(self.next)
    }

    fn membership(&self, client: usize) -> Membership {
        let client = &self.clients[client];
        Membership {
            group: "g".to_owned(),
            member: client.member.clone(),
            instance: client.instance.clone(),
            generation: client
                .joined
                .as_ref()
                .map_or(-1, |joined| joined.generation),
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Join { client, changed } => {
                let ticket = self.ticket(client, Kind::Join, 0);
                let known = &mut self.clients[client];
                known.subscription = known.subscription.wrapping_add(u8::from(changed));
                let request = JoinRequest {
                    group: "g".to_owned(),
                    member: known.member.clone(),
                    instance: known.instance.clone(),
                    client_id: format!("client-{client}"),
                    client_host: String::new(),
                    session_timeout: Duration::from_secs(6 + client as u64),
                    rebalance_timeout: Duration::from_secs(5 + 5 * client as u64),
                    protocol_type: "test".to_owned(),
                    protocols: ["x", "y"]
                        .map(|name| (name.to_owned(), Bytes::from(vec![known.subscription])))
                        .into(),
                    require_known_member: client % 2 == 0,
                    can_skip_assignment: true,
                    fresh_id: Uuid::from_u128(u128::from(ticket.0)),
                };
                let effects = self.groups.join(self.now, request, ticket);
                self.take_effects(effects);
            }
            Step::Restart { client } => {
                let instance = self.clients[client].instance.take();
                self.clients[client] = Client {
                    instance,
                    ..Client::default()
                };
            }
            Step::Sync { client } => self.sync(client),
            Step::Heartbeat { client } => {
                let from = self.membership(client);
                let outcome = self.groups.heartbeat(self.now, &from);
                self.note(client, outcome);
            }
            Step::Commit { client } => {
                let from = self.membership(client);
                if from.generation < 0 {
                    return;
                }
                let outcome = self.groups.check_commit(self.now, &from);
                if outcome.is_ok() {
                    assert!(
                        from.generation == self.newest,
                        "a commit of generation {} passed in {}",
                        from.generation,
                        self.newest
                    );
                }
                self.note(client, outcome);
            }
            Step::Leave { client } => {
                let known = &mut self.clients[client];
                let leaving = LeavingMember {
                    member: std::mem::take(&mut known.member),
                    instance: known.instance.clone(),
                };
                known.joined = None;
                let (outcomes, effects) = self.groups.leave(self.now, "g", &[leaving]);
                assert_eq!(outcomes.len(), 1);
                self.take_effects(effects);
            }
            Step::Wait { millis } => self.wait(Duration::from_millis(millis)),
            Step::Move => self.change_coordinator(),
        }
    }

    fn change_coordinator(&mut self) {
        let effects = self.groups.resign(|_| true);
        self.take_effects(effects);
        self.groups = Groups::new(self.settings.clone());
        if let Some(record) = &self.kept {
            assert!(self.groups.restore(self.now, "g", record));
        }
        // A generation that nobody was given an assignment for may come again.
        self.newest = self.kept.as_ref().map_or(0, |record| record.generation);
        self.generations.retain(|at, _| *at <= self.newest);
        self.assigned.retain(|at, _| *at <= self.newest);
        self.check();
    }

    fn sync(&mut self, client: usize) {
        let from = self.membership(client);
        let Some(joined) = self.clients[client].joined.clone() else {
            return;
        };
        let assignments: Vec<(String, Bytes)> = joined
            .members
            .iter()
            .map(|member| {
                let part = format!("{}:{}", from.generation, member.member);
                (member.member.clone(), Bytes::from(part))
            })
            .collect();
        if !assignments.is_empty() && !joined.skip_assignment {
            self.assigned
                .entry(from.generation)
                .or_default()
                .extend(assignments.iter().cloned());
        }
        let ticket = self.ticket(client, Kind::Sync, from.generation);
        let request = SyncRequest {
            from,
            protocol_type: Some("test".to_owned()),
            protocol: Some(joined.protocol),
            assignments,
        };
        let effects = self.groups.sync(self.now, request, ticket);
        self.take_effects(effects);
    }

    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut looks = 0;
        while let Some(at) = self.groups.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let effects = self.groups.tick(self.now);
            self.take_effects(effects);
            looks += 1;
            assert!(looks < 100_000, "time stands still at {at:?}");
        }
        self.now = end;
    }

    fn note(&mut self, client: usize, outcome: Result<(), GroupError>) {
        match outcome {
            Err(GroupError::UnknownMemberId | GroupError::FencedInstanceId) => {
                self.clients[client].member.clear();
                self.clients[client].joined = None;
            }
            Err(GroupError::IllegalGeneration) => self.clients[client].joined = None,
            _ => {}
        }
    }

    fn take_effects(&mut self, effects: Vec<Effect>) {
        for group in self.groups.take_changed() {
            match self.groups.keep(&group) {
                Keep::Generation(record) => self.kept = Some(*record),
                Keep::Nothing => self.kept = None,
                Keep::AsItIs => {}
            }
        }
        for effect in effects {
            match effect {
                Effect::Join { ticket, answer } => {
                    let (client, kind, _) = self.open.remove(&ticket).expect("answered twice");
                    assert_eq!(kind, Kind::Join);
                    match answer {
                        Ok(joined) => self.take_joined(client, joined),
                        Err(failure) if failure.error == GroupError::MemberIdRequired => {
                            self.clients[client].member = failure.member;
                        }
                        Err(failure) => self.note(client, Err(failure.error)),
                    }
                }
                Effect::Sync { ticket, answer } => {
                    let (client, kind, generation) =
                        self.open.remove(&ticket).expect("answered twice");
                    assert_eq!(kind, Kind::Sync);
                    match answer {
                        Ok(synced) => self.take_synced(generation, &synced),
                        Err(error) => self.note(client, Err(error)),
                    }
                }
            }
        }
        self.check();
    }

    fn take_joined(&mut self, client: usize, joined: Joined) {
        assert!(joined.generation >= self.newest, "a generation came again");
        self.newest = joined.generation;
        let told = (joined.protocol.clone(), joined.leader.clone());
        let first = self
            .generations
            .entry(joined.generation)
            .or_insert_with(|| told.clone());
        assert_eq!(first.0, told.0, "one generation has one protocol");
        // A static leader that comes back has another id in the same generation.
        if self.clients.iter().all(|client| client.instance.is_none()) {
            assert_eq!(first.1, told.1, "one generation has one leader");
        }
        let known = &mut self.clients[client];
        // The answer of a join that the client has given up by restarting tells it nothing.
        if known.member.is_empty() || known.member == joined.member || known.instance.is_some() {
            known.member.clone_from(&joined.member);
            known.joined = Some(joined);
        }
    }

    fn take_synced(&self, generation: i32, synced: &Synced) {
        let parts = self
            .assigned
            .get(&generation)
            .expect("nobody has assigned yet");
        assert!(
            synced.assignment.is_empty() || parts.values().any(|part| *part == synced.assignment),
            "an assignment that the leader did not make"
        );
    }

    fn check(&self) {
        let Some(group) = self.groups.describe("g") else {
            return;
        };
        // Everyone may have left while the group still waits for more members to join.
        let may_be_empty = matches!(
            group.state,
            GroupState::Empty | GroupState::PreparingRebalance
        );
        assert!(!group.members.is_empty() || may_be_empty);
        assert!(group.members.is_empty() || group.state != GroupState::Empty);
        let instances: Vec<&String> = group
            .members
            .iter()
            .filter_map(|member| member.instance.as_ref())
            .collect();
        let distinct: BTreeSet<&&String> = instances.iter().collect();
        assert_eq!(
            distinct.len(),
            instances.len(),
            "an instance is a member twice"
        );
        if group.state != GroupState::Empty {
            assert!(
                self.groups.next_deadline().is_some(),
                "nothing would ever end a session"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_clients_keeps_the_groups_promises(
        delay in prop::sample::select(vec![0_u64, 500, 3000]),
        statics in prop::array::uniform4(prop::bool::weighted(0.25)),
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let mut world = World::new(delay, statics);
        for step in &steps {
            world.take(step);
        }
        // Everyone falls silent: sessions end, rebalances end, and nobody is left waiting.
        world.wait(Duration::from_secs(3600));
        prop_assert_eq!(&world.open, &BTreeMap::new());
        let state = world.groups.describe("g").map(|group| group.state);
        prop_assert!(state.is_none_or(|state| state == GroupState::Empty), "{:?}", state);
    }

    #[test]
    fn clients_that_do_as_they_are_told_end_in_one_stable_generation(
        statics in prop::array::uniform4(prop::bool::weighted(0.25)),
        steps in prop::collection::vec(any_step(), 0..40),
    ) {
        let mut world = World::new(500, statics);
        for step in &steps {
            world.take(step);
        }
        for _ in 0..40 {
            for client in 0..CLIENTS {
                let waits = world.open.values().any(|(own, _, _)| *own == client);
                if waits {
                    continue;
                }
                let from = world.membership(client);
                if from.generation < 0 || world.groups.heartbeat(world.now, &from).is_err() {
                    world.clients[client].joined = None;
                    let known = world.clients[client].member.clone();
                    world.take(&Step::Join { client, changed: false });
                    if world.clients[client].member != known {
                        world.take(&Step::Join { client, changed: false });
                    }
                } else {
                    world.take(&Step::Sync { client });
                }
            }
            world.wait(Duration::from_millis(700));
        }
        let group = world.groups.describe("g").unwrap();
        prop_assert_eq!(group.state, GroupState::Stable);
        for client in 0..CLIENTS {
            let from = world.membership(client);
            prop_assert_eq!(world.groups.heartbeat(world.now, &from), Ok(()));
            prop_assert_eq!(from.generation, world.newest);
        }
    }
}
