//! Kafka's APIs, one file each or a few that belong together: what each checks, does and answers.

mod acls;
pub(crate) mod api_versions;
mod change_topics;
mod client_quotas;
mod cluster;
mod configs;
mod context;
mod create_topics;
mod delete_records;
mod describe_topic_partitions;
mod draining;
mod elect_leaders;
mod fetch;
mod find_coordinator;
mod groups;
mod list_offsets;
mod manage_groups;
mod metadata;
mod offset_for_leader_epoch;
pub(crate) mod offsets;
mod produce;
mod producers;
mod quorum;
mod scram_credentials;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use kafka_protocol::messages::{RequestKind, ResponseKind};
use palisade_security::quota::QuotaKey;
use tracing::error;

pub(crate) use context::Context;

use crate::{
    broker::Broker,
    codec::{self, Records, Request, versions},
    kafka_error::KafkaError,
    metrics::ByApi,
    net::Reply,
    session::Session,
};

/// Answers one request: runs its handler, meters it, and encodes the answer.
pub(crate) async fn serve(broker: Arc<Broker>, session: Arc<Session>, request: Request) -> Reply {
    let Request {
        api,
        version,
        correlation_id,
        client_id,
        body,
    } = request;
    let started = Instant::now();
    let no_answer = matches!(&body, RequestKind::Produce(produce) if produce.acks == 0);
    let ctx = Context::new(broker, session, client_id, api, version);
    let (outcome, busy) = timed(dispatch(&ctx, body)).await;
    let labels = ByApi {
        api: versions::name(api),
    };
    let metrics = &ctx.broker.metrics;
    metrics.requests.get_or_create(&labels).inc();
    metrics
        .request_seconds
        .get_or_create(&labels)
        .observe(started.elapsed().as_secs_f64());
    charge_time(&ctx, busy);

    let mute = ctx.wait();
    let Some(Answer {
        mut body,
        failed,
        records,
    }) = outcome
    else {
        return closing(format!("no handler for {api:?}"));
    };
    if no_answer {
        // Nobody waits for an answer, so a failure can only be told by closing the connection, as Kafka does.
        let close = failed.then(|| "a produce request with acks=0 failed".to_owned());
        return Reply {
            body: None,
            mute,
            close,
        };
    }
    set_throttle(&mut body, mute);
    let encoded = match body {
        ResponseKind::Fetch(response) if !records.is_empty() => {
            codec::encode_fetch(version, correlation_id, response, records)
        }
        body => codec::encode_response(api, version, correlation_id, &body).map(Into::into),
    };
    match encoded {
        Ok(body) => Reply {
            body: Some(body),
            mute,
            close: None,
        },
        Err(error) => {
            error!(%error, "a defect of the broker");
            closing(error.to_string())
        }
    }
}

fn closing(reason: String) -> Reply {
    Reply {
        close: Some(reason),
        ..Reply::default()
    }
}

/// A handler's answer.
struct Answer {
    body: ResponseKind,
    /// Something in a produce request was refused.
    failed: bool,
    /// What a fetch found, of each partition that it answers; nothing when it found nothing.
    records: Vec<Option<Records>>,
}

impl From<ResponseKind> for Answer {
    fn from(body: ResponseKind) -> Self {
        Self {
            body,
            failed: false,
            records: Vec::new(),
        }
    }
}

/// Runs a future and says how long it kept a thread busy; waiting does not count.
async fn timed<F: Future>(future: F) -> (F::Output, Duration) {
    let mut future = pin!(future);
    let mut busy = Duration::ZERO;
    let output = poll_fn(|context| {
        let began = Instant::now();
        let polled = future.as_mut().poll(context);
        busy += began.elapsed();
        polled
    })
    .await;
    (output, busy)
}

/// Meters the time of request threads (KIP-124): 100 % is one thread all the time.
fn charge_time(ctx: &Context, busy: Duration) {
    if let Some(client) = ctx.client() {
        let percent_seconds = busy.as_secs_f64() * 100.0;
        let key = QuotaKey::RequestPercentage;
        let wait = ctx
            .broker
            .quotas
            .record(&ctx.image.quotas, client, key, percent_seconds);
        ctx.broker.metrics.throttled(key.as_str(), wait);
        ctx.throttle(wait);
    }
}

/// Meters partitions that are created or deleted (KIP-599); `strict` for versions whose clients can be told to come back.
fn mutation(
    ctx: &Context,
    partitions: u32,
    strict: bool,
) -> Result<(), (KafkaError, Option<String>)> {
    let Some(client) = ctx.client() else {
        return Ok(());
    };
    let outcome = ctx
        .broker
        .quotas
        .mutate(&ctx.image.quotas, client, partitions, strict);
    let (Ok(wait) | Err(wait)) = outcome;
    ctx.broker
        .metrics
        .throttled(QuotaKey::ControllerMutationRate.as_str(), wait);
    ctx.throttle(wait);
    match outcome {
        Ok(_) => Ok(()),
        Err(_) => Err((KafkaError::ThrottlingQuotaExceeded, None)),
    }
}

