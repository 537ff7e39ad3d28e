//! Fetch (1): reads batches, waiting for them if there are too few. They are opened while the answer is sent.
//!
//! There are no fetch sessions (KIP-227): the answer has session id 0, which tells the client to name all its partitions each time.
//!
//! A consumer may read from any replica (KIP-392), which serves what has been applied there; the leader sends one that names its rack to a replica in that
//! rack.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FetchResponse,
    fetch_request::{FetchPartition, FetchTopic},
    fetch_response::{FetchableTopicResponse, PartitionData},
};
use palisade_data::{Access, Fetched, Isolation, SealedRecords};
use palisade_log::{Offset, PartitionIndex, TopicId};
use palisade_metadata::Topic;
use palisade_security::{
    acl::{Operation, ResourceType},
    quota::QuotaKey,
};
use tokio::time::Instant;

use super::Context;
use crate::{
    codec::{Records, Source},
    kafka_error::{KafkaError, of_data},
};

/// First version that names topics by id.
const BY_ID: i16 = 13;
/// First version whose clients may be sent to another replica than the leader.
const ANY_REPLICA: i16 = 11;
/// Most record bytes of one answer, whatever the client asks for; Kafka's `fetch.max.bytes`.
const MAX_ANSWER_BYTES: usize = 55 << 20;
/// Longest wait, whatever the client asks for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A partition that is asked for, resolved once; the log is read again after every wait.
struct Wanted {
    partition: i32,
    target: Result<Target, KafkaError>,
}

struct Target {
    topic: TopicId,
    index: PartitionIndex,
    offset: Offset,
    max_bytes: usize,
    /// This broker leads the partition.
    leading: bool,
    /// A replica that is nearer to the client.
    nearer: Option<i32>,
}

/// What was found of a partition.
struct Read {
    records: Option<SealedRecords>,
    start: Offset,
    end: Offset,
    stable: Offset,
}

impl Read {
    fn bytes(&self) -> usize {
        self.records.as_ref().map_or(0, SealedRecords::len)
    }
}

impl Source for SealedRecords {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
        self.open_next(out).map_err(|error| error.to_string())
    }
}

/// One pass over the partitions.
struct Pass {
    results: Vec<Result<Read, KafkaError>>,
    bytes: usize,
    /// Waiting would bring nothing: something is to be said at once.
    is_final: bool,
}

pub(crate) async fn handle(
    ctx: &Context,
    request: FetchRequest,
) -> (FetchResponse, Vec<Option<Records>>) {
    let follower = request.replica_id.0 >= 0 || request.replica_state.replica_id.0 >= 0;
    if request.session_id != 0 {
        let response = FetchResponse::default();
        let code = ctx.code(KafkaError::FetchSessionIdNotFound);
        return (response.with_error_code(code), Vec::new());
    }
    let rack = request.rack_id.clone();
    let isolation = if request.isolation_level == 1 {
        Isolation::ReadCommitted
    } else {
        Isolation::ReadUncommitted
    };
    let mut seen = HashSet::new();
    let topics: Vec<(FetchTopic, Vec<Wanted>)> = request
        .topics
        .into_iter()
        .map(|mut asked| {
            let name = (asked.topic.clone(), asked.topic_id);
            // As Kafka's brokers, which keep what a client wants by partition.
            asked
                .partitions
                .retain(|partition| seen.insert((name.clone(), partition.partition)));
            let topic = if follower {
                Err(KafkaError::TopicAuthorizationFailed)
            } else {
                find(ctx, &asked)
            };
            let wanted = asked
                .partitions
                .iter()
                .map(|partition| Wanted {
                    partition: partition.partition,
                    target: topic.and_then(|topic| target(ctx, topic, partition, &rack)),
                })
                .collect();
            (asked, wanted)
        })
        .collect();
    let wanted: Vec<&Wanted> = topics.iter().flat_map(|(_, wanted)| wanted).collect();
    let limit = usize::try_from(request.max_bytes)
        .unwrap_or(0)
        .min(affordable(ctx))
        .clamp(1, MAX_ANSWER_BYTES);
    let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0).min(limit);
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(MAX_WAIT);
    let mut pass = read(ctx, &wanted, limit, isolation);
    if !wait.is_zero() {
        let deadline = Instant::now() + wait;
        let positions: Vec<_> = wanted
            .iter()
            .filter_map(|wanted| wanted.target.as_ref().ok())
            .map(|target| (target.topic, target.index, target.offset))
            .collect();
        let followed =
            |wanted: &&Wanted| wanted.target.as_ref().is_ok_and(|target| !target.leading);
        let access = if wanted.iter().any(followed) {
            Access::Replica
        } else {
            Access::Leader
        };
        // Once: what the limits of single partitions keep back is not there after another wait either.
        if pass.bytes < min_bytes && !pass.is_final {
            ctx.broker
                .data
                .wait_for_data_by(access, &positions, min_bytes, deadline)
                .await;
            pass = read(ctx, &wanted, limit, isolation);
        }
    }
    if charge(ctx, pass.bytes) {
        // The client has to wait before it may have this: Kafka answers it with nothing, and it asks again.
        return (FetchResponse::default(), Vec::new());
    }
    ctx.broker.metrics.fetch_bytes.inc_by(pass.bytes as u64);
    let mut results = pass.results.into_iter();
    let mut records = Vec::with_capacity(results.len());
    let responses = topics
        .into_iter()
        .map(|(asked, wanted)| {
            let partitions = wanted
                .iter()
                .zip(results.by_ref())
                .map(|(wanted, result)| {
                    let (partition, found) = answer(ctx, wanted, result, isolation);
                    records.push(found);
                    partition
                })
                .collect();
            FetchableTopicResponse::default()
                .with_topic(asked.topic)
                .with_topic_id(asked.topic_id)
                .with_partitions(partitions)
        })
        .collect();
    let response = FetchResponse::default().with_responses(responses);
    if records.iter().all(Option::is_none) {
        records.clear();
    }
    (response, records)
}

