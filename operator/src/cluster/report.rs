//! Status of a cluster, from what was observed alone.

use k8s_openapi::{
    api::apps::v1::StatefulSet,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;
use palisade_crds::{
    AuthoritiesStatus, AuthorityStatus, BrokerObservation, CertificateStatus, CheckResult,
    ChecklistEntry, ConditionType, EndpointObservation, ListenerStatus, Reason, SecureCluster,
    SecureClusterStatus, conditions,
};
use time::OffsetDateTime;

use super::{
    Cluster,
    leaves::BrokerLeaf,
    observe::BrokerView,
    removal::Scaling,
    verdicts::{certificates, degradation, is_ready, progress, readiness},
};
use crate::{authorities::AuthorityRecord, kubernetes::names, pki::CertificateInfo};

/// What a status is made of.
pub struct Findings<'a> {
    /// The cluster as its spec says.
    pub cluster: &'a Cluster,
    /// What its brokers reported.
    pub brokers: &'a [BrokerView],
    /// The StatefulSet as the API server has it.
    pub stateful_set: Option<&'a StatefulSet>,
    /// The certificates that brokers should present.
    pub leaves: &'a [BrokerLeaf],
    /// The authority of brokers.
    pub cluster_authority: &'a AuthorityRecord,
    /// The authority of users.
    pub clients_authority: &'a AuthorityRecord,
    /// The security checklist.
    pub checklist: Vec<ChecklistEntry>,
    /// What the operator could not do, in words.
    pub problems: Vec<String>,
    /// What a rotation waits for.
    pub rotation: Option<String>,
    /// How far the removal of brokers is.
    pub scaling: Scaling,
    /// Now.
    pub now: Timestamp,
}

