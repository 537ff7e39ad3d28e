//! What a run is about: a cluster of one of the systems, or the sink.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};

use crate::{
    load::Target,
    pki::Pki,
    process::{Background, Scratch, free_ports, wait_until},
    systems::{Access, Cluster, Programs, System},
    wire::{Client, NewTopic},
};

/// Longest wait for a topic of a few partitions.
const TOPIC_LIMIT: Duration = Duration::from_secs(60);

/// A system, or the sink that shows the ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    System(System),
    Sink,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(system) => system.fmt(f),
            Self::Sink => f.write_str("sink"),
        }
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::System(system) => system.serialize(serializer),
            Self::Sink => serializer.serialize_str("sink"),
        }
    }
}

/// A running one.
#[derive(Debug)]
pub struct Subject {
    pub who: Who,
    running: Running,
    topics: u32,
}

#[derive(Debug)]
enum Running {
    Cluster(Box<Cluster>),
    Sink {
        // Gone before its directory.
        process: Background,
        access: Access,
        _home: Scratch,
    },
}

impl Subject {
    /// Starts so many brokers of a system.
    pub fn start(system: System, brokers: usize, programs: &Programs) -> Result<Self> {
        Ok(Self::of(Cluster::start(system, brokers, programs)?))
    }

    pub fn of(cluster: Cluster) -> Self {
        Self {
            who: Who::System(cluster.system),
            running: Running::Cluster(Box::new(cluster)),
            topics: 0,
        }
    }

    /// Starts the sink, playing so many brokers in one process.
    pub fn sink(brokers: usize, programs: &Programs) -> Result<Self> {
        let home = Scratch::new(&programs.work, "sink")?;
        let tls = home.path().join("tls");
        let pki = Pki::create(&tls)?;
        let mut ports = free_ports::<3>()?.to_vec();
        ports.truncate(brokers);
        let mut arguments = vec![
            "sink".to_owned(),
            "--tls".to_owned(),
            tls.display().to_string(),
        ];
        for port in &ports {
            arguments.extend(["--port".to_owned(), port.to_string()]);
        }
        let program = std::env::current_exe().context("cannot find this program")?;
        let process = Background::start(&program, &arguments, &home.path().join("sink.log"))?;
        for port in &ports {
            wait_until("the sink serves", Duration::from_secs(10), || {
                Client::connect(*port, pki.client(false)?)
            })?;
        }
        let hosts: Vec<String> = ports
            .iter()
            .map(|port| format!("localhost:{port}"))
            .collect();
        Ok(Self {
            who: Who::Sink,
            running: Running::Sink {
                process,
                access: Access {
                    bootstrap: hosts.join(","),
                    ports,
                    mtls_ports: Vec::new(),
                    pki,
                    password: String::new(),
                },
                _home: home,
            },
            topics: 0,
        })
    }

    pub fn target(&self) -> Target {
        match &self.running {
            Running::Cluster(cluster) => Target {
                access: cluster.access.clone(),
                pids: cluster.pids(),
            },
            Running::Sink {
                process, access, ..
            } => Target {
                access: access.clone(),
                pids: vec![process.id()],
            },
        }
    }

    /// Calls with a new topic, and deletes it afterwards, whatever came of it.
    pub fn with_topic<T>(
        &mut self,
        partitions: i32,
        work: impl FnOnce(&Target, &str) -> Result<T>,
    ) -> Result<T> {
        self.topics += 1;
        // The sink reads the number of partitions off the name.
        let name = format!("load-{}-{partitions}", self.topics);
        let made: Option<NewTopic> = match &self.running {
            Running::Cluster(cluster) => {
                Some(cluster.create_topic(&name, partitions, TOPIC_LIMIT)?)
            }
            Running::Sink { .. } => None,
        };
        let result = work(&self.target(), &name);
        if let (Running::Cluster(cluster), Some(topic)) = (&self.running, made) {
            let deleted = cluster.delete_topic(&topic);
            if result.is_ok() {
                deleted.with_context(|| format!("{}: cannot delete a topic", self.who))?;
            }
        }
        result
    }

    pub fn keep_logs(&mut self) {
        if let Running::Cluster(cluster) = &mut self.running {
            cluster.keep_logs();
        }
    }
}

/// Whether there is room for so many bytes and as much again as any system needs besides.
pub fn has_room(under: &Path, bytes: u64) -> bool {
    let spare = 4 << 30;
    rustix::fs::statvfs(under)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) > bytes + bytes / 4 + spare)
}
