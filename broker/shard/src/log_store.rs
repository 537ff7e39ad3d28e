//! Raft's log in the broker's write-ahead log.
//!
//! # Where the log begins
//!
//! There are two beginnings. In the write-ahead log it begins where the newest checkpoint ends (`begun`): what the state machine has made durable need not be
//! replayed. In memory it begins where the tail for replicas that are behind ends (`purged`), and that is what Raft is told: a replica that lacks anything up to
//! there is sent a snapshot. Neither must wait for the other; after a restart the second is where the first is.
//!
//! # Recovery
//!
//! The write-ahead log keeps the order of appends, and cutting the log writes a record too, so reading it does to the log in memory exactly what was done
//! before, up to some moment. Without the record of a cut, entries that were cut off could come back behind a newer entry that replaced them and was
//! released. It need not be durable before anything depends on it, because whatever does stands behind it.
//!
//! A snapshot replaces the state machine first and the log's beginning then, and a crash may come between: its place is written down before, and a state
//! machine that is found there says that the log begins there.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, RaftLogReader, RaftTypeConfig,
    storage::{IOFlushed, RaftLogStorage},
};
use palisade_log::{ShardId, Wal, WalError, WalRecord};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use crate::{
    LogPosition, ShardError,
    cache::EntryCache,
    codec::{self, Purged},
    raft_types::{Entry, LogId, StoredMembership, Types, Vote, log_id},
};

/// Most bytes of entries that are handed out at once for replication.
const READ_BYTES: usize = 1 << 20;
/// How much more than it should the tail may hold before it is trimmed, so that this is not done for every entry; never more than a tail that is short.
const TRIM_SLACK: usize = 2 << 20;

fn slack(keep: usize) -> usize {
    match keep {
        0 => TRIM_SLACK,
        keep => keep.min(TRIM_SLACK),
    }
}

/// The log of one shard. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    shard: ShardId,
    wal: Arc<Wal>,
    state: Arc<Mutex<State>>,
    /// How many appends are durable, of those in [`State::appends`].
    durable: watch::Sender<u64>,
    /// Woken when the tail should be trimmed.
    pub(crate) surplus: Arc<Notify>,
    /// Woken when it was.
    pub(crate) trimmed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    cache: EntryCache,
    /// How often something was appended.
    appends: u64,
    vote: Option<Vote>,
    /// Where the log ended that a replica had here which was deleted.
    promised: Option<LogId>,
    committed: Option<LogId>,
    /// Written with the next entries: it need not be durable at once.
    committed_is_new: bool,
    /// Where the write-ahead log's part of the log begins, and the membership there.
    begun: Option<Purged>,
    /// `begun` was not written yet: it comes from a snapshot whose installation was interrupted.
    begun_is_new: bool,
    /// Up to where the log is gone from memory.
    purged: Option<LogId>,
    /// Bytes of applied entries to keep; `None` until the engine has read the log.
    keep: Option<usize>,
    /// Up to where the log is about to be purged.
    unwanted: Option<u64>,
    /// The place of the newest snapshot that was begun to be installed.
    installing: Option<LogId>,
    /// The replica was deleted: what is still under way writes nothing any more.
    is_deleted: bool,
}

/// What a replica that is behind may do with the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lag {
    /// What it lacks is here.
    Small,
    /// What it lacks is about to be purged.
    Large,
    /// As large, and the tail is far beyond its size because of it.
    TooLarge,
}

impl LogStore {
    /// The log that `records`, in the order in which the write-ahead log gave them (sticky ones first), amount to, given where the state machine is.
    pub(crate) fn recover(
        shard: ShardId,
        wal: Arc<Wal>,
        records: Vec<WalRecord>,
        applied: Option<LogPosition>,
    ) -> Result<Self, ShardError> {
        let state = State::recover(shard, records, applied)?;
        Ok(Self {
            shard,
            wal,
            state: Arc::new(Mutex::new(state)),
            durable: watch::channel(0).0,
            surplus: Arc::default(),
            trimmed: Arc::default(),
        })
    }