async fn dispatch(ctx: &Context, body: RequestKind) -> Option<Answer> {
    use RequestKind as Q;
    use ResponseKind as A;
    let body = match body {
        Q::Produce(request) => {
            let produced = produce::handle(ctx, request).await;
            return Some(Answer {
                failed: produced.failed,
                ..A::Produce(produced.response).into()
            });
        }
        Q::Fetch(request) => {
            let (response, records) = fetch::handle(ctx, request).await;
            return Some(Answer {
                records,
                ..A::Fetch(response).into()
            });
        }
        Q::ListOffsets(request) => A::ListOffsets(list_offsets::handle(ctx, request)),
        Q::Metadata(request) => A::Metadata(metadata::handle(ctx, &request)),
        Q::OffsetCommit(request) => A::OffsetCommit(offsets::commit(ctx, request).await),
        Q::OffsetFetch(request) => A::OffsetFetch(offsets::fetch(ctx, request)),
        Q::OffsetDelete(request) => A::OffsetDelete(offsets::delete(ctx, request).await),
        Q::FindCoordinator(request) => A::FindCoordinator(find_coordinator::handle(ctx, request)),
        Q::JoinGroup(request) => A::JoinGroup(groups::join(ctx, request).await),
        Q::SyncGroup(request) => A::SyncGroup(groups::sync(ctx, request).await),
        Q::Heartbeat(request) => A::Heartbeat(groups::heartbeat(ctx, &request)),
        Q::LeaveGroup(request) => A::LeaveGroup(groups::leave(ctx, request)),
        Q::DescribeGroups(request) => A::DescribeGroups(manage_groups::describe(ctx, &request)),
        Q::ListGroups(request) => A::ListGroups(manage_groups::list(ctx, &request)),
        Q::DeleteGroups(request) => A::DeleteGroups(manage_groups::delete(ctx, request).await),
        Q::ApiVersions(request) => A::ApiVersions(api_versions::answer(&request, ctx.version)),
        Q::CreateTopics(request) => A::CreateTopics(create_topics::handle(ctx, request).await),
        Q::DeleteTopics(request) => A::DeleteTopics(change_topics::delete(ctx, request).await),
        Q::CreatePartitions(request) => {
            A::CreatePartitions(change_topics::create_partitions(ctx, request).await)
        }
        Q::DeleteRecords(request) => A::DeleteRecords(delete_records::handle(ctx, request).await),
        Q::InitProducerId(request) => A::InitProducerId(producers::init(ctx, &request).await),
        Q::DescribeProducers(request) => A::DescribeProducers(producers::describe(ctx, request)),
        Q::OffsetForLeaderEpoch(request) => {
            A::OffsetForLeaderEpoch(offset_for_leader_epoch::handle(ctx, request))
        }
        Q::DescribeAcls(request) => A::DescribeAcls(acls::describe(ctx, &request)),
        Q::CreateAcls(request) => A::CreateAcls(acls::create(ctx, request).await),
        Q::DeleteAcls(request) => A::DeleteAcls(acls::delete(ctx, request).await),
        Q::DescribeConfigs(request) => A::DescribeConfigs(configs::describe(ctx, &request)),
        Q::AlterConfigs(request) => A::AlterConfigs(configs::replace(ctx, request).await),
        Q::IncrementalAlterConfigs(request) => {
            A::IncrementalAlterConfigs(configs::incremental_alter(ctx, request).await)
        }
        Q::ListConfigResources(request) => A::ListConfigResources(configs::list(ctx, &request)),
        Q::DescribeClientQuotas(request) => {
            A::DescribeClientQuotas(client_quotas::describe(ctx, &request))
        }
        Q::AlterClientQuotas(request) => {
            A::AlterClientQuotas(client_quotas::alter(ctx, request).await)
        }
        Q::DescribeUserScramCredentials(request) => {
            A::DescribeUserScramCredentials(scram_credentials::describe(ctx, &request))
        }
        Q::AlterUserScramCredentials(request) => {
            A::AlterUserScramCredentials(scram_credentials::alter(ctx, request).await)
        }
        Q::DescribeCluster(request) => A::DescribeCluster(cluster::describe(ctx, &request)),
        Q::DescribeLogDirs(request) => A::DescribeLogDirs(cluster::log_dirs(ctx, &request)),
        Q::ElectLeaders(request) => A::ElectLeaders(elect_leaders::handle(ctx, request).await),
        Q::DescribeQuorum(request) => A::DescribeQuorum(quorum::describe(ctx, request).await),
        Q::ListPartitionReassignments(_) => {
            A::ListPartitionReassignments(cluster::list_reassignments(ctx))
        }
        Q::UnregisterBroker(request) => {
            A::UnregisterBroker(cluster::unregister(ctx, &request).await)
        }
        Q::DescribeTopicPartitions(request) => {
            A::DescribeTopicPartitions(describe_topic_partitions::handle(ctx, &request))
        }
        _ => return None,
    };
    Some(body.into())
}

/// Tells the client how long its connection is muted (KIP-219).
fn set_throttle(body: &mut ResponseKind, wait: Duration) {
    let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    macro_rules! set {
        ($($variant:ident),* $(,)?) => {
            match body {
                $(ResponseKind::$variant(response) => response.throttle_time_ms = millis,)*
                _ => {}
            }
        };
    }
    set!(
        Produce,
        Fetch,
        ListOffsets,
        Metadata,
        OffsetCommit,
        OffsetFetch,
        OffsetDelete,
        FindCoordinator,
        JoinGroup,
        SyncGroup,
        Heartbeat,
        LeaveGroup,
        DescribeGroups,
        ListGroups,
        DeleteGroups,
        ApiVersions,
        CreateTopics,
        DeleteTopics,
        CreatePartitions,
        DeleteRecords,
        InitProducerId,
        DescribeProducers,
        OffsetForLeaderEpoch,
        DescribeAcls,
        CreateAcls,
        DeleteAcls,
        DescribeConfigs,
        AlterConfigs,
        IncrementalAlterConfigs,
        ListConfigResources,
        DescribeClientQuotas,
        AlterClientQuotas,
        DescribeUserScramCredentials,
        AlterUserScramCredentials,
        DescribeCluster,
        DescribeLogDirs,
        ElectLeaders,
        ListPartitionReassignments,
        UnregisterBroker,
        DescribeTopicPartitions,
    );
}
