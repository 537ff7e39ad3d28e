//! Committed offsets: OffsetCommit (8), OffsetFetch (9), OffsetDelete (47).

use std::{
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};

use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse,
    offset_commit_request::OffsetCommitRequestPartition,
    offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
    offset_fetch_request::OffsetFetchRequestTopics,
    offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    },
};
use palisade_coordinator::{
    group::Membership,
    offsets::{
        CommittedOffset, MAX_METADATA_BYTES, NO_LEADER_EPOCH, OffsetCommand, OffsetStore,
        TopicPartition,
    },
};
use palisade_log::PartitionIndex;
use palisade_security::acl::{Operation, ResourceType};

use super::Context;
use crate::kafka_error::{KafkaError, of_data, of_group};

/// First version that asks for several groups at once (KIP-709).
const FETCH_MANY: i16 = 8;

/// Milliseconds of Unix time.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) async fn commit(ctx: &Context, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let group = request.group_id.to_string();
    let whole = may_commit(ctx, &request).err();
    let now = now_ms();
    let expires_at =
        (request.retention_time_ms >= 0).then(|| now.saturating_add(request.retention_time_ms));
    let mut offsets = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = match whole {
            Some(error) => Err(error),
            None => ctx.topic(Operation::Read, &asked.name),
        };
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for partition in &asked.partitions {
            let checked = topic.and_then(|topic| {
                let index = ctx.partition(topic, partition.partition_index)?;
                Ok((topic.id.0, index, committed(partition, now, expires_at)?))
            });
            let outcome = checked.map(|(topic, index, offset)| {
                let partition = TopicPartition {
                    topic,
                    partition: index.0,
                };
                offsets.push((partition, offset));
            });
            partitions.push((partition.partition_index, outcome));
        }
        topics.push((asked.name, partitions));
    }
    let stored = if offsets.is_empty() {
        Ok(0)
    } else {
        let command = OffsetCommand::Commit {
            group: group.clone(),
            offsets,
        };
        ctx.broker.data.apply_offsets(&group, command).await
    };
    let stored = stored.map_err(|error| coordinator(of_data(&error)));
    let topics = topics
        .into_iter()
        .map(|(name, partitions)| {
            let partitions = partitions
                .into_iter()
                .map(|(index, outcome)| {
                    let error = outcome.err().or(stored.err());
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(index)
                        .with_error_code(error.map_or(0, |error| ctx.code(error)))
                })
                .collect();
            OffsetCommitResponseTopic::default()
                .with_name(name)
                .with_partitions(partitions)
        })
        .collect();
    OffsetCommitResponse::default().with_topics(topics)
}

fn may_commit(ctx: &Context, request: &OffsetCommitRequest) -> Result<(), KafkaError> {
    let group = request.group_id.as_str();
    if !ctx.allows(Operation::Read, ResourceType::Group, group) {
        return Err(KafkaError::GroupAuthorizationFailed);
    }
    // The membership of a group that has moved is not known here any more.
    let seat = super::groups::seat(ctx, group)?;
    let from = Membership {
        group: group.to_owned(),
        member: request.member_id.to_string(),
        instance: request.group_instance_id.as_ref().map(ToString::to_string),
        generation: request.generation_id_or_member_epoch,
    };
    let groups = &ctx.broker.groups;
    groups
        .ask(seat, |groups, now| groups.check_commit(now, &from))
        .map_err(of_group)
}

fn committed(
    partition: &OffsetCommitRequestPartition,
    now: i64,
    expires_at: Option<i64>,
) -> Result<CommittedOffset, KafkaError> {
    let metadata = partition
        .committed_metadata
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    if metadata.len() > MAX_METADATA_BYTES {
        return Err(KafkaError::OffsetMetadataTooLarge);
    }
    Ok(CommittedOffset {
        offset: partition.committed_offset,
        leader_epoch: partition.committed_leader_epoch,
        metadata,
        committed_at: now,
        expires_at,
    })
}

/// A client asks for the coordinator again where a producer would ask for the partition's leader.
pub(super) fn coordinator(error: KafkaError) -> KafkaError {
    match error {
        KafkaError::NotLeaderOrFollower => KafkaError::NotCoordinator,
        KafkaError::KafkaStorageError | KafkaError::NotEnoughReplicas => {
            KafkaError::CoordinatorNotAvailable
        }
        error => error,
    }
}

