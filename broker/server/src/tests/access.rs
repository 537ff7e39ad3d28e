//! Who gets in, and what they may do.

use kafka_protocol::messages::{
    AlterClientQuotasRequest, AlterUserScramCredentialsRequest, ApiKey, CreateAclsRequest,
    MetadataRequest, alter_client_quotas_request as quota,
    alter_user_scram_credentials_request::{ScramCredentialDeletion, ScramCredentialUpsertion},
    create_acls_request::AclCreation,
    metadata_request::MetadataRequestTopic,
};
use std::time::Duration;
use tokio::time::timeout;

use super::*;

const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
const SASL_AUTHENTICATION_FAILED: i16 = 58;
const SHA_512: i8 = 2;

/// Sets a user's SCRAM-SHA-512 password as Kafka's tools do: PBKDF2 runs at the client.
async fn set_password(admin: &mut Client, user: &'static str, password: &str) {
    let salt = b"0123456789abcdef";
    let mut salted = vec![0; 64];
    let iterations = std::num::NonZeroU32::new(4096).unwrap();
    aws_lc_rs::pbkdf2::derive(
        aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA512,
        iterations,
        salt,
        password.as_bytes(),
        &mut salted,
    );
    let upsertion = ScramCredentialUpsertion::default()
        .with_name(user.into())
        .with_mechanism(SHA_512)
        .with_iterations(4096)
        .with_salt(salt.to_vec().into())
        .with_salted_password(salted.into());
    let request = AlterUserScramCredentialsRequest::default().with_upsertions(vec![upsertion]);
    let response = admin
        .call(ApiKey::AlterUserScramCredentials, 0, &request)
        .await;
    assert_eq!(
        response.results[0].error_code, 0,
        "{:?}",
        response.results[0].error_message
    );
}

async fn add_acl(admin: &mut Client, principal: &'static str, operation: i8, permission: i8) {
    let creation = AclCreation::default()
        .with_resource_type(2)
        .with_resource_name("events".into())
        .with_resource_pattern_type(3)
        .with_principal(principal.into())
        .with_host("*".into())
        .with_operation(operation)
        .with_permission_type(permission);
    let request = CreateAclsRequest::default().with_creations(vec![creation]);
    let response = admin.call(ApiKey::CreateAcls, 3, &request).await;
    assert_eq!(
        response.results[0].error_code, 0,
        "{:?}",
        response.results[0].error_message
    );
}

