//! Over real TLS on loopback: broker 1 is at 127.0.0.1, broker 2 at 127.0.0.2, and so on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calls;
mod hellos;
mod losses;
mod pki;
mod renewals;
mod throughput;
mod wire;

use std::{collections::HashMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use palisade_shard::{Message, NodeId};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::*;
use pki::{Authority, Identity};

const CLUSTER: &str = "test-cluster";

/// For what must happen; only what hangs takes so long.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what)
        .await
        .expect("it takes too long")
}

fn host(broker: i32) -> String {
    format!("127.0.0.{broker}")
}

fn message(kind: u8, head: &'static str, payload: usize) -> Message {
    Message {
        kind,
        head: Bytes::from_static(head.as_bytes()),
        payload: vec![Bytes::from(vec![7; payload])],
    }
}

#[derive(Default)]
struct Addresses(Mutex<HashMap<i32, u16>>);

impl Addresses {
    fn set(&self, broker: i32, port: u16) {
        self.0.lock().insert(broker, port);
    }
}

impl Directory for Addresses {
    fn address(&self, broker: i32) -> Option<PeerAddress> {
        let port = *self.0.lock().get(&broker)?;
        Some(PeerAddress {
            host: host(broker),
            port,
        })
    }
}

/// Presents one certificate for ever.
struct Fixed(Arc<ClientConfig>);

impl Connector for Fixed {
    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

/// Answers from a closure.
struct Answers<F>(F);

impl<F> Handler for Answers<F>
where
    F: Fn(NodeId, u32, Message) -> BoxFuture<'static, Result<Message, Refused>>
        + Send
        + Sync
        + 'static,
{
    fn handle(
        &self,
        from: NodeId,
        channel: u32,
        message: Message,
    ) -> BoxFuture<'static, Result<Message, Refused>> {
        (self.0)(from, channel, message)
    }
}

/// Sends back what comes.
fn echo() -> Arc<dyn Handler> {
    Arc::new(Answers(|_, _, message| {
        Box::pin(async move { Ok(message) }) as BoxFuture<'static, _>
    }))
}

/// One cluster's brokers under test.
struct Net {
    addresses: Arc<Addresses>,
    authority: Authority,
}

impl Net {
    fn new() -> Self {
        Self {
            addresses: Arc::default(),
            authority: Authority::new("cluster"),
        }
    }

    fn identity(&self, broker: i32) -> Identity {
        self.authority.issue(&host(broker))
    }

    fn options(&self, me: NodeId) -> PeerOptions {
        let identity = self.identity(me.broker());
        PeerOptions {
            me,
            cluster_id: CLUSTER.to_owned(),
            directory: Arc::clone(&self.addresses) as _,
            connector: Arc::new(Fixed(identity.client(&self.authority))),
            limits: Limits {
                backoff_max: Duration::from_millis(100),
                ..Limits::default()
            },
        }
    }

    async fn broker(&self, broker: i32, handler: Arc<dyn Handler>) -> Broker {
        self.start(self.options(NodeId::of(broker, 1)), handler)
            .await
    }

    async fn start(&self, options: PeerOptions, handler: Arc<dyn Handler>) -> Broker {
        let me = options.me.broker();
        let port = self.addresses.0.lock().get(&me).copied().unwrap_or(0);
        let listener = listen(me, port).await;
        self.addresses
            .set(me, listener.local_addr().unwrap().port());
        let peers = Peers::new(options);
        assert!(peers.set_handler(handler));
        let acceptor = TlsAcceptor::from(self.identity(me).server(&self.authority));
        let accepting = tokio::spawn(accept(listener, acceptor, Arc::clone(&peers)));
        Broker { peers, accepting }
    }

    /// A listener of a broker that is played by the test.
    async fn fake(&self, broker: i32) -> Fake {
        let listener = listen(broker, 0).await;
        self.addresses
            .set(broker, listener.local_addr().unwrap().port());
        Fake {
            listener,
            acceptor: TlsAcceptor::from(self.identity(broker).server(&self.authority)),
        }
    }
}

async fn listen(broker: i32, port: u16) -> TcpListener {
    let address: SocketAddr = format!("{}:{port}", host(broker)).parse().unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(16).unwrap()
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, peers: Arc<Peers>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        let peers = Arc::clone(&peers);
        tokio::spawn(async move {
            let tcp = BufReader::with_capacity(READ_AHEAD, tcp);
            let Ok(tls) = acceptor.accept(tcp).await else {
                return;
            };
            let shown = shown(&tls);
            peers.serve(tls, shown).await;
        });
    }
}

fn shown(tls: &TlsStream<BufReader<TcpStream>>) -> PeerCertificate {
    let connection = tls.get_ref().1;
    assert_eq!(connection.alpn_protocol(), Some(ALPN));
    let chain = connection.peer_certificates().unwrap();
    PeerCertificate::new(chain.iter().map(|one| one.clone().into_owned()).collect())
}

struct Broker {
    peers: Arc<Peers>,
    accepting: JoinHandle<()>,
}

impl Broker {
    /// Ends as a process does that is told to: nothing listens any more.
    async fn stop(self) {
        self.accepting.abort();
        assert!(self.accepting.await.unwrap_err().is_cancelled());
        self.peers.shutdown().await;
    }

    async fn connected_to(&self, broker: i32) -> NodeId {
        self.peers.connect(broker);
        let mut states = self.peers.connected();
        let is_up = |states: &std::collections::BTreeMap<i32, PeerState>| match states.get(&broker)
        {
            Some(PeerState::Up(node)) => Some(*node),
            _ => None,
        };
        let states = soon(states.wait_for(|states| is_up(states).is_some())).await;
        is_up(&states.unwrap()).unwrap()
    }

    /// Why it is not connected, once there is a reason.
    async fn refusal_of(&self, broker: i32) -> String {
        self.peers.connect(broker);
        let mut states = self.peers.connected();
        let is_down =
            |states: &std::collections::BTreeMap<i32, PeerState>| match states.get(&broker) {
                Some(PeerState::Down(reason)) => Some(reason.clone()),
                _ => None,
            };
        let states = soon(states.wait_for(|states| is_down(states).is_some())).await;
        is_down(&states.unwrap()).unwrap()
    }
}

async fn next(events: &mut broadcast::Receiver<PeerEvent>) -> PeerEvent {
    soon(events.recv()).await.unwrap()
}

struct Fake {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Fake {
    async fn tls(&self) -> TlsStream<BufReader<TcpStream>> {
        let (tcp, _) = soon(self.listener.accept()).await.unwrap();
        soon(self.acceptor.accept(BufReader::new(tcp)))
            .await
            .unwrap()
    }
}
