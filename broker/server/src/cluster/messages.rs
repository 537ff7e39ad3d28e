//! What brokers ask of each other on the cluster's channel, and the answers.
//!
//! The kind of a message says what is in its head: postcard, and nothing after it. Fields and variants are added under new kinds, so that brokers of two versions
//! understand each other or know that they do not.

use std::{fmt, time::Duration};

use bytes::Bytes;
use palisade_metadata::{BrokerEndpoint, MAX_COMMAND_BYTES, MetadataError, MetadataResponse};
use palisade_shard::{LogPosition, Message, NodeId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::gossip::{self, LeaderUpdate};

const WHO_ARE_YOU: u8 = 1;
const LEADERS: u8 = 2;
const CHANGE: u8 = 3;
const REGISTER: u8 = 4;
const IDENTITY: u8 = 129;
const HEARD: u8 = 130;
const CHANGED: u8 = 131;
const REGISTERED: u8 = 132;

/// Longest head that is read: a command of the greatest length, and as much again for answers that list what was removed.
pub(crate) const MAX_HEAD_BYTES: usize = 2 * MAX_COMMAND_BYTES;

/// Why a message is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// A kind that this version does not know.
    #[error("a message of kind {0} is not known: the broker that sent it has another version")]
    Kind(u8),
    /// A format that this version does not know.
    #[error("a message of format {0} is not known: the broker that sent it has another version")]
    Format(u8),
    /// More than is sent.
    #[error("a message is too large: {0}")]
    TooLarge(usize),
    /// Not what its kind says.
    #[error("a message is malformed: {0}")]
    Malformed(String),
}

/// What a broker asks of another.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Who is there, and is there a cluster? Asked of seeds.
    WhoAreYou,
    /// Who leads what, as far as it is new or the connection is.
    Leaders(Vec<LeaderUpdate>),
    /// Propose a change of the metadata, if you lead them.
    Change(Change),
    /// Register me, if you lead the metadata; I follow them from then on.
    Register(Registration),
}

/// A change of the metadata that another broker was asked for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// The command, encoded by the broker that admitted it.
    pub(crate) command: Bytes,
    /// For how long its answer is of use, counted from its arrival: clocks differ.
    pub(crate) patience_ms: u32,
}

impl Change {
    pub(crate) fn new(command: impl Into<Bytes>, patience: Duration) -> Self {
        Self {
            command: command.into(),
            patience_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.into())
    }
}

/// A broker that wants to be in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registration {
    pub(crate) id: i32,
    /// Of its data directory.
    pub(crate) incarnation: Uuid,
    pub(crate) rack: Option<String>,
    pub(crate) endpoints: Vec<BrokerEndpoint>,
}

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To [`Request::WhoAreYou`].
    Identity(Identity),
    /// To [`Request::Leaders`].
    Heard,
    /// To [`Request::Change`].
    Changed(Result<Changed, ChangeFailure>),
    /// To [`Request::Register`].
    Registered(Result<Registered, ChangeFailure>),
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    /// It has a log or a state of the metadata: there is a cluster, which nobody may form again.
    pub(crate) formed: bool,
    /// The broker that leads the metadata, as far as it knows.
    pub(crate) controller: Option<i32>,
}

/// A change that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) response: MetadataResponse,
    /// Whoever has applied the metadata up to here sees it.
    pub(crate) at: LogPosition,
}

/// A broker that is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Older ones are fenced.
    pub(crate) epoch: u64,
    /// Whoever has applied the metadata up to here sees it.
    pub(crate) at: LogPosition,
}

/// Why a change did not happen, or is not known to have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum ChangeFailure {
    /// The metadata refuse it.
    #[error(transparent)]
    Refused(MetadataError),
    /// It was not proposed: this broker does not lead the metadata.
    #[error("this broker does not lead the metadata")]
    NotController {
        /// Who does, as far as it knows.
        controller: Option<i32>,
    },
    /// It was not proposed: too much is waiting already.
    #[error("too many changes of the metadata are waiting")]
    Busy,
    /// It was not proposed: the disk is full.
    #[error("the disk of the write-ahead log is full; nothing can be changed until space is freed")]
    Full,
    /// It was proposed and may still happen.
    #[error("the change was not committed in time; it may still happen")]
    Unknown,
    /// A defect, or a message of another version.
    #[error("{0}")]
    Unexpected(String),
}

type Position = (u64, u64);

const fn position((term, index): Position) -> LogPosition {
    LogPosition { term, index }
}

