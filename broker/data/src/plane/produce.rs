//! Appending, the leader's side.
//!
//! The leader gives each batch its offsets, seals it for exactly that place and proposes it, all under the partition's lock and before the caller gets a
//! future: the order of calls is the order of the log. Applying checks the place again. When a promised place was not used after all, every batch promised
//! behind it is refused there as well; the leader then makes no new promises until the last answer is in, and begins again at the end of the log.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use palisade_log::{Offset, PartitionIndex, TopicId};
use palisade_seal::Sealer;
use palisade_shard::{Command, ProposeError};

use super::{DataPlane, Led, handle::ShardHandle};
use crate::{
    command::{Append, DataCommand, DataResponse},
    producers::{ProducerBatch, Verdict},
    records::{HEADER_LEN, TimestampType, ValidBatch, validate},
    sealing::batch_aad,
    shard_data::now_ms,
    slot::{LeaderSide, Slot},
    types::{Acks, Appended, DataError},
};

impl DataPlane {
    /// Appends the one batch that a producer sent for a partition. The batch has its place in the log when this returns, so callers that call in order are
    /// appended in order; the future ends when the batch is committed and applied. It may be dropped by who does not want to know.
    ///
    /// Committed means durable on a majority of the replicas. Where [`Acks::All`] meets a larger `min.insync.replicas`, the future waits for the other replicas
    /// too, without a limit of its own, as long as this broker leads: bound it by the request's timeout.
    ///
    /// # Errors
    /// Any [`DataError`]; the batch was then not appended, except for [`DataError::Stopped`] and [`DataError::NotLeader`], where nobody knows.
    pub fn produce(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        records: Bytes,
        acks: Acks,
    ) -> impl Future<Output = Result<Appended, DataError>> + Send + 'static + use<> {
        let started = self.start_append(topic, partition, &records, acks);
        async move {
            let Started { place, copies } = started?;
            let (appended, index) = match place {
                Place::Before(appended, index) => (appended, index),
                Place::Proposed {
                    answer,
                    log_append_time,
                } => match answer.await? {
                    DataResponse::Appended {
                        base_offset,
                        log_start,
                        index,
                        ..
                    } => (
                        Appended {
                            base_offset,
                            log_append_time,
                            log_start_offset: log_start,
                        },
                        index,
                    ),
                    other => return Err(unexpected(other)),
                },
            };
            if let Some((handle, copies)) = copies {
                handle.shard.replicated(index, copies).await?;
            }
            Ok(appended)
        }
    }

    fn start_append(
        &self,
        topic: TopicId,
        partition: PartitionIndex,
        records: &Bytes,
        acks: Acks,
    ) -> Result<Started, DataError> {
        if self.is_stopping() {
            return Err(DataError::Stopped);
        }
        let led = self.locate(topic, partition)?;
        let located = &led.at;
        let settings = &located.view.settings;
        let copies = match acks {
            Acks::All => extra_copies(&located.handle, settings.min_insync_replicas)?,
            Acks::None | Acks::Leader => None,
        };
        if located.handle.data.backlogged.load(Ordering::Acquire) {
            return Err(DataError::DiskFull);
        }
        let now = now_ms();
        let valid = validate(records, &settings.rules, now)?;
        let log_append_time = (settings.rules.timestamp_type == TimestampType::LogAppendTime)
            .then_some(valid.header.max_timestamp);
        let slot = located.slot();
        slot.set_rolling(located.handle.data.rolling(settings));

        let mut leader = slot.leader.lock();
        leader.enter(&slot, led.term)?;
        let producer = producer_of(&valid);
        if let Some(appended) = seen_before(&slot, producer.as_ref())? {
            // It was applied before now.
            let index = copies
                .as_ref()
                .map_or(0, |(handle, _)| handle.shard.status().applied);
            return Ok(Started {
                place: Place::Before(appended, index),
                copies,
            });
        }
        if !leader.created {
            let seen = self.catalog.version();
            let create = DataCommand::CreatePartition {
                key: located.key,
                seen,
            }
            .encode()?;
            leader.created = true;
            drop(self.propose(&led, &slot, &mut leader, create, Bytes::new()));
        }
        let append = Append {
            key: located.key,
            base_offset: leader.next,
            record_count: u32::try_from(valid.header.record_count).unwrap_or(0),
            leader_epoch: led.epoch(),
            max_timestamp: valid.header.max_timestamp,
            appended_at: now,
            producer,
        };
        let next = leader.next.checked_add(i64::from(append.record_count));
        let next =
            next.ok_or_else(|| DataError::Command("the partition has no more offsets".to_owned()))?;
        let sealer = leader.sealer(&led)?;
        let sealed = seal(&sealer, &valid, &append, records)?;
        let meta = DataCommand::Append(append).encode()?;
        leader.next = next;
        let answer = self.propose(&led, &slot, &mut leader, meta, sealed);
        Ok(Started {
            place: Place::Proposed {
                answer,
                log_append_time,
            },
            copies,
        })
    }

    fn propose(
        &self,
        led: &Led,
        slot: &Arc<Slot>,
        leader: &mut LeaderSide,
        meta: Vec<u8>,
        payload: Bytes,
    ) -> Answer {
        leader.in_flight = leader.in_flight.saturating_add(1);
        let proposal = led.at.handle.shard.propose(Command::new(meta, payload));
        Answer {
            proposal: Some(Box::pin(proposal)),
            slot: Arc::clone(slot),
            term: led.term,
            runtime: self.runtime.clone(),
        }
    }
}

