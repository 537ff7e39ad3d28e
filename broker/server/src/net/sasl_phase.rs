//! The SASL part of a connection's life: handshake and tokens, in Kafka's framed form and in the raw form of handshake version 0.

use bytes::{BufMut, BytesMut};
use kafka_protocol::{
    messages::{SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse},
    protocol::StrBytes,
};
use palisade_config::Mechanism;
use palisade_security::ScramMechanism;

use crate::sasl::{self, Authenticator, Credentials, Exchange, Step};

const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;
const SASL_AUTHENTICATION_FAILED: i16 = 58;

/// Where a connection that has not authenticated stands.
#[derive(Debug, Default)]
pub(super) enum Phase {
    /// Nothing chosen yet.
    #[default]
    Start,
    /// A mechanism is chosen.
    Tokens {
        mechanism: Mechanism,
        exchange: Exchange,
        /// Tokens come without a Kafka header (handshake version 0).
        raw: bool,
    },
}

/// What became of a token.
#[derive(Debug)]
pub(super) enum Progress {
    /// The exchange goes on.
    Continue,
    /// It is over: this user, by this stored credential.
    Authenticated {
        user: String,
        credential: ScramMechanism,
        mechanism: Mechanism,
    },
    /// It is over, and nobody is authenticated.
    Failed {
        mechanism: &'static str,
        reason: String,
    },
}

impl Phase {
    pub(super) const fn is_raw(&self) -> bool {
        matches!(self, Self::Tokens { raw: true, .. })
    }

    /// The client chooses a mechanism. `Err` names the one that is not offered here.
    pub(super) fn handshake(
        &mut self,
        offered: &[Mechanism],
        authenticator: &Authenticator,
        request: &SaslHandshakeRequest,
        version: i16,
    ) -> (SaslHandshakeResponse, Result<(), String>) {
        let names = offered
            .iter()
            .map(|mechanism| StrBytes::from_static_str(sasl::name(*mechanism)))
            .collect();
        let response = SaslHandshakeResponse::default().with_mechanisms(names);
        if !matches!(self, Self::Start) {
            return (
                response.with_error_code(ILLEGAL_SASL_STATE),
                Err("a second SaslHandshake inside an exchange".to_owned()),
            );
        }
        let wanted = request.mechanism.as_str();
        let Some(mechanism) = offered
            .iter()
            .copied()
            .find(|mechanism| sasl::name(*mechanism) == wanted)
        else {
            return (
                response.with_error_code(UNSUPPORTED_SASL_MECHANISM),
                Err(format!(
                    "mechanism {wanted:?} is not offered on this listener"
                )),
            );
        };
        *self = Self::Tokens {
            mechanism,
            exchange: authenticator.begin(mechanism),
            raw: version == 0,
        };
        (response, Ok(()))
    }

    /// A token in a SaslAuthenticate request.
    pub(super) fn authenticate(
        &mut self,
        authenticator: &Authenticator,
        credentials: &impl Credentials,
        token: &[u8],
    ) -> (SaslAuthenticateResponse, Progress) {
        let failed = |code, client: String, mechanism, reason| {
            let response = SaslAuthenticateResponse::default()
                .with_error_code(code)
                .with_error_message(Some(client.into()));
            (response, Progress::Failed { mechanism, reason })
        };
        match self.step(authenticator, credentials, token) {
            Err(reason) => failed(ILLEGAL_SASL_STATE, reason.clone(), "none", reason),
            Ok((_, Step::Continue(token))) => (
                SaslAuthenticateResponse::default().with_auth_bytes(token.into()),
                Progress::Continue,
            ),
            Ok((
                mechanism,
                Step::Done {
                    token,
                    user,
                    credential,
                },
            )) => (
                SaslAuthenticateResponse::default().with_auth_bytes(token.into()),
                Progress::Authenticated {
                    user,
                    credential,
                    mechanism,
                },
            ),
            Ok((mechanism, Step::Failed { client, reason })) => failed(
                SASL_AUTHENTICATION_FAILED,
                client,
                sasl::name(mechanism),
                reason,
            ),
        }
    }

    /// A token of its own; the answer is a bare token too, and a failure has none.
    pub(super) fn authenticate_raw(
        &mut self,
        authenticator: &Authenticator,
        credentials: &impl Credentials,
        token: &[u8],
    ) -> (Option<BytesMut>, Progress) {
        match self.step(authenticator, credentials, token) {
            Err(reason) => (
                None,
                Progress::Failed {
                    mechanism: "none",
                    reason,
                },
            ),
            Ok((_, Step::Continue(token))) => (framed(&token), Progress::Continue),
            Ok((
                mechanism,
                Step::Done {
                    token,
                    user,
                    credential,
                },
            )) => (
                framed(&token),
                Progress::Authenticated {
                    user,
                    credential,
                    mechanism,
                },
            ),
            Ok((mechanism, Step::Failed { reason, .. })) => (
                None,
                Progress::Failed {
                    mechanism: sasl::name(mechanism),
                    reason,
                },
            ),
        }
    }

    fn step(
        &mut self,
        authenticator: &Authenticator,
        credentials: &impl Credentials,
        token: &[u8],
    ) -> Result<(Mechanism, Step), String> {
        let Self::Tokens {
            mechanism,
            exchange,
            ..
        } = self
        else {
            return Err("SaslAuthenticate without a SaslHandshake before it".to_owned());
        };
        Ok((*mechanism, authenticator.step(exchange, token, credentials)))
    }
}

fn framed(token: &[u8]) -> Option<BytesMut> {
    let mut out = BytesMut::with_capacity(token.len().saturating_add(4));
    out.put_i32(i32::try_from(token.len()).ok()?);
    out.extend_from_slice(token);
    Some(out)
}