const READ: i8 = 3;
const WRITE: i8 = 4;
const DENY: i8 = 2;
const ALLOW: i8 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn scram_admits_the_right_password_and_tells_nothing_about_a_wrong_one() {
    let broker = TestBroker::start().await;
    let password = broker.password.clone();
    broker
        .connect()
        .await
        .scram("admin", &password)
        .await
        .unwrap();
    let mut refusals = Vec::new();
    for (user, password) in [("admin", "wrong"), ("nobody", "wrong")] {
        let mut client = broker.connect().await;
        refusals.push(client.scram(user, password).await.unwrap_err());
        assert!(client.frame().await.is_none(), "the connection is closed");
    }
    assert_eq!(refusals[0].0, SASL_AUTHENTICATION_FAILED);
    assert_eq!(refusals[0], refusals[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn acls_decide_and_deny_wins() {
    let broker = TestBroker::start().await;
    let mut admin = broker.admin().await;
    assert_eq!(create_topic(&mut admin, "events").await, 0);
    set_password(&mut admin, "alice", "alice-secret").await;
    let mut alice = broker.user("alice", "alice-secret").await;

    assert_eq!(
        produce(&mut alice, "events", vec![1]).await.0.error_code,
        TOPIC_AUTHORIZATION_FAILED
    );
    let everything = MetadataRequest::default().with_topics(None);
    let seen = alice.call(ApiKey::Metadata, 12, &everything).await;
    assert!(
        seen.topics.is_empty(),
        "topics that may not be described are left out"
    );
    let asked = MetadataRequestTopic::default().with_name(Some(TopicName("events".into())));
    let by_name = MetadataRequest::default().with_topics(Some(vec![asked]));
    let seen = alice.call(ApiKey::Metadata, 12, &by_name).await;
    assert_eq!(seen.topics[0].error_code, TOPIC_AUTHORIZATION_FAILED);
    assert_eq!(
        create_topic(&mut alice, "mine").await,
        TOPIC_AUTHORIZATION_FAILED
    );

    add_acl(&mut admin, "User:alice", WRITE, ALLOW).await;
    assert_eq!(produce(&mut alice, "events", vec![1]).await.0.error_code, 0);
    let seen = alice.call(ApiKey::Metadata, 12, &everything).await;
    assert_eq!(seen.topics.len(), 1, "who may write may describe");

    add_acl(&mut admin, "User:*", WRITE, DENY).await;
    assert_eq!(
        produce(&mut alice, "events", vec![1]).await.0.error_code,
        TOPIC_AUTHORIZATION_FAILED
    );
    assert_eq!(
        produce(&mut admin, "events", vec![1]).await.0.error_code,
        0,
        "a super user needs no ACL"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_credential() {
    let broker = TestBroker::start().await;
    let mut admin = broker.admin().await;
    set_password(&mut admin, "alice", "alice-secret").await;
    let mut alice = broker.user("alice", "alice-secret").await;
    let deletion = ScramCredentialDeletion::default()
        .with_name("alice".into())
        .with_mechanism(SHA_512);
    let request = AlterUserScramCredentialsRequest::default().with_deletions(vec![deletion]);
    let response = admin
        .call(ApiKey::AlterUserScramCredentials, 0, &request)
        .await;
    assert_eq!(response.results[0].error_code, 0);
    let ended = timeout(Duration::from_secs(30), alice.frame())
        .await
        .expect("the session must end");
    assert!(ended.is_none());
    assert!(
        broker
            .connect()
            .await
            .plain("alice", "alice-secret")
            .await
            .is_err()
    );
}

/// A client certificate of the development authority.
pub(super) fn client_certificate(broker: &TestBroker, name: &str) -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(broker.path(name)).unwrap();
    let issuer_key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), issuer_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    (
        params.signed_by(&key, &issuer).unwrap().pem(),
        key.serialize_pem(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_a_principal_and_never_a_system_one() {
    let broker = TestBroker::start().await;
    let mut admin = broker.admin().await;
    assert_eq!(create_topic(&mut admin, "events").await, 0);
    let (certificate, key) = client_certificate(&broker, "workload");
    let ca = broker.path("ca.crt");
    let identity = Some((certificate.as_str(), key.as_str()));
    let mut client = Client::connect(broker.address("client"), &ca, identity).await;
    assert_eq!(
        produce(&mut client, "events", vec![1]).await.0.error_code,
        TOPIC_AUTHORIZATION_FAILED
    );
    add_acl(&mut admin, "User:CN=workload", WRITE, ALLOW).await;
    assert_eq!(
        produce(&mut client, "events", vec![1]).await.0.error_code,
        0
    );
    add_acl(&mut admin, "User:CN=workload", READ, ALLOW).await;

    // The control port trusts another authority: the same certificate gets nowhere there.
    let control = Client::try_connect(broker.address("CONTROL"), &ca, identity).await;
    if let Ok(mut client) = control {
        assert!(
            client
                .try_call(ApiKey::Metadata, 12, &MetadataRequest::default())
                .await
                .is_none()
        );
    }
}

/// A key that leaked is worth nothing once its authority is gone, also to who is connected already.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_the_authority_of_its_certificate_is_trusted_no_more() {
    let broker = TestBroker::start().await;
    let mut admin = broker.admin().await;
    let (certificate, key) = client_certificate(&broker, "workload");
    let ca = broker.path("ca.crt");
    let identity = Some((certificate.as_str(), key.as_str()));
    let mut client = Client::connect(broker.address("client"), &ca, identity).await;
    let anything = MetadataRequest::default();
    client.call(ApiKey::Metadata, 12, &anything).await;

    let old = std::fs::read_to_string(&ca).unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let new = params.self_signed(&rcgen::KeyPair::generate().unwrap());
    let new = new.unwrap().pem();
    std::fs::write(&ca, format!("{old}{new}")).unwrap();
    // The broker looks at its files twice a second.
    let ended = timeout(Duration::from_secs(4), client.frame()).await;
    assert!(ended.is_err(), "both are trusted");
    client.call(ApiKey::Metadata, 12, &anything).await;
    std::fs::write(&ca, new).unwrap();
    let ended = timeout(Duration::from_secs(20), client.frame()).await;
    assert_eq!(ended.expect("the session ends"), None);
    admin.call(ApiKey::Metadata, 12, &anything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_over_its_quota_is_told_to_wait_and_is_made_to() {
    let broker = TestBroker::start().await;
    let mut admin = broker.admin().await;
    assert_eq!(create_topic(&mut admin, "events").await, 0);
    let entity = quota::EntityData::default()
        .with_entity_type("client-id".into())
        .with_entity_name(Some("client-1".into()));
    let op = quota::OpData::default()
        .with_key("producer_byte_rate".into())
        .with_value(10_000.0);
    let entry = quota::EntryData::default()
        .with_entity(vec![entity])
        .with_ops(vec![op]);
    let request = AlterClientQuotasRequest::default().with_entries(vec![entry]);
    let response = admin.call(ApiKey::AlterClientQuotas, 1, &request).await;
    assert_eq!(
        response.entries[0].error_code, 0,
        "{:?}",
        response.entries[0].error_message
    );

    assert_eq!(
        produce(&mut admin, "events", vec![0; 200_000]).await.1,
        0,
        "others are not limited"
    );
    let mut limited = broker.admin().await;
    limited.client_id = "client-1";
    let began = std::time::Instant::now();
    let (partition, throttle) = produce(&mut limited, "events", vec![0; 120_000]).await;
    assert_eq!(
        partition.error_code, 0,
        "what is over the quota is still taken"
    );
    assert!(throttle > 500, "told to wait {throttle} ms");
    produce(&mut limited, "events", vec![0; 10]).await;
    // Not from the first answer on: the wait begins when it is sent, and it may be read later.
    let waited = began.elapsed();
    let told = Duration::from_millis(u64::try_from(throttle).unwrap());
    assert!(waited >= told, "told {told:?}, made to wait {waited:?}");
}
