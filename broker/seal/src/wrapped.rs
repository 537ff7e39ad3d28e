use serde::{Deserialize, Serialize};

use crate::{
    KekId, SealError, SecretKey, TAG_LEN,
    cipher::{Cipher, NONCE_LEN},
    key::random,
};

const FORMAT: u8 = 1;
const CHECK_LEN: usize = 8;
const WHAT: &str = "wrapped key";

/// A key encrypted under a key encryption key, with what is needed to find that key again. Safe to store and log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Which key encryption key wrapped it.
    pub kek: KekId,
    /// Check value of that key: tells a wrong key of the same name from damaged data.
    pub check: [u8; CHECK_LEN],
    /// Nonce of the encryption.
    pub nonce: [u8; NONCE_LEN],
    /// Encrypted key and tag.
    pub ciphertext: Vec<u8>,
}

impl WrappedKey {
    /// Longest encoding in bytes.
    pub const ENCODED_LIMIT: usize = 2 + 128 + CHECK_LEN + NONCE_LEN + SecretKey::LEN + TAG_LEN;

    /// Wraps `secret` under the key encryption key `key` called `kek`. `context` says what the key is for and must be
    /// given again to unwrap it.
    ///
    /// # Errors
    /// [`SealError::Library`] only.
    pub fn wrap(
        kek: KekId,
        key: &SecretKey,
        secret: &SecretKey,
        context: &[u8],
    ) -> Result<Self, SealError> {
        let nonce = random()?;
        let mut ciphertext = vec![0u8; SecretKey::LEN + TAG_LEN];
        wrapping_cipher(key)?.seal_to(
            nonce,
            &aad(&kek, context),
            secret.as_bytes(),
            &mut ciphertext,
        )?;
        Ok(Self {
            kek,
            check: check_value(key)?,
            nonce,
            ciphertext,
        })
    }

    /// Unwraps with `key`, which `place` (for messages) holds under the name [`WrappedKey::kek`].
    ///
    /// # Errors
    /// [`SealError::WrongKek`] when `key` is not the one that wrapped it, [`SealError::NotAuthentic`] when this is
    /// damaged or was wrapped for another `context`.
    pub fn unwrap_with(
        &self,
        key: &SecretKey,
        place: &str,
        context: &[u8],
    ) -> Result<SecretKey, SealError> {
        let check = check_value(key)?;
        if check != self.check {
            return Err(SealError::WrongKek {
                kek: self.kek.clone(),
                place: place.to_owned(),
                found: hex(&check),
                expected: hex(&self.check),
            });
        }
        if self.ciphertext.len() != SecretKey::LEN + TAG_LEN {
            return Err(SealError::malformed(
                WHAT,
                format!("{} bytes of ciphertext", self.ciphertext.len()),
            ));
        }
        let mut bytes = zeroize::Zeroizing::new([0u8; SecretKey::LEN]);
        wrapping_cipher(key)?.open_to(
            self.nonce,
            &aad(&self.kek, context),
            &self.ciphertext,
            bytes.as_mut(),
            WHAT,
        )?;
        Ok(SecretKey::from_bytes(*bytes))
    }

