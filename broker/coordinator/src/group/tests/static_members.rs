//! Static members (KIP-345).

use super::*;

fn instance(name: &str, member: &str) -> JoinRequest {
    JoinRequest {
        instance: Some(name.to_owned()),
        ..request(member)
    }
}

fn membership(name: &str, member: &str, generation: i32) -> Membership {
    Membership {
        instance: Some(name.to_owned()),
        ..from(member, generation)
    }
}

/// A stable group of one static member, generation 1.
fn stable(broker: &mut Broker) -> String {
    let joined = broker.joined(instance("i1", "")).unwrap();
    assert!(joined.member.starts_with("i1-"));
    broker
        .synced(sync_request(&joined.member, 1, &[(&joined.member, "mine")]))
        .unwrap();
    joined.member
}

#[test]
fn one_that_comes_back_keeps_its_place_and_assignment_without_a_rebalance() {
    let mut broker = Broker::new(settings());
    let old = stable(&mut broker);
    let back = broker.joined(instance("i1", "")).unwrap();
    assert_ne!(back.member, old);
    assert_eq!(back.generation, 1);
    assert!(back.skip_assignment);
    assert_eq!(back.leader, back.member);
    assert_eq!(broker.state(), GroupState::Stable);
    let mut sync = sync_request(&back.member, 1, &[]);
    sync.from.instance = Some("i1".to_owned());
    assert_eq!(broker.synced(sync).unwrap().assignment, Bytes::from("mine"));
}

#[test]
fn a_leader_that_cannot_skip_the_assignment_is_told_that_another_leads() {
    let mut broker = Broker::new(settings());
    let old = stable(&mut broker);
    let request = JoinRequest {
        can_skip_assignment: false,
        ..instance("i1", "")
    };
    let back = broker.joined(request).unwrap();
    assert_eq!(back.leader, old);
    assert!(back.members.is_empty() && !back.skip_assignment);
}

#[test]
fn whoever_uses_the_old_id_is_fenced() {
    let mut broker = Broker::new(settings());
    let old = stable(&mut broker);
    let new = broker.joined(instance("i1", "")).unwrap().member;
    let now = broker.now;
    let fenced = Err(GroupError::FencedInstanceId);
    let mut beat = |member: &str| broker.groups.heartbeat(now, &membership("i1", member, 1));
    assert_eq!(beat(&old), fenced);
    assert_eq!(beat(&new), Ok(()));
    assert_eq!(
        broker.groups.check_commit(now, &membership("i1", &old, 1)),
        fenced
    );
    assert_eq!(
        join_error(broker.joined(instance("i1", &old))),
        GroupError::FencedInstanceId
    );
    assert_eq!(
        join_error(broker.joined(instance("unknown", &new))),
        GroupError::UnknownMemberId
    );
    let leaving = LeavingMember {
        member: old,
        instance: Some("i1".to_owned()),
    };
    assert_eq!(broker.groups.leave(now, "g", &[leaving]).0, [fenced]);
}

#[test]
fn a_waiting_join_of_the_one_that_is_replaced_is_answered() {
    let mut broker = Broker::new(settings());
    stable(&mut broker);
    let (waiting, effects) = broker.join(instance("i2", ""));
    assert!(effects.is_empty());
    let (_, effects) = broker.join(instance("i2", ""));
    let answer = join_answer(&effects, waiting).unwrap();
    assert_eq!(join_error(answer), GroupError::FencedInstanceId);
}

#[test]
fn one_that_misses_a_rebalance_stays_until_its_session_ends() {
    let mut broker = Broker::new(settings());
    let silent = stable(&mut broker);
    let short = JoinRequest {
        rebalance_timeout: Duration::from_secs(5),
        session_timeout: Duration::from_secs(30),
        ..request("")
    };
    // The static member's own rebalance timeout, which counts while it is a member, is 60 s; its session 10 s.
    let (ticket, _) = broker.join(short);
    let effects = broker.at(10.0);
    let joined = join_answer(&effects, ticket).unwrap().unwrap();
    assert!(joined.members.iter().all(|member| member.member != silent));
}

#[test]
fn silent_static_members_alone_do_not_end_the_rebalance() {
    let mut broker = Broker::new(settings());
    let patient = JoinRequest {
        session_timeout: Duration::from_secs(100),
        rebalance_timeout: Duration::from_secs(20),
        ..instance("i1", "")
    };
    let one = broker.joined(patient).unwrap();
    broker.synced(sync_request(&one.member, 1, &[])).unwrap();
    let (_, effects) = broker.join(request(""));
    assert!(effects.is_empty());
    // The newcomer leaves again; only the silent static member is left.
    let newcomer = broker.groups.describe("g").unwrap().members;
    let newcomer = newcomer.iter().find(|it| it.instance.is_none()).unwrap();
    let leaving = LeavingMember {
        member: newcomer.member.clone(),
        instance: None,
    };
    broker.groups.leave(broker.now, "g", &[leaving]);
    broker.at(20.0);
    assert_eq!(broker.state(), GroupState::PreparingRebalance);
    broker.at(99.0);
    assert_eq!(broker.state(), GroupState::PreparingRebalance);
    broker.at(100.0);
    assert_eq!(broker.state(), GroupState::Empty);
}

#[test]
fn an_administrator_removes_one_by_its_instance_id_alone() {
    let mut broker = Broker::new(settings());
    stable(&mut broker);
    let leaving = |name: &str| LeavingMember {
        member: String::new(),
        instance: Some(name.to_owned()),
    };
    let (outcomes, _) = broker
        .groups
        .leave(broker.now, "g", &[leaving("i1"), leaving("i9")]);
    assert_eq!(outcomes, [Ok(()), Err(GroupError::UnknownMemberId)]);
    assert_eq!(broker.state(), GroupState::Empty);
}
