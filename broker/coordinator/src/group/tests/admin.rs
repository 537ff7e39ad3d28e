//! Commits, and what administrators and the broker itself ask of groups.

use super::*;

impl Broker {
    fn topic_use(&self) -> TopicUse {
        self.groups.topic_use(self.now, "g")
    }
}

/// A stable group of one that subscribes to `orders`, and another that says this of what it subscribes to.
fn pair_with(metadata: Bytes) -> Broker {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    broker.join(JoinRequest {
        protocols: vec![("range".to_owned(), metadata)],
        ..request(&other)
    });
    assert_eq!(broker.topic_use(), TopicUse::Any, "it is rebalancing");
    broker.join(request(&leader));
    broker.synced(sync_request(&leader, 3, &[])).unwrap();
    assert_eq!(broker.state(), GroupState::Stable);
    broker
}

#[test]
fn commits_come_from_members_of_this_generation_or_from_outside_an_empty_group() {
    let mut broker = Broker::new(settings());
    let now = broker.now;
    let nobody = from("", -1);
    assert_eq!(broker.groups.check_commit(now, &nobody), Ok(()));
    assert_eq!(
        broker.groups.check_commit(now, &from("ghost", 3)),
        Err(GroupError::IllegalGeneration)
    );
    let (leader, other) = broker.stable_pair();
    assert_eq!(
        broker.groups.check_commit(now, &nobody),
        Err(GroupError::UnknownMemberId)
    );
    assert_eq!(broker.groups.check_commit(now, &from(&leader, 2)), Ok(()));
    assert_eq!(
        broker.groups.check_commit(now, &from(&leader, 1)),
        Err(GroupError::IllegalGeneration)
    );
    // While members join again they may still commit what they have read.
    broker.join(request(&leader));
    assert_eq!(broker.groups.check_commit(now, &from(&other, 2)), Ok(()));
    broker.join(request(&other));
    assert_eq!(broker.state(), GroupState::CompletingRebalance);
    assert_eq!(
        broker.groups.check_commit(now, &from(&other, 3)),
        Err(GroupError::RebalanceInProgress)
    );
}

#[test]
fn a_commit_is_a_sign_of_life() {
    let mut broker = Broker::new(settings());
    let joined = broker.joined(request("")).unwrap();
    broker.synced(sync_request(&joined.member, 1, &[])).unwrap();
    broker.at(9.0);
    broker
        .groups
        .check_commit(broker.now, &from(&joined.member, 1))
        .unwrap();
    broker.at(18.0);
    assert_eq!(broker.heartbeat(&joined.member, 1), Ok(()));
}

#[test]
fn administrators_see_members_and_cannot_delete_a_group_in_use() {
    let mut broker = Broker::new(settings());
    let (leader, other) = broker.stable_pair();
    let description = broker.groups.describe("g").unwrap();
    assert_eq!(description.protocol, "range");
    assert_eq!(description.protocol_type, "consumer");
    let ids: Vec<&str> = description
        .members
        .iter()
        .map(|it| it.member.as_str())
        .collect();
    let mut expected = [leader.as_str(), other.as_str()];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let assignments: Vec<&Bytes> = description
        .members
        .iter()
        .map(|it| &it.assignment)
        .collect();
    assert!(assignments.iter().all(|assignment| assignment.len() == 2));
    assert_eq!(broker.groups.delete("g"), Err(GroupError::NonEmptyGroup));
    assert_eq!(broker.groups.delete("unknown"), Ok(()));
    assert_eq!(
        broker.groups.undeletable_topics("g"),
        Ok(["orders".to_owned()].into())
    );
    broker.join(request(&leader));
    let description = broker.groups.describe("g").unwrap();
    assert_eq!(description.protocol, "");
    assert!(
        description
            .members
            .iter()
            .all(|it| it.assignment.is_empty() && it.metadata.is_empty())
    );
}

#[test]
fn a_group_of_something_else_than_consumers_protects_all_its_offsets() {
    let mut broker = Broker::new(settings());
    let connect = JoinRequest {
        protocol_type: "connect".to_owned(),
        ..request("")
    };
    let joined = broker.joined(connect).unwrap();
    assert_eq!(
        broker.groups.undeletable_topics("g"),
        Err(GroupError::NonEmptyGroup)
    );
    let sync = SyncRequest {
        protocol_type: None,
        ..sync_request(&joined.member, 1, &[])
    };
    broker.synced(sync).unwrap();
    assert_eq!(broker.state(), GroupState::Stable);
    assert_eq!(broker.topic_use(), TopicUse::Any);
}

#[test]
fn a_group_uses_what_any_of_its_members_subscribes_to() {
    let broker = pair_with(subscription(&["clicks", "views"]));
    let topics = ["clicks", "orders", "views"].map(str::to_owned);
    assert_eq!(broker.topic_use(), TopicUse::Only(topics.into()));
}

#[test]
fn a_group_uses_any_topic_when_what_one_member_subscribes_to_cannot_be_read() {
    let cut_short = subscription(&["clicks"]).slice(..8);
    assert_eq!(pair_with(cut_short).topic_use(), TopicUse::Any);
    assert_eq!(pair_with(Bytes::new()).topic_use(), TopicUse::Any);
}

#[test]
fn what_a_group_uses_depends_on_subscriptions_and_on_when_it_became_empty() {
    let mut broker = Broker::new(settings());
    assert_eq!(broker.topic_use(), TopicUse::Unknown);
    let joined = broker.joined(request("")).unwrap();
    assert_eq!(
        broker.topic_use(),
        TopicUse::Any,
        "someone who subscribes to more may still join"
    );
    broker.synced(sync_request(&joined.member, 1, &[])).unwrap();
    let orders = ["orders".to_owned()].into();
    assert_eq!(broker.topic_use(), TopicUse::Only(orders));
    let leaving = LeavingMember {
        member: joined.member,
        instance: None,
    };
    broker.groups.leave(broker.now, "g", &[leaving]);
    broker.at(30.0);
    let since = TopicUse::EmptyFor(Duration::from_secs(30));
    assert_eq!(broker.topic_use(), since);
    let idle = |seconds| {
        broker
            .groups
            .idle_for(broker.now, Duration::from_secs(seconds))
    };
    assert!(idle(31).is_empty());
    assert!(idle(30).contains("g"));
    broker.groups.forget_idle(|group| group == "g");
    assert_eq!(broker.groups.describe("g"), None);
}

#[test]
fn a_broker_that_gives_up_its_groups_answers_everyone_who_waits() {
    let mut broker = Broker::new(settings());
    let (leader, _) = broker.stable_pair();
    let (ticket, _) = broker.join(request(&leader));
    let effects = broker.groups.resign(|group| group == "g");
    assert_eq!(
        join_error(join_answer(&effects, ticket).unwrap()),
        GroupError::NotCoordinator
    );
    assert_eq!(broker.groups.describe("g"), None);
    assert_eq!(broker.groups.next_deadline(), None);
}
