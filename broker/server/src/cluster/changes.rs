//! Changes of the metadata: decided and logged by the leader of shard 0, wherever they are asked for.

use std::time::Duration;

use bytes::Bytes;
use palisade_log::ShardId;
use palisade_metadata::{MetadataCommand, MetadataError, MetadataResponse};
use palisade_peer::CallError;
use palisade_seal::SealError;
use palisade_shard::{Command, ProposeError};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Cluster,
    messages::{Answer, ChangeFailure, Question},
};

/// A change is tried for so long while there is no leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two tries when nobody is known to lead.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a change of the metadata did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// The metadata refuse it.
    #[error(transparent)]
    Refused(#[from] MetadataError),
    /// The disk is full.
    #[error("the disk of the write-ahead log is full; nothing can be changed until space is freed")]
    Full,
    /// Nobody leads the metadata now.
    #[error("no broker leads the metadata now; retry")]
    NotController,
    /// The leader was asked and nobody knows whether it did it.
    #[error(
        "the broker that leads the metadata did not answer; look whether the change is in effect before repeating it"
    )]
    Unanswered,
    /// A key cannot be made or wrapped.
    #[error("cannot make a key: {0}")]
    Keys(#[source] SealError),
    /// A defect.
    #[error("{0}")]
    Unexpected(String),
}

/// How one try ended, when it did not end the matter.
enum Again {
    /// Certainly not done.
    NotDone,
}

impl Cluster {
    /// Changes the metadata and waits until the change is seen here.
    pub(crate) async fn change(
        &self,
        command: &MetadataCommand,
    ) -> Result<MetadataResponse, ChangeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = if self.metadata.leadership().borrow().is_some() {
                self.change_here(command).await
            } else {
                self.change_there(command, deadline).await
            };
            match tried {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(error),
                Err(Again::NotDone) if Instant::now() >= deadline => {
                    return Err(ChangeError::NotController);
                }
                Err(Again::NotDone) => {}
            }
            sleep(PAUSE).await;
        }
    }

    /// As the leader: decides on the present state and logs the change. The version of the metadata that has it is the second part.
    pub(crate) async fn decide(
        &self,
        command: &MetadataCommand,
    ) -> Result<(MetadataResponse, u64), ChangeFailure> {
        // What values come to is checked here alone, so on the state that the last change of them left, and not on one that is about to be replaced.
        let _one = match command {
            MetadataCommand::AlterConfigs { .. } => Some(self.deciding.lock().await),
            _ => None,
        };
        if self.metadata.leadership().borrow().is_none() {
            return Err(ChangeFailure::NotController);
        }
        let meta = self
            .image()
            .admit(command)
            .map_err(ChangeFailure::Refused)?;
        let proposal = Command {
            meta: meta.into(),
            payload: Bytes::new(),
        };
        match self.metadata.propose(proposal).await {
            Ok(outcome) => {
                let response = outcome.map_err(ChangeFailure::Refused)?;
                Ok((response, self.image().version))
            }
            Err(ProposeError::Full) => Err(ChangeFailure::Full),
            Err(ProposeError::Busy(_) | ProposeError::Stopped(_)) => {
                Err(ChangeFailure::NotController)
            }
            // It had entered the log, perhaps: the next leader may keep it.
            Err(ProposeError::NotLeader(_)) => Err(ChangeFailure::Unanswered),
            Err(error) => Err(ChangeFailure::Unexpected(error.to_string())),
        }
    }

    async fn change_here(
        &self,
        command: &MetadataCommand,
    ) -> Result<Result<MetadataResponse, ChangeError>, Again> {
        settle(self.decide(command).await).map(|done| done.map(|(response, _)| response))
    }

    async fn change_there(
        &self,
        command: &MetadataCommand,
        deadline: Instant,
    ) -> Result<Result<MetadataResponse, ChangeError>, Again> {
        let Some(peers) = &self.peers else {
            return Err(Again::NotDone);
        };
        let Some(controller) = self.controller_or_hint().await else {
            return Err(Again::NotDone);
        };
        if controller == self.me.broker() {
            return Err(Again::NotDone);
        }
        let encoded = match command.encode() {
            Ok(encoded) => encoded,
            Err(error) => return Ok(Err(error.into())),
        };
        let question = Question::Change(encoded).encode();
        let answer = match timeout_at(deadline, peers.call_cluster(controller, question)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(CallError::Unreachable(_) | CallError::NotHosted)) => {
                return Err(Again::NotDone);
            }
            Ok(Err(_)) | Err(_) => return Ok(Err(ChangeError::Unanswered)),
        };
        let outcome = match Answer::decode(&answer) {
            Ok(Answer::Changed(outcome)) => outcome,
            Ok(other) => {
                return Ok(Err(ChangeError::Unexpected(format!(
                    "a change was answered with {other:?}"
                ))));
            }
            Err(reason) => return Ok(Err(ChangeError::Unexpected(reason))),
        };
        match settle(outcome)? {
            Ok((response, version)) => {
                // What was changed is seen by the next request of the same client, here as there.
                let mut images = self.images.clone();
                let seen = images.wait_for(|image| image.version >= version);
                drop(timeout_at(deadline, seen).await);
                Ok(Ok(response))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// Who leads the metadata; a broker that is not part of shard 0 yet has to ask.
    async fn controller_or_hint(&self) -> Option<i32> {
        if let Some(controller) = self.controller() {
            return Some(controller);
        }
        let peers = self.peers.as_ref()?;
        for seed in &self.seeds {
            if seed.id == self.me.broker() {
                continue;
            }
            let question = Question::WhoAreYou.encode();
            let asked = peers.call_cluster(seed.id, question);
            if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), asked).await
                && let Ok(Answer::IAm {
                    controller: Some(controller),
                    ..
                }) = Answer::decode(&answer)
            {
                return Some(controller);
            }
        }
        None
    }

    /// Whether this broker leads the metadata.
    pub(crate) fn is_controller(&self) -> bool {
        self.metadata.id() == ShardId::METADATA && self.metadata.leadership().borrow().is_some()
    }
}

type Settled = Result<Result<(MetadataResponse, u64), ChangeError>, Again>;

fn settle(outcome: Result<(MetadataResponse, u64), ChangeFailure>) -> Settled {
    match outcome {
        Ok(done) => Ok(Ok(done)),
        Err(ChangeFailure::NotController) => Err(Again::NotDone),
        Err(ChangeFailure::Refused(error)) => Ok(Err(error.into())),
        Err(ChangeFailure::Full) => Ok(Err(ChangeError::Full)),
        Err(ChangeFailure::Unanswered) => Ok(Err(ChangeError::Unanswered)),
        Err(ChangeFailure::Unexpected(reason)) => Ok(Err(ChangeError::Unexpected(reason))),
    }
}
