//! What brokers say to each other about the cluster, on a channel of its own: a kind, then postcard.

use std::collections::BTreeSet;

use bytes::Bytes;
use palisade_log::ShardId;
use palisade_metadata::{MetadataError, MetadataResponse};
use palisade_shard::{Message, NodeId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Election, LeaderTable, Quorum, removal::Holdings};

/// Format of what follows in the head; another one is refused, which a rolling upgrade has to avoid.
const FORMAT: u8 = 1;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
/// Longest message that is decoded; the largest is a change of the metadata.
const MAX_BYTES: usize = 16 << 20;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Which incarnation of the broker this is, and whether it belongs to a cluster.
    WhoAreYou,
    /// Who leads what, as far as the sender knows, and whether the sender can write nothing now or stops, so that it should lead nothing.
    Leaders(LeaderTable, bool),
    /// A change of the metadata, encoded, for the leader of shard 0.
    Change(Vec<u8>),
    /// Which of these shards count on this broker, and which have let go of it.
    Holdings(i32, BTreeSet<ShardId>),
    /// How far the replicas of shard 0 are, for its leader.
    Quorum,
    /// Have the preferred replica lead a shard, for its leader.
    GiveBack(ShardId),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// To [`Question::WhoAreYou`].
    IAm {
        /// The broker's node.
        node: NodeId,
        /// It has, or had, a place in shard 0.
        formed: bool,
        /// Who leads shard 0, as far as it knows.
        controller: Option<i32>,
    },
    /// To [`Question::Leaders`].
    Noted,
    /// To [`Question::Change`]: the response and the version of the metadata that has the change.
    Changed(Result<(MetadataResponse, u64), ChangeFailure>),
    /// To [`Question::Holdings`].
    Holds(Holdings),
    /// To [`Question::Quorum`]; nothing when the broker that was asked does not lead.
    Quorum(Option<Quorum>),
    /// To [`Question::GiveBack`].
    GaveBack(Election),
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ChangeFailure {
    /// The broker that was asked does not lead shard 0; nothing was done.
    NotController,
    /// The metadata refuse it.
    Refused(MetadataError),
    /// The disk is full.
    Full,
    /// Leadership was lost before it was known whether the change counts.
    Unanswered,
    /// A defect.
    Unexpected(String),
}

fn encode<T: Serialize>(kind: u8, value: &T) -> Message {
    // Encoding into memory has no way to fail; an empty message would be refused where it arrives.
    let head = postcard::to_extend(value, vec![FORMAT]).unwrap_or_default();
    Message {
        kind,
        head: head.into(),
        payload: Vec::new(),
    }
}

fn decode<T: DeserializeOwned>(kind: u8, message: &Message) -> Result<T, String> {
    if message.kind != kind {
        return Err(format!("its kind is {}", message.kind));
    }
    let head: &Bytes = &message.head;
    if head.len() > MAX_BYTES {
        return Err(format!("it has {} bytes", head.len()));
    }
    match head.split_first() {
        Some((&FORMAT, body)) => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(format!("{} bytes follow its end", rest.len())),
            Err(error) => Err(error.to_string()),
        },
        Some((format, _)) => Err(format!("its format is {format}")),
        None => Err("it is empty".to_owned()),
    }
}

impl Question {
    pub(crate) fn encode(&self) -> Message {
        encode(QUESTION, self)
    }

    pub(crate) fn decode(message: &Message) -> Result<Self, String> {
        decode(QUESTION, message)
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Message {
        encode(ANSWER, self)
    }

    pub(crate) fn decode(message: &Message) -> Result<Self, String> {
        decode(ANSWER, message)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_read_back_equal() {
        let mut table = LeaderTable::default();
        table.note(ShardId(2), 7, Some(NodeId::of(1, 9)));
        for question in [
            Question::WhoAreYou,
            Question::Leaders(table, true),
            Question::Change(vec![1, 2, 3]),
            Question::Holdings(3, [ShardId(0), ShardId(4)].into()),
            Question::Quorum,
            Question::GiveBack(ShardId(4)),
        ] {
            assert_eq!(Question::decode(&question.encode()).unwrap(), question);
        }
        for answer in [
            Answer::Noted,
            Answer::IAm {
                node: NodeId::of(2, 1),
                formed: true,
                controller: Some(0),
            },
            Answer::Changed(Ok((MetadataResponse::Done, 12))),
            Answer::Holds(Holdings {
                released: [ShardId(0)].into(),
                held: [ShardId(4)].into(),
            }),
            Answer::Quorum(None),
            Answer::Quorum(Some(Quorum {
                leader: NodeId::of(1, 9),
                term: 3,
                last_index: 8,
                committed: 7,
                voters: [NodeId::of(1, 9)].into(),
                learners: [NodeId::of(2, 1)].into(),
                matched: [(NodeId::of(1, 9), 8)].into(),
            })),
            Answer::GaveBack(Election::Unavailable("away".to_owned())),
            Answer::Changed(Err(ChangeFailure::Refused(MetadataError::TopicExists(
                "t".to_owned(),
            )))),
        ] {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
    }

    fn head(kind: u8, bytes: Vec<u8>) -> Message {
        Message {
            kind,
            head: bytes.into(),
            payload: Vec::new(),
        }
    }

    /// Beginnings of messages that are well-formed, so that what follows is reached.
    fn well_formed() -> impl Strategy<Value = Vec<u8>> {
        let mut table = LeaderTable::default();
        for shard in 0..40 {
            table.note(ShardId(shard), 7, Some(NodeId::of(1, 9)));
        }
        let held = Holdings {
            released: (0..9).map(ShardId).collect(),
            held: (9..40).map(ShardId).collect(),
        };
        let messages = [
            Question::Leaders(table, true).encode(),
            Question::Change(vec![7; 300]).encode(),
            Question::Holdings(3, (0..40).map(ShardId).collect()).encode(),
            Answer::Holds(held).encode(),
            Answer::GaveBack(Election::Unavailable("away".to_owned())).encode(),
            Answer::Changed(Err(ChangeFailure::Unexpected("why".to_owned()))).encode(),
        ];
        prop::sample::select(messages.map(|message| message.head.to_vec()).to_vec())
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_message_or_refused(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                well_formed(),
            ],
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            for (at, byte) in damage {
                let at = at.index(bytes.len().max(1));
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            if let Ok(question) = Question::decode(&head(QUESTION, bytes.clone())) {
                prop_assert_eq!(Question::decode(&question.encode()), Ok(question));
            }
            if let Ok(answer) = Answer::decode(&head(ANSWER, bytes)) {
                prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = Question::WhoAreYou.encode();
        assert!(Answer::decode(&good).unwrap_err().contains("kind"));
        let with = |head: &'static [u8]| Message {
            kind: QUESTION,
            head: Bytes::from_static(head),
            payload: Vec::new(),
        };
        assert!(Question::decode(&with(b"")).unwrap_err().contains("empty"));
        assert!(
            Question::decode(&with(&[9, 0]))
                .unwrap_err()
                .contains("format is 9")
        );
        assert!(Question::decode(&with(&[1, 77])).is_err());
        assert!(
            Question::decode(&with(&[1, 0, 5]))
                .unwrap_err()
                .contains("follow")
        );
    }
}
