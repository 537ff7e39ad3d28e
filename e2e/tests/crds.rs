//! The custom resources on a real API server.
//!
//! 1. Start etcd and kube-apiserver, apply `crds/yaml`.
//! 2. Apply one accepted object of each kind, and everything in `examples/`.
//! 3. For every CEL rule that the server reports, send the object of `crds/tests/refusals.yaml` that it refuses and compare the
//!    message; a rule without an object fails the test.
//! 4. Check what only a server does: defaults, names, the scale subresource, the status subresource, printer columns.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../crds/tests/refusals/mod.rs"]
mod refusals;

use std::{
    fmt::Debug,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, CustomResourceExt, Resource,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use palisade_crds::{
    Acl, AclStatus, AuthoritiesStatus, AuthorityStatus, BrokerObservation, CertRotation,
    CertRotationStatus, CertificateStatus, CheckResult, ChecklistEntry, ConditionType,
    EndpointObservation, ListenerStatus, Quota, QuotaStatus, Reason, RotationPhase, RotationRun,
    SecureCluster, SecureClusterStatus, Topic, TopicStatus, User, UserStatus, conditions,
};
use palisade_e2e::cluster::ApiServer;
use refusals::{Table, repository, rules_of};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// The server that the tests of this file share, with the definitions applied; it ends with the process.
fn server() -> &'static ApiServer {
    static SERVER: OnceLock<ApiServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = ApiServer::start().expect("a real API server");
        let definitions = repository().join("crds/yaml");
        succeed(
            server
                .kubectl()
                .args(["apply", "--server-side", "-f"])
                .arg(definitions),
        );
        succeed(server.kubectl().args([
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=30s",
        ]));
        await_category(&server);
        server
    })
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Waits until kubectl knows the category: the server's discovery follows the definitions within seconds, and kubectl keeps what it
/// discovered, so each attempt begins with an empty cache.
fn await_category(server: &ApiServer) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let cache = tempfile::tempdir().unwrap();
        let output = server
            .kubectl()
            .args(["get", "palisade", "--all-namespaces", "--cache-dir"])
            .arg(cache.path())
            .output()
            .unwrap();
        if output.status.success() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// A kubectl that discovers anew, for what names the category.
fn kubectl_without_cache(namespace: &str) -> (Command, tempfile::TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let mut command = server().kubectl();
    command
        .args(["--namespace", namespace, "--cache-dir"])
        .arg(cache.path());
    (command, cache)
}

fn refuse(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} was accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A client, and a namespace of the test's own.
async fn client(namespace: &str) -> Client {
    let client = server().client().await.unwrap();
    let object = Namespace {
        metadata: kube::core::ObjectMeta {
            name: Some(namespace.to_owned()),
            ..Default::default()
        },
        ..Default::default()
    };
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
    client
}

/// The API of a kind, for objects that are not known to be well-formed.
fn dynamic(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(palisade_crds::GROUP, palisade_crds::VERSION, kind);
    let plural = format!("{}s", kind.to_lowercase());
    Api::namespaced_with(
        client.clone(),
        namespace,
        &ApiResource::from_gvk_with_plural(&gvk, &plural),
    )
}

fn object(value: &Value) -> DynamicObject {
    serde_json::from_value(value.clone()).unwrap()
}

