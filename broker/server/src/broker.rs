//! The broker as handlers see it: metadata, data, groups, quotas, and who may do everything.

use std::{collections::HashSet, fmt, net::IpAddr, ops::Range, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use palisade_data::DataPlane;
use palisade_log::ShardId;
use palisade_metadata::{Image, MetadataCommand, MetadataResponse};
use palisade_seal::KeyProvider;
use palisade_security::{Principal, ScramCredential, ScramMechanism, quota::QuotaKey};
use tokio::sync::watch;

use crate::{
    api,
    cluster::{ChangeError, Cluster},
    codec::Request,
    groups::{GroupRuntime, Seat},
    metrics::Metrics,
    net::{Application, Reply},
    quotas::Quotas,
    sasl::Credentials,
    session::Session,
};

/// Producer ids that are reserved at once.
const PRODUCER_ID_BLOCK: u32 = 1000;
/// Brokers that read this format of metadata commands read the records of groups in the data shards as well: both came with the same version.
const GROUP_RECORDS: u8 = 6;

/// One broker.
pub(crate) struct Broker {
    pub(crate) node_id: i32,
    pub(crate) cluster_id: String,
    /// As DescribeLogDirs shows it.
    pub(crate) data_dir: String,
    pub(crate) data: Arc<DataPlane>,
    pub(crate) groups: Arc<GroupRuntime>,
    pub(crate) quotas: Quotas,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) provider: Arc<dyn KeyProvider>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) images: watch::Receiver<Arc<Image>>,
    pub(crate) super_users: ArcSwap<HashSet<Principal>>,
    pub(crate) producer_ids: tokio::sync::Mutex<Range<i64>>,
}

impl Broker {
    /// The metadata now.
    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::clone(&self.images.borrow())
    }

    /// Whether this broker coordinates a group: the leader of the shard that keeps its offsets does. If so, what was kept of the group's members is loaded.
    pub(crate) fn coordinates(&self, group: &str) -> Option<Seat> {
        let shard = self.images.borrow().shard_of_group(group);
        shard.and_then(|shard| self.takes_up(shard))
    }

    /// Loads the groups of every shard that this broker leads.
    pub(crate) fn take_up_groups(&self) {
        for shard in self.data.hosted() {
            self.takes_up(shard);
        }
    }

    /// Whether this broker leads a shard; then the groups of the shard are loaded, if they are not yet.
    fn takes_up(&self, shard: ShardId) -> Option<Seat> {
        let term = self.data.leads(shard)?;
        if self.groups.is_closed() {
            return None;
        }
        let seat = Seat { shard, term };
        if !self.groups.is_loaded(seat) {
            let image = self.image();
            let shard_of = |group: &str| image.shard_of_group(group);
            let read = || self.data.group_records(shard);
            self.groups.load(seat, shard_of, read);
        }
        Some(seat)
    }

    /// Gives up the groups of the shards that other brokers lead.
    pub(crate) fn give_up_groups(&self) {
        let image = self.image();
        let leads = |shard| self.data.leads(shard);
        let shard_of = |group: &str| image.shard_of_group(group);
        self.groups.unload(leads, shard_of);
    }

    /// Whether every broker reads the records of groups: during an upgrade one that does not would stop at the first of them.
    pub(crate) fn all_read_group_records(&self) -> bool {
        let image = self.images.borrow();
        let reads = |id: &i32| image.reads.get(id).copied().unwrap_or(0);
        image.brokers.keys().all(|id| reads(id) >= GROUP_RECORDS)
    }

    /// Principals that may do everything.
    pub(crate) fn super_users(&self) -> Arc<HashSet<Principal>> {
        self.super_users.load_full()
    }

    /// Changes the metadata, wherever their leader is, and waits until the change is seen here.
    pub(crate) async fn change(
        &self,
        command: &MetadataCommand,
    ) -> Result<MetadataResponse, ChangeError> {
        self.cluster.change(command).await
    }

    /// A producer id that was never given out.
    pub(crate) async fn next_producer_id(&self) -> Result<i64, ChangeError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.is_empty() {
            let count = PRODUCER_ID_BLOCK;
            let command = MetadataCommand::AllocateProducerIds { count };
            match self.change(&command).await? {
                MetadataResponse::ProducerIds { first, count } => {
                    *ids = first..first.saturating_add(i64::from(count));
                }
                other => {
                    return Err(ChangeError::Unexpected(format!(
                        "unexpected answer {other:?}"
                    )));
                }
            }
        }
        ids.next()
            .ok_or_else(|| ChangeError::Unexpected("no producer ids are left".to_owned()))
    }
}

impl Credentials for Broker {
    fn credential(&self, user: &str, mechanism: ScramMechanism) -> Option<ScramCredential> {
        self.images.borrow().scram.get(user, mechanism).cloned()
    }
}

impl Application for Broker {
    fn handle(
        self: Arc<Self>,
        session: Arc<Session>,
        request: Request,
    ) -> impl Future<Output = Reply> + Send {
        api::serve(self, session, request)
    }

    fn connection_wait(&self, host: IpAddr) -> Duration {
        let image = self.image();
        let wait = self.quotas.connection(&image.quotas, host);
        self.metrics
            .throttled(QuotaKey::ConnectionCreationRate.as_str(), wait);
        wait
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("node_id", &self.node_id)
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}