impl Request {
    /// As it is sent.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`].
    pub(crate) fn into_message(self) -> Result<Message, MessageError> {
        match self {
            Self::WhoAreYou => message(WHO_ARE_YOU, &()),
            Self::Leaders(updates) => Ok(Message {
                kind: LEADERS,
                head: gossip::encode(&updates)?.into(),
                payload: Vec::new(),
            }),
            Self::Change(change) => message(CHANGE, &change),
            Self::Register(registration) => message(REGISTER, &registration),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`MessageError`] with what is wrong.
    pub(crate) fn read(message: &Message) -> Result<Self, MessageError> {
        let head = head(message)?;
        match message.kind {
            WHO_ARE_YOU => read(head).map(|()| Self::WhoAreYou),
            LEADERS => gossip::decode(head).map(Self::Leaders),
            CHANGE => read(head).map(Self::Change),
            REGISTER => read(head).map(Self::Register),
            kind => Err(MessageError::Kind(kind)),
        }
    }
}

impl Answer {
    /// As it is sent.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`].
    pub(crate) fn into_message(self) -> Result<Message, MessageError> {
        match self {
            Self::Identity(identity) => message(IDENTITY, &identity),
            Self::Heard => message(HEARD, &()),
            Self::Changed(outcome) => {
                let outcome =
                    outcome.map(|changed| (changed.response, (changed.at.term, changed.at.index)));
                message(CHANGED, &outcome)
            }
            Self::Registered(outcome) => {
                let outcome = outcome.map(|registered| {
                    (registered.epoch, (registered.at.term, registered.at.index))
                });
                message(REGISTERED, &outcome)
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`MessageError`] with what is wrong.
    pub(crate) fn read(message: &Message) -> Result<Self, MessageError> {
        let head = head(message)?;
        match message.kind {
            IDENTITY => read(head).map(Self::Identity),
            HEARD => read(head).map(|()| Self::Heard),
            CHANGED => {
                let outcome: Result<(MetadataResponse, Position), ChangeFailure> = read(head)?;
                Ok(Self::Changed(outcome.map(|(response, at)| Changed {
                    response,
                    at: position(at),
                })))
            }
            REGISTERED => {
                let outcome: Result<(u64, Position), ChangeFailure> = read(head)?;
                Ok(Self::Registered(outcome.map(|(epoch, at)| Registered {
                    epoch,
                    at: position(at),
                })))
            }
            kind => Err(MessageError::Kind(kind)),
        }
    }
}

/// A command may carry a credential: its size only.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WhoAreYou => f.write_str("WhoAreYou"),
            Self::Leaders(updates) => f.debug_tuple("Leaders").field(updates).finish(),
            Self::Change(change) => f.debug_tuple("Change").field(change).finish(),
            Self::Register(registration) => f.debug_tuple("Register").field(registration).finish(),
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("bytes", &self.command.len())
            .field("patience_ms", &self.patience_ms)
            .finish()
    }
}

fn message(kind: u8, content: &impl Serialize) -> Result<Message, MessageError> {
    let head =
        postcard::to_stdvec(content).map_err(|error| MessageError::Malformed(error.to_string()))?;
    if head.len() > MAX_HEAD_BYTES {
        return Err(MessageError::TooLarge(head.len()));
    }
    Ok(Message {
        kind,
        head: head.into(),
        payload: Vec::new(),
    })
}

fn head(message: &Message) -> Result<&[u8], MessageError> {
    if message.head.len() > MAX_HEAD_BYTES {
        return Err(MessageError::TooLarge(message.head.len()));
    }
    if message.payload.iter().any(|part| !part.is_empty()) {
        return Err(MessageError::Malformed("it has a payload".to_owned()));
    }
    Ok(&message.head)
}

/// Reads postcard to its last byte.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    match postcard::take_from_bytes(bytes) {
        Ok((content, [])) => Ok(content),
        Ok((_, rest)) => Err(MessageError::Malformed(format!(
            "{} bytes follow its end",
            rest.len()
        ))),
        Err(error) => Err(MessageError::Malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use palisade_log::ShardId;
    use proptest::prelude::*;

    use super::*;

    fn requests() -> Vec<Request> {
        vec![
            Request::WhoAreYou,
            Request::Leaders(vec![LeaderUpdate {
                shard: ShardId(3),
                term: 9,
                leader: Some(NodeId::of(1, 7)),
            }]),
            Request::Change(Change::new(vec![1, 2, 3], Duration::from_secs(30))),
            Request::Register(Registration {
                id: 4,
                incarnation: Uuid::from_u128(5),
                rack: Some("r1".to_owned()),
                endpoints: vec![BrokerEndpoint {
                    listener: "CONTROL".to_owned(),
                    host: "b4".to_owned(),
                    port: 9090,
                }],
            }),
        ]
    }

    fn answers() -> Vec<Answer> {
        let at = LogPosition { term: 3, index: 99 };
        let failures = [
            ChangeFailure::Refused(MetadataError::UnknownBroker(7)),
            ChangeFailure::NotController {
                controller: Some(2),
            },
            ChangeFailure::Busy,
            ChangeFailure::Full,
            ChangeFailure::Unknown,
            ChangeFailure::Unexpected("odd".to_owned()),
        ];
        let mut answers = vec![
            Answer::Identity(Identity {
                node: NodeId::of(2, 7),
                formed: true,
                controller: None,
            }),
            Answer::Heard,
            Answer::Changed(Ok(Changed {
                response: MetadataResponse::Done,
                at,
            })),
            Answer::Registered(Ok(Registered { epoch: 5, at })),
        ];
        answers.extend(
            failures
                .iter()
                .cloned()
                .map(|failure| Answer::Changed(Err(failure))),
        );
        answers.extend(
            failures
                .into_iter()
                .map(|failure| Answer::Registered(Err(failure))),
        );
        answers
    }

    #[test]
    fn requests_and_answers_read_back_equal_and_are_not_taken_for_each_other() {
        for request in requests() {
            let message = request.clone().into_message().unwrap();
            assert_eq!(Request::read(&message), Ok(request));
            assert_eq!(
                Answer::read(&message),
                Err(MessageError::Kind(message.kind))
            );
        }
        for answer in answers() {
            let message = answer.clone().into_message().unwrap();
            assert_eq!(Answer::read(&message), Ok(answer));
            assert_eq!(
                Request::read(&message),
                Err(MessageError::Kind(message.kind))
            );
        }
    }

    #[test]
    fn every_shortened_or_lengthened_message_is_refused() {
        let messages = requests()
            .into_iter()
            .map(|request| request.into_message().unwrap());
        let messages = messages.chain(
            answers()
                .into_iter()
                .map(|answer| answer.into_message().unwrap()),
        );
        for message in messages {
            let other = |head: Bytes| Message {
                kind: message.kind,
                head,
                payload: Vec::new(),
            };
            let refused = |message: &Message| {
                Request::read(message).is_err() && Answer::read(message).is_err()
            };
            for length in 0..message.head.len() {
                assert!(
                    refused(&other(message.head.slice(..length))),
                    "{message:?} cut at {length}"
                );
            }
            assert!(refused(&other([&message.head[..], &[0]].concat().into())));
            let mut with_payload = message.clone();
            with_payload.payload.push(Bytes::from_static(b"x"));
            assert!(refused(&with_payload));
        }
    }

    #[test]
    fn what_is_too_large_is_neither_sent_nor_read() {
        let change = Change::new(vec![0; MAX_HEAD_BYTES], Duration::MAX);
        assert_eq!(change.patience(), Duration::from_millis(u32::MAX.into()));
        assert!(matches!(
            Request::Change(change).into_message(),
            Err(MessageError::TooLarge(_))
        ));
        let message = Message {
            kind: CHANGE,
            head: vec![0; MAX_HEAD_BYTES + 1].into(),
            payload: Vec::new(),
        };
        assert_eq!(
            Request::read(&message),
            Err(MessageError::TooLarge(MAX_HEAD_BYTES + 1))
        );
        assert!(
            Change::new(vec![0; MAX_COMMAND_BYTES], Duration::ZERO)
                .command
                .len()
                < MAX_HEAD_BYTES
        );
    }

    #[test]
    fn a_request_shows_nothing_of_a_command() {
        let change = Change::new(b"secret".to_vec(), Duration::from_secs(1));
        assert_eq!(
            format!("{:?}", Request::Change(change)),
            "Change(Change { bytes: 6, patience_ms: 1000 })"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in any::<u8>(), head in prop::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind, head: head.into(), payload: Vec::new() };
            for kind in [kind, WHO_ARE_YOU, LEADERS, CHANGE, REGISTER, IDENTITY, HEARD, CHANGED, REGISTERED] {
                let message = Message { kind, ..message.clone() };
                let _ = Request::read(&message);
                let _ = Answer::read(&message);
            }
        }
    }
}