struct Started {
    place: Place,
    /// How many replicas have to have it, when a majority is not enough.
    copies: Option<(Arc<ShardHandle>, usize)>,
}

enum Place {
    /// It was appended the first time it was sent, by a command at or before this index.
    Before(Appended, u64),
    Proposed {
        answer: Answer,
        log_append_time: Option<i64>,
    },
}

impl LeaderSide {
    /// Makes ready to promise offsets in `term`. Whatever was promised in an earlier one is void: all of it that was ever committed is applied by now, as
    /// leadership is announced after the first entry of the term.
    fn enter(&mut self, slot: &Slot, term: u64) -> Result<(), DataError> {
        if term < self.term {
            // Looked up before leadership was lost and won again.
            return Err(DataError::NotLeader);
        }
        let fresh = self.term != term;
        if !fresh && !self.broken {
            return Ok(());
        }
        if !fresh && self.in_flight > 0 {
            return Err(DataError::OutOfTurn);
        }
        let partition = slot.partition();
        self.next = partition
            .as_ref()
            .map_or(Offset::ZERO, |partition| partition.log.end_offset());
        self.created = partition.is_some();
        self.broken = false;
        if fresh {
            self.term = term;
            self.in_flight = 0;
            self.sealer = None;
        }
        Ok(())
    }

    /// The sealer of this session, under the newest version of the topic's key.
    fn sealer(&mut self, led: &Led) -> Result<Arc<Sealer>, DataError> {
        let keys = &led.at.view.keys;
        let newest = keys.latest();
        if let Some(sealer) = &self.sealer
            && Some(sealer.version()) == newest
        {
            return Ok(Arc::clone(sealer));
        }
        let sealer = keys
            .sealer()?
            .ok_or_else(|| DataError::Command("the topic has no key".to_owned()))?;
        Ok(Arc::clone(self.sealer.insert(Arc::new(sealer))))
    }
}

/// The answer to a proposal. Whether it is waited for or not, the leader's side of the partition hears of it.
struct Answer {
    proposal: Option<Proposal>,
    slot: Arc<Slot>,
    term: u64,
    runtime: tokio::runtime::Handle,
}

type Proposal = Pin<Box<dyn Future<Output = Result<DataResponse, ProposeError>> + Send>>;