/// One partition of an answer, before it takes the form of a version.
struct Found {
    index: i32,
    offset: Option<CommittedOffset>,
    error: Option<KafkaError>,
}

type FoundTopics = Vec<(kafka_protocol::messages::TopicName, Vec<Found>)>;

pub(crate) fn fetch(ctx: &Context, request: OffsetFetchRequest) -> OffsetFetchResponse {
    if ctx.version >= FETCH_MANY {
        let mut seen = HashSet::new();
        let groups = request
            .groups
            .into_iter()
            .filter(|asked| seen.insert(asked.group_id.clone()))
            .map(|asked| {
                let found = find(ctx, &asked.group_id, asked.topics);
                let group = OffsetFetchResponseGroup::default().with_group_id(asked.group_id);
                match found {
                    Err(error) => group.with_error_code(ctx.code(error)),
                    Ok(topics) => group.with_topics(many(ctx, topics)),
                }
            })
            .collect();
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let asked: Option<Vec<OffsetFetchRequestTopics>> = request.topics.map(|topics| {
        let topics = topics.into_iter();
        topics
            .map(|topic| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic.name)
                    .with_partition_indexes(topic.partition_indexes)
            })
            .collect()
    });
    let names = asked.clone().unwrap_or_default();
    match find(ctx, &request.group_id, asked) {
        Ok(topics) => OffsetFetchResponse::default().with_topics(single(ctx, topics)),
        Err(error) if ctx.version >= 2 => {
            OffsetFetchResponse::default().with_error_code(ctx.code(error))
        }
        // Version 1 has no error of its own: each partition carries it.
        Err(error) => {
            let failed = |index: &i32| Found {
                index: *index,
                offset: None,
                error: Some(error),
            };
            let topics = names
                .into_iter()
                .map(|topic| {
                    (
                        topic.name,
                        topic.partition_indexes.iter().map(failed).collect(),
                    )
                })
                .collect();
            OffsetFetchResponse::default().with_topics(single(ctx, topics))
        }
    }
}

fn find(
    ctx: &Context,
    group: &str,
    topics: Option<Vec<OffsetFetchRequestTopics>>,
) -> Result<FoundTopics, KafkaError> {
    if !ctx.allows(Operation::Describe, ResourceType::Group, group) {
        return Err(KafkaError::GroupAuthorizationFailed);
    }
    let read = |read: &mut dyn FnMut(&OffsetStore)| {
        let result = ctx.broker.data.read_offsets(group, |store| read(store));
        result.map_err(|error| coordinator(of_data(&error)))
    };
    let mut found: FoundTopics = Vec::new();
    match topics {
        None => {
            // Everything that is committed and may be seen.
            let mut all = Vec::new();
            read(&mut |store| {
                all = store
                    .of_group(group)
                    .map(|(partition, offset)| (*partition, offset.clone()))
                    .collect();
            })?;
            for (partition, offset) in all {
                let Some(topic) = ctx.image.topics.get(palisade_log::TopicId(partition.topic))
                else {
                    continue;
                };
                if !ctx.shows(Operation::Describe, ResourceType::Topic, &topic.name) {
                    continue;
                }
                let entry = Found {
                    index: partition.partition,
                    offset: Some(offset),
                    error: None,
                };
                // The store is sorted by topic, so partitions of one topic follow each other.
                match found.last_mut() {
                    Some((name, partitions)) if &***name == topic.name.as_str() => {
                        partitions.push(entry)
                    }
                    _ => {
                        let name = kafka_protocol::messages::TopicName(topic.name.clone().into());
                        found.push((name, vec![entry]));
                    }
                }
            }
        }
        Some(topics) => {
            for asked in topics {
                let topic = ctx.topic(Operation::Describe, &asked.name);
                let mut partitions = Vec::with_capacity(asked.partition_indexes.len());
                read(&mut |store| {
                    for index in &asked.partition_indexes {
                        partitions.push(match topic {
                            Err(KafkaError::TopicAuthorizationFailed) => Found {
                                index: *index,
                                offset: None,
                                error: Some(KafkaError::TopicAuthorizationFailed),
                            },
                            // A topic that is not there has no committed offset, which is no error.
                            Err(_) => Found {
                                index: *index,
                                offset: None,
                                error: None,
                            },
                            Ok(topic) => {
                                let partition = TopicPartition {
                                    topic: topic.id.0,
                                    partition: *index,
                                };
                                Found {
                                    index: *index,
                                    offset: store.get(group, partition).cloned(),
                                    error: None,
                                }
                            }
                        });
                    }
                })?;
                found.push((asked.name, partitions));
            }
        }
    }
    Ok(found)
}

