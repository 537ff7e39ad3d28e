//! From source to a cluster that serves: images, the chart, the example.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;

use super::{KINDS, Kubectl, Site};
use crate::{
    cluster::ClusterError,
    image::{BROKER_IMAGE, Image, KCAT_IMAGE, OPERATOR_IMAGE},
    progress::say,
    tools::{cache, kcat, program, run},
};

/// Where the example lives.
pub const NAMESPACE: &str = "messaging";
/// Where the operator lives.
pub const OPERATOR_NAMESPACE: &str = "palisade-system";

const RELEASE: &str = "palisade";
const LIMIT: Duration = Duration::from_secs(300);

/// Builds and loads the images, installs the chart and applies `examples/quickstart`, then waits until all six kinds are ready.
///
/// # Errors
/// When a step fails; the message says which and what was seen last.
pub fn install(site: &Site) -> Result<()> {
    let kubectl = site.kubectl();
    if !site.takes_images() {
        claim(kubectl)?;
        say("images are not loaded: the nodes must have those that make images builds");
        install_chart(site)?;
        return apply_example(site);
    }
    let images = load_images(site)?;
    let before = Images::running(kubectl)?;
    install_chart(site)?;
    // The tag of a development image does not change with what is in it.
    if before
        .as_ref()
        .is_some_and(|it| it.operator != images.operator)
    {
        restart(kubectl, OPERATOR_NAMESPACE, "deployment")?;
    }
    if before.as_ref().is_some_and(|it| it.broker != images.broker) {
        restart(kubectl, NAMESPACE, "statefulset")?;
    }
    images.note(kubectl)?;
    apply_example(site)
}

/// Label of the operator's namespace in a cluster that was not started here: what is installed there may be removed again.
const OURS: (&str, &str) = ("palisade.dev/installed-by", "make");

fn is_ours(kubectl: &Kubectl) -> Result<bool> {
    let (label, value) = OURS;
    let selector = format!("{label}={value}");
    let found = kubectl.ok(&["get", "namespace", "-l", &selector, "-o", "name"])?;
    Ok(found
        .lines()
        .any(|name| name == format!("namespace/{OPERATOR_NAMESPACE}")))
}

/// Refuses a cluster with a Palisade that somebody uses: it would be replaced now and removed in the end, with everything that it manages.
fn claim(kubectl: &Kubectl) -> Result<()> {
    if is_ours(kubectl)? {
        return Ok(());
    }
    let namespaces = [NAMESPACE, OPERATOR_NAMESPACE].map(|name| format!("namespace/{name}"));
    let definitions = KINDS.map(|kind| format!("crd/{kind}"));
    let names = namespaces.iter().chain(&definitions).map(String::as_str);
    let get = ["get", "--ignore-not-found", "-o", "name"];
    let found = kubectl.ok(&get.into_iter().chain(names).collect::<Vec<_>>())?;
    ensure!(
        found.trim().is_empty(),
        "the current cluster has a Palisade, or a namespace of the same name, that was not installed from here, and what is installed from here is removed in the end: use a cluster without\n{found}"
    );
    let (label, value) = OURS;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {OPERATOR_NAMESPACE}\n  labels: {{ {label}: {value} }}\n"
    ))
}

/// Which programs are in the images, in a few characters each.
#[derive(Debug, PartialEq, Eq)]
struct Images {
    broker: String,
    operator: String,
}

impl Images {
    const BROKER: &str = "palisade.dev/broker-image";
    const OPERATOR: &str = "palisade.dev/operator-image";

    /// Those that the pods of the cluster were started with last, as was noted then.
    fn running(kubectl: &Kubectl) -> Result<Option<Self>> {
        let get = ["get", "namespace", OPERATOR_NAMESPACE];
        let text = kubectl.ok(&[&get[..], &["--ignore-not-found", "-o", "json"]].concat())?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let namespace: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
        let noted = |name: &str| {
            let value = namespace["metadata"]["annotations"][name].as_str();
            value.unwrap_or_default().to_owned()
        };
        Ok(Some(Self {
            broker: noted(Self::BROKER),
            operator: noted(Self::OPERATOR),
        }))
    }

    fn note(&self, kubectl: &Kubectl) -> Result<()> {
        let (broker, operator) = (
            format!("{}={}", Self::BROKER, self.broker),
            format!("{}={}", Self::OPERATOR, self.operator),
        );
        let annotate = ["annotate", "--overwrite", "namespace", OPERATOR_NAMESPACE];
        kubectl
            .ok(&[&annotate[..], &[broker.as_str(), operator.as_str()]].concat())
            .map(drop)
    }
}

/// Has pods started anew, on the image that was just loaded.
fn restart(kubectl: &Kubectl, namespace: &str, kind: &str) -> Result<()> {
    let names = kubectl.ok(&["-n", namespace, "get", kind, "-o", "name"])?;
    for name in names.lines() {
        say(format_args!("restarting {name} on the new image"));
        kubectl.ok(&["-n", namespace, "rollout", "restart", name])?;
        let status = ["-n", namespace, "rollout", "status", name, "--timeout=240s"];
        kubectl.ok(&status)?;
    }
    Ok(())
}

