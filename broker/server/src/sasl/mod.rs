//! SASL exchanges of a connection: PLAIN and SCRAM over one interface, checked against the stored credentials.

use palisade_config::Mechanism;
use palisade_security::{
    Decoy, PlainVerifier, ScramCredential, ScramMechanism, ScramServer, ScramStep, parse_plain,
};

/// Finds a user's credential for a mechanism.
pub(crate) trait Credentials {
    /// The credential, if the user has one.
    fn credential(&self, user: &str, mechanism: ScramMechanism) -> Option<ScramCredential>;
}

/// What all exchanges of a process share.
#[derive(Debug)]
pub(crate) struct Authenticator {
    decoy: Decoy,
    plain: PlainVerifier,
}

/// One exchange.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// SCRAM by either hash.
    Scram(Box<ScramServer>),
    /// PLAIN.
    Plain,
}

/// What to do after a token of the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send this and wait for the next token.
    Continue(Vec<u8>),
    /// Send this; the client is `user`, by the credential of this mechanism.
    Done {
        token: Vec<u8>,
        user: String,
        credential: ScramMechanism,
    },
    /// Tell the client one thing and the log another.
    Failed { client: String, reason: String },
}

/// Kafka's name of a mechanism.
pub(crate) const fn name(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::ScramSha256 => "SCRAM-SHA-256",
        Mechanism::ScramSha512 => "SCRAM-SHA-512",
    }
}

impl Authenticator {
    pub(crate) fn new(decoy: Decoy) -> Result<Self, palisade_security::plain::RandomError> {
        Ok(Self {
            plain: PlainVerifier::new(decoy.clone())?,
            decoy,
        })
    }

    /// Starts an exchange.
    pub(crate) fn begin(&self, mechanism: Mechanism) -> Exchange {
        let scram =
            |mechanism| Exchange::Scram(Box::new(ScramServer::new(mechanism, self.decoy.clone())));
        match mechanism {
            Mechanism::Plain => Exchange::Plain,
            Mechanism::ScramSha256 => scram(ScramMechanism::Sha256),
            Mechanism::ScramSha512 => scram(ScramMechanism::Sha512),
        }
    }

    /// Takes the client's next token.
    pub(crate) fn step(
        &self,
        exchange: &mut Exchange,
        token: &[u8],
        credentials: &impl Credentials,
    ) -> Step {
        match exchange {
            Exchange::Plain => self.plain(token, credentials),
            Exchange::Scram(server) => {
                let mechanism = server.mechanism();
                match server.step(token, |user| credentials.credential(user, mechanism)) {
                    Ok(ScramStep::Continue(token)) => Step::Continue(token),
                    Ok(ScramStep::Done { message, user }) => Step::Done {
                        token: message,
                        user,
                        credential: mechanism,
                    },
                    Err(error) => Step::Failed {
                        client: error.client_message(mechanism),
                        reason: error.to_string(),
                    },
                }
            }
        }
    }

    fn plain(&self, token: &[u8], credentials: &impl Credentials) -> Step {
        let message = match parse_plain(token) {
            Ok(message) => message,
            Err(error) => {
                return Step::Failed {
                    client: format!("Invalid SASL/PLAIN message: {error}"),
                    reason: error.to_string(),
                };
            }
        };
        let user = message.user();
        let found = [ScramMechanism::Sha512, ScramMechanism::Sha256]
            .into_iter()
            .find_map(|mechanism| Some((mechanism, credentials.credential(user, mechanism)?)));
        let right = self
            .plain
            .verify(&message, found.as_ref().map(|(_, credential)| credential));
        match found {
            Some((credential, _)) if right => Step::Done {
                token: Vec::new(),
                user: user.to_owned(),
                credential,
            },
            known => Step::Failed {
                client: "Authentication failed: Invalid username or password".to_owned(),
                reason: match known {
                    Some(_) => format!("user `{user}` gave a wrong password"),
                    None => format!("user `{user}` has no credential"),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    struct One(ScramCredential);

    impl Credentials for One {
        fn credential(&self, user: &str, mechanism: ScramMechanism) -> Option<ScramCredential> {
            (user == "alice" && mechanism == self.0.mechanism()).then(|| self.0.clone())
        }
    }

    fn plain(token: &[u8]) -> Step {
        let credential =
            ScramCredential::from_password(ScramMechanism::Sha256, "secret", 4096).unwrap();
        let authenticator = Authenticator::new(Decoy::from_bytes([3; 32])).unwrap();
        let mut exchange = authenticator.begin(Mechanism::Plain);
        authenticator.step(&mut exchange, token, &One(credential))
    }

    #[test]
    fn plain_is_checked_against_the_scram_credential() {
        let Step::Done {
            user, credential, ..
        } = plain(b"\0alice\0secret")
        else {
            panic!("alice must get in");
        };
        assert_eq!(
            (user.as_str(), credential),
            ("alice", ScramMechanism::Sha256)
        );
    }

    #[test]
    fn the_client_cannot_tell_a_wrong_password_from_an_unknown_user() {
        let (
            Step::Failed {
                client: wrong,
                reason: why,
            },
            Step::Failed {
                client: unknown,
                reason,
            },
        ) = (plain(b"\0alice\0guess"), plain(b"\0bob\0guess"))
        else {
            panic!("both must fail");
        };
        assert_eq!(wrong, unknown);
        assert_eq!(why, "user `alice` gave a wrong password");
        assert_eq!(reason, "user `bob` has no credential");
    }
}
