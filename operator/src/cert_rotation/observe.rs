//! Where a run stands: read from the Secret it is about and from what brokers reported.

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use palisade_crds::{
    CertRotation, Reason, RotationMode, RotationPhase, RotationRun, RotationTarget, SecureCluster,
};
use serde_json::json;

use crate::{
    Context,
    authorities::{AuthorityRecord, REQUEST_ANNOTATION, RotationRequest},
    cluster::leaves,
    kubernetes::{FIELD_MANAGER, names},
    members::{Blocked, Stop},
    pki::CertificateInfo,
};

/// What a rotation is about, as it was read.
pub(super) struct Target {
    kind: RotationTarget,
    secret: Secret,
    authority: Option<AuthorityRecord>,
    cluster: std::sync::Arc<SecureCluster>,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Its phase.
    pub(super) phase: RotationPhase,
    /// What the phase waits for.
    pub(super) progress: String,
    /// Whether the Secret carries the request, or its result.
    pub(super) asked: bool,
    /// The authority that takes over.
    pub(super) new_fingerprint: Option<String>,
}

impl Target {
    /// Reads what a rotation is about.
    pub(super) async fn read(
        context: &Context,
        object: &CertRotation,
        cluster: &std::sync::Arc<SecureCluster>,
    ) -> Result<Self, Stop> {
        let name = cluster.name_any();
        let secret_name = match object.spec.target {
            RotationTarget::ClusterAuthority => names::cluster_authority_secret(&name),
            RotationTarget::ClientsAuthority => names::clients_authority_secret(&name),
            RotationTarget::BrokerLeaves => names::broker_certificates_secret(&name),
            other => {
                let message = format!(
                    "target {other:?} is not available in this version: write BrokerLeaves, ClusterAuthority or ClientsAuthority"
                );
                return Err(Blocked::new(Reason::InvalidSpec, message).into());
            }
        };
        let api: Api<Secret> = Api::namespaced(
            context.client.clone(),
            &cluster.namespace().unwrap_or_default(),
        );
        let secret = api.get_opt(&secret_name).await?.ok_or_else(|| {
            Blocked::new(
                Reason::ClusterNotReady,
                format!("Secret {secret_name} does not exist yet"),
            )
        })?;
        let authority = match object.spec.target {
            RotationTarget::BrokerLeaves => None,
            _ => Some(AuthorityRecord::read(&secret).map_err(|error| {
                Blocked::new(
                    Reason::SecretInvalid,
                    format!("Secret {secret_name}: {error}"),
                )
            })?),
        };
        Ok(Self {
            kind: object.spec.target,
            secret,
            authority,
            cluster: std::sync::Arc::clone(cluster),
        })
    }

    /// The authority that issues now.
    pub(super) fn current_fingerprint(&self) -> Option<String> {
        Some(
            self.authority
                .as_ref()?
                .current()
                .info()
                .fingerprint
                .clone(),
        )
    }

