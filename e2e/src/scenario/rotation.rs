//! Both authorities are replaced while a producer runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    ClientPod, ClientPodSpec, Kubectl, NAMESPACE, Shown,
    client::{IDLE, MOUNT},
    shows::{TOPIC, run_id},
};
use crate::{progress::say, tools::wait_until};

/// Label of the rotations that are made here, so that the next run finds and removes them.
const LABEL: &str = "palisade.dev/demo=rotation";

/// A rotation that was asked for.
#[derive(Clone, Debug)]
pub struct Rotation {
    kubectl: Kubectl,
    name: String,
}

impl Rotation {
    /// Removes the rotations of earlier runs; what they did stays done.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn forget_earlier(kubectl: &Kubectl) -> Result<()> {
        kubectl
            .ok(&[
                "-n",
                NAMESPACE,
                "delete",
                "certrotation",
                "-l",
                LABEL,
                "--timeout=60s",
            ])
            .map(drop)
    }

    /// Asks for the replacement of an authority and its key, now.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn start(kubectl: &Kubectl, name: &str, target: &str) -> Result<Self> {
        let (key, value) = LABEL.split_once('=').context("a label")?;
        kubectl.apply(&format!(
            "apiVersion: palisade.dev/v1alpha1
kind: CertRotation
metadata:
  name: {name}
  namespace: {NAMESPACE}
  labels: {{ {key}: {value} }}
spec:
  clusterRef: {{ name: events }}
  target: {target}
  mode: ReplaceKey
  trigger: {{ once: {{}} }}
  reason: shown in the demo
"
        ))?;
        Ok(Self {
            kubectl: kubectl.clone(),
            name: name.to_owned(),
        })
    }

    /// Its status.
    ///
    /// # Errors
    /// When it is gone.
    pub fn status(&self) -> Result<Value> {
        Ok(self
            .kubectl
            .json(&["-n", NAMESPACE, "certrotation", &self.name])?["status"]
            .clone())
    }

    /// Its phase; empty before the operator has seen it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn phase(&self) -> Result<String> {
        Ok(self.status()?["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// Waits for the end, telling the phases; the fingerprints before and after.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn finish(&self) -> Result<(String, String)> {
        let mut told = String::new();
        let status = wait_until(
            "the rotation is completed",
            Duration::from_secs(240),
            || {
                std::thread::sleep(Duration::from_millis(500));
                let status = self.status()?;
                let phase = status["phase"].as_str().unwrap_or_default();
                let now = format!(
                    "{phase} {}",
                    status["progress"].as_str().unwrap_or_default()
                );
                if now != told {
                    say(format_args!("  {}: {now}", self.name));
                    told = now;
                }
                ensure!(phase == "Completed", "{status:#}");
                Ok(status)
            },
        )?;
        self.kubectl.wait(
            NAMESPACE,
            "condition=Ready",
            &[&format!("certrotation/{}", self.name)],
            60,
        )?;
        let fingerprint = |which: &str| -> Result<String> {
            let found = status["lastRun"][which].as_str();
            Ok(found
                .with_context(|| format!("the status has no lastRun.{which}: {status:#}"))?
                .to_owned())
        };
        let (old, new) = (
            fingerprint("oldFingerprint")?,
            fingerprint("newFingerprint")?,
        );
        ensure!(old != new, "the authority was not replaced: {old}");
        Ok((old, new))
    }
}

/// A pod that writes twenty numbered records a second over one connection until it is told to stop.
#[derive(Debug)]
pub struct SteadyProducer {
    pod: ClientPod,
    marker: String,
}

