//! The broker as handlers see it: metadata, data, groups, quotas, and who may do everything.

use std::{collections::HashSet, fmt, net::IpAddr, ops::Range, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use palisade_data::DataPlane;
use palisade_metadata::{Image, MetadataCommand, MetadataResponse};
use palisade_seal::KeyProvider;
use palisade_security::{Principal, ScramCredential, ScramMechanism, quota::QuotaKey};
use tokio::sync::watch;

use crate::{
    api,
    cluster::{ChangeError, Cluster},
    codec::Request,
    groups::GroupRuntime,
    metrics::Metrics,
    net::{Application, Reply},
    quotas::Quotas,
    sasl::Credentials,
    session::Session,
};

/// Producer ids that are reserved at once.
const PRODUCER_ID_BLOCK: u32 = 1000;

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

    /// Whether this broker coordinates a group: the leader of the shard that keeps its offsets does.
    pub(crate) fn coordinates(&self, group: &str) -> bool {
        let shard = self.images.borrow().shard_of_group(group);
        shard.is_some_and(|shard| self.data.leads(shard).is_some())
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
