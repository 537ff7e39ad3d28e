//! The admin port, and the limits of a listener.

use std::time::{Duration, Instant};

use palisade_config::{BrokerConfig, status::BrokerStatus};
use tokio::time::sleep;

use super::{access::client_certificate, *};
use crate::assembly::BootstrapUser;

async fn get(broker: &TestBroker, path: &str, identity: Option<(&str, &str)>) -> (u16, String) {
    let mut client =
        Client::connect(broker.address("ADMIN"), &broker.path("ca.crt"), identity).await;
    client.get(path).await
}

/// Asks until the answer is as it should be, for a while: on a busy machine a leader may be missed for a moment.
async fn get_until(
    broker: &TestBroker,
    path: &str,
    identity: Option<(&str, &str)>,
    met: impl Fn(&str) -> bool,
) -> (u16, String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (code, text) = get(broker, path, identity).await;
        if met(&text) || Instant::now() >= deadline {
            return (code, text);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_tells_strangers_only_whether_it_is_ready() {
    let broker = TestBroker::start().await;
    assert_eq!(
        get(&broker, "/healthz", None).await,
        (200, "ok\n".to_owned())
    );
    assert_eq!(
        get_until(&broker, "/readyz", None, |text| text == "ready\n").await,
        (200, "ready\n".to_owned())
    );
    let (code, text) = get(&broker, "/status", None).await;
    assert_eq!(code, 403);
    assert!(
        text.contains("certificate of the cluster authority"),
        "{text}"
    );

    broker.admin().await;
    let no_problem = |text: &str| text.contains("palisade_problems 0");
    let (code, text) = get_until(&broker, "/metrics", None, no_problem).await;
    assert_eq!(code, 200, "the development broker has anonymous_metrics");
    for metric in [
        "palisade_authentications_total{mechanism=\"PLAIN\"} 1",
        "palisade_certificate_expiry_seconds{listener=\"client\"}",
        "palisade_wal_syncs_total",
        "palisade_problems 0",
    ] {
        assert!(text.contains(metric), "{metric} is missing in\n{text}");
    }

    let (certificate, key) = client_certificate(&broker, "operator");
    let identity = Some((certificate.as_str(), key.as_str()));
    let is_ready = |text: &str| {
        let status = serde_json::from_str::<BrokerStatus>(text);
        status.is_ok_and(|status| status.ready)
    };
    let (code, text) = get_until(&broker, "/status", identity, is_ready).await;
    assert_eq!(code, 200);
    let status: BrokerStatus = serde_json::from_str(&text).unwrap();
    assert!(status.ready);
    assert_eq!(status.certificates.len(), 3);
    let trusted = |name: &str| {
        status
            .trust
            .iter()
            .find(|trust| trust.listener == name)
            .unwrap()
    };
    assert_ne!(
        trusted("CONTROL").authorities,
        trusted("client").authorities
    );
}

/// Starts over a changed configuration.
async fn start_with(dir: &TempDir, change: impl FnOnce(&mut BrokerConfig)) -> Running {
    let options = DevOptions {
        data_dir: dir.path().to_owned(),
        port: 0,
        admin_port: Some(0),
    };
    let prepared = prepare(&options).unwrap();
    let text = std::fs::read_to_string(&prepared.config_file).unwrap();
    let mut config = BrokerConfig::parse(&text).unwrap();
    change(&mut config);
    std::fs::write(&prepared.config_file, config.render().unwrap()).unwrap();
    let BootstrapUser { name, password } = prepared.admin;
    let plan = Plan {
        file: prepared.config_file,
        hostname: "dev-0".to_owned(),
        rack: None,
        user: Some(BootstrapUser { name, password }),
    };
    start(&plan).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_admits_as_many_connections_as_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let running = start_with(&dir, |config| {
        config.listeners[0].limits.max_connections_per_ip = Some(2);
    })
    .await;
    let (address, ca) = (running.addresses["client"], dir.path().join("ca.crt"));
    let first = Client::connect(address, &ca, None).await;
    let _second = Client::connect(address, &ca, None).await;
    assert!(Client::try_connect(address, &ca, None).await.is_err());
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(30);
    while Client::try_connect(address, &ca, None).await.is_err() {
        assert!(Instant::now() < deadline, "the place was not given back");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_mapped_by_the_rules_of_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let running = start_with(&dir, |config| {
        config.listeners[0].principal_mapping_rules = vec!["RULE:^CN=(.*?)$/$1/L".to_owned()];
        config.super_users.push("User:workload".to_owned());
    })
    .await;
    let broker = TestBroker {
        dir,
        running,
        password: String::new().into(),
    };
    let (certificate, key) = client_certificate(&broker, "WORKLOAD");
    let identity = Some((certificate.as_str(), key.as_str()));
    let mut client =
        Client::connect(broker.address("client"), &broker.path("ca.crt"), identity).await;
    assert_eq!(
        create_topic(&mut client, "mapped").await,
        0,
        "User:workload is a super user"
    );
}
