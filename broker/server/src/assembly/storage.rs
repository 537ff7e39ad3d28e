//! What lies on the volume: the write-ahead log, shard 0 and the data shards.

use std::{collections::BTreeMap, sync::Arc};

use palisade_config::BrokerConfig;
use palisade_data::{DataOptions, DataPlane, ImageCatalog};
use palisade_log::{ShardId, Wal, WalOptions, WalRecord};
use palisade_metadata::{Image, MetadataMachine};
use palisade_peer::Peers;
use palisade_seal::{FileKeys, KeyProvider};
use palisade_shard::{NoPeers, NodeId, Shard, ShardConfig, StateMachine as _, Transport};
use tokio::sync::watch;

use super::data_dir::DataDir;
use crate::{
    cluster::{Cluster, Currency, Desk, find_out},
    error::StartError,
};

/// Fewer open files than this are soon used up.
const FEW_FILES: u64 = 16_384;

/// What was read from the volume, before anything runs.
pub(super) struct Opened {
    wal: Arc<Wal>,
    recovered: BTreeMap<ShardId, Vec<WalRecord>>,
    file_keys: Arc<FileKeys>,
    machine: MetadataMachine,
    pub(super) images: watch::Receiver<Arc<Image>>,
    pub(super) desk: Arc<Desk>,
    pub(super) me: NodeId,
    /// The volume holds something of shard 0.
    old: bool,
}

/// What runs on the volume.
pub(super) struct Storage {
    pub(super) wal: Arc<Wal>,
    pub(super) images: watch::Receiver<Arc<Image>>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) data: Arc<DataPlane>,
}

pub(super) fn storage_error(error: impl std::fmt::Display) -> StartError {
    StartError::Storage(error.to_string())
}

/// Reads the volume.
pub(super) fn open(
    config: &BrokerConfig,
    data_dir: &DataDir,
    keys: Arc<dyn KeyProvider>,
) -> Result<Opened, StartError> {
    let file_keys = Arc::new(FileKeys::new(keys));
    let mut options = WalOptions::new(data_dir.path.join("wal"));
    options.file_bytes = config.storage.wal_file_size.bytes();
    let (wal, records) = Wal::open(options, Arc::clone(&file_keys)).map_err(storage_error)?;
    let mut recovered: BTreeMap<ShardId, Vec<WalRecord>> = BTreeMap::new();
    for record in records {
        recovered.entry(record.shard).or_default().push(record);
    }
    let (machine, images) =
        MetadataMachine::open(data_dir.path.join("metadata"), Arc::clone(&file_keys))
            .map_err(storage_error)?;
    let old = machine.applied().is_some() || recovered.contains_key(&ShardId::METADATA);
    let me = data_dir.node();
    Ok(Opened {
        wal: Arc::new(wal),
        recovered,
        file_keys,
        machine,
        images,
        desk: Arc::new(Desk::new(me, old)),
        me,
        old,
    })
}

/// Starts shard 0, which is formed or joined when the volume is new, and opens the data shards; none of them runs yet.
pub(super) async fn form(
    config: &BrokerConfig,
    data_dir: &DataDir,
    keys: Arc<dyn KeyProvider>,
    opened: Opened,
    peers: Option<&Arc<Peers>>,
) -> Result<Storage, StartError> {
    let Opened {
        wal,
        mut recovered,
        file_keys,
        machine,
        images,
        desk,
        me,
        old,
    } = opened;
    let seeds = config.cluster.seeds.clone();
    let formation = if old {
        // What is on the volume says who the members are.
        match peers {
            Some(_) => palisade_shard::Formation::Join,
            None => palisade_shard::Formation::Alone,
        }
    } else {
        find_out(me, &seeds, peers.map(|peers| &**peers)).await
    };
    let transport: Arc<dyn Transport> = match peers {
        Some(peers) => Arc::clone(peers) as Arc<dyn Transport>,
        None => Arc::new(NoPeers),
    };
    let metadata = Shard::start(
        ShardConfig::new(ShardId::METADATA, me),
        Arc::clone(&wal),
        recovered.remove(&ShardId::METADATA).unwrap_or_default(),
        machine,
        Arc::clone(&transport),
        formation,
    )
    .await
    .map_err(storage_error)?;
    let metadata = Arc::new(metadata);
    let currency = Currency::of(&metadata);
    let cluster = Arc::new(Cluster::new(
        me,
        seeds,
        peers.cloned(),
        Arc::clone(&metadata),
        images.clone(),
    ));
    desk.open_cluster(Arc::clone(&cluster));

    match palisade_log::fs::raise_file_limit() {
        Ok(Some(files)) if files < FEW_FILES => tracing::warn!(
            files,
            "this process may open few files: each partition in use needs one, each connection another; raise `ulimit -n`"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let mut options = DataOptions::new(data_dir.path.join("data"));
    options.node = me;
    options.segment_bytes = config.storage.segment_size.bytes();
    let data = DataPlane::open(
        options,
        Arc::clone(&wal),
        recovered,
        file_keys,
        Arc::new(ImageCatalog::new(images.clone(), keys, move || {
            currency.holds(&metadata.status())
        })),
        transport,
    )
    .await
    .map_err(storage_error)?;
    desk.open_data(Arc::clone(&data));
    Ok(Storage {
        wal,
        images,
        cluster,
        data,
    })
}
