//! SASL PLAIN (RFC 4616), verified against the stored SCRAM credential.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};
use zeroize::Zeroizing;

use crate::{
    name::{NameError, check_user_name},
    scram::{Decoy, ScramCredential, ScramMechanism},
};

/// Longest message that is looked at.
pub const MAX_MESSAGE_BYTES: usize = 8192;
/// Logins that a [`PlainVerifier`] remembers.
const CACHE_ENTRIES: usize = 4096;

/// Why a PLAIN message is refused. None of it depends on which users exist, so a client may see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlainError {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("the message has {0} bytes, at most {MAX_MESSAGE_BYTES} are allowed")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("the message is not UTF-8")]
    NotUtf8,
    /// Not three parts.
    #[error("expected authorization id, user name and password, separated by two NUL bytes")]
    Parts,
    /// The user name is not allowed.
    #[error("{0}")]
    Name(#[from] NameError),
    /// No password.
    #[error("the password is empty")]
    EmptyPassword,
    /// The client asked to act as someone else.
    #[error("the client requested an authorization id that is different from its user name")]
    AuthorizationId,
}

/// A parsed PLAIN message; the password is wiped when it is dropped.
pub struct PlainMessage {
    user: String,
    password: Zeroizing<String>,
}

impl PlainMessage {
    /// Who the client says it is.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// What it says to prove it.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for PlainMessage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PlainMessage")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Parses `[authzid] NUL authcid NUL passwd`; an authorization id must be absent or the user's own name.
///
/// # Errors
/// [`PlainError`].
pub fn parse_plain(message: &[u8]) -> Result<PlainMessage, PlainError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(PlainError::TooLong(message.len()));
    }
    let text = std::str::from_utf8(message).map_err(|_| PlainError::NotUtf8)?;
    let mut parts = text.split('\0');
    let (Some(authzid), Some(user), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(PlainError::Parts);
    };
    check_user_name(user)?;
    if password.is_empty() {
        return Err(PlainError::EmptyPassword);
    }
    if !authzid.is_empty() && authzid != user {
        return Err(PlainError::AuthorizationId);
    }
    Ok(PlainMessage {
        user: user.to_owned(),
        password: Zeroizing::new(password.to_owned()),
    })
}

/// Verifies passwords against stored credentials, and remembers the ones that were right, so that a client which
/// reconnects often does not cost 4096 rounds of HMAC each time.
///
/// What is remembered is an HMAC under a key that exists only in this process, over user, password and credential: it
/// is useless elsewhere, and a changed or withdrawn credential never matches it.
pub struct PlainVerifier {
    key: hmac::Key,
    decoy: Decoy,
    verified: Mutex<HashMap<String, hmac::Tag>>,
}

impl PlainVerifier {
    /// A verifier with a fresh key; `decoy` as for SCRAM, so that a login of an unknown user takes as long as any other.
    ///
    /// # Errors
    /// When the system's random source fails.
    pub fn new(decoy: Decoy) -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        rand::fill(bytes.as_mut()).map_err(|_| RandomError)?;
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, bytes.as_ref()),
            decoy,
            verified: Mutex::new(HashMap::new()),
        })
    }

    /// Whether the message's password fits `credential`; `None` (an unknown user) is never right, but takes as long.
    #[must_use]
    pub fn verify(&self, message: &PlainMessage, credential: Option<&ScramCredential>) -> bool {
        let Some(credential) = credential else {
            let decoy = self
                .decoy
                .credential(ScramMechanism::Sha512, message.user());
            let _ = decoy.verify_password(message.password());
            return false;
        };
        let tag = self.tag(message, credential);
        if self.remembers(message.user(), &tag) {
            return true;
        }
        let right = credential.verify_password(message.password());
        if right {
            self.remember(message.user(), tag);
        }
        right
    }

    fn tag(&self, message: &PlainMessage, credential: &ScramCredential) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        // NUL can be in neither, since it separates them in the message.
        context.update(message.user().as_bytes());
        context.update(&[0]);
        context.update(message.password().as_bytes());
        context.update(&[0]);
        credential.fingerprint_into(&mut context);
        context.sign()
    }

    fn remembers(&self, user: &str, tag: &hmac::Tag) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified
            .get(user)
            .is_some_and(|known| verify_slices_are_equal(known.as_ref(), tag.as_ref()).is_ok())
    }

    fn remember(&self, user: &str, tag: hmac::Tag) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= CACHE_ENTRIES && !verified.contains_key(user) {
            // Forgetting everyone costs each of them one PBKDF2, and needs no bookkeeping per login.
            verified.clear();
        }
        verified.insert(user.to_owned(), tag);
    }
}

