//! The custom resources of Palisade (group `palisade.dev`, version `v1alpha1`).
//!
//! Each kind is a Rust type; the schema, the CEL rules with their messages, the printer columns and the defaults are derived from
//! it and written as YAML by [`yaml::write`] (`make crds`). [`guard`] runs the same rules again inside a reconciler, for objects
//! that were stored before a rule existed.

// The derive of the schemas repeats each type, with its visibility, inside a function, where `pub` reaches nobody.
#![allow(unreachable_pub)]
// Printer columns of one type look like duplicates to it.
#![allow(clippy::duplicated_attributes)]

mod acl;
mod cert_rotation;
mod common;
pub mod conditions;
pub mod guard;
mod quota;
mod schema;
mod secure_cluster;
mod secure_cluster_status;
mod topic;
mod units;
mod user;
pub mod yaml;

pub use acl::{
    Acl, AclOperation, AclPermission, AclPrincipal, AclResource, AclResourceType, AclRule, AclSpec,
    AclStatus, PatternType,
};
pub use cert_rotation::{
    CertRotation, CertRotationSpec, CertRotationStatus, RotationMode, RotationOnce, RotationPhase,
    RotationRun, RotationTarget, RotationTrigger,
};
pub use common::{
    AuthenticationType, CertificateStatus, ClusterRef, NameRef, QuotaLimits, ReclaimPolicy,
};
pub use conditions::{ConditionType, Reason};
pub use quota::{Quota, QuotaEntity, QuotaSpec, QuotaStatus};
pub use secure_cluster::{
    Audit, AuditSink, AuthoritySource, Authorization, AwsKmsProvider, BrokerTemplate,
    BrokerTemplateMetadata, BrokerTemplateSpec, Brokers, CertificateAuthority, Certificates,
    Defaults, KeyAlgorithm, KeyProvider, Listener, ListenerLimits, ListenerType, LogEncryption,
    Resources, SecureCluster, SecureClusterSpec, Storage, VaultProvider, VolumeEncryption,
    VolumeEncryptionMode,
};
pub use secure_cluster_status::{
    AuthoritiesStatus, AuthorityStatus, BrokerObservation, CheckResult, ChecklistEntry,
    EndpointObservation, ListenerStatus, SecureClusterStatus,
};
pub use topic::{Topic, TopicSpec, TopicStatus};
pub use units::{Period, Schedule, Size, UnitError};
pub use user::{
    Authentication, AwsSecretRef, Credentials, GeneratePassword, KerberosAuthentication,
    OAuthBearerAuthentication, PasswordFrom, SecretKeyRef, User, UserSpec, UserStatus,
    VaultSecretRef,
};

/// API group of every kind.
pub const GROUP: &str = "palisade.dev";
/// API version of every kind.
pub const VERSION: &str = "v1alpha1";
/// Annotation that stops reconciliation of the object that carries it while its value is `"true"`.
pub const PAUSED_ANNOTATION: &str = "palisade.dev/paused";