/// What the server says about a refused object.
fn refusal_of<T: Debug>(outcome: Result<T, kube::Error>) -> String {
    match outcome {
        Err(kube::Error::Api(status)) => status.message,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn every_rule_refuses_an_object_with_its_message() {
    let client = client("refusals").await;
    let table = Table::load();
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for refusal in &table.refusals {
        let api = dynamic(&client, "refusals", &refusal.kind);
        let refused = object(&table.object(refusal));
        let message = match table.former(refusal) {
            None => refusal_of(api.create(&dry_run, &refused).await),
            Some(former) => {
                let former = api
                    .create(&PostParams::default(), &object(&former))
                    .await
                    .unwrap();
                let name = former.metadata.name.clone().unwrap();
                let mut refused = refused;
                refused.metadata.resource_version = former.metadata.resource_version;
                let message = refusal_of(api.replace(&name, &dry_run, &refused).await);
                api.delete(&name, &Default::default()).await.unwrap();
                message
            }
        };
        let place = refusal.at.replace("[]", "[0]");
        assert!(
            message.contains(&refusal.message),
            "{refusal}: refused with another message: {message}"
        );
        assert!(
            message.contains(&place),
            "{refusal}: refused at another place: {message}"
        );
    }
}

#[tokio::test]
async fn every_rule_that_the_server_runs_has_an_object_that_it_refuses() {
    let client = server().client().await.unwrap();
    let mut rules = std::collections::BTreeSet::new();
    for name in [
        Acl::crd_name(),
        CertRotation::crd_name(),
        Quota::crd_name(),
        SecureCluster::crd_name(),
        Topic::crd_name(),
        User::crd_name(),
    ] {
        let installed = Api::<CustomResourceDefinition>::all(client.clone())
            .get(name)
            .await
            .unwrap();
        rules.extend(rules_of(&serde_json::to_value(installed).unwrap()));
    }
    let covered = Table::load().covered();
    let differing: Vec<_> = covered.symmetric_difference(&rules).collect();
    assert!(
        differing.is_empty(),
        "rules without an object, or objects without a rule: {differing:#?}"
    );
}

#[tokio::test]
async fn an_object_of_each_kind_is_accepted_and_completed_with_defaults() {
    let client = client("bases").await;
    let table = Table::load();
    for (kind, base) in &table.bases {
        let api = dynamic(&client, "bases", kind);
        let name = base["metadata"]["name"].as_str().unwrap();
        api.patch(name, &PatchParams::apply("test"), &Patch::Apply(base))
            .await
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    let cluster = Api::<SecureCluster>::namespaced(client.clone(), "bases")
        .get("events")
        .await
        .unwrap();
    assert_eq!(cluster.spec.brokers.replicas, 1);
    assert_eq!(cluster.spec.certificates.leaf_validity.to_string(), "90d");
    let user = dynamic(&client, "bases", "User")
        .get("alice")
        .await
        .unwrap();
    assert_eq!(user.data["spec"]["suspended"], json!(false));
    let topic = Api::<Topic>::namespaced(client, "bases")
        .get("user-events")
        .await
        .unwrap();
    assert_eq!(
        (topic.spec.replication_factor, topic.topic_name()),
        (1, "user-events")
    );
}

/// One object that cannot be read ends the watch of its whole kind, so what is admitted must be readable, however it is written.
#[tokio::test]
async fn what_is_admitted_can_be_read() {
    let client = client("readable").await;
    let table = Table::load();
    let mut cluster = table.bases["SecureCluster"].clone();
    cluster["spec"]["brokers"] = json!({"resources": {"requests": {"cpu": 1, "memory": 268_435_456}, "limits": {"memory": "1.5Gi"}}});
    cluster["spec"]["listeners"][0]["limits"] =
        json!({"maxConnectionsPerIpOverrides": {"10.0.0.9": 1_000_000, "fd00::9": 1}});
    dynamic(&client, "readable", "SecureCluster")
        .create(&PostParams::default(), &object(&cluster))
        .await
        .unwrap();
    let read = Api::<SecureCluster>::namespaced(client.clone(), "readable")
        .get("events")
        .await
        .unwrap();
    assert_eq!(read.spec.brokers.resources.unwrap().requests["cpu"].0, "1");

    let rotations = dynamic(&client, "readable", "CertRotation");
    for (name, trigger) in [
        ("zulu", json!({"at": "2027-01-01T03:00:00Z"})),
        ("offset", json!({"at": "2027-01-01T03:00:00.5+02:00"})),
        ("cron", json!({"schedule": "00 03 01,15 */3 1-5"})),
    ] {
        let mut rotation = table.bases["CertRotation"].clone();
        rotation["metadata"]["name"] = json!(name);
        rotation["spec"]["trigger"] = trigger;
        rotations
            .create(&PostParams::default(), &object(&rotation))
            .await
            .unwrap();
    }
    let read = Api::<CertRotation>::namespaced(client, "readable")
        .list(&Default::default())
        .await
        .unwrap();
    assert_eq!(read.items.len(), 3);
    for at in [
        "2027-01-01",
        "2027-01-01T03:00:00",
        "2027-13-01T03:00:00Z",
        "tomorrow",
        "2027-01-01t03:00:00z",
    ] {
        let mut rotation = table.bases["CertRotation"].clone();
        rotation["spec"]["trigger"] = json!({"at": at});
        refusal_of(
            rotations
                .create(&PostParams::default(), &object(&rotation))
                .await,
        );
    }
}

#[tokio::test]
async fn storage_and_partitions_may_grow() {
    let client = client("growth").await;
    let table = Table::load();
    for (kind, grown) in [
        (
            "SecureCluster",
            json!({"spec": {"storage": {"size": "20Gi"}}}),
        ),
        ("Topic", json!({"spec": {"partitions": 6}})),
    ] {
        let api = dynamic(&client, "growth", kind);
        let created = api
            .create(&PostParams::default(), &object(&table.bases[kind]))
            .await
            .unwrap();
        api.patch(
            &created.metadata.name.unwrap(),
            &PatchParams::default(),
            &Patch::Merge(grown),
        )
        .await
        .unwrap();
    }
}

#[test]
fn the_quickstart_is_accepted_as_a_whole_and_twice() {
    let quickstart = repository().join("examples/quickstart");
    let apply = || succeed(server().kubectl().args(["apply", "-k"]).arg(&quickstart));
    assert!(apply().contains("securecluster.palisade.dev/events created"));
    apply();
    let (mut kubectl, _cache) = kubectl_without_cache("messaging");
    let generations = succeed(kubectl.args([
        "get",
        "palisade",
        "-o",
        "jsonpath={.items[*].metadata.generation}",
    ]));
    assert!(
        generations
            .split_whitespace()
            .all(|generation| generation == "1"),
        "the second apply changed something: {generations}"
    );
    assert!(
        generations.split_whitespace().count() >= 14,
        "{generations}"
    );
}

#[test]
fn names_that_could_break_out_of_a_file_or_a_certificate_are_refused() {
    let user = |name: &str| {
        let object = json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "User", "metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterRef": {"name": "events"}, "authentication": {"type": "ScramSha512"}},
        });
        refuse(
            server()
                .kubectl()
                .args([
                    "create",
                    "--raw",
                    "/apis/palisade.dev/v1alpha1/namespaces/default/users",
                    "-f",
                ])
                .arg(written(&object)),
        )
    };
    for name in [
        "alice\" required",
        "alice\nrequired",
        "Alice",
        "../alice",
        "CN=alice,O=root",
    ] {
        let message = user(name);
        assert!(
            message.contains(
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters"
            ),
            "{name:?}: {message}"
        );
    }
}