    /// Writes down the beginning that an interrupted installation of a snapshot left behind.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        let begun = {
            let state = self.state.lock();
            state.begun.clone().filter(|_| state.begun_is_new)
        };
        match begun {
            Some(begun) => self.write_beginning(begun).await,
            None => Ok(()),
        }
    }

    /// What is to be kept of this replica when it is deleted; see [`kept`]. Nothing of it is written from now on: the engine's task may have ended, but a snapshot that
    /// was being installed still is.
    pub(crate) fn promise(&self) -> Vec<WalRecord> {
        let mut state = self.state.lock();
        state.is_deleted = true;
        state.promise(self.shard)
    }

    /// Up to where the log of a deleted replica went that was here before this one, while this one's is shorter. As long as that is so, this replica's consent to an
    /// election would count for less than it says: the other one may have helped to commit what this one lacks.
    pub(crate) fn lacks(&self) -> Option<LogId> {
        self.state.lock().lacks()
    }

    /// What this replica voted for.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.state.lock().vote
    }

    /// Whether `node` is the only voter as of the end of the log.
    pub(crate) fn has_single_voter(&self, node: u64) -> bool {
        let membership = self.membership_at(u64::MAX);
        membership.voter_ids().eq([node])
    }

    /// The last membership at or before `applied`, which may stand in the log or in what replaced its beginning.
    pub(crate) fn membership_at(&self, applied: u64) -> StoredMembership {
        let state = self.state.lock();
        let found = state
            .cache
            .newest_first()
            .filter(|entry| entry.log_id.index <= applied)
            .find_map(|entry| match &entry.payload {
                openraft::EntryPayload::Membership(membership) => Some(StoredMembership::new(
                    Some(entry.log_id),
                    membership.clone(),
                )),
                _ => None,
            });
        let begun = || state.begun.as_ref().map(|begun| begun.membership.clone());
        found.or_else(begun).unwrap_or_default()
    }

    /// The log id at `index`, when it is known.
    pub(crate) fn log_id_at(&self, index: u64) -> Option<LogId> {
        let state = self.state.lock();
        state
            .purged
            .filter(|at| at.index == index)
            .or_else(|| state.cache.log_id(index))
    }

    /// Index through which the log was released.
    pub(crate) fn released_through(&self) -> Option<u64> {
        let state = self.state.lock();
        state.begun.as_ref().map(|begun| begun.at.index)
    }

    /// Lets the write-ahead log begin after `at`, which the state machine has made durable.
    pub(crate) async fn release(&self, at: LogId, membership: StoredMembership) -> io::Result<()> {
        let begun = {
            let mut state = self.state.lock();
            if state.begun.as_ref().is_some_and(|begun| begun.at >= at) {
                return Ok(());
            }
            let begun = Purged { at, membership };
            state.begun = Some(begun.clone());
            begun
        };
        self.write_beginning(begun).await
    }

    /// Notes that the state machine is about to be replaced by a snapshot.
    pub(crate) async fn installing(
        &self,
        at: LogId,
        membership: StoredMembership,
    ) -> io::Result<()> {
        let place = Purged { at, membership };
        {
            let mut state = self.state.lock();
            state.installing = state.installing.max(Some(at));
        }
        self.write(vec![codec::installing_record(self.shard, &place)])
            .await
    }

    async fn write_beginning(&self, begun: Purged) -> io::Result<()> {
        self.write(vec![codec::purged_record(self.shard, &begun)])
            .await?;
        let state = self.state.lock();
        if !state.is_deleted {
            self.wal.release(self.shard, begun.at.index);
        }
        Ok(())
    }

    /// Waits until everything that is in the log now is durable here: the engine applies what others have made durable before this replica has, and a
    /// checkpoint must not be of a state that the log does not reach to.
    pub(crate) async fn durable(&self) {
        let appends = self.state.lock().appends;
        let mut durable = self.durable.subscribe();
        // The sender lives in `self`.
        let _ = durable.wait_for(|count| *count >= appends).await;
    }

    /// Notes up to where entries were applied.
    pub(crate) fn applied(&self, index: u64) {
        let mut state = self.state.lock();
        state.cache.applied(index);
        let limit = state.keep.map(|keep| keep.saturating_add(slack(keep)));
        let is_surplus = limit.is_some_and(|limit| state.cache.applied_bytes() > limit);
        drop(state);
        if is_surplus {
            self.surplus.notify_one();
        }
    }

    /// How many bytes of applied entries to keep in memory from now on. Not to be called before the engine has read the log.
    pub(crate) fn keep(&self, bytes: usize) {
        self.state.lock().keep = Some(bytes);
    }

    /// Up to where the log should be purged, when the tail is longer than it should be.
    pub(crate) fn too_much(&self) -> Option<u64> {
        let state = self.state.lock();
        let keep = state.keep?;
        let is_too_much = state.cache.applied_bytes() > keep.saturating_add(slack(keep));
        is_too_much.then(|| state.cache.surplus(keep)).flatten()
    }

    /// Replicas that lack anything up to `through` are not to be sent it any more.
    pub(crate) fn unwanted(&self, through: u64) {
        let mut state = self.state.lock();
        state.unwanted = state.unwanted.max(Some(through));
    }

    /// Up to where the log is gone from memory.
    pub(crate) fn purged_through(&self) -> Option<u64> {
        self.state.lock().purged.map(|at| at.index)
    }

    /// What is to become of a replica that has the log up to `has`.
    pub(crate) fn lag(&self, has: Option<LogId>) -> Lag {
        let state = self.state.lock();
        let next = has.map_or(0, |id| id.index.saturating_add(1));
        if state.unwanted.is_none_or(|through| through < next) {
            return Lag::Small;
        }
        let keep = state.keep.unwrap_or(usize::MAX);
        let most = keep.saturating_mul(2).saturating_add(4 * slack(keep));
        match state.cache.applied_bytes() > most {
            true => Lag::TooLarge,
            false => Lag::Large,
        }
    }

    async fn write(&self, records: Vec<WalRecord>) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        {
            // Held, so that nothing comes behind the record by which the replica is forgotten.
            let state = self.state.lock();
            if state.is_deleted {
                return Err(io::Error::other("the replica was deleted"));
            }
            self.wal.append_waiting(records, move |result| {
                // Nobody to tell: the shard was dropped meanwhile.
                let _ = done.send(result);
            });
        }
        written.await.map_err(io::Error::other)?.map_err(into_io)
    }
}

