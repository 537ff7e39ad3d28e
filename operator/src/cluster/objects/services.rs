//! Services: one that names each broker, one that clients bootstrap from.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use palisade_crds::SecureCluster;

use crate::{
    cluster::{ADMIN_PORT, CONTROL_PORT, Cluster},
    kubernetes::names,
};

fn port(name: &str, port: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(port),
        target_port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

fn listener_ports(cluster: &Cluster) -> impl Iterator<Item = ServicePort> {
    cluster
        .listeners
        .iter()
        .map(|listener| port(&listener.name, listener.port))
}

/// The headless Service. It names brokers that are not ready too: the operator and other brokers have to reach them to make them so.
#[must_use]
pub fn headless(owner: &SecureCluster, cluster: &Cluster) -> Service {
    let own = [port("control", CONTROL_PORT), port("admin", ADMIN_PORT)];
    Service {
        metadata: names::owned_metadata(owner, names::brokers_service(&cluster.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::broker_selector(&cluster.name)),
            ports: Some(own.into_iter().chain(listener_ports(cluster)).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The bootstrap Service: the ports for clients, and brokers that serve.
#[must_use]
pub fn bootstrap(owner: &SecureCluster, cluster: &Cluster) -> Service {
    Service {
        metadata: names::owned_metadata(owner, names::bootstrap_service(&cluster.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(names::broker_selector(&cluster.name)),
            ports: Some(listener_ports(cluster).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn clients_never_bootstrap_from_the_brokers_own_ports() {
        let owner = fixture();
        let cluster = validate(&owner).unwrap();
        let ports = |service: Service| {
            service
                .spec
                .unwrap()
                .ports
                .unwrap()
                .iter()
                .map(|port| port.port)
                .collect::<Vec<_>>()
        };
        assert_eq!(ports(bootstrap(&owner, &cluster)), [9093, 9094]);
        assert_eq!(ports(headless(&owner, &cluster)), [9090, 9091, 9093, 9094]);
    }

    #[test]
    fn brokers_have_names_before_they_are_ready() {
        let owner = fixture();
        let spec = headless(&owner, &validate(&owner).unwrap()).spec.unwrap();
        assert_eq!(
            (spec.cluster_ip.as_deref(), spec.publish_not_ready_addresses),
            (Some("None"), Some(true))
        );
    }
}
