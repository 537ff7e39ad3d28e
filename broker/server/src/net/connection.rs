//! One connection, from its first byte to its last.
//!
//! Requests are answered in their order. Produce requests run side by side, so that a pipelining producer shares one fsync; any
//! other request is answered before the next one is read, as in Kafka, which also bounds what a client can have in flight.

use std::{
    future::{Future, pending, ready},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use futures::{StreamExt, stream::FuturesOrdered};
use kafka_protocol::messages::{ApiKey, RequestKind, ResponseKind};
use palisade_security::{Principal, ScramMechanism};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Application, Kind, Listener, Reply, Shared,
    frames::{FrameError, FrameReader, Received},
    sasl_phase::{Phase, Progress},
};
use crate::{
    api::api_versions,
    codec::{self, Body, CodecError, Frame, Part, Request},
    metrics::{ByListener, ByMechanism},
    sasl,
    session::{Registered, Session},
    tls::Endpoint,
};

/// Time from the first byte to an authenticated session.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection without a request is closed after this; Kafka's `connections.max.idle.ms`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A client that stops in the middle of a frame, or stops reading its answers, is closed after this.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Kafka's `connection.failed.authentication.delay.ms`: slows down who guesses passwords.
const FAILED_AUTHENTICATION_DELAY: Duration = Duration::from_millis(100);
/// After the broker is told to stop, requests that have begun get so long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Produce requests that run side by side on one connection.
const MAX_PIPELINED: usize = 32;
const WRITE_CHUNK: usize = 256 * 1024;
/// Parts of an answer that are shorter are written together with what follows.
const JOINED: usize = 4 * 1024;
const ILLEGAL_SASL_STATE: i16 = 34;

/// Where a connection comes from and what its TLS handshake proved.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) peer: SocketAddr,
    pub(super) host: IpAddr,
    pub(super) certificate: Option<Principal>,
    pub(super) shown: Option<Shown>,
}

/// The certificates that a client was let in with, and who tells whether it still would be.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) changes: watch::Receiver<()>,
}

/// Waits until the authority of a client's certificate is trusted no more; for ever when it has shown none.
async fn distrust(shown: Option<Shown>) {
    let Some(mut shown) = shown else {
        return pending().await;
    };
    while shown.changes.changed().await.is_ok() {
        if !shown.endpoint.current().trusts(&shown.chain) {
            return;
        }
    }
    // The broker is about to end.
    pending().await
}

enum Auth {
    Pending(Phase),
    Done(Arc<Session>),
}

type Pending = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Why a connection ends, when the client did not end it.
#[derive(Debug, thiserror::Error)]
enum Close {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Codec(#[from] CodecError),
    #[error("{0:?} before authentication")]
    Unauthenticated(ApiKey),
}

pub(super) struct Connection<A> {
    shared: Arc<Shared<A>>,
    listener: Arc<Listener>,
    identity: Identity,
    auth: Auth,
    frames: FrameReader,
    /// Cancelled when the credential behind the session is withdrawn.
    end: CancellationToken,
    registered: Option<Registered>,
    in_flight: FuturesOrdered<Pending>,
    /// The last request in flight is not a produce: nothing is read before its answer is out.
    serial: bool,
    muted_until: Option<Instant>,
    read_deadline: Instant,
}

impl<A: Application> Connection<A> {
    pub(super) fn new(shared: Arc<Shared<A>>, listener: Arc<Listener>, identity: Identity) -> Self {
        let mut frames = FrameReader::new(shared.budget.clone());
        let auth = match &identity.certificate {
            Some(principal) => {
                frames.trust();
                shared
                    .metrics
                    .authentications
                    .get_or_create(&ByMechanism { mechanism: "mTLS" })
                    .inc();
                Auth::Done(Arc::new(Session {
                    principal: principal.clone(),
                    host: identity.host,
                    listener: Arc::clone(&listener),
                }))
            }
            None => Auth::Pending(Phase::Start),
        };
        let patience = match auth {
            Auth::Pending(_) => AUTHENTICATION_TIMEOUT,
            Auth::Done(_) => IDLE_TIMEOUT,
        };
        Self {
            read_deadline: Instant::now() + patience,
            shared,
            listener,
            identity,
            auth,
            frames,
            end: CancellationToken::new(),
            registered: None,
            in_flight: FuturesOrdered::new(),
            serial: false,
            muted_until: None,
        }
    }

