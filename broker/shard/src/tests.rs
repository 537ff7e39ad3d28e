//! A shard from the outside: what was answered is there after a restart, in order, whatever was checkpointed.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{path::Path, sync::Arc, time::Duration};

use palisade_log::{ShardId, Wal, WalOptions, WalRecord};
use palisade_seal::{DirectoryProvider, FileKeys};
use tempfile::TempDir;

use super::*;

pub(crate) const SHARD: ShardId = ShardId(2);

/// Keeps every command, and a "file" with the state at the last checkpoint.
struct Recorder {
    dir: std::path::PathBuf,
    commands: Vec<Vec<u8>>,
    at: Option<LogPosition>,
    from_disk: usize,
}

impl Recorder {
    fn open(dir: &Path) -> Self {
        let mut this = Self {
            dir: dir.to_owned(),
            commands: Vec::new(),
            at: None,
            from_disk: 0,
        };
        if let Ok(bytes) = std::fs::read(dir.join("checkpoint")) {
            let (term, index, commands): (u64, u64, Vec<Vec<u8>>) =
                postcard::from_bytes(&bytes).unwrap();
            this.at = Some(LogPosition { term, index });
            this.from_disk = commands.len();
            this.commands = commands;
        }
        this
    }
}

impl StateMachine for Recorder {
    type Response = usize;

    fn apply(&mut self, at: LogPosition, command: Command) -> usize {
        assert!(self.at < Some(at), "applied in order, once");
        assert_ne!(&command.meta[..], b"poison", "the test asked for it");
        self.at = Some(at);
        self.commands
            .push([&command.meta[..], &command.payload[..]].concat());
        self.commands.len()
    }

    fn blank(&mut self, at: LogPosition) {
        self.at = Some(at);
    }

    fn applied(&self) -> Option<LogPosition> {
        self.at
    }

    fn checkpoint(&mut self) -> Result<LogPosition, CheckpointError> {
        let at = self.at.unwrap();
        let bytes = postcard::to_stdvec(&(at.term, at.index, &self.commands)).unwrap();
        std::fs::write(self.dir.join("checkpoint"), bytes)
            .map_err(|error| CheckpointError::Write(error.to_string()))?;
        Ok(at)
    }
}

pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        DirectoryProvider::create(dir.path().join("kek")).unwrap();
        Self(dir)
    }

    pub(crate) fn wal(&self) -> (Arc<Wal>, Vec<WalRecord>) {
        let provider = DirectoryProvider::load(self.0.path().join("kek")).unwrap();
        let keys = Arc::new(FileKeys::new(Arc::new(provider)));
        let mut options = WalOptions::new(self.0.path().join("wal"));
        options.file_bytes = 1 << 20;
        // The engine's tasks end a moment after the shard is dropped, and hold the log until then.
        let mut tries = 0;
        let (wal, records) = loop {
            match Wal::open(options.clone(), Arc::clone(&keys)) {
                Ok(opened) => break opened,
                Err(error) if tries == 100 => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
            tries += 1;
        };
        (Arc::new(wal), records)
    }

    async fn start(&self) -> (Shard<Recorder>, usize) {
        let (wal, records) = self.wal();
        let replayed = records.len();
        let shard = Shard::start(
            ShardConfig::new(SHARD, NodeId(1)),
            wal,
            records,
            Recorder::open(self.0.path()),
            Arc::new(NoPeers),
            Formation::Alone,
        )
        .await
        .unwrap();
        tokio::time::timeout(Duration::from_secs(10), shard.wait_for_leadership())
            .await
            .unwrap()
            .unwrap();
        (shard, replayed)
    }
}

fn command(number: usize) -> Command {
    Command::new(format!("{number:06}").into_bytes(), vec![b'x'; number % 50])
}

