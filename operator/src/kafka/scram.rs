//! SCRAM credentials: describe, upsert, delete (KIP-554).

use std::num::NonZeroU32;

use aws_lc_rs::{pbkdf2, rand};
use bytes::Bytes;
use kafka_protocol::{
    messages::{
        AlterUserScramCredentialsRequest, DescribeUserScramCredentialsRequest,
        alter_user_scram_credentials_request::{ScramCredentialDeletion, ScramCredentialUpsertion},
        describe_user_scram_credentials_request::UserName,
    },
    protocol::StrBytes,
};
use zeroize::Zeroizing;

use super::{AdminClient, ErrorCode, KafkaError, error::check};

/// RESOURCE_NOT_FOUND: what a describe answers for a user without credentials, and a deletion for a credential that is not there.
const RESOURCE_NOT_FOUND: i16 = 91;
const SALT_BYTES: usize = 24;

/// The hash of a SCRAM mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScramMechanism {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl ScramMechanism {
    const fn code(self) -> i8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    const fn from_code(code: i8) -> Option<Self> {
        match code {
            1 => Some(Self::Sha256),
            2 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Name in SASL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }
}

/// What brokers tell of a stored credential; never the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredCredential {
    /// Its hash.
    pub mechanism: ScramMechanism,
    /// Its iteration count.
    pub iterations: u32,
}

/// `SaltedPassword` of RFC 5802 with a fresh salt, in the form the admin protocol carries.
pub struct SaltedPassword {
    mechanism: ScramMechanism,
    iterations: NonZeroU32,
    salt: [u8; SALT_BYTES],
    key: Zeroizing<Vec<u8>>,
}

impl SaltedPassword {
    /// Derives it; costs some milliseconds of CPU.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn derive(
        mechanism: ScramMechanism,
        password: &str,
        iterations: NonZeroU32,
    ) -> Result<Self, KafkaError> {
        let mut salt = [0; SALT_BYTES];
        rand::fill(&mut salt).map_err(|_| KafkaError::Crypto("no randomness"))?;
        let (algorithm, length) = match mechanism {
            ScramMechanism::Sha256 => (pbkdf2::PBKDF2_HMAC_SHA256, 32),
            ScramMechanism::Sha512 => (pbkdf2::PBKDF2_HMAC_SHA512, 64),
        };
        let mut key = Zeroizing::new(vec![0; length]);
        pbkdf2::derive(algorithm, iterations, &salt, password.as_bytes(), &mut key);
        Ok(Self {
            mechanism,
            iterations,
            salt,
            key,
        })
    }
}

impl AdminClient {
    /// The credentials stored for a user, none when the user is unknown.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn describe_scram(&self, user: &str) -> Result<Vec<StoredCredential>, KafkaError> {
        const API: &str = "DescribeUserScramCredentials";
        let request = DescribeUserScramCredentialsRequest::default().with_users(Some(vec![
            UserName::default().with_name(StrBytes::from_string(user.to_owned())),
        ]));
        let answer = self.call(API, &request, |answer| answer.error_code).await?;
        check(API, answer.error_code, answer.error_message.as_ref())?;
        let Some(result) = answer
            .results
            .iter()
            .find(|result| result.user.as_str() == user)
        else {
            return Ok(Vec::new());
        };
        if result.error_code == RESOURCE_NOT_FOUND {
            return Ok(Vec::new());
        }
        check(API, result.error_code, result.error_message.as_ref())?;
        Ok(result
            .credential_infos
            .iter()
            .filter_map(|info| {
                Some(StoredCredential {
                    mechanism: ScramMechanism::from_code(info.mechanism)?,
                    iterations: u32::try_from(info.iterations).ok()?,
                })
            })
            .collect())
    }

    /// Stores a credential in place of the user's present one of the same mechanism, then deletes those of `withdrawn`.
    ///
    /// # Errors
    /// The first refusal. Deleting a credential that is not there is none.
    pub async fn alter_scram(
        &self,
        user: &str,
        stored: Option<&SaltedPassword>,
        withdrawn: &[ScramMechanism],
    ) -> Result<(), KafkaError> {
        let name = StrBytes::from_string(user.to_owned());
        // One request each: brokers refuse a request that names a user twice.
        if let Some(credential) = stored {
            let upsertion = ScramCredentialUpsertion::default()
                .with_name(name.clone())
                .with_mechanism(credential.mechanism.code())
                .with_iterations(i32::try_from(credential.iterations.get()).unwrap_or(i32::MAX))
                .with_salt(Bytes::copy_from_slice(&credential.salt))
                .with_salted_password(Bytes::copy_from_slice(&credential.key));
            let request =
                AlterUserScramCredentialsRequest::default().with_upsertions(vec![upsertion]);
            self.alter_one(user, &request).await?;
        }
        for mechanism in withdrawn {
            let deletion = ScramCredentialDeletion::default()
                .with_name(name.clone())
                .with_mechanism(mechanism.code());
            let request =
                AlterUserScramCredentialsRequest::default().with_deletions(vec![deletion]);
            match self.alter_one(user, &request).await {
                Err(error) if error.code() == Some(&ErrorCode::ResourceNotFound) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn alter_one(
        &self,
        user: &str,
        request: &AlterUserScramCredentialsRequest,
    ) -> Result<(), KafkaError> {
        const API: &str = "AlterUserScramCredentials";
        let answer = self
            .call(API, request, |answer| {
                answer.results.first().map_or(0, |result| result.error_code)
            })
            .await?;
        let result = answer
            .results
            .iter()
            .find(|result| result.user.as_str() == user)
            .ok_or_else(|| KafkaError::Malformed {
                api: API,
                reason: "no result for the user".to_owned(),
            })?;
        check(API, result.error_code, result.error_message.as_ref())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn salted_passwords_have_the_length_of_their_hash_and_a_fresh_salt() {
        let iterations = NonZeroU32::new(4096).unwrap();
        let one = SaltedPassword::derive(ScramMechanism::Sha512, "secret", iterations).unwrap();
        let two = SaltedPassword::derive(ScramMechanism::Sha512, "secret", iterations).unwrap();
        assert_eq!(one.key.len(), 64);
        assert_ne!(one.salt, two.salt);
        assert_ne!(*one.key, *two.key);
        assert_eq!(
            SaltedPassword::derive(ScramMechanism::Sha256, "secret", iterations)
                .unwrap()
                .key
                .len(),
            32
        );
    }
}
