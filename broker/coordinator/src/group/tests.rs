#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::*;

mod admin;
mod records;
mod static_members;

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);

/// A broker with one clock and a counter for tickets and ids.
struct Broker {
    groups: Groups,
    start: Instant,
    now: Instant,
    next: u64,
}

fn settings() -> GroupSettings {
    GroupSettings {
        initial_rebalance_delay: Duration::ZERO,
        ..GroupSettings::default()
    }
}

fn subscription(topics: &[&str]) -> Bytes {
    let mut bytes = vec![0, 1];
    bytes.extend(u32::try_from(topics.len()).unwrap().to_be_bytes());
    for topic in topics {
        bytes.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
        bytes.extend(topic.as_bytes());
    }
    Bytes::from(bytes)
}

fn request(member: &str) -> JoinRequest {
    JoinRequest {
        group: "g".to_owned(),
        member: member.to_owned(),
        instance: None,
        client_id: "app".to_owned(),
        client_host: "/10.0.0.1".to_owned(),
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), subscription(&["orders"]))],
        require_known_member: false,
        can_skip_assignment: true,
        fresh_id: Uuid::nil(),
    }
}

fn from(member: &str, generation: i32) -> Membership {
    Membership {
        group: "g".to_owned(),
        member: member.to_owned(),
        instance: None,
        generation,
    }
}

fn sync_request(member: &str, generation: i32, assignments: &[(&str, &str)]) -> SyncRequest {
    SyncRequest {
        from: from(member, generation),
        protocol_type: Some("consumer".to_owned()),
        protocol: Some("range".to_owned()),
        assignments: assignments
            .iter()
            .map(|(member, part)| {
                (
                    (*member).to_owned(),
                    Bytes::copy_from_slice(part.as_bytes()),
                )
            })
            .collect(),
    }
}

impl Broker {
    fn new(settings: GroupSettings) -> Self {
        let start = Instant::now();
        Self {
            groups: Groups::new(settings),
            start,
            now: start,
            next: 0,
        }
    }

    fn at(&mut self, seconds: f64) -> Vec<Effect> {
        self.now = self.start + Duration::from_secs_f64(seconds);
        self.groups.tick(self.now)
    }

    fn join(&mut self, mut request: JoinRequest) -> (Ticket, Vec<Effect>) {
        self.next += 1;
        request.fresh_id = Uuid::from_u128(u128::from(self.next));
        let ticket = Ticket(self.next);
        (ticket, self.groups.join(self.now, request, ticket))
    }

    /// A join that is answered at once.
    fn joined(&mut self, request: JoinRequest) -> JoinAnswer {
        let (ticket, effects) = self.join(request);
        join_answer(&effects, ticket).unwrap()
    }

    fn sync(&mut self, request: SyncRequest) -> (Ticket, Vec<Effect>) {
        self.next += 1;
        let ticket = Ticket(self.next);
        (ticket, self.groups.sync(self.now, request, ticket))
    }

    fn synced(&mut self, request: SyncRequest) -> SyncAnswer {
        let (ticket, effects) = self.sync(request);
        sync_answer(&effects, ticket).unwrap()
    }

    fn heartbeat(&mut self, member: &str, generation: i32) -> Result<(), GroupError> {
        self.groups.heartbeat(self.now, &from(member, generation))
    }

    fn state(&self) -> GroupState {
        self.groups
            .describe("g")
            .map_or(GroupState::Dead, |group| group.state)
    }

