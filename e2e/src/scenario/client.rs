//! A pod with kcat that mounts the Secret of a User, as a workload would.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Kubectl, NAMESPACE};
use crate::tools::Outcome;

/// Where the Secret is mounted; the files in it name each other there.
pub(super) const MOUNT: &str = "/etc/palisade/credentials";
/// The script of a pod that only waits to be told what to do.
pub(super) const IDLE: &str = "trap exit TERM; while :; do sleep 1; done";

/// What a pod is like.
#[derive(Clone, Copy, Debug)]
pub struct ClientPodSpec<'a> {
    /// Name of the pod.
    pub name: &'a str,
    /// The Secret it mounts, if any.
    pub secret: Option<&'a str>,
    /// Whether it carries the label that the listener's `allowFrom` admits.
    pub admitted: bool,
    /// The script its shell runs.
    pub script: &'a str,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct ClientPod {
    kubectl: Kubectl,
    name: String,
}

impl ClientPod {
    /// A pod that waits for [`ClientPod::shell`].
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(
        kubectl: &Kubectl,
        name: &str,
        secret: Option<&str>,
        admitted: bool,
    ) -> Result<Self> {
        let pod = Self::create(
            kubectl,
            &ClientPodSpec {
                name,
                secret,
                admitted,
                script: IDLE,
            },
        )?;
        pod.ready()?;
        Ok(pod)
    }

    /// Creates a pod, replacing one of that name, without waiting for it.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn create(kubectl: &Kubectl, spec: &ClientPodSpec<'_>) -> Result<Self> {
        let object = format!("pod/{}", spec.name);
        kubectl.ok(&[
            "-n",
            NAMESPACE,
            "delete",
            &object,
            "--ignore-not-found",
            "--grace-period=1",
            "--wait",
        ])?;
        kubectl.apply(&manifest(spec))?;
        Ok(Self {
            kubectl: kubectl.clone(),
            name: spec.name.to_owned(),
        })
    }

    /// Waits until its container runs.
    ///
    /// # Errors
    /// When it does not; the message holds what the kubelet said of it.
    pub fn ready(&self) -> Result<()> {
        let object = format!("pod/{}", self.name);
        self.kubectl
            .wait(NAMESPACE, "condition=Ready", &[&object], 90)
            .map_err(|error| {
                let described = self
                    .kubectl
                    .ok(&["-n", NAMESPACE, "describe", &object])
                    .unwrap_or_default();
                error.context(described)
            })
    }

    /// Runs a script in its shell, for at most so many seconds.
    ///
    /// # Errors
    /// When kubectl cannot be run. A failing script is no error here.
    pub fn shell(&self, seconds: u32, script: &str) -> Result<Outcome> {
        let seconds = seconds.to_string();
        self.kubectl.run(
            &[
                "-n", NAMESPACE, "exec", &self.name, "--", "timeout", &seconds, "sh", "-c", script,
            ],
            "",
        )
    }

    /// kcat with the mounted credentials, fed by a shell command when there is one.
    ///
    /// # Errors
    /// As [`ClientPod::shell`].
    pub fn kcat(&self, seconds: u32, feed: Option<&str>, arguments: &str) -> Result<Outcome> {
        let feed = feed
            .map(|command| format!("{command} | "))
            .unwrap_or_default();
        self.shell(
            seconds,
            &format!("{feed}kcat -F {MOUNT}/librdkafka.conf {arguments}"),
        )
    }

    /// What it has written.
    ///
    /// # Errors
    /// When there is no log.
    pub fn log(&self) -> Result<String> {
        self.kubectl.ok(&["-n", NAMESPACE, "logs", &self.name])
    }

    /// Its phase: `Running`, `Succeeded`, `Failed` ...
    ///
    /// # Errors
    /// When it is gone.
    pub fn phase(&self) -> Result<String> {
        self.kubectl.ok(&[
            "-n",
            NAMESPACE,
            "get",
            "pod",
            &self.name,
            "-o",
            "jsonpath={.status.phase}",
        ])
    }
}

/// A pod that Pod Security `restricted` admits.
fn manifest(spec: &ClientPodSpec<'_>) -> String {
    let mut labels = "app.kubernetes.io/part-of: palisade-demo".to_owned();
    if spec.admitted {
        labels.push_str(", tier: application");
    }
    let (mut mounts, mut volumes) = (String::new(), String::new());
    if let Some(secret) = spec.secret {
        let _ = write!(
            mounts,
            "\n        - {{ name: credentials, mountPath: {MOUNT}, readOnly: true }}"
        );
        let _ = write!(
            volumes,
            "\n    - name: credentials\n      secret: {{ secretName: {secret}, defaultMode: 0440 }}"
        );
    }
    let script = serde_json::Value::from(spec.script);
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {NAMESPACE}
  labels: {{ {labels} }}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: {{ type: RuntimeDefault }}
  containers:
    - name: client
      image: palisade.local/kcat:dev
      imagePullPolicy: IfNotPresent
      command: [sh, -c, {script}]
      resources:
        requests: {{ cpu: 10m, memory: 16Mi }}
        limits: {{ memory: 256Mi }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {{ drop: [ALL] }}
      volumeMounts:
        - {{ name: tmp, mountPath: /tmp }}{mounts}
  volumes:
    - name: tmp
      emptyDir: {{ sizeLimit: 64Mi }}{volumes}
",
        name = spec.name,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_script_with_quotes_and_newlines_stays_one_argument() {
        let script = "echo \"a: b\"\nsleep 1 # 'c'";
        let spec = ClientPodSpec {
            name: "p",
            secret: Some("alice"),
            admitted: true,
            script,
        };
        let pod: serde_json::Value = serde_yaml::from_str(&manifest(&spec)).unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["command"][2], script);
        assert_eq!(container["volumeMounts"][1]["mountPath"], MOUNT);
        assert_eq!(pod["metadata"]["labels"]["tier"], "application");
    }

    #[test]
    fn a_pod_that_is_not_admitted_has_no_such_label() {
        let spec = ClientPodSpec {
            name: "p",
            secret: None,
            admitted: false,
            script: "true",
        };
        let pod: serde_json::Value = serde_yaml::from_str(&manifest(&spec)).unwrap();
        assert!(pod["metadata"]["labels"]["tier"].is_null());
    }
}
