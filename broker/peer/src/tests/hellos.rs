//! Who is refused, and how that is said.

use super::*;
use crate::{frame::What, hello::VERSION, tests::wire::Raw};

#[tokio::test]
async fn a_broker_of_another_cluster_is_refused() {
    let net = Net::new();
    let two = net.broker(2, echo()).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.cluster_id = "elsewhere".to_owned();
    let one = net.start(options, echo()).await;
    let reason = one.refusal_of(2).await;
    assert!(
        reason.contains("refuses this broker")
            && reason.contains("belongs to cluster \"elsewhere\", this broker to \"test-cluster\""),
        "{reason}"
    );
    assert_eq!(two.peers.node_of(1), None);
}

#[tokio::test]
async fn a_certificate_for_another_broker_is_refused() {
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.connector = Arc::new(Fixed(net.identity(3).client(&net.authority)));
    let one = net.start(options, echo()).await;
    let reason = one.refusal_of(2).await;
    assert!(
        reason.contains("claims to be broker 1, but its certificate is not valid for 127.0.0.1"),
        "{reason}"
    );
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_by_both_sides() {
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let stranger = Authority::new("stranger");
    // The server does not accept the client's certificate.
    let mut options = net.options(NodeId::of(1, 1));
    options.connector = Arc::new(Fixed(stranger.issue(&host(1)).client(&net.authority)));
    let one = net.start(options, echo()).await;
    let reason = one.refusal_of(2).await;
    assert!(reason.to_lowercase().contains("alert"), "{reason}");
    // The client does not accept the server's.
    let mut options = net.options(NodeId::of(3, 1));
    options.connector = Arc::new(Fixed(net.identity(3).client(&stranger)));
    let three = net.start(options, echo()).await;
    let reason = three.refusal_of(2).await;
    assert!(
        reason.contains("TLS with 127.0.0.2") && reason.contains("UnknownIssuer"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_server_at_the_wrong_place_is_refused() {
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let one = net.broker(1, echo()).await;
    // Broker 3 is said to be at 127.0.0.3, where a process with the certificate of broker 2 listens.
    let listener = listen(3, 0).await;
    net.addresses.set(3, listener.local_addr().unwrap().port());
    let acceptor = TlsAcceptor::from(net.identity(2).server(&net.authority));
    let fake = Fake { listener, acceptor };
    let (tcp, reason) = tokio::join!(fake.listener.accept(), async {
        one.peers.connect(3);
        tokio::task::yield_now().await;
    });
    assert_eq!(reason, ());
    drop(fake.acceptor.accept(BufReader::new(tcp.unwrap().0)).await);
    let reason = one.refusal_of(3).await;
    assert!(reason.contains("not valid for name"), "{reason}");
}

#[tokio::test]
async fn another_version_is_refused_with_a_reason() {
    let net = Net::new();
    let two = net.broker(2, echo()).await;
    let mut raw = Raw::connect(&net, 1, 2).await;
    let mut hello = wire::hello(1);
    hello.version = VERSION + 1;
    raw.send(&hello.frame()).await;
    let answer = raw.frame().await.unwrap();
    assert_eq!(answer.what, What::Reject);
    assert_eq!(
        answer.message.head,
        "it speaks version 2 of the protocol, this broker speaks 1"
    );
    assert!(raw.frame().await.is_none());
    assert_eq!(two.peers.node_of(1), None);
}

#[tokio::test]
async fn an_answer_of_another_version_is_not_believed() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let one = net.broker(1, echo()).await;
    one.peers.connect(2);
    let mut raw = Raw::of(fake.tls().await);
    assert_eq!(raw.frame().await.unwrap().what, What::Hello);
    let mut hello = wire::hello(2);
    hello.version = 9;
    raw.send(&hello.frame()).await;
    let reason = one.refusal_of(2).await;
    assert!(reason.contains("speaks version 9"), "{reason}");
}

#[tokio::test]
async fn a_broker_that_is_starting_says_so() {
    let net = Net::new();
    let peers = Peers::new(net.options(NodeId::of(2, 1)));
    let fake = net.fake(2).await;
    tokio::spawn(accept(fake.listener, fake.acceptor, Arc::clone(&peers)));
    let one = net.broker(1, echo()).await;
    let reason = one.refusal_of(2).await;
    assert!(reason.contains("this broker is starting"), "{reason}");
    assert!(peers.set_handler(echo()));
    assert!(!peers.set_handler(echo()));
    one.connected_to(2).await;
}
