//! The files clients read, each with the escapes of its format.

/// Where a workload mounts the Secret; `librdkafka.conf` names files there.
pub(super) const MOUNT_PATH: &str = "/etc/palisade/credentials";

/// How the client proves who it is.
pub(super) enum Login<'a> {
    /// SASL with a password.
    Password {
        /// Kafka's name of the mechanism.
        mechanism: &'a str,
        /// User name.
        username: &'a str,
        /// Password.
        password: &'a str,
    },
    /// A certificate.
    Certificate {
        /// Chain, PEM.
        chain: &'a str,
        /// Key, PKCS#8 PEM.
        key: &'a str,
    },
}

/// A JAAS line. Values stand in double quotes, in which `\` and `"` are escaped.
pub(super) fn jaas(mechanism: &str, username: &str, password: &str) -> String {
    let module = if mechanism == "PLAIN" {
        "org.apache.kafka.common.security.plain.PlainLoginModule"
    } else {
        "org.apache.kafka.common.security.scram.ScramLoginModule"
    };
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "{module} required username=\"{}\" password=\"{}\";",
        quoted(username),
        quoted(password)
    )
}

/// Value of `security.protocol`.
pub(super) const fn protocol(login: &Login<'_>) -> &'static str {
    match login {
        Login::Password { .. } => "SASL_SSL",
        Login::Certificate { .. } => "SSL",
    }
}

/// `client.properties` for Kafka's Java clients and tools. It carries certificates in itself, so it works wherever it is mounted.
pub(super) fn client_properties(bootstrap: &str, bundle: &str, login: &Login<'_>) -> String {
    let mut lines = vec![
        ("bootstrap.servers", bootstrap.to_owned()),
        ("security.protocol", protocol(login).to_owned()),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.certificates", bundle.to_owned()),
    ];
    match login {
        Login::Password {
            mechanism,
            username,
            password,
        } => {
            lines.push(("sasl.mechanism", (*mechanism).to_owned()));
            lines.push(("sasl.jaas.config", jaas(mechanism, username, password)));
        }
        Login::Certificate { chain, key } => {
            lines.push(("ssl.keystore.type", "PEM".to_owned()));
            lines.push(("ssl.keystore.certificate.chain", (*chain).to_owned()));
            lines.push(("ssl.keystore.key", (*key).to_owned()));
        }
    }
    lines
        .into_iter()
        .map(|(key, value)| format!("{key}={}\n", property(&value)))
        .collect()
}

/// The value of a Java property: as `java.util.Properties.load` reads it back.
fn property(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for (index, character) in value.chars().enumerate() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            ' ' if index == 0 => escaped.push_str("\\ "),
            ' '..='~' => escaped.push(character),
            other => {
                let mut units = [0; 2];
                for unit in other.encode_utf16(&mut units) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    escaped
}

/// `librdkafka.conf`, one `key=value` a line; certificates are files beside it, under [`MOUNT_PATH`].
pub(super) fn librdkafka_conf(bootstrap: &str, login: &Login<'_>) -> String {
    let mut lines = vec![
        ("bootstrap.servers", bootstrap.to_owned()),
        ("security.protocol", protocol(login).to_owned()),
        ("ssl.ca.location", format!("{MOUNT_PATH}/ca.crt")),
    ];
    match login {
        Login::Password {
            mechanism,
            username,
            password,
        } => {
            lines.push(("sasl.mechanism", (*mechanism).to_owned()));
            lines.push(("sasl.username", (*username).to_owned()));
            lines.push(("sasl.password", (*password).to_owned()));
        }
        Login::Certificate { .. } => {
            lines.push(("ssl.certificate.location", format!("{MOUNT_PATH}/user.crt")));
            lines.push(("ssl.key.location", format!("{MOUNT_PATH}/user.key")));
        }
    }
    lines
        .into_iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const AWKWARD: &str = "a\"b\\c;d=e #fü";

    fn login() -> Login<'static> {
        Login::Password {
            mechanism: "SCRAM-SHA-512",
            username: "alice",
            password: AWKWARD,
        }
    }

    #[test]
    fn a_password_cannot_leave_its_quotes() {
        assert_eq!(
            jaas("SCRAM-SHA-512", "alice", "x\" admin=\"true\\"),
            r#"org.apache.kafka.common.security.scram.ScramLoginModule required username="alice" password="x\" admin=\"true\\";"#
        );
        assert!(
            jaas("PLAIN", "alice", "x")
                .starts_with("org.apache.kafka.common.security.plain.PlainLoginModule")
        );
    }

    /// What `java.util.Properties.load` makes of a value.
    fn unescape(value: &str) -> String {
        let mut units = Vec::new();
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                units.extend(character.to_string().encode_utf16());
                continue;
            }
            match characters.next().unwrap() {
                'u' => {
                    let hex: String = characters.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&hex, 16).unwrap());
                }
                'n' => units.push(10),
                'r' => units.push(13),
                't' => units.push(9),
                other => units.extend(other.to_string().encode_utf16()),
            }
        }
        String::from_utf16(&units).unwrap()
    }

    #[test]
    fn properties_read_back_as_written() {
        let bundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let text = client_properties("events-bootstrap:9093", bundle, &login());
        assert_eq!(text.lines().count(), 6);
        let value = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .unwrap();
            unescape(line)
        };
        assert_eq!(value("ssl.truststore.certificates"), bundle);
        assert_eq!(
            value("sasl.jaas.config"),
            jaas("SCRAM-SHA-512", "alice", AWKWARD)
        );
        assert!(text.is_ascii());
        assert_eq!(unescape(&property(" 𝄞\t")), " 𝄞\t");
    }

    #[test]
    fn librdkafka_reads_one_pair_a_line() {
        let text = librdkafka_conf("events-bootstrap:9093", &login());
        assert!(
            text.contains(&format!("sasl.password={AWKWARD}\n")),
            "{text}"
        );
        assert!(text.lines().all(|line| line.contains('=')));
        let text = librdkafka_conf("b:1", &Login::Certificate { chain: "", key: "" });
        assert_eq!(
            text,
            "bootstrap.servers=b:1\nsecurity.protocol=SSL\nssl.ca.location=/etc/palisade/credentials/ca.crt\n\
             ssl.certificate.location=/etc/palisade/credentials/user.crt\nssl.key.location=/etc/palisade/credentials/user.key\n"
        );
    }
}