    /// Two members in a stable group of generation 2: the leader's id and the other's.
    fn stable_pair(&mut self) -> (String, String) {
        let one = self.joined(request("")).unwrap();
        self.synced(sync_request(&one.member, 1, &[(&one.member, "all")]))
            .unwrap();
        let (second, effects) = self.join(request(""));
        assert!(effects.is_empty());
        assert_eq!(
            self.heartbeat(&one.member, 1),
            Err(GroupError::RebalanceInProgress)
        );
        let (first, effects) = self.join(request(&one.member));
        let leader = join_answer(&effects, first).unwrap().unwrap();
        let two = join_answer(&effects, second).unwrap().unwrap();
        assert_eq!((leader.generation, two.generation), (2, 2));
        assert_eq!(leader.members.len(), 2);
        assert!(two.members.is_empty());
        assert_eq!(two.leader, one.member);
        let (waiting, effects) = self.sync(sync_request(&two.member, 2, &[]));
        assert!(effects.is_empty());
        let parts = [(one.member.as_str(), "p0"), (two.member.as_str(), "p1")];
        let (_, effects) = self.sync(sync_request(&one.member, 2, &parts));
        let part = sync_answer(&effects, waiting).unwrap().unwrap();
        assert_eq!(part.assignment, Bytes::from("p1"));
        assert_eq!(self.state(), GroupState::Stable);
        (one.member, two.member)
    }
}

fn join_answer(effects: &[Effect], wanted: Ticket) -> Option<JoinAnswer> {
    effects.iter().find_map(|effect| match effect {
        Effect::Join { ticket, answer } if *ticket == wanted => Some(answer.clone()),
        _ => None,
    })
}

fn sync_answer(effects: &[Effect], wanted: Ticket) -> Option<SyncAnswer> {
    effects.iter().find_map(|effect| match effect {
        Effect::Sync { ticket, answer } if *ticket == wanted => Some(answer.clone()),
        _ => None,
    })
}

fn join_error(answer: JoinAnswer) -> GroupError {
    answer.unwrap_err().error
}

#[test]
fn a_lone_consumer_becomes_leader_and_gets_its_assignment() {
    let mut broker = Broker::new(settings());
    let joined = broker.joined(request("")).unwrap();
    assert_eq!(joined.generation, 1);
    assert_eq!(joined.leader, joined.member);
    assert_eq!(joined.protocol, "range");
    assert_eq!(joined.members.len(), 1);
    assert!(joined.member.starts_with("app-"));
    assert_eq!(broker.state(), GroupState::CompletingRebalance);
    let synced = broker
        .synced(sync_request(
            &joined.member,
            1,
            &[(&joined.member, "everything")],
        ))
        .unwrap();
    assert_eq!(synced.assignment, Bytes::from("everything"));
    assert_eq!(broker.state(), GroupState::Stable);
    assert_eq!(broker.heartbeat(&joined.member, 1), Ok(()));
}

#[test]
fn a_second_consumer_makes_both_join_again() {
    Broker::new(settings()).stable_pair();
}

#[test]
fn a_new_member_is_given_an_id_first_when_its_client_knows_how() {
    let mut broker = Broker::new(settings());
    let known = JoinRequest {
        require_known_member: true,
        ..request("")
    };
    let refused = broker.joined(known).unwrap_err();
    assert_eq!(refused.error, GroupError::MemberIdRequired);
    assert_eq!(broker.state(), GroupState::Empty);
    let joined = broker.joined(request(&refused.member)).unwrap();
    assert_eq!(joined.member, refused.member);
}

#[test]
fn an_id_that_is_not_used_lapses_and_holds_up_nobody_for_ever() {
    let mut broker = Broker::new(settings());
    let known = JoinRequest {
        require_known_member: true,
        ..request("")
    };
    let pending = broker.joined(known).unwrap_err().member;
    let (ticket, effects) = broker.join(request(""));
    assert!(
        effects.is_empty(),
        "the others wait for the id that was given out"
    );
    let effects = broker.at(10.0);
    assert!(join_answer(&effects, ticket).unwrap().is_ok());
    assert_eq!(
        join_error(broker.joined(request(&pending))),
        GroupError::UnknownMemberId
    );
}

#[test]
fn leaving_with_an_unused_id_lets_the_others_go_on_and_disturbs_no_stable_group() {
    let mut broker = Broker::new(settings());
    let (leader, _) = broker.stable_pair();
    let known = JoinRequest {
        require_known_member: true,
        ..request("")
    };
    let pending = broker.joined(known).unwrap_err().member;
    let leaving = LeavingMember {
        member: pending,
        instance: None,
    };
    let (outcomes, effects) = broker.groups.leave(broker.now, "g", &[leaving]);
    assert_eq!((outcomes, effects), (vec![Ok(())], vec![]));
    assert_eq!(broker.state(), GroupState::Stable);
    assert_eq!(broker.heartbeat(&leader, 2), Ok(()));
}

