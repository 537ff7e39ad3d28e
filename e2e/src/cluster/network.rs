//! The network of a cluster.
//!
//! A namespace of its own holds a bridge (so that no firewall rule of the machine applies to it); every node is
//! another namespace, joined to the bridge by a pair of virtual interfaces; one more pair joins the machine, so
//! that the API server, which runs there, reaches nodes and pods, and they it. Deleting the namespaces deletes all of it.
//!
//! A cluster has the addresses 10.K.0.0/16 to itself: nodes 10.K.0.0/24, Services 10.K.64.0/18, pods 10.K.128.0/17,
//! with a /24 of the last for each node.

use std::net::Ipv4Addr;
use std::process::Command;

use super::ClusterError;
use super::command::run;

/// The netfilter queue at which each node's NetworkPolicy agent listens.
pub(crate) const POLICY_QUEUE: u16 = 100;

/// The addresses and names of one cluster's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Network {
    /// The second byte of all its addresses.
    pub(crate) number: u8,
}

impl Network {
    /// Chooses a network that the machine has no route to yet.
    pub(crate) fn choose() -> Result<Self, ClusterError> {
        let routes = run(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
        (90..200)
            .map(|number| Self { number })
            .find(|candidate| !candidate.is_routed(&routes))
            .ok_or_else(|| {
                ClusterError::Invalid(
                    "the machine has routes to all of 10.90.0.0 to 10.199.255.255".to_owned(),
                )
            })
    }

    fn is_routed(self, routes: &str) -> bool {
        let prefix = format!("10.{}.", self.number);
        routes
            .split_whitespace()
            .any(|word| word.starts_with(&prefix))
    }

    fn address(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, third, fourth)
    }

    /// The machine's own address, where the API server serves.
    pub(crate) fn host(self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// The address of a node, counted from 1.
    pub(crate) fn node(self, index: u8) -> Ipv4Addr {
        self.address(0, 10 + index)
    }

    /// The range of a node's pods.
    pub(crate) fn node_pods(self, index: u8) -> String {
        format!("{}/24", self.address(128 + index, 0))
    }

    /// The range of all pods.
    pub(crate) fn pods(self) -> String {
        format!("{}/17", self.address(128, 0))
    }

    /// The range of Services.
    pub(crate) fn services(self) -> String {
        format!("{}/18", self.address(64, 0))
    }

    /// The API server's Service.
    pub(crate) fn api_service(self) -> Ipv4Addr {
        self.address(64, 1)
    }

    /// The Service of DNS.
    pub(crate) fn dns_service(self) -> Ipv4Addr {
        self.address(64, 10)
    }

    fn interface(self, end: &str) -> String {
        format!("pal{}-{end}", self.number)
    }

    /// Makes the bridge, in a namespace, and joins the machine to it.
    pub(crate) fn create(self, namespace: &str) -> Result<(), ClusterError> {
        ip(&["netns", "add", namespace])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", namespace, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", namespace, "link", "set", "bridge", "up"])?;
        let host = self.interface("host");
        ip(&[
            "link", "add", &host, "type", "veth", "peer", "name", "host", "netns", namespace,
        ])?;
        ip(&[
            "-n", namespace, "link", "set", "host", "master", "bridge", "up",
        ])?;
        ip(&["addr", "add", &format!("{}/24", self.host()), "dev", &host])?;
        ip(&["link", "set", &host, "up"])
    }

    /// Makes a node's namespace, joins it to the bridge, and routes to and from the pods of it and the others.
    pub(crate) fn add_node(
        self,
        bridge: &str,
        node: &str,
        index: u8,
        nodes: u8,
    ) -> Result<(), ClusterError> {
        ip(&["netns", "add", node])?;
        ip(&["-n", node, "link", "set", "lo", "up"])?;
        let port = format!("node-{index}");
        ip(&[
            "-n", node, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns",
            bridge,
        ])?;
        ip(&["-n", bridge, "link", "set", &port, "master", "bridge", "up"])?;
        ip(&[
            "-n",
            node,
            "addr",
            "add",
            &format!("{}/24", self.node(index)),
            "dev",
            "eth0",
        ])?;
        ip(&["-n", node, "link", "set", "eth0", "up"])?;
        for other in (1..=nodes).filter(|other| *other != index) {
            let (pods, via) = (self.node_pods(other), self.node(other).to_string());
            ip(&["-n", node, "route", "add", &pods, "via", &via])?;
        }
        ip(&[
            "route",
            "add",
            &self.node_pods(index),
            "via",
            &self.node(index).to_string(),
        ])?;
        // Only here: the machine itself forwards nothing.
        inside(node, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        self.queue_new_connections(node)
    }

    /// Has the NetworkPolicy agent asked about the first packet of each connection from or to a pod. Not about the
    /// node's own (uid 0 of the namespace): probes of the kubelet are always admitted. Without an agent that
    /// listens, what is queued is dropped.
    fn queue_new_connections(self, node: &str) -> Result<(), ClusterError> {
        let rule = |arguments: &[&str]| {
            let mut words = vec!["iptables", "-w", "-t", "mangle", "-A", "POSTROUTING"];
            words.extend(arguments);
            inside(node, &words)
        };
        let queue = POLICY_QUEUE.to_string();
        let pods = self.pods();
        rule(&[
            "-m",
            "conntrack",
            "--ctstate",
            "ESTABLISHED,RELATED",
            "-j",
            "RETURN",
        ])?;
        rule(&["-m", "owner", "--uid-owner", "0", "-j", "RETURN"])?;
        rule(&["-s", &pods, "-j", "NFQUEUE", "--queue-num", &queue])?;
        rule(&["-d", &pods, "-j", "NFQUEUE", "--queue-num", &queue])
    }
}