impl fmt::Debug for PlainVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PlainVerifier(..)")
    }
}

/// The system has no randomness to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot make a key: the system's random source failed")]
pub struct RandomError;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(user: &str, password: &str) -> PlainMessage {
        parse_plain(format!("\0{user}\0{password}").as_bytes()).unwrap()
    }

    fn verifier() -> PlainVerifier {
        PlainVerifier::new(Decoy::from_bytes([1; 32])).unwrap()
    }

    fn credential(password: &str) -> ScramCredential {
        ScramCredential::from_password_and_salt(ScramMechanism::Sha256, password, vec![9; 16], 4096)
            .unwrap()
    }

    #[test]
    fn a_message_has_three_parts_and_its_own_authorization_id() {
        let parsed = parse_plain(b"alice\0alice\0secret").unwrap();
        assert_eq!((parsed.user(), parsed.password()), ("alice", "secret"));
        for (bytes, error) in [
            (&b"alice\0secret"[..], PlainError::Parts),
            (b"\0a\0b\0c", PlainError::Parts),
            (b"", PlainError::Parts),
            (b"\0\0secret", PlainError::Name(NameError::Empty)),
            (b"\0alice\0", PlainError::EmptyPassword),
            (b"bob\0alice\0secret", PlainError::AuthorizationId),
            (b"\0al\xffice\0secret", PlainError::NotUtf8),
            (
                b"\0al\nice\0secret",
                PlainError::Name(NameError::Forbidden { code: 10, at: 2 }),
            ),
        ] {
            assert_eq!(parse_plain(bytes).unwrap_err(), error);
        }
        let long = vec![b'a'; MAX_MESSAGE_BYTES + 1];
        assert_eq!(
            parse_plain(&long).unwrap_err(),
            PlainError::TooLong(MAX_MESSAGE_BYTES + 1)
        );
    }

    #[test]
    fn the_password_is_never_printed() {
        let text = format!("{:?}", message("alice", "hunter2"));
        assert!(
            text.contains("alice") && !text.contains("hunter2"),
            "{text}"
        );
    }

    #[test]
    fn only_the_right_password_of_a_known_user_passes_and_again_from_the_cache() {
        let verifier = verifier();
        let stored = credential("secret");
        for _ in 0..2 {
            assert!(verifier.verify(&message("alice", "secret"), Some(&stored)));
            assert!(!verifier.verify(&message("alice", "Secret"), Some(&stored)));
            assert!(!verifier.verify(&message("alice", "secret"), None));
        }
        assert_eq!(verifier.verified.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_changed_credential_makes_the_remembered_password_wrong() {
        let verifier = verifier();
        assert!(verifier.verify(&message("alice", "old"), Some(&credential("old"))));
        let new = credential("new");
        assert!(!verifier.verify(&message("alice", "old"), Some(&new)));
        assert!(verifier.verify(&message("alice", "new"), Some(&new)));
        assert!(!verifier.verify(&message("alice", "old"), Some(&new)));
    }

    #[test]
    fn a_remembered_login_is_of_that_user_only() {
        let verifier = verifier();
        let stored = credential("secret");
        assert!(verifier.verify(&message("alice", "secret"), Some(&stored)));
        let bobs = credential("other");
        assert!(!verifier.verify(&message("bob", "secret"), Some(&bobs)));
    }
}
