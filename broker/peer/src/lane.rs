//! The calls of one connection: what waits to be sent, and what waits for an answer.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use palisade_shard::{Message, NodeId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    api::CallError,
    frame::{Frame, What},
    hello::text,
    outbox::{Full, Outbox},
};

/// What a refusal's kind means.
pub(crate) const NOT_HOSTED: u8 = 0;
pub(crate) const FAILED: u8 = 1;

pub(crate) type Answer = Result<Message, CallError>;

/// One connection's calls; made before the connection, so that calls can wait for it.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) outbox: Outbox,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    last: u64,
    waiting: HashMap<u64, Call>,
    barrier: Option<(u64, oneshot::Sender<()>)>,
    /// No call is taken any more, and why.
    ended: Option<CallError>,
    retired: Option<Instant>,
}

#[derive(Debug)]
struct Call {
    /// Which incarnation of the broker is meant; `None` for any.
    node: Option<NodeId>,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Lane {
    /// Queues a request.
    pub(crate) fn request(
        &self,
        node: Option<NodeId>,
        channel: u32,
        message: Message,
        patience: Duration,
        limit: usize,
    ) -> Result<oneshot::Receiver<Answer>, CallError> {
        let (answer, receiver) = oneshot::channel();
        let mut calls = self.calls.lock();
        if let Some(error) = &calls.ended {
            return Err(error.clone());
        }
        calls.last += 1;
        let correlation = calls.last;
        let frame = Frame {
            what: What::Request,
            channel,
            correlation,
            message,
        };
        match self.outbox.push(frame, limit) {
            Ok(()) => {}
            Err(Full::Waiting(bytes)) => {
                return Err(CallError::Unreachable(format!(
                    "{bytes} bytes wait to be sent already"
                )));
            }
            Err(Full::Closed) => {
                return Err(CallError::Unreachable("the connection ends".to_owned()));
            }
        }
        // The answer needs the same lock, so it cannot be earlier.
        let call = Call {
            node,
            deadline: Instant::now() + patience,
            answer,
        };
        calls.waiting.insert(correlation, call);
        Ok(receiver)
    }

    /// Takes a frame of the peer.
    pub(crate) fn receive(&self, frame: Frame) -> Result<(), String> {
        match frame.what {
            What::Answer | What::Refusal => {
                let call = self.calls.lock().waiting.remove(&frame.correlation);
                // Without a call it came too late.
                if let Some(call) = call {
                    // Nobody may be interested any more.
                    drop(call.answer.send(answer(frame)));
                }
                Ok(())
            }
            What::Pong => {
                let mut calls = self.calls.lock();
                if let Some((_, passed)) = calls
                    .barrier
                    .take_if(|(correlation, _)| *correlation == frame.correlation)
                {
                    let _ = passed.send(());
                }
                Ok(())
            }
            What::Ping => Ok(()),
            What::Request | What::Hello | What::Reject => {
                Err(format!("it sends a {:?} where it only answers", frame.what))
            }
        }
    }

    /// Calls for another incarnation of the broker than the one that is connected fail.
    pub(crate) fn connected(&self, to: NodeId) {
        let mut calls = self.calls.lock();
        let strangers: HashMap<u64, Call> = calls
            .waiting
            .extract_if(|_, call| call.node.is_some_and(|node| node != to))
            .collect();
        drop(calls);
        if strangers.is_empty() {
            return;
        }
        self.outbox
            .retain(|frame| !strangers.contains_key(&frame.correlation));
        for (_, call) in strangers {
            drop(call.answer.send(Err(replaced(to))));
        }
    }

    /// Fails what has waited too long. True while anything waits.
    pub(crate) fn expire(&self, now: Instant) -> bool {
        let mut calls = self.calls.lock();
        let late: Vec<Call> = calls
            .waiting
            .extract_if(|_, call| call.deadline <= now)
            .map(|(_, call)| call)
            .collect();
        let any = !calls.waiting.is_empty();
        drop(calls);
        for call in late {
            drop(call.answer.send(Err(CallError::TimedOut)));
        }
        any
    }

    /// Answers when everything that was sent has been handed over on the other side; no call comes after it.
    pub(crate) fn retire(&self) -> oneshot::Receiver<()> {
        let (passed, receiver) = oneshot::channel();
        let mut calls = self.calls.lock();
        calls.last += 1;
        let correlation = calls.last;
        calls.retired = Some(Instant::now());
        calls.barrier = Some((correlation, passed));
        // When the connection ends already, that is what the other side of the channel notices.
        if self
            .outbox
            .push(Frame::bare(What::Ping, correlation), usize::MAX)
            .is_err()
        {
            calls.barrier = None;
        }
        receiver
    }

    /// Since when no call is added.
    pub(crate) fn retired(&self) -> Option<Instant> {
        self.calls.lock().retired
    }

    /// Fails everything that waits and all that comes.
    pub(crate) fn fail(&self, error: &CallError) {
        let mut calls = self.calls.lock();
        calls.ended.get_or_insert_with(|| error.clone());
        calls.barrier = None;
        let waiting = std::mem::take(&mut calls.waiting);
        self.outbox.close();
        drop(calls);
        for (_, call) in waiting {
            drop(call.answer.send(Err(error.clone())));
        }
    }
}

/// Why a call for another incarnation fails.
pub(crate) fn replaced(now: NodeId) -> CallError {
    CallError::Unreachable(format!("{now} is in its place"))
}

fn answer(frame: Frame) -> Answer {
    match (frame.what, frame.message.kind) {
        (What::Answer, _) => Ok(frame.message),
        (_, NOT_HOSTED) => Err(CallError::NotHosted),
        _ => Err(CallError::Failed(text(&frame.message.head))),
    }
}
