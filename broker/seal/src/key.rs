use std::fmt;

use aws_lc_rs::{hkdf, rand};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::SealError;

/// Longest KEK id in bytes: it is a file name and stands in every header.
const KEK_ID_LIMIT: usize = 128;

/// 256 bits of key material, wiped from memory when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; Self::LEN]);

impl SecretKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// A fresh random key.
    ///
    /// # Errors
    /// [`SealError::Library`] when the system has no entropy.
    pub fn generate() -> Result<Self, SealError> {
        random().map(Self)
    }

    /// A key from bytes that came from a provider.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// HKDF-SHA256 (RFC 5869): a key for one purpose from this key. The parts of `info` must be of fixed width or
    /// carry their length, since they are simply joined.
    pub(crate) fn derive(&self, salt: &[u8], info: &[&[u8]]) -> Result<Self, SealError> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        let mut bytes = [0u8; Self::LEN];
        prk.expand(info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut bytes))
            .map_err(|_| SealError::Library("derive a key"))?;
        let key = Self(bytes);
        bytes.zeroize();
        Ok(key)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

/// Name of a key encryption key: letters, digits, `.`, `_` and `-`, at most 128 bytes, not starting with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KekId(String);

impl KekId {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`SealError::InvalidKey`] saying what a name may be.
    pub fn new(id: impl Into<String>) -> Result<Self, SealError> {
        let id = id.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.is_empty()
            || id.len() > KEK_ID_LIMIT
            || id.starts_with('.')
            || !id.chars().all(allowed)
        {
            return Err(SealError::InvalidKey(format!(
                "{id:?} is not a key id; use 1 to {KEK_ID_LIMIT} letters, digits, `.`, `_` or `-`, not starting with a dot"
            )));
        }
        Ok(Self(id))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for KekId {
    type Error = SealError;

    fn try_from(id: String) -> Result<Self, SealError> {
        Self::new(id)
    }
}

impl From<KekId> for String {
    fn from(id: KekId) -> Self {
        id.0
    }
}

/// Version of a data encryption key, counted from 1 for each topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DekVersion(pub u32);

impl fmt::Display for DekVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0u8; N];
    rand::fill(&mut bytes).map_err(|_| SealError::Library("draw random bytes"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn debug_shows_no_key_material() {
        let key = SecretKey::from_bytes([0xAB; 32]);
        assert_eq!(format!("{key:?}"), "SecretKey(redacted)");
    }

    #[test]
    fn derived_keys_depend_on_key_salt_and_info() {
        let key = SecretKey::from_bytes([1; 32]);
        let base = key.derive(&[1; 16], &[b"a"]).unwrap();
        for other in [
            SecretKey::from_bytes([2; 32])
                .derive(&[1; 16], &[b"a"])
                .unwrap(),
            key.derive(&[2; 16], &[b"a"]).unwrap(),
            key.derive(&[1; 16], &[b"b"]).unwrap(),
        ] {
            assert_ne!(base.as_bytes(), other.as_bytes());
        }
        assert_eq!(
            base.as_bytes(),
            key.derive(&[1; 16], &[b"a"]).unwrap().as_bytes()
        );
    }

    #[test]
    fn kek_ids_are_safe_file_names() {
        for good in ["k1", "2026-11-24", "a.b_c"] {
            assert_eq!(KekId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".hidden",
            "../x",
            "a/b",
            "a b",
            "ключ",
            &"x".repeat(129),
        ] {
            let message = KekId::new(bad).unwrap_err().to_string();
            assert!(
                message.contains("is not a key id; use 1 to 128 letters"),
                "{message}"
            );
        }
    }
}