    /// Asks for a run, unless another is under way.
    pub(super) async fn ask(
        &self,
        context: &Context,
        request: &RotationRequest,
    ) -> Result<(), Stop> {
        if let Some(record) = &self.authority {
            let other = record
                .running()
                .or_else(|| record.request().map(|request| request.id.as_str()));
            if other.is_some_and(|other| other != request.id) {
                return Ok(());
            }
        }
        let text = serde_json::to_string(request).map_err(crate::Error::Encode)?;
        let patch = json!({ "metadata": { "annotations": { REQUEST_ANNOTATION: text } } });
        let namespace = self.cluster.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        context.metrics.api_write("Secret");
        api.patch(&self.secret.name_any(), &parameters, &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// Whether another run asked for less than this one since it began: certificates issued from then on are not what this one is for, so it has to begin anew.
    pub(super) fn is_overtaken(&self, wanted: &RotationRequest) -> bool {
        self.authority.is_none()
            && leaves::request(Some(&self.secret))
                .is_some_and(|held| !is_good_for(&held, wanted) && is_since(&held, wanted))
    }

    /// Where a run stands that asks for this.
    pub(super) fn view(&self, wanted: &RotationRequest, run: &RotationRun) -> View {
        match &self.authority {
            Some(record) => authority_view(
                record,
                &wanted.id,
                run,
                &trusting(&self.cluster, run.old_fingerprint.as_deref(), self.kind),
            ),
            None => self.leaves_view(wanted),
        }
    }

    fn leaves_view(&self, wanted: &RotationRequest) -> View {
        let request = leaves::request(Some(&self.secret)).filter(|held| is_good_for(held, wanted));
        let Some(requested_at) = request.as_ref().and_then(leaves::requested_at) else {
            return View {
                phase: RotationPhase::Waiting,
                progress: "asked for".to_owned(),
                asked: false,
                new_fingerprint: None,
            };
        };
        let brokers = self
            .cluster
            .status
            .as_ref()
            .map(|status| status.brokers.as_slice())
            .unwrap_or_default();
        let behind: Vec<_> = (0..self.cluster.spec.brokers.replicas)
            .map(|ordinal| names::pod(&self.cluster.name_any(), ordinal))
            .filter(|pod| {
                let leaf = self
                    .secret
                    .data
                    .as_ref()
                    .and_then(|data| data.get(&format!("{pod}.crt")))
                    .and_then(|bytes| {
                        CertificateInfo::from_pem(std::str::from_utf8(&bytes.0).ok()?).ok()
                    });
                let presented = leaf
                    .filter(|leaf| leaf.issued_at() >= requested_at)
                    .is_some_and(|leaf| {
                        brokers.iter().any(|broker| {
                            broker.pod == *pod
                                && !broker.endpoints.is_empty()
                                && broker
                                    .endpoints
                                    .iter()
                                    .all(|endpoint| endpoint.certificate_serial == leaf.serial)
                        })
                    });
                !presented
            })
            .collect();
        if behind.is_empty() {
            return View {
                phase: RotationPhase::Completed,
                progress: String::new(),
                asked: true,
                new_fingerprint: None,
            };
        }
        let progress = format!(
            "waiting until brokers present their new certificates: {}",
            behind.join(", ")
        );
        View {
            phase: RotationPhase::IssuingLeaves,
            progress,
            asked: true,
            new_fingerprint: None,
        }
    }
}

/// Whether what the Secret of the leaves asks for is good for a run: its own request, or one made since that replaces no less. Two runs at once would otherwise
/// write over each other's request for as long as both go on.
fn is_good_for(held: &RotationRequest, wanted: &RotationRequest) -> bool {
    let replaces = held.mode == RotationMode::ReplaceKey || held.mode == wanted.mode;
    held.id == wanted.id || replaces && is_since(held, wanted)
}

/// Whether a request was made when another was, or later.
fn is_since(held: &RotationRequest, wanted: &RotationRequest) -> bool {
    leaves::requested_at(held)
        .zip(leaves::requested_at(wanted))
        .is_some_and(|(held, wanted)| held >= wanted)
}

/// Brokers that report trust in an authority on an endpoint that the target is about.
fn trusting(
    cluster: &SecureCluster,
    authority: Option<&str>,
    target: RotationTarget,
) -> Vec<String> {
    let own = |name: &str| name == "CONTROL" || name == "ADMIN";
    let Some(authority) = authority else {
        return Vec::new();
    };
    let brokers = cluster
        .status
        .as_ref()
        .map(|status| status.brokers.as_slice())
        .unwrap_or_default();
    brokers
        .iter()
        .filter(|broker| {
            broker.endpoints.iter().any(|endpoint| {
                own(&endpoint.name) == (target == RotationTarget::ClusterAuthority)
                    && endpoint
                        .trusted_authorities
                        .iter()
                        .any(|trusted| trusted == authority)
            })
        })
        .map(|broker| broker.pod.clone())
        .collect()
}

/// Where a run of an authority stands. `trusting_old` are the brokers that still report trust in the former one.
fn authority_view(
    record: &AuthorityRecord,
    id: &str,
    run: &RotationRun,
    trusting_old: &[String],
) -> View {
    let view = |phase, progress: String, new: Option<String>| View {
        phase,
        progress,
        asked: true,
        new_fingerprint: new,
    };
    let current = || Some(record.current().info().fingerprint.clone());
    if record.running() == Some(id) {
        return match record.next() {
            Some(next) => view(
                RotationPhase::DistributingTrust,
                "waiting until every broker and every user's Secret trusts the new authority"
                    .to_owned(),
                Some(next.info().fingerprint.clone()),
            ),
            None => view(
                RotationPhase::IssuingLeaves,
                "waiting until everything in use was issued by the new authority".to_owned(),
                current(),
            ),
        };
    }
    if record.done() == Some(id) {
        // A renewed certificate of the same authority replaced the old one under another fingerprint.
        if trusting_old.is_empty() || run.old_fingerprint == current() {
            return view(RotationPhase::Completed, String::new(), current());
        }
        let progress = format!(
            "waiting until the former authority is trusted no more: {}",
            trusting_old.join(", ")
        );
        return view(RotationPhase::WithdrawingTrust, progress, current());
    }
    let asked = record.request().is_some_and(|request| request.id == id);
    let progress = match record.running() {
        Some(_) => "waiting for another rotation of this authority to end",
        None => "asked for",
    };
    View {
        phase: RotationPhase::Waiting,
        progress: progress.to_owned(),
        asked,
        new_fingerprint: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::{
        authorities::AuthorityPolicy,
        cluster::fixture,
        pki::{CommonName, KeyAlgorithm},
    };

    #[test]
    fn runs_that_overlap_share_the_request_that_replaces_most() {
        let request = |id: &str, mode, second: u32| RotationRequest {
            id: id.to_owned(),
            mode,
            at: format!("2027-07-01T00:00:{second:02}Z"),
        };
        let asking = |held: &RotationRequest| {
            let mut secret = Secret::default();
            let text = serde_json::to_string(held).unwrap();
            secret
                .annotations_mut()
                .insert(REQUEST_ANNOTATION.to_owned(), text);
            Target {
                kind: RotationTarget::BrokerLeaves,
                secret,
                authority: None,
                cluster: Arc::new(fixture()),
            }
        };
        let (renew, replace) = (RotationMode::Renew, RotationMode::ReplaceKey);
        let own = request("own", replace, 10);
        for (held, is_asked, overtaken) in [
            (request("own", replace, 10), true, false),
            (request("other", replace, 10), true, false),
            (request("other", replace, 20), true, false),
            (request("other", replace, 9), false, false),
            (request("other", renew, 9), false, false),
            // The key would not be replaced.
            (request("other", renew, 20), false, true),
        ] {
            let target = asking(&held);
            let view = target.view(&own, &RotationRun::default());
            assert_eq!(view.asked, is_asked, "{held:?}");
            assert_eq!(target.is_overtaken(&own), overtaken, "{held:?}");
        }
        // Having begun anew, it asks for the most, and last.
        let again = asking(&request("own", replace, 21));
        let other = request("other", renew, 20);
        assert!(again.view(&other, &RotationRun::default()).asked);
        assert!(!again.is_overtaken(&other));
    }

    #[test]
    fn the_phases_of_a_run_follow_the_secret_and_the_brokers() {
        let name = CommonName::new("events-cluster").unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let policy = AuthorityPolicy {
            validity: Duration::days(9),
            renew_before: Duration::days(1),
            algorithm: KeyAlgorithm::EcdsaP256,
        };
        let mut record = AuthorityRecord::generate(&name, &policy, now).unwrap();
        let run = RotationRun {
            old_fingerprint: Some(record.current().info().fingerprint.clone()),
            ..RotationRun::default()
        };
        let phase = |record: &AuthorityRecord, trusting: &[String]| {
            authority_view(record, "run-1", &run, trusting).phase
        };
        assert_eq!(phase(&record, &[]), RotationPhase::Waiting);
        assert!(!authority_view(&record, "run-1", &run, &[]).asked);
        record
            .begin(
                "run-1".to_owned(),
                RotationMode::ReplaceKey,
                &name,
                &policy,
                now,
            )
            .unwrap();
        assert_eq!(phase(&record, &[]), RotationPhase::DistributingTrust);
        let new = authority_view(&record, "run-1", &run, &[]).new_fingerprint;
        assert_eq!(
            authority_view(&record, "run-2", &run, &[]).progress,
            "waiting for another rotation of this authority to end"
        );
        record.switch(now).unwrap();
        assert_eq!(phase(&record, &[]), RotationPhase::IssuingLeaves);
        record.withdraw();
        assert_eq!(
            phase(&record, &["events-0".to_owned()]),
            RotationPhase::WithdrawingTrust
        );
        assert_eq!(phase(&record, &[]), RotationPhase::Completed);
        assert_eq!(
            authority_view(&record, "run-1", &run, &[]).new_fingerprint,
            new
        );
    }
}
