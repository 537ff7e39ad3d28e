#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use palisade_log::Offset;
use palisade_metadata::{ConfigOp, ConfigResource, MetadataCommand};
use palisade_seal::{DekVersion, DirectoryProvider, Sealer, SecretKey};

use super::*;
use crate::sealing::batch_aad;

struct Cluster {
    image: Image,
    publish: watch::Sender<Arc<Image>>,
    provider: Arc<dyn KeyProvider>,
    catalog: ImageCatalog,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let provider: Arc<dyn KeyProvider> =
            Arc::new(DirectoryProvider::create(dir.path().join("kek")).unwrap());
        let (publish, image) = watch::channel(Arc::new(Image::new()));
        let catalog = ImageCatalog::new(image, Arc::clone(&provider), || true);
        let mut cluster = Self {
            image: Image::new(),
            publish,
            provider,
            catalog,
            _dir: dir,
        };
        cluster.apply(MetadataCommand::Bootstrap {
            cluster_id: "c".to_owned(),
            data_shards: 3,
        });
        cluster.apply(MetadataCommand::RegisterBroker {
            id: 0,
            incarnation: TopicId::random().0,
            rack: None,
            endpoints: Vec::new(),
        });
        let pool = cluster.image.new_pool(1, true).unwrap();
        cluster.apply(pool);
        cluster
    }

    fn apply(&mut self, command: MetadataCommand) {
        self.image.apply(command).unwrap();
        self.publish.send_replace(Arc::new(self.image.clone()));
    }

    fn create(&mut self, name: &str, key: &SecretKey, context: &[u8], id: TopicId) {
        self.apply(MetadataCommand::CreateTopic {
            name: name.to_owned(),
            id,
            partitions: 4,
            replication_factor: 1,
            config: BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]),
            dek: self.provider.wrap(key, context).unwrap(),
        });
    }
}

#[test]
fn a_topic_is_seen_with_its_shards_settings_and_keys() {
    let mut cluster = Cluster::new();
    let (id, key) = (TopicId::random(), SecretKey::generate().unwrap());
    assert!(cluster.catalog.topic(id).unwrap().is_none() && !cluster.catalog.contains(id));
    cluster.create("t", &key, &dek_context(id), id);
    let view = cluster.catalog.topic(id).unwrap().unwrap();
    let shards: Vec<_> = (0..5)
        .map(|partition| view.shard(PartitionIndex(partition)))
        .collect();
    assert_eq!(shards[..4], [1, 2, 3, 1].map(|shard| Some(ShardId(shard))));
    assert_eq!((shards[4], view.shard(PartitionIndex(-1))), (None, None));
    assert_eq!(
        view.settings.segment_bytes, None,
        "the broker's own size counts"
    );
    assert_eq!(view.settings.retention_ms, None, "-1 is for ever");
    assert!(view.settings.delete && !view.settings.rules.keys_required);

    let aad = batch_aad(
        id,
        PartitionIndex(0),
        Offset(0),
        palisade_log::LeaderEpoch(1),
    );
    let sealed = Sealer::new(&key, DekVersion(1))
        .unwrap()
        .seal(&aad, b"x")
        .unwrap();
    assert_eq!(view.keys.open(&aad, &sealed).unwrap(), b"x");
    assert!(
        cluster.catalog.shard_of_group("g").unwrap() >= ShardId(1)
            && cluster.catalog.shard_of_group("g").unwrap() <= ShardId(3)
    );
}