/// A command that runs in a network namespace. Not `ip netns exec`: that mounts /sys anew, which hides the
/// control groups.
pub(crate) fn enter(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--");
    command
}

/// The network namespaces of a cluster: its bridge's and those of its nodes.
pub(crate) fn namespaces(cluster: &str) -> Result<Vec<String>, ClusterError> {
    let listed = run(Command::new("ip").args(["netns", "list"]))?;
    Ok(listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| belongs(name, cluster))
        .map(str::to_owned)
        .collect())
}

/// Deletes a network namespace with everything in it, as soon as its last process has ended.
pub(crate) fn delete(namespace: &str) -> Result<(), ClusterError> {
    ip(&["netns", "delete", namespace])
}

/// The name of the namespace that holds a cluster's bridge.
pub(crate) fn bridge_namespace(cluster: &str) -> String {
    format!("palisade.{cluster}")
}

/// The name of a node's namespace.
pub(crate) fn node_namespace(cluster: &str, node: &str) -> String {
    format!("palisade.{cluster}.{node}")
}

/// A cluster's name has no dot, so that no cluster's namespaces look like those of another.
fn belongs(namespace: &str, cluster: &str) -> bool {
    namespace
        .strip_prefix(&bridge_namespace(cluster))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

pub(crate) fn ip(arguments: &[&str]) -> Result<(), ClusterError> {
    run(Command::new("ip").args(arguments)).map(drop)
}

pub(crate) fn inside(namespace: &str, words: &[&str]) -> Result<(), ClusterError> {
    run(enter(namespace).args(words)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_nodes_services_and_pods_do_not_meet() {
        let network = Network { number: 90 };
        assert_eq!(network.node(1), Ipv4Addr::new(10, 90, 0, 11));
        assert_eq!(network.services(), "10.90.64.0/18");
        assert_eq!(network.pods(), "10.90.128.0/17");
        assert_eq!(network.node_pods(3), "10.90.131.0/24");
    }

    #[test]
    fn a_network_with_a_route_is_taken() {
        let routes = "default via 192.168.0.1 dev eth0\n10.90.0.0/24 dev pal90-host proto kernel scope link\n";
        assert!(Network { number: 90 }.is_routed(routes));
        assert!(!Network { number: 9 }.is_routed(routes));
        assert!(!Network { number: 91 }.is_routed(routes));
    }

    #[test]
    fn a_namespace_belongs_to_exactly_one_cluster() {
        assert!(belongs("palisade.demo", "demo"));
        assert!(belongs("palisade.demo.node-1", "demo"));
        assert!(!belongs("palisade.demo2", "demo"));
        assert!(!belongs("palisade.demo2.node-1", "demo"));
    }
}
