//! The answering side of a connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use palisade_shard::{Message, NodeId};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, split},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    api::{Handler, PeerCertificate, Refused},
    frame::{Frame, What},
    gate::Gate,
    hello::{Hello, MAX_HELLO, judge_client, rejection},
    lane::{FAILED, NOT_HOSTED},
    link::UNTRUSTED,
    outbox::{Outbox, write_loop},
    run::{Writing, written},
    shared::Shared,
    stream::{FrameReader, StreamError},
};

/// Why an accepted connection ends, when the peer did not end it.
#[derive(Debug, thiserror::Error)]
enum Close {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("it sends a {0:?} where it only asks")]
    Unexpected(What),
    #[error("it was silent for {0:?}")]
    Silent(std::time::Duration),
    #[error("{0}")]
    Write(String),
    #[error("it came back on another connection")]
    Superseded,
    #[error("{}", UNTRUSTED)]
    Untrusted,
    #[error("the connection is too old")]
    Old,
    #[error("this broker stops")]
    Stopping,
}

/// Serves an accepted connection to its end.
pub(crate) async fn serve<S>(shared: Arc<Shared>, stream: S, certificate: PeerCertificate)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, mut writer) = split(stream);
    let mut reader = FrameReader::new(reader, MAX_HELLO);
    let limits = shared.options.limits;
    let hello = tokio::select! {
        hello = timeout(limits.connect, reader.frame()) => hello,
        () = shared.stopping.cancelled() => return,
    };
    let hello = match hello {
        Ok(Ok(frame)) => judge(&shared, &frame, &certificate),
        // What is no frame at all is not worth an answer.
        Ok(Err(error)) => {
            warn!(%error, "a connection of a broker ended before its hello");
            return;
        }
        Err(_) => Err("it did not say hello in time".to_owned()),
    };
    let (theirs, handler) = match hello {
        Ok(accepted) => accepted,
        Err(reason) => {
            warn!(reason, "refused the connection of a broker");
            let rejected = async {
                write(&mut writer, &rejection(&reason)).await?;
                writer.shutdown().await
            };
            // Whether it wants to know is its own affair.
            drop(timeout(limits.connect, rejected).await);
            return;
        }
    };
    let node = theirs.node;
    let gate = shared.gates.open(theirs.broker, theirs.takes_over);
    shared.met(node);
    let said = timeout(
        limits.connect,
        write(&mut writer, &shared.hello(false).frame()),
    )
    .await;
    if let Ok(Ok(())) = said {
        info!(peer = %node, "a broker connected");
        if let Some(link) = shared.links.lock().get(&theirs.broker) {
            link.nudge();
        }
        reader.limit(limits.frame_bytes);
        let outbox = Arc::new(Outbox::default());
        let write = {
            let outbox = Arc::clone(&outbox);
            async move { write_loop(&outbox, &mut writer, limits.keep_alive).await }
        };
        let mut serving = Serving {
            shared: &shared,
            node,
            certificate,
            gate: &gate,
            handler,
            outbox,
            handling: FuturesUnordered::new(),
            bytes: 0,
        };
        let close = serving.run(reader, Writing(tokio::spawn(write))).await;
        match &close {
            Close::Stream(StreamError::Malformed(_)) | Close::Unexpected(_) | Close::Silent(_) => {
                warn!(peer = %node, reason = %close, "closed the connection of a broker");
            }
            _ => info!(peer = %node, reason = %close, "the connection of a broker ended"),
        }
        let rest = std::mem::take(&mut serving.handling);
        if !rest.is_empty() && !matches!(close, Close::Stopping) {
            shared.tasks.spawn(rest.for_each(|_| async {}));
        }
    }
    shared.gates.remove(theirs.broker, &gate);
}

fn judge(
    shared: &Shared,
    frame: &Frame,
    certificate: &PeerCertificate,
) -> Result<(Hello, Arc<dyn Handler>), String> {
    let theirs = Hello::parse(frame)?;
    let address = shared.options.directory.address(theirs.broker);
    let host = address.as_ref().map(|address| address.host.as_str());
    judge_client(&theirs, &shared.hello(false), host, certificate)?;
    let handler = shared.handler.get().ok_or("this broker is starting")?;
    Ok((theirs, Arc::clone(handler)))
}

async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> io::Result<()> {
    let header = frame.header().unwrap_or_default();
    writer.write_all(&header).await?;
    writer.write_all(&frame.message.head).await?;
    writer.flush().await
}

/// A connection that is being served.
struct Serving<'a> {
    shared: &'a Shared,
    node: NodeId,
    certificate: PeerCertificate,
    gate: &'a Gate,
    handler: Arc<dyn Handler>,
    outbox: Arc<Outbox>,
    handling: FuturesUnordered<Handling>,
    /// Of the messages that are being handled.
    bytes: usize,
}

