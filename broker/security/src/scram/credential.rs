//! What a broker stores of a password, and what it computes with it.

use std::{fmt, num::NonZeroU32};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest, hmac,
    pbkdf2::{self, PBKDF2_HMAC_SHA256, PBKDF2_HMAC_SHA512},
    rand,
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::ScramMechanism;

/// Fewest iterations that a credential may have (RFC 7677, Kafka).
pub const MIN_ITERATIONS: u32 = 4096;
/// Most iterations that a credential may have: Kafka's limit, since a client has to compute them.
pub const MAX_ITERATIONS: u32 = 16_384;
/// Iterations of a credential that is made here.
pub const DEFAULT_ITERATIONS: u32 = 4096;

const SALT_BYTES: usize = 32;
/// Users that the operator made have salts of so many bytes, and iterations drawn from the range below. Who has no credential must look the same.
const DECOY_SALT_BYTES: usize = 24;
const DECOY_ITERATIONS: std::ops::Range<u32> = 4_097..8_192;
/// Longest salt that is stored; tools send 20 to 32 bytes.
const MAX_SALT_BYTES: usize = 256;

/// Why a credential cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CredentialError {
    /// Below [`MIN_ITERATIONS`].
    #[error("too few iterations: {0}, at least {MIN_ITERATIONS} are needed")]
    TooFewIterations(i64),
    /// Above [`MAX_ITERATIONS`].
    #[error("too many iterations: {0}, at most {MAX_ITERATIONS} are allowed")]
    TooManyIterations(i64),
    /// No salt, or one that is absurdly long.
    #[error("the salt has {0} bytes, 1 to {MAX_SALT_BYTES} are allowed")]
    Salt(usize),
    /// The salted password is not as long as the mechanism's hash.
    #[error("the salted password has {found} bytes, {mechanism} needs {expected}")]
    SaltedPassword {
        /// The mechanism.
        mechanism: ScramMechanism,
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// No password.
    #[error("the password is empty")]
    EmptyPassword,
    /// The system has no randomness to give.
    #[error("cannot make a salt: the system's random source failed")]
    Random,
}

/// A stored SCRAM credential: enough to verify a proof or a password, not enough to log in elsewhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct ScramCredential {
    #[zeroize(skip)]
    mechanism: ScramMechanism,
    salt: Vec<u8>,
    iterations: u32,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl ScramCredential {
    /// The credential of `password` with a fresh salt.
    ///
    /// # Errors
    /// [`CredentialError`] for an empty password, iterations out of range, or no randomness.
    pub fn from_password(
        mechanism: ScramMechanism,
        password: &str,
        iterations: u32,
    ) -> Result<Self, CredentialError> {
        let mut salt = vec![0_u8; SALT_BYTES];
        rand::fill(&mut salt).map_err(|_| CredentialError::Random)?;
        Self::from_password_and_salt(mechanism, password, salt, iterations)
    }

    /// The credential of `password` with a given salt: the same input gives the same credential.
    ///
    /// # Errors
    /// [`CredentialError`] for an empty password, an unusable salt or iterations out of range.
    pub fn from_password_and_salt(
        mechanism: ScramMechanism,
        password: &str,
        salt: Vec<u8>,
        iterations: u32,
    ) -> Result<Self, CredentialError> {
        if password.is_empty() {
            return Err(CredentialError::EmptyPassword);
        }
        check_iterations(i64::from(iterations))?;
        check_salt(&salt)?;
        let salted = salted_password(mechanism, password, &salt, iterations);
        Ok(Self::derive(mechanism, salt, iterations, &salted))
    }

    /// The credential of what `AlterUserScramCredentials` carries: the client has run PBKDF2 already.
    ///
    /// # Errors
    /// [`CredentialError`] when a part is out of range; `iterations` is as on the wire, so it may be negative.
    pub fn from_salted_password(
        mechanism: ScramMechanism,
        salt: &[u8],
        iterations: i32,
        salted_password: &[u8],
    ) -> Result<Self, CredentialError> {
        let iterations = check_iterations(i64::from(iterations))?;
        check_salt(salt)?;
        if salted_password.len() != mechanism.hash_len() {
            return Err(CredentialError::SaltedPassword {
                mechanism,
                found: salted_password.len(),
                expected: mechanism.hash_len(),
            });
        }
        Ok(Self::derive(
            mechanism,
            salt.to_vec(),
            iterations,
            salted_password,
        ))
    }

    fn derive(mechanism: ScramMechanism, salt: Vec<u8>, iterations: u32, salted: &[u8]) -> Self {
        let client_key = Zeroizing::new(mac(mechanism, salted, b"Client Key"));
        Self {
            mechanism,
            salt,
            iterations,
            stored_key: hash(mechanism, &client_key),
            server_key: mac(mechanism, salted, b"Server Key"),
        }
    }

    /// The mechanism that this credential is for.
    #[must_use]
    pub const fn mechanism(&self) -> ScramMechanism {
        self.mechanism
    }

    /// The salt, which the server tells every client.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// The iteration count, which the server tells every client.
    #[must_use]
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Whether `password` is the one this credential was made of. Costs the full PBKDF2 each time; see
    /// [`crate::PlainVerifier`] for what PLAIN uses.
    #[must_use]
    pub fn verify_password(&self, password: &str) -> bool {
        // A stored credential has been checked when it was made; one read from a damaged file must not cost hours.
        if check_iterations(i64::from(self.iterations)).is_err() {
            return false;
        }
        let salted = salted_password(self.mechanism, password, &self.salt, self.iterations);
        let client_key = Zeroizing::new(mac(self.mechanism, &salted, b"Client Key"));
        verify_slices_are_equal(&hash(self.mechanism, &client_key), &self.stored_key).is_ok()
    }

    /// Whether `proof` shows knowledge of the password: `H(proof XOR HMAC(StoredKey, AuthMessage)) == StoredKey`.
    pub(super) fn verify_proof(&self, auth_message: &[u8], proof: &[u8]) -> bool {
        let signature = mac(self.mechanism, &self.stored_key, auth_message);
        if proof.len() != signature.len() {
            return false;
        }
        let client_key: Zeroizing<Vec<u8>> = Zeroizing::new(
            proof
                .iter()
                .zip(&signature)
                .map(|(left, right)| left ^ right)
                .collect(),
        );
        verify_slices_are_equal(&hash(self.mechanism, &client_key), &self.stored_key).is_ok()
    }

    pub(super) fn server_signature(&self, auth_message: &[u8]) -> Vec<u8> {
        mac(self.mechanism, &self.server_key, auth_message)
    }

    /// A value that changes whenever the credential does, for caches; it reveals nothing without `key`.
    pub(crate) fn fingerprint_into(&self, context: &mut hmac::Context) {
        context.update(self.mechanism.as_str().as_bytes());
        context.update(&self.stored_key);
    }
}

