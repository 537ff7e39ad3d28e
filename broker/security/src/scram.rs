//! SCRAM-SHA-256 and SCRAM-SHA-512, the server's side (RFC 5802, RFC 7677, and Kafka's limits).
//!
//! An exchange is two messages from the client and two answers. Channel binding is not offered, so a client that
//! insists on it (`p=`) is refused; `y` (supports it, believes that the server does not) is right, and `n` is usual.
//!
//! Names and passwords are compared as the UTF-8 bytes that the client sent, as Apache Kafka does, and not after SASLprep:
//! its clients and tools derive keys from the bytes as typed, so preparing them on this side alone would refuse them.

mod credential;
mod message;

use std::fmt;

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use credential::{
    CredentialError, DEFAULT_ITERATIONS, Decoy, MAX_ITERATIONS, MIN_ITERATIONS, ScramCredential,
};
pub use message::{ClientFinal, ClientFirst, MAX_MESSAGE_BYTES, MessageError};

/// The hash that an exchange or a credential uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ScramMechanism {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl ScramMechanism {
    /// Every mechanism.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The SASL name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    /// The mechanism with this SASL name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mechanism| mechanism.as_str() == name)
    }

    /// Kafka's code in `AlterUserScramCredentials` and `DescribeUserScramCredentials`.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// The mechanism with this Kafka code.
    #[must_use]
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            1 => Some(Self::Sha256),
            2 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Bytes of a hash, a key and a proof.
    #[must_use]
    pub const fn hash_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for ScramMechanism {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Why an exchange ended. `Display` is the precise reason, for the log; the client is told
/// [`ScramError::client_message`], which does not say whether the user exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScramError {
    /// A message breaks RFC 5802 or asks for what is not offered.
    #[error("{0}")]
    Message(#[from] MessageError),
    /// The client asked to act as someone else.
    #[error("user `{user}` asked to act as another user, which is not supported")]
    AuthorizationId {
        /// Who the client said it is.
        user: String,
    },
    /// The user has no credential for this mechanism.
    #[error("user `{user}` has no {mechanism} credential")]
    UnknownUser {
        /// Who the client said it is.
        user: String,
        /// The mechanism of the exchange.
        mechanism: ScramMechanism,
    },
    /// The proof is wrong: a wrong password.
    #[error("user `{user}` gave a wrong {mechanism} proof: the password is wrong")]
    WrongProof {
        /// Who the client said it is.
        user: String,
        /// The mechanism of the exchange.
        mechanism: ScramMechanism,
    },
    /// The second message does not carry the nonce of this exchange.
    #[error("user `{user}` answered with the nonce of another exchange")]
    Nonce {
        /// Who the client said it is.
        user: String,
    },
    /// The second message does not repeat the channel-binding header of the first.
    #[error("user `{user}` sent a channel binding that differs from its first message")]
    ChannelBinding {
        /// Who the client said it is.
        user: String,
    },
    /// A message after the end of the exchange.
    #[error("the exchange is over, and the client sent another message")]
    Finished,
    /// The system has no randomness to give.
    #[error("cannot make a nonce: the system's random source failed")]
    Random,
}

impl ScramError {
    /// What the client may know. Failures that would tell a guesser something all read the same.
    #[must_use]
    pub fn client_message(&self, mechanism: ScramMechanism) -> String {
        match self {
            Self::Message(error) => format!("Invalid {mechanism} message: {error}"),
            Self::AuthorizationId { .. } => {
                "Authentication failed: Client requested an authorization id that is different from username".to_owned()
            }
            Self::Finished => format!("The {mechanism} exchange is already over"),
            _ => format!(
                "Authentication failed during authentication due to invalid credentials with SASL mechanism {mechanism}"
            ),
        }
    }
}

/// What to do after a message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScramStep {
    /// Send this and wait for the next message.
    Continue(Vec<u8>),
    /// Send this; the client is who it says it is.
    Done {
        /// The last message, with the server's own proof.
        message: Vec<u8>,
        /// The authenticated user name.
        user: String,
    },
}

/// One exchange.
///
/// ```
/// # use palisade_security::scram::{Decoy, ScramMechanism, ScramServer, ScramStep};
/// let mut server = ScramServer::new(ScramMechanism::Sha512, Decoy::from_bytes([7; 32]));
/// let first = server.step(b"n,,n=alice,r=abc", |_user| None).unwrap();
/// assert!(matches!(first, ScramStep::Continue(_)));
/// ```
pub struct ScramServer {
    mechanism: ScramMechanism,
    decoy: Decoy,
    state: State,
}

enum State {
    First { nonce: Option<String> },
    Final(Box<Pending>),
    Finished,
}

struct Pending {
    user: String,
    gs2_header: String,
    /// The client's part of the nonce.
    client_nonce: String,
    /// The whole nonce: the client's part, then ours.
    nonce: String,
    /// `client-first-message-bare "," server-first-message`: the part of `AuthMessage` that is known already.
    transcript: String,
    credential: ScramCredential,
    known: bool,
}

