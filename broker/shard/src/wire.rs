//! What replicas of a shard tell each other, as bytes.
//!
//! A message's head begins with a version and has everything but bulk; integers are big-endian. The payload is bulk: entries' payloads one after the other, as
//! they are, a snapshot's description, what a receiver has, or a part of a snapshot.
//!
//! ```text
//! vote      term u64, node u64, committed u8
//! log id    term u64, index u64; an optional one is preceded by a u8, 0 or 1
//! APPEND    session u64, vote, optional previous log id, optional committed log id, count u32, then for each entry
//!           term u64, variant u8, length of the rest u32, length of the payload u32, rest
//! ```
//!
//! Nothing that is read allocates more than a small multiple of what was received, and nothing panics.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};

use crate::{
    Message,
    codec::{self, MembershipRecord},
    raft_types::{LeaderId, LogId, Place, StoredMembership, Types, Vote, log_id},
};

const VERSION: u8 = 1;

pub(crate) const APPEND: u8 = 1;
pub(crate) const HEARTBEAT: u8 = 2;
pub(crate) const VOTE: u8 = 3;
pub(crate) const PRE_VOTE: u8 = 4;
pub(crate) const TRANSFER: u8 = 5;
pub(crate) const SNAPSHOT_BEGIN: u8 = 6;
pub(crate) const SNAPSHOT_PART: u8 = 7;
pub(crate) const SNAPSHOT_END: u8 = 8;
pub(crate) const SNAPSHOT_ABANDON: u8 = 9;

pub(crate) const APPENDED: u8 = 0x81;
pub(crate) const VOTED: u8 = 0x83;
pub(crate) const TRANSFERRED: u8 = 0x85;
pub(crate) const HAVE: u8 = 0x86;
pub(crate) const TAKEN: u8 = 0x87;
pub(crate) const INSTALLED: u8 = 0x88;
/// The snapshot's sender is not the leader any more; has the vote that is known instead.
pub(crate) const OUTVOTED: u8 = 0x8e;
/// The message could not be dealt with; has the reason as text.
pub(crate) const REFUSED: u8 = 0x8f;

/// Whether a message of this kind carries a snapshot or has one installed: its answer may take as long as writing that much does.
#[must_use]
pub const fn is_snapshot(kind: u8) -> bool {
    matches!(kind, SNAPSHOT_BEGIN | SNAPSHOT_PART | SNAPSHOT_END)
}

/// A message that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of a replica makes no sense: {0}")]
pub(crate) struct Malformed(pub(crate) String);

impl From<&'static str> for Malformed {
    fn from(reason: &'static str) -> Self {
        Self(reason.to_owned())
    }
}

/// What a follower answers to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It has the log up to here durably.
    Through(Option<LogId>),
    /// It does not have this entry.
    Conflict(LogId),
    /// It knows a newer leader or candidate.
    HigherVote(Vote),
}

/// The beginning of a snapshot.
pub(crate) struct Begin {
    pub(crate) transfer: u64,
    pub(crate) vote: Vote,
    pub(crate) place: Place,
    pub(crate) description: Bytes,
}

/// A part of a snapshot, or (with nothing in it) its end.
pub(crate) struct Part {
    pub(crate) transfer: u64,
    pub(crate) sequence: u64,
    pub(crate) bytes: Bytes,
}

// Writing.

struct Writer(BytesMut);

impl Writer {
    fn new(capacity: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(capacity.saturating_add(1));
        bytes.put_u8(VERSION);
        Self(bytes)
    }

    fn vote(mut self, vote: &Vote) -> Self {
        self.0.put_u64(vote.leader_id.term);
        self.0.put_u64(vote.leader_id.voted_for);
        self.0.put_u8(u8::from(vote.committed));
        self
    }

    fn log_id(mut self, id: &LogId) -> Self {
        self.0.put_u64(id.leader_id.term);
        self.0.put_u64(id.index);
        self
    }

    fn optional(mut self, id: Option<&LogId>) -> Self {
        self.0.put_u8(u8::from(id.is_some()));
        match id {
            Some(id) => self.log_id(id),
            None => self,
        }
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.put_u64(value);
        self
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.put_u8(value);
        self
    }

