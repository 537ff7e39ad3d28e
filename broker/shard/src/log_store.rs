//! Raft's log in the broker's write-ahead log.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, RaftLogReader, RaftTypeConfig,
    storage::{IOFlushed, RaftLogStorage},
};
use palisade_log::{ShardId, Wal, WalError, WalRecord};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    ShardError,
    cache::EntryCache,
    codec::{self, Purged},
    raft_types::{Entry, LogId, StoredMembership, Types, Vote},
};

/// Most bytes of entries that are handed out at once for replication.
const READ_BYTES: usize = 4 << 20;

/// The log of one shard. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    shard: ShardId,
    wal: Arc<Wal>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cache: EntryCache,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Written with the next entries: it need not be durable at once.
    committed_is_new: bool,
    purged: Option<Purged>,
    /// Membership to write down when the log is purged: the one of the last checkpoint.
    checkpoint_membership: StoredMembership,
    /// While the engine starts it reads the whole log, also what it has just had applied.
    started: bool,
}

impl LogStore {
    /// The log that `records`, in the order in which the write-ahead log gave them, amount to.
    pub(crate) fn recover(
        shard: ShardId,
        wal: Arc<Wal>,
        records: Vec<WalRecord>,
    ) -> Result<Self, ShardError> {
        let mut state = State::default();
        let refused = |reason| ShardError::Record { shard, reason };
        for record in records {
            match record.kind {
                codec::VOTE => state.vote = Some(codec::read_vote(&record.meta).map_err(refused)?),
                codec::COMMITTED => {
                    state.committed = Some(codec::read_committed(&record.meta).map_err(refused)?)
                }
                codec::PURGED => {
                    let purged = codec::read_purged(&record.meta).map_err(refused)?;
                    state.cache.begin_after(purged.at);
                    state.checkpoint_membership = purged.membership.clone();
                    state.purged = Some(purged);
                }
                codec::ENTRY => {
                    let entry = codec::read_entry(record).map_err(refused)?;
                    state.admit(entry).map_err(refused)?;
                }
                other => return Err(refused(format!("its kind {other} is unknown"))),
            }
        }
        Ok(Self {
            shard,
            wal,
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// The last membership at or before `applied`, which may stand in the log or in what replaced its beginning.
    pub(crate) fn membership_at(&self, applied: u64) -> Result<StoredMembership, u64> {
        let state = self.state.lock();
        let start = state.first();
        let found = state
            .cache
            .range(start, applied.saturating_add(1), usize::MAX)?
            .into_iter()
            .rev()
            .find_map(|entry| {
                let log_id = entry.log_id;
                match entry.payload {
                    openraft::EntryPayload::Membership(membership) => {
                        Some(StoredMembership::new(Some(log_id), membership))
                    }
                    _ => None,
                }
            });
        Ok(found.unwrap_or_else(|| state.checkpoint_membership.clone()))
    }

    /// The log id at `index`, when it is known.
    pub(crate) fn log_id_at(&self, index: u64) -> Option<LogId> {
        let state = self.state.lock();
        let purged = state
            .purged
            .as_ref()
            .map(|purged| purged.at)
            .filter(|at| at.index == index);
        purged.or_else(|| {
            state
                .cache
                .range(index, index.saturating_add(1), 0)
                .ok()?
                .first()
                .map(|entry| entry.log_id)
        })
    }

    /// Index through which the log was purged.
    pub(crate) fn purged_through(&self) -> Option<u64> {
        self.state
            .lock()
            .purged
            .as_ref()
            .map(|purged| purged.at.index)
    }

    /// Remembers the membership that a checkpoint was made with.
    pub(crate) fn set_checkpoint_membership(&self, membership: StoredMembership) {
        self.state.lock().checkpoint_membership = membership;
    }

    /// Drops applied entries from memory, once the engine has read the log.
    pub(crate) fn applied(&self, index: u64) {
        let mut state = self.state.lock();
        if state.started {
            state.cache.drop_through(index);
        }
    }

    /// The engine has read the log.
    pub(crate) fn started(&self) {
        self.state.lock().started = true;
    }

    async fn write(&self, records: Vec<WalRecord>) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.wal.append_waiting(records, move |result| {
            // Nobody to tell: the shard was dropped meanwhile.
            let _ = done.send(result);
        });
        written.await.map_err(io::Error::other)?.map_err(into_io)
    }
}

impl State {
    fn first(&self) -> u64 {
        self.purged
            .as_ref()
            .map_or(0, |purged| purged.at.index.saturating_add(1))
    }

    /// Takes a recovered entry, which must leave no hole. Entries before the beginning are leftovers of a release that was not finished.
    fn admit(&mut self, entry: Entry) -> Result<(), String> {
        let index = entry.log_id.index;
        let next = self
            .cache
            .last()
            .map_or(0, |last| last.index.saturating_add(1));
        if index < self.first() {
            return Ok(());
        }
        if index > next {
            return Err(format!(
                "entry {index} follows where {next} is next: entries between are missing"
            ));
        }
        self.cache.append(entry);
        Ok(())
    }
}

/// Records cut into what the write-ahead log takes at once.
struct Chunks {
    limit: usize,
    full: Vec<Vec<WalRecord>>,
    last: Vec<WalRecord>,
    bytes: usize,
}

impl Chunks {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            full: Vec::new(),
            last: Vec::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, record: WalRecord) {
        let cost = record.cost();
        if self.bytes.saturating_add(cost) > self.limit && !self.last.is_empty() {
            self.full.push(std::mem::take(&mut self.last));
            self.bytes = 0;
        }
        self.bytes = self.bytes.saturating_add(cost);
        self.last.push(record);
    }
}

fn into_io(error: WalError) -> io::Error {
    io::Error::other(error)
}

impl<R: Send + Sync + 'static> RaftLogReader<Types<R>> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let state = self.state.lock();
        let start = match range.start_bound() {
            Included(start) => *start,
            Excluded(start) => start.saturating_add(1),
            Unbounded => state.first(),
        };
        let end = match range.end_bound() {
            Included(end) => end.saturating_add(1),
            Excluded(end) => *end,
            Unbounded => u64::MAX,
        };
        state
            .cache
            .range(start, end, usize::MAX)
            .map_err(|index| gone(self.shard, index))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.state
            .lock()
            .cache
            .range(start, end, READ_BYTES)
            .map_err(|index| gone(self.shard, index))
    }
}