    /// The stored form; see the crate's table of formats.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let id = self.kek.as_str().as_bytes();
        let mut out = Vec::with_capacity(Self::ENCODED_LIMIT);
        out.push(FORMAT);
        // A KEK id has at most 128 bytes by construction.
        out.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(id);
        out.extend_from_slice(&self.check);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.ciphertext);
        out
    }

    /// Reads what [`WrappedKey::encode`] wrote.
    ///
    /// # Errors
    /// [`SealError::Malformed`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SealError> {
        let malformed = |reason: &str| SealError::malformed(WHAT, reason);
        let (head, rest) = bytes
            .split_first_chunk::<2>()
            .ok_or_else(|| malformed("shorter than its header"))?;
        let [format, id_len] = *head;
        if format != FORMAT {
            return Err(malformed(&format!(
                "format {format}, this version reads {FORMAT}"
            )));
        }
        let (id, rest) = rest
            .split_at_checked(usize::from(id_len))
            .ok_or_else(|| malformed("shorter than its key id"))?;
        let id = std::str::from_utf8(id).map_err(|_| malformed("its key id is not text"))?;
        let kek = KekId::new(id).map_err(|error| malformed(&error.to_string()))?;
        let (check, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| malformed("shorter than its check value"))?;
        let (nonce, ciphertext) = rest
            .split_first_chunk()
            .ok_or_else(|| malformed("shorter than its nonce"))?;
        if ciphertext.len() != SecretKey::LEN + TAG_LEN {
            return Err(malformed(&format!(
                "{} bytes of ciphertext",
                ciphertext.len()
            )));
        }
        Ok(Self {
            kek,
            check: *check,
            nonce: *nonce,
            ciphertext: ciphertext.to_vec(),
        })
    }
}

fn wrapping_cipher(key: &SecretKey) -> Result<Cipher, SealError> {
    Cipher::new(&key.derive(b"palisade", &[b"kek wrap v1"])?)
}

/// Eight bytes that identify a key without telling anything about it.
fn check_value(key: &SecretKey) -> Result<[u8; CHECK_LEN], SealError> {
    let derived = key.derive(b"palisade", &[b"kek check v1"])?;
    let mut check = [0u8; CHECK_LEN];
    for (to, from) in check.iter_mut().zip(derived.as_bytes()) {
        *to = *from;
    }
    Ok(check)
}

fn aad(kek: &KekId, context: &[u8]) -> Vec<u8> {
    let id = kek.as_str().as_bytes();
    let mut aad = Vec::with_capacity(2 + id.len() + context.len());
    aad.push(FORMAT);
    aad.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
    aad.extend_from_slice(id);
    aad.extend_from_slice(context);
    aad
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    fn wrapped() -> (SecretKey, SecretKey, WrappedKey) {
        let kek = SecretKey::generate().unwrap();
        let secret = SecretKey::generate().unwrap();
        let wrapped =
            WrappedKey::wrap(KekId::new("k1").unwrap(), &kek, &secret, b"topic a").unwrap();
        (kek, secret, wrapped)
    }

    #[test]
    fn unwraps_to_the_same_key() {
        let (kek, secret, wrapped) = wrapped();
        let decoded = WrappedKey::decode(&wrapped.encode()).unwrap();
        assert_eq!(decoded, wrapped);
        let opened = decoded.unwrap_with(&kek, "here", b"topic a").unwrap();
        assert_eq!(opened.as_bytes(), secret.as_bytes());
    }

    #[test]
    fn a_wrong_key_of_the_same_name_is_told_from_damage() {
        let (kek, _, wrapped) = wrapped();
        let other = SecretKey::generate().unwrap();
        let error = wrapped.unwrap_with(&other, "/kek", b"topic a").unwrap_err();
        assert!(matches!(error, SealError::WrongKek { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("key `k1` in /kek is not the key that wrapped this data"),
            "{error}"
        );

        let mut damaged = wrapped.clone();
        damaged.ciphertext[3] ^= 1;
        for error in [
            damaged.unwrap_with(&kek, "/kek", b"topic a").unwrap_err(),
            wrapped.unwrap_with(&kek, "/kek", b"topic b").unwrap_err(),
        ] {
            assert!(matches!(error, SealError::NotAuthentic { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn decoding_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(key) = WrappedKey::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn any_changed_bit_is_noticed(bit in 0usize..8 * 72) {
            let (kek, _, wrapped) = wrapped();
            let mut bytes = wrapped.encode();
            prop_assert_eq!(bytes.len(), 72);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let opened = WrappedKey::decode(&bytes).and_then(|key| {
                if key.kek != wrapped.kek {
                    return Err(SealError::UnknownKek { kek: key.kek, place: String::new() });
                }
                key.unwrap_with(&kek, "here", b"topic a")
            });
            prop_assert!(opened.is_err());
        }
    }
}
