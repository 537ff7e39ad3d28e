//! Shards that come to this broker, and leave it.
//!
//! ```text
//! shard-<number>           a shard that is hosted: its manifest and its partitions
//! shard-<number>.removed   one that is being given up; the next start, or the next try, ends that
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    sync::Arc,
};

use palisade_log::{LogError, ShardId, Wal, WalRecord};
use palisade_seal::FileKeys;
use palisade_shard::{Formation, StateMachine, Transport, is_kept, kept};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, task::JoinSet};

use super::{
    DataOptions, DataPlane, cleaning,
    handle::{self, ShardHandle, Start},
    housekeeping, repairing, scrubbing,
};
use crate::{catalog::Catalog, shard_data::ShardSetup, types::DataError};

const PREFIX: &str = "shard-";
const REMOVED: &str = ".removed";

impl DataPlane {
    /// Opens every data shard that is found on disk: its last checkpoint, then what the write-ahead log brought since (`recovered`). Others are begun by
    /// [`DataPlane::host`]. The catalog must be current: what it does not know any more is removed by those who lead.
    ///
    /// # Errors
    /// When a shard's manifest is damaged, gone, or sealed under a key that is not there; when a shard's directory is missing; when the disk cannot be used.
    pub async fn open(
        options: DataOptions,
        wal: Arc<Wal>,
        mut recovered: BTreeMap<ShardId, Vec<WalRecord>>,
        keys: Arc<FileKeys>,
        catalog: Arc<dyn Catalog>,
        transport: Arc<dyn Transport>,
    ) -> Result<Arc<Self>, DataError> {
        let plane = Arc::new(Self {
            options,
            wal,
            keys,
            transport,
            catalog,
            shards: RwLock::default(),
            hosting: tokio::sync::Mutex::default(),
            promises: Mutex::default(),
            leaders: watch::Sender::default(),
            runtime: tokio::runtime::Handle::current(),
            stop: watch::Sender::new(false),
            housekeeper: Mutex::new(None),
            cleaner: Mutex::new(None),
            cleaning: cleaning::Cleaning::default(),
            repairing: repairing::Repairing::default(),
            repairers: Mutex::default(),
            checkpoint_due: Arc::default(),
            checkpointing: tokio::sync::Mutex::default(),
        });
        let (hosted, removed) = plane.found()?;
        for shard in removed {
            let records = recovered.remove(&shard).unwrap_or_default();
            let promise = kept(shard, records).map_err(|error| DataError::Shard(error.to_string()));
            plane.promises.lock().insert(shard, promise?);
            plane.forget(shard).await?;
        }
        recovered.retain(|shard, records| {
            let is_promise = !hosted.contains(shard) && is_kept(records);
            if is_promise {
                let records = std::mem::take(records);
                plane.promises.lock().insert(*shard, records);
            }
            !is_promise
        });
        let lost = recovered.iter().find(|(shard, records)| {
            **shard != ShardId::METADATA && !records.is_empty() && !hosted.contains(*shard)
        });
        if let Some((shard, _)) = lost {
            return Err(DataError::Corrupt(format!(
                "{} is missing, but the write-ahead log holds entries of the shard; restore it",
                plane.dir_of(*shard).display()
            )));
        }
        // Side by side: each replays its part of the write-ahead log.
        let mut starting = JoinSet::new();
        for shard in hosted {
            let replay = recovered.remove(&shard).unwrap_or_default();
            let plane = Arc::clone(&plane);
            starting.spawn(async move { plane.reopen(shard, replay).await });
        }
        let mut shards = BTreeMap::new();
        while let Some(started) = starting.join_next().await {
            let started = started.map_err(|error| DataError::Shard(error.to_string()))??;
            if let Some(handle) = started {
                shards.insert(handle.data.id, Arc::new(handle));
            }
        }
        *plane.shards.write() = Arc::new(shards);
        let housekeeper = tokio::spawn(housekeeping::run(
            Arc::downgrade(&plane),
            plane.stop.subscribe(),
            Arc::clone(&plane.checkpoint_due),
        ));
        *plane.housekeeper.lock() = Some(housekeeper);
        let cleaner = tokio::spawn(cleaning::run(
            Arc::downgrade(&plane),
            plane.stop.subscribe(),
            plane.options.cleaner,
        ));
        *plane.cleaner.lock() = Some(cleaner);
        let repairer = repairing::run(
            Arc::downgrade(&plane),
            plane.stop.subscribe(),
            Arc::clone(&plane.repairing.met),
        );
        let scrubber = scrubbing::run(
            Arc::downgrade(&plane),
            plane.stop.subscribe(),
            plane.options.scrub,
        );
        *plane.repairers.lock() = vec![tokio::spawn(repairer), tokio::spawn(scrubber)];
        Ok(plane)
    }

