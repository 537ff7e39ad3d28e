//! Condition types and reasons, all of them, so that no status carries a reason that this file does not list.

use std::fmt;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Declares an enum whose variants print as their names, with the meaning of each beside it.
macro_rules! names {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$inner])* $variant,)* }

        impl $name {
            /// Every value, in the order of this file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name as a status spells it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// The types of condition.
    ConditionType {
        /// The object is in effect as its spec says; on every kind.
        Ready,
        /// The brokers hold what the spec says; on User, Acl, Quota, Topic and CertRotation.
        Synced,
        /// A change of the spec is on its way; on SecureCluster.
        Progressing,
        /// Something does not work as it should; on SecureCluster.
        Degraded,
        /// Every broker serves a certificate that is valid and not due; on SecureCluster.
        CertificatesValid,
        /// Every check of `status.checklist` passes; on SecureCluster.
        SecurityCompliant,
        /// The annotation `palisade.dev/paused` holds reconciliation; on every kind.
        ReconciliationPaused,
    }
}

names! {
    /// Why a condition has its status.
    Reason {
        /// The brokers reported the wanted state.
        Observed,
        /// Brokers serve clients.
        BrokersReady,
        /// Pods are starting, or a broker does not serve clients yet.
        BrokersStarting,
        /// No broker answered on its admin port.
        BrokersUnreachable,
        /// A broker reports a problem: its message is in the condition.
        BrokerProblem,
        /// A change is being applied.
        Applying,
        /// A broker has not loaded the current configuration yet.
        ConfigurationPending,
        /// A broker has not loaded the current certificate yet.
        CertificatesPending,
        /// Every certificate is valid and not yet due for renewal.
        CertificatesCurrent,
        /// A certificate is due for renewal or past its end.
        CertificateDue,
        /// A broker that is to leave gives everything to the others, or was told to stay after all.
        Draining,
        /// A broker that had nothing left was removed.
        BrokerRemoved,
        /// Brokers cannot be removed as the spec asks: why is in the condition.
        ScaleDownRefused,
        /// Nothing is on its way.
        Settled,
        /// Every check passes.
        ChecksPassed,
        /// At least one check fails.
        ChecksFailed,
        /// The spec contradicts itself or asks for what this version does not do.
        InvalidSpec,
        /// The SecureCluster that `clusterRef` names does not exist.
        ClusterNotFound,
        /// The SecureCluster exists and is not ready yet.
        ClusterNotReady,
        /// The SecureCluster is being deleted.
        ClusterDeleting,
        /// The SecureCluster does not list this namespace in `spec.allowedNamespaces`.
        NamespaceNotAllowed,
        /// No listener of the cluster offers the authentication that this User needs.
        NoListenerForAuthentication,
        /// The User that `userRef` names does not exist.
        UserNotFound,
        /// A Secret that the spec names does not exist.
        SecretNotFound,
        /// A Secret lacks a key, or what it holds cannot be used.
        SecretInvalid,
        /// A Secret of that name exists and belongs to something else.
        SecretConflict,
        /// Another object declares the same thing for the same cluster.
        Conflict,
        /// The brokers hold what the spec says.
        Synced,
        /// A broker refused a change: its message is in the condition.
        BrokerRefused,
        /// What the brokers held differed from the spec and was put right.
        DriftCorrected,
        /// The credential is refused by `spec.suspended`.
        Suspended,
        /// What the spec asks for cannot be done to a topic that exists.
        TopicChangeRefused,
        /// A rotation waits for its time.
        RotationScheduled,
        /// A rotation is running.
        RotationInProgress,
        /// The last rotation ended well.
        RotationCompleted,
        /// The last rotation could not go on: what to do is in the condition.
        RotationFailed,
        /// The annotation `palisade.dev/paused` is `"true"`.
        Paused,
        /// The annotation `palisade.dev/paused` is absent or not `"true"`.
        NotPaused,
        /// The object is being deleted.
        Deleting,
        /// An error of the API server or the network; it is tried again.
        Retrying,
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It could not be observed.
    Unknown,
}

impl ConditionStatus {
    /// The name as a status spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// The longest message of a condition, in bytes (the API convention's limit).
const MAX_MESSAGE: usize = 32_768;

/// Sets one condition in a list kept in the order of its types; the time of transition moves only when the status changes, so that
/// setting what already stands leaves the list equal.
pub fn set(
    conditions: &mut Vec<Condition>,
    condition: ConditionType,
    status: impl Into<ConditionStatus>,
    reason: Reason,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = status.into().as_str();
    let mut message = message.into();
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    let kept = conditions
        .iter()
        .find(|held| held.type_ == condition.as_str() && held.status == status)
        .map(|held| held.last_transition_time.clone());
    conditions.retain(|held| held.type_ != condition.as_str());
    conditions.push(Condition {
        last_transition_time: kept.unwrap_or(Time(now)),
        message,
        observed_generation: generation,
        reason: reason.as_str().to_owned(),
        status: status.to_owned(),
        type_: condition.as_str().to_owned(),
    });
    conditions.sort_by_key(|held| {
        ConditionType::ALL
            .iter()
            .position(|known| known.as_str() == held.type_)
    });
}

/// Whether a condition is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], condition: ConditionType) -> bool {
    conditions
        .iter()
        .any(|held| held.type_ == condition.as_str() && held.status == "True")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_time_of_transition_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            ConditionType::Ready,
            false,
            Reason::BrokersStarting,
            "waiting for events-0",
            Some(1),
            at(10),
        );
        set(
            &mut conditions,
            ConditionType::Ready,
            false,
            Reason::BrokerProblem,
            "disk full",
            Some(2),
            at(20),
        );
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
        assert_eq!(
            (
                conditions[0].reason.as_str(),
                conditions[0].observed_generation
            ),
            ("BrokerProblem", Some(2))
        );
        set(
            &mut conditions,
            ConditionType::Ready,
            true,
            Reason::BrokersReady,
            "",
            Some(2),
            at(30),
        );
        assert_eq!(conditions[0].last_transition_time, Time(at(30)));
        assert!(is_true(&conditions, ConditionType::Ready));
    }

    #[test]
    fn setting_what_stands_changes_nothing_whatever_the_order() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            ConditionType::Degraded,
            false,
            Reason::Settled,
            "",
            Some(1),
            at(10),
        );
        set(
            &mut conditions,
            ConditionType::Ready,
            true,
            Reason::BrokersReady,
            "",
            Some(1),
            at(10),
        );
        let before = conditions.clone();
        set(
            &mut conditions,
            ConditionType::Degraded,
            false,
            Reason::Settled,
            "",
            Some(1),
            at(99),
        );
        assert_eq!(conditions, before);
    }
}