fn find<'a>(ctx: &'a Context, asked: &FetchTopic) -> Result<&'a Topic, KafkaError> {
    if ctx.version < BY_ID {
        return ctx
            .topic(Operation::Read, &asked.topic)
            .map(|topic| &**topic);
    }
    let topic = ctx
        .image
        .topics
        .get(TopicId(asked.topic_id))
        .ok_or(KafkaError::UnknownTopicId)?;
    if ctx.allows(Operation::Read, ResourceType::Topic, &topic.name) {
        Ok(topic)
    } else {
        Err(KafkaError::TopicAuthorizationFailed)
    }
}

fn target(
    ctx: &Context,
    topic: &Topic,
    asked: &FetchPartition,
    rack: &str,
) -> Result<Target, KafkaError> {
    let index = ctx.partition(topic, asked.partition)?;
    let leading = ctx.broker.data.leader_epoch(topic.id, index).is_some();
    if leading || ctx.version < ANY_REPLICA {
        ctx.check_epoch(topic, index, asked.current_leader_epoch)?;
    } else {
        ctx.check_epoch_of_leader(topic, index, asked.current_leader_epoch)?;
    }
    Ok(Target {
        topic: topic.id,
        index,
        offset: Offset(asked.fetch_offset),
        max_bytes: usize::try_from(asked.partition_max_bytes).unwrap_or(0),
        leading,
        nearer: (leading && !rack.is_empty())
            .then(|| nearer(ctx, topic, index, rack))
            .flatten(),
    })
}

/// A replica in the client's rack that has all that the leader has committed; none when the leader is there itself.
fn nearer(ctx: &Context, topic: &Topic, index: PartitionIndex, rack: &str) -> Option<i32> {
    let in_rack = |broker: i32| {
        let broker = ctx.image.brokers.get(&broker);
        broker.is_some_and(|broker| broker.rack.as_deref() == Some(rack))
    };
    if in_rack(ctx.broker.node_id) {
        return None;
    }
    let shard = topic.shard(index)?;
    let status = ctx.broker.data.shard_status(shard)?;
    let (_, alive) = ctx.broker.cluster.replicas(ctx.image.shards.get(&shard)?);
    let up_to_date = |broker: i32| {
        status
            .matched
            .iter()
            .any(|(node, matched)| node.broker() == broker && *matched >= status.committed)
    };
    alive
        .into_iter()
        .find(|broker| in_rack(*broker) && up_to_date(*broker))
}