#[test]
fn the_first_rebalance_waits_for_more_members_and_longer_while_they_come() {
    let mut broker = Broker::new(GroupSettings {
        initial_rebalance_delay: Duration::from_secs(3),
        ..GroupSettings::default()
    });
    let (one, effects) = broker.join(request(""));
    assert!(effects.is_empty());
    assert_eq!(
        broker.groups.next_deadline(),
        Some(broker.start + Duration::from_secs(3))
    );
    assert!(broker.at(2.0).is_empty());
    let (two, effects) = broker.join(request(""));
    assert!(effects.is_empty());
    assert!(
        broker.at(3.0).is_empty(),
        "someone joined, so the wait is prolonged"
    );
    assert!(broker.at(5.9).is_empty());
    let effects = broker.at(6.0);
    let first = join_answer(&effects, one).unwrap().unwrap();
    let second = join_answer(&effects, two).unwrap().unwrap();
    assert_eq!((first.generation, second.generation), (1, 1));
}

#[test]
fn the_first_rebalance_waits_no_longer_than_the_rebalance_timeout() {
    let mut broker = Broker::new(GroupSettings {
        initial_rebalance_delay: Duration::from_secs(3),
        ..GroupSettings::default()
    });
    let short = JoinRequest {
        rebalance_timeout: Duration::from_secs(4),
        ..request("")
    };
    broker.join(short.clone());
    broker.at(2.0);
    broker.join(short.clone());
    broker.at(3.0);
    broker.join(short);
    assert_eq!(broker.at(4.0).len(), 3);
}

#[test]
fn who_does_not_join_again_in_time_is_out() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let (third, _) = broker.join(request(""));
    let (again, effects) = broker.join(request(&leader));
    assert!(effects.is_empty(), "the other member is waited for");
    for second in [
        5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0,
    ] {
        broker.at(second);
        assert_eq!(
            broker.heartbeat(&other, 2),
            Err(GroupError::RebalanceInProgress)
        );
    }
    let effects = broker.at(60.0);
    let answer = join_answer(&effects, again).unwrap().unwrap();
    assert_eq!(answer.generation, 3);
    assert_eq!(answer.members.len(), 2);
    assert!(join_answer(&effects, third).unwrap().is_ok());
    assert_eq!(
        broker.heartbeat(&other, 3),
        Err(GroupError::UnknownMemberId)
    );
}

#[test]
fn a_silent_member_loses_its_session_and_the_others_rebalance() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    broker.at(9.0);
    assert_eq!(broker.heartbeat(&leader, 2), Ok(()));
    broker.at(10.0);
    assert_eq!(
        broker.heartbeat(&other, 2),
        Err(GroupError::UnknownMemberId)
    );
    assert_eq!(
        broker.heartbeat(&leader, 2),
        Err(GroupError::RebalanceInProgress)
    );
    let joined = broker.joined(request(&leader)).unwrap();
    assert_eq!((joined.generation, joined.members.len()), (3, 1));
}

#[test]
fn a_lost_leader_is_replaced() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let leaving = LeavingMember {
        member: leader,
        instance: None,
    };
    let (outcomes, effects) = broker.groups.leave(broker.now, "g", &[leaving]);
    assert_eq!((outcomes, effects.len()), (vec![Ok(())], 0));
    let joined = broker.joined(request(&other)).unwrap();
    assert_eq!(joined.leader, other);
    assert_eq!(joined.generation, 3);
}

#[test]
fn a_leader_that_never_assigns_is_out_after_the_rebalance_timeout() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    broker.join(request(&leader));
    let (_, effects) = broker.join(request(&other));
    assert_eq!(effects.len(), 2);
    let (waiting, effects) = broker.sync(sync_request(&other, 3, &[]));
    assert!(effects.is_empty());
    for second in [8.0, 16.0, 24.0, 32.0, 40.0, 48.0, 56.0] {
        assert!(broker.at(second).is_empty());
        assert_eq!(broker.heartbeat(&leader, 3), Ok(()));
    }
    let effects = broker.at(60.0);
    assert_eq!(
        sync_answer(&effects, waiting),
        Some(Err(GroupError::RebalanceInProgress))
    );
    assert_eq!(
        broker.heartbeat(&leader, 3),
        Err(GroupError::UnknownMemberId)
    );
    assert_eq!(broker.joined(request(&other)).unwrap().leader, other);
}

