//! One port: who may connect, and how they prove who they are.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use palisade_config::Mechanism;
use palisade_peer::{ALPN as PEER_ALPN, PeerCertificate, Peers};
use palisade_security::{Principal, PrincipalMapper};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Application, Limiter, Shared,
    connection::{Connection, Identity, Shown},
    limits::Place,
};
use crate::{
    metrics::{ByListener, ByReason},
    tls::{Endpoint, Leaf, common_name},
};

/// A TLS handshake takes longer only for someone who wants to hold the connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the system refuses an accept, which it does when it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 1024;
/// One TLS record: kept by every connection.
const CLIENT_READ_AHEAD: usize = 16 << 10;
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// Who a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Clients.
    Client,
    /// Brokers and the operator: certificates of the cluster authority only.
    Control,
}

/// One port.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) mechanisms: Vec<Mechanism>,
    pub(crate) mapper: PrincipalMapper,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) advertised_host: String,
    pub(crate) advertised_port: u16,
}

impl Listener {
    fn labels(&self) -> ByListener {
        ByListener {
            listener: self.name.clone(),
        }
    }

    /// The principal of a certificate that TLS has verified.
    fn principal(&self, certificate: &CertificateDer<'_>) -> Result<Principal, String> {
        match self.kind {
            Kind::Control => {
                let name = common_name(certificate)
                    .ok_or_else(|| "the certificate has not exactly one common name".to_owned())?;
                Principal::system(name).map_err(|error| error.to_string())
            }
            Kind::Client => {
                let name = self
                    .mapper
                    .map_certificate(certificate)
                    .map_err(|error| error.to_string())?;
                Principal::user(name).map_err(|error| error.to_string())
            }
        }
    }
}

/// Binds a port with a backlog that survives a burst of clients.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until the broker stops.
pub(crate) async fn accept<A: Application>(
    listener: Arc<Listener>,
    socket: TcpListener,
    shared: Arc<Shared<A>>,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stopping.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(listener = %listener.name, %error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let labels = listener.labels();
        shared
            .metrics
            .connections_accepted
            .get_or_create(&labels)
            .inc();
        if listener.kind == Kind::Client && *shared.isolated.borrow() {
            // Before the handshake: a client takes a connection for up only after it.
            refused(&listener, &shared, "isolated");
            debug!(listener = %listener.name, %peer, "connection refused: the other brokers are not heard");
            continue;
        }
        match listener.limiter.admit(peer.ip()) {
            Ok(place) => {
                let tasks = shared.tasks.clone();
                tasks.spawn(admitted(
                    Arc::clone(&listener),
                    stream,
                    peer,
                    place,
                    Arc::clone(&shared),
                ));
            }
            Err(refusal) => {
                let reason = refusal.label();
                refused(&listener, &shared, reason);
                info!(listener = %listener.name, %peer, reason, ?refusal, "connection refused");
            }
        }
    }
}

fn refused<A>(listener: &Listener, shared: &Shared<A>, reason: &'static str) {
    let labels = ByReason {
        listener: listener.name.clone(),
        reason,
    };
    shared
        .metrics
        .connections_refused
        .get_or_create(&labels)
        .inc();
}

/// Keeps the gauge of open connections right however the connection ends.
struct Counted<'a, A>(&'a Shared<A>, ByListener);

impl<'a, A> Counted<'a, A> {
    fn new(shared: &'a Shared<A>, labels: ByListener) -> Self {
        shared.metrics.connections.get_or_create(&labels).inc();
        Self(shared, labels)
    }
}

impl<A> Drop for Counted<'_, A> {
    fn drop(&mut self) {
        self.0.metrics.connections.get_or_create(&self.1).dec();
    }
}