/// A file of its own for an object; kept until the process's temporary directory is cleared with the build.
fn written(object: &Value) -> std::path::PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "object-{}.json",
        NUMBER.fetch_add(1, Ordering::Relaxed)
    ));
    std::fs::write(&path, object.to_string()).unwrap();
    path
}

#[tokio::test]
async fn scaling_below_three_is_refused_like_an_edit() {
    let client = client("scale").await;
    let cluster = object(&Table::load().bases["SecureCluster"]);
    dynamic(&client, "scale", "SecureCluster")
        .create(&PostParams::default(), &cluster)
        .await
        .unwrap();
    let scale = |replicas: &str| {
        let mut kubectl = server().kubectl();
        kubectl.args(["--namespace", "scale", "scale", "scl/events", replicas]);
        kubectl
    };
    assert!(scale("--replicas=4").status().unwrap().success());
    assert!(scale("--replicas=3").status().unwrap().success());
    let message = refuse(&mut scale("--replicas=2"));
    assert!(
        message.contains(
            "the first three brokers cannot be removed: write 3 or more, or the former number"
        ),
        "{message}"
    );
}

/// Writes a status through the subresource and reads it back: what the schema does not know would be gone.
async fn round_trip<T>(
    client: &Client,
    name: &str,
    status: impl Serialize,
    read: impl Fn(&T) -> Value,
) where
    T: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Clone
        + Debug,
{
    let written = serde_json::to_value(status).unwrap();
    let api = Api::<T>::namespaced(client.clone(), "status");
    let patch = json!({ "status": written });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    assert_eq!(read(&api.get(name).await.unwrap()), written, "{name}");
}