fn gone(shard: ShardId, index: u64) -> io::Error {
    io::Error::other(format!(
        "entry {index} of shard {shard} was applied and is not in memory any more"
    ))
}

impl<R: Send + Sync + 'static> RaftLogStorage<Types<R>> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<R>>> {
        let state = self.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged.as_ref().map(|purged| purged.at),
            last_log_id: state.cache.last(),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.write(vec![codec::vote_record(self.shard, vote)])
            .await?;
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.committed_is_new |= committed.is_some() && state.committed != committed;
        state.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let state = self.state.lock();
        // It was written before the entries that follow it, so it never lies beyond the log's end; a foreign log might.
        Ok(state
            .committed
            .filter(|committed| Some(*committed) <= state.cache.last()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<R>>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut chunks = Chunks::new(self.wal.append_limit());
        {
            let mut state = self.state.lock();
            for entry in entries {
                chunks.push(codec::entry_record(self.shard, &entry));
                state.cache.append(entry);
            }
            if let (true, Some(committed)) = (state.committed_is_new, state.committed) {
                chunks.push(codec::committed_record(self.shard, &committed));
                state.committed_is_new = false;
            }
        }
        for full in chunks.full {
            // They are written in order, and what fails one fails the last as well.
            self.wal.append_waiting(full, |_| {});
        }
        self.wal.append_waiting(chunks.last, move |result| {
            callback.io_completed(result.map_err(into_io));
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        // Nothing is written: the entries that replace these stand later in the write-ahead log and win when it is read. If the process dies before there
        // are any, the old ones are back, as if this replica had heard nothing yet.
        self.state.lock().cache.truncate_after(last);
        Ok(())
    }

    async fn purge(&mut self, at: LogId) -> io::Result<()> {
        let record = {
            let mut state = self.state.lock();
            let purged = Purged {
                at,
                membership: state.checkpoint_membership.clone(),
            };
            let record = codec::purged_record(self.shard, &purged);
            if state.cache.last() < Some(at) {
                state.cache.begin_after(at);
            }
            state.cache.drop_through(at.index);
            state.purged = Some(purged);
            record
        };
        self.write(vec![record]).await?;
        self.wal.release(self.shard, at.index);
        Ok(())
    }
}

/// Compile-time proof that the store fits every response type.
const _: fn() = || {
    fn fits<C: RaftTypeConfig, S: RaftLogStorage<C>>() {}
    fits::<Types<()>, LogStore>();
};
