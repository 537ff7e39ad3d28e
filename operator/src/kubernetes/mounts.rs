//! Makes kubelets bring mounted Secrets up to date at once, instead of within their minute: a change of any annotation makes them look at a pod again.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::FIELD_MANAGER;
use crate::{Context, Error};

/// Annotation with a digest of what a pod should see.
const REVISION: &str = "palisade.dev/mounted-revision";

/// Marks the pods that do not carry this revision yet, and returns whether there were any.
///
/// # Errors
/// What the API server answers. That a pod is gone is none.
pub async fn refresh_mounts(
    context: &Context,
    namespace: &str,
    pods: &[Pod],
    revision: &str,
) -> Result<bool, Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let mut marked = false;
    for pod in pods.iter().filter(|pod| is_behind(pod, revision)) {
        let patch = json!({ "metadata": { "annotations": { REVISION: revision } } });
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        context.metrics.api_write("Pod");
        match api
            .patch(&pod.name_any(), &parameters, &Patch::Merge(&patch))
            .await
        {
            Ok(_) => marked = true,
            Err(kube::Error::Api(error)) if error.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(marked)
}

/// Marks the pods of a namespace that mount a Secret, after it was written.
///
/// # Errors
/// What the API server answers.
pub async fn refresh_secret(
    context: &Context,
    namespace: &str,
    secret: &str,
    revision: &str,
) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let pods: Vec<Pod> = api
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter(|pod| mounts(pod, secret))
        .collect();
    refresh_mounts(context, namespace, &pods, revision).await?;
    Ok(())
}

fn is_behind(pod: &Pod, revision: &str) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .annotations()
            .get(REVISION)
            .is_none_or(|held| held != revision)
}

fn mounts(pod: &Pod, secret: &str) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().any(|volume| {
        let direct = volume
            .secret
            .as_ref()
            .is_some_and(|source| source.secret_name.as_deref() == Some(secret));
        let projected = volume
            .projected
            .as_ref()
            .and_then(|projected| projected.sources.as_ref());
        let among = projected.into_iter().flatten().any(|source| {
            source
                .secret
                .as_ref()
                .is_some_and(|source| source.name == secret)
        });
        direct || among
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(volumes: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "annotations": { REVISION: "one" } },
            "spec": { "containers": [], "volumes": volumes }
        }))
        .unwrap()
    }

    #[test]
    fn pods_are_found_by_what_they_mount() {
        for (volumes, expected) in [
            (
                json!([{ "name": "a", "secret": { "secretName": "alice" } }]),
                true,
            ),
            (
                json!([{ "name": "a", "projected": { "sources": [{ "secret": { "name": "alice" } }] } }]),
                true,
            ),
            (
                json!([{ "name": "alice", "secret": { "secretName": "bob" } }]),
                false,
            ),
            (json!([]), false),
        ] {
            assert_eq!(
                mounts(&pod(volumes.clone()), "alice"),
                expected,
                "{volumes}"
            );
        }
    }

    #[test]
    fn a_pod_is_marked_once_for_each_revision() {
        assert!(!is_behind(&pod(json!([])), "one"));
        assert!(is_behind(&pod(json!([])), "two"));
    }
}
