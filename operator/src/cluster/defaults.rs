//! `spec.defaults.quota`: limits of users that no Quota names.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use palisade_crds::{QuotaLimits, SecureCluster};

use crate::{
    Context,
    kafka::{
        AdminClient, KafkaError,
        quotas::{EntityName, QuotaEntity},
    },
    quota,
};

/// Annotation that remembers that brokers hold a default quota of the operator's, for when the spec names one no more.
const MARK: &str = "palisade.dev/default-quota";

/// Whether the operator has set a default quota.
pub(super) fn is_marked(config: &ConfigMap) -> bool {
    config.annotations().contains_key(MARK)
}

/// Remembers, or forgets, that the operator has set a default quota.
pub(super) fn mark(config: &mut ConfigMap, set: bool) {
    if set {
        config
            .annotations_mut()
            .insert(MARK.to_owned(), "true".to_owned());
    }
}

fn entity() -> QuotaEntity {
    QuotaEntity {
        user: Some(EntityName::Default),
        ..QuotaEntity::default()
    }
}

/// Whether a Quota speaks for every user; it goes before the cluster's default.
pub(super) fn is_claimed(context: &Context, cluster: &SecureCluster) -> bool {
    context.indexes.quotas.all().iter().any(|other| {
        crate::members::refers_to(other.as_ref(), &other.spec.cluster_ref, cluster)
            && quota::entity(other, None) == Some(entity())
    })
}

/// Sets the default quota, or removes it.
pub(super) async fn sync(
    context: &Context,
    admin: &AdminClient,
    wanted: Option<&QuotaLimits>,
) -> Result<(), KafkaError> {
    let held = admin.describe_quota(&entity()).await?;
    let change = quota::plan(&wanted.map(quota::values).unwrap_or_default(), &held);
    if !change.is_empty() {
        context.metrics.broker_write("SecureCluster");
        admin
            .alter_quota(&entity(), &change.set, &change.removed)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        let mut config = ConfigMap::default();
        mark(&mut config, false);
        assert!(!is_marked(&config));
        mark(&mut config, true);
        assert!(is_marked(&config));
        assert_eq!(entity().to_string(), "any user");
    }
}
