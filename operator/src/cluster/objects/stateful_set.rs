//! StatefulSet of the brokers, under the restricted pod security standard.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
            HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
            TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use palisade_crds::{BrokerTemplate, BrokerTemplateSpec, SecureCluster};

use crate::{
    Settings,
    cluster::{
        ADMIN_PORT, CONTROL_PORT, Cluster,
        config::{CONFIG_DIR, CONFIG_FILE, DATA_DIR, KEK_DIR, TLS_DIR, TRUST_DIR, restart_digest},
    },
    kubernetes::names,
};

/// User and group of the broker's image.
const UID: i64 = 65_532;
/// Readable by owner and group, which is the pod's.
const SECRET_MODE: i32 = 0o440;
/// Longest a broker may take to hand its work over.
const GRACE_SECONDS: i64 = 60;
/// Name of the container.
pub const CONTAINER: &str = "broker";
/// Name of the claim template and its volume.
pub const DATA_VOLUME: &str = "data";
/// Annotation whose change replaces the pods.
const RESTART: &str = "palisade.dev/restart-digest";

/// The StatefulSet. `claims` are those of the StatefulSet that stands: Kubernetes never lets them change, volumes are grown one by one.
#[must_use]
pub fn build(
    owner: &SecureCluster,
    cluster: &Cluster,
    settings: &Settings,
    claims: Option<Vec<PersistentVolumeClaim>>,
) -> StatefulSet {
    let name = &cluster.name;
    StatefulSet {
        metadata: names::owned_metadata(owner, name.clone()),
        spec: StatefulSetSpec {
            replicas: Some(cluster.replicas),
            service_name: Some(names::brokers_service(name)),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            selector: LabelSelector {
                match_labels: Some(names::broker_selector(name)),
                ..LabelSelector::default()
            },
            // The operator deletes claims itself when the policy says so, once the brokers are gone.
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some("Retain".to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                },
            ),
            template: template(owner, cluster, settings),
            volume_claim_templates: Some(claims.unwrap_or_else(|| vec![claim(cluster)])),
            ..StatefulSetSpec::default()
        },
        ..StatefulSet::default()
    }
}

fn template(owner: &SecureCluster, cluster: &Cluster, settings: &Settings) -> PodTemplateSpec {
    let additions = owner.spec.brokers.template.clone().unwrap_or_default();
    let BrokerTemplate { metadata, spec } = additions;
    let metadata = metadata.unwrap_or_default();
    let placement = spec.unwrap_or_default();
    let spread = spread(&cluster.name, cluster.rack_key.as_deref(), &placement);
    // The operator's own keys win over what the template adds.
    let mut labels = metadata.labels;
    labels.extend(names::cluster_labels(&cluster.name));
    let mut annotations = metadata.annotations;
    annotations.insert(RESTART.to_owned(), restart_digest(&cluster.config));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::brokers_service(&cluster.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(UID),
                run_as_group: Some(UID),
                fs_group: Some(UID),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            image_pull_secrets: pull_secrets(settings),
            containers: vec![container(owner, cluster, settings)],
            volumes: Some(volumes(cluster)),
            node_selector: non_empty(placement.node_selector),
            tolerations: (!placement.tolerations.is_empty()).then_some(placement.tolerations),
            affinity: placement.affinity,
            priority_class_name: placement.priority_class_name,
            topology_spread_constraints: Some(spread).filter(|spread| !spread.is_empty()),
            ..PodSpec::default()
        }),
    }
}

fn pull_secrets(settings: &Settings) -> Option<Vec<LocalObjectReference>> {
    let names = settings.image_pull_secrets.iter().cloned();
    let secrets: Vec<_> = names.map(|name| LocalObjectReference { name }).collect();
    (!secrets.is_empty()).then_some(secrets)
}

/// How the brokers spread over racks and nodes: as the template says; where it says nothing of where they go, as many in each rack, and no two on one node if
/// there are others.
fn spread(
    cluster: &str,
    rack_key: Option<&str>,
    placement: &BrokerTemplateSpec,
) -> Vec<TopologySpreadConstraint> {
    if placement.affinity.is_some() || !placement.topology_spread_constraints.is_empty() {
        return placement.topology_spread_constraints.clone();
    }
    let evenly_over = |key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        // Brokers that run side by side are better than brokers that do not run.
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(names::broker_selector(cluster)),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    };
    rack_key
        .into_iter()
        .chain(["kubernetes.io/hostname"])
        .map(evenly_over)
        .collect()
}

fn non_empty(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then_some(map)
}

