//! Why a call to the brokers failed.

use std::time::Duration;

use kafka_protocol::{error::ResponseError, protocol::StrBytes};

/// Why a call to the brokers failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// No TCP or TLS connection came about.
    #[error("cannot connect to broker {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system or the TLS library said.
        source: std::io::Error,
    },
    /// The connection broke during a call.
    #[error("lost the connection to broker {address}: {source}")]
    Lost {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing came back in time.
    #[error("broker {address} did not answer {api} within {} s", limit.as_secs())]
    Timeout {
        /// Host and port.
        address: String,
        /// Name of the API.
        api: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The broker's bytes are not an answer to what was asked.
    #[error("the answer to {api} is malformed: {reason}")]
    Malformed {
        /// Name of the API.
        api: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A request could not be written in the version that was agreed on.
    #[error("cannot encode {api}: {reason}")]
    Encode {
        /// Name of the API.
        api: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker has no version of an API that this client speaks.
    #[error("the broker speaks no version of {api} that this operator speaks; upgrade one of them")]
    Unsupported {
        /// Name of the API.
        api: &'static str,
    },
    /// The broker refused: a Kafka error code.
    #[error("{api} was refused with {code}{}", detail(.message))]
    Refused {
        /// Name of the API.
        api: &'static str,
        /// The Kafka error.
        code: ResponseError,
        /// The broker's explanation, when it gave one.
        message: String,
    },
    /// None of the addresses led to a controller.
    #[error("no broker is reachable: {last}")]
    NoBroker {
        /// The last failure.
        last: String,
    },
    /// A cryptographic primitive failed.
    #[error("cannot compute a credential: {0}")]
    Crypto(&'static str),
}

fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl KafkaError {
    /// The Kafka error code, when the broker refused.
    #[must_use]
    pub fn code(&self) -> Option<&ResponseError> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// True when the broker understood the request and will refuse it again until it is changed.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self.code(),
            Some(
                ResponseError::InvalidRequest
                    | ResponseError::InvalidConfig
                    | ResponseError::InvalidPartitions
                    | ResponseError::InvalidReplicationFactor
                    | ResponseError::InvalidTopicException
                    | ResponseError::PolicyViolation
                    | ResponseError::UnsupportedSaslMechanism
                    | ResponseError::UnacceptableCredential
            )
        )
    }
}

/// `Ok` for code 0, otherwise the refusal.
pub(super) fn check(
    api: &'static str,
    code: i16,
    message: Option<&StrBytes>,
) -> Result<(), KafkaError> {
    if code == 0 {
        return Ok(());
    }
    let message: String = message.map_or_else(String::new, |text| {
        text.as_str()
            .chars()
            .filter(|c| !c.is_control())
            .take(500)
            .collect()
    });
    Err(KafkaError::Refused {
        api,
        code: ResponseError::try_from_code(code).unwrap_or(ResponseError::Unknown(code)),
        message,
    })
}
