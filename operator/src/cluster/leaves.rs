//! The brokers' certificates: which stand and which are made anew.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt;
use palisade_crds::RotationMode;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Cluster;
use crate::{
    Error,
    authorities::{AuthorityRecord, REQUEST_ANNOTATION, RotationRequest},
    pki::{CertificateInfo, CommonName, LeafKey, LeafUse, PkiError, certificates},
};

/// The certificate and key of one broker.
#[derive(Clone)]
pub struct BrokerLeaf {
    /// Its pod.
    pub pod: String,
    /// Chain, PEM, leaf first.
    pub chain: String,
    /// Key, PKCS#8 PEM.
    pub key: String,
    /// What the leaf says.
    pub info: CertificateInfo,
}

impl std::fmt::Debug for BrokerLeaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerLeaf")
            .field("pod", &self.pod)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// The data of the Secret.
#[must_use]
pub fn secret_data(leaves: &[BrokerLeaf]) -> BTreeMap<String, ByteString> {
    leaves
        .iter()
        .flat_map(|leaf| {
            [
                (format!("{}.crt", leaf.pod), &leaf.chain),
                (format!("{}.key", leaf.pod), &leaf.key),
            ]
            .map(|(key, text)| (key, ByteString(text.as_bytes().to_vec())))
        })
        .collect()
}

/// Why a broker gets a new certificate; the first that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reissue {
    /// There is none, or it cannot be read.
    Missing,
    /// Another authority issued it.
    Authority,
    /// It is valid for other names.
    Names,
    /// Two thirds of its life are over.
    Age,
    /// A CertRotation asks for it, keeping the key or not.
    Requested(RotationMode),
}

/// The rotation of leaves that the Secret's annotation asks for.
#[must_use]
pub fn request(secret: Option<&Secret>) -> Option<RotationRequest> {
    serde_json::from_str(secret?.annotations().get(REQUEST_ANNOTATION)?).ok()
}

/// When a request was made; nothing when that cannot be read.
#[must_use]
pub fn requested_at(request: &RotationRequest) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(&request.at, &Rfc3339).ok()
}

/// Whether a certificate stands.
#[must_use]
pub fn reissue(
    held: Option<&CertificateInfo>,
    authority: &CertificateInfo,
    dns_names: &[String],
    request: Option<&RotationRequest>,
    now: OffsetDateTime,
) -> Option<Reissue> {
    let Some(held) = held else {
        return Some(Reissue::Missing);
    };
    if !held.is_issued_by(authority) {
        return Some(Reissue::Authority);
    }
    if held.dns_names != dns_names {
        return Some(Reissue::Names);
    }
    let life = held.not_after - held.issued_at();
    if now >= held.issued_at() + life * 2 / 3 {
        return Some(Reissue::Age);
    }
    let request =
        request.filter(|request| requested_at(request).is_some_and(|at| held.issued_at() < at))?;
    Some(Reissue::Requested(request.mode))
}

/// The leaf of every broker: those that stand, with today's chain behind them, and new ones in place of the others.
///
/// # Errors
/// When a certificate cannot be made.
pub fn leaves(
    cluster: &Cluster,
    authority: &AuthorityRecord,
    secret: Option<&Secret>,
    now: OffsetDateTime,
) -> Result<Vec<BrokerLeaf>, Error> {
    let request = request(secret);
    (0..cluster.replicas)
        .zip(cluster.pods())
        .map(|(ordinal, pod)| {
            let dns_names = cluster.dns_names(ordinal);
            let held = held(secret, &pod);
            let info = held.as_ref().map(|held| &held.info);
            let reason = reissue(
                info,
                authority.current().info(),
                &dns_names,
                request.as_ref(),
                now,
            );
            match (held, reason) {
                (Some(held), None) => Ok(BrokerLeaf {
                    chain: first_certificate(&held.chain) + &authority.chain(),
                    ..held
                }),
                (held, reason) => {
                    tracing::info!(pod, ?reason, "issuing a broker certificate");
                    let keep = matches!(
                        reason,
                        Some(
                            Reissue::Requested(RotationMode::Renew) | Reissue::Age | Reissue::Names
                        )
                    );
                    let key = match &held {
                        Some(held) if keep => LeafKey::Existing(&held.key),
                        _ => LeafKey::New(cluster.cluster_policy.algorithm),
                    };
                    let name = CommonName::new(pod.clone()).map_err(|error| PkiError::Read {
                        what: "a pod's name",
                        reason: error.to_string(),
                    })?;
                    let leaf = authority.current().issue(
                        &name,
                        &dns_names,
                        LeafUse::Broker,
                        key,
                        cluster.leaf_validity,
                        now,
                    )?;
                    Ok(BrokerLeaf {
                        info: CertificateInfo::from_pem(&leaf.certificate)?,
                        chain: leaf.certificate + &authority.chain(),
                        key: leaf.key.to_string(),
                        pod,
                    })
                }
            }
        })
        .collect()
}

