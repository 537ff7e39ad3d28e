use std::time::Duration;

use bytes::Bytes;
use palisade_coordinator::group::Membership;

use super::*;

const SHARD: ShardId = ShardId(7);
const GROUP: &str = "readers";

/// A runtime that has just taken up the groups of the shard, in this term.
fn loaded(term: u64) -> (Arc<GroupRuntime>, Seat) {
    let runtime = Arc::new(GroupRuntime::new(GroupSettings::default()));
    let seat = Seat { shard: SHARD, term };
    runtime.load(seat, |_| Some(SHARD), Vec::new);
    (runtime, seat)
}

fn join() -> JoinRequest {
    JoinRequest {
        group: GROUP.to_owned(),
        member: String::new(),
        instance: None,
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout: Duration::from_secs(30),
        rebalance_timeout: Duration::from_secs(30),
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), Bytes::new())],
        require_known_member: true,
        can_skip_assignment: true,
        fresh_id: uuid::Uuid::nil(),
    }
}

fn member() -> Membership {
    Membership {
        group: GROUP.to_owned(),
        member: "client-1".to_owned(),
        instance: None,
        generation: 1,
    }
}

/// What a new member, one that syncs, one that shows that it is alive, and one that leaves are told.
async fn answers(runtime: &GroupRuntime, seat: Seat) -> [Option<GroupError>; 4] {
    let sync = SyncRequest {
        from: member(),
        protocol_type: None,
        protocol: None,
        assignments: Vec::new(),
    };
    [
        runtime
            .join(seat, join())
            .await
            .err()
            .map(|failure| failure.error),
        runtime.sync(seat, sync).await.err(),
        runtime
            .ask(seat, |groups, now| groups.heartbeat(now, &member()))
            .err(),
        runtime
            .ask_with_effects(seat, |groups, now| groups.leave(now, GROUP, &[]))
            .err(),
    ]
}

const COORDINATED: [Option<GroupError>; 4] = [
    Some(GroupError::MemberIdRequired),
    Some(GroupError::UnknownMemberId),
    Some(GroupError::UnknownMemberId),
    None,
];
const ELSEWHERE: [Option<GroupError>; 4] = [Some(GroupError::NotCoordinator); 4];

#[tokio::test]
async fn whoever_was_let_in_before_the_groups_moved_is_sent_to_their_coordinator() {
    let (runtime, seat) = loaded(3);
    assert_eq!(answers(&runtime, seat).await, COORDINATED);
    runtime.unload(|_| None, |_| Some(SHARD));
    assert_eq!(answers(&runtime, seat).await, ELSEWHERE);
    assert!(runtime.with(|groups, _| groups.list().next().is_none()));
    assert!(runtime.waiting.lock().is_empty());
}

#[tokio::test]
async fn groups_that_are_loaded_again_in_a_later_term_serve_whoever_saw_the_earlier_one() {
    let (runtime, seat) = loaded(3);
    let later = Seat { term: 4, ..seat };
    assert_eq!(answers(&runtime, later).await, ELSEWHERE);
    runtime.load(later, |_| Some(SHARD), Vec::new);
    assert_eq!(answers(&runtime, seat).await, COORDINATED);
}

#[tokio::test]
async fn whoever_was_let_in_before_the_broker_stopped_is_sent_to_their_coordinator() {
    let (runtime, seat) = loaded(3);
    let stopping = CancellationToken::new();
    stopping.cancel();
    Arc::clone(&runtime).run(stopping).await;
    assert_eq!(answers(&runtime, seat).await, ELSEWHERE);
    assert!(runtime.waiting.lock().is_empty());
}
