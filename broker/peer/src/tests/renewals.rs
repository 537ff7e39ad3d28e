//! Certificates that change, and connections that get old.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use palisade_log::ShardId;
use palisade_shard::Transport;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::{frame::What, tests::wire::Raw};

/// Reads the certificate for every connection.
struct Disk {
    path: PathBuf,
    net: Arc<Net>,
}

impl Connector for Disk {
    fn config(&self) -> Arc<ClientConfig> {
        Identity::from_bytes(&std::fs::read(&self.path).unwrap()).client(&self.net.authority)
    }
}

/// Is told whom to believe.
struct Judge {
    config: Arc<ClientConfig>,
    changes: watch::Sender<()>,
    refuses: AtomicBool,
}

impl Judge {
    fn of(identity: &Identity, net: &Net) -> Arc<Self> {
        Arc::new(Self {
            config: identity.client(&net.authority),
            changes: watch::Sender::new(()),
            refuses: AtomicBool::new(false),
        })
    }

    /// Something is replaced; whether anybody is believed from then on.
    fn replace(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
        self.changes.send_replace(());
    }
}

impl Connector for Judge {
    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    fn changes(&self) -> Option<watch::Receiver<()>> {
        Some(self.changes.subscribe())
    }

    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        assert!(!chain.is_empty());
        !self.refuses.load(Ordering::Relaxed)
    }
}

/// Takes connections, shows the certificates that they come with, and serves them.
async fn show(fake: Fake, peers: Arc<Peers>, seen: mpsc::UnboundedSender<Vec<u8>>) {
    loop {
        let (tcp, _) = fake.listener.accept().await.unwrap();
        let tls = fake.acceptor.accept(BufReader::new(tcp)).await.unwrap();
        let leaf = &tls.get_ref().1.peer_certificates().unwrap()[0];
        seen.send(leaf.to_vec()).unwrap();
        let shown = shown(&tls);
        tokio::spawn(peers.serve(tls, shown));
    }
}

#[tokio::test]
async fn a_new_certificate_is_used_by_the_next_connection_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    let net = Arc::new(Net::new());
    let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
    let order = Arc::clone(&seen);
    let two = Peers::new(net.options(NodeId::of(2, 1)));
    two.set_handler(Arc::new(Answers(move |_, _, message: Message| {
        let number = u32::from_be_bytes(*message.head.first_chunk().unwrap());
        order.lock().push(number);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(u64::from(number % 20))).await;
            Ok(message)
        }) as BoxFuture<'static, _>
    })));
    let (certificates, mut shown) = mpsc::unbounded_channel();
    tokio::spawn(show(net.fake(2).await, Arc::clone(&two), certificates));

    let first = net.identity(1);
    std::fs::write(&path, first.to_bytes()).unwrap();
    let mut options = net.options(NodeId::of(1, 1));
    options.connector = Arc::new(Disk {
        path: path.clone(),
        net: Arc::clone(&net),
    });
    options.limits.max_age = Duration::from_millis(300);
    // Under load a connection may be old before it is replaced; that alone must not end it here.
    options.limits.silence = Duration::from_secs(20);
    let one = net.start(options, echo()).await;
    let mut events = one.peers.events();
    assert_eq!(one.connected_to(2).await, NodeId::of(2, 1));
    assert_eq!(soon(shown.recv()).await.unwrap(), *first.certificate);

    let second = net.identity(1);
    std::fs::write(&path, second.to_bytes()).unwrap();
    let mut calls = Vec::new();
    let mut number = 0u32;
    let mut replaced = 0;
    while replaced < 3 {
        let message = Message {
            kind: 1,
            head: Bytes::copy_from_slice(&number.to_be_bytes()),
            payload: vec![Bytes::from(vec![1; 5000])],
        };
        calls.push(one.peers.call(NodeId::of(2, 1), ShardId(1), message));
        number += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Ok(certificate) = shown.try_recv() {
            // The first one may have been dialled before the file changed.
            replaced += u32::from(certificate == *second.certificate);
        }
    }
    for call in calls {
        soon(call).await.unwrap();
    }
    assert_eq!(*seen.lock(), (0..number).collect::<Vec<_>>());
    assert_eq!(next(&mut events).await, PeerEvent::Up(NodeId::of(2, 1)));
    assert!(
        events.try_recv().is_err(),
        "a replaced connection is no loss"
    );
}