fn container(owner: &SecureCluster, cluster: &Cluster, settings: &Settings) -> Container {
    let port = |name: &str, port: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let own = [port("control", CONTROL_PORT), port("admin", ADMIN_PORT)];
    let listeners = cluster
        .listeners
        .iter()
        .map(|listener| port(&listener.name, listener.port));
    let resources = owner.spec.brokers.resources.clone().unwrap_or_default();
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.broker_image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        args: Some(
            ["run", "--config", &format!("{CONFIG_DIR}/{CONFIG_FILE}")]
                .map(ToOwned::to_owned)
                .into(),
        ),
        env: Some(environment(cluster.rack_key.as_deref())),
        ports: Some(own.into_iter().chain(listeners).collect()),
        resources: Some(ResourceRequirements {
            requests: (!resources.requests.is_empty()).then_some(resources.requests),
            limits: (!resources.limits.is_empty()).then_some(resources.limits),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..SecurityContext::default()
        }),
        // Ten minutes to replay the log before the first start counts as failed.
        startup_probe: Some(probe("/healthz", 2, 300)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        volume_mounts: Some(
            [
                ("config", CONFIG_DIR, true),
                ("certificates", TLS_DIR, true),
                ("trust", TRUST_DIR, true),
                ("key-encryption-key", KEK_DIR, true),
                (DATA_VOLUME, DATA_DIR, false),
            ]
            .map(|(name, path, read_only)| VolumeMount {
                name: name.to_owned(),
                mount_path: path.to_owned(),
                // The API server leaves `false` out of what it stores.
                read_only: read_only.then_some(true),
                ..VolumeMount::default()
            })
            .into(),
        ),
        ..Container::default()
    }
}

/// What the broker is told of its pod. Where the node has no label of that name, the rack is empty.
fn environment(rack_key: Option<&str>) -> Vec<EnvVar> {
    let from_pod = |name: &str, field_path: String| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let rack = rack_key.map(|key| from_pod("BROKER_RACK", format!("metadata.labels['{key}']")));
    [from_pod("POD_NAME", "metadata.name".to_owned())]
        .into_iter()
        .chain(rack)
        .collect()
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(ADMIN_PORT)),
            scheme: Some("HTTPS".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn volumes(cluster: &Cluster) -> Vec<Volume> {
    let secret = |name: &str, secret_name: String| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret_name),
            default_mode: Some(SECRET_MODE),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::config_map(&cluster.name),
                default_mode: Some(SECRET_MODE),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret(
            "certificates",
            names::broker_certificates_secret(&cluster.name),
        ),
        secret("trust", names::trust_secret(&cluster.name)),
        secret("key-encryption-key", cluster.kek_secret.clone()),
    ]
}

