//! Has the faults of a plan happen, and does what the cluster's own housekeeping would: put members right and move leaders.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use palisade_log::ShardId;

use crate::{Mutation, plan::Fault, world::World};

/// How often members are looked at.
const CHECK: Duration = Duration::from_millis(300);

/// Has a fault happen now.
pub(crate) fn inject(world: &Arc<World>, number: u64, fault: &Fault) {
    world.say(&[10, number], || format!("fault: {fault:?}"));
    match *fault {
        Fault::Crash {
            broker,
            operations: None,
            down,
        } => {
            if world.has_process(broker) && world.crash(broker, "the power failed") {
                world.start_after(broker, down);
            }
        }
        Fault::Crash {
            broker,
            operations: Some(operations),
            ..
        } => {
            world.with_disk(broker, |disk| disk.fail_power_after(operations));
        }
        Fault::SyncFails { broker, after, .. } => {
            world.with_disk(broker, |disk| disk.fail_sync_after(after));
        }
        Fault::Wipe { broker, down } => {
            if world.is_whole() {
                world.wipe(broker);
                world.start_after(broker, down);
            }
        }
        Fault::OneWay { from, to, time } => cut(world, number, vec![(from, to)], time),
        Fault::Split { set, time } => {
            let all = 0..world.plan.brokers;
            // On either side is somebody.
            let everybody = (1_u64 << world.plan.brokers).saturating_sub(1);
            let set = 1 + set % everybody.saturating_sub(1).max(1);
            let is_in = |broker: usize| (set >> broker) & 1 == 1;
            let pairs = all
                .clone()
                .flat_map(|from| all.clone().map(move |to| (from, to)))
                .filter(|(from, to)| is_in(*from) != is_in(*to))
                .collect();
            cut(world, number, pairs, time);
        }
        Fault::Lossy { permille, time } => {
            world.network.lose(permille, number);
            later(world, number, time, move |world| {
                world.network.lose_no_more(number);
            });
        }
        Fault::Slow { broker, each, time } => {
            world.slow_down(broker, each, number);
            later(world, number, time, move |world| {
                world.speed_up(broker, number);
            });
        }
        Fault::Break { from, to } => {
            let nodes = world.nodes();
            if let (Some(from), Some(to)) = (nodes.get(from), nodes.get(to)) {
                world.network.give_up(*from, *to, true);
            }
        }
        Fault::Transfer { to } => {
            let nodes = world.nodes();
            for process in world.running() {
                for hosted in process.shards.values() {
                    let Some(to) = nodes.get(to).copied() else {
                        continue;
                    };
                    let shard = Arc::clone(&hosted.shard);
                    if shard.leadership().borrow().is_some() && to != process.node {
                        tokio::spawn(async move { shard.transfer_leadership(to).await });
                    }
                }
            }
        }
        Fault::Blackout { down } => {
            for broker in 0..world.plan.brokers {
                if world.has_process(broker) && world.crash(broker, "the power failed everywhere") {
                    world.start_after(broker, down);
                }
            }
        }
        Fault::Rumour { broker } => {
            if let Some(node) = world.nodes().get(broker) {
                let others = world.running();
                let others = others.iter().filter(|process| process.node != *node);
                for hosted in others.flat_map(|process| process.shards.values()) {
                    hosted.shard.peer_lost(*node);
                }
            }
        }
        Fault::Checkpoint { broker } => {
            let process = world.process(broker);
            for hosted in process.iter().flat_map(|process| process.shards.values()) {
                let shard = Arc::clone(&hosted.shard);
                tokio::spawn(async move { shard.checkpoint().await.map(drop) });
            }
        }
    }
}

fn broker(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn cut(world: &Arc<World>, number: u64, pairs: Vec<(usize, usize)>, time: u64) {
    for (from, to) in &pairs {
        world.network.cut(broker(*from), broker(*to));
    }
    later(world, number, time, move |world| {
        for (from, to) in &pairs {
            world.network.join(broker(*from), broker(*to));
        }
    });
}

fn later(
    world: &Arc<World>,
    number: u64,
    time: u64,
    action: impl FnOnce(&Arc<World>) + Send + 'static,
) {
    let this = Arc::clone(world);
    let at = world.schedule.now().saturating_add(time);
    world.schedule.at(at, number, move || {
        this.say(&[11, number], || format!("fault {number} ends"));
        action(&this);
    });
}

/// No more faults.
pub(crate) fn heal(world: &Arc<World>) {
    world.say(&[12], || "all faults end".to_owned());
    world.network.heal();
    for index in 0..world.plan.brokers {
        world.slow_down(index, 0, 0);
    }
}

/// Ends processes of which a shard has stopped because of its disk, as the process itself has to do. Notes on the way which leaders have trimmed their log.
pub(crate) async fn watch_processes(world: Arc<World>) {
    let stays = world.mutation == Some(Mutation::StayWhenStopped);
    let mut seen = BTreeMap::new();
    loop {
        tokio::time::sleep(CHECK).await;
        for process in world.running() {
            let mut has_stopped = false;
            for (shard, hosted) in &process.shards {
                let status = hosted.shard.status();
                has_stopped |= status.stopped;
                let purged = status.purged.unwrap_or(0);
                let before = seen.insert((process.node, process.life, *shard), purged);
                if status.leader == Some(process.node) && before.is_some_and(|it| it < purged) {
                    world.oracle.change(|history| {
                        history.trims = history.trims.saturating_add(1);
                    });
                }
            }
            if has_stopped && !stays {
                world.end_if_failed(process.node, process.life);
            }
        }
    }
}

/// Puts the members of a shard right for ever, wherever it is led from.
pub(crate) async fn keep_members(world: Arc<World>, shard: ShardId) {
    loop {
        tokio::time::sleep(CHECK).await;
        let nodes = world.nodes();
        let leader = world.running().into_iter().find_map(|process| {
            let shard = Arc::clone(&process.shards.get(&shard)?.shard);
            let leadership = *shard.leadership().borrow();
            leadership.map(|_| shard)
        });
        let Some(leader) = leader else {
            continue;
        };
        let status = leader.status();
        if !status.voters.iter().eq(&nodes) || !status.learners.is_empty() || status.changing {
            let change = leader.set_members(nodes.into_iter().collect());
            let _ = tokio::time::timeout(Duration::from_secs(25), change).await;
        }
    }
}
