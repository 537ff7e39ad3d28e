//! The operator's admin client and a real broker: every call it makes, what comes back, and what a refusal looks like.
//!
//! 1. Start a broker; issue the operator's certificate from an authority that its control port trusts.
//! 2. Topics: create, grow, configure, delete; each twice where twice must do no harm.
//! 3. ACLs, quotas, SCRAM credentials: write, read back, remove.
//! 4. What a broker refuses arrives as the Kafka error it is.
//!
//! The same conversation runs against Apache Kafka when `PALISADE_KAFKA_PEER` names one, as `host:port`, with `PALISADE_KAFKA_AUTHORITY` a directory that
//! holds `ca.crt` and `ca.key`, and `super.users=User:CN=palisade-operator`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, num::NonZeroU32, path::Path, sync::Arc};

use palisade_e2e::tools::Broker;
use palisade_operator::{
    kafka::{
        AdminClient, Endpoint, ErrorCode,
        acls::{AclBinding, Operation, PatternType, Permission, ResourceType},
        quotas::{EntityName, QuotaEntity, QuotaValues},
        scram::{SaltedPassword, ScramMechanism, StoredCredential},
    },
    pki::{Authority, CommonName, KeyAlgorithm, LeafKey, LeafUse, certificates},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};

/// A broker whose control port takes certificates of the authority that `dev` leaves in the data directory; its own is sealed away.
fn broker() -> Broker {
    let mut broker = Broker::start().unwrap();
    broker.stop().unwrap();
    broker
        .configure(|config| {
            config
                .control
                .tls
                .client_ca
                .clone_from(&config.admin.tls.client_ca);
        })
        .unwrap();
    broker.launch().unwrap();
    broker
}

/// A client that presents a certificate of the authority in `directory`.
fn client(directory: &Path, port: u16) -> AdminClient {
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
    let authority = Authority::from_pem(&read("ca.crt"), &read("ca.key")).unwrap();
    let leaf = authority
        .issue(
            &CommonName::new("palisade-operator").unwrap(),
            &[],
            LeafUse::Client,
            LeafKey::New(KeyAlgorithm::EcdsaP256),
            Duration::hours(1),
            OffsetDateTime::now_utc(),
        )
        .unwrap();
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority.certificate_pem()).unwrap() {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            certificates(&leaf.certificate).unwrap(),
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let endpoint = Endpoint {
        host: "localhost".to_owned(),
        port,
    };
    AdminClient::new(vec![endpoint], Arc::new(tls))
}

