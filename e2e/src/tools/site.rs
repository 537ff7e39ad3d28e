//! Where brokers run, and on what.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Lan;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where the brokers of a [`super::Cluster`] run. By default all of them are on loopback, with their volumes in the cluster's directory.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Each broker in its namespace of this network.
    pub lan: Option<Arc<Lan>>,
    /// Where some brokers have their volumes.
    pub volumes: BTreeMap<usize, PathBuf>,
}

impl Site {
    pub(super) fn address(&self, id: usize) -> IpAddr {
        self.lan
            .as_ref()
            .map_or(LOOPBACK, |lan| lan.address(id).into())
    }

    /// What others call a broker's host.
    pub(super) fn host(&self, id: usize) -> String {
        match &self.lan {
            Some(lan) => lan.address(id).to_string(),
            None => "localhost".to_owned(),
        }
    }

    /// A directory below a volume that is a test's own, since the attempt before may have left something in another.
    pub(super) fn volume(&self, home: &Path, id: usize) -> PathBuf {
        match (self.volumes.get(&id), home.file_name()) {
            (Some(volume), Some(name)) => volume.join(name),
            _ => home.join(format!("data-{id}")),
        }
    }
}
