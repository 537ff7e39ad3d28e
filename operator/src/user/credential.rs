//! Passwords, and how the operator knows without keeping one that the brokers hold it.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, rand};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    kafka::scram::{ScramMechanism, StoredCredential},
    pki::PkiError,
};

/// Annotation of a user's Secret with its [`CredentialRecord`].
pub(super) const RECORD_ANNOTATION: &str = "palisade.dev/credential";
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// Iteration counts are drawn from these: above Kafka's minimum, which is also what its tools use, so that a credential set by hand stands out.
const ITERATIONS: std::ops::Range<u32> = 4_097..8_192;
const MAX_PASSWORD: usize = 1024;

/// What a Secret remembers of the credential pushed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CredentialRecord {
    salt: String,
    iterations: NonZeroU32,
}

impl CredentialRecord {
    /// Draws a salt and an iteration count.
    pub(super) fn draw() -> Result<Self, PkiError> {
        let mut bytes = [0; 20];
        rand::fill(&mut bytes).map_err(|_| PkiError::Random)?;
        let (number, salt) = bytes.split_at(4);
        let number = number
            .iter()
            .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        // The bias of the remainder does not matter: the count has to be unlikely to be met by chance, not secret.
        let iterations = ITERATIONS.start + number % (ITERATIONS.end - ITERATIONS.start);
        Ok(Self {
            salt: salt.iter().map(|byte| format!("{byte:02x}")).collect(),
            iterations: NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN),
        })
    }

    /// The record of a Secret, if it has one.
    pub(super) fn read(secret: &Secret) -> Option<Self> {
        serde_json::from_str(secret.annotations().get(RECORD_ANNOTATION)?).ok()
    }

    /// The record as an annotation.
    pub(super) fn render(&self) -> String {
        format!(
            "{{\"salt\":\"{}\",\"iterations\":{}}}",
            self.salt, self.iterations
        )
    }

    pub(super) const fn iterations(&self) -> NonZeroU32 {
        self.iterations
    }

    /// A digest that tells credentials apart. It goes into the status, which more people may read than the Secret; without the salt, which stays in the
    /// Secret, a guessed password cannot be checked against it.
    pub(super) fn fingerprint(
        &self,
        mechanism: ScramMechanism,
        user: &str,
        password: &str,
    ) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        for part in [self.salt.as_str(), mechanism.name(), user, password] {
            hash.update(&part.len().to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.finish()
            .as_ref()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Whether the brokers hold the credential of the record, and no other.
pub(super) fn stands(
    stored: &[StoredCredential],
    mechanism: ScramMechanism,
    record: &CredentialRecord,
) -> bool {
    stored
        == [StoredCredential {
            mechanism,
            iterations: record.iterations.get(),
        }]
}

/// A password of letters and digits, each drawn evenly.
pub(super) fn generate(length: usize) -> Result<Zeroizing<String>, PkiError> {
    let mut password = Zeroizing::new(String::with_capacity(length));
    while password.len() < length {
        let mut byte = [0];
        rand::fill(&mut byte).map_err(|_| PkiError::Random)?;
        // 248 is the largest multiple of 62 in a byte; what lies above would favour the first letters.
        if byte[0] < 248
            && let Some(letter) = ALPHABET.get(usize::from(byte[0]) % ALPHABET.len())
        {
            password.push(char::from(*letter));
        }
    }
    Ok(password)
}

/// Checks a password that a user brought.
///
/// # Errors
/// What is wrong with it, never the password.
pub(super) fn check(password: &str) -> Result<(), String> {
    if password.is_empty() {
        return Err("the password is empty".to_owned());
    }
    if password.len() > MAX_PASSWORD {
        return Err(format!(
            "the password has {} bytes: use {MAX_PASSWORD} at most",
            password.len()
        ));
    }
    if password.chars().any(char::is_control) {
        return Err("the password contains a line break or another control character, which no client's configuration can hold: remove it (printf instead of echo)".to_owned());
    }
    if password.trim() != password {
        return Err("the password begins or ends with white space, which clients strip from their configuration: remove it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn generated_passwords_are_long_plain_and_different() {
        let (one, two) = (generate(32).unwrap(), generate(32).unwrap());
        assert_eq!(one.len(), 32);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(one, two);
        check(&one).unwrap();
    }

    #[test]
    fn passwords_that_no_configuration_can_hold_are_refused_with_advice() {
        for (password, problem) in [
            ("", "is empty"),
            ("secret\n", "line break"),
            (" secret", "white space"),
            (&"x".repeat(1025), "1024 at most"),
        ] {
            assert!(
                check(password).unwrap_err().contains(problem),
                "{password:?}"
            );
        }
        check("pass \"word\" \\ ; = ü").unwrap();
    }

    #[test]
    fn a_record_reads_back_and_tells_credentials_apart() {
        let record = CredentialRecord::draw().unwrap();
        let mut secret = Secret::default();
        secret
            .annotations_mut()
            .insert(RECORD_ANNOTATION.to_owned(), record.render());
        assert_eq!(CredentialRecord::read(&secret), Some(record.clone()));
        assert!(ITERATIONS.contains(&record.iterations().get()));
        let fingerprint = record.fingerprint(ScramMechanism::Sha512, "alice", "secret");
        assert_eq!(
            record.fingerprint(ScramMechanism::Sha512, "alice", "secret"),
            fingerprint
        );
        for other in [
            record.fingerprint(ScramMechanism::Sha256, "alice", "secret"),
            record.fingerprint(ScramMechanism::Sha512, "alices", "ecret"),
            record.fingerprint(ScramMechanism::Sha512, "alice", "secret2"),
            CredentialRecord::draw().unwrap().fingerprint(
                ScramMechanism::Sha512,
                "alice",
                "secret",
            ),
        ] {
            assert_ne!(other, fingerprint);
        }
    }

    #[test]
    fn a_credential_changed_by_hand_is_noticed() {
        let record = CredentialRecord::draw().unwrap();
        let ours = StoredCredential {
            mechanism: ScramMechanism::Sha512,
            iterations: record.iterations().get(),
        };
        assert!(stands(&[ours], ScramMechanism::Sha512, &record));
        assert!(!stands(&[], ScramMechanism::Sha512, &record));
        assert!(!stands(
            &[StoredCredential {
                iterations: 4096,
                ..ours
            }],
            ScramMechanism::Sha512,
            &record
        ));
        assert!(!stands(&[ours], ScramMechanism::Sha256, &record));
        let extra = StoredCredential {
            mechanism: ScramMechanism::Sha256,
            iterations: 4096,
        };
        assert!(!stands(&[ours, extra], ScramMechanism::Sha512, &record));
    }
}