impl fmt::Debug for ScramCredential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ScramCredential")
            .field("mechanism", &self.mechanism)
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

/// Makes credentials for users that do not exist, so that a guesser cannot tell them from those that do: the salt of a
/// name is always the same, and looks like any other.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Decoy {
    key: [u8; 32],
}

impl Decoy {
    /// A decoy with this secret, which must stay the same over restarts and on every broker of a cluster.
    #[must_use]
    pub const fn from_bytes(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// A credential that no password and no proof fits.
    #[must_use]
    pub fn credential(&self, mechanism: ScramMechanism, user: &str) -> ScramCredential {
        let derived = |label: &[u8]| {
            let mut context =
                hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA512, &self.key));
            context.update(label);
            context.update(mechanism.as_str().as_bytes());
            context.update(&[0]);
            context.update(user.as_bytes());
            context.sign().as_ref().to_vec()
        };
        let sized = |label: &[u8], length: usize| {
            let mut bytes = derived(label);
            bytes.truncate(length);
            bytes
        };
        let drawn = derived(b"iterations")
            .iter()
            .take(4)
            .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        ScramCredential {
            mechanism,
            salt: sized(b"salt", DECOY_SALT_BYTES),
            iterations: DECOY_ITERATIONS.start + drawn % DECOY_ITERATIONS.len() as u32,
            stored_key: sized(b"stored", mechanism.hash_len()),
            server_key: sized(b"server", mechanism.hash_len()),
        }
    }
}

impl fmt::Debug for Decoy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Decoy(..)")
    }
}

fn check_iterations(iterations: i64) -> Result<u32, CredentialError> {
    if iterations < i64::from(MIN_ITERATIONS) {
        return Err(CredentialError::TooFewIterations(iterations));
    }
    match u32::try_from(iterations) {
        Ok(valid) if valid <= MAX_ITERATIONS => Ok(valid),
        _ => Err(CredentialError::TooManyIterations(iterations)),
    }
}

fn check_salt(salt: &[u8]) -> Result<(), CredentialError> {
    if salt.is_empty() || salt.len() > MAX_SALT_BYTES {
        return Err(CredentialError::Salt(salt.len()));
    }
    Ok(())
}

fn salted_password(
    mechanism: ScramMechanism,
    password: &str,
    salt: &[u8],
    iterations: u32,
) -> Zeroizing<Vec<u8>> {
    let algorithm = match mechanism {
        ScramMechanism::Sha256 => PBKDF2_HMAC_SHA256,
        ScramMechanism::Sha512 => PBKDF2_HMAC_SHA512,
    };
    let mut salted = Zeroizing::new(vec![0_u8; mechanism.hash_len()]);
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(
        algorithm,
        iterations,
        salt,
        password.as_bytes(),
        &mut salted,
    );
    salted
}

fn mac(mechanism: ScramMechanism, key: &[u8], data: &[u8]) -> Vec<u8> {
    let algorithm = match mechanism {
        ScramMechanism::Sha256 => hmac::HMAC_SHA256,
        ScramMechanism::Sha512 => hmac::HMAC_SHA512,
    };
    hmac::sign(&hmac::Key::new(algorithm, key), data)
        .as_ref()
        .to_vec()
}

fn hash(mechanism: ScramMechanism, data: &[u8]) -> Vec<u8> {
    let algorithm = match mechanism {
        ScramMechanism::Sha256 => &digest::SHA256,
        ScramMechanism::Sha512 => &digest::SHA512,
    };
    digest::digest(algorithm, data).as_ref().to_vec()
}
