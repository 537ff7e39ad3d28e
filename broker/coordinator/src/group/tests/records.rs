//! What is kept of groups, and groups that go on from it at another coordinator.

use super::*;
use crate::offsets::GroupRecord;

impl Broker {
    fn changed(&mut self) -> Vec<String> {
        self.groups.take_changed().into_iter().collect()
    }

    fn kept(&self) -> GroupRecord {
        match self.groups.keep("g") {
            Keep::Generation(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    /// Another coordinator, a second later, that knows what is kept of the group.
    fn taken_over(&self) -> Self {
        let mut groups = Groups::new(settings());
        let now = self.now + Duration::from_secs(1);
        assert!(groups.restore(now, "g", &self.kept()));
        Self {
            groups,
            start: now,
            now,
            next: self.next,
        }
    }
}

#[test]
fn members_go_on_in_their_generation_at_another_coordinator() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let described = broker.groups.describe("g");
    let mut broker = broker.taken_over();
    assert_eq!(broker.changed(), Vec::<String>::new());
    assert_eq!(broker.groups.describe("g"), described);
    for member in [&leader, &other] {
        assert_eq!(broker.heartbeat(member, 2), Ok(()));
        let commit = broker.groups.check_commit(broker.now, &from(member, 2));
        assert_eq!(commit, Ok(()));
        for generation in [1, 3] {
            let refused = Err(GroupError::IllegalGeneration);
            assert_eq!(broker.heartbeat(member, generation), refused);
        }
    }
    assert_eq!(
        broker.heartbeat("nobody", 2),
        Err(GroupError::UnknownMemberId)
    );
    let again = broker.synced(sync_request(&other, 2, &[])).unwrap();
    assert_eq!(again.assignment, Bytes::from("p1"));
    // Who did not hear of the answer to its join asks again, and the leader may have everything assigned anew.
    let repeated = broker.joined(request(&other)).unwrap();
    assert_eq!((repeated.generation, repeated.leader), (2, leader.clone()));
    let (_, effects) = broker.join(request(&leader));
    assert!(effects.is_empty());
    let joined = broker.joined(request(&other)).unwrap();
    assert_eq!(joined.generation, 3);
}

#[test]
fn a_restored_member_has_one_session_to_be_heard_of() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let mut broker = broker.taken_over();
    assert_eq!(broker.groups.next_deadline(), Some(broker.now + SESSION));
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
fn a_restored_static_member_is_found_by_its_instance() {
    let mut broker = Broker::new(settings());
    let named = |member: &str| JoinRequest {
        instance: Some("i1".to_owned()),
        ..request(member)
    };
    let old = broker.joined(named("")).unwrap().member;
    broker
        .synced(sync_request(&old, 1, &[(&old, "mine")]))
        .unwrap();
    let mut broker = broker.taken_over();
    let back = broker.joined(named("")).unwrap();
    assert_ne!(back.member, old);
    assert_eq!((back.generation, back.skip_assignment), (1, true));
    assert_eq!(broker.changed(), ["g"], "the member has another id");
    // And the one after that knows the new id, and fences the old one.
    let mut broker = broker.taken_over();
    let membership = |member: &str| Membership {
        instance: Some("i1".to_owned()),
        ..from(member, 1)
    };
    let now = broker.now;
    assert_eq!(
        broker.groups.heartbeat(now, &membership(&back.member)),
        Ok(())
    );
    assert_eq!(
        broker.groups.heartbeat(now, &membership(&old)),
        Err(GroupError::FencedInstanceId)
    );
}

#[test]
fn what_is_kept_changes_with_each_stable_generation_and_with_the_last_member() {
    let mut broker = Broker::new(settings());
    assert_eq!(broker.groups.keep("g"), Keep::AsItIs, "it is not known");
    let joined = broker.joined(request("")).unwrap();
    assert_eq!(broker.changed(), Vec::<String>::new());
    assert_eq!(broker.groups.keep("g"), Keep::AsItIs);
    broker
        .synced(sync_request(&joined.member, 1, &[(&joined.member, "all")]))
        .unwrap();
    assert_eq!(broker.changed(), ["g"]);
    let record = broker.kept();
    assert_eq!((record.generation, &record.leader), (1, &joined.member));
    assert_eq!(record.members.len(), 1);
    assert_eq!(record.members[0].assignment, Bytes::from("all"));
    assert_eq!(record.members[0].session_timeout_ms, 10_000);
    // Signs of life, and questions that are asked again, change nothing.
    broker.heartbeat(&joined.member, 1).unwrap();
    broker.synced(sync_request(&joined.member, 1, &[])).unwrap();
    assert_eq!(broker.changed(), Vec::<String>::new());
    // A rebalance does when it is over.
    let (_, effects) = broker.join(request(&joined.member));
    assert_eq!(effects.len(), 1);
    assert_eq!(broker.changed(), Vec::<String>::new());
    assert_eq!(broker.groups.keep("g"), Keep::AsItIs);
    broker.synced(sync_request(&joined.member, 2, &[])).unwrap();
    assert_eq!(broker.changed(), ["g"]);
    assert_eq!(broker.kept().generation, 2);
    let leaving = LeavingMember {
        member: joined.member,
        instance: None,
    };
    broker.groups.leave(broker.now, "g", &[leaving]);
    assert_eq!(broker.changed(), ["g"]);
    assert_eq!(broker.groups.keep("g"), Keep::Nothing);
}

#[test]
fn a_group_whose_sessions_all_end_keeps_nothing() {
    let mut broker = Broker::new(settings());
    broker.stable_pair();
    broker.changed();
    broker.at(10.0);
    assert_eq!(broker.state(), GroupState::Empty);
    assert_eq!(broker.changed(), ["g"]);
    assert_eq!(broker.groups.keep("g"), Keep::Nothing);
}

#[test]
fn a_group_that_is_given_up_changes_nothing() {
    let mut broker = Broker::new(settings());
    broker.stable_pair();
    broker.groups.resign(|_| true);
    assert_eq!(broker.changed(), Vec::<String>::new());
    assert_eq!(broker.groups.keep("g"), Keep::AsItIs);
}

#[test]
fn what_is_kept_takes_the_place_of_nothing_that_is_known() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let record = broker.kept();
    broker.join(request(&leader));
    broker.join(request(&other));
    assert!(broker.groups.restore(broker.now, "g", &record));
    assert_eq!(broker.state(), GroupState::CompletingRebalance);
}

#[test]
fn a_record_that_contradicts_itself_is_no_group() {
    let mut broker = Broker::new(settings());
    broker.stable_pair();
    let good = broker.kept();
    let broken = |change: &dyn Fn(&mut GroupRecord)| {
        let mut record = good.clone();
        change(&mut record);
        let mut groups = Groups::new(settings());
        assert!(!groups.restore(Instant::now(), "g", &record), "{record:?}");
        assert_eq!(groups.describe("g"), None);
        assert_eq!(groups.next_deadline(), None);
    };
    broken(&|record| record.members.clear());
    broken(&|record| record.generation = 0);
    broken(&|record| record.leader = "nobody".to_owned());
    broken(&|record| record.protocol = "sticky".to_owned());
    broken(&|record| record.protocol_type.clear());
    broken(&|record| record.members[1] = record.members[0].clone());
    broken(&|record| record.members[0].member.clear());
    broken(&|record| {
        for member in &mut record.members {
            member.instance = Some("i1".to_owned());
        }
    });
    // Absurd times are no reason to panic.
    let mut record = good.clone();
    for member in &mut record.members {
        member.session_timeout_ms = u64::MAX;
        member.rebalance_timeout_ms = u64::MAX;
    }
    let mut groups = Groups::new(settings());
    assert!(groups.restore(Instant::now(), "g", &record));
}
