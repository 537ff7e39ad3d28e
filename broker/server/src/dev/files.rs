//! The files that people and tools read.

use std::{fs, io::ErrorKind, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::error::StartError;

/// Bytes of randomness in the administrator's password.
const PASSWORD_BYTES: usize = 24;

/// Writes a file whole or not at all.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StartError> {
    palisade_seal::write_atomically(path, bytes, mode).map_err(|error| StartError::Io {
        action: "write",
        path: path.to_owned(),
        error,
    })
}

/// The administrator's password, made on the first call.
pub(super) fn admin_password(dir: &Path) -> Result<Zeroizing<String>, StartError> {
    let path = dir.join("admin.password");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Zeroizing::new(text.trim().to_owned())),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(StartError::Io {
                action: "read",
                path,
                error,
            });
        }
        _ => {}
    }
    let mut bytes = Zeroizing::new([0; PASSWORD_BYTES]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| StartError::Random)?;
    let password = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()));
    write(&path, password.as_bytes(), 0o600)?;
    Ok(password)
}

/// For Apache Kafka's tools (`--command-config`, `--consumer.config`, ...).
pub(super) fn client_properties(dir: &Path, port: u16, user: &str, password: &str) -> String {
    format!(
        "bootstrap.servers=localhost:{port}\n\
         security.protocol=SASL_SSL\n\
         sasl.mechanism=SCRAM-SHA-512\n\
         sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username=\"{user}\" password=\"{password}\";\n\
         ssl.truststore.type=PEM\n\
         ssl.truststore.location={}\n",
        dir.join("ca.crt").display()
    )
}

/// For kcat (`-F`) and anything else on librdkafka.
pub(super) fn librdkafka(dir: &Path, port: u16, user: &str, password: &str) -> String {
    format!(
        "bootstrap.servers=localhost:{port}\n\
         broker.address.family=v4\n\
         security.protocol=SASL_SSL\n\
         sasl.mechanisms=SCRAM-SHA-512\n\
         sasl.username={user}\n\
         sasl.password={password}\n\
         ssl.ca.location={}\n",
        dir.join("ca.crt").display()
    )
}
