//! Brokers that leave: drained, stopped, forgotten.

use std::sync::Arc;

use anyhow::{Result, ensure};
use palisade_e2e::tools::{Access, Cluster, Java, Outcome, tool, wait_until};
use palisade_operator::kafka::{AdminClient, Endpoint};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{PATIENCE, Producer, create, takes_its_share};

/// Sets or deletes the config that has a broker drained, with Kafka's own tool.
fn drain(java: &mut Java, admin: &Access, id: &str, draining: bool) -> Result<Outcome> {
    let change: &[&str] = if draining {
        &["--add-config", "palisade.draining=true"]
    } else {
        &["--delete-config", "palisade.draining"]
    };
    let resource = ["--entity-type", "brokers", "--entity-name", id];
    let arguments = [&["--alter"][..], &resource, change].concat();
    java.tool(tool::CONFIGS, admin, &arguments)
}

fn is_drained(cluster: &Cluster, id: usize) -> Result<()> {
    wait_until("the broker has nothing left", PATIENCE, || {
        let status = cluster.status(id)?;
        ensure!(status.drained, "{:#?}", status.shards);
        let data = status.shards.iter().filter(|shard| shard.id != 0).count();
        ensure!(data == 0 && status.ready, "{status:#?}");
        Ok(())
    })
}

/// The operator's own client, which speaks to any broker that leads the metadata.
fn operator(cluster: &Cluster) -> Result<AdminClient> {
    let pair = cluster.operator_certificate();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cluster.authority())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(pair.certificate)?],
            PrivateKeyDer::from_pem_file(pair.key)?,
        )?;
    let endpoints = cluster.control_ports().into_iter().map(|port| Endpoint {
        host: "localhost".to_owned(),
        port,
    });
    Ok(AdminClient::new(endpoints.collect(), Arc::new(tls)))
}

/// A broker is drained while a producer runs, told to stay, drained again, stopped and forgotten; nothing is lost by it, nothing remembers it, and who comes back
/// under its name begins anew.
#[test]
fn a_drained_broker_leaves_nothing_behind() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "drained")?;
    let producer = Producer::start(&cluster, &admin, "drained")?;
    // Three replicas have no room on two brokers.
    drain(&mut java, &admin, "2", true)?
        .refused("2 broker(s) would be left, and there are shards of replication factor 3")?;
    let added = cluster.add()?;
    takes_its_share(&cluster, added)?;
    producer.goes_on(2000)?;
    let unregister =
        |java: &mut Java| java.tool(tool::CLUSTER, &admin, &["unregister", "--id", "3"]);
    unregister(&mut java)?.refused("drain it first")?;

    // A topic that needs all four brokers keeps them for as long as it lives, and not longer.
    let wide = |java: &mut Java, change: &[&str]| {
        java.tool(
            tool::TOPICS,
            &admin,
            &[change, &["--topic", "wide"]].concat(),
        )
    };
    let four = ["--create", "--partitions", "4", "--replication-factor", "4"];
    wide(&mut java, &four)?.success()?;
    let shards = wait_until("broker 0 has its part of both topics", PATIENCE, || {
        let status = cluster.status(0)?;
        ensure!(status.topics == 2 && status.ready, "{status:#?}");
        Ok(status.shards.len())
    })?;
    drain(&mut java, &admin, "3", true)?
        .refused("3 broker(s) would be left, and there are shards of replication factor 4")?;
    wide(&mut java, &["--delete"])?.success()?;
    // The tool asks that broker, which may not have heard of the deletion yet.
    wait_until("it may be drained now", PATIENCE, || {
        drain(&mut java, &admin, "3", true)?.success().map(drop)
    })?;
    is_drained(&cluster, added)?;
    // Each lets go of them when it has seen the metadata.
    wait_until("the others have given the wide shards up", PATIENCE, || {
        for id in 0..3 {
            let left = cluster.status(id)?.shards.len();
            ensure!(left < shards, "broker {id} still has {left} shards");
        }
        Ok(())
    })?;
    let shown = ["--describe", "--entity-type", "brokers", "--entity-name"];
    java.tool(tool::CONFIGS, &admin, &[&shown[..], &["3"]].concat())?
        .success()?
        .says("palisade.draining=true")?;
    producer.goes_on(1000)?;
    drain(&mut java, &admin, "3", false)?.success()?;
    takes_its_share(&cluster, added)?;
    producer.goes_on(1000)?;

    drain(&mut java, &admin, "3", true)?.success()?;
    is_drained(&cluster, added)?;
    cluster.stop(added)?;
    producer.goes_on(1000)?;
    wait_until("the others let go of it", PATIENCE, || {
        unregister(&mut java)?.success().map(drop)
    })?;
    wait_until("no broker knows it any more", PATIENCE, || {
        for id in 0..3 {
            let status = cluster.status(id)?;
            ensure!(status.peers.len() == 2, "{:#?}", status.peers);
            let members = status.shards.iter().flat_map(|shard| {
                let members = shard.voters.iter().chain(&shard.learners);
                members.map(|broker| (shard.id, *broker))
            });
            let left: Vec<_> = members.filter(|(_, broker)| *broker == 3).collect();
            ensure!(left.is_empty(), "it is a member of {left:?}");
        }
        Ok(())
    })?;
    // The tool gives a broker five seconds.
    wait_until("clients are told of the others alone", PATIENCE, || {
        let brokers = java
            .tool(tool::API_VERSIONS, &admin, &[])?
            .success()?
            .stdout;
        ensure!(
            brokers.contains("(id: 2 ") && !brokers.contains("(id: 3 "),
            "{brokers}"
        );
        Ok(())
    })?;
    let topic = java
        .tool(tool::TOPICS, &admin, &["--describe", "--topic", "drained"])?
        .success()?
        .stdout;
    let replicas = topic
        .lines()
        .filter_map(|line| line.split("Replicas: ").nth(1));
    let replicas: String = replicas
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    ensure!(!replicas.is_empty() && !replicas.contains('3'), "{topic}");
    unregister(&mut java)?.refused("broker 3 is not registered")?;

    cluster.wipe(added)?;
    cluster.launch(added)?;
    takes_its_share(&cluster, added)?;
    producer.goes_on(1000)?;
    producer.finish(&admin)
}

/// A broker that is gone for good is drained and forgotten as well; what it had is made whole from the others.
#[test]
fn a_dead_broker_is_drained_and_forgotten() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, "bereft")?;
    let producer = Producer::start(&cluster, &admin, "bereft")?;
    let added = cluster.add()?;
    takes_its_share(&cluster, added)?;
    producer.goes_on(1000)?;
    cluster.kill(added);
    // Kafka's tool asks the broker itself for its configs, so it cannot be the one to say it.
    let operator = operator(&cluster)?;
    let runtime = tokio::runtime::Runtime::new()?;
    wait_until("it is told to leave", PATIENCE, || {
        Ok(runtime.block_on(operator.set_draining(3, true))?)
    })?;
    wait_until("the others let go of it", PATIENCE, || {
        Ok(runtime.block_on(operator.unregister_broker(3))?)
    })?;
    producer.goes_on(1000)?;
    wait_until("nobody remembers it", PATIENCE, || {
        for id in 0..3 {
            let peers = cluster.status(id)?.peers;
            ensure!(peers.len() == 2, "broker {id} knows {peers:#?}");
        }
        Ok(())
    })?;
    producer.finish(&admin)
}
