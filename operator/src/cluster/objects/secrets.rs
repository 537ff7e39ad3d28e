//! Secrets that brokers mount: their certificates and the trust bundles.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use palisade_crds::SecureCluster;

use crate::{
    authorities::AuthorityRecord,
    cluster::{
        Cluster,
        config::{CLIENTS_TRUST, CLUSTER_TRUST},
        leaves::{BrokerLeaf, secret_data},
    },
    kubernetes::names,
};

/// Secret with one certificate and key for each broker.
#[must_use]
pub fn broker_certificates(
    owner: &SecureCluster,
    cluster: &Cluster,
    leaves: &[BrokerLeaf],
) -> Secret {
    Secret {
        metadata: names::owned_metadata(owner, names::broker_certificates_secret(&cluster.name)),
        type_: Some("Opaque".to_owned()),
        data: Some(secret_data(leaves)),
        ..Secret::default()
    }
}

/// Secret with the trust bundles of both authorities.
#[must_use]
pub fn trust(
    owner: &SecureCluster,
    cluster: &Cluster,
    authority: &AuthorityRecord,
    clients: &AuthorityRecord,
) -> Secret {
    let data = [
        (CLUSTER_TRUST, authority.bundle()),
        (CLIENTS_TRUST, clients.bundle()),
    ]
    .map(|(key, bundle)| (key.to_owned(), ByteString(bundle.into_bytes())));
    Secret {
        metadata: names::owned_metadata(owner, names::trust_secret(&cluster.name)),
        type_: Some("Opaque".to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    }
}

/// Secret of an authority, to be filled by [`AuthorityRecord::write`].
#[must_use]
pub fn authority(owner: &SecureCluster, name: String) -> Secret {
    Secret {
        metadata: names::owned_metadata(owner, name),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::OffsetDateTime;

    use super::*;
    use crate::cluster::{
        leaves::leaves,
        validate::{tests::fixture, validate},
    };

    #[test]
    fn brokers_mount_no_authoritys_key() {
        let owner = fixture();
        let cluster = validate(&owner).unwrap();
        let now = OffsetDateTime::now_utc();
        let record = AuthorityRecord::generate(
            &cluster.cluster_authority_name().unwrap(),
            &cluster.cluster_policy,
            now,
        )
        .unwrap();
        let clients = AuthorityRecord::generate(
            &cluster.clients_authority_name().unwrap(),
            &cluster.clients_policy,
            now,
        )
        .unwrap();
        let trust = trust(&owner, &cluster, &record, &clients).data.unwrap();
        assert_eq!(
            trust.keys().collect::<Vec<_>>(),
            ["clients-ca.crt", "cluster-ca.crt"]
        );
        assert!(
            trust
                .values()
                .all(|bundle| !String::from_utf8_lossy(&bundle.0).contains("PRIVATE KEY"))
        );
        let certificates = broker_certificates(
            &owner,
            &cluster,
            &leaves(&cluster, &record, None, now).unwrap(),
        )
        .data
        .unwrap();
        assert_eq!(
            certificates.keys().collect::<Vec<_>>(),
            ["events-0.crt", "events-0.key"]
        );
        let authority_key = record.current().key_pem();
        assert!(
            certificates
                .values()
                .all(|held| held.0 != authority_key.as_bytes())
        );
    }
}