/// Reads each partition within the limits; a first batch larger than them is sent alone, so that a consumer gets on (KIP-74).
fn read(ctx: &Context, wanted: &[&Wanted], limit: usize, isolation: Isolation) -> Pass {
    let mut pass = Pass {
        results: Vec::with_capacity(wanted.len()),
        bytes: 0,
        is_final: false,
    };
    for wanted in wanted {
        let left = limit.saturating_sub(pass.bytes);
        let result = match &wanted.target {
            Err(error) => Err(*error),
            // A client that has a nearer replica turns to it at once: it needs no records from here, and waits for none. Nor is a batch read that has no room.
            Ok(target) if target.nearer.is_some() || left == 0 => {
                pass.is_final |= target.nearer.is_some();
                let (data, topic, index) = (&ctx.broker.data, target.topic, target.index);
                let ends = match target.leading {
                    true => data.offsets_of(topic, index),
                    false => data.offsets_here(topic, index),
                };
                ends.map(|(start, end)| Read {
                    records: None,
                    start,
                    end,
                    stable: end,
                })
                .map_err(|error| of_data(&error))
            }
            Ok(target) => {
                let room = target.max_bytes.min(left);
                one(ctx, target, room, isolation).map(|fetched| {
                    let is_over = pass.bytes > 0 && fetched.records.len() > left;
                    let is_empty = fetched.records.is_empty();
                    Read {
                        records: (!is_over && !is_empty).then_some(fetched.records),
                        start: fetched.log_start_offset,
                        end: fetched.high_watermark,
                        stable: fetched.last_stable_offset,
                    }
                })
            }
        };
        match &result {
            Ok(read) => pass.bytes += read.bytes(),
            Err(_) => pass.is_final = true,
        }
        pass.results.push(result);
    }
    pass
}

fn one(
    ctx: &Context,
    target: &Target,
    room: usize,
    isolation: Isolation,
) -> Result<Fetched, KafkaError> {
    let (data, topic, index) = (&ctx.broker.data, target.topic, target.index);
    if target.leading {
        let fetched = data.fetch(topic, index, target.offset, room, isolation);
        return fetched.map_err(|error| of_data(&error));
    }
    data.fetch_replica(topic, index, target.offset, room, isolation)
        .map_err(|error| of_data(&error))
}

/// The answer for a partition, and its records apart.
fn answer(
    ctx: &Context,
    wanted: &Wanted,
    result: Result<Read, KafkaError>,
    isolation: Isolation,
) -> (PartitionData, Option<Records>) {
    let nearer = match &wanted.target {
        Ok(target) => target.nearer,
        Err(_) => None,
    };
    let data = PartitionData::default()
        .with_partition_index(wanted.partition)
        .with_preferred_read_replica(BrokerId(nearer.unwrap_or(-1)))
        .with_records(Some(Bytes::new()));
    match result {
        Ok(read) => {
            let data = data
                .with_high_watermark(read.end.0)
                .with_last_stable_offset(read.stable.0)
                .with_log_start_offset(read.start.0)
                .with_aborted_transactions((isolation == Isolation::ReadCommitted).then(Vec::new));
            let records = read.records.map(|records| Records {
                length: records.len(),
                source: Box::new(records),
            });
            (data, records)
        }
        Err(error) => {
            let data = data
                .with_error_code(ctx.code(error))
                .with_high_watermark(-1)
                .with_last_stable_offset(-1)
                .with_log_start_offset(-1)
                .with_aborted_transactions(None);
            (data, None)
        }
    }
}

/// Most bytes that the client may have at once. More than its quota allows in a whole window would never be sent: it would be told to wait for it each time.
fn affordable(ctx: &Context) -> usize {
    let (quotas, set) = (&ctx.broker.quotas, &ctx.image.quotas);
    let window = ctx
        .client()
        .and_then(|client| quotas.window(set, client, QuotaKey::ConsumerByteRate));
    window.unwrap_or(usize::MAX)
}

/// Meters the answer; true when the client has to wait first, and then nothing is counted.
#[expect(clippy::cast_precision_loss, reason = "no answer has 2^52 bytes")]
fn charge(ctx: &Context, bytes: usize) -> bool {
    let Some(client) = ctx.client() else {
        return false;
    };
    let key = QuotaKey::ConsumerByteRate;
    let (quotas, set, amount) = (&ctx.broker.quotas, &ctx.image.quotas, bytes as f64);
    let owes_nothing = quotas.record(set, client, key, 0.0).is_zero();
    let wait = quotas.record(set, client, key, amount);
    if wait.is_zero() {
        return false;
    }
    ctx.broker.metrics.throttled(key.as_str(), wait);
    ctx.throttle(wait);
    // A single batch may be worth more than a whole window: the client gets it, and waits afterwards.
    if owes_nothing && bytes > affordable(ctx) {
        return false;
    }
    quotas.take_back(set, client, key, amount);
    true
}
