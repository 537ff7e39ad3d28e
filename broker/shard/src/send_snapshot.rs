//! Sending a snapshot: its description, then what the receiver lacks, then the word to install it.

use std::{collections::VecDeque, future::Future, pin::pin, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::{alias::SnapshotOf, error::ReplicationClosed};

use crate::{
    Message, Snapshot, TransportError,
    network::{Failure, Peer, expect},
    raft_types::{Types, Vote},
    snapshot::SnapshotData,
    wire::{self, Part},
};

/// Most parts that are under way at once.
const MOST_PARTS: usize = 3;

type Call = BoxFuture<'static, Result<Message, TransportError>>;

impl<R: Send + Sync + 'static> Peer<R> {
    /// Sends a snapshot and has it installed; returns the vote that the receiver then knows. `cancel` ends it, and the receiver is told to forget it.
    pub(crate) async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<Types<R>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
    ) -> Result<Result<Vote, ReplicationClosed>, Failure> {
        let transfer = self.link.number(self.to);
        let sent = tokio::select! {
            biased;
            closed = pin!(cancel) => Ok(Err(closed)),
            sent = self.transfer(transfer, vote, snapshot) => sent.map(Ok),
        };
        if !matches!(sent, Ok(Ok(_))) {
            let bytes = Bytes::new();
            let end = Part {
                transfer,
                sequence: 0,
                bytes,
            };
            // If it does not arrive, the next transfer or time replaces what is there.
            drop(self.send(wire::part(wire::SNAPSHOT_ABANDON, end)));
        }
        sent
    }

    fn send(&self, message: Message) -> Call {
        self.link.transport.call(self.to, self.link.shard, message)
    }

    async fn transfer(
        &self,
        transfer: u64,
        vote: Vote,
        snapshot: SnapshotOf<Types<R>, SnapshotData>,
    ) -> Result<Vote, Failure> {
        let SnapshotOf::<Types<R>, SnapshotData> { meta, snapshot } = snapshot;
        let source = match snapshot {
            SnapshotData::Outgoing(source) => source,
            SnapshotData::Unavailable(error) => return Err(Failure::Refused(error.to_string())),
            SnapshotData::Place | SnapshotData::Received(_) => {
                return Err(Failure::Refused("this snapshot is only a place".to_owned()));
            }
        };
        let begin = wire::begin(transfer, &vote, &meta, source.description());
        let answer = self.send(begin).await?;
        if answer.kind == wire::OUTVOTED {
            return Ok(wire::read_with_vote(&answer)?);
        }
        let have = wire::read_have(expect(Ok(answer), wire::HAVE)?)?;
        let (mut sequence, mut bytes_sent) = (0_u64, 0_usize);
        let mut cursor = Some(0);
        let mut calls: VecDeque<Call> = VecDeque::new();
        loop {
            if let Some(at) = cursor
                && calls.len() < MOST_PARTS
            {
                match read_chunk(&source, &have, at).await? {
                    None => cursor = None,
                    Some((bytes, next)) => {
                        bytes_sent = bytes_sent.saturating_add(bytes.len());
                        let part = Part {
                            transfer,
                            sequence,
                            bytes,
                        };
                        calls.push_back(self.send(wire::part(wire::SNAPSHOT_PART, part)));
                        sequence = sequence.saturating_add(1);
                        cursor = Some(next);
                    }
                }
                continue;
            }
            match calls.pop_front() {
                Some(call) => expect(call.await, wire::TAKEN)?,
                None => break,
            };
        }
        let end = Part {
            transfer,
            sequence,
            bytes: Bytes::new(),
        };
        let answer = self
            .ask(wire::part(wire::SNAPSHOT_END, end), wire::INSTALLED)
            .await?;
        tracing::info!(shard = %self.link.shard, to = %self.to, parts = sequence, bytes = bytes_sent, "a snapshot was sent");
        Ok(wire::read_with_vote(&answer)?)
    }
}

/// Reads the next part on a thread that may wait for a disk.
async fn read_chunk(
    source: &Arc<dyn Snapshot>,
    have: &Bytes,
    cursor: u64,
) -> Result<Option<(Bytes, u64)>, Failure> {
    let (source, have) = (Arc::clone(source), have.clone());
    let read = crate::blocking(move || source.chunk(&have, cursor)).await;
    match read {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(Failure::Refused(format!("it cannot be read: {error}"))),
        Err(error) => Err(Failure::Refused(format!("reading it failed: {error}"))),
    }
}