impl State {
    /// See [`LogStore::recover`].
    fn recover(
        shard: ShardId,
        records: Vec<WalRecord>,
        applied: Option<LogPosition>,
    ) -> Result<Self, ShardError> {
        let mut state = Self::default();
        let refused = |reason| ShardError::Record { shard, reason };
        for record in records {
            match record.kind {
                codec::VOTE => state.vote = Some(codec::read_vote(&record.meta).map_err(refused)?),
                codec::COMMITTED => {
                    state.committed = Some(codec::read_place(&record.meta).map_err(refused)?)
                }
                codec::PURGED => {
                    let begun = codec::read_purged(&record.meta).map_err(refused)?;
                    state.begin_after(begun, false);
                }
                codec::INSTALLING => {
                    let place = codec::read_purged(&record.meta).map_err(refused)?;
                    state.installing = Some(place.at);
                    if applied.map(|at| log_id(at.term, at.index)) == Some(place.at) {
                        state.begin_after(place, true);
                    }
                }
                codec::ENTRY => {
                    let entry = codec::read_entry(record).map_err(refused)?;
                    state.admit(entry).map_err(refused)?;
                }
                codec::PROMISED => {
                    state.promised = Some(codec::read_place(&record.meta).map_err(refused)?)
                }
                codec::CUT => state.cut(codec::read_cut(&record.meta).map_err(refused)?),
                other => return Err(refused(format!("its kind {other} is unknown"))),
            }
        }
        Ok(state)
    }

    /// See [`kept`].
    fn promise(&self, shard: ShardId) -> Vec<WalRecord> {
        let vote = self.vote.map(|vote| Vote {
            // Whoever leads shows that by itself.
            committed: false,
            ..vote
        });
        // Whether a snapshot was taken over to its end does not matter: whoever is to be elected has more.
        let last = self.promised.max(self.cache.last()).max(self.installing);
        let vote = vote.map(|vote| codec::vote_record(shard, &vote));
        let last = last.map(|last| codec::promised_record(shard, &last));
        vote.into_iter().chain(last).collect()
    }

