//! Calls and their answers.

use palisade_log::ShardId;
use palisade_shard::{Transport, TransportError};
use tokio::sync::Notify;

use super::*;

#[tokio::test]
async fn a_call_is_answered_by_whom_it_names() {
    let net = Net::new();
    let two = net
        .broker(
            2,
            Arc::new(Answers(|from: NodeId, channel, message: Message| {
                Box::pin(async move {
                    match channel {
                        7 => Err(Refused::NotHosted),
                        8 => Err(Refused::Failed("not now".to_owned())),
                        _ => Ok(Message {
                            kind: message.kind + 1,
                            head: Bytes::from(format!("{from}, {channel}")),
                            payload: message.payload,
                        }),
                    }
                }) as BoxFuture<'static, _>
            })),
        )
        .await;
    let one = net.broker(1, echo()).await;
    let to = NodeId::of(2, 1);

    // The first call waits for the connection.
    let answer = soon(one.peers.call(to, ShardId(3), message(1, "a", 300_000))).await;
    let answer = answer.unwrap();
    assert_eq!(answer.kind, 2);
    assert_eq!(answer.head, "broker 1 (00000001), 3");
    assert_eq!(answer.payload.concat(), vec![7; 300_000]);

    let answer = soon(one.peers.call_cluster(2, message(1, "a", 0))).await;
    assert_eq!(answer.unwrap().head, "broker 1 (00000001), 4294967295");

    let refused = soon(one.peers.call(to, ShardId(7), message(1, "a", 0))).await;
    assert_eq!(refused.unwrap_err(), TransportError::NotHosted(to));
    let refused = one
        .peers
        .call_within(to, 8, message(1, "a", 0), Duration::from_secs(60));
    assert_eq!(
        soon(refused).await.unwrap_err(),
        CallError::Failed("not now".to_owned())
    );
    assert_eq!(one.peers.node_of(2), Some(to));
    assert_eq!(two.peers.node_of(1), Some(NodeId::of(1, 1)));
    // The other direction is a connection of its own.
    let answer = soon(two.peers.call_cluster(1, message(5, "b", 1))).await;
    assert_eq!(answer.unwrap().head, "b");
}

#[tokio::test]
async fn who_is_not_there_cannot_be_reached() {
    let net = Net::new();
    let one = net.broker(1, echo()).await;
    let reason = |result: Result<Message, CallError>| match result.unwrap_err() {
        CallError::Unreachable(reason) => reason,
        other => panic!("{other}"),
    };
    let unknown = reason(soon(one.peers.call_cluster(9, message(1, "", 0))).await);
    assert!(unknown.contains("no address"), "{unknown}");
    assert_eq!(*one.peers.connected().borrow(), [].into());
    let own = reason(soon(one.peers.call_cluster(1, message(1, "", 0))).await);
    assert!(own.contains("this broker itself"), "{own}");

    // Nothing listens there.
    drop(net.fake(2).await);
    let refused = reason(soon(one.peers.call_cluster(2, message(1, "", 0))).await);
    assert!(refused.contains("cannot connect to 127.0.0.2"), "{refused}");
    let large = message(1, "", Limits::default().frame_bytes);
    let large = reason(soon(one.peers.call_cluster(2, large)).await);
    assert!(large.contains("over the limit"), "{large}");
}

