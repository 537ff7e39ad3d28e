//! The shape of every request that the broker accepts: field by field, what its bytes look like in each version.
//!
//! [`super::walk`] checks a request against its shape before the decoder sees it. The shapes follow Apache Kafka's message
//! definitions; the tests of `walk` compare them with the decoder on random input.

use kafka_protocol::messages::ApiKey;

use Kind::{Array, Blob, Fixed, Optional, Str, Struct};

/// What the bytes of one field look like.
#[derive(Debug)]
pub(super) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// A length and UTF-8 text.
    Str,
    /// A length and bytes.
    Blob,
    /// A length and so many elements.
    Array(&'static Kind),
    /// One byte that says whether the rest is there.
    Optional(&'static Kind),
    /// Fields in order, then (in flexible versions) tagged fields; the second list are the tags the decoder knows.
    Struct(&'static [Field], &'static [(u32, Field)]),
}

/// One field and the versions that have it.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) since: i16,
    pub(super) until: i16,
    pub(super) kind: Kind,
}

const fn all(name: &'static str, kind: Kind) -> Field {
    between(0, i16::MAX, name, kind)
}

const fn since(since: i16, name: &'static str, kind: Kind) -> Field {
    between(since, i16::MAX, name, kind)
}

const fn until(until: i16, name: &'static str, kind: Kind) -> Field {
    between(0, until, name, kind)
}

const fn between(since: i16, until: i16, name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        since,
        until,
        kind,
    }
}

/// The shape of a request, absent for one that the broker does not accept.
pub(super) fn shape(api: ApiKey) -> Option<&'static Kind> {
    Some(match api {
        ApiKey::Produce => &PRODUCE,
        ApiKey::Fetch => &FETCH,
        ApiKey::ListOffsets => &LIST_OFFSETS,
        ApiKey::Metadata => &METADATA,
        ApiKey::OffsetCommit => &OFFSET_COMMIT,
        ApiKey::OffsetFetch => &OFFSET_FETCH,
        ApiKey::FindCoordinator => &FIND_COORDINATOR,
        ApiKey::JoinGroup => &JOIN_GROUP,
        ApiKey::Heartbeat => &HEARTBEAT,
        ApiKey::LeaveGroup => &LEAVE_GROUP,
        ApiKey::SyncGroup => &SYNC_GROUP,
        ApiKey::DescribeGroups => &DESCRIBE_GROUPS,
        ApiKey::ListGroups => &LIST_GROUPS,
        ApiKey::SaslHandshake => &SASL_HANDSHAKE,
        ApiKey::ApiVersions => &API_VERSIONS,
        ApiKey::CreateTopics => &CREATE_TOPICS,
        ApiKey::DeleteTopics => &DELETE_TOPICS,
        ApiKey::DeleteRecords => &DELETE_RECORDS,
        ApiKey::InitProducerId => &INIT_PRODUCER_ID,
        ApiKey::OffsetForLeaderEpoch => &OFFSET_FOR_LEADER_EPOCH,
        ApiKey::DescribeAcls => &DESCRIBE_ACLS,
        ApiKey::CreateAcls => &CREATE_ACLS,
        ApiKey::DeleteAcls => &DELETE_ACLS,
        ApiKey::DescribeConfigs => &DESCRIBE_CONFIGS,
        ApiKey::AlterConfigs => &ALTER_CONFIGS,
        ApiKey::DescribeLogDirs => &DESCRIBE_LOG_DIRS,
        ApiKey::SaslAuthenticate => &SASL_AUTHENTICATE,
        ApiKey::CreatePartitions => &CREATE_PARTITIONS,
        ApiKey::DeleteGroups => &DELETE_GROUPS,
        ApiKey::ElectLeaders => &ELECT_LEADERS,
        ApiKey::IncrementalAlterConfigs => &INCREMENTAL_ALTER_CONFIGS,
        ApiKey::ListPartitionReassignments => &LIST_PARTITION_REASSIGNMENTS,
        ApiKey::OffsetDelete => &OFFSET_DELETE,
        ApiKey::DescribeClientQuotas => &DESCRIBE_CLIENT_QUOTAS,
        ApiKey::AlterClientQuotas => &ALTER_CLIENT_QUOTAS,
        ApiKey::DescribeUserScramCredentials => &DESCRIBE_USER_SCRAM_CREDENTIALS,
        ApiKey::AlterUserScramCredentials => &ALTER_USER_SCRAM_CREDENTIALS,
        ApiKey::DescribeCluster => &DESCRIBE_CLUSTER,
        ApiKey::DescribeProducers => &DESCRIBE_PRODUCERS,
        ApiKey::ListConfigResources => &LIST_CONFIG_RESOURCES,
        ApiKey::DescribeTopicPartitions => &DESCRIBE_TOPIC_PARTITIONS,
        _ => return None,
    })
}