#[test]
fn views_are_kept_until_the_topic_or_the_defaults_change() {
    let mut cluster = Cluster::new();
    let (id, other) = (TopicId::random(), TopicId::random());
    let key = SecretKey::generate().unwrap();
    cluster.create("t", &key, &dek_context(id), id);
    let view = |cluster: &Cluster| cluster.catalog.topic(id).unwrap().unwrap();
    let first = view(&cluster);
    cluster.create("other", &key, &dek_context(other), other);
    assert!(
        Arc::ptr_eq(&first, &view(&cluster)),
        "another topic is not its concern"
    );
    let set = |name: &str, value: &str| ConfigOp::Set {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    cluster.apply(MetadataCommand::AlterConfigs {
        resource: ConfigResource::Topic(id),
        replace: false,
        ops: vec![
            set("cleanup.policy", "compact"),
            set("delete.retention.ms", "1"),
            set("min.cleanable.dirty.ratio", "0.25"),
            set("min.compaction.lag.ms", "2"),
            set("max.compaction.lag.ms", "3000"),
        ],
    });
    let second = view(&cluster);
    assert!(second.settings.rules.keys_required && !second.settings.delete);
    assert_eq!(
        second.settings.compaction,
        Some(Compaction {
            delete_retention_ms: 1,
            min_dirty_ratio: 0.25,
            min_lag_ms: 2,
            max_lag_ms: 3000,
        })
    );
    assert_eq!(
        second.settings.segment_age_ms, 3000,
        "a segment is closed in time to be compacted"
    );
    assert_eq!(first.settings.compaction, None);
    cluster.apply(MetadataCommand::AlterConfigs {
        resource: ConfigResource::Brokers,
        replace: false,
        ops: vec![set("log.segment.bytes", "2097152")],
    });
    assert_eq!(view(&cluster).settings.segment_bytes, Some(2 << 20));
}

#[test]
fn a_deleted_topics_keys_leave_the_memory() {
    let mut cluster = Cluster::new();
    let id = TopicId::random();
    cluster.create("t", &SecretKey::generate().unwrap(), &dek_context(id), id);
    cluster.catalog.topic(id).unwrap();
    assert_eq!(cluster.catalog.cache.read().len(), 1);
    cluster.apply(MetadataCommand::DeleteTopic { id });
    assert!(!cluster.catalog.contains(id));
    assert_eq!(cluster.catalog.cache.read().len(), 0);
}

#[test]
fn a_key_that_was_wrapped_for_another_topic_is_refused() {
    let mut cluster = Cluster::new();
    let id = TopicId::random();
    cluster.create(
        "t",
        &SecretKey::generate().unwrap(),
        &dek_context(TopicId::random()),
        id,
    );
    let error = cluster.catalog.topic(id).unwrap_err();
    assert!(error.is_corruption(), "{error}");
}

#[test]
fn keys_that_are_wrapped_anew_need_no_kek_that_is_not_here_yet() {
    let mut cluster = Cluster::new();
    let (id, key) = (TopicId::random(), SecretKey::generate().unwrap());
    cluster.create("t", &key, &dek_context(id), id);
    let view = cluster.catalog.topic(id).unwrap().unwrap();
    let aad = batch_aad(
        id,
        PartitionIndex(0),
        Offset(0),
        palisade_log::LeaderEpoch(1),
    );
    let sealed = view
        .keys
        .sealer()
        .unwrap()
        .unwrap()
        .seal(&aad, b"x")
        .unwrap();
    // Another broker has the new KEK already, and leads the metadata.
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = DirectoryProvider::create(elsewhere.path()).unwrap();
    let rewrapped = |version, key| MetadataCommand::SetTopicKey {
        id,
        version: DekVersion(version),
        key: elsewhere.wrap(key, &dek_context(id)).unwrap(),
    };
    cluster.apply(rewrapped(1, &key));
    let view = cluster.catalog.topic(id).unwrap().unwrap();
    assert_eq!(view.keys.open(&aad, &sealed).unwrap(), b"x");
    assert_eq!(view.keys.latest(), Some(DekVersion(1)));
    // A key that is new is not known, and nobody guesses.
    cluster.apply(rewrapped(2, &SecretKey::generate().unwrap()));
    assert!(matches!(
        cluster.catalog.topic(id),
        Err(SealError::UnknownKek { .. })
    ));
}
