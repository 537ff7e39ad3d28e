//! Status, written when it differs, and Events, published when a reason changes.

use std::fmt::Debug;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use palisade_crds::{ConditionType, PAUSED_ANNOTATION, Reason};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::FIELD_MANAGER;
use crate::{Context, Error};

/// A kind whose status carries conditions.
pub trait StatusObject:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its status.
    type Status: Serialize + PartialEq + Default + Clone + Send + Sync;

    /// The status as the watch saw it.
    fn status(&self) -> Option<&Self::Status>;

    /// The conditions within a status.
    fn conditions(status: &Self::Status) -> &[Condition];
}

macro_rules! status_object {
    ($($kind:ty => $status:ty),* $(,)?) => {
        $(impl StatusObject for $kind {
            type Status = $status;

            fn status(&self) -> Option<&Self::Status> {
                self.status.as_ref()
            }

            fn conditions(status: &Self::Status) -> &[Condition] {
                &status.conditions
            }
        })*
    };
}

status_object! {
    palisade_crds::SecureCluster => palisade_crds::SecureClusterStatus,
    palisade_crds::User => palisade_crds::UserStatus,
    palisade_crds::Acl => palisade_crds::AclStatus,
    palisade_crds::Quota => palisade_crds::QuotaStatus,
    palisade_crds::Topic => palisade_crds::TopicStatus,
    palisade_crds::CertRotation => palisade_crds::CertRotationStatus,
}

/// Whether the object's own annotation holds reconciliation.
#[must_use]
pub fn is_paused(object: &impl ResourceExt) -> bool {
    object
        .annotations()
        .get(PAUSED_ANNOTATION)
        .is_some_and(|value| value == "true")
}

/// Writes the status unless it stands already, and publishes an Event when the reason of Ready changed.
///
/// # Errors
/// What the API server answers. That the object is gone is none.
pub async fn write_status<K: StatusObject>(
    context: &Context,
    object: &K,
    status: &K::Status,
) -> Result<(), Error> {
    if object.status() == Some(status) {
        return Ok(());
    }
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(Client::clone(&context.client), &namespace);
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "namespace": namespace },
        "status": status,
    });
    context.metrics.api_write(&K::kind(&()));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api
        .patch_status(&object.name_any(), &parameters, &Patch::Apply(&patch))
        .await
    {
        Ok(_) => {}
        Err(kube::Error::Api(error)) if error.code == 404 => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let ready = |conditions: &[Condition]| {
        conditions
            .iter()
            .find(|condition| condition.type_ == ConditionType::Ready.as_str())
            .cloned()
    };
    let before = object
        .status()
        .and_then(|status| ready(K::conditions(status)));
    if let Some(after) = ready(K::conditions(status))
        && before.as_ref().map(|before| &before.reason) != Some(&after.reason)
    {
        let kind = if after.status == "True" {
            EventType::Normal
        } else {
            EventType::Warning
        };
        send(context, object, kind, &after.reason, after.message).await;
    }
    Ok(())
}

/// Publishes an Event about an object. A failure is logged: an Event is a courtesy, never a reason to stop.
pub async fn publish<K: StatusObject>(
    context: &Context,
    object: &K,
    kind: EventType,
    reason: Reason,
    note: String,
) {
    send(context, object, kind, reason.as_str(), note).await;
}

async fn send<K: StatusObject>(
    context: &Context,
    object: &K,
    type_: EventType,
    reason: &str,
    mut note: String,
) {
    // The API server refuses notes of more than a kilobyte.
    note.truncate(note.floor_char_boundary(1000));
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context
        .recorder
        .publish(&event, &object.object_ref(&()))
        .await
    {
        tracing::debug!(%error, object = object.name_any(), reason, "an event was not published");
    }
}
