//! What happens to users, topics and brokers after they exist: suspended, let in again, revoked, claimed twice, grown, added, removed.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use palisade_e2e::{
    progress::say,
    scenario::{ClientPod, Kubectl, NAMESPACE, SteadyProducer},
    tools::{Outcome, wait_until},
};

use super::{World, refused};

const LIMIT: Duration = Duration::from_secs(60);
/// What a client says, in lower case, that the brokers do not know any more, or whose principal they deny everything.
const REFUSALS: [&str; 3] = [
    "authentication error",
    "authentication fail",
    "authorization failed",
];

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: palisade.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: {NAMESPACE} }}\nspec: {{ clusterRef: {{ name: events }}, {spec} }}\n---\n"
    )
}

fn patch(kubectl: &Kubectl, object: &str, patch: &str) -> Result<()> {
    kubectl
        .ok(&[
            "-n",
            NAMESPACE,
            "patch",
            object,
            "--type=merge",
            "-p",
            patch,
        ])
        .map(drop)
}

fn delete(kubectl: &Kubectl, objects: &[&str]) -> Result<()> {
    kubectl
        .ok(&[&["-n", NAMESPACE, "delete", "--timeout=60s"], objects].concat())
        .map(drop)
}

fn ready_because(kubectl: &Kubectl, object: &str, reason: &str) -> Result<()> {
    wait_until("the object is ready", LIMIT, || {
        let (status, found, message) = kubectl.condition(NAMESPACE, object, "Ready")?;
        ensure!(
            status == "True" && found == reason,
            "{object} is `{status}`, reason `{found}`: {message}"
        );
        Ok(())
    })
}

/// Has the workload write the topic. A refusal is said at once or tried again until the time is up; whoever is let in needs more on a busy machine.
fn write(pod: &ClientPod, seconds: u32) -> Result<Outcome> {
    let arguments = format!("-P -t user-events -X message.timeout.ms={seconds}000");
    pod.kcat(seconds + 20, Some("echo lifecycle"), &arguments)
}

/// The brokers do not let the workload write the topic. That they cannot be reached is no refusal.
fn is_refused(pod: &ClientPod) -> Result<()> {
    wait_until("the brokers have answered", LIMIT, || {
        let outcome = write(pod, 4)?;
        let text = outcome.text();
        let said = text.to_lowercase();
        if outcome.status == 0 {
            // Nothing to be waited for.
            return Ok(Err(anyhow!("it was not refused:\n{text}")));
        }
        ensure!(
            REFUSALS.iter().any(|refusal| said.contains(refusal)),
            "it was not refused, status {}:\n{text}",
            outcome.status
        );
        Ok(Ok(()))
    })?
}

/// A user with a password and one with a certificate are suspended, let in again and deleted; what their workloads hold stops working each time.
pub(crate) fn suspension_and_revocation(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    // Each waits for kubelets and for clients that give up, so they go side by side.
    std::thread::scope(|threads| {
        [("erin", "ScramSha512"), ("frank", "MutualTls")]
            .map(|(name, kind)| threads.spawn(move || is_let_in_and_out(kubectl, name, kind)))
            .into_iter()
            .try_for_each(|thread| {
                let panicked = |_| anyhow::anyhow!("a user's thread panicked");
                thread.join().map_err(panicked)?
            })
    })
}