/// Makes an image of a program.
type Builder = fn(&Path) -> Result<Image, ClusterError>;

/// Builds the images that are not there yet for these programs, and loads them into every node.
fn load_images(site: &Site) -> Result<Images> {
    let directory = cache()?.join("images");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let broker = program("palisade-server", "palisade-broker", "PALISADE_BROKER_BIN")?;
    let operator = program(
        "palisade-operator",
        "palisade-operator",
        "PALISADE_OPERATOR_BIN",
    )?;
    let kcat = kcat()?;
    let images: [(&str, &str, &Path, Builder); 3] = [
        ("broker", BROKER_IMAGE, &broker, Image::broker),
        ("operator", OPERATOR_IMAGE, &operator, Image::operator),
        ("kcat", KCAT_IMAGE, &kcat, |_| Image::kcat()),
    ];
    for (name, image_name, binary, image) in images {
        let archive = directory.join(format!("{name}-{}.tar", short_hash(image_name, binary)?));
        if !archive.exists() {
            say(format_args!("building the image palisade/{name}:dev"));
            forget_older(&directory, name)?;
            let half = archive.with_extension("half");
            image(binary)?.write(&half)?;
            fs::rename(&half, &archive)?;
        }
        say(format_args!("loading the image palisade/{name}:dev"));
        site.load(&archive)?;
    }
    Ok(Images {
        broker: short_hash(BROKER_IMAGE, &broker)?,
        operator: short_hash(OPERATOR_IMAGE, &operator)?,
    })
}

/// What a program's image is, its name included, in a few characters.
fn short_hash(image: &str, path: &Path) -> Result<String> {
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    bytes.extend_from_slice(image.as_bytes());
    let hash = digest(&SHA256, &bytes);
    Ok(hash
        .as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Removes the archives of an image's earlier programs: each is tens of megabytes.
fn forget_older(directory: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let file = path.file_name().and_then(|file| file.to_str());
        if file
            .and_then(|file| file.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('-'))
        {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn install_chart(site: &Site) -> Result<()> {
    let kubectl = site.kubectl();
    say("installing the Helm chart");
    let chart = repository().join("charts/palisade");
    let mut helm = site.helm()?;
    helm.args(["upgrade", "--install", RELEASE]).arg(chart);
    helm.args([
        "--namespace",
        OPERATOR_NAMESPACE,
        "--create-namespace",
        "--wait",
        "--timeout",
        "3m",
    ]);
    run(&mut helm, b"", LIMIT)?
        .success()
        .map_err(|error| error.context(described(kubectl, OPERATOR_NAMESPACE)))
        .map(drop)
}

fn apply_example(site: &Site) -> Result<()> {
    let kubectl = site.kubectl();
    let example = repository().join("examples/quickstart");
    say("applying examples/quickstart");
    kubectl.ok(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-k",
        &example.display().to_string(),
    ])?;
    for kind in KINDS {
        say(format_args!("waiting for Ready: {kind}"));
        kubectl
            .wait(NAMESPACE, "condition=Ready", &[kind, "--all"], 180)
            .map_err(|error| error.context(described(kubectl, NAMESPACE)))?;
    }
    Ok(())
}

/// What a person would look at next.
fn described(kubectl: &Kubectl, namespace: &str) -> String {
    let mut text = String::new();
    for arguments in [
        &[
            "get",
            "pods,statefulsets,deployments,palisade",
            "-o",
            "wide",
        ][..],
        &["get", "events", "--sort-by=.lastTimestamp"],
    ] {
        let outcome = kubectl.run(&[&["-n", namespace], arguments].concat(), "");
        text.push_str(&outcome.map_or_else(|error| error.to_string(), |outcome| outcome.text()));
    }
    let logs = [
        "-n",
        OPERATOR_NAMESPACE,
        "logs",
        "-l",
        "app.kubernetes.io/name=palisade-operator",
        "--tail=40",
    ];
    text.push_str(
        &kubectl
            .run(&logs, "")
            .map_or_else(|error| error.to_string(), |outcome| outcome.text()),
    );
    text
}

/// Takes the example, the chart and the definitions out of a cluster that was not started here, if they were installed from here.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_objects(site: &Site) -> Result<()> {
    let kubectl = site.kubectl();
    if !is_ours(kubectl)? {
        say("nothing on the current cluster was installed from here");
        return Ok(());
    }
    say("removing the example");
    kubectl.ok(&[
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout=120s",
    ])?;
    say("removing the chart");
    let mut helm = site.helm()?;
    helm.args([
        "uninstall",
        RELEASE,
        "--namespace",
        OPERATOR_NAMESPACE,
        "--ignore-not-found",
        "--wait",
    ]);
    run(&mut helm, b"", LIMIT)?.success()?;
    kubectl.ok(&[&["delete", "crd", "--ignore-not-found"][..], &KINDS].concat())?;
    kubectl
        .ok(&[
            "delete",
            "namespace",
            OPERATOR_NAMESPACE,
            "--ignore-not-found",
            "--timeout=120s",
        ])
        .map(drop)?;
    say("what was installed from here is gone");
    Ok(())
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