fn claim(cluster: &Cluster) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA_VOLUME.to_owned()),
            labels: Some(names::cluster_labels(&cluster.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(
                    [(
                        "storage".to_owned(),
                        Quantity(cluster.volume_bytes.to_string()),
                    )]
                    .into(),
                ),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_crds::BrokerTemplateMetadata;

    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    fn settings() -> Settings {
        Settings {
            broker_image: "palisade.local/broker:dev".to_owned(),
            image_pull_policy: "Never".to_owned(),
            image_pull_secrets: vec!["registry".to_owned()],
            operator_namespace: "palisade-system".to_owned(),
        }
    }

    fn pod(owner: &SecureCluster) -> PodTemplateSpec {
        build(owner, &validate(owner).unwrap(), &settings(), None)
            .spec
            .template
    }

    #[test]
    fn pods_meet_the_restricted_standard() {
        let spec = pod(&fixture()).spec.unwrap();
        let security = spec.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        let container = spec.containers[0].security_context.clone().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.privileged, Some(false));
        assert_eq!(container.read_only_root_filesystem, Some(true));
        assert_eq!(
            container.capabilities.unwrap().drop,
            Some(vec!["ALL".to_owned()])
        );
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.host_network, None);
    }

    #[test]
    fn kubelets_are_told_where_credentials_for_the_image_are() {
        let names = |spec: PodSpec| {
            let secrets = spec.image_pull_secrets.into_iter().flatten();
            secrets.map(|secret| secret.name).collect::<Vec<_>>()
        };
        assert_eq!(names(pod(&fixture()).spec.unwrap()), ["registry"]);
    }

    #[test]
    fn brokers_spread_over_nodes_unless_the_template_says_where_they_go() {
        let spread = spread("events", None, &BrokerTemplateSpec::default());
        assert_eq!(
            (spread.len(), spread[0].topology_key.as_str()),
            (1, "kubernetes.io/hostname")
        );
        assert_eq!(spread[0].when_unsatisfiable, "ScheduleAnyway");
        let selected = spread[0].label_selector.clone().unwrap().match_labels;
        assert_eq!(selected, Some(names::broker_selector("events")));

        let own = TopologySpreadConstraint {
            topology_key: "zone".to_owned(),
            ..TopologySpreadConstraint::default()
        };
        let placement = BrokerTemplateSpec {
            topology_spread_constraints: vec![own.clone()],
            ..BrokerTemplateSpec::default()
        };
        assert_eq!(
            super::spread("events", Some("topology.kubernetes.io/zone"), &placement),
            [own]
        );
        let placement = BrokerTemplateSpec {
            affinity: Some(Default::default()),
            ..BrokerTemplateSpec::default()
        };
        assert_eq!(super::spread("events", None, &placement), []);
    }

    #[test]
    fn brokers_learn_their_rack_from_a_label_of_their_pod_and_spread_over_racks() {
        let mut owner = fixture();
        let variables = |owner: &SecureCluster| {
            let env = pod(owner).spec.unwrap().containers[0].env.clone().unwrap();
            env.into_iter()
                .map(|variable| {
                    let field = variable.value_from.unwrap().field_ref.unwrap();
                    (variable.name, field.field_path)
                })
                .collect::<Vec<_>>()
        };
        let name = ("POD_NAME".to_owned(), "metadata.name".to_owned());
        assert_eq!(variables(&owner), std::slice::from_ref(&name));
        owner.spec.brokers.rack_key = Some("topology.kubernetes.io/zone".to_owned());
        let rack = "metadata.labels['topology.kubernetes.io/zone']".to_owned();
        assert_eq!(variables(&owner), [name, ("BROKER_RACK".to_owned(), rack)]);
        let spread = pod(&owner).spec.unwrap().topology_spread_constraints;
        let keys: Vec<_> = spread
            .into_iter()
            .flatten()
            .map(|constraint| constraint.topology_key)
            .collect();
        assert_eq!(
            keys,
            ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        );
    }

    #[test]
    fn everything_but_the_volume_is_mounted_read_only() {
        let spec = pod(&fixture()).spec.unwrap();
        let writable: Vec<_> = spec.containers[0]
            .volume_mounts
            .iter()
            .flatten()
            .filter(|mount| mount.read_only != Some(true))
            .map(|mount| mount.mount_path.clone())
            .collect();
        assert_eq!(writable, ["/var/lib/palisade"]);
    }

    #[test]
    fn probes_speak_tls_to_the_admin_port() {
        let spec = pod(&fixture()).spec.unwrap();
        for probe in [
            &spec.containers[0].liveness_probe,
            &spec.containers[0].readiness_probe,
            &spec.containers[0].startup_probe,
        ] {
            let get = probe.clone().unwrap().http_get.unwrap();
            assert_eq!(
                (get.scheme.as_deref(), get.port),
                (Some("HTTPS"), IntOrString::Int(9091))
            );
        }
    }

    #[test]
    fn additions_never_replace_the_operators_own_labels() {
        let mut owner = fixture();
        owner.spec.brokers.template = Some(BrokerTemplate {
            metadata: Some(BrokerTemplateMetadata {
                labels: [
                    ("team".to_owned(), "data".to_owned()),
                    ("palisade.dev/cluster".to_owned(), "other".to_owned()),
                ]
                .into(),
                annotations: BTreeMap::new(),
            }),
            spec: None,
        });
        let labels = pod(&owner).metadata.unwrap().labels.unwrap();
        assert_eq!(
            (
                labels["team"].as_str(),
                labels["palisade.dev/cluster"].as_str()
            ),
            ("data", "events")
        );
    }

    #[test]
    fn the_claims_that_stand_are_kept() {
        let owner = fixture();
        let mut larger = owner.clone();
        larger.spec.storage.size = palisade_crds::Size(20 << 30);
        let standing = build(&owner, &validate(&owner).unwrap(), &settings(), None)
            .spec
            .volume_claim_templates;
        let grown = build(
            &larger,
            &validate(&larger).unwrap(),
            &settings(),
            standing.clone(),
        );
        assert_eq!(grown.spec.volume_claim_templates, standing);
    }

    #[test]
    fn a_super_user_replaces_no_pod_and_a_limit_does() {
        let annotation = |owner: &SecureCluster| {
            pod(owner).metadata.unwrap().annotations.unwrap()[RESTART].clone()
        };
        let mut owner = fixture();
        let before = annotation(&owner);
        owner.spec.authorization.super_users.clear();
        assert_eq!(annotation(&owner), before);
        owner.spec.listeners[0].limits.max_connections = Some(1);
        assert_ne!(annotation(&owner), before);
    }
}