impl Serving<'_> {
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        mut reader: FrameReader<R>,
        mut writing: Writing,
    ) -> Close {
        let limits = self.shared.options.limits;
        let mut tick = interval(limits.keep_alive / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let born = Instant::now();
        let mut heard = born;
        let mut stop_by: Option<Instant> = None;
        // What has changed since the handshake counts as well.
        let mut trust = self.shared.trust();
        if !trust.holds(self.certificate.chain()) {
            return Close::Untrusted;
        }
        loop {
            if stop_by.is_none()
                && let Err(close) = self.received(&mut reader)
            {
                return close;
            }
            let paused = stop_by.is_some() || self.is_busy();
            if stop_by.is_some() && self.handling.is_empty() {
                self.outbox.close();
            }
            tokio::select! {
                biased;
                () = self.gate.ended.cancelled() => return Close::Superseded,
                () = trust.changed() => {
                    if !trust.holds(self.certificate.chain()) {
                        return Close::Untrusted;
                    }
                }
                Some(handled) = self.handling.next() => self.handled(handled),
                filled = reader.fill(), if !paused => {
                    heard = Instant::now();
                    if let Err(close) = filled {
                        return close.into();
                    }
                }
                _ = tick.tick() => {
                    if paused {
                        // It may well have something to say.
                        heard = Instant::now();
                    } else if heard.elapsed() >= limits.silence {
                        return Close::Silent(limits.silence);
                    } else if born.elapsed() >= limits.max_age * 2 + limits.retire {
                        return Close::Old;
                    }
                }
                end = &mut writing.0 => {
                    return match end {
                        Ok(Ok(())) => Close::Stopping,
                        Ok(error) => Close::Write(written(error)),
                        Err(error) => Close::Write(error.to_string()),
                    };
                }
                () = self.shared.stopping.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(Instant::now() + limits.stop);
                }
                () = sleep_until(stop_by.unwrap_or(born)), if stop_by.is_some() => return Close::Stopping,
            }
        }
    }

    /// Whether as much is being handled, or waits to be written, as may.
    fn is_busy(&self) -> bool {
        let limits = &self.shared.options.limits;
        self.bytes > limits.handling_bytes
            || self.handling.len() >= limits.handling
            || self.outbox.bytes() > limits.queue_bytes
    }

    /// Takes what has arrived, as far as there is room for it.
    fn received<R: AsyncRead + Unpin>(&mut self, reader: &mut FrameReader<R>) -> Result<(), Close> {
        while !self.is_busy()
            && let Some(frame) = reader.next()?
        {
            match frame.what {
                What::Request => self.request(frame)?,
                What::Ping if frame.correlation == 0 => {}
                What::Ping => self.answer(Frame::bare(What::Pong, frame.correlation)),
                what => return Err(Close::Unexpected(what)),
            }
        }
        Ok(())
    }

    fn request(&mut self, frame: Frame) -> Result<(), Close> {
        let bytes = frame.message.len();
        let (channel, correlation) = (frame.channel, frame.correlation);
        let hand_over = || self.handler.handle(self.node, channel, frame.message);
        let future = self.gate.pass(hand_over).ok_or(Close::Superseded)?;
        let mut handling = Handling {
            channel,
            correlation,
            bytes,
            future,
        };
        self.bytes += bytes;
        // The first poll is here, in the order of arrival; what waits is polled again where it is woken.
        match (&mut handling).now_or_never() {
            Some(handled) => self.handled(handled),
            None => self.handling.push(handling),
        }
        Ok(())
    }

    fn handled(&mut self, handled: Handled) {
        self.bytes = self.bytes.saturating_sub(handled.bytes);
        let limit = self.shared.options.limits.frame_bytes;
        let Handled {
            channel,
            correlation,
            result,
            ..
        } = handled;
        let (what, message) = match result {
            Ok(message) if message.len() <= limit => (What::Answer, message),
            Ok(message) => {
                let reason = format!("the answer has {} bytes", message.len());
                debug!(peer = %self.node, channel, reason, "an answer is too large");
                (What::Refusal, refusal(Refused::Failed(reason)))
            }
            Err(refused) => (What::Refusal, refusal(refused)),
        };
        self.answer(Frame {
            what,
            channel,
            correlation,
            message,
        });
    }

    fn answer(&self, frame: Frame) {
        // Nothing is read beyond a limit, which bounds what is answered. A closed outbox is the end of the connection.
        let _ = self.outbox.push(frame, usize::MAX);
    }
}

fn refusal(refused: Refused) -> Message {
    match refused {
        Refused::NotHosted => Message {
            kind: NOT_HOSTED,
            ..Message::default()
        },
        Refused::Failed(reason) => Message {
            kind: FAILED,
            head: Bytes::from(reason),
            payload: Vec::new(),
        },
    }
}

/// A message that is being handled.
struct Handling {
    channel: u32,
    correlation: u64,
    bytes: usize,
    future: BoxFuture<'static, Result<Message, Refused>>,
}

/// And that was.
struct Handled {
    channel: u32,
    correlation: u64,
    bytes: usize,
    result: Result<Message, Refused>,
}

impl Future for Handling {
    type Output = Handled;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Handled> {
        let result = ready!(self.future.as_mut().poll(cx));
        Poll::Ready(Handled {
            channel: self.channel,
            correlation: self.correlation,
            bytes: self.bytes,
            result,
        })
    }
}