#[tokio::test]
async fn every_field_of_every_status_is_kept_and_shown() {
    let client = client("status").await;
    for (kind, base) in &Table::load().bases {
        dynamic(&client, "status", kind)
            .create(&PostParams::default(), &object(base))
            .await
            .unwrap();
    }
    let now: k8s_openapi::jiff::Timestamp = "2026-11-24T18:00:00Z".parse().unwrap();
    let ready = || {
        let mut list = Vec::new();
        conditions::set(
            &mut list,
            ConditionType::Ready,
            true,
            Reason::Synced,
            "the brokers hold what the spec says",
            Some(1),
            now,
        );
        list
    };
    let observed_generation = Some(1);
    let certificate = || CertificateStatus {
        serial: "0a".to_owned(),
        fingerprint: "ab".repeat(32),
        not_before: Time(now),
        not_after: Time(now),
    };
    let authority = || {
        Some(AuthorityStatus {
            certificate: certificate(),
            trusted: vec!["ab".repeat(32)],
        })
    };
    let cluster = SecureClusterStatus {
        observed_generation,
        conditions: ready(),
        replicas: 1,
        ready_replicas: 1,
        selector: Some("app.kubernetes.io/instance=events".to_owned()),
        cluster_id: Some("events".to_owned()),
        config_version: Some("7".to_owned()),
        listeners: vec![ListenerStatus {
            name: "internal".to_owned(),
            bootstrap_servers: "events-bootstrap.status.svc:9093".to_owned(),
        }],
        brokers: vec![BrokerObservation {
            pod: "events-0".to_owned(),
            broker_id: Some(0),
            rack: Some("zone-a".to_owned()),
            version: Some("0.1.0".to_owned()),
            ready: true,
            config_version: Some("7".to_owned()),
            kek_id: Some("1".to_owned()),
            endpoints: vec![EndpointObservation {
                name: "internal".to_owned(),
                certificate_serial: "0a".to_owned(),
                not_after: Time(now),
                trusted_authorities: vec!["ab".repeat(32)],
            }],
            problems: vec!["the disk is full".to_owned()],
        }],
        authorities: Some(AuthoritiesStatus {
            cluster: authority(),
            clients: authority(),
        }),
        checklist: vec![ChecklistEntry {
            name: "EncryptionInTransit".to_owned(),
            result: CheckResult::Fail,
            evidence: "listener internal has no certificate".to_owned(),
            remedy: Some("wait for the rotation".to_owned()),
        }],
    };
    round_trip::<SecureCluster>(&client, "events", cluster, |it| json!(it.status)).await;
    let user = UserStatus {
        observed_generation,
        conditions: ready(),
        principal: Some("User:alice".to_owned()),
        secret_name: Some("alice".to_owned()),
        credential_fingerprint: Some("cd".repeat(32)),
        certificate: Some(certificate()),
        trusted_authorities: vec!["ab".repeat(32)],
    };
    round_trip::<User>(&client, "alice", user, |it| json!(it.status)).await;
    let acl = AclStatus {
        observed_generation,
        conditions: ready(),
        principal: Some("User:alice".to_owned()),
        bindings: Some(2),
    };
    round_trip::<Acl>(&client, "alice", acl, |it| json!(it.status)).await;
    let quota = QuotaStatus {
        observed_generation,
        conditions: ready(),
        entity: Some("client-id=client-1".to_owned()),
        user: Some("alice".to_owned()),
    };
    round_trip::<Quota>(&client, "client-1", quota, |it| json!(it.status)).await;
    let topic = TopicStatus {
        observed_generation,
        conditions: ready(),
        topic_name: Some("user-events".to_owned()),
        topic_id: Some("5a8a".to_owned()),
        partitions: Some(3),
        replication_factor: Some(1),
    };
    round_trip::<Topic>(&client, "user-events", topic, |it| json!(it.status)).await;
    let run = || RotationRun {
        started_at: Some(Time(now)),
        completed_at: Some(Time(now)),
        old_fingerprint: Some("ab".repeat(32)),
        new_fingerprint: Some("cd".repeat(32)),
        reason: Some("annual rotation".to_owned()),
    };
    let rotation = CertRotationStatus {
        observed_generation,
        conditions: ready(),
        phase: Some(RotationPhase::Completed),
        progress: Some("done".to_owned()),
        current_run: Some(run()),
        last_run: Some(run()),
        completed_runs: Some(1),
        next_run: Some(Time(now)),
    };
    round_trip::<CertRotation>(&client, "yearly", rotation, |it| json!(it.status)).await;

    // What a person sees.
    let (mut kubectl, _cache) = kubectl_without_cache("status");
    let shown = succeed(kubectl.args(["get", "palisade"]));
    for wanted in [
        "User:alice",
        "client-id=client-1",
        "ReplaceKey",
        "Completed",
        "ScramSha512",
        "user-events",
        "CERTIFICATES",
    ] {
        assert!(
            shown.contains(wanted),
            "`kubectl get palisade` does not show {wanted}:\n{shown}"
        );
    }
    let (mut kubectl, _cache) = kubectl_without_cache("status");
    succeed(kubectl.args([
        "wait",
        "--for=condition=Ready",
        "palisade",
        "--all",
        "--timeout=60s",
    ]));
}
