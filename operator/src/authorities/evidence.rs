//! What brokers and users report about trust and certificates, and whom a rotation waits for.

use palisade_config::status::BrokerStatus;

use super::AuthorityRecord;

/// Whom the present phase of a rotation waits for, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Who does not trust the next authority yet.
    pub distrusting: Vec<String>,
    /// Who does not use what the present authority issued yet.
    pub on_old_leaves: Vec<String>,
    /// Who would be waited for, but cannot follow until somebody mends it.
    pub left_out: Vec<String>,
}

/// A broker as a rotation sees it.
#[derive(Clone, Debug)]
pub struct BrokerReport<'a> {
    /// Name of its pod.
    pub pod: &'a str,
    /// What it said, if it answered.
    pub status: Option<&'a BrokerStatus>,
    /// Fingerprint of the certificate that it should present.
    pub leaf: Option<&'a str>,
    /// Whether that certificate is one of the present authority.
    pub leaf_is_current: bool,
}

/// A user's Secret as a rotation sees it.
#[derive(Clone, Debug)]
pub struct ClientReport<'a> {
    /// Namespace and name of the User.
    pub name: &'a str,
    /// Fingerprints of the cluster authorities that its Secret trusts.
    pub trusted: &'a [String],
    /// For a user with a certificate: whether the present clients authority issued it.
    pub leaf_is_current: Option<bool>,
    /// Whether its Secret is not kept up to date until somebody mends what its status complains of. A rotation waits for no such user: one tenant would hold up
    /// the authority of all.
    pub is_stuck: bool,
}