    fn message(self, kind: u8, payload: Vec<Bytes>) -> Message {
        Message {
            kind,
            head: self.0.freeze(),
            payload,
        }
    }
}

/// A length that fits, because no part of an entry is larger than a record of the write-ahead log.
fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

pub(crate) fn append<R: Send + Sync + 'static>(
    kind: u8,
    session: u64,
    request: &AppendEntriesRequest<Types<R>>,
) -> Message {
    let Writer(mut head) = Writer::new(64 + request.entries.len().saturating_mul(48))
        .u64(session)
        .vote(&request.vote)
        .optional(request.prev_log_id.as_ref())
        .optional(request.leader_commit.as_ref());
    head.put_u32(u32::try_from(request.entries.len()).unwrap_or(u32::MAX));
    let mut payload = Vec::with_capacity(request.entries.len());
    for entry in &request.entries {
        let (variant, rest, bulk) = codec::split_entry(entry);
        head.put_u64(entry.log_id.leader_id.term);
        head.put_u8(variant);
        head.put_u32(length(&rest));
        head.put_u32(length(&bulk));
        head.extend_from_slice(&rest);
        if !bulk.is_empty() {
            payload.push(bulk);
        }
    }
    Writer(head).message(kind, payload)
}

pub(crate) fn appended(answer: &Appended) -> Message {
    let head = Writer::new(20);
    match answer {
        Appended::Through(id) => head.u8(0).optional(id.as_ref()),
        Appended::Conflict(id) => head.u8(1).log_id(id),
        Appended::HigherVote(vote) => head.u8(2).vote(vote),
    }
    .message(APPENDED, Vec::new())
}

pub(crate) fn vote<R: Send + Sync + 'static>(kind: u8, request: &VoteRequest<Types<R>>) -> Message {
    Writer::new(40)
        .vote(&request.vote)
        .optional(request.last_log_id.as_ref())
        .u8(u8::from(request.leadership_transfer))
        .message(kind, Vec::new())
}

pub(crate) fn voted<R: Send + Sync + 'static>(answer: &VoteResponse<Types<R>>) -> Message {
    Writer::new(40)
        .vote(&answer.vote)
        .u8(u8::from(answer.vote_granted))
        .optional(answer.last_log_id.as_ref())
        .message(VOTED, Vec::new())
}

pub(crate) fn transfer<R: Send + Sync + 'static>(
    request: &TransferLeaderRequest<Types<R>>,
) -> Message {
    Writer::new(48)
        .vote(request.from_leader())
        .u64(*request.to_node_id())
        .optional(request.last_log_id())
        .message(TRANSFER, Vec::new())
}

pub(crate) fn begin(transfer: u64, vote: &Vote, place: &Place, description: Bytes) -> Message {
    let membership = codec::encode(&MembershipRecord::from(place.last_membership.membership()));
    let Writer(mut head) = Writer::new(80 + membership.len())
        .u64(transfer)
        .vote(vote)
        .optional(place.last_log_id.as_ref())
        .optional(place.last_membership.log_id().as_ref());
    head.extend_from_slice(&membership);
    Writer(head).message(SNAPSHOT_BEGIN, vec![description])
}

pub(crate) fn part(kind: u8, part: Part) -> Message {
    Writer::new(16)
        .u64(part.transfer)
        .u64(part.sequence)
        .message(kind, vec![part.bytes])
}

pub(crate) fn have(bytes: Bytes) -> Message {
    Writer::new(0).message(HAVE, vec![bytes])
}

/// An answer that says no more than that.
pub(crate) fn plain(kind: u8) -> Message {
    Writer::new(0).message(kind, Vec::new())
}

/// An answer with a vote: [`INSTALLED`] or [`OUTVOTED`].
pub(crate) fn with_vote(kind: u8, vote: &Vote) -> Message {
    Writer::new(17).vote(vote).message(kind, Vec::new())
}