#[test]
fn the_last_member_leaves_an_empty_group_behind() {
    let mut broker = Broker::new(settings());
    let joined = broker.joined(request("")).unwrap();
    let leaving = LeavingMember {
        member: joined.member.clone(),
        instance: None,
    };
    broker
        .groups
        .leave(broker.now, "g", std::slice::from_ref(&leaving));
    assert_eq!(broker.state(), GroupState::Empty);
    assert_eq!(broker.groups.next_deadline(), None);
    let (outcomes, _) = broker
        .groups
        .leave(broker.now, "g", std::slice::from_ref(&leaving));
    assert_eq!(outcomes, [Err(GroupError::UnknownMemberId)]);
    let (outcomes, _) = broker.groups.leave(broker.now, "unknown", &[leaving]);
    assert_eq!(outcomes, [Err(GroupError::UnknownMemberId)]);
    assert_eq!(
        broker.heartbeat(&joined.member, 1),
        Err(GroupError::UnknownMemberId)
    );
    // The generation goes on, so that nothing from before is taken for the present.
    assert!(broker.joined(request("")).unwrap().generation > 1);
}

#[test]
fn requests_of_another_generation_or_nobody_are_refused() {
    let mut broker = Broker::new(settings());
    let (leader, _) = broker.stable_pair();
    assert_eq!(
        broker.heartbeat(&leader, 1),
        Err(GroupError::IllegalGeneration)
    );
    assert_eq!(
        broker.heartbeat("nobody", 2),
        Err(GroupError::UnknownMemberId)
    );
    assert_eq!(
        broker.synced(sync_request(&leader, 1, &[])),
        Err(GroupError::IllegalGeneration)
    );
    assert_eq!(
        broker.synced(sync_request("nobody", 2, &[])),
        Err(GroupError::UnknownMemberId)
    );
    let elsewhere = Membership {
        group: "other".to_owned(),
        ..from(&leader, 2)
    };
    assert_eq!(
        broker.groups.heartbeat(broker.now, &elsewhere),
        Err(GroupError::UnknownMemberId)
    );
    let mut other_protocol = sync_request(&leader, 2, &[]);
    other_protocol.protocol = Some("sticky".to_owned());
    assert_eq!(
        broker.synced(other_protocol),
        Err(GroupError::InconsistentGroupProtocol)
    );
}

#[test]
fn a_sync_in_a_stable_group_gets_the_stored_assignment_again() {
    let mut broker = Broker::new(settings());
    let (_, other) = broker.stable_pair();
    let again = broker.synced(sync_request(&other, 2, &[])).unwrap();
    assert_eq!(again.assignment, Bytes::from("p1"));
}

#[test]
fn a_follower_that_repeats_its_join_gets_the_same_answer_and_the_leader_a_rebalance() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let again = broker.joined(request(&other)).unwrap();
    assert_eq!(again.generation, 2);
    assert_eq!(broker.state(), GroupState::Stable);
    let (_, effects) = broker.join(request(&leader));
    assert!(effects.is_empty());
    assert_eq!(broker.state(), GroupState::PreparingRebalance);
}

#[test]
fn a_follower_with_a_new_subscription_starts_a_rebalance() {
    let mut broker = Broker::new(settings());
    let (_, other) = broker.stable_pair();
    let changed = JoinRequest {
        protocols: vec![("range".to_owned(), subscription(&["orders", "clicks"]))],
        ..request(&other)
    };
    let (_, effects) = broker.join(changed);
    assert!(effects.is_empty());
    assert_eq!(broker.state(), GroupState::PreparingRebalance);
}

