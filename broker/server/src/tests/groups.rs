//! Groups outlive the memory of their coordinator.

use std::time::{Duration, Instant};

use kafka_protocol::{
    messages::{
        DeleteGroupsRequest, DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest,
        LeaveGroupRequest, ListGroupsRequest, SyncGroupRequest,
        describe_groups_response::DescribedGroup, join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity, sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};
use tokio::time::sleep;

use super::*;

const ILLEGAL_GENERATION: i16 = 22;
const UNKNOWN_MEMBER_ID: i16 = 25;
const MEMBER_ID_REQUIRED: i16 = 79;
const NOT_COORDINATOR: i16 = 16;
const NON_EMPTY_GROUP: i16 = 68;

fn group() -> GroupId {
    GroupId("g".into())
}

/// Becomes the only member of the group, generation 1, and is assigned `mine`. Its id.
async fn join_alone(client: &mut Client) -> StrBytes {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name("range".into())
        .with_metadata("topics".into());
    let join = JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(60_000)
        .with_rebalance_timeout_ms(60_000)
        .with_protocol_type("consumer".into())
        .with_protocols(vec![protocol]);
    let told = client.call(ApiKey::JoinGroup, 9, &join).await;
    assert_eq!(told.error_code, MEMBER_ID_REQUIRED);
    let join = join.with_member_id(told.member_id);
    let joined = client.call(ApiKey::JoinGroup, 9, &join).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(joined.member_id.clone())
        .with_assignment("mine".into());
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(1)
        .with_member_id(joined.member_id.clone())
        .with_assignments(vec![assignment]);
    let synced = client.call(ApiKey::SyncGroup, 5, &sync).await;
    assert_eq!(
        (synced.error_code, &synced.assignment[..]),
        (0, &b"mine"[..])
    );
    joined.member_id
}

/// What a heartbeat is told, as soon as somebody coordinates the group.
async fn heartbeat(client: &mut Client, member: &StrBytes, generation: i32) -> i16 {
    let request = HeartbeatRequest::default()
        .with_group_id(group())
        .with_generation_id(generation)
        .with_member_id(member.clone());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = client.call(ApiKey::Heartbeat, 4, &request).await;
        if answer.error_code != NOT_COORDINATOR {
            return answer.error_code;
        }
        assert!(Instant::now() < deadline, "nobody coordinates the group");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn describe(client: &mut Client) -> DescribedGroup {
    let request = DescribeGroupsRequest::default().with_groups(vec![group()]);
    let mut answer = client.call(ApiKey::DescribeGroups, 5, &request).await;
    answer.groups.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn members_go_on_in_their_generation_after_a_restart() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    let member = join_alone(&mut client).await;
    drop(client);

    let broker = broker.restart().await;
    let mut client = broker.admin().await;
    assert_eq!(heartbeat(&mut client, &member, 1).await, 0);
    assert_eq!(heartbeat(&mut client, &member, 2).await, ILLEGAL_GENERATION);
    let described = describe(&mut client).await;
    assert_eq!(&*described.group_state, "Stable");
    assert_eq!(&*described.protocol_data, "range");
    assert_eq!(described.members.len(), 1);
    assert_eq!(described.members[0].member_id, member);
    assert_eq!(&described.members[0].member_metadata[..], b"topics");
    assert_eq!(&described.members[0].member_assignment[..], b"mine");
    // It has committed nothing, and is there all the same.
    let list = ListGroupsRequest::default();
    let listed = client.call(ApiKey::ListGroups, 4, &list).await.groups;
    assert_eq!(listed.len(), 1);
    assert_eq!(&*listed[0].group_state, "Stable");
    let delete = DeleteGroupsRequest::default().with_groups_names(vec![group()]);
    let refused = client.call(ApiKey::DeleteGroups, 2, &delete).await;
    assert_eq!(refused.results[0].error_code, NON_EMPTY_GROUP);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_members_that_have_gone() {
    let broker = TestBroker::start().await;
    let mut client = broker.admin().await;
    let member = join_alone(&mut client).await;
    let data = || &broker.running.state().broker.data;
    let is_kept = || data().read_offsets("g", |store| store.contains("g"));
    assert!(is_kept().unwrap());
    let leaving = MemberIdentity::default().with_member_id(member.clone());
    let leave = LeaveGroupRequest::default()
        .with_group_id(group())
        .with_members(vec![leaving]);
    let left = client.call(ApiKey::LeaveGroup, 5, &leave).await;
    assert_eq!((left.error_code, left.members[0].error_code), (0, 0));
    let deadline = Instant::now() + Duration::from_secs(30);
    while is_kept().unwrap() {
        assert!(Instant::now() < deadline, "the group's record stays");
        sleep(Duration::from_millis(20)).await;
    }
    drop(client);

    let broker = broker.restart().await;
    let mut client = broker.admin().await;
    assert_eq!(heartbeat(&mut client, &member, 1).await, UNKNOWN_MEMBER_ID);
    assert_eq!(&*describe(&mut client).await.group_state, "Dead");
}
