//! ElectLeaders (43): leadership goes back to the preferred replicas, as `kafka-leader-election` asks (KIP-460).
//!
//! A partition is led by the leader of its shard, so that giving one back gives back all partitions of the shard. Palisade does so by itself after a few seconds;
//! this does it now. There is no unclean election: a replica that lacks what was acknowledged never leads.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use kafka_protocol::messages::{
    ElectLeadersRequest, ElectLeadersResponse, TopicName,
    elect_leaders_response::{PartitionResult, ReplicaElectionResult},
};
use palisade_log::{PartitionIndex, ShardId};
use palisade_metadata::Image;
use palisade_security::acl::Operation;

use super::Context;
use crate::{cluster::Election, kafka_error::KafkaError};

const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// The shards of a topic's partitions that were asked for; `None` for those that do not exist.
type Asked = Vec<(TopicName, Vec<(i32, Option<ShardId>)>)>;

pub(crate) async fn handle(ctx: &Context, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let refuse = |error: KafkaError| {
        let code = ctx.code(error);
        let response = ElectLeadersResponse::default();
        match ctx.version {
            // Version 0 has no place for it.
            0 => response,
            _ => response.with_error_code(code),
        }
    };
    if !ctx.allows_cluster(Operation::Alter) {
        return refuse(KafkaError::ClusterAuthorizationFailed);
    }
    if ![PREFERRED, UNCLEAN].contains(&request.election_type) {
        return refuse(KafkaError::InvalidRequest);
    }
    // Without a list every partition is meant, and those that need no election are left out of the answer (KIP-460).
    let all = request.topic_partitions.is_none();
    let asked = asked(&ctx.image, request.topic_partitions);
    let shards: BTreeSet<ShardId> = asked
        .iter()
        .flat_map(|(_, partitions)| partitions.iter().filter_map(|(_, shard)| *shard))
        .collect();
    let elections = shards.into_iter().map(|shard| async move {
        let outcome = match request.election_type {
            PREFERRED => preferred(ctx, shard).await,
            _ => unclean(ctx, shard),
        };
        (shard, outcome)
    });
    let elections: BTreeMap<ShardId, Outcome> = join_all(elections).await.into_iter().collect();
    let result = |(index, shard): (i32, Option<ShardId>)| {
        let outcome = match shard.and_then(|shard| elections.get(&shard)) {
            Some(outcome) => outcome.clone(),
            None => Err((
                KafkaError::UnknownTopicOrPartition,
                "the partition does not exist".to_owned(),
            )),
        };
        let result = PartitionResult::default().with_partition_id(index);
        match outcome {
            Ok(()) => Some(result),
            Err((KafkaError::ElectionNotNeeded, _)) if all => None,
            Err((error, message)) => Some(
                result
                    .with_error_code(ctx.code(error))
                    .with_error_message(Some(message.into())),
            ),
        }
    };
    let results = asked.into_iter().filter_map(|(topic, partitions)| {
        let partitions: Vec<PartitionResult> = partitions.into_iter().filter_map(result).collect();
        (!all || !partitions.is_empty()).then(|| {
            ReplicaElectionResult::default()
                .with_topic(topic)
                .with_partition_result(partitions)
        })
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}

fn asked(
    image: &Image,
    wanted: Option<Vec<kafka_protocol::messages::elect_leaders_request::TopicPartitions>>,
) -> Asked {
    let Some(wanted) = wanted else {
        let topics = image.topics.iter().map(|topic| {
            let shards = (0..).zip(topic.partitions.iter().map(|shard| Some(*shard)));
            (TopicName(topic.name.clone().into()), shards.collect())
        });
        return topics.collect();
    };
    let topics = wanted.into_iter().map(|one| {
        let topic = image.topics.by_name(&one.topic);
        let shard = |index: &i32| topic?.shard(PartitionIndex(*index));
        let partitions = one.partitions.iter().map(|index| (*index, shard(index)));
        (one.topic.clone(), partitions.collect())
    });
    topics.collect()
}

/// Elected, or the code and sentence that say why not.
type Outcome = Result<(), (KafkaError, String)>;

async fn preferred(ctx: &Context, shard: ShardId) -> Outcome {
    let broker = &ctx.broker;
    match broker.cluster.elect_preferred(&broker.data, shard).await {
        Election::Done => Ok(()),
        Election::NotNeeded => Err((
            KafkaError::ElectionNotNeeded,
            "the preferred replica leads".to_owned(),
        )),
        Election::Unavailable(reason) => Err((KafkaError::PreferredLeaderNotAvailable, reason)),
    }
}

fn unclean(ctx: &Context, shard: ShardId) -> Outcome {
    Err(match ctx.broker.cluster.leader(shard) {
        Some(_) => (
            KafkaError::ElectionNotNeeded,
            "the partition has a leader".to_owned(),
        ),
        None => (
            KafkaError::EligibleLeadersNotAvailable,
            "a majority of the replicas is needed: one of the others may lack acknowledged records"
                .to_owned(),
        ),
    })
}