/// Asserts that an expression comes to equal a value: what one broker has accepted, another, or the same one a moment later, reports.
macro_rules! eventually {
    ($actual:expr, $expected:expr $(, $($message:tt)+)?) => {{
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let (actual, expected) = ($actual, $expected);
            if actual == expected {
                break;
            }
            if std::time::Instant::now() > until {
                assert_eq!(actual, expected $(, $($message)+)?);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }};
}

async fn conversation(admin: &AdminClient) {
    assert!(!admin.brokers().await.unwrap().is_empty());
    topics(admin).await;
    acls(admin).await;
    quotas(admin).await;
    credentials(admin).await;
}

async fn topics(admin: &AdminClient) {
    let config = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    eventually!(admin.describe_topic("orders").await.unwrap(), None);
    admin
        .create_topic("orders", 3, 1, &config(&[("retention.ms", "1000000")]))
        .await
        .unwrap();
    let error = admin
        .create_topic("orders", 3, 1, &BTreeMap::new())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::TopicAlreadyExists));
    let state = loop {
        match admin.describe_topic("orders").await.unwrap() {
            Some(state) if state.leaderless == 0 => break state,
            _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    };
    assert_eq!((state.partitions, state.replication_factor), (3, 1));
    admin.create_partitions("orders", 5).await.unwrap();
    assert!(
        admin
            .create_partitions("orders", 2)
            .await
            .unwrap_err()
            .is_final()
    );
    while admin
        .describe_topic("orders")
        .await
        .unwrap()
        .is_none_or(|state| state.partitions != 5)
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let set = config(&[("cleanup.policy", "compact")]);
    admin
        .alter_topic_config("orders", &set, &["retention.ms".to_owned()])
        .await
        .unwrap();
    eventually!(
        admin.describe_topic_config("orders").await.unwrap(),
        set.clone()
    );
    let bad = config(&[("retention.ms", "soon")]);
    assert!(
        admin
            .alter_topic_config("orders", &bad, &[])
            .await
            .unwrap_err()
            .is_final()
    );
    assert!(
        admin
            .create_topic("not a name", 1, 1, &BTreeMap::new())
            .await
            .unwrap_err()
            .is_final()
    );
    admin.delete_topic("orders").await.unwrap();
    admin.delete_topic("orders").await.unwrap();
    while admin.describe_topic("orders").await.unwrap().is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn acls(admin: &AdminClient) {
    let binding = |permission, operation, name: &str| AclBinding {
        permission,
        principal: "User:alice \"the first\"".to_owned(),
        resource_type: ResourceType::Topic,
        pattern: PatternType::Prefixed,
        resource_name: name.to_owned(),
        operation,
        host: "*".to_owned(),
    };
    let mut wanted = vec![
        binding(Permission::Allow, Operation::Read, "a"),
        binding(Permission::Allow, Operation::Describe, "a"),
        binding(Permission::Deny, Operation::All, "b"),
    ];
    wanted.sort();
    let principal = wanted[0].principal.clone();
    eventually!(admin.describe_acls(&principal).await.unwrap(), []);
    admin.create_acls(&wanted).await.unwrap();
    admin.create_acls(&wanted).await.unwrap();
    eventually!(
        sorted(admin.describe_acls(&principal).await.unwrap()),
        wanted.clone()
    );
    eventually!(admin.describe_acls("User:alice").await.unwrap(), []);
    admin.delete_acls(&wanted[..1]).await.unwrap();
    eventually!(admin.describe_acls(&principal).await.unwrap().len(), 2);
    admin.delete_acls(&wanted).await.unwrap();
    eventually!(admin.describe_acls(&principal).await.unwrap(), []);
}

fn sorted(mut bindings: Vec<AclBinding>) -> Vec<AclBinding> {
    bindings.sort();
    bindings
}

async fn quotas(admin: &AdminClient) {
    let user = |name: &str| QuotaEntity {
        user: Some(EntityName::Named(name.to_owned())),
        ..QuotaEntity::default()
    };
    let both = QuotaEntity {
        client_id: Some(EntityName::Named("client-1".to_owned())),
        ..user("alice")
    };
    let default = QuotaEntity {
        user: Some(EntityName::Default),
        ..QuotaEntity::default()
    };
    let values: QuotaValues = [
        ("producer_byte_rate".to_owned(), 1_048_576.0),
        ("request_percentage".to_owned(), 12.0),
    ]
    .into();
    for entity in [user("alice"), both.clone(), default] {
        eventually!(
            admin.describe_quota(&entity).await.unwrap(),
            QuotaValues::new(),
            "{entity}"
        );
        admin.alter_quota(&entity, &values, &[]).await.unwrap();
        eventually!(
            admin.describe_quota(&entity).await.unwrap(),
            values.clone(),
            "{entity}"
        );
    }
    admin
        .alter_quota(
            &both,
            &QuotaValues::new(),
            &["request_percentage".to_owned()],
        )
        .await
        .unwrap();
    eventually!(admin.describe_quota(&both).await.unwrap().len(), 1);
    eventually!(admin.describe_quota(&user("alice")).await.unwrap().len(), 2);
    eventually!(admin.describe_quota(&user("bob")).await.unwrap().len(), 0);
}

async fn credentials(admin: &AdminClient) {
    let salted = |mechanism| {
        SaltedPassword::derive(mechanism, "secret", NonZeroU32::new(5000).unwrap()).unwrap()
    };
    let stored = |mechanism| StoredCredential {
        mechanism,
        iterations: 5000,
    };
    eventually!(admin.describe_scram("alice").await.unwrap(), []);
    admin
        .alter_scram("alice", Some(&salted(ScramMechanism::Sha256)), &[])
        .await
        .unwrap();
    eventually!(
        admin.describe_scram("alice").await.unwrap(),
        [stored(ScramMechanism::Sha256)]
    );
    admin
        .alter_scram(
            "alice",
            Some(&salted(ScramMechanism::Sha512)),
            &[ScramMechanism::Sha256],
        )
        .await
        .unwrap();
    eventually!(
        admin.describe_scram("alice").await.unwrap(),
        [stored(ScramMechanism::Sha512)]
    );
    admin
        .alter_scram("alice", None, &[ScramMechanism::Sha512])
        .await
        .unwrap();
    admin
        .alter_scram("alice", None, &[ScramMechanism::Sha512])
        .await
        .unwrap();
    eventually!(admin.describe_scram("alice").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_client_and_a_broker_understand_each_other() {
    let broker = broker();
    let port = broker.config().unwrap().control.port;
    let admin = client(broker.data_dir(), port);
    conversation(&admin).await;
    removal(&admin).await;
}

/// What one broker alone says to being removed; how it goes among several is proved in `replication.rs`.
async fn removal(admin: &AdminClient) {
    let error = admin.set_draining(0, true).await.unwrap_err();
    assert!(error.is_final());
    let message = error.to_string();
    assert!(message.contains("0 broker(s) would be left"), "{message}");
    admin.set_draining(0, false).await.unwrap();
    let error = admin.unregister_broker(0).await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::InvalidRequest));
    admin.unregister_broker(9).await.unwrap();
    assert!(admin.set_draining(9, true).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_is_made_anew() {
    let mut broker = broker();
    let admin = client(broker.data_dir(), broker.config().unwrap().control.port);
    admin.brokers().await.unwrap();
    broker.kill();
    let error = admin.brokers().await.unwrap_err().to_string();
    assert!(
        error.starts_with("no broker is reachable: cannot connect to broker localhost:"),
        "{error}"
    );
    broker.launch().unwrap();
    eventually!(
        admin.brokers().await.err().map(|error| error.to_string()),
        None
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an Apache Kafka named by PALISADE_KAFKA_PEER"]
async fn the_admin_client_and_apache_kafka_understand_each_other() {
    let peer = std::env::var("PALISADE_KAFKA_PEER").expect("PALISADE_KAFKA_PEER=localhost:port");
    let authority =
        std::env::var("PALISADE_KAFKA_AUTHORITY").expect("a directory with ca.crt and ca.key");
    let port = peer.rsplit_once(':').unwrap().1.parse().unwrap();
    conversation(&client(Path::new(&authority), port)).await;
}