pub(crate) fn refused(reason: &str) -> Message {
    let Writer(mut head) = Writer::new(reason.len());
    head.extend_from_slice(reason.as_bytes());
    Writer(head).message(REFUSED, Vec::new())
}

// Reading.

struct Reader(Bytes);

impl Reader {
    fn open(message: &Message) -> Result<Self, Malformed> {
        let mut this = Self(message.head.clone());
        match this.u8()? {
            VERSION => Ok(this),
            other => Err(Malformed(format!(
                "it has format {other}, this version reads {VERSION}"
            ))),
        }
    }

    fn take(&mut self, count: usize) -> Result<Bytes, Malformed> {
        if count > self.0.len() {
            return Err("it ends too early".into());
        }
        Ok(self.0.split_to(count))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N)?;
        bytes
            .first_chunk()
            .copied()
            .ok_or_else(|| "it ends too early".into())
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1".into()),
        }
    }

    fn vote(&mut self) -> Result<Vote, Malformed> {
        Ok(Vote {
            leader_id: LeaderId {
                term: self.u64()?,
                voted_for: self.u64()?,
            },
            committed: self.flag()?,
        })
    }

    /// An index is never the last there could be, so that the next one is always an index too.
    fn log_id(&mut self) -> Result<LogId, Malformed> {
        match (self.u64()?, self.u64()?) {
            (_, u64::MAX) => Err("an index is too large".into()),
            (term, index) => Ok(log_id(term, index)),
        }
    }

    fn optional(&mut self) -> Result<Option<LogId>, Malformed> {
        match self.flag()? {
            true => self.log_id().map(Some),
            false => Ok(None),
        }
    }

    fn end<T>(self, value: T) -> Result<T, Malformed> {
        match self.0.is_empty() {
            true => Ok(value),
            false => Err("it is longer than what it says".into()),
        }
    }
}

/// Bulk that may have been cut anywhere on the way.
struct Bulk {
    parts: std::vec::IntoIter<Bytes>,
    current: Bytes,
    left: usize,
}

impl Bulk {
    fn new(parts: Vec<Bytes>) -> Self {
        Self {
            left: parts
                .iter()
                .fold(0, |sum: usize, part| sum.saturating_add(part.len())),
            parts: parts.into_iter(),
            current: Bytes::new(),
        }
    }

    /// The next `count` bytes, without a copy when they are in one part.
    fn take(&mut self, count: usize) -> Result<Bytes, Malformed> {
        if count > self.left {
            return Err("its payload is too short".into());
        }
        self.left -= count;
        if self.current.is_empty() && count > 0 {
            self.current = self.parts.find(|part| !part.is_empty()).unwrap_or_default();
        }
        if count <= self.current.len() {
            return Ok(self.current.split_to(count));
        }
        let mut joined = BytesMut::with_capacity(count);
        while joined.len() < count {
            if self.current.is_empty() {
                self.current = self.parts.next().ok_or("its payload is too short")?;
            }
            let wanted = (count - joined.len()).min(self.current.len());
            joined.extend_from_slice(&self.current.split_to(wanted));
        }
        Ok(joined.freeze())
    }

    fn rest(mut self) -> Result<Bytes, Malformed> {
        self.take(self.left)
    }
}

/// The session and the request. Its entries follow its previous log id and belong to no later term than the vote's.
pub(crate) fn read_append<R: Send + Sync + 'static>(
    message: Message,
) -> Result<(u64, AppendEntriesRequest<Types<R>>), Malformed> {
    let mut head = Reader::open(&message)?;
    let mut bulk = Bulk::new(message.payload);
    let session = head.u64()?;
    let vote = head.vote()?;
    let prev_log_id = head.optional()?;
    let leader_commit = head.optional()?;
    let count = head.u32()?;
    let mut last = prev_log_id;
    let mut entries = Vec::new();
    for _ in 0..count {
        let term = head.u64()?;
        let variant = head.u8()?;
        let (rest, payload) = (head.u32()?, head.u32()?);
        let rest = head.take(rest as usize)?;
        let payload = bulk.take(payload as usize)?;
        let index = last.map_or(0, |id| id.index.saturating_add(1));
        if last.is_some_and(|id| id.leader_id.term > term) || term > vote.leader_id.term {
            return Err("its entries are of terms that cannot follow each other".into());
        }
        let id = log_id(term, index);
        entries.push(codec::join_entry(id, variant, rest, payload).map_err(Malformed)?);
        last = Some(id);
    }
    if bulk.left > 0 {
        return Err("its payload is longer than its entries".into());
    }
    if !vote.committed {
        return Err("it comes from nobody who was elected".into());
    }
    head.end((
        session,
        AppendEntriesRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit,
        },
    ))
}

