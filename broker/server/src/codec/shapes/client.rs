//! Requests of producers and consumers.

use super::{
    Kind::{self, Array, Blob, Fixed, Str, Struct},
    all, between, since, until,
};

pub(super) const PRODUCE: Kind = Struct(
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

pub(super) const FETCH: Kind = Struct(
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

pub(super) const LIST_OFFSETS: Kind = Struct(
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

pub(super) const METADATA: Kind = Struct(
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

pub(super) const OFFSET_COMMIT: Kind = Struct(
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

pub(super) const OFFSET_FETCH: Kind = Struct(
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

pub(super) const FIND_COORDINATOR: Kind = Struct(
    &[
        until(3, "key", Str),
        since(1, "key_type", Fixed(1)),
        since(4, "coordinator_keys", Array(&Str)),
    ],
    &[],
);

pub(super) const JOIN_GROUP: Kind = Struct(
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

pub(super) const HEARTBEAT: Kind = Struct(
    &[
        all("group_id", Str),
        all("generation_id", Fixed(4)),
        all("member_id", Str),
        since(3, "group_instance_id", Str),
    ],
    &[],
);

pub(super) const LEAVE_GROUP: Kind = Struct(
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

pub(super) const SYNC_GROUP: Kind = Struct(
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

pub(super) const SASL_HANDSHAKE: Kind = Struct(&[all("mechanism", Str)], &[]);

pub(super) const API_VERSIONS: Kind = Struct(
    &[
        since(3, "client_software_name", Str),
        since(3, "client_software_version", Str),
    ],
    &[],
);

pub(super) const INIT_PRODUCER_ID: Kind = Struct(
    &[
        all("transactional_id", Str),
        all("transaction_timeout_ms", Fixed(4)),
        since(3, "producer_id", Fixed(8)),
        since(3, "producer_epoch", Fixed(2)),
    ],
    &[],
);

pub(super) const OFFSET_FOR_LEADER_EPOCH: Kind = Struct(
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

pub(super) const SASL_AUTHENTICATE: Kind = Struct(&[all("auth_bytes", Blob)], &[]);
