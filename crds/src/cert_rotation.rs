//! CertRotation: when and how certificates are replaced.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterRef, Schedule, schema};

/// A rotation of certificates of a SecureCluster.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "palisade.dev",
    version = "v1alpha1",
    kind = "CertRotation",
    plural = "certrotations",
    namespaced,
    status = "CertRotationStatus",
    derive = "PartialEq",
    shortname = "krot",
    category = "palisade",
    doc = "A rotation of certificates of a SecureCluster, once or on a schedule. Trust in the new is distributed before anything uses it; nothing restarts.",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name",
        description = "SecureCluster it belongs to"
    ),
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".spec.target",
        description = "What is replaced"
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "Whether the key is replaced too"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the rotation is"
    ),
    printcolumn(
        name = "Last",
        type_ = "date",
        json_path = ".status.lastRun.completedAt",
        description = "When the last run ended"
    ),
    printcolumn(
        name = "Next",
        type_ = "string",
        json_path = ".status.nextRun",
        description = "When the next run begins",
        priority = "1"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CertRotationSpec {
    /// The SecureCluster whose certificates are replaced; immutable.
    #[x_kube(validation = ("self == oldSelf", "clusterRef is immutable: create a CertRotation for the other cluster"))]
    pub cluster_ref: ClusterRef,
    /// What is replaced; immutable. `UserLeaves`, `LogEncryptionKey`, `VolumeKey`, `Credentials` and `Everything` are refused in this version.
    #[x_kube(
        validation = ("self in ['BrokerLeaves', 'ClusterAuthority', 'ClientsAuthority']", "this target is not available in this version: write BrokerLeaves, ClusterAuthority or ClientsAuthority"),
        validation = ("self == oldSelf", "target is immutable: create another CertRotation")
    )]
    pub target: RotationTarget,
    /// Whether the new certificate keeps the key.
    #[serde(default)]
    pub mode: RotationMode,
    /// When it happens: exactly one of `once`, `schedule` and `at`.
    pub trigger: RotationTrigger,
    /// Why, in a few words; it is recorded with the rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = (schema::NO_CONTROL_RULE, "reason must not contain control characters such as line breaks: write it on one line"))]
    pub reason: Option<String>,
}

/// What a rotation replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RotationTarget {
    /// The authority of the brokers' certificates, and every broker certificate with it.
    ClusterAuthority,
    /// The authority of client certificates, and every client certificate with it.
    ClientsAuthority,
    /// The brokers' certificates.
    BrokerLeaves,
    /// Client certificates of Users.
    UserLeaves,
    /// The key-encryption key of the sealed log.
    LogEncryptionKey,
    /// The key of encrypted volumes.
    VolumeKey,
    /// Passwords of Users.
    Credentials,
    /// All of them, in order.
    Everything,
}

/// Whether a new certificate keeps the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RotationMode {
    /// A new certificate for the same key.
    Renew,
    /// A new key as well.
    #[default]
    ReplaceKey,
}

/// When a rotation happens: exactly one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.once), has(self.schedule), has(self.at)].filter(given, given).size() == 1", "write exactly one of once: {}, schedule (five cron fields) and at (RFC 3339)"),
    validation = ("!has(self.once) || has(oldSelf.once)", "another trigger cannot become once: create another CertRotation")
)]
pub struct RotationTrigger {
    /// Now, one time: `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<RotationOnce>,
    /// Again and again: five cron fields in UTC, such as `0 3 1 1 *` for 1 January at 03:00.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// One time, not before this moment (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(
        pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])$"
    ))]
    pub at: Option<Time>,
}

/// The rotation happens one time, as soon as the object exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct RotationOnce {}

/// Where a rotation is. Every phase is entered only after what it waits for was observed, so that it can be resumed in any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RotationPhase {
    /// Its time has not come.
    #[default]
    Waiting,
    /// The new authority exists and trust in old and new is being distributed.
    DistributingTrust,
    /// Leaves of the new authority, or new leaves, are being issued and loaded.
    IssuingLeaves,
    /// Trust in the old authority is being withdrawn.
    WithdrawingTrust,
    /// It is done.
    Completed,
    /// It cannot go on; the Ready condition says what to do.
    Failed,
}

/// One run of a rotation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationRun {
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// SHA-256 fingerprint of the authority certificate before; absent for leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_fingerprint: Option<String>,
    /// SHA-256 fingerprint of the authority certificate after; absent for leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_fingerprint: Option<String>,
    /// Why, as the spec said when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What was observed of a CertRotation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertRotationStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Synced and ReconciliationPaused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where the rotation is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RotationPhase>,
    /// What the phase waits for, such as `2 of 3 brokers trust the new authority`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// The run that goes on now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_run: Option<RotationRun>,
    /// The last run that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RotationRun>,
    /// Runs that ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_runs: Option<i64>,
    /// When the next run begins; absent when none will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run: Option<Time>,
}