#[tokio::test]
async fn an_old_connection_that_cannot_be_replaced_stays_for_a_time_only() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.limits.max_age = Duration::from_secs(1);
    let one = net.start(options, echo()).await;
    let mut events = one.peers.events();
    let call = one.peers.call_cluster(2, message(1, "a", 0));
    let mut raw = fake.greeted(2).await;
    assert_eq!(raw.frame().await.unwrap().what, What::Request);
    drop(fake.listener);
    assert_eq!(next(&mut events).await, PeerEvent::Up(NodeId::of(2, 1)));
    // It is alive all the time.
    let alive = async {
        loop {
            raw.send(&crate::frame::Frame::bare(What::Ping, 0)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let error = tokio::select! {
        error = soon(call) => error.unwrap_err(),
        () = alive => unreachable!(),
    };
    assert!(
        matches!(&error, CallError::Broken(reason) if reason.contains("too old and cannot be replaced: cannot connect")),
        "{error}"
    );
}

#[tokio::test]
async fn a_handover_waits_until_everything_was_handed_over() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.limits.max_age = Duration::from_millis(200);
    options.limits.silence = Duration::from_secs(20);
    let one = net.start(options, echo()).await;
    let before = one.peers.call_cluster(2, message(1, "before", 0));
    let mut old = fake.greeted(2).await;
    let asked = old.frame().await.unwrap();
    assert_eq!(asked.message.head, "before");
    let mut new = fake.greeted(2).await;
    // The old one is asked whether everything arrived.
    let barrier = old.frame().await.unwrap();
    assert_eq!(barrier.what, What::Ping);
    let after = one.peers.call_cluster(2, message(1, "after", 0));
    let early = tokio::time::timeout(Duration::from_millis(100), new.frame()).await;
    assert!(early.is_err(), "{early:?}");
    old.send(&crate::frame::Frame::bare(What::Pong, barrier.correlation))
        .await;
    let next = new.frame().await.unwrap();
    assert_eq!(next.message.head, "after");
    // The old one's answer still counts, then it is closed.
    let answer = |frame: crate::frame::Frame| crate::frame::Frame {
        what: What::Answer,
        ..frame
    };
    old.send(&answer(asked)).await;
    assert_eq!(soon(before).await.unwrap().head, "before");
    assert!(old.frame().await.is_none());
    new.send(&answer(next)).await;
    assert_eq!(soon(after).await.unwrap().head, "after");
    drop(new);
}

#[tokio::test]
async fn the_server_ends_a_connection_that_nobody_replaces() {
    let net = Net::new();
    let mut options = net.options(NodeId::of(2, 1));
    options.limits.max_age = Duration::from_millis(100);
    options.limits.retire = Duration::from_millis(100);
    options.limits.keep_alive = Duration::from_millis(20);
    // Longer than the end is waited for: it is not silence.
    options.limits.silence = Duration::from_secs(3600);
    let _two = net.start(options, echo()).await;
    let mut raw = Raw::greeted(&net, 1, 2).await;
    assert!(raw.frame().await.is_none());
}

#[tokio::test]
async fn a_connection_is_renewed_when_something_is_replaced_and_ends_when_it_is_not_trusted_any_more()
 {
    let net = Net::new();
    let fake = net.fake(2).await;
    let judge = Judge::of(&net.identity(1), &net);
    let mut options = net.options(NodeId::of(1, 1));
    options.connector = Arc::clone(&judge) as _;
    let one = net.start(options, echo()).await;
    let before = one.peers.call_cluster(2, message(1, "before", 0));
    let mut called = fake.greeted(2).await;
    let asked = called.frame().await.unwrap();
    let mut calling = Raw::greeted(&net, 2, 1).await;

    // Long before it is old.
    judge.replace(false);
    let mut renewed = fake.greeted(2).await;
    let barrier = called.frame().await.unwrap();
    assert_eq!(barrier.what, What::Ping);
    let pong = crate::frame::Frame::bare(What::Pong, barrier.correlation);
    called.send(&pong).await;
    let answer = crate::frame::Frame {
        what: What::Answer,
        ..asked
    };
    called.send(&answer).await;
    assert_eq!(soon(before).await.unwrap().head, "before");
    let after = one.peers.call_cluster(2, message(1, "after", 0));
    assert_eq!(renewed.frame().await.unwrap().message.head, "after");
    let kept = tokio::time::timeout(Duration::from_millis(100), calling.frame()).await;
    assert!(kept.is_err(), "{kept:?}");

    judge.replace(true);
    assert!(calling.frame().await.is_none());
    let error = soon(after).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Broken(reason) if reason.contains("not trusted any more")),
        "{error}"
    );
}