fn many(ctx: &Context, topics: FoundTopics) -> Vec<OffsetFetchResponseTopics> {
    let partition = |found: Found| {
        let response = OffsetFetchResponsePartitions::default()
            .with_partition_index(found.index)
            .with_error_code(found.error.map_or(0, |error| ctx.code(error)));
        match found.offset {
            Some(offset) => response
                .with_committed_offset(offset.offset)
                .with_committed_leader_epoch(offset.leader_epoch)
                .with_metadata(Some(offset.metadata.into())),
            None => response
                .with_committed_offset(-1)
                .with_committed_leader_epoch(NO_LEADER_EPOCH)
                .with_metadata(Some("".into())),
        }
    };
    topics
        .into_iter()
        .map(|(name, partitions)| {
            OffsetFetchResponseTopics::default()
                .with_name(name)
                .with_partitions(partitions.into_iter().map(partition).collect())
        })
        .collect()
}

fn single(ctx: &Context, topics: FoundTopics) -> Vec<OffsetFetchResponseTopic> {
    let partition = |found: OffsetFetchResponsePartitions| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(found.partition_index)
            .with_committed_offset(found.committed_offset)
            .with_committed_leader_epoch(found.committed_leader_epoch)
            .with_metadata(found.metadata)
            .with_error_code(found.error_code)
    };
    many(ctx, topics)
        .into_iter()
        .map(|topic| {
            OffsetFetchResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(topic.partitions.into_iter().map(partition).collect())
        })
        .collect()
}

pub(crate) async fn delete(ctx: &Context, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = request.group_id.to_string();
    let failed = |error| OffsetDeleteResponse::default().with_error_code(ctx.code(error));
    if !ctx.allows(Operation::Delete, ResourceType::Group, &group) {
        return failed(KafkaError::GroupAuthorizationFailed);
    }
    let seat = match super::groups::seat(ctx, &group) {
        Ok(seat) => seat,
        Err(error) => return failed(error),
    };
    if !super::manage_groups::exists(ctx, &group) {
        return failed(KafkaError::GroupIdNotFound);
    }
    let in_use = match ctx
        .broker
        .groups
        .ask(seat, |groups, _| groups.undeletable_topics(&group))
    {
        Ok(topics) => topics,
        Err(error) => return failed(of_group(error)),
    };
    let mut doomed = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = ctx.topic(Operation::Read, &asked.name);
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for partition in &asked.partitions {
            let index = partition.partition_index;
            let checked = topic.and_then(|topic| {
                if in_use.contains(&topic.name) {
                    return Err(KafkaError::GroupSubscribedToTopic);
                }
                let index: PartitionIndex = ctx.partition(topic, index)?;
                doomed.push(TopicPartition {
                    topic: topic.id.0,
                    partition: index.0,
                });
                Ok(())
            });
            partitions.push(
                OffsetDeleteResponsePartition::default()
                    .with_partition_index(index)
                    .with_error_code(checked.err().map_or(0, |error| ctx.code(error))),
            );
        }
        topics.push(
            OffsetDeleteResponseTopic::default()
                .with_name(asked.name)
                .with_partitions(partitions),
        );
    }
    if !doomed.is_empty() {
        let command = OffsetCommand::Delete {
            group: group.clone(),
            partitions: doomed,
        };
        if let Err(error) = ctx.broker.data.apply_offsets(&group, command).await {
            return failed(coordinator(of_data(&error)));
        }
    }
    OffsetDeleteResponse::default().with_topics(topics)
}