#[tokio::test]
async fn a_call_for_an_earlier_incarnation_is_not_delivered() {
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let one = net.broker(1, echo()).await;
    let before = NodeId::of(2, 9);
    for _ in 0..2 {
        // Once waiting for the connection, once on it.
        let error = soon(one.peers.call(before, ShardId(1), message(1, "", 0)))
            .await
            .unwrap_err();
        assert_eq!(
            error,
            TransportError::Unreachable(before, "broker 2 (00000001) is in its place".to_owned())
        );
        one.connected_to(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_channel_are_handed_over_in_order() {
    const CHANNELS: u32 = 8;
    const CALLS: u32 = 400;
    let net = Net::new();
    let seen: Arc<Mutex<HashMap<u32, Vec<u32>>>> = Arc::default();
    let order = Arc::clone(&seen);
    let handler = Answers(move |_, channel, message: Message| {
        let number = u32::from_be_bytes(*message.head.first_chunk().unwrap());
        order.lock().entry(channel).or_default().push(number);
        Box::pin(async move {
            // Answers come in another order.
            for _ in 0..number % 5 {
                tokio::task::yield_now().await;
            }
            Ok(Message {
                payload: Vec::new(),
                ..message
            })
        }) as BoxFuture<'static, _>
    });
    let _two = net.broker(2, Arc::new(handler)).await;
    let one = net.broker(1, echo()).await;
    let callers = (0..CHANNELS).map(|channel| {
        let peers = Arc::clone(&one.peers);
        tokio::spawn(async move {
            let answers: Vec<_> = (0..CALLS)
                .map(|number| {
                    let head = Bytes::copy_from_slice(&number.to_be_bytes());
                    let payload = vec![Bytes::from(vec![1; (number as usize * 37) % 30_000])];
                    let message = Message {
                        kind: 1,
                        head,
                        payload,
                    };
                    peers.call(NodeId::of(2, 1), ShardId(channel), message)
                })
                .collect();
            for (number, answer) in answers.into_iter().enumerate() {
                let head = soon(answer).await.unwrap().head;
                assert_eq!(head, (number as u32).to_be_bytes().as_slice());
            }
        })
    });
    soon(futures::future::try_join_all(callers)).await.unwrap();
    let seen = seen.lock();
    assert_eq!(seen.len(), CHANNELS as usize);
    for numbers in seen.values() {
        assert_eq!(*numbers, (0..CALLS).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_slow_handler_does_not_stop_other_channels() {
    let net = Net::new();
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let handler = Answers(move |_, channel, message| {
        let released = Arc::clone(&released);
        Box::pin(async move {
            if channel == 1 {
                released.notified().await;
            }
            Ok(message)
        }) as BoxFuture<'static, _>
    });
    let _two = net.broker(2, Arc::new(handler)).await;
    let one = net.broker(1, echo()).await;
    let to = NodeId::of(2, 1);
    let mut slow = one.peers.call(to, ShardId(1), message(1, "slow", 100));
    for _ in 0..20 {
        let quick = one.peers.call(to, ShardId(2), message(1, "quick", 100_000));
        assert_eq!(soon(quick).await.unwrap().head, "quick");
        assert!(futures::poll!(&mut slow).is_pending());
    }
    release.notify_one();
    assert_eq!(soon(slow).await.unwrap().head, "slow");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_not_waited_for() {
    let net = Net::new();
    let handler = Answers(|_, channel, message| {
        Box::pin(async move {
            if channel == 1 {
                futures::future::pending::<()>().await;
            }
            Ok(message)
        }) as BoxFuture<'static, _>
    });
    let _two = net.broker(2, Arc::new(handler)).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.limits.patience =
        |channel, kind| Duration::from_secs(if (channel, kind) == (1, 6) { 0 } else { 600 });
    let one = net.start(options, echo()).await;
    let to = NodeId::of(2, 1);
    let late = soon(one.peers.call(to, ShardId(1), message(6, "", 0))).await;
    assert_eq!(late.unwrap_err(), TransportError::TimedOut(to));
    // The connection is none the worse for it.
    soon(one.peers.call(to, ShardId(2), message(6, "", 0)))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_being_handled_is_answered_before_the_end() {
    let net = Net::new();
    let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, released) = (Arc::clone(&begun), Arc::clone(&release));
    let handler = Answers(move |_, _, message| {
        let released = Arc::clone(&released);
        begin.notify_one();
        Box::pin(async move {
            released.notified().await;
            Ok(message)
        }) as BoxFuture<'static, _>
    });
    let two = net.broker(2, Arc::new(handler)).await;
    let one = net.broker(1, echo()).await;
    let mut events = one.peers.events();
    let call = one
        .peers
        .call(NodeId::of(2, 1), ShardId(1), message(1, "last", 9));
    soon(begun.notified()).await;
    let stopped = two.stop();
    tokio::pin!(stopped);
    assert!(futures::poll!(&mut stopped).is_pending());
    release.notify_one();
    let (answer, ()) = soon(async { tokio::join!(call, stopped) }).await;
    assert_eq!(answer.unwrap().head, "last");
    assert_eq!(next(&mut events).await, PeerEvent::Up(NodeId::of(2, 1)));
    assert_eq!(next(&mut events).await, PeerEvent::Lost(NodeId::of(2, 1)));

    one.peers.shutdown().await;
    let error = soon(one.peers.call_cluster(2, message(1, "", 0))).await;
    assert_eq!(
        error.unwrap_err(),
        CallError::Unreachable("this broker stops".to_owned())
    );
}
