//! How a shard's log looks in the write-ahead log.
//!
//! ```text
//! kind ENTRY      meta: version u8 = 1, term u64, variant u8 (0 blank, 1 command, 2 membership), rest
//!                 rest of a command: its meta; its payload is the record's. Rest of a membership: postcard.
//! kind CUT        meta: postcard of the index that is the last one left, or none. The record's own index is the last that was cut off, so it is released
//!                 together with the last of the entries that are void because of it.
//! kind VOTE       meta: postcard of VoteRecord        sticky
//! kind PURGED     meta: postcard of PurgedRecord      sticky
//! kind COMMITTED  meta: postcard of (term, index)     sticky
//! kind INSTALLING meta: postcard of PurgedRecord      sticky: a snapshot's place, written before the state machine is replaced by it
//! kind PROMISED   meta: postcard of (term, index)     sticky: where the log ended that a deleted replica had here
//! ```

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes};
use openraft::{Entry as RaftEntry, EntryPayload};
use palisade_log::{ShardId, WalRecord};
use serde::{Deserialize, Serialize};

use crate::{
    Command,
    raft_types::{Entry, LeaderId, LogId, Membership, StoredMembership, Vote, log_id},
};

pub(crate) const ENTRY: u8 = 1;
pub(crate) const CUT: u8 = 2;
pub(crate) const VOTE: u8 = WalRecord::STICKY;
pub(crate) const PURGED: u8 = WalRecord::STICKY + 1;
pub(crate) const COMMITTED: u8 = WalRecord::STICKY + 2;
pub(crate) const INSTALLING: u8 = WalRecord::STICKY + 3;
pub(crate) const PROMISED: u8 = WalRecord::STICKY + 4;

const VERSION: u8 = 1;
/// Bytes in front of a command's meta.
const ENTRY_HEADER: usize = 10;

#[derive(Serialize, Deserialize)]
struct VoteRecord {
    term: u64,
    voted_for: u64,
    committed: bool,
}

/// Where the log begins, and the membership at that place (its entry is gone).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purged {
    pub(crate) at: LogId,
    pub(crate) membership: StoredMembership,
}

#[derive(Serialize, Deserialize)]
struct PurgedRecord {
    at: (u64, u64),
    membership_at: Option<(u64, u64)>,
    membership: MembershipRecord,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MembershipRecord {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeSet<u64>,
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, ())| *id).collect(),
        }
    }
}

impl MembershipRecord {
    pub(crate) fn read(self) -> Result<Membership, String> {
        Membership::new(self.configs, self.nodes).map_err(|error| error.to_string())
    }
}

/// An entry's variant, what follows it, and its payload.
pub(crate) fn split_entry(entry: &Entry) -> (u8, Bytes, Bytes) {
    match &entry.payload {
        EntryPayload::Blank => (0, Bytes::new(), Bytes::new()),
        EntryPayload::Normal(command) => (1, command.meta.clone(), command.payload.clone()),
        EntryPayload::Membership(membership) => (
            2,
            encode(&MembershipRecord::from(membership)).into(),
            Bytes::new(),
        ),
    }
}

/// The opposite of [`split_entry`].
pub(crate) fn join_entry(
    id: LogId,
    variant: u8,
    rest: Bytes,
    payload: Bytes,
) -> Result<Entry, String> {
    let payload = match variant {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Command {
            meta: rest,
            payload,
        }),
        2 => EntryPayload::Membership(decode::<MembershipRecord>(&rest)?.read()?),
        other => return Err(format!("entry {} is of unknown variant {other}", id.index)),
    };
    Ok(RaftEntry {
        log_id: id,
        payload,
    })
}

pub(crate) fn entry_record(shard: ShardId, entry: &Entry) -> WalRecord {
    let (variant, rest, payload) = split_entry(entry);
    let mut meta = Vec::with_capacity(ENTRY_HEADER + rest.len());
    meta.put_u8(VERSION);
    meta.put_u64(entry.log_id.leader_id.term);
    meta.put_u8(variant);
    meta.extend_from_slice(&rest);
    WalRecord {
        shard,
        kind: ENTRY,
        index: entry.log_id.index,
        meta,
        payload,
    }
}

pub(crate) fn read_entry(record: WalRecord) -> Result<Entry, String> {
    let WalRecord {
        index,
        meta,
        payload,
        ..
    } = record;
    let meta = Bytes::from(meta);
    let Some((header, _)) = meta.split_first_chunk::<ENTRY_HEADER>() else {
        return Err(format!("entry {index} is shorter than its header"));
    };
    let [VERSION, term @ .., variant] = *header else {
        return Err(format!(
            "entry {index} has format {}, this version reads {VERSION}: run the version that wrote it",
            header[0]
        ));
    };
    let id = log_id(u64::from_be_bytes(term), index);
    join_entry(id, variant, meta.slice(ENTRY_HEADER..), payload)
}