    /// See [`LogStore::lacks`].
    fn lacks(&self) -> Option<LogId> {
        self.promised
            .filter(|promised| self.cache.last() < Some(*promised))
    }

    fn first(&self) -> u64 {
        self.purged.map_or(0, |at| at.index.saturating_add(1))
    }

    /// Lets the recovered log begin after `place`. Comes before all entries.
    fn begin_after(&mut self, place: Purged, is_new: bool) {
        if self.purged >= Some(place.at) {
            return;
        }
        self.cache.begin_after(place.at);
        self.purged = Some(place.at);
        self.begun = Some(place);
        self.begun_is_new = is_new;
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

    /// Repeats a cut of the log.
    fn cut(&mut self, keep: Option<u64>) {
        let keep = keep.and_then(|index| self.cache.log_id(index));
        self.cache.truncate_after(keep.max(self.purged));
    }
}

/// What is to be kept of a replica that is deleted, of which the write-ahead log holds `records`: its vote, and where its log ended. A replica that comes back under the
/// same number must not be asked into an election that the deleted one would have refused: there may be one who was away all the time, and counts on it.
///
/// # Errors
/// [`ShardError::Record`].
pub fn kept(shard: ShardId, records: Vec<WalRecord>) -> Result<Vec<WalRecord>, ShardError> {
    Ok(State::recover(shard, records, None)?.promise(shard))
}

/// Whether these records of a shard are what [`kept`] leaves.
#[must_use]
pub fn is_kept(records: &[WalRecord]) -> bool {
    let kinds = [codec::VOTE, codec::PROMISED];
    records.iter().all(|record| kinds.contains(&record.kind))
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
        let mut state = self.state.lock();
        match state.cache.range(start, end, READ_BYTES) {
            Ok(entries) => Ok(entries),
            Err(index) => {
                // The engine does not purge what it is about to send. Should it do so after all, an error would stop the shard; nothing at all makes the
                // stream to the replica end, and the replica get a snapshot.
                let through = state.first().saturating_sub(1).max(index);
                state.unwanted = state.unwanted.max(Some(through));
                tracing::warn!(shard = %self.shard, index, "an entry for a replica is not in memory any more");
                Ok(Vec::new())
            }
        }
    }
}

fn gone(shard: ShardId, index: u64) -> io::Error {
    io::Error::other(format!(
        "entry {index} of shard {shard} is not in memory any more"
    ))
}

impl<R: Send + Sync + 'static> RaftLogStorage<Types<R>> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types<R>>> {
        let state = self.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
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
        let number;
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
            state.appends = state.appends.saturating_add(1);
            number = state.appends;
        }
        for full in chunks.full {
            // They are written in order, and what fails one fails the last as well.
            self.wal.append_waiting(full, |_| {});
        }
        let durable = self.durable.clone();
        self.wal.append_waiting(chunks.last, move |result| {
            if result.is_ok() {
                durable.send_replace(number);
            }
            callback.io_completed(result.map_err(into_io));
        });
        Ok(())
    }

    async fn truncate_after(&mut self, keep: Option<LogId>) -> io::Result<()> {
        let cut = {
            let mut state = self.state.lock();
            let Some(last) = state.cache.last() else {
                return Ok(());
            };
            state.cache.truncate_after(keep);
            codec::cut_record(self.shard, keep.map(|id| id.index), last.index)
        };
        self.wal.append_waiting(vec![cut], |_| {});
        Ok(())
    }

    async fn purge(&mut self, at: LogId) -> io::Result<()> {
        // In memory only: what the write-ahead log still has of it, it releases when the state machine is durable.
        let mut state = self.state.lock();
        if state.cache.last() < Some(at) {
            state.cache.begin_after(at);
        }
        state.cache.drop_through(at.index);
        state.purged = state.purged.max(Some(at));
        if state.unwanted.is_some_and(|through| through <= at.index) {
            state.unwanted = None;
        }
        drop(state);
        self.trimmed.notify_one();
        Ok(())
    }
}

/// Compile-time proof that the store fits every response type.
const _: fn() = || {
    fn fits<C: RaftTypeConfig, S: RaftLogStorage<C>>() {}
    fits::<Types<()>, LogStore>();
};

#[cfg(test)]
#[path = "log_store_tests.rs"]
mod tests;