pub(crate) fn read_appended(message: &Message) -> Result<Appended, Malformed> {
    let mut head = Reader::open(message)?;
    let answer = match head.u8()? {
        0 => Appended::Through(head.optional()?),
        1 => Appended::Conflict(head.log_id()?),
        2 => Appended::HigherVote(head.vote()?),
        _ => return Err("it is no answer to an append".into()),
    };
    head.end(answer)
}

pub(crate) fn read_vote<R: Send + Sync + 'static>(
    message: &Message,
) -> Result<VoteRequest<Types<R>>, Malformed> {
    let mut head = Reader::open(message)?;
    let vote = head.vote()?;
    let mut request = VoteRequest::new(vote, head.optional()?);
    request.leadership_transfer = head.flag()?;
    if vote.committed {
        return Err("it asks for a vote that was given already".into());
    }
    head.end(request)
}

pub(crate) fn read_voted<R: Send + Sync + 'static>(
    message: &Message,
) -> Result<VoteResponse<Types<R>>, Malformed> {
    let mut head = Reader::open(message)?;
    let vote = head.vote()?;
    let granted = head.flag()?;
    let last = head.optional()?;
    head.end(VoteResponse::new(vote, last, granted))
}

pub(crate) fn read_transfer<R: Send + Sync + 'static>(
    message: &Message,
) -> Result<TransferLeaderRequest<Types<R>>, Malformed> {
    let mut head = Reader::open(message)?;
    let request = TransferLeaderRequest::new(head.vote()?, head.u64()?, head.optional()?);
    head.end(request)
}

/// The beginning of a snapshot; its place is of no later term than the vote's.
pub(crate) fn read_begin(message: Message) -> Result<Begin, Malformed> {
    let mut head = Reader::open(&message)?;
    let transfer = head.u64()?;
    let vote = head.vote()?;
    let last = head.optional()?;
    let membership_at = head.optional()?;
    let membership: MembershipRecord = codec::decode(&head.0).map_err(Malformed)?;
    let at = last.ok_or("it is a snapshot of nothing")?;
    if at.leader_id.term > vote.leader_id.term || membership_at > last || !vote.committed {
        return Err("its place cannot be known to its sender".into());
    }
    let membership = membership.read().map_err(Malformed)?;
    Ok(Begin {
        transfer,
        vote,
        place: Place {
            last_log_id: last,
            last_membership: StoredMembership::new(membership_at, membership),
        },
        description: Bulk::new(message.payload).rest()?,
    })
}

pub(crate) fn read_part(message: Message) -> Result<Part, Malformed> {
    let mut head = Reader::open(&message)?;
    let (transfer, sequence) = (head.u64()?, head.u64()?);
    let bytes = Bulk::new(message.payload).rest()?;
    head.end(Part {
        transfer,
        sequence,
        bytes,
    })
}

pub(crate) fn read_have(message: Message) -> Result<Bytes, Malformed> {
    Bulk::new(message.payload).rest()
}

pub(crate) fn read_with_vote(message: &Message) -> Result<Vote, Malformed> {
    let mut head = Reader::open(message)?;
    let vote = head.vote()?;
    head.end(vote)
}

/// The reason in a [`REFUSED`], shortened: it comes from elsewhere and goes to the log.
pub(crate) fn read_refused(message: &Message) -> String {
    let text = message.head.get(1..).unwrap_or_default();
    String::from_utf8_lossy(text.get(..200).unwrap_or(text)).into_owned()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
