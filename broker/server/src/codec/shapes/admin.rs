//! Requests of administrators: topics, configs, access, quotas, credentials, groups from outside.

use super::{
    Kind::{self, Array, Blob, Fixed, Optional, Str, Struct},
    all, since, until,
};

pub(super) const DESCRIBE_GROUPS: Kind = Struct(
    &[
        all("groups", Array(&Str)),
        since(3, "include_authorized_operations", Fixed(1)),
    ],
    &[],
);

pub(super) const LIST_GROUPS: Kind = Struct(
    &[
        since(4, "states_filter", Array(&Str)),
        since(5, "types_filter", Array(&Str)),
    ],
    &[],
);

pub(super) const CREATE_TOPICS: Kind = Struct(
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

pub(super) const DELETE_TOPICS: Kind = Struct(
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

pub(super) const DELETE_RECORDS: Kind = Struct(
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

pub(super) const DESCRIBE_ACLS: Kind = Struct(
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

pub(super) const CREATE_ACLS: Kind = Struct(
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

pub(super) const DELETE_ACLS: Kind = Struct(
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

pub(super) const DESCRIBE_CONFIGS: Kind = Struct(
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

pub(super) const ALTER_CONFIGS: Kind = Struct(
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

pub(super) const DESCRIBE_LOG_DIRS: Kind = Struct(
    &[all(
        "topics",
        Array(&Struct(
            &[all("topic", Str), all("partitions", Array(&Fixed(4)))],
            &[],
        )),
    )],
    &[],
);

pub(super) const CREATE_PARTITIONS: Kind = Struct(
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

pub(super) const DELETE_GROUPS: Kind = Struct(&[all("groups_names", Array(&Str))], &[]);

pub(super) const ELECT_LEADERS: Kind = Struct(
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

pub(super) const INCREMENTAL_ALTER_CONFIGS: Kind = Struct(
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

pub(super) const LIST_PARTITION_REASSIGNMENTS: Kind = Struct(
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

pub(super) const OFFSET_DELETE: Kind = Struct(
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

pub(super) const DESCRIBE_CLIENT_QUOTAS: Kind = Struct(
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

pub(super) const ALTER_CLIENT_QUOTAS: Kind = Struct(
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

pub(super) const DESCRIBE_USER_SCRAM_CREDENTIALS: Kind = Struct(
    &[all("users", Array(&Struct(&[all("name", Str)], &[])))],
    &[],
);

pub(super) const ALTER_USER_SCRAM_CREDENTIALS: Kind = Struct(
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

pub(super) const DESCRIBE_CLUSTER: Kind = Struct(
    &[
        all("include_cluster_authorized_operations", Fixed(1)),
        since(1, "endpoint_type", Fixed(1)),
        since(2, "include_fenced_brokers", Fixed(1)),
    ],
    &[],
);

pub(super) const DESCRIBE_PRODUCERS: Kind = Struct(
    &[all(
        "topics",
        Array(&Struct(
            &[all("name", Str), all("partition_indexes", Array(&Fixed(4)))],
            &[],
        )),
    )],
    &[],
);

pub(super) const UNREGISTER_BROKER: Kind = Struct(&[all("broker_id", Fixed(4))], &[]);

pub(super) const LIST_CONFIG_RESOURCES: Kind =
    Struct(&[since(1, "resource_types", Array(&Fixed(1)))], &[]);

pub(super) const DESCRIBE_TOPIC_PARTITIONS: Kind = Struct(
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

pub(super) const DESCRIBE_QUORUM: Kind = Struct(
    &[all(
        "topics",
        Array(&Struct(
            &[
                all("topic_name", Str),
                all(
                    "partitions",
                    Array(&Struct(&[all("partition_index", Fixed(4))], &[])),
                ),
            ],
            &[],
        )),
    )],
    &[],
);
