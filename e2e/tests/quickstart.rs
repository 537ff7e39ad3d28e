//! The whole product on a real Kubernetes: the chart, `examples/quickstart`, real clients in pods, and what operators of a cluster do to it.
//!
//! The scenarios share one cluster and build on each other, so they run in order, from one `main`, and report like any test program:
//!
//! 1. Install the chart and apply the example: all six kinds become Ready, with useful columns.
//! 2. What the demo shows: alice and analytics, mallory, plaintext, the network policy, client-1, both authorities replaced under load.
//! 3. The operator's pod is deleted in the middle of a rotation: the next one ends it.
//! 4. Objects whose cluster or Secret is missing say so and become Ready when it comes.
//! 5. Users are suspended, let in again and revoked; of two claims the older counts; what cannot work says why.
//! 6. A fourth broker is added, and leaves when it has nothing left.
//! 7. Brokers learn their racks from a label of their nodes: they are replaced one by one, and a producer loses nothing.
//! 8. Nothing is written while nothing changes, not even by an operator that has just started.
//! 9. Deleting the namespace ends.
//!
//! Where the machine cannot run pods, all of it is left out, loudly, and for a reason that has a type.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "quickstart/lifecycle.rs"]
mod lifecycle;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use palisade_e2e::{
    cluster::{Selection, Target},
    progress::say,
    scenario::{
        self, KINDS, Kubectl, NAMESPACE, OPERATOR_NAMESPACE, Rotation, Site, SteadyProducer, shows,
    },
    tools::wait_until,
};

/// The cluster's name: not the demo's, which may be running.
const NAME: &str = "palisade-e2e";
/// Selects the operator's pods.
const OPERATOR: &str = "app.kubernetes.io/name=palisade-operator";
/// Who holds it, leads.
const LEASE: &str = "lease.coordination.k8s.io/palisade-operator";

/// What the scenarios share.
struct World {
    site: Site,
    people: Option<shows::People>,
}

impl World {
    fn kubectl(&self) -> &Kubectl {
        self.site.kubectl()
    }

    fn people(&self) -> Result<&shows::People> {
        self.people
            .as_ref()
            .context("the clients' pods did not start")
    }
}

