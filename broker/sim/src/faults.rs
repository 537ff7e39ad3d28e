//! Has the faults of a plan happen, and does what the cluster's own housekeeping would: put members right and move leaders.

use std::{sync::Arc, time::Duration};

use palisade_log::ShardId;

use crate::{plan::Fault, world::World};

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
            let is_in = |broker: usize| (set >> broker) & 1 == 1;
            let all = 0..world.plan.brokers;
            let pairs = all
                .clone()
                .flat_map(|from| all.clone().map(move |to| (from, to)))
                .filter(|(from, to)| is_in(*from) != is_in(*to))
                .collect();
            cut(world, number, pairs, time);
        }
        Fault::Lossy { permille, time } => {
            world.network.lose(permille);
            later(world, number, time, |world| world.network.lose(0));
        }
        Fault::Slow { broker, each, time } => {
            world.slow_down(broker, each);
            later(world, number, time, move |world| world.slow_down(broker, 0));
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
        world.slow_down(index, 0);
    }
}

/// Ends processes of which a shard has stopped because of its disk, as the process itself has to do.
pub(crate) async fn watch_processes(world: Arc<World>) {
    loop {
        tokio::time::sleep(CHECK).await;
        for process in world.running() {
            let mut shards = process.shards.values();
            if shards.any(|hosted| hosted.shard.status().stopped) {
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
