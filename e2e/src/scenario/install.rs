//! From source to a cluster that serves: images, the chart, the example.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};

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
    if site.takes_images() {
        load_images(site)?;
    } else {
        say("images are taken from where the chart's values point; make images builds them");
    }
    install_chart(site)?;
    apply_example(site)
}

/// Makes an image of a program.
type Builder = fn(&Path) -> Result<Image, ClusterError>;

/// Builds the images that are not there yet for these programs, and loads them into every node.
fn load_images(site: &Site) -> Result<()> {
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
    Ok(())
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
    let before = operator_images(kubectl);
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
        .map_err(|error| error.context(described(kubectl, OPERATOR_NAMESPACE)))?;
    // The tag of a development image does not change with what is in it.
    if before.is_some() && site.takes_images() {
        say("restarting the operator on the image that was just loaded");
        kubectl.ok(&["-n", OPERATOR_NAMESPACE, "rollout", "restart", "deployment"])?;
        kubectl.ok(&[
            "-n",
            OPERATOR_NAMESPACE,
            "rollout",
            "status",
            "deployment",
            "--timeout=120s",
        ])?;
    }
    Ok(())
}

/// The operator's deployments, when the chart was installed before.
fn operator_images(kubectl: &Kubectl) -> Option<String> {
    let get = ["-n", OPERATOR_NAMESPACE, "get", "deployment", "-o", "name"];
    kubectl.ok(&get).ok().filter(|text| !text.trim().is_empty())
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

/// Takes the example, the chart and the definitions out of a cluster that was not started here.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_objects(site: &Site) -> Result<()> {
    let kubectl = site.kubectl();
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
        .map(drop)
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