type Scenario = (&'static str, fn(&mut World) -> Result<()>);

const SCENARIOS: [Scenario; 17] = [
    ("the_chart_and_the_example_become_ready", installs),
    ("alice_produces_and_analytics_consumes", |world| {
        told(world.people()?.alice_produces_and_analytics_consumes())
    }),
    ("mallory_is_refused", |world| {
        told(world.people()?.mallory_is_refused())
    }),
    ("plaintext_is_refused", |world| {
        told(world.people()?.plaintext_is_refused())
    }),
    ("the_network_policy_cuts_the_outsider", |world| {
        told(world.people()?.network_policy_cuts_the_outsider())
    }),
    ("client_1_is_throttled", |world| {
        told(world.people()?.client_1_is_throttled())
    }),
    ("both_authorities_are_replaced_under_load", |world| {
        told(scenario::both_authorities_are_replaced(world.kubectl()))
    }),
    (
        "a_rotation_survives_the_end_of_the_operator",
        rotation_survives,
    ),
    ("a_missing_cluster_is_waited_for", missing_cluster),
    ("a_missing_secret_is_named_and_waited_for", missing_secret),
    (
        "users_are_suspended_let_in_again_and_revoked",
        lifecycle::suspension_and_revocation,
    ),
    (
        "the_older_claim_counts_and_topics_grow",
        lifecycle::claims_and_growth,
    ),
    ("what_cannot_work_says_why", lifecycle::advice),
    (
        "a_broker_is_added_and_leaves_with_nothing_left",
        lifecycle::a_broker_comes_and_goes,
    ),
    (
        "brokers_are_replaced_to_learn_their_racks",
        lifecycle::brokers_learn_their_racks,
    ),
    ("nothing_is_written_while_nothing_changes", idle_means_idle),
    ("deleting_the_namespace_ends", namespace_deletion),
];

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    let filter: Option<String> = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let chosen = |name: &str| filter.as_deref().is_none_or(|filter| name.contains(filter));
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in SCENARIOS.iter().filter(|(name, _)| chosen(name)) {
            let _ = writeln!(out, "{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if !SCENARIOS.iter().any(|(name, _)| chosen(name)) {
        let filtered = SCENARIOS.len();
        let _ = writeln!(
            out,
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; {filtered} filtered out"
        );
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let selection = Selection::from_environment().expect("CLUSTER");
    let keep = std::env::var_os("PALISADE_KEEP_CLUSTER").is_some();
    if !keep && selection != Selection::Current {
        // What a run that was interrupted has left, with the programs of then.
        Target::remove(selection, NAME).expect("the cluster of an earlier run cannot be removed");
    }
    let mut world = match Site::up(selection, NAME) {
        Ok(site) => World { site, people: None },
        Err(error) => match scenario::inability(&error) {
            Some(reason) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "LEFT OUT: everything that needs pods: {reason}"
                );
                let ignored = SCENARIOS.len();
                let _ = writeln!(
                    out,
                    "test result: ok. 0 passed; 0 failed; {ignored} ignored; 0 measured; 0 filtered out"
                );
                return ExitCode::SUCCESS;
            }
            None => panic!("the cluster does not start: {error:#}"),
        },
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, scenario) in SCENARIOS {
        // The first one makes what all the others use.
        if !chosen(name) && name != SCENARIOS[0].0 {
            continue;
        }
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&mut world)));
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked, see above")));
        let took = began.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                let _ = writeln!(out, "test {name} ... ok <{took:.1}s>");
            }
            Err(error) => {
                failed += 1;
                let _ = writeln!(out, "test {name} ... FAILED <{took:.1}s>\n{error:?}\n");
                if name == SCENARIOS[0].0 {
                    break;
                }
            }
        }
    }
    if keep {
        say(format_args!(
            "PALISADE_KEEP_CLUSTER is set: cluster {NAME} goes on running"
        ));
    } else {
        let removed = match selection {
            Selection::Current => scenario::remove_objects(&world.site),
            _ => Target::remove(selection, NAME).map_err(Into::into),
        };
        if let Err(error) = removed {
            failed += 1;
            let _ = writeln!(out, "the cluster cannot be removed: {error:?}");
        }
    }
    let (verdict, took) = (
        if failed == 0 { "ok" } else { "FAILED" },
        start.elapsed().as_secs_f32(),
    );
    let _ = writeln!(
        out,
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {took:.2}s"
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn told(shown: Result<scenario::Shown>) -> Result<()> {
    let shown = shown?;
    say(format_args!("{}: {}", shown.claim, shown.evidence));
    Ok(())
}

fn installs(world: &mut World) -> Result<()> {
    scenario::install(&world.site)?;
    told(shows::six_kinds_are_ready(world.kubectl()))?;
    world.people = Some(shows::People::start(world.kubectl())?);
    Ok(())
}

/// The operator's pod goes while a rotation is between its first and its last step; the next pod resumes it, and the producer never knows.
fn rotation_survives(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    let producer = SteadyProducer::start(kubectl)?;
    let name = format!("resumed-{}", std::process::id());
    let rotation = Rotation::start(kubectl, &name, "ClusterAuthority")?;
    let mut interrupted = Vec::new();
    wait_until(
        "the rotation has been interrupted",
        // The lease has to run out, and kubelets take their time to deliver a changed Secret.
        Duration::from_secs(300),
        || {
            let phase = rotation.phase()?;
            let midway = ["DistributingTrust", "IssuingLeaves", "WithdrawingTrust"]
                .contains(&phase.as_str());
            if midway && !interrupted.contains(&phase) {
                kubectl.ok(&[
                    "-n",
                    OPERATOR_NAMESPACE,
                    "delete",
                    "pod",
                    "-l",
                    OPERATOR,
                    "--grace-period=0",
                    "--force",
                ])?;
                say(format_args!("deleted the operator's pod in phase {phase}"));
                interrupted.push(phase.clone());
                // That a lease runs out is seen the first time.
                if interrupted.len() > 1 {
                    free_lease(kubectl)?;
                }
            }
            ensure!(
                phase == "Completed" && !interrupted.is_empty(),
                "phase {phase}, interrupted in {interrupted:?}"
            );
            Ok(())
        },
    )?;
    rotation.finish()?;
    let count = producer.finish(kubectl)?;
    say(format_args!(
        "{count} records and no error while the operator went away in {}",
        interrupted.join(", ")
    ));
    kubectl
        .ok(&["-n", NAMESPACE, "delete", "certrotation", &name])
        .map(drop)
}

/// The name of the operator's pod, once it is the only one and ready.
fn operator_pod(kubectl: &Kubectl) -> Result<String> {
    wait_until(
        "the operator's new pod is ready and the old one gone",
        Duration::from_secs(60),
        || {
            let list = kubectl.json(&["-n", OPERATOR_NAMESPACE, "pods", "-l", OPERATOR])?;
            let pods = list["items"].as_array().context("no list")?;
            let [pod] = pods.as_slice() else {
                bail!("there are {} pods", pods.len());
            };
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            ensure!(
                conditions.any(|one| one["type"] == "Ready" && one["status"] == "True"),
                "it is not ready: {}",
                pod["status"]
            );
            let name = pod["metadata"]["name"].as_str();
            Ok(name.context("a pod without a name")?.to_owned())
        },
    )
}

/// The name of the operator's pod that leads; empty when none does.
fn leader(kubectl: &Kubectl) -> Result<String> {
    let lease = kubectl.json(&["-n", OPERATOR_NAMESPACE, LEASE])?;
    let holder = lease["spec"]["holderIdentity"].as_str();
    Ok(holder.unwrap_or_default().to_owned())
}

/// Has the operator's new pod lead at once, rather than when the lease of the one that was killed has run out.
fn free_lease(kubectl: &Kubectl) -> Result<()> {
    let pod = operator_pod(kubectl)?;
    if leader(kubectl)? == pod {
        return Ok(());
    }
    kubectl
        .ok(&[
            "-n",
            OPERATOR_NAMESPACE,
            "patch",
            LEASE,
            "--type=merge",
            "-p",
            r#"{"spec":{"holderIdentity":null}}"#,
        ])
        .map(drop)
}

/// A Topic for a cluster that does not exist waits and says so; with the right name it would be at once.
fn missing_cluster(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    let topic = |cluster: &str| {
        format!(
            "apiVersion: palisade.dev/v1alpha1\nkind: Topic\nmetadata: {{ name: waiting, namespace: {NAMESPACE} }}
spec: {{ clusterRef: {{ name: {cluster} }}, partitions: 1, reclaimPolicy: Delete }}\n"
        )
    };
    kubectl.apply(&topic("nowhere"))?;
    let (_, message) = refused(kubectl, "topic/waiting", "ClusterNotFound")?;
    ensure!(
        message.contains("nowhere"),
        "the message does not name the cluster: {message}"
    );
    kubectl.ok(&[
        "-n",
        NAMESPACE,
        "delete",
        "topic.palisade.dev/waiting",
        "--timeout=60s",
    ])?;
    kubectl.apply(&topic("events"))?;
    kubectl.wait(
        NAMESPACE,
        "condition=Ready",
        &["topic.palisade.dev/waiting"],
        60,
    )?;
    kubectl
        .ok(&[
            "-n",
            NAMESPACE,
            "delete",
            "topic.palisade.dev/waiting",
            "--timeout=60s",
        ])
        .map(drop)
}

/// A User whose password is in a Secret that does not exist names it, and is Ready once it does.
fn missing_secret(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    kubectl.apply(&format!(
        "apiVersion: palisade.dev/v1alpha1\nkind: User\nmetadata: {{ name: carol, namespace: {NAMESPACE} }}
spec:
  clusterRef: {{ name: events }}
  authentication: {{ type: ScramSha512 }}
  credentials:
    passwordFrom: {{ secretKeyRef: {{ name: carol-password, key: password }} }}\n"
    ))?;
    let (_, message) = refused(kubectl, "user.palisade.dev/carol", "SecretNotFound")?;
    ensure!(
        message.contains("carol-password"),
        "the message does not name the Secret: {message}"
    );
    kubectl.ok(&[
        "-n",
        NAMESPACE,
        "create",
        "secret",
        "generic",
        "carol-password",
        "--from-literal=password=a-password-of-her-own",
    ])?;
    kubectl.wait(
        NAMESPACE,
        "condition=Ready",
        &["user.palisade.dev/carol"],
        60,
    )?;
    let told = kubectl.ok(&[
        "-n",
        NAMESPACE,
        "get",
        "user.palisade.dev",
        "carol",
        "-o",
        "yaml",
    ])?;
    ensure!(
        !told.contains("a-password-of-her-own"),
        "the object shows the password:\n{told}"
    );
    kubectl
        .ok(&[
            "-n",
            NAMESPACE,
            "delete",
            "user.palisade.dev/carol",
            "secret/carol-password",
            "--timeout=60s",
        ])
        .map(drop)
}

/// Waits until an object is not Ready for this reason; reason and message.
fn refused(kubectl: &Kubectl, object: &str, wanted: &str) -> Result<(String, String)> {
    wait_until(
        "the condition says what is missing",
        Duration::from_secs(60),
        || {
            let (status, reason, message) = kubectl.condition(NAMESPACE, object, "Ready")?;
            ensure!(
                status == "False" && reason == wanted,
                "Ready is `{status}`, reason `{reason}`: {message}"
            );
            Ok((reason, message))
        },
    )
}

/// Objects that the operator owns or reports on keep their resource versions while nobody changes anything. Settled ones are looked at once or twice a minute,
/// by a new operator at once.
fn idle_means_idle(world: &mut World) -> Result<()> {
    let kubectl = world.kubectl();
    let mut kinds = KINDS.join(",");
    kinds.push_str(",secrets,configmaps,services,statefulsets,networkpolicies,poddisruptionbudgets,serviceaccounts");
    let versions = || -> Result<BTreeMap<String, String>> {
        let list = kubectl.json(&["-n", NAMESPACE, &kinds])?;
        let items = list["items"].as_array().context("no list")?;
        Ok(items
            .iter()
            .map(|item| {
                let text =
                    |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                let name = format!(
                    "{}/{}",
                    text(&item["kind"]),
                    text(&item["metadata"]["name"])
                );
                (name, text(&item["metadata"]["resourceVersion"]))
            })
            .collect())
    };
    let differing = |before: &BTreeMap<String, String>, after: &BTreeMap<String, String>| {
        let names = before.keys().chain(after.keys());
        names
            .filter(|name| before.get(*name) != after.get(*name))
            .cloned()
            .collect::<BTreeSet<String>>()
    };
    let before = wait_until(
        "what the scenarios before have changed has settled",
        Duration::from_secs(90),
        || {
            let before = versions()?;
            std::thread::sleep(Duration::from_secs(3));
            let after = versions()?;
            let changed = differing(&before, &after);
            ensure!(changed.is_empty(), "still written: {changed:?}");
            Ok(after)
        },
    )?;
    ensure!(before.len() > 20, "only {} objects", before.len());
    let rollout = |arguments: &[&str]| {
        kubectl.ok(&[&["-n", OPERATOR_NAMESPACE, "rollout"], arguments].concat())
    };
    rollout(&["restart", "deployment"])?;
    rollout(&["status", "deployment", "--timeout=120s"])?;
    let pod = operator_pod(kubectl)?;
    wait_until(
        "the operator's new pod leads",
        Duration::from_secs(60),
        || {
            let leader = leader(kubectl)?;
            ensure!(leader == pod, "`{leader}` leads, not {pod}");
            Ok(())
        },
    )?;
    // All it finds is looked at by then.
    std::thread::sleep(Duration::from_secs(5));
    let changed = differing(&before, &versions()?);
    ensure!(changed.is_empty(), "written while idle: {changed:?}");
    Ok(())
}

/// Cluster, users, rules and topics go together with their namespace, in whatever order the garbage collector takes them.
fn namespace_deletion(world: &mut World) -> Result<()> {
    world.people = None;
    let kubectl = world.kubectl();
    let start = Instant::now();
    kubectl
        .ok(&["delete", "namespace", NAMESPACE, "--timeout=150s"])
        .map_err(|error| {
            let left = kubectl
                .ok(&["-n", NAMESPACE, "get", "palisade,pods", "-o", "yaml"])
                .unwrap_or_default();
            error.context(left)
        })?;
    say(format_args!(
        "the namespace was gone after {:.0} s",
        start.elapsed().as_secs_f32()
    ));
    Ok(())
}
