//! Principals: the one identity that a connection has.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{NameError, check_user_name};

/// What kind of party a principal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PrincipalKind {
    /// A client, by any mechanism of a client listener.
    User,
    /// A broker or the operator, by a certificate of the cluster authority on the control listener, and no other way.
    System,
}

impl PrincipalKind {
    /// The word before the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "User",
            Self::System => "System",
        }
    }
}

/// The identity of a connection; `Display` is Kafka's form, `User:alice`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Principal {
    kind: PrincipalKind,
    name: String,
}

impl Principal {
    /// Name of a client that proved nothing, as in Kafka.
    pub const ANONYMOUS: &'static str = "ANONYMOUS";

    /// A client by name.
    ///
    /// # Errors
    /// [`NameError`] when the name could not be written safely into a log line or an ACL.
    pub fn user(name: impl Into<String>) -> Result<Self, NameError> {
        Self::new(PrincipalKind::User, name.into())
    }

    /// A broker or the operator. Only the control listener, which trusts the cluster authority alone, may call this.
    ///
    /// # Errors
    /// [`NameError`], as for a user.
    pub fn system(name: impl Into<String>) -> Result<Self, NameError> {
        Self::new(PrincipalKind::System, name.into())
    }

    /// The client that proved nothing (a plaintext listener, or TLS without a certificate).
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            kind: PrincipalKind::User,
            name: Self::ANONYMOUS.to_owned(),
        }
    }

    fn new(kind: PrincipalKind, name: String) -> Result<Self, NameError> {
        check_user_name(&name)?;
        Ok(Self { kind, name })
    }

    /// Reads `User:<name>`, the form of `super_users` and of ACLs. `System` cannot be written anywhere: its principals
    /// need no permission, and no configuration can make a user one of them.
    ///
    /// # Errors
    /// [`PrincipalError`] that says what was expected.
    pub fn parse_user(text: &str) -> Result<Self, PrincipalError> {
        let Some(name) = text.strip_prefix("User:") else {
            return Err(PrincipalError::NotUser);
        };
        Ok(Self::user(name)?)
    }

    /// User or System.
    #[must_use]
    pub const fn kind(&self) -> PrincipalKind {
        self.kind
    }

    /// The name without its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is a broker or the operator.
    #[must_use]
    pub const fn is_system(&self) -> bool {
        matches!(self.kind, PrincipalKind::System)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.kind.as_str(), self.name)
    }
}

/// Why a string is not a principal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrincipalError {
    /// Does not start with `User:`.
    #[error("a principal is written `User:<name>`")]
    NotUser,
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_principal_is_displayed_as_kafka_writes_it_and_read_back() {
        let alice = Principal::user("alice").unwrap();
        assert_eq!(alice.to_string(), "User:alice");
        assert_eq!(Principal::parse_user("User:alice"), Ok(alice));
        let dn = Principal::parse_user("User:O=test,CN=alice").unwrap();
        assert_eq!(dn.name(), "O=test,CN=alice");
    }

    #[test]
    fn nothing_that_is_written_becomes_a_system_principal() {
        assert_eq!(
            Principal::parse_user("System:palisade-operator"),
            Err(PrincipalError::NotUser)
        );
        assert_eq!(Principal::parse_user("alice"), Err(PrincipalError::NotUser));
        assert!(matches!(
            Principal::parse_user("User:"),
            Err(PrincipalError::Name(NameError::Empty))
        ));
        // A user who calls himself so stays a user.
        let user = Principal::user("System:palisade-operator").unwrap();
        assert!(!user.is_system());
        assert_ne!(user, Principal::system("palisade-operator").unwrap());
    }
}
