use std::fmt;

use aws_lc_rs::digest;

use crate::{SealError, key::random};

/// Gives 128-bit fingerprints of byte strings. Each maker has a secret of its own: nobody outside can look for two strings that meet.
pub struct Fingerprints {
    secret: [u8; 32],
}

impl Fingerprints {
    /// A maker with a fresh secret.
    ///
    /// # Errors
    /// [`SealError::Library`] when the system has no entropy.
    pub fn new() -> Result<Self, SealError> {
        random().map(|secret| Self { secret })
    }

    /// The fingerprint of `bytes`: the first half of SHA-256 over secret and bytes.
    #[must_use]
    pub fn of(&self, bytes: &[u8]) -> u128 {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&self.secret);
        context.update(bytes);
        let digest = context.finish();
        digest
            .as_ref()
            .first_chunk()
            .map_or(0, |half| u128::from_be_bytes(*half))
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints(redacted)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_bytes_have_the_same_fingerprint_for_one_maker_only() {
        let (one, other) = (Fingerprints::new().unwrap(), Fingerprints::new().unwrap());
        assert_eq!(one.of(b"a"), one.of(b"a"));
        assert_ne!(one.of(b"a"), one.of(b"b"));
        assert_ne!(one.of(b"a"), other.of(b"a"));
    }
}
