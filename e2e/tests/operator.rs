//! The operator on a real API server: what it writes, what it leaves alone, and what it says. Nothing runs there, so brokers never answer; what needs them
//! is proved where they run.
//!
//! 1. A cluster is reconciled until it settles: every object stands, and a further reconcile writes nothing.
//! 2. What somebody changed is put back, what somebody added is left alone.
//! 3. Objects in every order: members without a cluster wait and say so, foreign namespaces are refused, of two claims the older counts.
//! 4. A lost log key is never replaced over volumes it sealed; a broken authority is never replaced at all.
//! 5. Deleting everything ends, in a namespace that is going away too.
//! 6. Asking for fewer brokers stops none that has not said that it has nothing left.
//! 7. A certificate that has expired in its Secret is replaced.
//! 8. Two operators compete for the lease: one leads, the other takes over.
//! 9. What belongs to somebody else is neither changed nor taken, and what the API server refuses is in the status.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fmt::Debug,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::FutureExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::events::{Recorder, Reporter},
};
use palisade_crds::{Acl, CertRotation, Quota, SecureCluster, Topic, User};
use palisade_e2e::cluster::ApiServer;
use palisade_operator::{
    Context, Settings,
    access::AccessCache,
    authorities::AuthorityRecord,
    cluster,
    controllers::{Controllers, Scope},
    kubernetes::LeaseLock,
    metrics::Metrics,
    pki::{CertificateInfo, CommonName, LeafKey, LeafUse},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{sync::oneshot, task::JoinHandle};

#[path = "operator/bench.rs"]
mod bench;

use bench::{Bench, a_cluster, member, server};

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_cluster_is_whole_and_a_further_reconcile_writes_nothing() {
    let mut bench = Bench::new("settle", &[]).await;
    bench.cluster().await;
    bench
        .reason::<SecureCluster>("settle", "events", "BrokersUnreachable")
        .await;
    bench.halt().await;

    let secrets: Api<Secret> = bench.api();
    for name in [
        "events-cluster-ca",
        "events-clients-ca",
        "events-broker-certs",
        "events-trust",
        "events-log-kek",
    ] {
        assert!(secrets.get_opt(name).await.unwrap().is_some(), "{name}");
    }
    let services: Api<Service> = bench.api();
    services.get("events-brokers").await.unwrap();
    services.get("events-bootstrap").await.unwrap();
    let policies: Api<NetworkPolicy> = bench.api();
    let names: Vec<String> = policies
        .list(&Default::default())
        .await
        .unwrap()
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    assert_eq!(
        names,
        [
            "events-internal",
            "events-listener-batch",
            "events-listener-internal"
        ]
    );
    bench
        .api::<PodDisruptionBudget>()
        .get("events-brokers")
        .await
        .unwrap();
    assert_eq!(
        bench
            .api::<ServiceAccount>()
            .get("events-brokers")
            .await
            .unwrap()
            .automount_service_account_token,
        Some(false)
    );
    bench.api::<ConfigMap>().get("events-config").await.unwrap();
    let set = bench.api::<StatefulSet>().get("events").await.unwrap();
    let managers: Vec<_> = set
        .metadata
        .managed_fields
        .unwrap()
        .iter()
        .filter_map(|entry| entry.manager.clone())
        .collect();
    assert_eq!(managers, ["palisade-operator"]);

    // Idle means idle.
    let object = bench.api::<SecureCluster>().get("events").await.unwrap();
    cluster::reconcile(&object, &bench.context).await.unwrap();
    let object = bench.api::<SecureCluster>().get("events").await.unwrap();
    let before = bench.context.metrics.total_api_writes();
    for _ in 0..3 {
        cluster::reconcile(&object, &bench.context).await.unwrap();
    }
    assert_eq!(bench.context.metrics.total_api_writes(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_is_put_back_and_what_was_added_is_left() {
    let mut bench = Bench::new("drift", &[]).await;
    bench.cluster().await;
    bench
        .reason::<SecureCluster>("drift", "events", "BrokersUnreachable")
        .await;
    bench.halt().await;
    let policies: Api<NetworkPolicy> = bench.api();
    policies
        .delete("events-listener-internal", &DeleteParams::default())
        .await
        .unwrap();
    let services: Api<Service> = bench.api();
    let hand = PatchParams {
        field_manager: Some("somebody".to_owned()),
        ..PatchParams::default()
    };
    let patch = json!({ "metadata": { "annotations": { "team": "data" } }, "spec": { "selector": { "app.kubernetes.io/instance": "other" } } });
    services
        .patch("events-bootstrap", &hand, &Patch::Merge(&patch))
        .await
        .unwrap();

    let object = bench.api::<SecureCluster>().get("events").await.unwrap();
    cluster::reconcile(&object, &bench.context).await.unwrap();
    policies.get("events-listener-internal").await.unwrap();
    let service = services.get("events-bootstrap").await.unwrap();
    assert_eq!(service.annotations()["team"], "data");
    assert_eq!(
        service.spec.unwrap().selector.unwrap()["app.kubernetes.io/instance"],
        "events"
    );

    // A listener that is gone takes its policy with it.
    let mut object = object;
    object.spec.listeners.truncate(1);
    cluster::reconcile(&object, &bench.context).await.unwrap();
    assert!(
        policies
            .get_opt("events-listener-batch")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_may_come_in_any_order_and_each_says_what_it_waits_for() {
    let bench = Bench::new("order", &["order-shop", "order-other"]).await;
    let reference = json!({ "name": "events", "namespace": "order" });
    let authentication = json!({ "type": "ScramSha512" });
    bench
        .create::<User>(
            "order",
            member("User", "alice", json!({ "authentication": authentication })),
        )
        .await;
    bench
        .create::<Topic>("order", member("Topic", "orders", json!({})))
        .await;
    bench.create::<Acl>("order", member("Acl", "alice", json!({ "principal": { "userRef": "alice" }, "rules": [{ "resource": { "type": "Topic", "name": "orders" }, "operations": ["Write"] }] }))).await;
    bench.create::<Quota>("order", member("Quota", "alice", json!({ "entity": { "userRef": "alice" }, "limits": { "producerByteRate": "1Mi" } }))).await;
    bench
        .create::<CertRotation>(
            "order",
            member(
                "CertRotation",
                "leaves",
                json!({ "target": "BrokerLeaves", "trigger": { "once": {} } }),
            ),
        )
        .await;
    let message = bench
        .reason::<User>("order", "alice", "ClusterNotFound")
        .await;
    assert_eq!(message, "SecureCluster order/events does not exist yet");
    bench
        .reason::<Topic>("order", "orders", "ClusterNotFound")
        .await;
    bench
        .reason::<Acl>("order", "alice", "ClusterNotFound")
        .await;
    bench
        .reason::<Quota>("order", "alice", "ClusterNotFound")
        .await;
    bench
        .reason::<CertRotation>("order", "leaves", "ClusterNotFound")
        .await;

    bench.cluster().await;
    let message = bench
        .reason::<User>("order", "alice", "ClusterNotReady")
        .await;
    assert_eq!(
        message,
        "waiting for SecureCluster events: no broker serves clients yet"
    );
    bench
        .reason::<CertRotation>("order", "leaves", "ClusterNotReady")
        .await;

    bench
        .create::<User>(
            "order-shop",
            member(
                "User",
                "bob",
                json!({ "clusterRef": reference, "authentication": authentication }),
            ),
        )
        .await;
    bench
        .reason::<User>("order-shop", "bob", "ClusterNotReady")
        .await;
    bench
        .create::<User>(
            "order-other",
            member(
                "User",
                "carol",
                json!({ "clusterRef": reference, "authentication": authentication }),
            ),
        )
        .await;
    let message = bench
        .reason::<User>("order-other", "carol", "NamespaceNotAllowed")
        .await;
    assert_eq!(
        message,
        "SecureCluster order/events does not admit namespace order-other: list it in its spec.allowedNamespaces"
    );

    // Nothing was issued for anyone: no broker has accepted anything.
    assert!(
        bench
            .api::<Secret>()
            .get_opt("alice")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_key_is_never_replaced_over_the_volumes_it_sealed() {
    let mut bench = Bench::new("key", &[]).await;
    bench.create::<PersistentVolumeClaim>(
        "key",
        json!({
            "metadata": { "name": "data-events-0", "labels": { "palisade.dev/cluster": "events" } },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } }
        }),
    )
    .await;
    bench.cluster().await;
    let message = bench
        .reason::<SecureCluster>("key", "events", "SecretNotFound")
        .await;
    assert!(
        message.starts_with("Secret events-log-kek with the key of the sealed log does not exist"),
        "{message}"
    );
    assert!(
        bench
            .api::<Secret>()
            .get_opt("events-log-kek")
            .await
            .unwrap()
            .is_none()
    );
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_authority_is_reported_and_left_alone() {
    let mut bench = Bench::new("authority", &[]).await;
    bench.cluster().await;
    bench
        .reason::<SecureCluster>("authority", "events", "BrokersUnreachable")
        .await;
    let secrets: Api<Secret> = bench.api();
    let broken = json!({ "stringData": { "ca.crt": "no certificate" } });
    secrets
        .patch(
            "events-cluster-ca",
            &PatchParams::default(),
            &Patch::Merge(&broken),
        )
        .await
        .unwrap();
    let message = bench
        .reason::<SecureCluster>("authority", "events", "SecretInvalid")
        .await;
    assert!(message.starts_with("cannot read"), "{message}");
    assert_eq!(
        secrets
            .get("events-cluster-ca")
            .await
            .unwrap()
            .data
            .unwrap()["ca.crt"]
            .0,
        b"no certificate"
    );
    bench.halt().await;
}

/// A certificate that has expired, as it lies in a Secret after the operator was away for long: a new one stands there as soon as it is seen, for the same key, and
/// the other brokers keep theirs.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_in_a_secret_is_replaced() {
    let mut bench = Bench::new("expired", &[]).await;
    let mut cluster = a_cluster();
    cluster["spec"]["brokers"] = json!({ "replicas": 3 });
    bench.create::<SecureCluster>("expired", cluster).await;
    bench
        .reason::<SecureCluster>("expired", "events", "BrokersUnreachable")
        .await;
    let secrets: Api<Secret> = bench.api();
    let held = secrets.get("events-broker-certs").await.unwrap();
    let text = |secret: &Secret, key: &str| {
        String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
    };
    let authority = secrets.get("events-cluster-ca").await.unwrap();
    let authority = AuthorityRecord::read(&authority).unwrap();
    let standing = CertificateInfo::from_pem(&text(&held, "events-0.crt")).unwrap();
    let now = OffsetDateTime::now_utc();
    let expired = authority
        .current()
        .issue(
            &CommonName::new("events-0").unwrap(),
            &standing.dns_names,
            LeafUse::Broker,
            LeafKey::Existing(&text(&held, "events-0.key")),
            time::Duration::days(90),
            now - time::Duration::days(400),
        )
        .unwrap();
    assert!(
        CertificateInfo::from_pem(&expired.certificate)
            .unwrap()
            .not_after
            < now
    );
    let patch = json!({ "stringData": { "events-0.crt": expired.certificate } });
    secrets
        .patch(
            "events-broker-certs",
            &PatchParams::default(),
            &Patch::Merge(&patch),
        )
        .await
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let secret = loop {
        let secret = secrets.get("events-broker-certs").await.unwrap();
        let info = CertificateInfo::from_pem(&text(&secret, "events-0.crt")).unwrap();
        if info.not_after > now {
            assert_ne!(info.serial, standing.serial);
            assert_eq!(info.public_key, standing.public_key);
            break secret;
        }
        assert!(Instant::now() < until, "it is still there: {info:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(text(&secret, "events-1.crt"), text(&held, "events-1.crt"));
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_log_key_is_reported_with_advice() {
    let mut bench = Bench::new("badkey", &[]).await;
    bench.create::<Secret>("badkey", json!({ "metadata": { "name": "events-log-kek" }, "stringData": { "current": "k1", "k1.key": "c2hvcnQ=" } })).await;
    bench.cluster().await;
    let message = bench
        .reason::<SecureCluster>("badkey", "events", "SecretInvalid")
        .await;
    assert_eq!(
        message,
        "key `k1.key` of Secret events-log-kek is not 32 bytes in base64: make one with `openssl rand -base64 32`"
    );
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_somebody_else_is_neither_changed_nor_taken() {
    let mut bench = Bench::new("foreign", &[]).await;
    let secret = json!({ "metadata": { "name": "events-clients-ca" }, "stringData": { "ca.crt": "theirs" } });
    bench.create::<Secret>("foreign", secret).await;
    let map = json!({ "metadata": { "name": "events-config" }, "data": { "theirs": "yes" } });
    bench.create::<ConfigMap>("foreign", map).await;
    bench.cluster().await;
    let message = bench
        .reason::<SecureCluster>("foreign", "events", "SecretConflict")
        .await;
    let expected = "exists and belongs to something else: delete or rename it, or give the object that needs this name another one";
    assert_eq!(message, format!("Secret events-clients-ca {expected}"));
    let secrets: Api<Secret> = bench.api();
    secrets
        .delete("events-clients-ca", &DeleteParams::default())
        .await
        .unwrap();
    let message = bench
        .reason::<SecureCluster>("foreign", "events", "Conflict")
        .await;
    assert_eq!(message, format!("ConfigMap events-config {expected}"));
    let maps: Api<ConfigMap> = bench.api();
    let map = maps.get("events-config").await.unwrap();
    assert_eq!(map.data.unwrap()["theirs"], "yes");
    assert_eq!(map.metadata.owner_references, None);
    maps.delete("events-config", &DeleteParams::default())
        .await
        .unwrap();
    bench
        .reason::<SecureCluster>("foreign", "events", "BrokersUnreachable")
        .await;
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_refuses_is_in_the_status() {
    let mut bench = Bench::new("refused", &[]).await;
    let mut object = a_cluster();
    object["spec"]["brokers"] =
        json!({ "resources": { "requests": { "memory": "2Gi" }, "limits": { "memory": "1Gi" } } });
    bench.create::<SecureCluster>("refused", object).await;
    let message = bench
        .reason::<SecureCluster>("refused", "events", "Retrying")
        .await;
    assert!(message.contains("memory limit"), "{message}");
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_cluster_is_left_alone() {
    let mut bench = Bench::new("pause", &[]).await;
    let mut object = a_cluster();
    object["metadata"]["annotations"] = json!({ "palisade.dev/paused": "true" });
    bench.create::<SecureCluster>("pause", object).await;
    let api: Api<SecureCluster> = bench.api();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = serde_json::to_value(api.get("events").await.unwrap()).unwrap();
        if seen["status"]["conditions"][0]["type"] == "ReconciliationPaused" {
            break;
        }
        assert!(Instant::now() < until, "{seen:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        bench
            .api::<StatefulSet>()
            .get_opt("events")
            .await
            .unwrap()
            .is_none()
    );
    let go = json!({ "metadata": { "annotations": { "palisade.dev/paused": null } } });
    api.patch("events", &PatchParams::default(), &Patch::Merge(&go))
        .await
        .unwrap();
    bench
        .reason::<SecureCluster>("pause", "events", "BrokersUnreachable")
        .await;
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_everything_ends_in_a_namespace_that_goes_away_too() {
    let bench = Bench::new("delete", &[]).await;
    bench.cluster().await;
    bench
        .create::<User>(
            "delete",
            member(
                "User",
                "alice",
                json!({ "authentication": { "type": "ScramSha512" } }),
            ),
        )
        .await;
    bench
        .create::<Topic>(
            "delete",
            member("Topic", "orders", json!({ "reclaimPolicy": "Delete" })),
        )
        .await;
    bench
        .reason::<User>("delete", "alice", "ClusterNotReady")
        .await;
    bench
        .reason::<SecureCluster>("delete", "events", "BrokersUnreachable")
        .await;
    let namespaces: Api<Namespace> = Api::all(bench.client.clone());
    namespaces
        .delete("delete", &DeleteParams::default())
        .await
        .unwrap();
    // What the namespace controller does, in the least convenient order.
    bench
        .api::<Secret>()
        .delete_collection(&DeleteParams::default(), &Default::default())
        .await
        .unwrap();
    bench
        .api::<SecureCluster>()
        .delete("events", &DeleteParams::default())
        .await
        .unwrap();
    bench
        .api::<User>()
        .delete("alice", &DeleteParams::default())
        .await
        .unwrap();
    bench
        .api::<Topic>()
        .delete("orders", &DeleteParams::default())
        .await
        .unwrap();
    bench.gone::<SecureCluster>("events").await;
    bench.gone::<User>("alice").await;
    bench.gone::<Topic>("orders").await;
}

/// Waits until the Progressing condition has a reason, and returns its message.
async fn progressing(api: &Api<SecureCluster>, reason: &str) -> String {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let status = api.get("events").await.unwrap().status.unwrap_or_default();
        let mut conditions = status.conditions.iter();
        let found = conditions.find(|condition| condition.type_ == "Progressing");
        if let Some(found) = found.filter(|found| found.reason == reason) {
            return found.message.clone();
        }
        assert!(Instant::now() < until, "{:#?}", status.conditions);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_broker_is_stopped_before_it_says_that_it_has_nothing_left() {
    let mut bench = Bench::new("shrink", &[]).await;
    let mut object = a_cluster();
    object["spec"]["brokers"] = json!({ "replicas": 4 });
    object["spec"]["storage"]["reclaimPolicy"] = json!("Delete");
    bench.create::<SecureCluster>("shrink", object).await;
    let api: Api<SecureCluster> = bench.api();
    progressing(&api, "BrokersStarting").await;
    // As the StatefulSet controller would make it.
    bench
        .create::<PersistentVolumeClaim>(
            "shrink",
            json!({
                "metadata": { "name": "data-events-3", "labels": { "palisade.dev/cluster": "events" } },
                "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } }
            }),
        )
        .await;
    let replicas =
        |count: i32| Patch::Merge(json!({ "spec": { "brokers": { "replicas": count } } }));
    let parameters = PatchParams::default();
    api.patch("events", &parameters, &replicas(3))
        .await
        .unwrap();
    let message = progressing(&api, "Draining").await;
    assert_eq!(
        message,
        "events-3 leaves: the broker that leads the metadata does not answer"
    );
    let sets: Api<StatefulSet> = bench.api();
    let set = sets.get("events").await.unwrap();
    assert_eq!(set.spec.replicas, Some(4));
    // What it runs with stays too.
    let secret = bench.api::<Secret>().get("events-broker-certs").await;
    assert!(secret.unwrap().data.unwrap().contains_key("events-3.crt"));
    let claims: Api<PersistentVolumeClaim> = bench.api();
    let claim = claims.get("data-events-3").await.unwrap();
    assert_eq!(claim.metadata.deletion_timestamp, None);
    let status = api.get("events").await.unwrap().status.unwrap();
    assert_eq!(status.brokers.len(), 4);

    // Fewer than formed it is no question of waiting, and the API server says so.
    let refused = api.patch("events", &parameters, &replicas(2)).await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("write 3 or more"), "{message}");

    api.patch("events", &parameters, &replicas(4))
        .await
        .unwrap();
    progressing(&api, "BrokersStarting").await;
    bench.halt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_leads_and_another_takes_over() {
    let client = server().client().await.unwrap();
    let api: Api<Lease> = Api::namespaced(client, "default");
    let lock = |identity: &str| LeaseLock::new(api.clone(), "election", identity);
    let first = lock("first").acquire().await;
    let waiting = tokio::spawn(lock("second").acquire());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished());
    assert_eq!(
        api.get("election")
            .await
            .unwrap()
            .spec
            .unwrap()
            .holder_identity
            .as_deref(),
        Some("first")
    );
    first.release().await.unwrap();
    // It is given up, and not left to expire, whenever the second comes to see it.
    let spec = api.get("election").await.unwrap().spec.unwrap();
    assert_ne!(spec.holder_identity.as_deref(), Some("first"));
    let second = tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap()
        .unwrap();
    let spec = api.get("election").await.unwrap().spec.unwrap();
    assert_eq!(
        (spec.holder_identity.as_deref(), spec.lease_transitions),
        (Some("second"), Some(2))
    );
    second.release().await.unwrap();
}