impl Future for Answer {
    type Output = Result<DataResponse, DataError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.get_mut();
        let Some(proposal) = &mut answer.proposal else {
            return Poll::Ready(Err(DataError::Stopped));
        };
        let outcome = ready!(proposal.as_mut().poll(context));
        answer.proposal = None;
        settle(&answer.slot, answer.term, &outcome);
        Poll::Ready(match outcome {
            Ok(DataResponse::Refused(refusal)) => Err(refusal.into()),
            Ok(response) => Ok(response),
            Err(error) => Err(error.into()),
        })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(proposal) = self.proposal.take() {
            let (slot, term) = (Arc::clone(&self.slot), self.term);
            self.runtime
                .spawn(async move { settle(&slot, term, &proposal.await) });
        }
    }
}

/// Tells the leader's side how a proposal ended.
fn settle(slot: &Slot, term: u64, outcome: &Result<DataResponse, ProposeError>) {
    let used = matches!(
        outcome,
        Ok(DataResponse::Appended {
            duplicate: false,
            ..
        } | DataResponse::Start(_))
    );
    let mut leader = slot.leader.lock();
    if leader.term == term {
        leader.in_flight = leader.in_flight.saturating_sub(1);
        leader.broken |= !used;
    }
}

/// How many replicas must have a batch before it is answered, when that is more than the majority which commits it.
fn extra_copies(
    handle: &Arc<ShardHandle>,
    need: u32,
) -> Result<Option<(Arc<ShardHandle>, usize)>, DataError> {
    if need <= 1 {
        return Ok(None);
    }
    let voters = handle.shard.status().voters.len();
    let copies = usize::try_from(need).unwrap_or(usize::MAX);
    if copies > voters {
        return Err(DataError::NotEnoughReplicas {
            have: u32::try_from(voters).unwrap_or(u32::MAX),
            need,
        });
    }
    Ok((copies > voters / 2 + 1).then(|| (Arc::clone(handle), copies)))
}

fn producer_of(valid: &ValidBatch) -> Option<ProducerBatch> {
    let header = &valid.header;
    (header.producer_id >= 0).then(|| ProducerBatch {
        producer_id: header.producer_id,
        epoch: header.producer_epoch,
        base_sequence: header.base_sequence,
        record_count: u32::try_from(header.record_count).unwrap_or(0),
    })
}

/// Whether a batch was applied before, or its producer replaced: then it need not be given a place, which applying would leave empty.
fn seen_before(
    slot: &Slot,
    producer: Option<&ProducerBatch>,
) -> Result<Option<Appended>, DataError> {
    let (Some(batch), Some(partition)) = (producer, slot.partition()) else {
        return Ok(None);
    };
    match partition.replicated.lock().producers.check(batch) {
        Verdict::Duplicate(base_offset) => Ok(Some(Appended {
            base_offset,
            log_append_time: None,
            log_start_offset: partition.log.start_offset(),
        })),
        Verdict::Fenced { current } => Err(DataError::ProducerFenced {
            producer_id: batch.producer_id,
            epoch: batch.epoch,
            current,
        }),
        Verdict::OldDuplicate => Err(DataError::DuplicateSequence {
            producer_id: batch.producer_id,
            sequence: batch.base_sequence,
        }),
        // What is in flight may fill the gap: applying decides.
        Verdict::Next | Verdict::OutOfOrder { .. } => Ok(None),
    }
}

fn seal(
    sealer: &Sealer,
    valid: &ValidBatch,
    append: &Append,
    records: &[u8],
) -> Result<Bytes, DataError> {
    let head = valid.stamped(append.base_offset.0, append.leader_epoch.0);
    let aad = batch_aad(
        append.key.0,
        append.key.1,
        append.base_offset,
        append.leader_epoch,
    );
    let body = records.get(HEADER_LEN..).unwrap_or_default();
    Ok(Bytes::from(sealer.seal_parts(&aad, &[&head, body])?))
}

pub(super) fn unexpected(response: DataResponse) -> DataError {
    DataError::Command(format!("it was answered with {response:?}"))
}
