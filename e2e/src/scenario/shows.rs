//! The claims about access, one function each. Each looks at what the clients and the brokers said, and fails with all of it.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    ClientPod, ClientPodSpec, KINDS, Kubectl, NAMESPACE, Shown,
    client::{IDLE, MOUNT},
};
use crate::tools::wait_until;

/// The topic of the classic case.
pub(super) const TOPIC: &str = "user-events";
/// How many records of a kibibyte are sent: about what the quota of client-1 lets through in eight seconds, on three brokers.
const FLOOD_RECORDS: u32 = 24_000;

/// The pods of the people in the example, and one that the network policy does not admit.
#[derive(Debug)]
pub struct People {
    kubectl: Kubectl,
    /// Distinguishes the records of this run from those of earlier ones.
    run: String,
    alice: ClientPod,
    analytics: ClientPod,
    mallory: ClientPod,
    client_1: ClientPod,
    outsider: ClientPod,
}

impl People {
    /// Starts the pods side by side and waits for all of them.
    ///
    /// # Errors
    /// When one does not run.
    pub fn start(kubectl: &Kubectl) -> Result<Self> {
        let create = |name: &str, secret: &str, admitted: bool| {
            ClientPod::create(
                kubectl,
                &ClientPodSpec {
                    name,
                    secret: Some(secret),
                    admitted,
                    script: IDLE,
                },
            )
        };
        let people = Self {
            kubectl: kubectl.clone(),
            run: run_id(),
            alice: create("demo-alice", "alice", true)?,
            analytics: create("demo-analytics", "analytics", true)?,
            mallory: create("demo-mallory", "mallory", true)?,
            client_1: create("demo-client-1", "client-1", true)?,
            // With alice's own password: what stops it is the network policy alone.
            outsider: create("demo-outsider", "alice", false)?,
        };
        for pod in [
            &people.alice,
            &people.analytics,
            &people.mallory,
            &people.client_1,
            &people.outsider,
        ] {
            pod.ready()?;
        }
        Ok(people)
    }

    /// alice writes user-events; analytics reads it as the group analytics-service; both over TLS with SCRAM, from mounted Secrets.
    ///
    /// # Errors
    /// When a record is missing or a client complains.
    pub fn alice_produces_and_analytics_consumes(&self) -> Result<Shown> {
        let marker = format!("{}-alice", self.run);
        let feed = format!("for i in $(seq 1 200); do echo \"{marker} $i\"; done");
        self.alice
            .kcat(40, Some(&feed), &format!("-P -t {TOPIC} -z zstd"))?
            .success()?;
        let read = format!(
            "-q -X auto.offset.reset=earliest -e -G analytics-service {TOPIC} | grep '^{marker} '"
        );
        let read = self.analytics.kcat(60, None, &read)?.success()?;
        let mut numbers: Vec<u32> = read
            .stdout
            .lines()
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        numbers.sort_unstable();
        ensure!(
            numbers == (1..=200).collect::<Vec<_>>(),
            "analytics read {} of 200 records:\n{}",
            numbers.len(),
            read.text()
        );
        let protocol = self
            .alice
            .shell(
                30,
                &format!("grep -E '^(security.protocol|sasl.mechanism)=' {MOUNT}/librdkafka.conf"),
            )?
            .success()?;
        ensure!(
            protocol.stdout.contains("SASL_SSL") && protocol.stdout.contains("SCRAM-SHA-512"),
            "the mounted configuration says {}",
            protocol.stdout
        );
        Ok(Shown {
            claim: "alice produces, analytics consumes",
            evidence: "200 of 200 records over TLS with SCRAM-SHA-512, from the mounted Secrets"
                .to_owned(),
        })
    }