#[test]
fn a_join_that_is_sent_again_replaces_the_first_which_is_answered() {
    let mut broker = Broker::new(settings());
    let (_, other) = broker.stable_pair();
    broker.join(JoinRequest {
        protocols: vec![("range".to_owned(), subscription(&["x"]))],
        ..request(&other)
    });
    let (first, second) = (Ticket(broker.next), Ticket(broker.next + 1));
    let (ticket, effects) = broker.join(request(&other));
    assert_eq!(ticket, second);
    let answer = join_answer(&effects, first).unwrap();
    assert_eq!(join_error(answer), GroupError::RebalanceInProgress);
    assert_eq!(join_answer(&effects, second), None);
}

#[test]
fn the_protocol_is_one_that_all_know_and_most_prefer() {
    let mut broker = Broker::new(GroupSettings {
        initial_rebalance_delay: Duration::from_secs(1),
        ..GroupSettings::default()
    });
    let with = |names: &[&str]| JoinRequest {
        protocols: names
            .iter()
            .map(|name| ((*name).to_owned(), Bytes::new()))
            .collect(),
        ..request("")
    };
    let (ticket, _) = broker.join(with(&["a", "b", "c"]));
    broker.join(with(&["c", "b"]));
    broker.join(with(&["c", "b", "a"]));
    let refused = broker.joined(with(&["a", "z"]));
    assert_eq!(join_error(refused), GroupError::InconsistentGroupProtocol);
    broker.at(1.0);
    let effects = broker.at(2.0);
    assert_eq!(
        join_answer(&effects, ticket).unwrap().unwrap().protocol,
        "c"
    );
}

#[test]
fn another_protocol_type_or_none_at_all_is_refused() {
    let mut broker = Broker::new(settings());
    broker.stable_pair();
    for odd in [
        JoinRequest {
            protocol_type: "connect".to_owned(),
            ..request("")
        },
        JoinRequest {
            protocol_type: String::new(),
            ..request("")
        },
        JoinRequest {
            protocols: vec![],
            ..request("")
        },
    ] {
        let error = join_error(broker.joined(odd));
        assert_eq!(error, GroupError::InconsistentGroupProtocol);
    }
}

#[test]
fn limits_are_kept() {
    let mut broker = Broker::new(GroupSettings {
        max_size: 2,
        max_groups: 1,
        max_member_bytes: 100,
        ..settings()
    });
    let (leader, _) = broker.stable_pair();
    assert_eq!(
        join_error(broker.joined(request(""))),
        GroupError::GroupMaxSizeReached
    );
    let large = JoinRequest {
        protocols: vec![("range".to_owned(), Bytes::from(vec![0; 101]))],
        ..request("")
    };
    assert_eq!(join_error(broker.joined(large)), GroupError::TooLarge);
    let many = JoinRequest {
        protocols: (0..65).map(|_| (String::new(), Bytes::new())).collect(),
        ..request("")
    };
    assert_eq!(join_error(broker.joined(many)), GroupError::TooLarge);
    let part = "x".repeat(101);
    let assigned = broker.synced(sync_request(&leader, 2, &[(&leader, &part)]));
    assert_eq!(assigned, Err(GroupError::TooLarge));
    let other = JoinRequest {
        group: "other".to_owned(),
        ..request("")
    };
    assert_eq!(
        join_error(broker.joined(other.clone())),
        GroupError::TooManyGroups
    );
    let nameless = JoinRequest {
        group: String::new(),
        ..request("")
    };
    assert_eq!(
        join_error(broker.joined(nameless)),
        GroupError::InvalidGroupId
    );
    let hasty = JoinRequest {
        session_timeout: Duration::from_secs(1),
        ..request("")
    };
    assert_eq!(
        join_error(broker.joined(hasty)),
        GroupError::InvalidSessionTimeout
    );
    // An idle group makes room for another.
    for member in broker.groups.describe("g").unwrap().members {
        let leaving = LeavingMember {
            member: member.member,
            instance: None,
        };
        broker.groups.leave(broker.now, "g", &[leaving]);
    }
    assert!(broker.joined(other).is_ok());
    assert_eq!(broker.groups.list().count(), 1);
}