impl ScramServer {
    /// An exchange by `mechanism`. `decoy` makes the answers for users that do not exist; use the same one for every
    /// exchange of a cluster's life, else a guesser sees the salt change.
    #[must_use]
    pub const fn new(mechanism: ScramMechanism, decoy: Decoy) -> Self {
        Self {
            mechanism,
            decoy,
            state: State::First { nonce: None },
        }
    }

    /// As [`ScramServer::new`], with the server's part of the nonce given: for tests against published exchanges.
    #[must_use]
    pub fn with_nonce(mechanism: ScramMechanism, decoy: Decoy, nonce: &str) -> Self {
        Self {
            mechanism,
            decoy,
            state: State::First {
                nonce: Some(nonce.to_owned()),
            },
        }
    }

    /// The mechanism of this exchange.
    #[must_use]
    pub const fn mechanism(&self) -> ScramMechanism {
        self.mechanism
    }

    /// Takes the next message of the client. `lookup` is asked once, for the credential of the user that the client names.
    ///
    /// # Errors
    /// [`ScramError`]; the exchange is over then and every later message is refused.
    pub fn step(
        &mut self,
        message: &[u8],
        lookup: impl FnOnce(&str) -> Option<ScramCredential>,
    ) -> Result<ScramStep, ScramError> {
        match std::mem::replace(&mut self.state, State::Finished) {
            State::First { nonce } => {
                let nonce = match nonce {
                    Some(nonce) => nonce,
                    None => fresh_nonce()?,
                };
                self.first(message, &nonce, lookup)
            }
            State::Final(pending) => self.last(message, &pending),
            State::Finished => Err(ScramError::Finished),
        }
    }

    fn first(
        &mut self,
        message: &[u8],
        server_nonce: &str,
        lookup: impl FnOnce(&str) -> Option<ScramCredential>,
    ) -> Result<ScramStep, ScramError> {
        let first = ClientFirst::parse(message)?;
        if first.authzid.as_ref().is_some_and(|id| *id != first.user) {
            return Err(ScramError::AuthorizationId { user: first.user });
        }
        let found = lookup(&first.user).filter(|found| found.mechanism() == self.mechanism);
        let known = found.is_some();
        let credential =
            found.unwrap_or_else(|| self.decoy.credential(self.mechanism, &first.user));
        let nonce = format!("{}{server_nonce}", first.nonce);
        let answer = format!(
            "r={nonce},s={},i={}",
            STANDARD.encode(credential.salt()),
            credential.iterations()
        );
        self.state = State::Final(Box::new(Pending {
            transcript: format!("{},{answer}", first.bare),
            user: first.user,
            gs2_header: first.gs2_header,
            client_nonce: first.nonce,
            nonce,
            credential,
            known,
        }));
        Ok(ScramStep::Continue(answer.into_bytes()))
    }

    fn last(&self, message: &[u8], pending: &Pending) -> Result<ScramStep, ScramError> {
        let user = || pending.user.clone();
        let last = ClientFinal::parse(message)?;
        if !pending.accepts_nonce(&last.nonce) {
            return Err(ScramError::Nonce { user: user() });
        }
        if last.channel_binding != pending.gs2_header.as_bytes() {
            return Err(ScramError::ChannelBinding { user: user() });
        }
        let auth_message = Zeroizing::new(format!("{},{}", pending.transcript, last.without_proof));
        // Computed for a decoy as well, so that time does not tell who exists.
        let proven = pending
            .credential
            .verify_proof(auth_message.as_bytes(), &last.proof);
        if !pending.known {
            return Err(ScramError::UnknownUser {
                user: user(),
                mechanism: self.mechanism,
            });
        }
        if !proven {
            return Err(ScramError::WrongProof {
                user: user(),
                mechanism: self.mechanism,
            });
        }
        let signature = pending.credential.server_signature(auth_message.as_bytes());
        Ok(ScramStep::Done {
            message: format!("v={}", STANDARD.encode(signature)).into_bytes(),
            user: user(),
        })
    }
}

impl Pending {
    /// Whether the client answered to this exchange. The right answer is the whole nonce. librdkafka before 2.6.1, which most
    /// distributions still ship, puts its own part in front of it once more (librdkafka pull request 4895); that is accepted too and
    /// proves no less: our part is in it, and the proof is computed over the message as it was sent.
    fn accepts_nonce(&self, answer: &str) -> bool {
        let doubled = answer.strip_prefix(&self.client_nonce);
        [Some(answer), doubled]
            .into_iter()
            .flatten()
            .any(|nonce| verify_slices_are_equal(nonce.as_bytes(), self.nonce.as_bytes()).is_ok())
    }
}

impl fmt::Debug for ScramServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::First { .. } => "first",
            State::Final(_) => "final",
            State::Finished => "finished",
        };
        formatter
            .debug_struct("ScramServer")
            .field("mechanism", &self.mechanism)
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

fn fresh_nonce() -> Result<String, ScramError> {
    let mut bytes = [0_u8; 18];
    rand::fill(&mut bytes).map_err(|_| ScramError::Random)?;
    Ok(STANDARD.encode(bytes))
}

#[cfg(test)]
mod nonce_tests;
#[cfg(test)]
mod tests;