    /// mallory has a password and no rights.
    ///
    /// # Errors
    /// When something of hers works.
    pub fn mallory_is_refused(&self) -> Result<Shown> {
        let write = self
            .mallory
            .kcat(40, Some("echo forged"), &format!("-P -t {TOPIC}"))?
            .refused("authorization failed")?;
        let read = self
            .mallory
            .kcat(40, None, &format!("-C -t {TOPIC} -m 30 -o beginning -e -q"))?
            .refused("authorization failed")?;
        ensure!(
            read.stdout.trim().is_empty(),
            "mallory read {}",
            read.stdout
        );
        let text = write.text();
        let said = text
            .lines()
            .find(|line| line.contains("authorization failed"))
            .unwrap_or_default();
        Ok(Shown {
            claim: "mallory is refused",
            evidence: format!("write and read: {}", core(said)),
        })
    }

    /// The port answers no one who does not speak TLS, although the network lets this pod through.
    ///
    /// # Errors
    /// When a plaintext client gets an answer, or the port cannot be reached at all.
    pub fn plaintext_is_refused(&self) -> Result<Shown> {
        let reach = format!(
            "B=$(sed -n s/^bootstrap.servers=//p {MOUNT}/librdkafka.conf); nc -w 30 ${{B%:*}} ${{B##*:}} -e true"
        );
        self.alice.shell(40, &reach)?.success()?;
        let plain = format!(
            "B=$(sed -n s/^bootstrap.servers=//p {MOUNT}/librdkafka.conf); kcat -b $B -X security.protocol=plaintext -L -m 6"
        );
        let refused = self.alice.shell(30, &plain)?;
        ensure!(
            refused.status != 0 && !refused.stdout.contains("broker "),
            "plaintext was served:\n{}",
            refused.text()
        );
        let said = refused
            .text()
            .lines()
            .find(|line| {
                line.contains("Disconnected") || line.contains("closed") || line.contains("ERROR")
            })
            .map_or_else(|| "no answer".to_owned(), |line| core(line).to_owned());
        Ok(Shown {
            claim: "plaintext is refused",
            evidence: said,
        })
    }

    /// A pod without the label cannot connect with alice's own password; with the label it can.
    ///
    /// # Errors
    /// When the policy does not cut it, or something else does.
    pub fn network_policy_cuts_the_outsider(&self) -> Result<Shown> {
        let pod = "pod/demo-outsider";
        let list = "-L -m 6 -X socket.connection.setup.timeout.ms=3000";
        let reach = format!(
            "B=$(sed -n s/^bootstrap.servers=//p {MOUNT}/librdkafka.conf); nc -w 4 ${{B%:*}} ${{B##*:}} -e true"
        );
        // Both wait until their time is up.
        let (cut, reached) = thread::scope(|threads| {
            let cut = threads.spawn(|| self.outsider.kcat(30, None, list));
            let reached = self.outsider.shell(15, &reach);
            (cut.join(), reached)
        });
        let cut = cut.map_err(|_| anyhow!("the thread of the outsider's kcat panicked"))??;
        ensure!(cut.status != 0, "the outsider was served:\n{}", cut.text());
        ensure!(reached?.status != 0, "the outsider reached the port");
        self.kubectl.ok(&[
            "-n",
            NAMESPACE,
            "label",
            "--overwrite",
            pod,
            "tier=application",
        ])?;
        let admitted = wait_until(
            "the labelled pod is admitted",
            Duration::from_secs(60),
            || self.outsider.kcat(30, None, "-L -m 15")?.success(),
        );
        // Puts things back for the next run before anything is said of this one.
        self.kubectl.ok(&["-n", NAMESPACE, "label", pod, "tier-"])?;
        admitted?;
        Ok(Shown {
            claim: "a pod that is not admitted is cut",
            evidence: "same password, no label tier=application: no connection; labelled: served"
                .to_owned(),
        })
    }

