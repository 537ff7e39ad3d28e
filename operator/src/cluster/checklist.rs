//! The security checklist: one small function for each check, from what was observed to a verdict with its evidence.

use k8s_openapi::api::apps::v1::StatefulSet;
use palisade_config::{ClientAuth, status::BrokerStatus};
use palisade_crds::{CheckResult, ChecklistEntry};
use time::OffsetDateTime;

use super::{Cluster, objects::network_policies::listener_policy_name, observe::BrokerView};

/// What the checks look at.
pub(super) struct Evidence<'a> {
    /// The cluster as its spec says.
    pub(super) cluster: &'a Cluster,
    /// What its brokers reported.
    pub(super) brokers: &'a [BrokerView],
    /// The StatefulSet as the API server has it.
    pub(super) stateful_set: Option<&'a StatefulSet>,
    /// Names of the NetworkPolicies that the API server has.
    pub(super) policies: &'a [String],
    /// Now.
    pub(super) now: OffsetDateTime,
}

type Check = fn(&Evidence<'_>) -> Verdict;

/// Every check, by the name it has in `status.checklist`.
const CHECKS: [(&str, Check); 8] = [
    // Every endpoint that a broker has opened presents a certificate.
    ("EncryptionInTransit", encryption_in_transit),
    // The configuration that brokers have loaded has TLS on every listener.
    ("NoPlaintextListener", no_plaintext_listener),
    // No listener admits a client that proved nothing.
    ("ClientsAuthenticated", clients_authenticated),
    // Nobody is above the rules but who is named.
    ("SuperUsersNamed", super_users_named),
    // Every port of the brokers has a NetworkPolicy.
    ("NetworkPolicies", network_policies),
    // Every broker seals its log under a key.
    ("EncryptionAtRest", encryption_at_rest),
    // No certificate in use is past its end.
    ("CertificatesValid", certificates_valid),
    // The pods run under the restricted standard, without a token.
    ("RestrictedPods", restricted_pods),
];

/// Outcome of a check, its evidence, and what to do about a failure.
struct Verdict(CheckResult, String, &'static str);

/// Runs every check.
#[must_use]
pub(super) fn run(evidence: &Evidence<'_>) -> Vec<ChecklistEntry> {
    CHECKS
        .iter()
        .map(|(name, check)| {
            let Verdict(result, evidence, remedy) = check(evidence);
            ChecklistEntry {
                name: (*name).to_owned(),
                result,
                evidence,
                remedy: (result != CheckResult::Pass).then(|| remedy.to_owned()),
            }
        })
        .collect()
}

/// Judges every broker by what it reported. One that did not answer leaves the check unknown, one that fails it fails.
fn each_broker(
    evidence: &Evidence<'_>,
    pass: &str,
    remedy: &'static str,
    fault: impl Fn(&BrokerStatus) -> Option<String>,
) -> Verdict {
    let mut silent = Vec::new();
    for broker in evidence.brokers {
        match &broker.status {
            Ok(status) => {
                if let Some(fault) = fault(status) {
                    return Verdict(
                        CheckResult::Fail,
                        format!("{}: {fault}", broker.pod),
                        remedy,
                    );
                }
            }
            Err(_) => silent.push(broker.pod.as_str()),
        }
    }
    if silent.is_empty() && !evidence.brokers.is_empty() {
        return Verdict(
            CheckResult::Pass,
            format!(
                "{} of {} brokers report {pass}",
                evidence.brokers.len(),
                evidence.brokers.len()
            ),
            remedy,
        );
    }
    Verdict(
        CheckResult::Unknown,
        format!("no report from {}", silent.join(", ")),
        "see the Degraded condition",
    )
}

fn encryption_in_transit(evidence: &Evidence<'_>) -> Verdict {
    let wanted: Vec<&str> = evidence
        .cluster
        .listeners
        .iter()
        .map(|listener| listener.name.as_str())
        .chain(["CONTROL", "ADMIN"])
        .collect();
    each_broker(
        evidence,
        "a certificate on every endpoint",
        "look at the broker's log: an endpoint without a certificate serves nobody",
        |status| {
            let missing = wanted.iter().find(|name| {
                !status
                    .certificates
                    .iter()
                    .any(|endpoint| endpoint.listener == **name)
            })?;
            Some(format!("endpoint {missing} presents no certificate"))
        },
    )
}

fn no_plaintext_listener(evidence: &Evidence<'_>) -> Verdict {
    let config = &evidence.cluster.config;
    if let Some(listener) = config
        .listeners
        .iter()
        .find(|listener| listener.tls.is_none())
    {
        return Verdict(
            CheckResult::Fail,
            format!("listener {} has no TLS", listener.name),
            "remove the listener",
        );
    }
    each_broker(
        evidence,
        "a configuration with TLS on every listener",
        "wait until the broker has loaded its configuration",
        |status| {
            (status.config_version != config.version).then(|| {
                format!(
                    "runs configuration {}, not {}",
                    status.config_version, config.version
                )
            })
        },
    )
}

fn clients_authenticated(evidence: &Evidence<'_>) -> Verdict {
    let open = evidence.cluster.config.listeners.iter().find(|listener| {
        listener.sasl_mechanisms.is_empty() && listener.client_auth != ClientAuth::Required
    });
    match open {
        Some(listener) => Verdict(
            CheckResult::Fail,
            format!("listener {} admits anyone", listener.name),
            "name an authentication for the listener",
        ),
        None => Verdict(
            CheckResult::Pass,
            format!(
                "{} listeners, each with authentication",
                evidence.cluster.listeners.len()
            ),
            "",
        ),
    }
}

fn super_users_named(evidence: &Evidence<'_>) -> Verdict {
    let users = &evidence.cluster.super_users;
    match users.iter().find(|user| user.contains('*')) {
        Some(user) => Verdict(
            CheckResult::Fail,
            format!("{user} is above the rules"),
            "name single principals in spec.authorization.superUsers",
        ),
        None if users.is_empty() => Verdict(CheckResult::Pass, "no super users".to_owned(), ""),
        None => Verdict(CheckResult::Pass, users.join(", "), ""),
    }
}

fn network_policies(evidence: &Evidence<'_>) -> Verdict {
    let cluster = evidence.cluster;
    let listeners = cluster
        .listeners
        .iter()
        .map(|listener| listener_policy_name(&cluster.name, &listener.name));
    let missing: Vec<_> = listeners
        .chain([format!("{}-internal", cluster.name)])
        .filter(|name| !evidence.policies.contains(name))
        .collect();
    if missing.is_empty() {
        return Verdict(CheckResult::Pass, evidence.policies.join(", "), "");
    }
    Verdict(
        CheckResult::Fail,
        format!("missing: {}", missing.join(", ")),
        "give the operator leave to write NetworkPolicies",
    )
}

fn encryption_at_rest(evidence: &Evidence<'_>) -> Verdict {
    each_broker(
        evidence,
        "a key-encryption key in use",
        "look at the broker's log: it has no key to seal with",
        |status| {
            status
                .kek_id
                .is_empty()
                .then(|| "reports no key-encryption key".to_owned())
        },
    )
}

fn certificates_valid(evidence: &Evidence<'_>) -> Verdict {
    each_broker(
        evidence,
        "certificates within their validity",
        "look at the Degraded condition: renewal is stuck",
        |status| {
            let expired = status.certificates.iter().find(|endpoint| {
                OffsetDateTime::parse(
                    &endpoint.not_after,
                    &time::format_description::well_known::Rfc3339,
                )
                .map_or(true, |end| end <= evidence.now)
            })?;
            Some(format!(
                "the certificate of {} ended at {}",
                expired.listener, expired.not_after
            ))
        },
    )
}

fn restricted_pods(evidence: &Evidence<'_>) -> Verdict {
    const REMEDY: &str =
        "remove what changed the StatefulSet: the operator's own meets the standard";
    let Some(spec) = evidence
        .stateful_set
        .and_then(|set| set.spec.template.spec.as_ref())
    else {
        return Verdict(
            CheckResult::Unknown,
            "there is no StatefulSet yet".to_owned(),
            "wait",
        );
    };
    let fault = |text: String| Verdict(CheckResult::Fail, text, REMEDY);
    if spec.automount_service_account_token != Some(false) {
        return fault("a service account token is mounted".to_owned());
    }
    if spec.host_network == Some(true) || spec.host_pid == Some(true) || spec.host_ipc == Some(true)
    {
        return fault("the pods share a namespace of their node".to_owned());
    }
    for container in &spec.containers {
        let meets = container.security_context.as_ref().is_some_and(|security| {
            security.run_as_non_root == Some(true)
                && security.allow_privilege_escalation == Some(false)
                && security.privileged != Some(true)
                && security.read_only_root_filesystem == Some(true)
                && security.capabilities.as_ref().is_some_and(|capabilities| {
                    capabilities.add.as_ref().is_none_or(Vec::is_empty)
                        && capabilities
                            .drop
                            .as_ref()
                            .is_some_and(|drop| drop.iter().any(|name| name == "ALL"))
                })
        });
        if !meets {
            return fault(format!(
                "container {} may do more than it needs",
                container.name
            ));
        }
    }
    Verdict(
        CheckResult::Pass,
        "no privilege, read-only root, not root, no capabilities, no token".to_owned(),
        "",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        Settings,
        cluster::{
            objects::stateful_set,
            observe::tests::{broker, silent},
            validate::{tests::fixture, validate},
        },
    };

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn outcome(
        name: &str,
        change: impl FnOnce(&mut Cluster, &mut Vec<BrokerView>, &mut StatefulSet, &mut Vec<String>),
    ) -> (CheckResult, String) {
        let owner = fixture();
        let mut cluster = validate(&owner).unwrap();
        let settings = Settings {
            broker_image: "b".to_owned(),
            image_pull_policy: "Never".to_owned(),
            image_pull_secrets: Vec::new(),
            operator_namespace: "o".to_owned(),
        };
        let mut set = stateful_set::build(&owner, &cluster, &settings, None);
        let mut brokers = vec![broker(&cluster)];
        let mut policies = [
            "events-internal",
            "events-listener-internal",
            "events-listener-batch",
        ]
        .map(ToOwned::to_owned)
        .to_vec();
        change(&mut cluster, &mut brokers, &mut set, &mut policies);
        let evidence = Evidence {
            cluster: &cluster,
            brokers: &brokers,
            stateful_set: Some(&set),
            policies: &policies,
            now: now(),
        };
        let entry = run(&evidence)
            .into_iter()
            .find(|entry| entry.name == name)
            .unwrap();
        assert_eq!(entry.remedy.is_none(), entry.result == CheckResult::Pass);
        (entry.result, entry.evidence)
    }

    #[test]
    fn a_healthy_cluster_passes_every_check() {
        for (name, _) in CHECKS {
            let (result, evidence) = outcome(name, |_, _, _, _| {});
            assert_eq!(result, CheckResult::Pass, "{name}: {evidence}");
        }
    }

    #[test]
    fn every_check_can_fail() {
        use CheckResult::{Fail, Unknown};
        let status = |brokers: &mut Vec<BrokerView>, change: fn(&mut BrokerStatus)| {
            change(brokers[0].status.as_mut().unwrap())
        };
        let results = [
            outcome("EncryptionInTransit", |_, brokers, _, _| {
                status(brokers, |status| {
                    status.certificates.pop();
                })
            }),
            outcome("EncryptionInTransit", |_, brokers, _, _| {
                brokers[0] = silent("events-0")
            }),
            outcome("NoPlaintextListener", |cluster, _, _, _| {
                cluster.config.listeners[0].tls = None
            }),
            outcome("NoPlaintextListener", |_, brokers, _, _| {
                status(brokers, |status| status.config_version = "old".to_owned())
            }),
            outcome("ClientsAuthenticated", |cluster, _, _, _| {
                cluster.config.listeners[0].sasl_mechanisms.clear()
            }),
            outcome("SuperUsersNamed", |cluster, _, _, _| {
                cluster.super_users = vec!["User:*".to_owned()]
            }),
            outcome("NetworkPolicies", |_, _, _, policies| {
                policies.pop();
            }),
            outcome("EncryptionAtRest", |_, brokers, _, _| {
                status(brokers, |status| status.kek_id.clear())
            }),
            outcome("CertificatesValid", |_, brokers, _, _| {
                status(brokers, |status| {
                    status.certificates[0].not_after = "2020-01-01T00:00:00Z".to_owned()
                })
            }),
            outcome("RestrictedPods", |_, _, set, _| {
                set.spec.template.spec.as_mut().unwrap().containers[0]
                    .security_context
                    .as_mut()
                    .unwrap()
                    .privileged = Some(true);
            }),
        ];
        let verdicts = results.each_ref().map(|(result, _)| *result);
        assert_eq!(
            verdicts,
            [
                Fail, Unknown, Fail, Fail, Fail, Fail, Fail, Fail, Fail, Fail
            ],
            "{results:?}"
        );
    }
}