/// Time of a certificate, as a status carries it.
#[must_use]
pub fn as_time(time: OffsetDateTime) -> Time {
    Time(Timestamp::from_second(time.unix_timestamp()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// A certificate, as a status carries it.
#[must_use]
pub fn certificate_status(info: &CertificateInfo) -> CertificateStatus {
    CertificateStatus {
        serial: info.serial.clone(),
        fingerprint: info.fingerprint.clone(),
        not_before: as_time(info.not_before),
        not_after: as_time(info.not_after),
    }
}

/// The status of a cluster whose spec makes sense.
#[must_use]
pub fn status(object: &SecureCluster, findings: Findings<'_>) -> SecureClusterStatus {
    let cluster = findings.cluster;
    let generation = object.metadata.generation;
    let mut list = former(object);
    let mut set = |condition, holds: bool, reason, message: String| {
        conditions::set(
            &mut list,
            condition,
            holds,
            reason,
            message,
            generation,
            findings.now,
        );
    };
    let (ready, reason, message) = readiness(&findings);
    set(ConditionType::Ready, ready, reason, message);
    let (progressing, reason, message) = progress(&findings);
    set(ConditionType::Progressing, progressing, reason, message);
    let (degraded, reason, message) = degradation(&findings);
    set(ConditionType::Degraded, degraded, reason, message);
    let (valid, reason, message) = certificates(&findings);
    set(ConditionType::CertificatesValid, valid, reason, message);
    let failing: Vec<_> = findings
        .checklist
        .iter()
        .filter(|entry| entry.result != CheckResult::Pass)
        .map(|entry| entry.name.as_str())
        .collect();
    if failing.is_empty() {
        set(
            ConditionType::SecurityCompliant,
            true,
            Reason::ChecksPassed,
            format!("{} checks pass", findings.checklist.len()),
        );
    } else {
        set(
            ConditionType::SecurityCompliant,
            false,
            Reason::ChecksFailed,
            format!("see status.checklist: {}", failing.join(", ")),
        );
    }
    set(
        ConditionType::ReconciliationPaused,
        false,
        Reason::NotPaused,
        String::new(),
    );
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    SecureClusterStatus {
        observed_generation: generation,
        conditions: list,
        replicas: findings
            .stateful_set
            .and_then(|set| Some(set.status.as_ref()?.replicas))
            .unwrap_or_default(),
        ready_replicas: count(
            findings
                .brokers
                .iter()
                .filter(|broker| is_ready(broker))
                .count(),
        ),
        selector: Some(selector(&cluster.name)),
        cluster_id: findings
            .brokers
            .iter()
            .find_map(|broker| Some(broker.status.as_ref().ok()?.cluster_id.clone())),
        config_version: Some(cluster.config.version.clone()),
        listeners: cluster
            .listeners
            .iter()
            .map(|listener| ListenerStatus {
                name: listener.name.clone(),
                bootstrap_servers: cluster.bootstrap_servers(listener),
            })
            .collect(),
        brokers: findings.brokers.iter().map(observation).collect(),
        authorities: Some(AuthoritiesStatus {
            cluster: Some(authority(findings.cluster_authority)),
            clients: Some(authority(findings.clients_authority)),
        }),
        checklist: findings.checklist,
    }
}

/// The status of a cluster that cannot be reconciled, or must not be: what was observed last stands, with the reason.
#[must_use]
pub fn blocked(
    object: &SecureCluster,
    reason: Reason,
    message: &str,
    now: Timestamp,
) -> SecureClusterStatus {
    let generation = object.metadata.generation;
    let mut status = object.status.clone().unwrap_or_default();
    // Nobody has looked at the spec of a cluster that is paused.
    if reason != Reason::Paused {
        status.observed_generation = generation;
    }
    let mut set = |condition, holds: bool, reason, message: &str| {
        conditions::set(
            &mut status.conditions,
            condition,
            holds,
            reason,
            message,
            generation,
            now,
        );
    };
    if reason == Reason::Paused {
        set(ConditionType::ReconciliationPaused, true, reason, message);
    } else {
        set(ConditionType::Ready, false, reason, message);
        set(ConditionType::Degraded, true, reason, message);
        set(
            ConditionType::ReconciliationPaused,
            false,
            Reason::NotPaused,
            "",
        );
    }
    status
}

fn former(object: &SecureCluster) -> Vec<Condition> {
    object
        .status
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default()
}

fn selector(cluster: &str) -> String {
    names::broker_selector(cluster)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn observation(broker: &BrokerView) -> BrokerObservation {
    let status = match &broker.status {
        Ok(status) => status,
        Err(error) => {
            return BrokerObservation {
                pod: broker.pod.clone(),
                broker_id: None,
                rack: None,
                version: None,
                ready: false,
                config_version: None,
                kek_id: None,
                endpoints: Vec::new(),
                problems: vec![error.clone()],
            };
        }
    };
    BrokerObservation {
        pod: broker.pod.clone(),
        broker_id: Some(status.broker_id),
        rack: status.rack.clone(),
        version: Some(status.version.clone()),
        ready: status.ready,
        config_version: Some(status.config_version.clone()),
        kek_id: Some(status.kek_id.clone()),
        endpoints: status
            .certificates
            .iter()
            .map(|endpoint| EndpointObservation {
                name: endpoint.listener.clone(),
                certificate_serial: endpoint.serial.clone(),
                not_after: Time(endpoint.not_after.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
                trusted_authorities: status
                    .trust
                    .iter()
                    .find(|trust| trust.listener == endpoint.listener)
                    .map(|trust| trust.authorities.clone())
                    .unwrap_or_default(),
            })
            .collect(),
        problems: status.problems.clone(),
    }
}

fn authority(record: &AuthorityRecord) -> AuthorityStatus {
    AuthorityStatus {
        certificate: certificate_status(record.current().info()),
        trusted: record.trusted(),
    }
}

/// Name of an object, for messages.
#[must_use]
pub fn full_name(object: &impl ResourceExt) -> String {
    format!(
        "{}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::StatefulSetStatus;
    use palisade_config::status::EndpointTrust;

    use super::*;
    use crate::cluster::{
        leaves::leaves,
        observe::tests::{broker, silent},
        validate::{tests::fixture, validate},
    };

    fn report(object: &SecureCluster, change: impl FnOnce(&mut BrokerView)) -> SecureClusterStatus {
        report_of(object, None, change)
    }

    fn report_of(
        object: &SecureCluster,
        stateful_set: Option<&StatefulSet>,
        change: impl FnOnce(&mut BrokerView),
    ) -> SecureClusterStatus {
        let cluster = validate(object).unwrap();
        let start = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let authority = AuthorityRecord::generate(
            &cluster.cluster_authority_name().unwrap(),
            &cluster.cluster_policy,
            start,
        )
        .unwrap();
        let clients = AuthorityRecord::generate(
            &cluster.clients_authority_name().unwrap(),
            &cluster.clients_policy,
            start,
        )
        .unwrap();
        let leaves = leaves(&cluster, &authority, None, start).unwrap();
        let mut view = broker(&cluster);
        for endpoint in &mut view.status.as_mut().unwrap().certificates {
            endpoint.fingerprint.clone_from(&leaves[0].info.fingerprint);
        }
        view.status.as_mut().unwrap().trust = [
            ("CONTROL", authority.trusted()),
            ("ADMIN", authority.trusted()),
            ("internal", clients.trusted()),
            ("batch", clients.trusted()),
        ]
        .map(|(listener, authorities)| EndpointTrust {
            listener: listener.to_owned(),
            authorities,
        })
        .into();
        change(&mut view);
        status(
            object,
            Findings {
                cluster: &cluster,
                brokers: &[view],
                stateful_set,
                leaves: &leaves,
                cluster_authority: &authority,
                clients_authority: &clients,
                checklist: Vec::new(),
                problems: Vec::new(),
                rotation: None,
                scaling: Scaling::Settled,
                now: Timestamp::from_second(1_800_000_000).unwrap(),
            },
        )
    }

    fn condition(status: &SecureClusterStatus, wanted: ConditionType) -> (String, String, String) {
        let found = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == wanted.as_str())
            .unwrap();
        (
            found.status.clone(),
            found.reason.clone(),
            found.message.clone(),
        )
    }

    #[test]
    fn a_cluster_is_ready_because_its_brokers_said_so() {
        let status = report(&fixture(), |_| {});
        assert_eq!(condition(&status, ConditionType::Ready).1, "BrokersReady");
        assert_eq!(
            condition(&status, ConditionType::CertificatesValid).1,
            "CertificatesCurrent"
        );
        assert_eq!(condition(&status, ConditionType::Progressing).0, "False");
        assert_eq!(condition(&status, ConditionType::Degraded).0, "False");
        assert_eq!(status.ready_replicas, 1);
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(
            status.listeners[0].bootstrap_servers,
            "events-bootstrap.messaging.svc:9093"
        );
    }

    #[test]
    fn what_brokers_report_decides_the_conditions() {
        type Change = fn(&mut BrokerView);
        let cases: [(Change, ConditionType, &str, &str); 6] = [
            (
                |view| view.status.as_mut().unwrap().trust[2].authorities.clear(),
                ConditionType::Progressing,
                "True",
                "CertificatesPending",
            ),
            (
                |view| *view = silent("events-0"),
                ConditionType::Ready,
                "False",
                "BrokersUnreachable",
            ),
            (
                |view| view.status.as_mut().unwrap().ready = false,
                ConditionType::Ready,
                "False",
                "BrokersStarting",
            ),
            (
                |view| view.status.as_mut().unwrap().config_version.clear(),
                ConditionType::Ready,
                "False",
                "ConfigurationPending",
            ),
            (
                |view| {
                    view.status
                        .as_mut()
                        .unwrap()
                        .problems
                        .push("the disk is full".to_owned())
                },
                ConditionType::Degraded,
                "True",
                "BrokerProblem",
            ),
            (
                |view| {
                    view.status.as_mut().unwrap().certificates[0]
                        .fingerprint
                        .clear()
                },
                ConditionType::CertificatesValid,
                "False",
                "CertificatesPending",
            ),
        ];
        for (change, wanted, holds, reason) in cases {
            let (status, found, message) = condition(&report(&fixture(), change), wanted);
            assert_eq!(
                (status.as_str(), found.as_str()),
                (holds, reason),
                "{message}"
            );
        }
    }

    #[test]
    fn a_broker_without_a_rack_is_reported_once_its_pod_is_of_the_present_template() {
        let mut object = fixture();
        object.spec.brokers.rack_key = Some("topology.kubernetes.io/zone".to_owned());
        let set = |updated| StatefulSet {
            status: Some(StatefulSetStatus {
                replicas: 1,
                updated_replicas: Some(updated),
                ..StatefulSetStatus::default()
            }),
            ..StatefulSet::default()
        };
        let degraded = |updated, rack: Option<&str>| {
            let status = report_of(&object, Some(&set(updated)), |view| {
                view.status.as_mut().unwrap().rack = rack.map(ToOwned::to_owned);
            });
            condition(&status, ConditionType::Degraded)
        };
        assert_eq!(degraded(0, None).0, "False");
        assert_eq!(degraded(1, Some("zone-a")).0, "False");
        let (status, reason, message) = degraded(1, None);
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("True", "BrokerProblem")
        );
        assert!(
            message.starts_with(
                "events-0 knows no rack: label its node with topology.kubernetes.io/zone"
            ),
            "{message}"
        );
    }

    #[test]
    fn the_same_observation_gives_the_same_status() {
        let mut object = fixture();
        let first = report(&object, |_| {});
        object.status = Some(first.clone());
        let second = report(&object, |_| {});
        assert_eq!(
            first
                .conditions
                .iter()
                .map(|held| (&held.type_, &held.status, &held.last_transition_time))
                .collect::<Vec<_>>(),
            second
                .conditions
                .iter()
                .map(|held| (&held.type_, &held.status, &held.last_transition_time))
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_paused_cluster_keeps_what_was_observed() {
        let mut object = fixture();
        object.status = Some(report(&object, |_| {}));
        object.metadata.generation = Some(4);
        let status = blocked(&object, Reason::Paused, "paused", Timestamp::UNIX_EPOCH);
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(condition(&status, ConditionType::Ready).0, "True");
        assert_eq!(
            condition(&status, ConditionType::ReconciliationPaused).0,
            "True"
        );
        assert_eq!(status.brokers.len(), 1);
    }
}