    /// client-1 is told to wait; alice, who sends as much under another client id, is not.
    ///
    /// # Errors
    /// When the wrong one waits.
    pub fn client_1_is_throttled(&self) -> Result<Shown> {
        let feed = format!(
            "awk 'BEGIN {{ for (i = 0; i < {FLOOD_RECORDS}; i++) printf \"%01023d\\n\", i }}'"
        );
        let arguments = |id: &str| {
            format!(
                "-v -P -t {TOPIC} -X client.id={id} -X message.timeout.ms=120000 -X queue.buffering.max.kbytes=65536"
            )
        };
        let free = self
            .alice
            .kcat(100, Some(&feed), &arguments("alice-app"))?
            .success()?;
        ensure!(
            throttled(&free.text()).is_empty(),
            "alice was told to wait:\n{}",
            free.text()
        );
        let held = self
            .client_1
            .kcat(140, Some(&feed), &arguments("client-1"))?
            .success()?;
        let waits = throttled(&held.text());
        ensure!(
            !waits.is_empty(),
            "client-1 was not told to wait:\n{}",
            held.text()
        );
        let longest = waits.iter().max().copied().unwrap_or_default();
        Ok(Shown {
            claim: "client-1 is throttled",
            evidence: format!(
                "{} answers asked it to wait, {:.1} s at most; alice sent as much and was asked 0 times",
                waits.len(),
                Duration::from_millis(longest).as_secs_f32()
            ),
        })
    }
}

/// All six kinds are Ready, and `kubectl get` shows more than names.
///
/// # Errors
/// When an object is not ready or a kind has no useful columns.
pub fn six_kinds_are_ready(kubectl: &Kubectl) -> Result<Shown> {
    let mut objects = 0;
    for kind in KINDS {
        kubectl.wait(NAMESPACE, "condition=Ready", &[kind, "--all"], 120)?;
        let table = kubectl.ok(&["-n", NAMESPACE, "get", kind])?;
        let header = table.lines().next().context("kubectl printed nothing")?;
        ensure!(
            header.split_whitespace().count() >= 4 && header.contains("READY"),
            "`kubectl get {kind}` shows only {header}"
        );
        objects += table.lines().count() - 1;
    }
    Ok(Shown {
        claim: "all six kinds are Ready",
        evidence: format!("{objects} objects, kubectl wait --for=condition=Ready"),
    })
}

/// The waits that kcat was told, in milliseconds.
fn throttled(log: &str) -> Vec<u64> {
    log.lines()
        .filter_map(|line| {
            line.split_once("throttled request for ")?
                .1
                .strip_suffix("ms")?
                .parse()
                .ok()
        })
        .filter(|wait| *wait > 0)
        .collect()
}

/// A name for the records of this run.
pub(super) fn run_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("run-{}", now.as_millis())
}

/// What a line of kcat or librdkafka says: without kcat's mark, the thread and the broker's address in front, and without the guesses and times behind.
fn core(line: &str) -> &str {
    let said = line.rsplit("]: ").next().unwrap_or(line).trim();
    let said = said.strip_prefix("% ").unwrap_or(said);
    let said = match said.split_once(": ") {
        Some((address, rest)) if address.contains('/') && !address.contains(' ') => rest,
        _ => said,
    };
    let said = said.split(" (").next().unwrap_or(said);
    said.strip_suffix(" configuration").unwrap_or(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_from_what_kcat_prints() {
        let log = "% Broker localhost:9093/0 (0) throttled request for 1200ms\nx\n% Broker b (0) throttled request for 0ms\n";
        assert_eq!(throttled(log), [1200]);
    }

    #[test]
    fn the_core_of_a_line_has_no_mark_address_or_time() {
        for (line, expected) in [
            (
                "% Delivery failed for message: Broker: Topic authorization failed",
                "Delivery failed for message: Broker: Topic authorization failed",
            ),
            (
                "%3|1760000000.123|FAIL|rdkafka#producer-1| [thrd:events-bootstrap.messaging.svc:9093/bootstrap]: \
                 events-bootstrap.messaging.svc:9093/bootstrap: Disconnected while requesting ApiVersion: \
                 might be caused by incorrect security.protocol configuration (connecting to a SSL listener?) \
                 or broker version is < 0.10 (see api.version.request) (after 0ms in state APIVERSION_QUERY)",
                "Disconnected while requesting ApiVersion: might be caused by incorrect security.protocol",
            ),
            ("something else", "something else"),
        ] {
            assert_eq!(core(line), expected);
        }
    }
}