async fn admitted<A: Application>(
    listener: Arc<Listener>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    shared: Arc<Shared<A>>,
) {
    let _place = place;
    let counted = Counted::new(&shared, listener.labels());
    let host = peer.ip().to_canonical();
    let wait = shared.application.connection_wait(host);
    if !wait.is_zero() {
        // As Kafka does: the client that connects too often is held and then closed, so that it cannot spin.
        refused(&listener, &shared, "connection_creation_rate");
        debug!(listener = %listener.name, %peer, ?wait, "connection throttled");
        tokio::select! {
            () = sleep(wait) => {}
            () = shared.stopping.cancelled() => {}
        }
        return;
    }
    if let Err(error) = stream.set_nodelay(true) {
        debug!(listener = %listener.name, %peer, %error, "cannot set TCP_NODELAY");
    }
    let Some(endpoint) = &listener.endpoint else {
        let identity = Identity {
            peer,
            host,
            certificate: None,
            shown: None,
        };
        return Connection::new(shared.clone(), listener.clone(), identity)
            .serve(stream)
            .await;
    };
    let failed = |reason: String| {
        shared
            .metrics
            .tls_handshake_failures
            .get_or_create(&listener.labels())
            .inc();
        info!(listener = %listener.name, %peer, reason, "TLS handshake failed");
    };
    // Before the handshake: what changes during it is not missed.
    let changes = endpoint.changes();
    let acceptor = TlsAcceptor::from(Arc::clone(&endpoint.current().config));
    let handshake = timeout(HANDSHAKE_TIMEOUT, async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first != [TLS_HANDSHAKE_RECORD] {
            return Err(std::io::Error::other(
                "the client does not speak TLS: use security.protocol=SASL_SSL or SSL",
            ));
        }
        acceptor.accept(buffered(listener.kind, stream)).await
    });
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(error.to_string()),
        Err(_) => return failed("it took too long".to_owned()),
    };
    if let (Kind::Control, Some(peers)) = (listener.kind, &shared.peers)
        && is_peer(&stream)
    {
        // A peer is no client: no quota and no limit of a listener counts it, and a broker that stops does not wait for it.
        drop(counted);
        let peers = Arc::clone(peers);
        tokio::spawn(async move { serve_peer(stream, &peers).await });
        return;
    }
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = match certificates.and_then(|chain| chain.first()) {
        None => None,
        // A resumed TLS session brings the certificate of the first one along, and nobody looks at its time again.
        Some(certificate) if is_expired(certificate) => {
            return failed("the client certificate has expired".to_owned());
        }
        Some(certificate) => match listener.principal(certificate) {
            Ok(principal) => Some(principal),
            Err(reason) => {
                return failed(format!("no principal for the client certificate: {reason}"));
            }
        },
    };
    let shown = certificates.map(|chain| Shown {
        chain: owned(chain),
        endpoint: Arc::clone(endpoint),
        changes,
    });
    let identity = Identity {
        peer,
        host,
        certificate,
        shown,
    };
    Connection::new(shared.clone(), listener.clone(), identity)
        .serve(stream)
        .await;
}

fn is_expired(certificate: &CertificateDer<'_>) -> bool {
    Leaf::parse(certificate).is_ok_and(|leaf| leaf.not_after <= OffsetDateTime::now_utc())
}

/// TLS reads 4 KiB at a time by itself, which is a system call for each quarter of a record.
fn buffered(kind: Kind, stream: TcpStream) -> BufReader<TcpStream> {
    let ahead = match kind {
        Kind::Client => CLIENT_READ_AHEAD,
        Kind::Control => palisade_peer::READ_AHEAD,
    };
    BufReader::with_capacity(ahead, stream)
}

/// Whether a connection speaks the brokers' own protocol.
fn is_peer(stream: &TlsStream<BufReader<TcpStream>>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(PEER_ALPN)
}

async fn serve_peer(stream: TlsStream<BufReader<TcpStream>>, peers: &Arc<Peers>) {
    // The control port asks everyone for a certificate, so there is one.
    let Some(chain) = stream.get_ref().1.peer_certificates() else {
        return;
    };
    if chain.first().is_none_or(is_expired) {
        info!("TLS handshake failed: the certificate of a broker has expired");
        return;
    }
    let certificate = PeerCertificate::new(owned(chain));
    peers.serve(stream, certificate).await;
}

fn owned(chain: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    let chain = chain.iter().cloned();
    chain.map(CertificateDer::into_owned).collect()
}

/// Accepts other brokers at the control port, and nobody else, until `until`; gives the port back then.
pub(crate) async fn accept_peers(
    listener: Arc<Listener>,
    socket: TcpListener,
    peers: Arc<Peers>,
    until: CancellationToken,
) -> TcpListener {
    loop {
        let accepted = tokio::select! {
            () = until.cancelled() => return socket,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(early(Arc::clone(&listener), stream, Arc::clone(&peers)));
            }
            Err(error) => {
                warn!(listener = %listener.name, %error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn early(listener: Arc<Listener>, stream: TcpStream, peers: Arc<Peers>) {
    let Some(endpoint) = &listener.endpoint else {
        return;
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&endpoint.current().config));
    drop(stream.set_nodelay(true));
    match timeout(
        HANDSHAKE_TIMEOUT,
        acceptor.accept(buffered(listener.kind, stream)),
    )
    .await
    {
        Ok(Ok(stream)) if is_peer(&stream) => serve_peer(stream, &peers).await,
        // A client that comes too early comes again.
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(listener = %listener.name, %error, "TLS handshake failed"),
        Err(_) => debug!(listener = %listener.name, "a TLS handshake took too long"),
    }
}
