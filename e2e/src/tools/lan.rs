//! A network of our own for the brokers of a cluster, which can be cut.
//!
//! Every broker has a network namespace; a bridge in one more joins them and this machine. Packets are dropped without a word, as a broken network does it:
//! nothing is reset, nobody is told. All of it goes away with the value, also when a test fails.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cluster::{
        Inability,
        command::{installed, run},
        network::{delete, enter, inside, ip},
    },
    progress::say,
};

/// The second bytes of addresses that may be tried; those of the built-in Kubernetes are lower.
const NUMBERS: std::ops::Range<u8> = 200..250;
const PROGRAMS: [&str; 4] = ["ip", "iptables", "nsenter", "unshare"];
/// What the names of our namespaces begin with; the id of the process follows that made them.
const PREFIX: &str = "palisade-lan-";

/// A namespace for each broker, numbered from 0, and this machine, on one bridge.
#[derive(Debug)]
pub struct Lan {
    number: u8,
    bridge: String,
    brokers: Vec<String>,
}

impl Lan {
    /// Makes the network, or says why this machine cannot.
    ///
    /// # Errors
    /// When it cannot be made although the machine gives namespaces.
    pub fn make(brokers: u8) -> Result<Result<Self, Inability>> {
        if let Err(inability) = check() {
            return Ok(Err(inability));
        }
        sweep()?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        ip(&["netns", "add", &name])?;
        // From here on, what was made is removed with the value.
        let mut lan = Self {
            number: 0,
            bridge: name,
            brokers: Vec::new(),
        };
        lan.join_machine()?;
        for id in 0..brokers {
            lan.add(id)?;
        }
        Ok(Ok(lan))
    }

    /// The address of a broker.
    #[must_use]
    pub fn address(&self, id: usize) -> Ipv4Addr {
        let last = u8::try_from(id).unwrap_or(u8::MAX).saturating_add(10);
        Ipv4Addr::new(10, self.number, 0, last)
    }

    /// A program that runs where a broker does.
    #[must_use]
    pub fn command(&self, id: usize, program: &Path) -> Command {
        let mut command = enter(&self.brokers[id]);
        command.arg(program);
        command
    }

    /// Drops what `from` sends to `to`; what `to` sends still arrives.
    ///
    /// # Errors
    /// When the rule cannot be made.
    pub fn drop_packets(&self, from: usize, to: usize) -> Result<()> {
        let source = self.address(from).to_string();
        let rule = ["iptables", "-w", "-A", "INPUT", "-s", &source, "-j", "DROP"];
        Ok(inside(&self.brokers[to], &rule)?)
    }

    /// Drops everything between a broker and the others, in both directions. This machine reaches them all.
    ///
    /// # Errors
    /// When a rule cannot be made.
    pub fn part(&self, id: usize) -> Result<()> {
        for other in (0..self.brokers.len()).filter(|other| *other != id) {
            self.drop_packets(id, other)?;
            self.drop_packets(other, id)?;
        }
        Ok(())
    }

    /// Takes a broker's cable out, or puts it back: nobody reaches it, nor does it reach anybody.
    ///
    /// # Errors
    /// When the interface cannot be switched.
    pub fn plug(&self, id: usize, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        Ok(ip(&["-n", &self.bridge, "link", "set", &port(id), state])?)
    }

    /// Drops nothing any more.
    ///
    /// # Errors
    /// When the rules cannot be removed.
    pub fn heal(&self) -> Result<()> {
        for broker in &self.brokers {
            inside(broker, &["iptables", "-w", "-F", "INPUT"])?;
        }
        Ok(())
    }

    /// Joins this machine to a new bridge. Two that try the same number at a time cannot both have the interface of its name.
    fn join_machine(&mut self) -> Result<()> {
        let bridge = self.bridge.as_str();
        ip(&["-n", bridge, "link", "set", "lo", "up"])?;
        ip(&["-n", bridge, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", bridge, "link", "set", "bridge", "up"])?;
        let routes = run(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
        let mut last = None;
        for number in NUMBERS.filter(|number| !routes.contains(&format!("10.{number}."))) {
            let host = format!("pal-lan{number}");
            let made = ip(&[
                "link", "add", &host, "type", "veth", "peer", "name", "host", "netns", bridge,
            ]);
            if let Err(error) = made {
                ensure!(error.to_string().contains("File exists"), "{error}");
                last = Some(error);
                continue;
            }
            self.number = number;
            ip(&[
                "-n", bridge, "link", "set", "host", "master", "bridge", "up",
            ])?;
            let own = format!("10.{number}.0.1/24");
            ip(&["addr", "add", &own, "dev", &host])?;
            return Ok(ip(&["link", "set", &host, "up"])?);
        }
        bail!("no network is free for a test: {last:?}");
    }

    fn add(&mut self, id: u8) -> Result<()> {
        let name = format!("{}.{id}", self.bridge);
        ip(&["netns", "add", &name])?;
        self.brokers.push(name);
        let (bridge, name) = (&self.bridge, self.brokers.last().context("just added")?);
        let port = port(usize::from(id));
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&[
            "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns",
            bridge,
        ])?;
        ip(&["-n", bridge, "link", "set", &port, "master", "bridge", "up"])?;
        let own = format!("{}/24", self.address(usize::from(id)));
        ip(&["-n", name, "addr", "add", &own, "dev", "eth0"])?;
        Ok(ip(&["-n", name, "link", "set", "eth0", "up"])?)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for namespace in self.brokers.iter().chain([&self.bridge]) {
            if let Err(error) = delete(namespace) {
                say(format_args!("cannot remove a network: {error}"));
            }
        }
    }
}

/// Removes the networks of processes that were killed before they could.
fn sweep() -> Result<()> {
    let listed = run(Command::new("ip").args(["netns", "list"]))?;
    for name in listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        if owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another sweep may be at it too.
            let _ = delete(name);
        }
    }
    Ok(())
}

/// The process that made a namespace, if it is one of ours.
fn owner(namespace: &str) -> Option<u32> {
    let rest = namespace.strip_prefix(PREFIX)?;
    rest.split('-').next()?.parse().ok()
}

fn port(id: usize) -> String {
    format!("broker-{id}")
}

fn check() -> Result<(), Inability> {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        return Err(Inability::NotRoot { uid: uid.as_raw() });
    }
    let missing = PROGRAMS.iter().filter(|it| !installed(it));
    let programs: Vec<String> = missing.map(|it| (*it).to_owned()).collect();
    if !programs.is_empty() {
        return Err(Inability::MissingPrograms { programs });
    }
    // Root in a container may still be refused them.
    run(Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]))
        .map(drop)
        .map_err(|error| Inability::NoNamespaces {
            detail: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_tells_which_process_made_it() {
        assert_eq!(owner("palisade-lan-4711-0"), Some(4711));
        assert_eq!(owner("palisade-lan-4711-12.2"), Some(4711));
        for other in ["palisade.demo", "palisade-lan-x-0", "palisade-lan-"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
