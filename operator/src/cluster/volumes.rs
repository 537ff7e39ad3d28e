//! The brokers' volumes: grown in place, deleted only when the policy says so.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Cluster, observe::of_cluster};
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
        if claim.metadata.deletion_timestamp.is_some() {
            continue;
        }
        context.metrics.api_write("PersistentVolumeClaim");
        match api
            .delete(&claim.name_any(), &DeleteParams::default())
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(error)) if error.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

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