    /// Serves the connection until either side ends it.
    pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(mut self, mut stream: S) {
        debug!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), "connected");
        let stopping = self.shared.stopping.clone();
        let end = self.end.clone();
        let mut isolation =
            std::pin::pin!(isolation(self.listener.kind, self.shared.isolated.clone()));
        let mut distrust = std::pin::pin!(distrust(self.identity.shown.take()));
        let mut drain_deadline = None;
        loop {
            if drain_deadline.is_some() && self.in_flight.is_empty() {
                break;
            }
            // Whoever is not logged in has so long in all, also when it sends one question after the other.
            if matches!(self.auth, Auth::Pending(_)) && Instant::now() >= self.read_deadline {
                self.log_deadline();
                break;
            }
            let may_read =
                drain_deadline.is_none() && !self.serial && self.in_flight.len() < MAX_PIPELINED;
            let reading = may_read && self.muted_until.is_none();
            if reading {
                match self.begin_next() {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(close) => {
                        self.log_close(&close);
                        break;
                    }
                }
            }
            // A deadline counts only while it is the client's turn.
            let deadline = (reading && (self.frames.is_inside() || self.in_flight.is_empty()))
                .then_some(self.read_deadline);
            tokio::select! {
                biased;
                () = end.cancelled() => {
                    self.log_withdrawn();
                    break;
                }
                () = &mut distrust => {
                    self.log_distrusted();
                    break;
                }
                () = &mut isolation => {
                    debug!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), "closing the connection: the other brokers are not heard");
                    break;
                }
                Some(reply) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    if self.in_flight.is_empty() {
                        self.serial = false;
                    }
                    // An answer may be large and its reader slow: who is shut out does not get the rest of it.
                    let written = tokio::select! {
                        biased;
                        () = end.cancelled() => {
                            self.log_withdrawn();
                            break;
                        }
                        () = &mut isolation => break,
                        () = &mut distrust => {
                            self.log_distrusted();
                            break;
                        }
                        written = self.answer(&mut stream, reply) => written,
                    };
                    if written.is_err() {
                        break;
                    }
                }
                () = until(self.muted_until) => self.muted_until = None,
                filled = self.frames.fill(&mut stream), if reading => match filled {
                    Ok(false) => self.touch(),
                    Ok(true) => break,
                    Err(error) => {
                        self.log_close(&Close::Frame(error));
                        break;
                    }
                },
                () = until(deadline) => {
                    self.log_deadline();
                    break;
                }
                () = stopping.cancelled(), if drain_deadline.is_none() => {
                    drain_deadline = Some(Instant::now() + DRAIN_TIMEOUT);
                }
                () = until(drain_deadline) => break,
            }
        }
        drop(timeout(Duration::from_secs(1), stream.shutdown()).await);
        debug!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), "disconnected");
    }

    fn who(&self) -> String {
        match &self.auth {
            Auth::Pending(_) => "nobody".to_owned(),
            Auth::Done(session) => session.principal.to_string(),
        }
    }

    /// The client has shown a sign of life.
    fn touch(&mut self) {
        if matches!(self.auth, Auth::Done(_)) {
            let patience = if self.frames.is_inside() {
                STALL_TIMEOUT
            } else {
                IDLE_TIMEOUT
            };
            self.read_deadline = Instant::now() + patience;
        }
    }

    /// Begins the next complete frame; `false` when there is none.
    fn begin_next(&mut self) -> Result<bool, Close> {
        let Some(frame) = self.frames.take()? else {
            return Ok(false);
        };
        self.touch();
        if let Auth::Pending(phase) = &self.auth
            && phase.is_raw()
        {
            self.raw_token(&frame);
            return Ok(true);
        }
        let Received { bytes, share } = frame;
        match codec::decode_request(bytes)? {
            Frame::FutureApiVersions { correlation_id } => {
                let response = ResponseKind::ApiVersions(api_versions::unsupported());
                let bytes =
                    codec::encode_response(ApiKey::ApiVersions, 0, correlation_id, &response)?;
                self.reply_now(bytes);
            }
            Frame::Request(request) => match &self.auth {
                Auth::Pending(_) => self.unauthenticated(*request)?,
                Auth::Done(session) => {
                    let session = Arc::clone(session);
                    if !self.reauthenticates(&request)? {
                        self.serial = request.api != ApiKey::Produce;
                        // These wait for other members, as long as a client likes, and first let go of their frame: others must not wait for its share.
                        let waits_for_others =
                            matches!(request.api, ApiKey::JoinGroup | ApiKey::SyncGroup);
                        let share = share.filter(|_| !waits_for_others);
                        let answer = Arc::clone(&self.shared.application).handle(session, *request);
                        self.in_flight.push_back(Box::pin(async move {
                            let reply = answer.await;
                            drop(share);
                            reply
                        }));
                    }
                }
            },
        }
        Ok(true)
    }

    fn reply_now(&mut self, bytes: BytesMut) {
        self.reply_with(Reply {
            body: Some(bytes.into()),
            ..Reply::default()
        });
    }

    fn reply_with(&mut self, reply: Reply) {
        self.in_flight.push_back(Box::pin(ready(reply)));
    }

    /// A client with a certificate may still log in by SASL where the listener offers it; the SASL principal then counts.
    fn reauthenticates(&mut self, request: &Request) -> Result<bool, Close> {
        let RequestKind::SaslHandshake(_) = &request.body else {
            if !matches!(request.body, RequestKind::SaslAuthenticate(_)) {
                return Ok(false);
            }
            let response = kafka_protocol::messages::SaslAuthenticateResponse::default()
                .with_error_code(ILLEGAL_SASL_STATE)
                .with_error_message(Some(
                    "SaslAuthenticate after authentication".to_owned().into(),
                ));
            let bytes = codec::encode_response(
                request.api,
                request.version,
                request.correlation_id,
                &ResponseKind::SaslAuthenticate(response),
            )?;
            self.reply_now(bytes);
            return Ok(true);
        };
        let offered = self.listener.kind == Kind::Client && !self.listener.mechanisms.is_empty();
        if offered && self.registered.is_none() && self.identity.certificate.is_some() {
            self.auth = Auth::Pending(Phase::Start);
            self.read_deadline = Instant::now() + AUTHENTICATION_TIMEOUT;
            self.handshake(request)?;
        } else {
            let response = kafka_protocol::messages::SaslHandshakeResponse::default()
                .with_error_code(ILLEGAL_SASL_STATE);
            let bytes = codec::encode_response(
                request.api,
                request.version,
                request.correlation_id,
                &ResponseKind::SaslHandshake(response),
            )?;
            self.reply_now(bytes);
        }
        Ok(true)
    }

    fn unauthenticated(&mut self, request: Request) -> Result<(), Close> {
        match &request.body {
            RequestKind::ApiVersions(body) => {
                let response =
                    ResponseKind::ApiVersions(api_versions::answer(body, request.version));
                let bytes = codec::encode_response(
                    request.api,
                    request.version,
                    request.correlation_id,
                    &response,
                )?;
                self.reply_now(bytes);
                Ok(())
            }
            RequestKind::SaslHandshake(_) => self.handshake(&request),
            RequestKind::SaslAuthenticate(body) => {
                let Auth::Pending(phase) = &mut self.auth else {
                    return Ok(());
                };
                let (response, progress) = phase.authenticate(
                    &self.shared.authenticator,
                    &*self.shared.application,
                    &body.auth_bytes,
                );
                let bytes = codec::encode_response(
                    request.api,
                    request.version,
                    request.correlation_id,
                    &ResponseKind::SaslAuthenticate(response),
                )?;
                self.progress(Some(bytes), progress);
                Ok(())
            }
            _ => Err(Close::Unauthenticated(request.api)),
        }
    }

    fn handshake(&mut self, request: &Request) -> Result<(), Close> {
        let (Auth::Pending(phase), RequestKind::SaslHandshake(body)) =
            (&mut self.auth, &request.body)
        else {
            return Ok(());
        };
        let (response, outcome) = phase.handshake(
            &self.listener.mechanisms,
            &self.shared.authenticator,
            body,
            request.version,
        );
        let bytes = codec::encode_response(
            request.api,
            request.version,
            request.correlation_id,
            &ResponseKind::SaslHandshake(response),
        )?;
        self.reply_with(Reply {
            body: Some(bytes.into()),
            close: outcome.err(),
            ..Reply::default()
        });
        Ok(())
    }

    fn raw_token(&mut self, frame: &Received) {
        let Auth::Pending(phase) = &mut self.auth else {
            return;
        };
        let (bytes, progress) = phase.authenticate_raw(
            &self.shared.authenticator,
            &*self.shared.application,
            &frame.bytes,
        );
        self.progress(bytes, progress);
    }

    fn progress(&mut self, bytes: Option<BytesMut>, progress: Progress) {
        match progress {
            Progress::Continue => self.reply_with(Reply {
                body: bytes.map(Into::into),
                ..Reply::default()
            }),
            Progress::Authenticated {
                user,
                credential,
                mechanism,
            } => match self.log_in(&user, credential) {
                Ok(()) => {
                    let mechanism = sasl::name(mechanism);
                    self.shared
                        .metrics
                        .authentications
                        .get_or_create(&ByMechanism { mechanism })
                        .inc();
                    debug!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), mechanism, "authenticated");
                    self.reply_with(Reply {
                        body: bytes.map(Into::into),
                        ..Reply::default()
                    });
                }
                Err(reason) => self.failed(None, sasl::name(mechanism), reason),
            },
            Progress::Failed { mechanism, reason } => self.failed(bytes, mechanism, reason),
        }
    }

    fn log_in(&mut self, user: &str, credential: ScramMechanism) -> Result<(), String> {
        let principal = Principal::user(user).map_err(|error| error.to_string())?;
        self.registered = Some(
            self.shared
                .sessions
                .register(user, credential, self.end.clone()),
        );
        // Between the last token and the registration the credential may have gone: whoever withdrew it did not see this session.
        if self
            .shared
            .application
            .credential(user, credential)
            .is_none()
        {
            return Err(format!("the credential of user `{user}` was withdrawn"));
        }
        self.frames.trust();
        self.auth = Auth::Done(Arc::new(Session {
            principal,
            host: self.identity.host,
            listener: Arc::clone(&self.listener),
        }));
        self.touch();
        Ok(())
    }

    fn failed(&mut self, bytes: Option<BytesMut>, mechanism: &'static str, reason: String) {
        self.shared
            .metrics
            .authentication_failures
            .get_or_create(&ByMechanism { mechanism })
            .inc();
        warn!(listener = %self.listener.name, peer = %self.identity.peer, mechanism, reason, "authentication failed");
        self.serial = true;
        self.in_flight.push_back(Box::pin(async move {
            sleep(FAILED_AUTHENTICATION_DELAY).await;
            Reply {
                body: bytes.map(Into::into),
                mute: Duration::ZERO,
                close: Some("authentication failed".to_owned()),
            }
        }));
    }

    /// Writes an answer; an error means that the connection is over.
    async fn answer<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        reply: Reply,
    ) -> Result<(), ()> {
        if let Some(body) = reply.body {
            self.send(stream, body).await?;
        }
        self.touch();
        if !reply.mute.is_zero() {
            self.muted_until = Some(Instant::now() + reply.mute);
        }
        match reply.close {
            None => Ok(()),
            Some(reason) => {
                info!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), reason, "closing the connection");
                Err(())
            }
        }
    }

    /// Writes an answer part by part; what is not there yet is made just before it is written.
    async fn send<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, body: Body) -> Result<(), ()> {
        let mut chunk = Vec::new();
        for part in body.into_parts() {
            match part {
                Part::Ready(bytes) if chunk.is_empty() && bytes.len() >= JOINED => {
                    self.write(stream, &bytes).await?;
                }
                Part::Ready(bytes) => chunk.extend_from_slice(&bytes),
                Part::Later(length, mut source) => {
                    let mut left = length;
                    loop {
                        let before = chunk.len();
                        let more = source.next(&mut chunk);
                        left = left.saturating_sub(chunk.len().saturating_sub(before));
                        match more {
                            Ok(true) => {}
                            Ok(false) if left == 0 => break,
                            Ok(false) => return self.broken("it ended too early"),
                            Err(reason) => return self.broken(&reason),
                        }
                        if chunk.len() >= WRITE_CHUNK {
                            self.write(stream, &chunk).await?;
                            chunk.clear();
                        }
                    }
                }
            }
        }
        self.write(stream, &chunk).await?;
        timeout(STALL_TIMEOUT, stream.flush())
            .await
            .map_err(drop)?
            .map_err(drop)
    }

    async fn write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        bytes: &[u8],
    ) -> Result<(), ()> {
        for chunk in bytes.chunks(WRITE_CHUNK) {
            match timeout(STALL_TIMEOUT, stream.write_all(chunk)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(()),
                Err(_) => {
                    info!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), "closing: the client does not read its answers");
                    return Err(());
                }
            }
        }
        Ok(())
    }

    fn log_distrusted(&self) {
        info!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), "session ended: its certificate is not trusted any more");
    }

    fn log_withdrawn(&self) {
        info!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), "session ended: its credential was withdrawn");
    }

    /// The client has a part of an answer, of which the rest cannot be made.
    fn broken(&self, reason: &str) -> Result<(), ()> {
        warn!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), reason, "closing the connection inside an answer");
        Err(())
    }

    fn log_close(&self, close: &Close) {
        match close {
            // A peer that goes away is not worth a line of log.
            Close::Frame(FrameError::Io(error)) => {
                debug!(listener = %self.listener.name, peer = %self.identity.peer, %error, "connection lost");
            }
            close => {
                let labels = ByListener {
                    listener: self.listener.name.clone(),
                };
                self.shared
                    .metrics
                    .malformed_requests
                    .get_or_create(&labels)
                    .inc();
                warn!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), reason = %close, "closing the connection");
            }
        }
    }

    fn log_deadline(&self) {
        let reason = match (&self.auth, self.frames.is_inside()) {
            (Auth::Pending(_), _) => "the client did not authenticate in time",
            (Auth::Done(_), true) => "the client stopped in the middle of a request",
            (Auth::Done(_), false) => "idle",
        };
        info!(listener = %self.listener.name, peer = %self.identity.peer, principal = self.who(), reason, "closing the connection");
    }
}

/// Until a client has to go to another broker.
async fn isolation(kind: Kind, mut isolated: watch::Receiver<bool>) {
    if kind == Kind::Control || isolated.wait_for(|isolated| *isolated).await.is_err() {
        pending().await
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
