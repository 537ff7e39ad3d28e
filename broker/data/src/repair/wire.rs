//! One question, one answer: the head is a format byte and postcard, the payload is a chunk of [`crate::snapshot`]'s entries, all of partition 0.

use bytes::Bytes;
use palisade_log::{Offset, segment::Cleaned};
use palisade_shard::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::command::Key;

const FORMAT: u8 = 1;
/// Apart from the kinds of [`palisade_shard`], whose messages come on the same channel. A broker that does not know it refuses it.
const QUESTION: u8 = 0x40;
const ANSWER: u8 = 0xc0;
const REFUSAL: u8 = 0xc1;
/// A question is far smaller; a reason may be a sentence.
const MAX_HEAD: usize = 4096;

/// Whether a message on a shard's channel is a question of a repair.
pub(crate) fn is_question(kind: u8) -> bool {
    kind == QUESTION
}

/// What is asked for: batches of a partition from the one that holds `from`, up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) key: Key,
    /// Index of the command that made the partition: one that was made again under its key is another.
    pub(crate) created: u64,
    pub(crate) from: Offset,
    pub(crate) to: Offset,
}

/// Some of what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// How far the log was compacted that it comes from.
    pub(crate) cleaned: Cleaned,
    pub(crate) entries: Bytes,
}

impl Question {
    pub(crate) fn encode(&self) -> Message {
        Message {
            kind: QUESTION,
            head: encode(self),
            payload: Vec::new(),
        }
    }

    pub(crate) fn decode(message: &Message) -> Result<Self, String> {
        let question: Self = decode(&message.head)?;
        if question.from < Offset::ZERO || question.to <= question.from {
            return Err("it asks for nothing".to_owned());
        }
        Ok(question)
    }
}

impl Answer {
    /// An answer, or why there is none.
    pub(crate) fn encode(answer: Result<Self, String>) -> Message {
        match answer {
            Ok(answer) => Message {
                kind: ANSWER,
                head: encode(&answer.cleaned),
                payload: vec![answer.entries],
            },
            Err(reason) => Message {
                kind: REFUSAL,
                head: encode(&reason),
                payload: Vec::new(),
            },
        }
    }

    pub(crate) fn decode(message: Message) -> Result<Self, String> {
        match message.kind {
            ANSWER => Ok(Self {
                cleaned: decode(&message.head)?,
                entries: match <[Bytes; 1]>::try_from(message.payload) {
                    Ok([entries]) => entries,
                    Err(parts) => Bytes::from(parts.concat()),
                },
            }),
            REFUSAL => Err(decode(&message.head)?),
            kind => Err(format!("it answered with a message of kind {kind}")),
        }
    }
}

fn encode<T: Serialize>(value: &T) -> Bytes {
    // Encoding into memory has no way to fail; an empty head would be refused where it arrives.
    postcard::to_extend(value, vec![FORMAT])
        .unwrap_or_default()
        .into()
}

fn decode<T: DeserializeOwned>(head: &[u8]) -> Result<T, String> {
    if head.len() > MAX_HEAD {
        return Err(format!("its head has {} bytes", head.len()));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use palisade_log::{PartitionIndex, TopicId};
    use proptest::prelude::*;

    use super::*;

    fn question(from: i64, to: i64) -> Question {
        Question {
            key: (TopicId::random(), PartitionIndex(3)),
            created: 7,
            from: Offset(from),
            to: Offset(to),
        }
    }

    #[test]
    fn messages_read_back_equal() {
        let asked = question(5, 9);
        assert!(is_question(asked.encode().kind));
        assert_eq!(Question::decode(&asked.encode()).unwrap(), asked);
        let answer = || Answer {
            cleaned: Cleaned {
                until: Offset(4),
                tombstones: Offset(2),
            },
            entries: Bytes::from_static(b"entries"),
        };
        let encoded = Answer::encode(Ok(answer()));
        assert!(!is_question(encoded.kind));
        assert_eq!(Answer::decode(encoded).unwrap(), answer());
        let mut cut = Answer::encode(Ok(answer()));
        cut.payload = vec![Bytes::from_static(b"ent"), Bytes::from_static(b"ries")];
        assert_eq!(Answer::decode(cut).unwrap(), answer());
        let refused = Answer::encode(Err("not here".to_owned()));
        assert_eq!(Answer::decode(refused).unwrap_err(), "not here");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for nothing in [question(5, 5), question(6, 5), question(-1, 5)] {
            assert!(Question::decode(&nothing.encode()).is_err());
        }
        let other = Message {
            kind: 0x8f,
            ..Message::default()
        };
        assert!(Answer::decode(other).unwrap_err().contains("kind 143"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in any::<u8>(), head in prop::collection::vec(any::<u8>(), 0..80)) {
            let message = Message { kind, head: Bytes::from(head), payload: Vec::new() };
            drop(Question::decode(&message));
            drop(Answer::decode(message));
        }
    }
}
