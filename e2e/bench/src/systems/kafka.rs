//! Apache Kafka 4.3.1 in KRaft mode, every node broker and controller, with TLS on every port.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{Node, Ports, Programs, write};
use crate::{
    pki::{self, Pki},
    process::run,
    wire,
};

pub const VERSION: &str = "4.3.1";
const POM: &str = include_str!("../../../kafka/pom.xml");
const RUNNER: &str = include_str!("../../../kafka/ToolRunner.java");

/// The heap, and otherwise what Kafka's own start script gives a broker.
const JVM: [&str; 8] = [
    "-Xms1g",
    "-Xmx1g",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
];

/// The class path, after fetching the libraries once. The directory is the one that the end-to-end tests keep them in.
pub fn class_path(cache: &Path) -> Result<String> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let hash = digest(&SHA256, [POM, RUNNER].concat().as_bytes());
    let name: String = hash
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let directory = cache.join(format!("kafka-{name}"));
    let lock = File::create(cache.join("kafka.lock")).context("cannot make the lock file")?;
    lock.lock().context("cannot lock the cache")?;
    if !directory.exists() {
        let work = tempfile::tempdir_in(cache)?;
        fs::write(work.path().join("pom.xml"), POM)?;
        fs::write(work.path().join("ToolRunner.java"), RUNNER)?;
        let at = |name: &str| work.path().join(name).display().to_string();
        run(
            "mvn",
            &[
                "-q".to_owned(),
                "-B".to_owned(),
                "-f".to_owned(),
                at("pom.xml"),
                "dependency:copy-dependencies".to_owned(),
                "-DincludeScope=runtime".to_owned(),
                format!("-DoutputDirectory={}", at("libs")),
            ],
        )
        .context("Apache Kafka is fetched with Maven")?;
        // Only the tests' tools need it; but they share the directory, and look for it there.
        let compile = [
            "-cp".to_owned(),
            at("libs/*"),
            "-d".to_owned(),
            at("classes"),
        ];
        run("javac", &[&compile[..], &[at("ToolRunner.java")]].concat())?;
        fs::rename(work.path(), &directory).context("cannot name the fetched libraries")?;
    }
    Ok(format!("{}/libs/*", directory.display()))
}

/// Writes each node's properties and formats its directory.
pub(super) fn prepare(
    home: &Path,
    pki: &Pki,
    all: &[Ports],
    password: &str,
    programs: &Programs,
) -> Result<Vec<Node>> {
    let cluster = id();
    let controllers: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(node, ports)| format!("{}@localhost:{}:{}", node + 1, ports.control, id()))
        .collect();
    let mut nodes = Vec::with_capacity(all.len());
    for (node, ports) in all.iter().enumerate() {
        let file = home.join(format!("node-{node}.properties"));
        write(&file, &properties(home, pki, all, node, *ports))?;
        let mut format: Vec<String> = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp"]
            .map(str::to_owned)
            .to_vec();
        format.extend([
            programs.kafka.clone(),
            "kafka.tools.StorageTool".to_owned(),
            "format".to_owned(),
            "-t".to_owned(),
            cluster.clone(),
            "-c".to_owned(),
            file.display().to_string(),
            "--add-scram".to_owned(),
            format!(
                "SCRAM-SHA-512=[name={},iterations={},password={password}]",
                pki::CLIENT,
                wire::ITERATIONS
            ),
        ]);
        if all.len() == 1 {
            format.push("--standalone".to_owned());
        } else {
            format.extend(["--initial-controllers".to_owned(), controllers.join(",")]);
        }
        run("java", &format).context("cannot format Kafka's directory")?;
        let mut arguments: Vec<String> = JVM.map(str::to_owned).to_vec();
        arguments.extend([
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned(),
            "-cp".to_owned(),
            programs.kafka.clone(),
            "kafka.Kafka".to_owned(),
            file.display().to_string(),
        ]);
        nodes.push(Node {
            program: PathBuf::from("java"),
            arguments,
            log: home.join(format!("node-{node}.log")),
            process: None,
        });
    }
    Ok(nodes)
}

/// An id as Kafka writes them: 16 bytes in 22 characters, which must not look like an option.
fn id() -> String {
    loop {
        let id = BASE64_URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes());
        if !id.starts_with('-') {
            return id;
        }
    }
}

/// One node's `server.properties`: the defaults, but for ports, TLS and what three nodes need of internal topics.
fn properties(home: &Path, pki: &Pki, all: &[Ports], node: usize, ports: Ports) -> String {
    let bootstrap: Vec<String> = all
        .iter()
        .map(|ports| format!("localhost:{}", ports.control))
        .collect();
    let replicas = if all.len() >= 3 { 3 } else { 1 };
    let mutual: String = ["mtls", "inter", "controller"]
        .map(|listener| format!("listener.name.{listener}.ssl.client.auth=required\n"))
        .concat();
    format!(
        "process.roles=broker,controller\n\
         node.id={id}\n\
         controller.quorum.bootstrap.servers={bootstrap}\n\
         listeners=CLIENT://127.0.0.1:{client},MTLS://127.0.0.1:{mtls},INTER://127.0.0.1:{inner},CONTROLLER://127.0.0.1:{control}\n\
         advertised.listeners=CLIENT://localhost:{client},MTLS://localhost:{mtls},INTER://localhost:{inner},CONTROLLER://localhost:{control}\n\
         listener.security.protocol.map=CLIENT:SASL_SSL,MTLS:SSL,INTER:SSL,CONTROLLER:SSL\n\
         controller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=INTER\n\
         ssl.keystore.type=PEM\nssl.keystore.location={store}\n\
         ssl.truststore.type=PEM\nssl.truststore.location={authority}\n\
         {mutual}\
         listener.name.client.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
         listener.name.client.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:CN={broker};User:CN={user};User:{user}\n\
         log.dirs={data}\n\
         offsets.topic.replication.factor={replicas}\n\
         transaction.state.log.replication.factor={replicas}\n\
         log.segment.delete.delay.ms=1000\n",
        id = node + 1,
        bootstrap = bootstrap.join(","),
        client = ports.client,
        mtls = ports.mtls,
        inner = ports.inner,
        control = ports.control,
        store = pki.key_store(pki::BROKER).display(),
        authority = pki.authority().display(),
        broker = pki::BROKER,
        user = pki::CLIENT,
        data = home.join(format!("data-{node}")).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_kafka_takes() {
        for _ in 0..200 {
            let id = id();
            assert!(id.len() == 22 && !id.starts_with('-'), "{id}");
        }
    }

    #[test]
    fn every_port_has_tls() {
        let ports = Ports {
            client: 1,
            mtls: 2,
            inner: 3,
            control: 4,
        };
        let pki = Pki::open(Path::new("/p"));
        let text = properties(Path::new("/h"), &pki, &[ports; 3], 0, ports);
        assert!(!text.contains("PLAINTEXT"));
        assert!(text.contains("offsets.topic.replication.factor=3\n"));
    }
}
