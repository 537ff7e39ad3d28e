//! How a client reaches a broker, written in the two dialects: Java properties and librdkafka's configuration.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A SASL mechanism by its Kafka name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// PLAIN.
    Plain,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// The name on the wire and in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }

    const fn login_module(self) -> &'static str {
        match self {
            Self::Plain => "org.apache.kafka.common.security.plain.PlainLoginModule",
            Self::ScramSha256 | Self::ScramSha512 => {
                "org.apache.kafka.common.security.scram.ScramLoginModule"
            }
        }
    }
}

/// A client certificate and its key, PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The PKCS#8 key.
    pub key: PathBuf,
}

/// How a client proves who it is.
#[derive(Clone, Debug)]
pub enum Login {
    /// A user name and a password.
    Password {
        /// SASL mechanism.
        mechanism: Mechanism,
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A certificate in the TLS handshake, no SASL.
    Certificate(Certificate),
    /// TLS without any proof.
    Anonymous,
}

impl Login {
    /// A user with a password.
    #[must_use]
    pub fn password(mechanism: Mechanism, user: &str, password: &str) -> Self {
        Self::Password {
            mechanism,
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }
}

/// Configuration files of one client.
#[derive(Clone, Debug)]
pub struct Access {
    /// `host:port`.
    pub bootstrap: String,
    /// For the Java tools' `--command-config`.
    pub properties: PathBuf,
    /// For kcat's `-F`.
    pub librdkafka: PathBuf,
}

impl Access {
    /// Writes `<name>.properties` and `<name>.librdkafka.conf` into `directory`.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(
        directory: &Path,
        name: &str,
        bootstrap: &str,
        authority: &Path,
        login: &Login,
    ) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let access = Self {
            bootstrap: bootstrap.to_owned(),
            properties: directory.join(format!("{name}.properties")),
            librdkafka: directory.join(format!("{name}.librdkafka.conf")),
        };
        let mut java = vec![
            ("bootstrap.servers", bootstrap.to_owned()),
            ("ssl.truststore.type", "PEM".to_owned()),
            ("ssl.truststore.location", authority.display().to_string()),
        ];
        let mut librdkafka = vec![
            ("bootstrap.servers", bootstrap.to_owned()),
            ("ssl.ca.location", authority.display().to_string()),
        ];
        match login {
            Login::Password {
                mechanism,
                user,
                password,
            } => {
                java.push(("security.protocol", "SASL_SSL".to_owned()));
                java.push(("sasl.mechanism", mechanism.name().to_owned()));
                java.push(("sasl.jaas.config", jaas(*mechanism, user, password)));
                librdkafka.push(("security.protocol", "SASL_SSL".to_owned()));
                librdkafka.push(("sasl.mechanism", mechanism.name().to_owned()));
                librdkafka.push(("sasl.username", user.clone()));
                librdkafka.push(("sasl.password", password.clone()));
            }
            Login::Certificate(pair) => {
                // Java reads key and chain from one file.
                let both = directory.join(format!("{name}.keystore.pem"));
                let text = [
                    fs::read_to_string(&pair.key)?,
                    fs::read_to_string(&pair.certificate)?,
                ]
                .concat();
                fs::write(&both, text)?;
                java.push(("security.protocol", "SSL".to_owned()));
                java.push(("ssl.keystore.type", "PEM".to_owned()));
                java.push(("ssl.keystore.location", both.display().to_string()));
                librdkafka.push(("security.protocol", "SSL".to_owned()));
                librdkafka.push((
                    "ssl.certificate.location",
                    pair.certificate.display().to_string(),
                ));
                librdkafka.push(("ssl.key.location", pair.key.display().to_string()));
            }
            Login::Anonymous => {
                java.push(("security.protocol", "SSL".to_owned()));
                librdkafka.push(("security.protocol", "SSL".to_owned()));
            }
        }
        let lines = |pairs: &[(&str, String)], escape: fn(&str) -> String| {
            pairs
                .iter()
                .map(|(key, value)| format!("{key}={}\n", escape(value)))
                .collect::<String>()
        };
        fs::write(
            &access.properties,
            lines(&java, |value| value.replace('\\', "\\\\")),
        )?;
        fs::write(&access.librdkafka, lines(&librdkafka, str::to_owned))?;
        Ok(access)
    }
}

/// A JAAS line; quotes and backslashes in the values are escaped.
fn jaas(mechanism: Mechanism, user: &str, password: &str) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "{} required username=\"{}\" password=\"{}\";",
        mechanism.login_module(),
        quoted(user),
        quoted(password)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quotes_in_a_password_stay_inside_the_jaas_value() {
        let directory = tempfile::tempdir().unwrap();
        let login = Login::password(Mechanism::ScramSha512, "alice", "a\"b\\c");
        let access = Access::write(
            directory.path(),
            "alice",
            "localhost:9094",
            Path::new("/ca.crt"),
            &login,
        )
        .unwrap();
        let properties = fs::read_to_string(access.properties).unwrap();
        assert!(
            properties.contains(r#"password="a\\"b\\\\c";"#),
            "{properties}"
        );
        let librdkafka = fs::read_to_string(access.librdkafka).unwrap();
        assert!(
            librdkafka.contains("sasl.password=a\"b\\c\n"),
            "{librdkafka}"
        );
    }
}
