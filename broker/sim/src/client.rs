//! Producers, which retry as Kafka's do: what was not acknowledged is sent again, in order and with the same numbers, to whoever leads then.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use palisade_log::ShardId;
use palisade_shard::NodeId;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    chance::{Chance, mix},
    leader::Refused,
    machine::Append,
    oracle::Ack,
    plan::{BATCH, Producer},
    world::World,
};

/// How long a producer waits for an answer before it connects anew.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// How long it waits before it tries again.
const BACKOFF: Duration = Duration::from_millis(50);

type Answer = Result<Ack, Refused>;

struct Connection {
    target: usize,
    sent: u64,
    last: u64,
}

/// Sends all batches of a producer and returns when they are acknowledged.
pub(crate) async fn produce(world: Arc<World>, producer: Producer) {
    let begun = Instant::now();
    let mut acknowledged = 0;
    let mut target = producer.id as usize % world.plan.brokers;
    let mut number = 0;
    while acknowledged < producer.batches {
        number += 1;
        let mut connection = Connection {
            target,
            sent: number << 20,
            last: 0,
        };
        let mut waiting = VecDeque::new();
        let mut next = acknowledged;
        let refused = loop {
            let planned = Duration::from_micros(producer.every) * next;
            // The last one is for the cluster that has healed: it has to do something, not only to look well.
            let available = begun
                + match next.saturating_add(1) == producer.batches {
                    true => planned.max(Duration::from_micros(world.plan.heals_at)),
                    false => planned,
                };
            let may_send = next < producer.batches && waiting.len() < producer.window;
            if may_send && available <= Instant::now() {
                waiting.push_back(send(&world, &producer, &mut connection, next));
                next += 1;
                continue;
            }
            let answer = async {
                match waiting.front_mut() {
                    Some(front) => tokio::time::timeout(PATIENCE, front).await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                biased;
                answer = answer => answer,
                () = tokio::time::sleep_until(available), if may_send => continue,
            };
            match answer {
                Ok(Ok(Ok(_))) => {
                    waiting.pop_front();
                    acknowledged += 1;
                    if acknowledged == producer.batches {
                        break None;
                    }
                }
                Ok(Ok(Err(refused))) => break Some(refused),
                Ok(Err(_)) | Err(_) => break None,
            }
        };
        target = match refused {
            Some(Refused::NotLeader(Some(leader))) => broker_of(leader),
            Some(Refused::Again | Refused::OutOfOrder) => target,
            Some(Refused::NotLeader(None)) | None => (target + 1) % world.plan.brokers,
        };
        tokio::time::sleep(BACKOFF).await;
    }
}

fn broker_of(node: NodeId) -> usize {
    usize::try_from(node.broker()).unwrap_or(0)
}

fn send(
    world: &Arc<World>,
    producer: &Producer,
    connection: &mut Connection,
    batch: u32,
) -> oneshot::Receiver<Answer> {
    let (answer, answered) = oneshot::channel();
    let id = u64::from(producer.id);
    let append = Append {
        partition: producer.partition,
        base: 0,
        term: 0,
        producer: producer.id,
        idempotent: producer.idempotent,
        sequence: batch * BATCH,
        count: BATCH,
    };
    connection.sent += 1;
    let key = mix(&[id, connection.sent, 9]);
    let mut chance = Chance::of(&[world.seed, 30, id, connection.sent]);
    let delay = chance.delay(world.plan.network_delay);
    let at = world
        .schedule
        .now()
        .saturating_add(delay)
        .max(connection.last + 1);
    connection.last = at;
    let (this, target, shard) = (
        Arc::clone(world),
        connection.target,
        ShardId(producer.shard),
    );
    world.schedule.at(at, key, move || {
        this.say(&[9, append.key(), target as u64], || {
            format!(
                "producer {id} sends {}+{BATCH} to broker {target}",
                append.sequence
            )
        });
        let Some(process) = this.process(target) else {
            return;
        };
        let (node, life) = (process.node, process.life);
        let answered = process.produce(Arc::clone(&this), shard, append);
        tokio::spawn(async move {
            let result = answered.await;
            if !this.is_alive(node, life) {
                return;
            }
            if let Ok(ack) = result {
                this.oracle.acknowledged(ack);
            }
            let at = this
                .schedule
                .now()
                .saturating_add(chance.delay(this.plan.network_delay));
            if chance.permille(20) {
                return;
            }
            this.schedule.at(at, mix(&[key, 1]), move || {
                // A client that has given up is not there any more.
                let _ = answer.send(result);
            });
        });
    });
    answered
}
