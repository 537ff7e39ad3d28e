//! The Helm chart, installed by Helm itself on a real API server (nothing runs there, everything is checked).
//!
//! 1. `helm lint --strict`; the values' schema refuses what it does not know.
//! 2. Install as an older version, upgrade: the definitions follow. Uninstall: they stay, and so do the objects.
//! 3. Ask the API server what the operator's account may do, with all namespaces and with some.
//! 4. Send the operator's pod to a namespace that enforces Pod Security `restricted`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use palisade_e2e::{
    cluster::{ApiServer, Program},
    tools::{Outcome, run, wait_until},
};
use serde::Deserialize;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("charts/palisade")
}

fn helm() -> Command {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    Command::new(HELM.get_or_init(|| Program::Helm.build().expect("helm")))
}

fn helm_on(server: &ApiServer) -> Command {
    let mut command = helm();
    command.env("KUBECONFIG", server.kubeconfig());
    command
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

fn refuse(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Every object that the chart makes with these values.
fn rendered(arguments: &[&str]) -> Vec<Value> {
    let text = succeed(
        helm()
            .args(["template", "palisade", "--namespace", "palisade-system"])
            .arg(chart())
            .args(arguments),
    );
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|value| !value.is_null())
        .collect()
}

#[test]
fn the_chart_passes_lint() {
    succeed(helm().args(["lint", "--strict"]).arg(chart()));
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (value, complaint) in [
        (
            "operator.image.tga=dev",
            "additional properties 'tga' not allowed",
        ),
        ("operator.replicas=0", "minimum: got 0, want 1"),
        (
            "broker.image.pullPolicy=Sometimes",
            "value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        ("watchNamespaces[0]=Team_A", "does not match pattern"),
        (
            "broker.imagePullSecrets={one,T_wo}",
            "does not match pattern",
        ),
    ] {
        let message = refuse(
            helm()
                .args(["template", "palisade", "--set", value])
                .arg(chart()),
        );
        assert!(message.contains(complaint), "{value}: {message}");
    }
}

#[test]
fn brokers_are_told_where_credentials_for_their_image_are() {
    let told = |arguments: &[&str]| -> Option<String> {
        let objects = rendered(arguments);
        let deployment = objects.iter().find(|one| one["kind"] == "Deployment");
        let environment = &deployment.unwrap()["spec"]["template"]["spec"]["containers"][0]["env"];
        let variables = environment.as_array().unwrap().iter();
        let mut found = variables.filter(|one| one["name"] == "PALISADE_BROKER_IMAGE_PULL_SECRETS");
        Some(found.next()?["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(told(&[]), None);
    let two = told(&["--set", "broker.imagePullSecrets={one,two.b}"]);
    assert_eq!(two.as_deref(), Some("one,two.b"));
}

#[test]
fn no_rule_has_a_wildcard_or_leads_to_more_rights() {
    for arguments in [vec![], vec!["--set", "watchNamespaces={one,two}"]] {
        let objects = rendered(&arguments);
        let mut rules = 0;
        for object in &objects {
            for rule in object["rules"].as_array().into_iter().flatten() {
                rules += 1;
                let listed = |key: &str| -> Vec<String> {
                    serde_json::from_value(rule[key].clone()).unwrap()
                };
                for field in ["apiGroups", "resources", "verbs"] {
                    assert!(
                        !listed(field).iter().any(|value| value.contains('*')),
                        "{rule}"
                    );
                }
                for verb in [
                    "escalate",
                    "bind",
                    "impersonate",
                    "deletecollection",
                    "approve",
                ] {
                    assert!(!listed("verbs").contains(&verb.to_owned()), "{rule}");
                }
                for resource in [
                    "pods/exec",
                    "pods/attach",
                    "serviceaccounts/token",
                    "roles",
                    "clusterroles",
                    "nodes",
                    "nodes/proxy",
                ] {
                    assert!(
                        !listed("resources").contains(&resource.to_owned()),
                        "{rule}"
                    );
                }
            }
            assert_ne!(object["roleRef"]["name"], "cluster-admin");
        }
        assert!(rules > 10, "{rules} rules");
    }
}

#[test]
fn serving_some_namespaces_gives_no_rights_elsewhere_but_to_its_own_kinds() {
    let objects = rendered(&[
        "--set",
        "watchNamespaces={one,two}",
        "--set",
        "rbac.aggregate=false",
    ]);
    let of_kind = |kind: &str| -> Vec<&Value> {
        objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .collect()
    };
    let (roles, bindings) = (of_kind("ClusterRole"), of_kind("ClusterRoleBinding"));
    assert_eq!(
        (roles.len(), bindings.len()),
        (1, 1),
        "{roles:?} {bindings:?}"
    );
    assert_eq!(
        roles[0]["rules"],
        json!([
            {
                "apiGroups": ["palisade.dev"],
                "resources": ["secureclusters", "users", "acls", "quotas", "topics", "certrotations"],
                "verbs": ["list", "watch", "patch"],
            },
            {
                "apiGroups": [""],
                "resources": ["namespaces"],
                "resourceNames": ["one", "two"],
                "verbs": ["get"],
            },
        ])
    );
    assert_eq!(bindings[0]["roleRef"]["kind"], "ClusterRole");
    assert_eq!(bindings[0]["roleRef"]["name"], roles[0]["metadata"]["name"]);
    let deployment = objects
        .iter()
        .find(|object| object["kind"] == "Deployment")
        .unwrap();
    let environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap();
    assert!(
        environment.contains(&json!({"name": "PALISADE_WATCH_NAMESPACES", "value": "one,two"})),
        "{environment:?}"
    );
}

/// The chart as an older version of it was: one definition without its last column.
fn older_chart(directory: &Path) -> PathBuf {
    let older = directory.join("palisade");
    succeed(Command::new("cp").arg("-r").arg(chart()).arg(&older));
    let path = older.join("templates/crds/topics.yaml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("    - ktopic\n"));
    fs::write(&path, text.replace("    - ktopic\n", "    - kt\n")).unwrap();
    older
}

#[test]
fn definitions_are_upgraded_with_the_release_and_outlive_it() {
    let server = ApiServer::start().expect("a real API server");
    let directory = tempfile::tempdir().unwrap();
    let short_names = || {
        succeed(server.kubectl().args([
            "get",
            "crd",
            "topics.palisade.dev",
            "-o",
            "jsonpath={.spec.names.shortNames}",
        ]))
    };
    let place = ["--namespace", "palisade-system"];

    succeed(
        helm_on(&server)
            .args(["install", "palisade", "--create-namespace"])
            .args(place)
            .arg(older_chart(directory.path())),
    );
    assert_eq!(short_names(), r#"["kt"]"#);
    let notes = succeed(
        helm_on(&server)
            .args(["upgrade", "palisade"])
            .args(place)
            .arg(chart()),
    );
    assert_eq!(short_names(), r#"["ktopic"]"#);
    assert!(
        notes.contains("rollout status deployment/palisade"),
        "{notes}"
    );

    succeed(server.kubectl().args([
        "wait",
        "--for=condition=Established",
        "crd/topics.palisade.dev",
        "--timeout=30s",
    ]));
    let topic = directory.path().join("topic.json");
    let object = json!({
        "apiVersion": "palisade.dev/v1alpha1", "kind": "Topic", "metadata": {"name": "kept", "namespace": "default"},
        "spec": {"clusterRef": {"name": "events"}},
    });
    fs::write(&topic, object.to_string()).unwrap();
    succeed(
        server
            .kubectl()
            .args(["apply", "--server-side", "-f"])
            .arg(&topic),
    );
    succeed(helm_on(&server).args(["uninstall", "palisade"]).args(place));
    assert_eq!(
        succeed(
            server
                .kubectl()
                .args(["get", "topics.palisade.dev", "kept", "-o", "name"])
        ),
        "topic.palisade.dev/kept\n"
    );
    let left = succeed(server.kubectl().args([
        "get",
        "clusterroles,clusterrolebindings",
        "-l",
        "app.kubernetes.io/instance=palisade",
        "-o",
        "name",
    ]));
    assert_eq!(left, "", "the release left rights behind");
}

/// What the operator's account might do: a verb on a resource, in a namespace.
#[derive(Clone, Copy, Debug)]
struct Action {
    namespace: &'static str,
    verb: &'static str,
    /// `type` or `type.group`, then `:subresource` or `/name` where there is one.
    resource: &'static str,
}

impl Action {
    fn new(namespace: &'static str, verb: &'static str, resource: &'static str) -> Self {
        Self {
            namespace,
            verb,
            resource,
        }
    }

    /// All of a table, in one namespace.
    fn all(namespace: &'static str, table: &[(&'static str, &'static str)]) -> Vec<Self> {
        table
            .iter()
            .map(|&(verb, resource)| Self::new(namespace, verb, resource))
            .collect()
    }

    /// The question of whether it is allowed, as the API server takes it.
    fn review(self) -> Value {
        let (resource, name) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let (resource, subresource) = resource.split_once(':').unwrap_or((resource, ""));
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:palisade-system:palisade",
                "groups": [
                    "system:serviceaccounts",
                    "system:serviceaccounts:palisade-system",
                    "system:authenticated",
                ],
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "verb": self.verb,
                    "group": group,
                    "resource": resource,
                    "subresource": subresource,
                    "name": name,
                },
            },
        })
    }
}

/// The operator's account may do the former and none of the latter, as soon as the API server has heard of the roles. It answers every question, and gets all of them
/// at once.
fn assert_rights(server: &ApiServer, allowed: &[Action], refused: &[Action]) {
    let actions = [allowed, refused].concat();
    let reviews: Vec<Value> = actions.iter().map(|action| action.review()).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": reviews}).to_string();
    wait_until("the rights are as they should be", LIMIT, || {
        let answered = run(
            server.kubectl().args(["create", "-o", "json", "-f", "-"]),
            list.as_bytes(),
            LIMIT,
        )
        .and_then(Outcome::success)?
        .stdout;
        // kubectl prints one object after the other, in the order of the list.
        let answers: Vec<bool> = serde_json::Deserializer::from_str(&answered)
            .into_iter::<Value>()
            .map(|answer| answer.unwrap()["status"]["allowed"].as_bool().unwrap())
            .collect();
        assert_eq!(answers.len(), actions.len(), "{answered}");
        let wrong: Vec<String> = actions
            .iter()
            .zip(answers)
            .enumerate()
            .filter(|(place, (_, may))| *may != (*place < allowed.len()))
            .map(|(_, (action, may))| {
                let may = if may { "may" } else { "may not" };
                let Action {
                    namespace,
                    verb,
                    resource,
                } = action;
                format!("{may} {verb} {resource} in {namespace}")
            })
            .collect();
        anyhow::ensure!(wrong.is_empty(), "the operator's account {wrong:#?}");
        Ok(())
    })
    .unwrap();
}

/// What lets objects of its own kinds go with a namespace that is deleted.
const OF_ITS_KINDS: [(&str, &str); 3] = [
    ("list", "secureclusters.palisade.dev"),
    ("watch", "topics.palisade.dev"),
    ("patch", "users.palisade.dev"),
];

const NEEDED: [(&str, &str); 16] = [
    ("patch", "acls.palisade.dev:status"),
    ("update", "users.palisade.dev:finalizers"),
    ("create", "secrets"),
    ("watch", "secrets"),
    ("update", "secrets"),
    ("create", "configmaps"),
    ("patch", "services"),
    ("create", "serviceaccounts"),
    ("create", "statefulsets.apps"),
    ("delete", "networkpolicies.networking.k8s.io"),
    ("patch", "poddisruptionbudgets.policy"),
    ("list", "pods"),
    ("patch", "pods"),
    ("delete", "persistentvolumeclaims"),
    ("get", "namespaces"),
    ("create", "events.events.k8s.io"),
];

const WITHHELD: [(&str, &str); 15] = [
    ("update", "acls.palisade.dev:finalizers"),
    ("delete", "secrets"),
    ("delete", "configmaps"),
    ("delete", "services"),
    ("delete", "statefulsets.apps"),
    ("watch", "pods"),
    ("create", "pods"),
    ("delete", "pods"),
    ("create", "pods:exec"),
    ("create", "serviceaccounts:token"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
    ("delete", "namespaces"),
    ("delete", "secureclusters.palisade.dev"),
    ("get", "nodes"),
];

#[test]
fn the_account_may_do_what_it_needs_and_nothing_else() {
    let server = ApiServer::start().expect("a real API server");
    let install = |release: &str, arguments: &[&str]| {
        succeed(
            helm_on(&server)
                .args([
                    "upgrade",
                    "--install",
                    release,
                    "--create-namespace",
                    "--namespace",
                    "palisade-system",
                ])
                .args(arguments)
                .arg(chart()),
        )
    };
    for namespace in ["one", "two"] {
        succeed(server.kubectl().args(["create", "namespace", namespace]));
    }

    let lease = |namespace, name| Action::new(namespace, "update", name);
    let own = "leases.coordination.k8s.io/palisade-operator";
    let another = "leases.coordination.k8s.io/another";

    install("palisade", &[]);
    let mut allowed = Action::all("one", &OF_ITS_KINDS);
    allowed.extend(Action::all("one", &NEEDED));
    allowed.push(lease("palisade-system", own));
    let mut refused = Action::all("one", &WITHHELD);
    refused.push(lease("palisade-system", another));
    refused.push(lease("kube-system", own));
    assert_rights(&server, &allowed, &refused);

    // Only in the namespace it serves, but to its own kinds.
    install("palisade", &["--set", "watchNamespaces={one}"]);
    let mut everywhere = Action::all("one", &OF_ITS_KINDS);
    everywhere.extend(Action::all("two", &OF_ITS_KINDS));
    everywhere.push(Action::new("one", "get", "namespaces/one"));
    let allowed = [everywhere.clone(), Action::all("one", &NEEDED)].concat();
    let mut refused = Action::all("two", &NEEDED);
    refused.extend(Action::all("two", &WITHHELD));
    refused.push(Action::new("two", "get", "namespaces/two"));
    assert_rights(&server, &allowed, &refused);

    // A namespace that is deleted takes its Role along, and then there is only what lets its objects go.
    succeed(
        server
            .kubectl()
            .args(["--namespace", "one", "delete", "role", "palisade"]),
    );
    assert_rights(&server, &everywhere, &Action::all("one", &NEEDED));
}

#[test]
fn the_operators_pod_is_admitted_where_pod_security_is_restricted() {
    let server = ApiServer::start().expect("a real API server");
    succeed(
        server
            .kubectl()
            .args(["create", "namespace", "palisade-system"]),
    );
    succeed(server.kubectl().args([
        "label",
        "namespace",
        "palisade-system",
        "pod-security.kubernetes.io/enforce=restricted",
    ]));
    succeed(
        helm_on(&server)
            .args(["install", "palisade", "--namespace", "palisade-system"])
            .arg(chart()),
    );
    let deployment: Value = serde_json::from_str(&succeed(server.kubectl().args([
        "--namespace",
        "palisade-system",
        "get",
        "deployment",
        "palisade",
        "-o",
        "json",
    ])))
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pod = |name: &str, spec: &Value| {
        let path = directory.path().join(name);
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": name, "namespace": "palisade-system", "labels": deployment["spec"]["template"]["metadata"]["labels"]},
        });
        fs::write(&path, object.to_string()).unwrap();
        path
    };
    let mut spec = deployment["spec"]["template"]["spec"].clone();
    succeed(
        server
            .kubectl()
            .args(["create", "--dry-run=server", "-f"])
            .arg(pod("operator", &spec)),
    );
    // The admission really looks.
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
    let message = refuse(
        server
            .kubectl()
            .args(["create", "--dry-run=server", "-f"])
            .arg(pod("loose", &spec)),
    );
    assert!(
        message.contains("violates PodSecurity \"restricted"),
        "{message}"
    );
}
