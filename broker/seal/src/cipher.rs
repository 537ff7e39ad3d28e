use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::{SealError, SecretKey, TAG_LEN};

/// Length of an AES-GCM nonce in bytes.
pub const NONCE_LEN: usize = 12;

/// AES-256-GCM under one key. Whoever calls it answers for the uniqueness of nonces.
#[derive(Debug)]
pub(crate) struct Cipher(LessSafeKey);

impl Cipher {
    pub(crate) fn new(key: &SecretKey) -> Result<Self, SealError> {
        UnboundKey::new(&AES_256_GCM, key.as_bytes())
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| SealError::Library("set up a cipher"))
    }

    /// Encrypts in place and returns the tag.
    pub(crate) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_LEN], SealError> {
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), in_out)
            .map_err(|_| SealError::Library("encrypt"))?;
        tag.as_ref()
            .try_into()
            .map_err(|_| SealError::Library("make a tag"))
    }

    /// Encrypts `plaintext` into `out`, which must be longer by the tag.
    pub(crate) fn seal_to(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        plaintext: &[u8],
        out: &mut [u8],
    ) -> Result<(), SealError> {
        let (ciphertext, tag) = out
            .split_at_mut_checked(plaintext.len())
            .ok_or(SealError::Library("encrypt"))?;
        self.0
            .seal_out_of_place_scatter(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                plaintext,
                ciphertext,
                &[],
                tag,
            )
            .map_err(|_| SealError::Library("encrypt"))
    }

    /// Authenticates and decrypts `sealed` (ciphertext and tag) into `out`, which must be shorter by the tag.
    ///
    /// On failure the content of `out` is unspecified and must not be used.
    pub(crate) fn open_to(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
        what: &'static str,
    ) -> Result<(), SealError> {
        let (ciphertext, tag) = sealed
            .split_at_checked(out.len())
            .ok_or_else(|| SealError::malformed(what, "shorter than its tag"))?;
        self.0
            .open_separate_gather(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                ciphertext,
                tag,
                out,
            )
            .map_err(|_| SealError::NotAuthentic { what })
    }
}