fn is_let_in_and_out(kubectl: &Kubectl, name: &str, kind: &str) -> Result<()> {
    let user = format!("user.palisade.dev/{name}");
    let acl = format!("acl.palisade.dev/{name}");
    let rules =
        "rules: [{ resource: { type: Topic, name: user-events }, operations: [Write, Describe] }]";
    kubectl.apply(
        &(object("User", name, &format!("authentication: {{ type: {kind} }}"))
            + &object(
                "Acl",
                name,
                &format!("principal: {{ userRef: {name} }}, {rules}"),
            )),
    )?;
    ready_because(kubectl, &user, "Synced")?;
    ready_because(kubectl, &acl, "Synced")?;
    let pod = ClientPod::start(kubectl, name, Some(name), true)?;
    write(&pod, 30)?
        .success()
        .with_context(|| format!("{name} cannot write before anything happened"))?;
    patch(kubectl, &user, r#"{"spec":{"suspended":true}}"#)?;
    ready_because(kubectl, &user, "Suspended")?;
    is_refused(&pod).with_context(|| format!("{name} is suspended"))?;
    patch(kubectl, &user, r#"{"spec":{"suspended":false}}"#)?;
    ready_because(kubectl, &user, "Synced")?;
    write(&pod, 30)?
        .success()
        .with_context(|| format!("{name} cannot write after it was let in again"))?;
    // The rules stay: what stops the workload is that its user is gone.
    delete(kubectl, &[&user])?;
    is_refused(&pod).with_context(|| format!("{name} is deleted"))?;
    delete(kubectl, &[&acl, &format!("pod/{name}")])
}

/// Of two topics that claim one name the older counts, and the other follows when it is gone; partitions grow in place.
pub(crate) fn claims_and_growth(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    kubectl.apply(&object("Topic", "claim-first", "topicName: claimed"))?;
    ready_because(kubectl, "topic.palisade.dev/claim-first", "Synced")?;
    kubectl.apply(&object(
        "Topic",
        "claim-second",
        "topicName: claimed, partitions: 3, reclaimPolicy: Delete",
    ))?;
    let (_, message) = refused(kubectl, "topic.palisade.dev/claim-second", "Conflict")?;
    ensure!(
        message.contains("claim-first"),
        "the message does not name the older: {message}"
    );
    delete(kubectl, &["topic.palisade.dev/claim-first"])?;
    ready_because(kubectl, "topic.palisade.dev/claim-second", "Synced")?;
    let partitions = kubectl.ok(&[
        "-n",
        NAMESPACE,
        "get",
        "topic.palisade.dev/claim-second",
        "-o",
        "jsonpath={.status.partitions}",
    ])?;
    ensure!(
        partitions == "3",
        "the brokers report {partitions} partitions, not 3"
    );
    delete(kubectl, &["topic.palisade.dev/claim-second"])
}

/// What cannot work says why: a password no client could hold, a mechanism no listener offers, a Secret that is somebody else's.
pub(crate) fn advice(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    kubectl.ok(&[
        "-n",
        NAMESPACE,
        "create",
        "secret",
        "generic",
        "grace",
        "--from-literal=password=two\nlines",
    ])?;
    let from =
        "passwordFrom: { secretKeyRef: { name: grace, key: password } }, secretName: grace-login";
    kubectl.apply(&object(
        "User",
        "grace",
        &format!("authentication: {{ type: ScramSha512 }}, credentials: {{ {from} }}"),
    ))?;
    let (_, message) = refused(kubectl, "user.palisade.dev/grace", "SecretInvalid")?;
    ensure!(
        message.contains("line break") && !message.contains("two"),
        "no advice, or the password itself: {message}"
    );
    kubectl.apply(&object(
        "User",
        "heidi",
        "authentication: { type: ScramSha256 }",
    ))?;
    refused(
        kubectl,
        "user.palisade.dev/heidi",
        "NoListenerForAuthentication",
    )?;
    kubectl.apply(&object(
        "User",
        "ivan",
        "authentication: { type: ScramSha512 }, credentials: { secretName: grace }",
    ))?;
    refused(kubectl, "user.palisade.dev/ivan", "SecretConflict")?;
    delete(
        kubectl,
        &[
            "user.palisade.dev/grace",
            "user.palisade.dev/heidi",
            "user.palisade.dev/ivan",
            "secret/grace",
        ],
    )
}

/// Brokers of the cluster that serve, and how many its StatefulSet has.
fn brokers(kubectl: &Kubectl) -> Result<(i64, i64)> {
    let cluster = kubectl.json(&["-n", NAMESPACE, "securecluster.palisade.dev/events"])?;
    let set = kubectl.json(&["-n", NAMESPACE, "statefulset/events"])?;
    let number = |value: &serde_json::Value| value.as_i64().unwrap_or_default();
    Ok((
        number(&cluster["status"]["readyReplicas"]),
        number(&set["spec"]["replicas"]),
    ))
}

/// The broker that was added is drained, stopped and forgotten when the spec asks for three again; its claim is deleted, as the policy says.
pub(crate) fn a_broker_comes_and_goes(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    let cluster = "securecluster.palisade.dev/events";
    let limit = Duration::from_secs(180);
    let replicas = |count: u8| {
        let change = format!(r#"{{"spec":{{"brokers":{{"replicas":{count}}}}}}}"#);
        patch(kubectl, cluster, &change)
    };
    replicas(4)?;
    wait_until("four brokers serve", limit, || {
        let found = brokers(kubectl)?;
        ensure!(found == (4, 4), "{found:?}");
        Ok(())
    })?;
    replicas(3)?;
    // It is told to leave at once, and stands until it has nothing left.
    wait_until("the fourth broker leaves", limit, || {
        let (status, reason, message) = kubectl.condition(NAMESPACE, cluster, "Progressing")?;
        ensure!(
            status == "True" && reason == "Draining" && message.contains("events-3"),
            "`{status}`, reason `{reason}`: {message}"
        );
        Ok(())
    })?;
    wait_until("the fourth broker is gone and forgotten", limit, || {
        let found = brokers(kubectl)?;
        let (progressing, reason, message) =
            kubectl.condition(NAMESPACE, cluster, "Progressing")?;
        ensure!(
            found == (3, 3) && progressing == "False",
            "{found:?}, reason `{reason}`: {message}"
        );
        Ok(())
    })?;
    ready_because(kubectl, cluster, "BrokersReady")?;
    wait_until("its pod is gone", LIMIT, || {
        let gone = kubectl.run(&["-n", NAMESPACE, "get", "pod/events-3"], "")?;
        gone.refused("not found").map(drop)
    })?;
    let policy = kubectl.json(&["-n", NAMESPACE, cluster])?;
    ensure!(
        policy["spec"]["storage"]["reclaimPolicy"] == "Delete",
        "the example keeps its claims now"
    );
    wait_until("its claim is deleted", LIMIT, || {
        let claim = kubectl.run(&["-n", NAMESPACE, "get", "pvc/data-events-3"], "")?;
        claim.refused("not found").map(drop)
    })
}

const ZONE: &str = "topology.kubernetes.io/zone";

/// The zone of every node; empty where it has no such label.
fn zones(kubectl: &Kubectl) -> Result<BTreeMap<String, String>> {
    let list = kubectl.json(&["nodes"])?;
    let nodes = list["items"].as_array().context("no list")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let zone = |node: &serde_json::Value| text(&node["metadata"]["labels"][ZONE]);
    Ok(nodes
        .iter()
        .map(|node| (text(&node["metadata"]["name"]), zone(node)))
        .collect())
}

/// Brokers are told to take their racks from the label of their nodes: they are replaced one after the other, and a producer loses nothing.
pub(crate) fn brokers_learn_their_racks(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    let cluster = "securecluster.palisade.dev/events";
    let label = |node: &str, value: &str| {
        let label = format!("{ZONE}{value}");
        kubectl.ok(&["label", "node", node, &label]).map(drop)
    };
    // Somebody's own nodes may have zones already.
    let mut zones = zones(kubectl)?;
    let without: Vec<String> = zones
        .iter_mut()
        .filter(|(_, zone)| zone.is_empty())
        .map(|(node, zone)| {
            "zone-a".clone_into(zone);
            node.clone()
        })
        .collect();
    for node in &without {
        label(node, "=zone-a")?;
    }
    let producer = SteadyProducer::start(kubectl)?;
    patch(
        kubectl,
        cluster,
        &format!(r#"{{"spec":{{"brokers":{{"rackKey":"{ZONE}"}}}}}}"#),
    )?;
    let limit = Duration::from_secs(240);
    wait_until("every broker reports its node's zone", limit, || {
        let status = kubectl.json(&["-n", NAMESPACE, cluster])?["status"].clone();
        let brokers = status["brokers"].as_array().context("no brokers")?;
        for broker in brokers {
            let pod = broker["pod"].as_str().context("no pod")?;
            let pod = kubectl.json(&["-n", NAMESPACE, "pod", pod])?;
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            ensure!(
                broker["rack"].as_str() == zones.get(node).map(String::as_str),
                "{broker:#} on {node} of {zones:?}"
            );
        }
        ensure!(
            brokers.len() == 3 && status["readyReplicas"] == 3,
            "{status:#}"
        );
        Ok(())
    })?;
    ready_because(kubectl, cluster, "BrokersReady")?;
    let count = producer.finish_despite_restarts(kubectl)?;
    say(format_args!(
        "{count} records, each of them once, while every broker was replaced"
    ));
    wait_until("nothing is degraded", LIMIT, || {
        let (degraded, _, message) = kubectl.condition(NAMESPACE, cluster, "Degraded")?;
        ensure!(degraded == "False", "{message}");
        Ok(())
    })?;
    without.iter().try_for_each(|node| label(node, "-"))
}