fn held(secret: Option<&Secret>, pod: &str) -> Option<BrokerLeaf> {
    let text = |suffix: &str| {
        let bytes = secret?.data.as_ref()?.get(&format!("{pod}.{suffix}"))?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let (chain, key) = (text("crt")?, text("key")?);
    // A pair that does not belong together is as good as none.
    crate::pki::Authority::from_pem(&first_certificate(&chain), &key).ok()?;
    Some(BrokerLeaf {
        pod: pod.to_owned(),
        info: CertificateInfo::from_pem(&chain).ok()?,
        chain,
        key,
    })
}

/// The first certificate of a PEM text, alone.
fn first_certificate(chain: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    match chain.split_once(END) {
        Some((first, _)) if certificates(chain).is_ok() => format!("{first}{END}\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::Duration;

    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn setup() -> (Cluster, AuthorityRecord, Secret) {
        let cluster = validate(&fixture()).unwrap();
        let record = AuthorityRecord::generate(
            &cluster.cluster_authority_name().unwrap(),
            &cluster.cluster_policy,
            now(),
        )
        .unwrap();
        let first = leaves(&cluster, &record, None, now()).unwrap();
        let secret = Secret {
            data: Some(secret_data(&first)),
            ..Secret::default()
        };
        (cluster, record, secret)
    }

    #[test]
    fn a_leaf_that_stands_is_kept_byte_for_byte() {
        let (cluster, record, secret) = setup();
        let again = leaves(&cluster, &record, Some(&secret), now() + Duration::days(59)).unwrap();
        assert_eq!(Some(secret_data(&again)), secret.data);
    }

    #[test]
    fn every_reason_for_a_new_leaf_is_told_apart() {
        let (cluster, record, secret) = setup();
        let held = held(Some(&secret), "events-0").unwrap().info;
        let authority = record.current().info();
        let dns = cluster.dns_names(0);
        let request = |mode, at: &str| RotationRequest {
            id: "r".to_owned(),
            mode,
            at: at.to_owned(),
        };
        let after = request(RotationMode::Renew, "2027-01-16T00:00:00Z");
        let before = request(RotationMode::Renew, "2027-01-14T00:00:00Z");
        let other = AuthorityRecord::generate(
            &cluster.cluster_authority_name().unwrap(),
            &cluster.cluster_policy,
            now(),
        )
        .unwrap();
        for (reason, outcome) in [
            (None, reissue(Some(&held), authority, &dns, None, now())),
            (
                None,
                reissue(Some(&held), authority, &dns, Some(&before), now()),
            ),
            (
                Some(Reissue::Missing),
                reissue(None, authority, &dns, None, now()),
            ),
            (
                Some(Reissue::Authority),
                reissue(Some(&held), other.current().info(), &dns, None, now()),
            ),
            (
                Some(Reissue::Names),
                reissue(Some(&held), authority, &[], None, now()),
            ),
            (
                Some(Reissue::Age),
                reissue(
                    Some(&held),
                    authority,
                    &dns,
                    None,
                    now() + Duration::days(60),
                ),
            ),
            (
                Some(Reissue::Requested(RotationMode::Renew)),
                reissue(Some(&held), authority, &dns, Some(&after), now()),
            ),
        ] {
            assert_eq!(outcome, reason);
        }
    }

    #[test]
    fn renewing_keeps_the_key_and_a_broken_pair_is_replaced() {
        let (cluster, record, mut secret) = setup();
        let old = held(Some(&secret), "events-0").unwrap();
        let renewed = leaves(&cluster, &record, Some(&secret), now() + Duration::days(61)).unwrap();
        assert_eq!(renewed[0].key, old.key);
        assert_ne!(renewed[0].info.serial, old.info.serial);
        secret
            .data
            .as_mut()
            .unwrap()
            .insert("events-0.key".to_owned(), ByteString(b"broken".to_vec()));
        let replaced = leaves(&cluster, &record, Some(&secret), now()).unwrap();
        assert_ne!(replaced[0].key, old.key);
    }
}