/// The log was cut after `keep`; `last` was its last entry.
pub(crate) fn cut_record(shard: ShardId, keep: Option<u64>, last: u64) -> WalRecord {
    WalRecord {
        shard,
        kind: CUT,
        index: last,
        meta: encode(&keep),
        payload: Bytes::new(),
    }
}

pub(crate) fn read_cut(meta: &[u8]) -> Result<Option<u64>, String> {
    decode(meta)
}

pub(crate) fn vote_record(shard: ShardId, vote: &Vote) -> WalRecord {
    let record = VoteRecord {
        term: vote.leader_id.term,
        voted_for: vote.leader_id.voted_for,
        committed: vote.committed,
    };
    sticky(shard, VOTE, encode(&record))
}

pub(crate) fn read_vote(meta: &[u8]) -> Result<Vote, String> {
    let VoteRecord {
        term,
        voted_for,
        committed,
    } = decode(meta)?;
    Ok(Vote {
        leader_id: LeaderId { term, voted_for },
        committed,
    })
}

pub(crate) fn purged_record(shard: ShardId, purged: &Purged) -> WalRecord {
    place_record(shard, PURGED, purged)
}

pub(crate) fn installing_record(shard: ShardId, place: &Purged) -> WalRecord {
    place_record(shard, INSTALLING, place)
}

fn place_record(shard: ShardId, kind: u8, purged: &Purged) -> WalRecord {
    let record = PurgedRecord {
        at: parts(&purged.at),
        membership_at: purged.membership.log_id().as_ref().map(parts),
        membership: purged.membership.membership().into(),
    };
    sticky(shard, kind, encode(&record))
}

pub(crate) fn read_purged(meta: &[u8]) -> Result<Purged, String> {
    let record: PurgedRecord = decode(meta)?;
    let membership_at = record
        .membership_at
        .map(|(term, index)| log_id(term, index));
    Ok(Purged {
        at: log_id(record.at.0, record.at.1),
        membership: StoredMembership::new(membership_at, record.membership.read()?),
    })
}

pub(crate) fn committed_record(shard: ShardId, committed: &LogId) -> WalRecord {
    sticky(shard, COMMITTED, encode(&parts(committed)))
}

pub(crate) fn promised_record(shard: ShardId, last: &LogId) -> WalRecord {
    sticky(shard, PROMISED, encode(&parts(last)))
}

/// The place that a record of the kinds COMMITTED and PROMISED holds.
pub(crate) fn read_place(meta: &[u8]) -> Result<LogId, String> {
    let (term, index) = decode(meta)?;
    Ok(log_id(term, index))
}

fn parts(id: &LogId) -> (u64, u64) {
    (id.leader_id.term, id.index)
}

fn sticky(shard: ShardId, kind: u8, meta: Vec<u8>) -> WalRecord {
    WalRecord {
        shard,
        kind,
        index: 0,
        meta,
        payload: Bytes::new(),
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Encoding plain integers and sets into memory has no way to fail; an empty record would be refused when read.
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SHARD: ShardId = ShardId(3);

    #[test]
    fn entries_of_every_variant_read_back_equal() {
        let membership =
            Membership::new(vec![BTreeSet::from([1, 2])], BTreeSet::from([1, 2, 3])).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Command::new(&b"meta"[..], &b"payload"[..])),
            EntryPayload::Membership(membership),
        ] {
            let entry = RaftEntry {
                log_id: log_id(7, 42),
                payload,
            };
            let back = read_entry(entry_record(SHARD, &entry)).unwrap();
            assert_eq!(back.log_id, entry.log_id);
            assert!(back.payload == entry.payload);
        }
    }

    #[test]
    fn the_state_of_raft_reads_back_equal() {
        let vote = Vote {
            leader_id: LeaderId {
                term: 9,
                voted_for: 4,
            },
            committed: true,
        };
        assert_eq!(read_vote(&vote_record(SHARD, &vote).meta).unwrap(), vote);
        let membership = Membership::new(vec![BTreeSet::from([4])], BTreeSet::from([4])).unwrap();
        let purged = Purged {
            at: log_id(9, 100),
            membership: StoredMembership::new(Some(log_id(1, 1)), membership),
        };
        assert_eq!(
            read_purged(&purged_record(SHARD, &purged).meta).unwrap(),
            purged
        );
        assert_eq!(
            read_place(&committed_record(SHARD, &log_id(2, 3)).meta).unwrap(),
            log_id(2, 3)
        );
    }

    #[test]
    fn a_damaged_entry_is_refused_with_its_index() {
        let good = entry_record(
            SHARD,
            &RaftEntry {
                log_id: log_id(1, 5),
                payload: EntryPayload::Blank,
            },
        );
        let mut short = good.clone();
        short.meta.truncate(3);
        assert!(
            read_entry(short)
                .unwrap_err()
                .contains("entry 5 is shorter")
        );
        let mut newer = good.clone();
        newer.meta[0] = 2;
        assert!(read_entry(newer).unwrap_err().contains("format 2"));
        let mut odd = good;
        odd.meta[9] = 9;
        assert!(read_entry(odd).unwrap_err().contains("variant 9"));
    }
}
