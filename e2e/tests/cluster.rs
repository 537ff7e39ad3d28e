//! The built-in Kubernetes itself: what every other end-to-end test takes for granted.
//!
//! 1. Bring up a cluster of two nodes; left out, loudly, only where the machine cannot run one.
//! 2. A pod under Pod Security `restricted` runs and resolves names; one that asks for privileges is refused.
//! 3. A NetworkPolicy admits the pod that it names, across nodes, and cuts the one it does not.
//! 4. What a pod wrote to its volume, as an unprivileged user, is there for the next pod.
//! 5. Take it down, after killing part of it without notice: no process, namespace, mount, control group or file is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use palisade_e2e::cluster::command::{run, run_with_input, wait_until};
use palisade_e2e::cluster::{Cluster, ClusterError};
use palisade_e2e::image::Image;

const NAME: &str = "smoke";

#[test]
fn a_cluster_runs_restricted_pods_enforces_policies_keeps_volumes_and_leaves_nothing() {
    if let Some(reason) = Cluster::inability() {
        let _ = writeln!(
            std::io::stderr(),
            "LEFT OUT: the built-in Kubernetes: {reason}"
        );
        return;
    }
    Cluster::remove(NAME).unwrap();
    let before = Machine::look();
    before.assert_free_of_the_cluster();
    let _guard = Guard;
    let cluster = Cluster::up(NAME, 2).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("kcat.tar");
    Image::kcat().unwrap().write(&archive).unwrap();
    cluster.load_image(&archive).unwrap();
    let test = Test { cluster };
    test.apply(
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "smoke",
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}"#,
    );
    wait_until(
        "the namespace's ServiceAccount",
        Duration::from_secs(30),
        || {
            Ok(test
                .kubectl(&["get", "serviceaccount", "default"])
                .err()
                .map(|it| it.to_string()))
        },
    )
    .unwrap();

    privileges_are_refused(&test);
    names_resolve(&test);
    policies_cut_and_admit(&test);
    volumes_outlive_pods(&test);

    // As if the machine had run out of memory.
    let kubeconfig = test.cluster.kubeconfig();
    let state = fs::read_to_string(kubeconfig.with_file_name("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let killed = state["processes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "node-1/containerd")
        .unwrap();
    run(Command::new("kill").args(["-9", &killed["pid"].to_string()])).unwrap();
    test.cluster.down().unwrap();
    // Interfaces go a moment after their namespaces.
    wait_until("nothing to be left", Duration::from_secs(30), || {
        let now = Machine::look();
        Ok((now != before).then(|| format!("{now:#?}, where this was: {before:#?}")))
    })
    .unwrap();
    assert!(!kubeconfig.exists());
}

fn privileges_are_refused(test: &Test) {
    let mut pod = pod("greedy", "node-1", "true");
    pod["spec"]["containers"][0]["securityContext"] = serde_json::json!({"privileged": true});
    let error =
        run_with_input(&mut test.command(&["create", "-f", "-"]), &pod.to_string()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("violates PodSecurity \"restricted"),
        "{error}"
    );
}

fn names_resolve(test: &Test) {
    test.apply(
        &pod(
            "resolver",
            "node-2",
            "nslookup kubernetes.default.svc.cluster.local && id -u",
        )
        .to_string(),
    );
    test.wait("pod/resolver", "jsonpath={.status.phase}=Succeeded");
    let printed = test.kubectl(&["logs", "resolver"]).unwrap();
    assert!(
        printed.contains("Name:\tkubernetes.default.svc.cluster.local"),
        "{printed}"
    );
    assert!(printed.trim_end().ends_with("65532"), "{printed}");
}

fn policies_cut_and_admit(test: &Test) {
    let serve = "while true; do echo served | nc -l -p 8080; done";
    test.apply(&pod("server", "node-1", serve).to_string());
    test.apply(&pod("friend", "node-2", "sleep 3600").to_string());
    test.apply(&pod("stranger", "node-2", "sleep 3600").to_string());
    test.apply(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}}"#,
    );
    for name in ["server", "friend", "stranger"] {
        test.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let call = |from: &str| {
        test.kubectl(&[
            "exec",
            from,
            "--",
            "sh",
            "-c",
            "echo | timeout 10 nc server 80",
        ])
    };
    let reaches = |from: &str| call(from).is_ok_and(|it| it.contains("served"));
    let becomes = |from: &str, wanted: bool| {
        wait_until(
            &format!("reaching the server from {from} to be {wanted}"),
            Duration::from_secs(60),
            || Ok((reaches(from) != wanted).then(|| format!("{:?}", call(from)))),
        )
        .unwrap();
    };
    // Without a policy both do: so it is the policy that cuts one of them later.
    becomes("friend", true);
    becomes("stranger", true);
    test.apply(
        r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "server"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]}}"#,
    );
    becomes("stranger", false);
    becomes("friend", true);
}

