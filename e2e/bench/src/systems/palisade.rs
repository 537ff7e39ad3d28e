//! Palisade: `broker.toml` for one or several brokers, with the production defaults.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{Node, Ports, Programs, write};
use crate::pki::{self, Pki};

/// Writes the key-encryption key and each broker's configuration.
pub(super) fn prepare(
    home: &Path,
    pki: &Pki,
    all: &[Ports],
    programs: &Programs,
) -> Result<Vec<Node>> {
    let keys = home.join("kek");
    fs::create_dir_all(&keys).context("cannot make the key directory")?;
    let key = [
        *uuid::Uuid::new_v4().as_bytes(),
        *uuid::Uuid::new_v4().as_bytes(),
    ]
    .concat();
    write(&keys.join("bench.key"), &BASE64_STANDARD.encode(key))?;
    write(&keys.join("current"), "bench")?;
    all.iter()
        .enumerate()
        .map(|(id, ports)| {
            let file = home.join(format!("broker-{id}.toml"));
            write(&file, &configuration(home, pki, all, id, *ports))?;
            Ok(Node {
                program: programs.broker.clone(),
                arguments: ["run", "--config", &file.display().to_string()]
                    .map(str::to_owned)
                    .to_vec(),
                log: home.join(format!("broker-{id}.log")),
                process: None,
            })
        })
        .collect()
}

/// One broker's `broker.toml`; seeds only when there are several.
fn configuration(home: &Path, pki: &Pki, all: &[Ports], id: usize, ports: Ports) -> String {
    let (certificate, key) = (pki.certificate(pki::BROKER), pki.key(pki::BROKER));
    let tls = |table: &str, authority: bool| {
        let ca = if authority {
            format!("client_ca = {:?}\n", pki.authority())
        } else {
            String::new()
        };
        format!("[{table}.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n{ca}\n")
    };
    let mut text = format!(
        "super_users = [\"User:CN={client}\", \"User:{client}\"]\n\n\
         [node]\nid = {id}\ncluster_id = \"bench\"\n\n\
         [storage]\ndata_dir = {data:?}\nkey_provider = {{ type = \"directory\", path = {keys:?} }}\n\n",
        client = pki::CLIENT,
        data = home.join(format!("data-{id}")),
        keys = home.join("kek"),
    );
    if all.len() > 1 {
        let seeds: Vec<String> = all
            .iter()
            .enumerate()
            .map(|(id, ports)| {
                format!("{{ id = {id}, address = \"localhost:{}\" }}", ports.control)
            })
            .collect();
        let _ = write!(text, "[cluster]\nseeds = [{}]\n\n", seeds.join(", "));
    }
    let _ = write!(
        text,
        "[control]\nbind = \"127.0.0.1\"\nport = {}\nadvertised_host = \"localhost\"\n\n{}",
        ports.control,
        tls("control", true)
    );
    let _ = write!(
        text,
        "[admin]\nbind = \"127.0.0.1\"\nport = {}\n\n{}",
        ports.inner,
        tls("admin", true)
    );
    let _ = write!(
        text,
        "[[listeners]]\nname = \"client\"\nbind = \"127.0.0.1\"\nport = {}\nadvertised_host = \"localhost\"\n\
         sasl_mechanisms = [\"SCRAM-SHA-512\"]\n\n{}",
        ports.client,
        tls("listeners", false)
    );
    let _ = write!(
        text,
        "[[listeners]]\nname = \"mtls\"\nbind = \"127.0.0.1\"\nport = {}\nadvertised_host = \"localhost\"\n\
         client_auth = \"required\"\n\n{}",
        ports.mtls,
        tls("listeners", true)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_brokers_have_seeds() {
        let ports = Ports {
            client: 1,
            mtls: 2,
            inner: 3,
            control: 4,
        };
        let (home, pki) = (Path::new("/h"), Pki::open(Path::new("/p")));
        let one = configuration(home, &pki, &[ports], 0, ports);
        assert!(!one.contains("[cluster]"));
        let three = configuration(home, &pki, &[ports; 3], 2, ports);
        assert!(three.contains("id = 2\n"));
        assert!(
            three.contains("{ id = 1, address = \"localhost:4\" }"),
            "{three}"
        );
    }
}