impl SteadyProducer {
    /// Starts it, as alice, and waits until it runs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn start(kubectl: &Kubectl) -> Result<Self> {
        let marker = format!("{}-steady", run_id());
        // The pipe's end is the producer's: its status is that of the pod.
        let script = format!(
            "i=0
while [ ! -e /tmp/stop ]; do
  i=$((i+1)); echo \"{marker} $i\"; echo $i > /tmp/count; sleep 0.05
done | kcat -F {MOUNT}/librdkafka.conf -P -t {TOPIC} -X linger.ms=5 -X enable.idempotence=true && echo \"finished $(cat /tmp/count)\""
        );
        let spec = ClientPodSpec {
            name: "demo-steady-producer",
            secret: Some("alice"),
            admitted: true,
            script: &script,
        };
        let pod = ClientPod::create(kubectl, &spec)?;
        pod.ready()?;
        Ok(Self { pod, marker })
    }

    /// Stops it: it must have seen no error, and every number must be in the topic once. How many there were.
    ///
    /// # Errors
    /// When it complained, or a record is missing or doubled.
    pub fn finish(&self, kubectl: &Kubectl) -> Result<u32> {
        self.finish_but_for(kubectl, &[])
    }

    /// As [`SteadyProducer::finish`], but it may have said that connections ended.
    ///
    /// # Errors
    /// When it complained of anything else, or a record is missing or doubled.
    pub fn finish_despite_restarts(&self, kubectl: &Kubectl) -> Result<u32> {
        let of_connections = [
            "|FAIL|",
            "Local: Broker transport failure",
            "Local: Host resolution failure",
        ];
        self.finish_but_for(kubectl, &of_connections)
    }

    fn finish_but_for(&self, kubectl: &Kubectl, forgiven: &[&str]) -> Result<u32> {
        self.pod.shell(30, "touch /tmp/stop")?.success()?;
        wait_until("the producer ends", Duration::from_secs(60), || {
            std::thread::sleep(Duration::from_millis(300));
            let phase = self.pod.phase()?;
            ensure!(phase != "Running", "it is still {phase}");
            Ok(())
        })?;
        let (phase, log) = (self.pod.phase()?, self.pod.log()?);
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| line.starts_with('%') && !line.contains("Reading configuration"))
            .filter(|line| !forgiven.iter().any(|part| line.contains(part)))
            .collect();
        ensure!(
            phase == "Succeeded" && complaints.is_empty(),
            "the producer ended as {phase} and said:\n{log}"
        );
        let count: u32 = log
            .lines()
            .find_map(|line| line.strip_prefix("finished ")?.parse().ok())
            .with_context(|| format!("the producer did not say how many:\n{log}"))?;

        // A new pod: its connection and its mounted Secret are of after the rotation.
        let reader = ClientPod::start(kubectl, "demo-reader", Some("analytics"), true)?;
        let read = format!(
            "-C -t {TOPIC} -m 30 -o beginning -e -q | grep '^{} ' | cut -d' ' -f2",
            self.marker
        );
        let read = reader.kcat(90, None, &read)?.success()?;
        let mut numbers: Vec<u32> = read
            .stdout
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect();
        numbers.sort_unstable();
        ensure!(
            numbers == (1..=count).collect::<Vec<_>>(),
            "{} of {count} records are in the topic",
            numbers.len()
        );
        Ok(count)
    }
}

/// Replaces both authorities, one after the other, while a producer runs: it sees no error, no pod restarts, and new clients with the new
/// Secrets are served.
///
/// # Errors
/// When any of that is not so.
pub fn both_authorities_are_replaced(kubectl: &Kubectl) -> Result<Shown> {
    Rotation::forget_earlier(kubectl)?;
    let brokers = broker_pods(kubectl)?;
    let trusted = secret_value(kubectl, "alice", "ca.crt")?;
    let certificate = secret_value(kubectl, "client-1", "user.crt")?;
    let producer = SteadyProducer::start(kubectl)?;
    let id = run_id();
    for (target, name) in [
        ("ClusterAuthority", "cluster"),
        ("ClientsAuthority", "clients"),
    ] {
        say(format_args!(
            "replacing the {name} authority while the producer runs"
        ));
        Rotation::start(kubectl, &format!("demo-{id}-{name}"), target)?.finish()?;
    }
    // A client with the new Secret. It starts while the producer ends and its records are read.
    let fresh = ClientPodSpec {
        name: "demo-fresh-client-1",
        secret: Some("client-1"),
        admitted: true,
        script: IDLE,
    };
    let fresh = ClientPod::create(kubectl, &fresh)?;
    let count = producer.finish(kubectl)?;
    ensure!(
        broker_pods(kubectl)? == brokers,
        "a broker restarted: {brokers:#} became {:#}",
        broker_pods(kubectl)?
    );
    ensure!(
        secret_value(kubectl, "alice", "ca.crt")? != trusted,
        "alice still trusts the old authority only"
    );
    ensure!(
        secret_value(kubectl, "client-1", "user.crt")? != certificate,
        "client-1 still has its old certificate"
    );
    fresh.ready()?;
    fresh
        .kcat(40, Some("echo fresh"), &format!("-P -t {TOPIC}"))?
        .success()?;
    Ok(Shown {
        claim: "both authorities are replaced under load",
        evidence: format!("{count} records, 0 errors, 0 restarts; new Secrets accepted"),
    })
}

/// Names, identities and restarts of the brokers' pods.
fn broker_pods(kubectl: &Kubectl) -> Result<Value> {
    let pods = kubectl.json(&["-n", NAMESPACE, "pods"])?;
    let brokers: Vec<Value> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet")
        .map(|pod| {
            serde_json::json!({
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
                "restarts": pod["status"]["containerStatuses"][0]["restartCount"],
            })
        })
        .collect();
    ensure!(!brokers.is_empty(), "there is no broker pod");
    Ok(Value::from(brokers))
}

/// A value of a Secret, still in base64: it is only compared.
fn secret_value(kubectl: &Kubectl, secret: &str, key: &str) -> Result<String> {
    let json = kubectl.json(&["-n", NAMESPACE, "secret", secret])?;
    let value = json["data"][key].as_str();
    Ok(value
        .with_context(|| format!("Secret {secret} has no {key}"))?
        .to_owned())
}
