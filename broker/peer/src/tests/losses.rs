//! Connections that break, and come back.

use palisade_log::ShardId;
use palisade_shard::{Transport, TransportError};

use super::*;
use crate::{frame::What, tests::wire::Raw};

#[tokio::test]
async fn a_broken_connection_fails_what_waits_at_once() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let one = net.broker(1, echo()).await;
    let mut events = one.peers.events();
    let to = NodeId::of(2, 1);
    let calls: Vec<_> = (0..20)
        .map(|_| one.peers.call(to, ShardId(1), message(1, "a", 10)))
        .collect();
    let mut raw = fake.greeted(2).await;
    assert_eq!(raw.frame().await.unwrap().what, What::Request);
    assert_eq!(next(&mut events).await, PeerEvent::Up(to));
    drop(fake.listener);
    drop(raw);
    assert_eq!(next(&mut events).await, PeerEvent::Lost(to));
    for call in calls {
        let error = soon(call).await.unwrap_err();
        assert!(
            matches!(error, TransportError::Broken(node, _) if node == to),
            "{error}"
        );
    }
    // And nothing listens there any more.
    assert_eq!(next(&mut events).await, PeerEvent::Gone(to));
    let error = soon(one.peers.call(to, ShardId(1), message(1, "a", 10))).await;
    assert!(matches!(
        error.unwrap_err(),
        TransportError::Unreachable(..)
    ));
}

#[tokio::test]
async fn a_peer_that_restarts_is_connected_again() {
    let net = Net::new();
    let two = net.broker(2, echo()).await;
    let one = net.broker(1, echo()).await;
    let mut events = one.peers.events();
    let to = NodeId::of(2, 1);
    one.connected_to(2).await;
    assert_eq!(next(&mut events).await, PeerEvent::Up(to));
    assert!(one.peers.is_up(2));
    two.stop().await;
    assert_eq!(next(&mut events).await, PeerEvent::Lost(to));
    assert!(!one.peers.is_up(2));
    assert_eq!(next(&mut events).await, PeerEvent::Gone(to));
    assert!(!one.peers.is_up(2));

    let two = net.broker(2, echo()).await;
    assert_eq!(next(&mut events).await, PeerEvent::Up(to));
    soon(one.peers.call(to, ShardId(1), message(1, "a", 10)))
        .await
        .unwrap();
    two.stop().await;
    assert_eq!(next(&mut events).await, PeerEvent::Lost(to));
    assert_eq!(next(&mut events).await, PeerEvent::Gone(to));

    // With another data directory it is somebody else.
    let other = NodeId::of(2, 2);
    let _two = net.start(net.options(other), echo()).await;
    assert_eq!(next(&mut events).await, PeerEvent::Up(other));
    assert_eq!(one.peers.node_of(2), Some(other));
    let error = soon(one.peers.call(to, ShardId(1), message(1, "a", 10))).await;
    assert!(error.unwrap_err().to_string().contains("in its place"));
    soon(one.peers.call(other, ShardId(1), message(1, "a", 10)))
        .await
        .unwrap();
}

#[tokio::test]
async fn who_connects_here_is_connected_to_without_a_pause() {
    let net = Net::new();
    drop(net.fake(2).await);
    let mut options = net.options(NodeId::of(1, 1));
    // Only the peer's own connection can end this pause.
    options.limits.backoff_min = Duration::from_secs(3600);
    options.limits.backoff_max = Duration::from_secs(3600);
    let one = net.start(options, echo()).await;
    one.refusal_of(2).await;
    let two = net.broker(2, echo()).await;
    two.connected_to(1).await;
    one.connected_to(2).await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_lost() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.limits.keep_alive = Duration::from_millis(20);
    options.limits.silence = Duration::from_millis(400);
    let one = net.start(options, echo()).await;
    let mut events = one.peers.events();
    let call = one.peers.call_cluster(2, message(1, "a", 0));
    let _raw = fake.greeted(2).await;
    assert_eq!(next(&mut events).await, PeerEvent::Up(NodeId::of(2, 1)));
    assert_eq!(next(&mut events).await, PeerEvent::Lost(NodeId::of(2, 1)));
    // Who it was is still known.
    assert!(!one.peers.is_up(2));
    assert_eq!(one.peers.node_of(2), Some(NodeId::of(2, 1)));
    assert_eq!(
        soon(call).await.unwrap_err(),
        CallError::Broken("it was silent for 400ms".to_owned())
    );
}

#[tokio::test]
async fn a_caller_that_falls_silent_is_let_go() {
    let net = Net::new();
    let mut options = net.options(NodeId::of(2, 1));
    options.limits.keep_alive = Duration::from_millis(20);
    options.limits.silence = Duration::from_millis(400);
    let _two = net.start(options, echo()).await;
    let mut raw = Raw::greeted(&net, 1, 2).await;
    assert!(raw.frame().await.is_none());
}

#[tokio::test]
async fn an_idle_connection_lives_on() {
    let net = Net::new();
    let quick = |broker| {
        let mut options = net.options(NodeId::of(broker, 1));
        options.limits.keep_alive = Duration::from_millis(50);
        options.limits.silence = Duration::from_secs(2);
        options
    };
    let two = net.start(quick(2), echo()).await;
    let one = net.start(quick(1), echo()).await;
    let mut events = one.peers.events();
    one.connected_to(2).await;
    two.connected_to(1).await;
    assert_eq!(next(&mut events).await, PeerEvent::Up(NodeId::of(2, 1)));
    // Longer than silence is borne.
    let quiet = tokio::time::timeout(Duration::from_secs(3), events.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn an_unknown_broker_is_forgotten() {
    let net = Net::new();
    let two = net.broker(2, echo()).await;
    let one = net.broker(1, echo()).await;
    one.connected_to(2).await;
    net.addresses.0.lock().remove(&2);
    two.stop().await;
    let mut states = one.peers.connected();
    soon(states.wait_for(|states| states.is_empty()))
        .await
        .unwrap();
}