/// Evidence about the cluster authority: every broker's own ports trust it, every user's Secret trusts it, and every endpoint presents the new leaf.
#[must_use]
pub fn cluster_evidence(
    record: &AuthorityRecord,
    brokers: &[BrokerReport<'_>],
    clients: &[ClientReport<'_>],
    own_endpoints: &[&str],
) -> Evidence {
    let mut evidence = Evidence::default();
    let next = record.next().map(|next| next.info().fingerprint.as_str());
    for broker in brokers {
        if next.is_some_and(|next| !trusts(broker.status, next, own_endpoints)) {
            evidence.distrusting.push(format!("broker {}", broker.pod));
        }
        if !(broker.leaf_is_current && presents(broker)) {
            evidence
                .on_old_leaves
                .push(format!("broker {}", broker.pod));
        }
    }
    for client in clients {
        if next.is_some_and(|next| !client.trusted.iter().any(|trusted| trusted == next)) {
            let waiting = if client.is_stuck {
                &mut evidence.left_out
            } else {
                &mut evidence.distrusting
            };
            waiting.push(format!("user {}", client.name));
        }
    }
    evidence
}

/// Evidence about the clients authority: every listener that takes client certificates trusts it, and every user's certificate is of the present one.
#[must_use]
pub fn clients_evidence(
    record: &AuthorityRecord,
    brokers: &[BrokerReport<'_>],
    clients: &[ClientReport<'_>],
    listeners: &[&str],
) -> Evidence {
    let mut evidence = Evidence::default();
    let next = record.next().map(|next| next.info().fingerprint.as_str());
    for broker in brokers {
        if next.is_some_and(|next| !trusts(broker.status, next, listeners)) {
            evidence.distrusting.push(format!("broker {}", broker.pod));
        }
    }
    for client in clients {
        if client.leaf_is_current == Some(false) {
            let waiting = if client.is_stuck {
                &mut evidence.left_out
            } else {
                &mut evidence.on_old_leaves
            };
            waiting.push(format!("user {}", client.name));
        }
    }
    evidence
}

/// Whether each of `endpoints` reports trust in the authority. A broker that does not answer, or leaves one out, has not said so.
fn trusts(status: Option<&BrokerStatus>, authority: &str, endpoints: &[&str]) -> bool {
    status.is_some_and(|status| {
        endpoints.iter().all(|wanted| {
            status.trust.iter().any(|endpoint| {
                endpoint.listener == *wanted
                    && endpoint
                        .authorities
                        .iter()
                        .any(|trusted| trusted == authority)
            })
        })
    })
}

/// Whether every endpoint presents the certificate that it should.
fn presents(broker: &BrokerReport<'_>) -> bool {
    broker
        .status
        .zip(broker.leaf)
        .is_some_and(|(status, leaf)| {
            !status.certificates.is_empty()
                && status
                    .certificates
                    .iter()
                    .all(|endpoint| endpoint.fingerprint == leaf)
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_config::status::{EndpointCertificate, EndpointTrust};
    use palisade_crds::RotationMode;
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::{
        authorities::AuthorityPolicy,
        pki::{CommonName, KeyAlgorithm},
    };

    fn status(listener: &str, trusted: &[&str], leaf: &str) -> BrokerStatus {
        BrokerStatus {
            broker_id: 0,
            cluster_id: "c".to_owned(),
            rack: None,
            version: "1".to_owned(),
            config_version: "1".to_owned(),
            ready: true,
            problems: Vec::new(),
            certificates: vec![EndpointCertificate {
                listener: listener.to_owned(),
                serial: "01".to_owned(),
                fingerprint: leaf.to_owned(),
                issuer: String::new(),
                not_before: String::new(),
                not_after: String::new(),
            }],
            trust: vec![EndpointTrust {
                listener: listener.to_owned(),
                authorities: trusted
                    .iter()
                    .map(|trusted| (*trusted).to_owned())
                    .collect(),
            }],
            kek_id: "k".to_owned(),
            topics: 0,
            partitions: 0,
            connections: 0,
            quarantined: Vec::new(),
            repairs: Default::default(),
            controller: Some(0),
            shards: Vec::new(),
            peers: Vec::new(),
            under_replicated_partitions: 0,
            draining: false,
            drained: false,
            ..BrokerStatus::default()
        }
    }

    fn rotating() -> AuthorityRecord {
        let name = CommonName::new("events").unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let policy = AuthorityPolicy {
            validity: Duration::days(9),
            renew_before: Duration::days(1),
            algorithm: KeyAlgorithm::EcdsaP256,
        };
        let mut record = AuthorityRecord::generate(&name, &policy, now).unwrap();
        record
            .begin(
                "run".to_owned(),
                RotationMode::ReplaceKey,
                &name,
                &policy,
                now,
            )
            .unwrap();
        record
    }

    fn broker(status: Option<&BrokerStatus>) -> BrokerReport<'_> {
        BrokerReport {
            pod: "events-0",
            status,
            leaf: Some("leaf"),
            leaf_is_current: true,
        }
    }

    #[test]
    fn a_silent_broker_has_reported_nothing() {
        let evidence = cluster_evidence(&rotating(), &[broker(None)], &[], &["CONTROL"]);
        assert_eq!(evidence.distrusting, ["broker events-0"]);
        assert_eq!(evidence.on_old_leaves, ["broker events-0"]);
    }

    #[test]
    fn a_broker_counts_once_it_reports_the_new_trust_and_the_new_leaf() {
        let record = rotating();
        let next = record.next().unwrap().info().fingerprint.clone();
        let old = status("CONTROL", &["old"], "old-leaf");
        let evidence = cluster_evidence(&record, &[broker(Some(&old))], &[], &["CONTROL"]);
        assert_eq!(
            (evidence.distrusting.len(), evidence.on_old_leaves.len()),
            (1, 1)
        );
        let new = status("CONTROL", &["old", &next], "leaf");
        assert_eq!(
            cluster_evidence(&record, &[broker(Some(&new))], &[], &["CONTROL"]),
            Evidence::default()
        );
    }

    #[test]
    fn a_users_secret_must_trust_the_next_cluster_authority() {
        let record = rotating();
        let next = [record.next().unwrap().info().fingerprint.clone()];
        let client = |trusted| ClientReport {
            name: "shop/alice",
            trusted,
            leaf_is_current: None,
            is_stuck: false,
        };
        assert_eq!(
            cluster_evidence(&record, &[], &[client(&[])], &[]).distrusting,
            ["user shop/alice"]
        );
        assert_eq!(
            cluster_evidence(&record, &[], &[client(&next)], &[]).distrusting,
            [""; 0]
        );
    }

    #[test]
    fn a_users_certificate_of_the_former_clients_authority_is_waited_for() {
        let record = rotating();
        let client = |current| ClientReport {
            name: "shop/alice",
            trusted: &[],
            leaf_is_current: current,
            is_stuck: false,
        };
        assert_eq!(
            clients_evidence(&record, &[], &[client(Some(false))], &[]).on_old_leaves,
            ["user shop/alice"]
        );
        assert_eq!(
            clients_evidence(&record, &[], &[client(Some(true)), client(None)], &[]),
            Evidence::default()
        );
    }

    #[test]
    fn a_user_that_cannot_follow_is_named_and_not_waited_for() {
        let record = rotating();
        let stuck = ClientReport {
            name: "shop/alice",
            trusted: &[],
            leaf_is_current: Some(false),
            is_stuck: true,
        };
        let left_out = Evidence {
            left_out: vec!["user shop/alice".to_owned()],
            ..Evidence::default()
        };
        let clients = [stuck];
        assert_eq!(cluster_evidence(&record, &[], &clients, &[]), left_out);
        assert_eq!(clients_evidence(&record, &[], &clients, &[]), left_out);
    }

    #[test]
    fn only_listeners_that_take_client_certificates_must_trust_the_clients_authority() {
        let record = rotating();
        let control = status("CONTROL", &["cluster"], "leaf");
        assert_eq!(
            clients_evidence(&record, &[broker(Some(&control))], &[], &[]),
            Evidence::default()
        );
        assert_eq!(
            clients_evidence(&record, &[broker(Some(&control))], &[], &["internal"]).distrusting,
            ["broker events-0"]
        );
        let internal = status("internal", &["old"], "leaf");
        assert_eq!(
            clients_evidence(&record, &[broker(Some(&internal))], &[], &["internal"]).distrusting,
            ["broker events-0"]
        );
    }
}
