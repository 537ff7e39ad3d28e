//! NetworkPolicies: one for each listener, one for the brokers' own ports. What none of them admits is cut.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use palisade_crds::SecureCluster;

use crate::{
    cluster::{ADMIN_PORT, CONTROL_PORT, ClientListener, Cluster},
    kubernetes::names,
};

const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

fn labels(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector {
        match_labels: Some(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        ),
        ..LabelSelector::default()
    }
}

fn any_pod_of(namespace: Option<&str>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: namespace.map(|name| {
            if name == "*" {
                LabelSelector::default()
            } else {
                labels(&[(NAMESPACE_NAME, name)])
            }
        }),
        pod_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    }
}

fn policy(
    owner: &SecureCluster,
    cluster: &Cluster,
    name: String,
    from: Vec<NetworkPolicyPeer>,
    ports: &[u16],
) -> NetworkPolicy {
    NetworkPolicy {
        metadata: names::owned_metadata(owner, name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(names::broker_selector(&cluster.name)),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(from),
                ports: Some(
                    ports
                        .iter()
                        .map(|port| NetworkPolicyPort {
                            port: Some(IntOrString::Int(i32::from(*port))),
                            protocol: Some("TCP".to_owned()),
                            ..NetworkPolicyPort::default()
                        })
                        .collect(),
                ),
            }]),
            ..NetworkPolicySpec::default()
        }),
    }
}

/// Who may reach a listener: its `allowFrom`, or, without one, every pod of the namespaces whose objects may refer to the cluster. Never everyone.
fn listener_peers(cluster: &Cluster, listener: &ClientListener) -> Vec<NetworkPolicyPeer> {
    if listener.allow_from.is_empty() {
        let others = cluster
            .allowed_namespaces
            .iter()
            .map(|namespace| any_pod_of(Some(namespace)));
        return [any_pod_of(None)].into_iter().chain(others).collect();
    }
    listener.allow_from.clone()
}

/// Name of a listener's policy.
#[must_use]
pub fn listener_policy_name(cluster: &str, listener: &str) -> String {
    format!("{cluster}-listener-{listener}")
}

/// All policies of a cluster.
#[must_use]
pub fn build(
    owner: &SecureCluster,
    cluster: &Cluster,
    operator_namespace: &str,
) -> Vec<NetworkPolicy> {
    let brokers = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_labels: Some(names::broker_selector(&cluster.name)),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(labels(&[(NAMESPACE_NAME, operator_namespace)])),
        pod_selector: Some(labels(&[("app.kubernetes.io/name", names::OPERATOR)])),
        ..NetworkPolicyPeer::default()
    };
    let own = policy(
        owner,
        cluster,
        format!("{}-internal", cluster.name),
        vec![brokers, operator],
        &[CONTROL_PORT, ADMIN_PORT],
    );
    let listeners = cluster.listeners.iter().map(|listener| {
        let name = listener_policy_name(&cluster.name, &listener.name);
        policy(
            owner,
            cluster,
            name,
            listener_peers(cluster, listener),
            &[listener.port],
        )
    });
    [own].into_iter().chain(listeners).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    fn policies() -> Vec<NetworkPolicySpec> {
        let owner = fixture();
        build(&owner, &validate(&owner).unwrap(), "palisade-system")
            .into_iter()
            .map(|policy| policy.spec.unwrap())
            .collect()
    }

    fn peers(policy: &NetworkPolicySpec) -> Vec<NetworkPolicyPeer> {
        policy.ingress.clone().unwrap()[0].from.clone().unwrap()
    }

    #[test]
    fn only_brokers_and_the_operator_reach_the_control_and_admin_ports() {
        let internal = &policies()[0];
        let rule = &internal.ingress.as_ref().unwrap()[0];
        let ports: Vec<_> = rule
            .ports
            .as_ref()
            .unwrap()
            .iter()
            .map(|port| port.port.clone().unwrap())
            .collect();
        assert_eq!(ports, [IntOrString::Int(9090), IntOrString::Int(9091)]);
        let peers = peers(internal);
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].namespace_selector, None);
        let operator = peers[1].clone();
        assert_eq!(
            operator.namespace_selector.unwrap().match_labels.unwrap()["kubernetes.io/metadata.name"],
            "palisade-system"
        );
        assert_eq!(
            operator.pod_selector.unwrap().match_labels.unwrap()["app.kubernetes.io/name"],
            "palisade-operator"
        );
    }

    #[test]
    fn a_listener_admits_what_allow_from_names_and_nothing_else() {
        let peers = peers(&policies()[1]);
        assert_eq!(peers.len(), 1);
        assert_eq!(
            peers[0]
                .pod_selector
                .as_ref()
                .unwrap()
                .match_labels
                .as_ref()
                .unwrap()["tier"],
            "application"
        );
    }

    #[test]
    fn a_listener_without_allow_from_admits_the_namespaces_that_may_use_the_cluster() {
        let peers = peers(&policies()[2]);
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].namespace_selector, None);
        assert_eq!(
            peers[1]
                .namespace_selector
                .as_ref()
                .unwrap()
                .match_labels
                .as_ref()
                .unwrap()[NAMESPACE_NAME],
            "shop"
        );
    }

    #[test]
    fn every_policy_has_peers_because_an_empty_list_would_admit_everyone() {
        assert!(policies().iter().all(|policy| !peers(policy).is_empty()));
        assert!(
            policies()
                .iter()
                .all(|policy| policy.policy_types == Some(vec!["Ingress".to_owned()]))
        );
    }
}