const PRODUCE: Kind = Struct(
    &[
        all("transactional_id", Str),
        all("acks", Fixed(2)),
        all("timeout_ms", Fixed(4)),
        all(
            "topic_data",
            Array(&Struct(
                &[
                    until(12, "name", Str),
                    since(13, "topic_id", Fixed(16)),
                    all(
                        "partition_data",
                        Array(&Struct(
                            &[all("index", Fixed(4)), all("records", Blob)],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
    ],
    &[],
);
const FETCH: Kind = Struct(
    &[
        until(14, "replica_id", Fixed(4)),
        all("max_wait_ms", Fixed(4)),
        all("min_bytes", Fixed(4)),
        all("max_bytes", Fixed(4)),
        all("isolation_level", Fixed(1)),
        since(7, "session_id", Fixed(4)),
        since(7, "session_epoch", Fixed(4)),
        all(
            "topics",
            Array(&Struct(
                &[
                    until(12, "topic", Str),
                    since(13, "topic_id", Fixed(16)),
                    all(
                        "partitions",
                        Array(&Struct(
                            &[
                                all("partition", Fixed(4)),
                                since(9, "current_leader_epoch", Fixed(4)),
                                all("fetch_offset", Fixed(8)),
                                since(12, "last_fetched_epoch", Fixed(4)),
                                since(5, "log_start_offset", Fixed(8)),
                                all("partition_max_bytes", Fixed(4)),
                            ],
                            &[
                                (0, since(17, "replica_directory_id", Fixed(16))),
                                (1, since(18, "high_watermark", Fixed(8))),
                            ],
                        )),
                    ),
                ],
                &[],
            )),
        ),
        since(
            7,
            "forgotten_topics_data",
            Array(&Struct(
                &[
                    between(7, 12, "topic", Str),
                    since(13, "topic_id", Fixed(16)),
                    since(7, "partitions", Array(&Fixed(4))),
                ],
                &[],
            )),
        ),
        since(11, "rack_id", Str),
    ],
    &[
        (0, all("cluster_id", Str)),
        (
            1,
            since(
                15,
                "replica_state",
                Struct(
                    &[
                        since(15, "replica_id", Fixed(4)),
                        since(15, "replica_epoch", Fixed(8)),
                    ],
                    &[],
                ),
            ),
        ),
    ],
);
const LIST_OFFSETS: Kind = Struct(
    &[
        all("replica_id", Fixed(4)),
        since(2, "isolation_level", Fixed(1)),
        all(
            "topics",
            Array(&Struct(
                &[
                    all("name", Str),
                    all(
                        "partitions",
                        Array(&Struct(
                            &[
                                all("partition_index", Fixed(4)),
                                since(4, "current_leader_epoch", Fixed(4)),
                                all("timestamp", Fixed(8)),
                            ],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
        since(10, "timeout_ms", Fixed(4)),
    ],
    &[],
);
const METADATA: Kind = Struct(
    &[
        all(
            "topics",
            Array(&Struct(
                &[since(10, "topic_id", Fixed(16)), all("name", Str)],
                &[],
            )),
        ),
        since(4, "allow_auto_topic_creation", Fixed(1)),
        between(8, 10, "include_cluster_authorized_operations", Fixed(1)),
        since(8, "include_topic_authorized_operations", Fixed(1)),
    ],
    &[],
);
const OFFSET_COMMIT: Kind = Struct(
    &[
        all("group_id", Str),
        all("generation_id_or_member_epoch", Fixed(4)),
        all("member_id", Str),
        since(7, "group_instance_id", Str),
        until(4, "retention_time_ms", Fixed(8)),
        all(
            "topics",
            Array(&Struct(
                &[
                    all("name", Str),
                    all(
                        "partitions",
                        Array(&Struct(
                            &[
                                all("partition_index", Fixed(4)),
                                all("committed_offset", Fixed(8)),
                                since(6, "committed_leader_epoch", Fixed(4)),
                                all("committed_metadata", Str),
                            ],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
    ],
    &[],
);
const OFFSET_FETCH: Kind = Struct(
    &[
        until(7, "group_id", Str),
        until(
            7,
            "topics",
            Array(&Struct(
                &[
                    until(7, "name", Str),
                    until(7, "partition_indexes", Array(&Fixed(4))),
                ],
                &[],
            )),
        ),
        since(
            8,
            "groups",
            Array(&Struct(
                &[
                    since(8, "group_id", Str),
                    since(9, "member_id", Str),
                    since(9, "member_epoch", Fixed(4)),
                    since(
                        8,
                        "topics",
                        Array(&Struct(
                            &[
                                since(8, "name", Str),
                                since(8, "partition_indexes", Array(&Fixed(4))),
                            ],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
        since(7, "require_stable", Fixed(1)),
    ],
    &[],
);
const FIND_COORDINATOR: Kind = Struct(
    &[
        until(3, "key", Str),
        since(1, "key_type", Fixed(1)),
        since(4, "coordinator_keys", Array(&Str)),
    ],
    &[],
);
const JOIN_GROUP: Kind = Struct(
    &[
        all("group_id", Str),
        all("session_timeout_ms", Fixed(4)),
        since(1, "rebalance_timeout_ms", Fixed(4)),
        all("member_id", Str),
        since(5, "group_instance_id", Str),
        all("protocol_type", Str),
        all(
            "protocols",
            Array(&Struct(&[all("name", Str), all("metadata", Blob)], &[])),
        ),
        since(8, "reason", Str),
    ],
    &[],
);
const HEARTBEAT: Kind = Struct(
    &[
        all("group_id", Str),
        all("generation_id", Fixed(4)),
        all("member_id", Str),
        since(3, "group_instance_id", Str),
    ],
    &[],
);
const LEAVE_GROUP: Kind = Struct(
    &[
        all("group_id", Str),
        until(2, "member_id", Str),
        since(
            3,
            "members",
            Array(&Struct(
                &[
                    since(3, "member_id", Str),
                    since(3, "group_instance_id", Str),
                    since(5, "reason", Str),
                ],
                &[],
            )),
        ),
    ],
    &[],
);
const SYNC_GROUP: Kind = Struct(
    &[
        all("group_id", Str),
        all("generation_id", Fixed(4)),
        all("member_id", Str),
        since(3, "group_instance_id", Str),
        since(5, "protocol_type", Str),
        since(5, "protocol_name", Str),
        all(
            "assignments",
            Array(&Struct(
                &[all("member_id", Str), all("assignment", Blob)],
                &[],
            )),
        ),
    ],
    &[],
);
const DESCRIBE_GROUPS: Kind = Struct(
    &[
        all("groups", Array(&Str)),
        since(3, "include_authorized_operations", Fixed(1)),
    ],
    &[],
);
const LIST_GROUPS: Kind = Struct(
    &[
        since(4, "states_filter", Array(&Str)),
        since(5, "types_filter", Array(&Str)),
    ],
    &[],
);
const SASL_HANDSHAKE: Kind = Struct(&[all("mechanism", Str)], &[]);
const API_VERSIONS: Kind = Struct(
    &[
        since(3, "client_software_name", Str),
        since(3, "client_software_version", Str),
    ],
    &[],
);
const CREATE_TOPICS: Kind = Struct(
    &[
        all(
            "topics",
            Array(&Struct(
                &[
                    all("name", Str),
                    all("num_partitions", Fixed(4)),
                    all("replication_factor", Fixed(2)),
                    all(
                        "assignments",
                        Array(&Struct(
                            &[
                                all("partition_index", Fixed(4)),
                                all("broker_ids", Array(&Fixed(4))),
                            ],
                            &[],
                        )),
                    ),
                    all(
                        "configs",
                        Array(&Struct(&[all("name", Str), all("value", Str)], &[])),
                    ),
                ],
                &[],
            )),
        ),
        all("timeout_ms", Fixed(4)),
        all("validate_only", Fixed(1)),
    ],
    &[],
);
const DELETE_TOPICS: Kind = Struct(
    &[
        since(
            6,
            "topics",
            Array(&Struct(
                &[since(6, "name", Str), since(6, "topic_id", Fixed(16))],
                &[],
            )),
        ),
        until(5, "topic_names", Array(&Str)),
        all("timeout_ms", Fixed(4)),
    ],
    &[],
);
const DELETE_RECORDS: Kind = Struct(
    &[
        all(
            "topics",
            Array(&Struct(
                &[
                    all("name", Str),
                    all(
                        "partitions",
                        Array(&Struct(
                            &[all("partition_index", Fixed(4)), all("offset", Fixed(8))],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
        all("timeout_ms", Fixed(4)),
    ],
    &[],
);
const INIT_PRODUCER_ID: Kind = Struct(
    &[
        all("transactional_id", Str),
        all("transaction_timeout_ms", Fixed(4)),
        since(3, "producer_id", Fixed(8)),
        since(3, "producer_epoch", Fixed(2)),
    ],
    &[],
);
const OFFSET_FOR_LEADER_EPOCH: Kind = Struct(
    &[
        since(3, "replica_id", Fixed(4)),
        all(
            "topics",
            Array(&Struct(
                &[
                    all("topic", Str),
                    all(
                        "partitions",
                        Array(&Struct(
                            &[
                                all("partition", Fixed(4)),
                                all("current_leader_epoch", Fixed(4)),
                                all("leader_epoch", Fixed(4)),
                            ],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
    ],
    &[],
);
const DESCRIBE_ACLS: Kind = Struct(
    &[
        all("resource_type_filter", Fixed(1)),
        all("resource_name_filter", Str),
        all("pattern_type_filter", Fixed(1)),
        all("principal_filter", Str),
        all("host_filter", Str),
        all("operation", Fixed(1)),
        all("permission_type", Fixed(1)),
    ],
    &[],
);
const CREATE_ACLS: Kind = Struct(
    &[all(
        "creations",
        Array(&Struct(
            &[
                all("resource_type", Fixed(1)),
                all("resource_name", Str),
                all("resource_pattern_type", Fixed(1)),
                all("principal", Str),
                all("host", Str),
                all("operation", Fixed(1)),
                all("permission_type", Fixed(1)),
            ],
            &[],
        )),
    )],
    &[],
);
const DELETE_ACLS: Kind = Struct(
    &[all(
        "filters",
        Array(&Struct(
            &[
                all("resource_type_filter", Fixed(1)),
                all("resource_name_filter", Str),
                all("pattern_type_filter", Fixed(1)),
                all("principal_filter", Str),
                all("host_filter", Str),
                all("operation", Fixed(1)),
                all("permission_type", Fixed(1)),
            ],
            &[],
        )),
    )],
    &[],
);
const DESCRIBE_CONFIGS: Kind = Struct(
    &[
        all(
            "resources",
            Array(&Struct(
                &[
                    all("resource_type", Fixed(1)),
                    all("resource_name", Str),
                    all("configuration_keys", Array(&Str)),
                ],
                &[],
            )),
        ),
        all("include_synonyms", Fixed(1)),
        since(3, "include_documentation", Fixed(1)),
    ],
    &[],
);
const ALTER_CONFIGS: Kind = Struct(
    &[
        all(
            "resources",
            Array(&Struct(
                &[
                    all("resource_type", Fixed(1)),
                    all("resource_name", Str),
                    all(
                        "configs",
                        Array(&Struct(&[all("name", Str), all("value", Str)], &[])),
                    ),
                ],
                &[],
            )),
        ),
        all("validate_only", Fixed(1)),
    ],
    &[],
);
const DESCRIBE_LOG_DIRS: Kind = Struct(
    &[all(
        "topics",
        Array(&Struct(
            &[all("topic", Str), all("partitions", Array(&Fixed(4)))],
            &[],
        )),
    )],
    &[],
);
const SASL_AUTHENTICATE: Kind = Struct(&[all("auth_bytes", Blob)], &[]);
const CREATE_PARTITIONS: Kind = Struct(
    &[
        all(
            "topics",
            Array(&Struct(
                &[
                    all("name", Str),
                    all("count", Fixed(4)),
                    all(
                        "assignments",
                        Array(&Struct(&[all("broker_ids", Array(&Fixed(4)))], &[])),
                    ),
                ],
                &[],
            )),
        ),
        all("timeout_ms", Fixed(4)),
        all("validate_only", Fixed(1)),
    ],
    &[],
);
const DELETE_GROUPS: Kind = Struct(&[all("groups_names", Array(&Str))], &[]);
const ELECT_LEADERS: Kind = Struct(
    &[
        since(1, "election_type", Fixed(1)),
        all(
            "topic_partitions",
            Array(&Struct(
                &[all("topic", Str), all("partitions", Array(&Fixed(4)))],
                &[],
            )),
        ),
        all("timeout_ms", Fixed(4)),
    ],
    &[],
);
const INCREMENTAL_ALTER_CONFIGS: Kind = Struct(
    &[
        all(
            "resources",
            Array(&Struct(
                &[
                    all("resource_type", Fixed(1)),
                    all("resource_name", Str),
                    all(
                        "configs",
                        Array(&Struct(
                            &[
                                all("name", Str),
                                all("config_operation", Fixed(1)),
                                all("value", Str),
                            ],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
        all("validate_only", Fixed(1)),
    ],
    &[],
);
const LIST_PARTITION_REASSIGNMENTS: Kind = Struct(
    &[
        all("timeout_ms", Fixed(4)),
        all(
            "topics",
            Array(&Struct(
                &[all("name", Str), all("partition_indexes", Array(&Fixed(4)))],
                &[],
            )),
        ),
    ],
    &[],
);
const OFFSET_DELETE: Kind = Struct(
    &[
        all("group_id", Str),
        all(
            "topics",
            Array(&Struct(
                &[
                    all("name", Str),
                    all(
                        "partitions",
                        Array(&Struct(&[all("partition_index", Fixed(4))], &[])),
                    ),
                ],
                &[],
            )),
        ),
    ],
    &[],
);
const DESCRIBE_CLIENT_QUOTAS: Kind = Struct(
    &[
        all(
            "components",
            Array(&Struct(
                &[
                    all("entity_type", Str),
                    all("match_type", Fixed(1)),
                    all("match", Str),
                ],
                &[],
            )),
        ),
        all("strict", Fixed(1)),
    ],
    &[],
);
const ALTER_CLIENT_QUOTAS: Kind = Struct(
    &[
        all(
            "entries",
            Array(&Struct(
                &[
                    all(
                        "entity",
                        Array(&Struct(
                            &[all("entity_type", Str), all("entity_name", Str)],
                            &[],
                        )),
                    ),
                    all(
                        "ops",
                        Array(&Struct(
                            &[
                                all("key", Str),
                                all("value", Fixed(8)),
                                all("remove", Fixed(1)),
                            ],
                            &[],
                        )),
                    ),
                ],
                &[],
            )),
        ),
        all("validate_only", Fixed(1)),
    ],
    &[],
);
const DESCRIBE_USER_SCRAM_CREDENTIALS: Kind = Struct(
    &[all("users", Array(&Struct(&[all("name", Str)], &[])))],
    &[],
);
const ALTER_USER_SCRAM_CREDENTIALS: Kind = Struct(
    &[
        all(
            "deletions",
            Array(&Struct(
                &[all("name", Str), all("mechanism", Fixed(1))],
                &[],
            )),
        ),
        all(
            "upsertions",
            Array(&Struct(
                &[
                    all("name", Str),
                    all("mechanism", Fixed(1)),
                    all("iterations", Fixed(4)),
                    all("salt", Blob),
                    all("salted_password", Blob),
                ],
                &[],
            )),
        ),
    ],
    &[],
);
const DESCRIBE_CLUSTER: Kind = Struct(
    &[
        all("include_cluster_authorized_operations", Fixed(1)),
        since(1, "endpoint_type", Fixed(1)),
        since(2, "include_fenced_brokers", Fixed(1)),
    ],
    &[],
);
const DESCRIBE_PRODUCERS: Kind = Struct(
    &[all(
        "topics",
        Array(&Struct(
            &[all("name", Str), all("partition_indexes", Array(&Fixed(4)))],
            &[],
        )),
    )],
    &[],
);
const LIST_CONFIG_RESOURCES: Kind = Struct(&[since(1, "resource_types", Array(&Fixed(1)))], &[]);
const DESCRIBE_TOPIC_PARTITIONS: Kind = Struct(
    &[
        all("topics", Array(&Struct(&[all("name", Str)], &[]))),
        all("response_partition_limit", Fixed(4)),
        all(
            "cursor",
            Optional(&Struct(
                &[all("topic_name", Str), all("partition_index", Fixed(4))],
                &[],
            )),
        ),
    ],
    &[],
);
