//! What a connection carries, and what that costs. Both sides and both ends of TLS are in this process.
//!
//! `cargo test -p palisade-peer throughput -- --ignored --nocapture`
#![allow(clippy::print_stdout)]

use std::time::Instant;

use futures::{StreamExt, stream::FuturesUnordered};

use super::*;

const TOTAL: usize = 512 << 20;
/// Bytes that wait for an answer.
const WINDOW: usize = 4 << 20;

/// CPU time of the process. The unit of the system's ticks is 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[derive(Clone, Copy, Debug)]
enum Work {
    /// The answer is there at once.
    Immediate,
    /// The answer comes from another task later, and is waited for in the connection's.
    Later,
    /// A task for each message.
    Task,
}

fn handler(work: Work) -> Arc<dyn Handler> {
    Arc::new(Answers(move |_, _, message: Message| {
        let bytes = message.len();
        drop(message);
        let answer = move || Message {
            head: Bytes::copy_from_slice(&bytes.to_be_bytes()),
            ..Message::default()
        };
        match work {
            Work::Immediate => Box::pin(async move { Ok(answer()) }) as BoxFuture<'static, _>,
            Work::Later => Box::pin(async move {
                tokio::task::yield_now().await;
                Ok(answer())
            }),
            Work::Task => {
                let task = tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    answer()
                });
                Box::pin(async move { Ok(task.await.unwrap()) })
            }
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    for work in [Work::Immediate, Work::Later, Work::Task] {
        for size in [16 << 10, 128 << 10, 1 << 20] {
            let net = Net::new();
            let two = net.broker(2, handler(work)).await;
            let one = net.broker(1, echo()).await;
            one.connected_to(2).await;
            let payload = Bytes::from(vec![7; size]);
            let (began, cpu_before) = (Instant::now(), cpu());
            let mut waiting = FuturesUnordered::new();
            for number in 0..TOTAL / size {
                let message = Message {
                    kind: 1,
                    head: Bytes::from_static(b"position"),
                    payload: vec![payload.clone()],
                };
                waiting.push(one.peers.call_within(
                    NodeId::of(2, 1),
                    number as u32 % 12,
                    message,
                    Duration::from_secs(60),
                ));
                if waiting.len() * size >= WINDOW {
                    waiting.next().await.unwrap().unwrap();
                }
            }
            while let Some(answer) = waiting.next().await {
                answer.unwrap();
            }
            let (wall, cpu) = (began.elapsed(), cpu() - cpu_before);
            let megabytes = TOTAL as f64 / 1e6;
            println!(
                "{work:?} {:>5} KiB: {:>6.0} MB/s, {:.2} ms of CPU per MB",
                size >> 10,
                megabytes / wall.as_secs_f64(),
                cpu.as_secs_f64() * 1e3 / megabytes
            );
            one.stop().await;
            two.stop().await;
        }
    }
}