    /// Starts a replica of a shard, if it is not hosted already.
    ///
    /// # Errors
    /// [`DataError::Stopped`]; trouble with the disk.
    pub async fn host(&self, shard: ShardId, formation: Formation) -> Result<(), DataError> {
        let _one = self.hosting.lock().await;
        if self.is_stopping() {
            return Err(DataError::Stopped);
        }
        if self.handle_of(shard).is_some() {
            return Ok(());
        }
        if shard == ShardId::METADATA {
            return Err(DataError::Shard("it is no data shard".to_owned()));
        }
        // What is left of a replica that was given up must not meet the new one.
        let (hosted, removed) = self.found()?;
        let is_given_up = self.promises.lock().contains_key(&shard);
        if removed.contains(&shard) || (is_given_up && hosted.contains(&shard)) {
            self.remove(shard).await?;
        }
        let (machine, data) = handle::open(self.setup(shard)).await?;
        self.sync_dir()?;
        let promise = self.promises.lock().get(&shard).cloned();
        let start = self.start_of(shard, promise.unwrap_or_default(), formation);
        let handle = ShardHandle::start(machine, data, start).await?;
        self.promises.lock().remove(&shard);
        let mut shards = self.shards.write();
        Arc::make_mut(&mut shards).insert(shard, Arc::new(handle));
        Ok(())
    }

    /// Stops the replica of a shard and deletes everything of it, if its peers do not count on it any more: `let_go`, which has to ask them when it is polled and
    /// not before, says so. Nothing that they send reaches the replica meanwhile, so it promises nothing after the question. What it promised before counts for who
    /// has not heard yet that it is no member any more, and is kept for a replica that comes back. Whether it was deleted.
    ///
    /// # Errors
    /// Trouble with the disk; the replica is stopped all the same, and another call, or the next start, goes on.
    pub async fn unhost(
        &self,
        shard: ShardId,
        let_go: impl Future<Output = bool>,
    ) -> Result<bool, DataError> {
        let handle = self.handle_of(shard);
        let _deaf = handle.as_ref().map(|handle| handle.deafen());
        if !let_go.await {
            return Ok(false);
        }
        self.delete(shard).await?;
        Ok(true)
    }

    async fn delete(&self, shard: ShardId) -> Result<(), DataError> {
        let _one = self.hosting.lock().await;
        let _quiet = self.checkpointing.lock().await;
        let handle = Arc::make_mut(&mut self.shards.write()).remove(&shard);
        if let Some(handle) = &handle {
            handle.stop().await;
            let promise = handle.shard.promise();
            self.promises.lock().insert(shard, promise);
            self.leaders
                .send_if_modified(|leaders| Arc::make_mut(leaders).remove(&shard).is_some());
        }
        // Who still reads finds nothing from now on, instead of files that are gone.
        for slot in handle.iter().flat_map(|handle| handle.data.slots()) {
            if let Some(partition) = slot.partition() {
                partition.log.retire();
            }
        }
        self.remove(shard).await
    }