fn numbers(shard: &Shard<Recorder>) -> Vec<usize> {
    shard.read(|machine| {
        machine
            .commands
            .iter()
            .map(|bytes| std::str::from_utf8(&bytes[..6]).unwrap().parse().unwrap())
            .collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_a_restart_in_the_order_of_the_calls() {
    let home = Home::new();
    let (shard, _) = home.start().await;
    let first_term = shard.leadership().borrow().unwrap().term;
    let answers: Vec<_> = (0..10_000)
        .map(|number| shard.propose(command(number)))
        .collect();
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.await.unwrap(), number + 1);
    }
    drop(shard);
    let (shard, _) = home.start().await;
    assert_eq!(numbers(&shard), (0..10_000).collect::<Vec<_>>());
    assert!(
        shard.leadership().borrow().unwrap().term > first_term,
        "a new session is a new term, hence a new leader epoch"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_checkpoint_only_the_tail_is_replayed() {
    let home = Home::new();
    let (shard, _) = home.start().await;
    for number in 0..500 {
        shard.propose(command(number)).await.unwrap();
    }
    let at = shard.checkpoint().await.unwrap();
    assert!(at.index >= 500);
    for number in 500..520 {
        shard.propose(command(number)).await.unwrap();
    }
    shard.shutdown().await;
    drop(shard);
    let (shard, replayed) = home.start().await;
    assert!(
        replayed < 100,
        "{replayed} records were read where about 20 are needed"
    );
    assert_eq!(shard.read(|machine| machine.from_disk), 500);
    assert_eq!(numbers(&shard), (0..520).collect::<Vec<_>>());
    // And again, so that what a purge wrote down is itself read back.
    shard.checkpoint().await.unwrap();
    shard.shutdown().await;
    drop(shard);
    let (shard, _) = home.start().await;
    assert_eq!(shard.propose(command(520)).await.unwrap(), 521);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_checkpoint_is_noticed() {
    let home = Home::new();
    let (shard, _) = home.start().await;
    shard.propose(command(0)).await.unwrap();
    shard.checkpoint().await.unwrap();
    // The purge is the engine's own business; the next start must find it done.
    tokio::time::sleep(Duration::from_millis(200)).await;
    shard.shutdown().await;
    drop(shard);
    std::fs::remove_file(home.0.path().join("checkpoint")).unwrap();
    let (wal, records) = home.wal();
    let error = Shard::start(
        ShardConfig::new(SHARD, NodeId(1)),
        wal,
        records,
        Recorder::open(home.0.path()),
        Arc::new(NoPeers),
        Formation::Alone,
    )
    .await
    .err()
    .unwrap();
    assert!(
        error
            .to_string()
            .contains("part of the data directory is missing"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_no_record_can_hold_is_refused() {
    let home = Home::new();
    let (shard, _) = home.start().await;
    let error = shard
        .propose(Command::new(vec![], vec![0; 2 << 20]))
        .await
        .unwrap_err();
    assert!(matches!(error, ProposeError::TooLarge { .. }), "{error}");
    assert_eq!(
        shard.propose(command(0)).await.unwrap(),
        1,
        "and nothing else suffers"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_wait_is_refused_and_one_goes_through() {
    let home = Home::new();
    let (wal, records) = home.wal();
    let config = ShardConfig {
        pending_bytes: 100,
        ..ShardConfig::new(SHARD, NodeId(1))
    };
    let shard = Shard::start(
        config,
        wal,
        records,
        Recorder::open(home.0.path()),
        Arc::new(NoPeers),
        Formation::Alone,
    )
    .await
    .unwrap();
    shard.wait_for_leadership().await.unwrap();
    let large = shard.propose(Command::new(vec![b'0'; 6], vec![0; 200]));
    let refused = shard.propose(Command::new(vec![b'0'; 6], vec![0; 200]));
    assert_eq!(refused.await.unwrap_err(), ProposeError::Busy(SHARD));
    assert_eq!(large.await.unwrap(), 1);
    assert_eq!(shard.propose(command(1)).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_applying_stops_the_shard_and_answers_nobody() {
    let home = Home::new();
    let (shard, _) = home.start().await;
    let poisoned = shard.propose(Command::new(&b"poison"[..], vec![]));
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(10), poisoned)
            .await
            .unwrap()
            .unwrap_err(),
        ProposeError::Stopped(SHARD)
    );
    let mut leadership = shard.leadership();
    tokio::time::timeout(
        Duration::from_secs(10),
        leadership.wait_for(Option::is_none),
    )
    .await
    .unwrap()
    .unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(10), shard.wait_for_leadership());
    assert!(
        waited.await.unwrap().is_err(),
        "there is nothing to wait for"
    );
    assert!(
        matches!(shard.checkpoint().await, Err(CheckpointError::Stopped)),
        "half of a change must not become a checkpoint"
    );
}
