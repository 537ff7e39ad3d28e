//! The brokers' volumes: grown in place, deleted only when the policy says so.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Cluster, objects::stateful_set::DATA_VOLUME, observe::of_cluster};
use crate::{
    Context, Error,
    kubernetes::{FIELD_MANAGER, is_less_than},
};

/// Claims that ask for less than the spec says.
fn too_small(
    claims: &[PersistentVolumeClaim],
    bytes: u64,
) -> impl Iterator<Item = &PersistentVolumeClaim> {
    claims.iter().filter(move |claim| {
        let requests = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        requests
            .and_then(|requests| requests.get("storage"))
            .is_some_and(|held| is_less_than(held, bytes))
    })
}

/// Asks for larger volumes where the spec says so; the storage class does the rest, while the brokers run.
pub(super) async fn grow(
    context: &Context,
    cluster: &Cluster,
    claims: &[PersistentVolumeClaim],
) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), &cluster.namespace);
    for claim in too_small(claims, cluster.volume_bytes) {
        let size = cluster.volume_bytes.to_string();
        let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        context.metrics.api_write("PersistentVolumeClaim");
        api.patch(&claim.name_any(), &parameters, &Patch::Merge(&patch))
            .await?;
    }
    Ok(())
}

/// Deletes the claims of a cluster. Kubernetes keeps each until its pod is gone.
pub(super) async fn delete(context: &Context, namespace: &str, cluster: &str) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    for claim in api.list(&of_cluster(cluster)).await? {
        if claim.metadata.deletion_timestamp.is_none() {
            delete_claim(context, namespace, &claim).await?;
        }
    }
    Ok(())
}

/// Deletes one claim; that it is gone already is no error.
pub(super) async fn delete_claim(
    context: &Context,
    namespace: &str,
    claim: &PersistentVolumeClaim,
) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    context.metrics.api_write("PersistentVolumeClaim");
    match api
        .delete(&claim.name_any(), &DeleteParams::default())
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Claims of brokers that were removed: of an ordinal that no broker stands at, nobody is registered under and no pod has.
pub(super) fn left_over<'a>(
    claims: &'a [PersistentVolumeClaim],
    cluster: &Cluster,
    in_use: &BTreeSet<i32>,
) -> Vec<&'a PersistentVolumeClaim> {
    let prefix = format!("{DATA_VOLUME}-{}-", cluster.name);
    let ordinal = |claim: &PersistentVolumeClaim| -> Option<i32> {
        claim.name_any().strip_prefix(&prefix)?.parse().ok()
    };
    claims
        .iter()
        .filter(|claim| claim.metadata.deletion_timestamp.is_none())
        .filter(|claim| {
            ordinal(claim).is_some_and(|ordinal| {
                ordinal >= cluster.replicas.max(cluster.wanted) && !in_use.contains(&ordinal)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn only_claims_of_brokers_that_nobody_knows_any_more_are_left_over() {
        let claims: Vec<PersistentVolumeClaim> = [
            "data-events-0",
            "data-events-3",
            "data-events-4",
            "data-events-x",
            "other",
        ]
        .map(|name| serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap())
        .into();
        let mut object = fixture();
        object.spec.brokers.replicas = 3;
        let cluster = validate(&object).unwrap();
        let names = |cluster: &Cluster, in_use: &[i32]| -> Vec<String> {
            let in_use = in_use.iter().copied().collect();
            let found = left_over(&claims, cluster, &in_use);
            found.into_iter().map(ResourceExt::name_any).collect()
        };
        assert_eq!(names(&cluster, &[0, 1, 2, 4]), ["data-events-3"]);
        assert_eq!(names(&cluster, &[0, 1, 2, 3, 4]), [""; 0]);
        let standing = cluster.with_brokers(4).unwrap();
        assert_eq!(names(&standing, &[0, 1, 2]), ["data-events-4"]);
    }

    #[test]
    fn only_claims_that_ask_for_less_are_grown() {
        let claim = |name: &str, size: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({
                "metadata": { "name": name },
                "spec": { "resources": { "requests": { "storage": size } } }
            }))
            .unwrap()
        };
        let claims = [
            claim("small", "10Gi"),
            claim("equal", "21474836480"),
            claim("large", "30Gi"),
        ];
        let grown: Vec<_> = too_small(&claims, 20 << 30)
            .map(ResourceExt::name_any)
            .collect();
        assert_eq!(grown, ["small"]);
    }
}