    /// Removes what is on disk of a replica that was given up, but for what it promised.
    async fn remove(&self, shard: ShardId) -> Result<(), DataError> {
        let (dir, removed) = (self.dir_of(shard), self.removed_dir(shard));
        match self.options.fs.rename(&dir, &removed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DataError::Log(LogError::io("rename", &dir)(error)));
            }
            _ => self.sync_dir()?,
        }
        self.forget(shard).await
    }

    /// The shards that are hosted here.
    #[must_use]
    pub fn hosted(&self) -> Vec<ShardId> {
        self.handles().keys().copied().collect()
    }

    /// Ends what [`DataPlane::delete`] began.
    async fn forget(&self, shard: ShardId) -> Result<(), DataError> {
        let (done, forgotten) = tokio::sync::oneshot::channel();
        let promise = self.promises.lock().get(&shard).cloned();
        self.wal
            .forget(shard, promise.unwrap_or_default(), |outcome| {
                // Nobody to tell: whoever waited was dropped.
                let _ = done.send(outcome);
            });
        forgotten
            .await
            .map_err(|_| DataError::Stopped)?
            .map_err(|error| DataError::Shard(error.to_string()))?;
        let removed = self.removed_dir(shard);
        match self.options.fs.remove_dir_all(&removed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DataError::Log(LogError::io("remove", &removed)(error)))
            }
            _ => self.sync_dir(),
        }
    }

    /// Starts a shard that is found on disk; `None` when nothing ever happened in it: then it is begun by [`DataPlane::host`].
    async fn reopen(
        &self,
        shard: ShardId,
        replay: Vec<WalRecord>,
    ) -> Result<Option<ShardHandle>, DataError> {
        let (machine, data) = handle::open(self.setup(shard)).await?;
        if replay.is_empty() && machine.applied().is_none() {
            return Ok(None);
        }
        let start = self.start_of(shard, replay, Formation::Join);
        ShardHandle::start(machine, data, start).await.map(Some)
    }

    fn start_of(&self, shard: ShardId, replay: Vec<WalRecord>, formation: Formation) -> Start {
        Start {
            config: self.config(shard),
            wal: Arc::clone(&self.wal),
            replay,
            transport: Arc::clone(&self.transport),
            formation,
            leaders: self.leaders.clone(),
        }
    }

    fn setup(&self, shard: ShardId) -> ShardSetup {
        ShardSetup {
            id: shard,
            dir: self.dir_of(shard),
            fs: Arc::clone(&self.options.fs),
            keys: Arc::clone(&self.keys),
            checkpoint_due: Arc::clone(&self.checkpoint_due),
            checkpoint_bytes: self.options.checkpoint_wal_bytes,
            segment_bytes: self.options.segment_bytes,
        }
    }

    /// The shards whose directories are there, and those that are being given up.
    fn found(&self) -> Result<(BTreeSet<ShardId>, BTreeSet<ShardId>), DataError> {
        let dir = &self.options.dir;
        self.options
            .fs
            .create_dir_all(dir)
            .map_err(LogError::io("create", dir))
            .map_err(DataError::Log)?;
        let names = self.options.fs.list(dir);
        let names = names
            .map_err(LogError::io("list", dir))
            .map_err(DataError::Log)?;
        let number = |name: &str| name.parse().ok().map(ShardId);
        let numbers = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
        let hosted = numbers.clone().filter_map(number).collect();
        let removed = numbers
            .filter_map(|name| number(name.strip_suffix(REMOVED)?))
            .collect();
        Ok((hosted, removed))
    }

    fn dir_of(&self, shard: ShardId) -> PathBuf {
        self.options.dir.join(format!("{PREFIX}{shard}"))
    }

    fn removed_dir(&self, shard: ShardId) -> PathBuf {
        self.options.dir.join(format!("{PREFIX}{shard}{REMOVED}"))
    }

    fn sync_dir(&self) -> Result<(), DataError> {
        let dir = &self.options.dir;
        self.options
            .fs
            .sync_dir(dir)
            .map_err(LogError::io("sync", dir))
            .map_err(DataError::Log)
    }
}