fn volumes_outlive_pods(test: &Test) {
    test.apply(
        r#"{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}"#,
    );
    let with_volume = |name: &str, script: &str| {
        // No node is named: the volume ties the second pod to that of the first.
        let mut pod = pod(name, "", script);
        pod["spec"]["securityContext"]["fsGroup"] = 65532.into();
        pod["spec"]["volumes"] =
            serde_json::json!([{"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] =
            serde_json::json!([{"name": "kept", "mountPath": "/kept"}]);
        pod.to_string()
    };
    test.apply(&with_volume("writer", "echo remembered > /kept/note"));
    test.wait("pod/writer", "jsonpath={.status.phase}=Succeeded");
    test.kubectl(&["delete", "pod", "writer", "--wait"])
        .unwrap();
    test.apply(&with_volume("reader", "cat /kept/note"));
    test.wait("pod/reader", "jsonpath={.status.phase}=Succeeded");
    assert_eq!(test.kubectl(&["logs", "reader"]).unwrap(), "remembered\n");
}

/// Takes the cluster down when the test fails half-way.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            Cluster::remove(NAME).unwrap();
        }
    }
}

struct Test {
    cluster: Cluster,
}

impl Test {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", "smoke"]).args(arguments);
        command
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        run(&mut self.command(arguments))
    }

    fn apply(&self, manifest: &str) {
        run_with_input(&mut self.command(&["apply", "-f", "-"]), manifest).unwrap();
    }

    fn wait(&self, resource: &str, condition: &str) {
        let waited = self.kubectl(&["wait", resource, "--for", condition, "--timeout=60s"]);
        if let Err(error) = waited {
            let described = self.kubectl(&["describe", resource]).unwrap_or_default();
            panic!("{error}\n{described}");
        }
    }
}

/// A pod that `restricted` admits, labelled with its name, on a node or, without one, where the scheduler puts it.
fn pod(name: &str, node: &str, script: &str) -> serde_json::Value {
    let mut pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "main",
                "image": "palisade.local/kcat:dev",
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    });
    if !node.is_empty() {
        pod["spec"]["nodeSelector"] = serde_json::json!({"kubernetes.io/hostname": node});
    }
    pod
}

/// What a cluster could leave behind, as far as it bears the cluster's name or is the machine's own.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    mounts: BTreeSet<String>,
    namespaces: String,
    interfaces: BTreeSet<String>,
    groups: String,
    processes: BTreeSet<String>,
    directories: Vec<bool>,
}

impl Machine {
    /// So that what an earlier run left does not pass as what was there before.
    fn assert_free_of_the_cluster(&self) {
        assert_eq!(self.mounts, BTreeSet::new());
        assert_eq!(self.namespaces, "");
        assert_eq!(self.groups, "");
        assert_eq!(self.processes, BTreeSet::new());
    }

    fn look() -> Self {
        let ours = |text: &str| text.contains("cluster-smoke") || text.contains("palisade.smoke");
        let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let commands = run(Command::new("ps").args(["-eo", "args"])).unwrap();
        let groups = Command::new("find")
            .args(["/sys/fs/cgroup", "-name", "palisade.smoke*"])
            .output()
            .unwrap();
        Self {
            mounts: lines(fs::read_to_string("/proc/self/mountinfo").unwrap())
                .into_iter()
                .filter(|it| ours(it))
                .collect(),
            namespaces: run(Command::new("sh").args(["-c", "ip netns list | grep smoke || true"]))
                .unwrap(),
            interfaces: lines(run(Command::new("ip").args(["-brief", "link"])).unwrap())
                .iter()
                .filter_map(|it| it.split_whitespace().next().map(str::to_owned))
                .filter(|it| it.starts_with("pal"))
                .collect(),
            groups: String::from_utf8(groups.stdout).unwrap(),
            processes: lines(commands).into_iter().filter(|it| ours(it)).collect(),
            directories: [
                "/var/lib/kubelet",
                "/var/lib/cni",
                "/var/log/containers",
                "/run/containerd",
            ]
            .map(|it| fs::exists(it).unwrap())
            .to_vec(),
        }
    }
}
