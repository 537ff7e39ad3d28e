//! What each condition of a cluster says: small decisions on what was observed.

use palisade_crds::Reason;

use super::{
    observe::BrokerView,
    removal::Scaling,
    report::{Findings, as_time},
};

/// Whether a broker serves clients, by its own word.
pub(super) fn is_ready(broker: &BrokerView) -> bool {
    broker.status.as_ref().is_ok_and(|status| status.ready)
}

pub(super) fn readiness(findings: &Findings<'_>) -> (bool, Reason, String) {
    let brokers = findings.brokers;
    if brokers.iter().all(|broker| broker.status.is_err()) {
        let why = brokers
            .iter()
            .find_map(|broker| broker.status.as_ref().err())
            .cloned()
            .unwrap_or_else(|| "there is none".to_owned());
        return (
            false,
            Reason::BrokersUnreachable,
            format!("no broker answers on its admin port: {why}"),
        );
    }
    let serving = brokers.iter().filter(|broker| is_ready(broker)).count();
    if serving < brokers.len() {
        return (
            false,
            Reason::BrokersStarting,
            format!("{serving} of {} brokers serve clients", brokers.len()),
        );
    }
    if let Some(broker) = behind(findings) {
        return (
            false,
            Reason::ConfigurationPending,
            format!(
                "{broker} has not loaded configuration {} yet",
                findings.cluster.config.version
            ),
        );
    }
    (
        true,
        Reason::BrokersReady,
        format!("{serving} of {} brokers serve clients", brokers.len()),
    )
}

/// A broker that runs another configuration.
fn behind<'a>(findings: &Findings<'a>) -> Option<&'a str> {
    findings.brokers.iter().find_map(|broker| {
        let status = broker.status.as_ref().ok()?;
        (status.config_version != findings.cluster.config.version).then_some(broker.pod.as_str())
    })
}

/// An endpoint that reports trust in other authorities than those distributed.
fn stale_trust(findings: &Findings<'_>) -> Option<String> {
    let of_cluster = findings.cluster_authority.trusted();
    let of_clients = findings.clients_authority.trusted();
    let own = [("CONTROL", &of_cluster), ("ADMIN", &of_cluster)];
    let listeners = findings.cluster.listeners.iter();
    let listeners = listeners
        .filter(|listener| listener.takes_certificates())
        .map(|listener| (listener.name.as_str(), &of_clients));
    let wanted: Vec<_> = own.into_iter().chain(listeners).collect();
    findings.brokers.iter().find_map(|broker| {
        let reported = &broker.status.as_ref().ok()?.trust;
        let (endpoint, _) = wanted.iter().find(|(name, trusted)| {
            !reported
                .iter()
                .any(|endpoint| endpoint.listener == *name && endpoint.authorities == **trusted)
        })?;
        Some(format!(
            "{endpoint} of {} has not loaded the present trust yet",
            broker.pod
        ))
    })
}

pub(super) fn progress(findings: &Findings<'_>) -> (bool, Reason, String) {
    if let Some(rotation) = &findings.rotation {
        return (true, Reason::RotationInProgress, rotation.clone());
    }
    if let Some(broker) = behind(findings) {
        return (
            true,
            Reason::ConfigurationPending,
            format!(
                "{broker} has not loaded configuration {} yet",
                findings.cluster.config.version
            ),
        );
    }
    if let Scaling::Leaving(message) = &findings.scaling {
        return (true, Reason::Draining, message.clone());
    }
    if let Some(message) = stale_trust(findings) {
        return (true, Reason::CertificatesPending, message);
    }
    if findings.brokers.iter().any(|broker| !is_ready(broker)) {
        return (
            true,
            Reason::BrokersStarting,
            "brokers are starting".to_owned(),
        );
    }
    (false, Reason::Settled, String::new())
}

pub(super) fn degradation(findings: &Findings<'_>) -> (bool, Reason, String) {
    if !findings.problems.is_empty() {
        return (true, Reason::Retrying, findings.problems.join("; "));
    }
    if let Scaling::Refused(message) = &findings.scaling {
        return (true, Reason::ScaleDownRefused, message.clone());
    }
    for broker in findings.brokers {
        let Ok(status) = &broker.status else { continue };
        if let Some(problem) = status.problems.first() {
            return (
                true,
                Reason::BrokerProblem,
                format!("{}: {problem}", broker.pod),
            );
        }
        if let Some(file) = status.quarantined.first() {
            return (
                true,
                Reason::BrokerProblem,
                format!(
                    "{}: {} is corrupt at byte {} and set aside",
                    broker.pod, file.file, file.offset
                ),
            );
        }
    }
    if let Some(message) = without_rack(findings) {
        return (true, Reason::BrokerProblem, message);
    }
    let silent: Vec<_> = findings
        .brokers
        .iter()
        .filter(|broker| broker.status.is_err())
        .map(|broker| broker.pod.as_str())
        .collect();
    let pods = findings
        .stateful_set
        .and_then(|set| set.status.as_ref()?.ready_replicas)
        .unwrap_or_default();
    // A pod that Kubernetes calls ready and the operator cannot reach: more than a start.
    if !silent.is_empty() && usize::try_from(pods).is_ok_and(|pods| pods == findings.brokers.len())
    {
        return (
            true,
            Reason::BrokersUnreachable,
            format!("{} does not answer on its admin port", silent.join(", ")),
        );
    }
    (false, Reason::Settled, String::new())
}

/// A broker that runs as the spec says and knows no rack although it should: its replicas are spread over nothing.
fn without_rack(findings: &Findings<'_>) -> Option<String> {
    let key = findings.cluster.rack_key.as_deref()?;
    let set = findings.stateful_set?;
    let pods = set.status.as_ref()?;
    // Those that still run without the label in their environment are about to be replaced.
    let rolled_out = pods.observed_generation == set.metadata.generation
        && pods.updated_replicas == Some(pods.replicas);
    let lost = findings.brokers.iter().find(|broker| {
        let status = broker.status.as_ref();
        status.is_ok_and(|status| status.ready && status.rack.is_none())
    })?;
    rolled_out.then(|| {
        format!(
            "{} knows no rack: label its node with {key} and delete the pod; Kubernetes before 1.35 does not copy the label to pods, remove rackKey there",
            lost.pod
        )
    })
}

pub(super) fn certificates(findings: &Findings<'_>) -> (bool, Reason, String) {
    for (leaf, broker) in findings.leaves.iter().zip(findings.brokers) {
        let Ok(status) = &broker.status else {
            return (
                false,
                Reason::CertificatesPending,
                format!("{} has not reported its certificates", broker.pod),
            );
        };
        let Some(stale) = status
            .certificates
            .iter()
            .find(|endpoint| endpoint.fingerprint != leaf.info.fingerprint)
        else {
            continue;
        };
        return (
            false,
            Reason::CertificatesPending,
            format!(
                "{} of {} presents serial {}, not {}",
                stale.listener, broker.pod, stale.serial, leaf.info.serial
            ),
        );
    }
    let now = findings.now.as_second();
    let soonest = [
        findings.cluster_authority.current().info(),
        findings.clients_authority.current().info(),
    ]
    .into_iter()
    .chain(findings.leaves.iter().map(|leaf| &leaf.info))
    .min_by_key(|info| info.not_after);
    match soonest {
        Some(info) if info.not_after.unix_timestamp() <= now => (
            false,
            Reason::CertificateDue,
            format!("certificate {} of {} has ended", info.serial, info.subject),
        ),
        Some(info) => (
            true,
            Reason::CertificatesCurrent,
            format!(
                "the first to end is {} at {}",
                info.subject,
                as_time(info.not_after).0
            ),
        ),
        None => (
            false,
            Reason::CertificatesPending,
            "no certificate was issued yet".to_owned(),
        ),
    }
}
