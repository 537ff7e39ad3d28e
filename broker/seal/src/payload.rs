use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    DekVersion, SealError, SecretKey, TAG_LEN,
    cipher::{Cipher, NONCE_LEN},
    key::random,
};

const FORMAT: u8 = 1;
const SALT_LEN: usize = 16;
const HEADER_LEN: usize = 1 + 4 + SALT_LEN + 8;
/// Subkeys kept by a ring. One is made for each leader session, so a reader of old data meets a few.
const CACHED_SUBKEYS: usize = 256;
const WHAT: &str = "sealed payload";

/// Bytes that sealing adds to a payload.
pub const PAYLOAD_OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// Seals payloads under one version of a data key, for one leader session.
///
/// Every sealer draws a fresh 128-bit salt and derives its own subkey, so that its nonces can be a plain counter: two
/// sealers of the same key, in one process or in two, never share a nonce.
pub struct Sealer {
    version: DekVersion,
    salt: [u8; SALT_LEN],
    cipher: Cipher,
    next: AtomicU64,
}

impl Sealer {
    /// Begins a session.
    ///
    /// # Errors
    /// [`SealError::Library`] only.
    pub fn new(dek: &SecretKey, version: DekVersion) -> Result<Self, SealError> {
        Self::starting_at(dek, version, 0)
    }

    fn starting_at(dek: &SecretKey, version: DekVersion, counter: u64) -> Result<Self, SealError> {
        let salt = random()?;
        Ok(Self {
            version,
            salt,
            cipher: subkey(dek, version, &salt)?,
            next: AtomicU64::new(counter),
        })
    }

    /// Encrypts `plaintext` and authenticates it together with `aad`. Callable from many threads.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] once the counter has reached its end: a new session is needed.
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let (mut sealed, counter) = self.begin(plaintext.len())?;
        sealed.resize(plaintext.len() + PAYLOAD_OVERHEAD, 0);
        let (_, body) = sealed.split_at_mut(HEADER_LEN);
        self.cipher.seal_to(nonce(counter), aad, plaintext, body)?;
        Ok(sealed)
    }

    /// As [`Sealer::seal`] of all `parts` joined, without a buffer for joining them.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    pub fn seal_parts(&self, aad: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, SealError> {
        let length = parts
            .iter()
            .fold(0usize, |sum, part| sum.saturating_add(part.len()));
        let (mut sealed, counter) = self.begin(length)?;
        for part in parts {
            sealed.extend_from_slice(part);
        }
        let (_, body) = sealed.split_at_mut(HEADER_LEN);
        let tag = self.cipher.seal(nonce(counter), aad, body)?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Takes a counter, and begins a buffer with room for all that is sealed with it.
    fn begin(&self, plaintext_len: usize) -> Result<(Vec<u8>, u64), SealError> {
        let counter = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(1)
            })
            .map_err(|_| SealError::Exhausted)?;
        let length = plaintext_len
            .checked_add(PAYLOAD_OVERHEAD)
            .ok_or_else(|| SealError::malformed(WHAT, "too long to seal"))?;
        let mut sealed = Vec::with_capacity(length);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&self.version.0.to_be_bytes());
        sealed.extend_from_slice(&self.salt);
        sealed.extend_from_slice(&counter.to_be_bytes());
        Ok((sealed, counter))
    }

    /// The version of the data key.
    #[must_use]
    pub fn version(&self) -> DekVersion {
        self.version
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// What a subkey is derived from besides the data key.
type SubkeyId = (DekVersion, [u8; SALT_LEN]);

/// The versions of one data key: opens what any [`Sealer`] of them sealed.
#[derive(Default)]
pub struct KeyRing {
    versions: RwLock<BTreeMap<DekVersion, SecretKey>>,
    subkeys: RwLock<HashMap<SubkeyId, Arc<Cipher>>>,
}

impl KeyRing {
    /// An empty ring, which opens nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a version, or replaces it.
    pub fn insert(&self, version: DekVersion, key: SecretKey) {
        self.versions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(version, key);
        self.forget_subkeys(version);
    }

    /// Takes a version over from another ring of the same data key; false when that does not have it.
    pub fn take_over(&self, version: DekVersion, from: &Self) -> bool {
        let versions = from.versions.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = versions.get(&version).cloned() else {
            return false;
        };
        drop(versions);
        self.insert(version, key);
        true
    }

    /// Drops a version: what was sealed under it can no longer be opened.
    pub fn remove(&self, version: DekVersion) {
        self.versions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&version);
        self.forget_subkeys(version);
    }

    /// The highest version in the ring.
    #[must_use]
    pub fn latest(&self) -> Option<DekVersion> {
        self.versions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .last_key_value()
            .map(|(version, _)| *version)
    }

    /// Begins a session that seals under the highest version; `None` when the ring is empty.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn sealer(&self) -> Result<Option<Sealer>, SealError> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions
            .last_key_value()
            .map(|(version, key)| Sealer::new(key, *version))
            .transpose()
    }

    /// The data key version that `sealed` names, without opening it.
    ///
    /// # Errors
    /// [`SealError::Malformed`].
    pub fn version_of(sealed: &[u8]) -> Result<DekVersion, SealError> {
        parse(sealed).map(|parsed| parsed.version)
    }

    /// Length in bytes of what is sealed in `sealed`, whose data key is in the ring. Whether it is authentic only opening it can tell.
    ///
    /// # Errors
    /// [`SealError::UnknownDek`], [`SealError::Malformed`].
    pub fn sealed_len(&self, sealed: &[u8]) -> Result<usize, SealError> {
        let parsed = parse(sealed)?;
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        version_in(&versions, parsed.version)?;
        parsed.plaintext_len()
    }

    /// Authenticates and decrypts what [`Sealer::seal`] made with the same `aad`.
    ///
    /// # Errors
    /// [`SealError::UnknownDek`] when the version is not in the ring, [`SealError::Malformed`] or
    /// [`SealError::NotAuthentic`] when the data is bad.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut plaintext = Vec::new();
        self.open_into(aad, sealed, &mut plaintext)?;
        Ok(plaintext)
    }

    /// As [`KeyRing::open`], appending the plaintext to `out`. After an error `out` is as it was.
    ///
    /// # Errors
    /// As [`KeyRing::open`].
    pub fn open_into(&self, aad: &[u8], sealed: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let parsed = parse(sealed)?;
        let id = (parsed.version, parsed.salt);
        let cached = self
            .subkeys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned();
        let (cipher, is_new) = match cached {
            Some(cipher) => (cipher, false),
            None => (Arc::new(self.subkey(parsed.version, &parsed.salt)?), true),
        };
        let length = parsed.plaintext_len()?;
        let start = out.len();
        out.resize(start.saturating_add(length), 0);
        let (_, plaintext) = out.split_at_mut(start);
        if let Err(error) = cipher.open_to(nonce(parsed.counter), aad, parsed.body, plaintext, WHAT)
        {
            out.truncate(start);
            return Err(error);
        }
        // Only after it authenticated, so that bad data cannot fill the cache.
        if is_new {
            self.remember(id, cipher);
        }
        Ok(())
    }

    fn subkey(&self, version: DekVersion, salt: &[u8; SALT_LEN]) -> Result<Cipher, SealError> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        subkey(version_in(&versions, version)?, version, salt)
    }

    fn remember(&self, id: SubkeyId, cipher: Arc<Cipher>) {
        let mut subkeys = self.subkeys.write().unwrap_or_else(PoisonError::into_inner);
        if subkeys.len() >= CACHED_SUBKEYS {
            // Deriving again costs two microseconds; keeping an order of use would cost more.
            subkeys.clear();
        }
        // A version that was removed while this was being opened must not come back through the cache.
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        if versions.contains_key(&id.0) {
            subkeys.insert(id, cipher);
        }
    }

    fn forget_subkeys(&self, version: DekVersion) {
        self.subkeys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(cached, _), _| *cached != version);
    }
}

fn version_in(
    versions: &BTreeMap<DekVersion, SecretKey>,
    version: DekVersion,
) -> Result<&SecretKey, SealError> {
    versions.get(&version).ok_or_else(|| {
        let known: Vec<_> = versions.keys().map(ToString::to_string).collect();
        SealError::UnknownDek {
            version,
            known: if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            },
        }
    })
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("KeyRing")
            .field("versions", &versions.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

struct Parsed<'a> {
    version: DekVersion,
    salt: [u8; SALT_LEN],
    counter: u64,
    body: &'a [u8],
}

impl Parsed<'_> {
    fn plaintext_len(&self) -> Result<usize, SealError> {
        self.body
            .len()
            .checked_sub(TAG_LEN)
            .ok_or_else(|| SealError::malformed(WHAT, "shorter than its tag"))
    }
}

fn parse(sealed: &[u8]) -> Result<Parsed<'_>, SealError> {
    let short = || SealError::malformed(WHAT, format!("{} bytes", sealed.len()));
    let (&format, rest) = sealed.split_first().ok_or_else(short)?;
    if format != FORMAT {
        return Err(SealError::malformed(
            WHAT,
            format!("format {format}, this version reads {FORMAT}"),
        ));
    }
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (salt, rest) = rest.split_first_chunk::<SALT_LEN>().ok_or_else(short)?;
    let (counter, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    Ok(Parsed {
        version: DekVersion(u32::from_be_bytes(*version)),
        salt: *salt,
        counter: u64::from_be_bytes(*counter),
        body,
    })
}

fn subkey(
    dek: &SecretKey,
    version: DekVersion,
    salt: &[u8; SALT_LEN],
) -> Result<Cipher, SealError> {
    let key = dek.derive(
        salt,
        &[b"palisade payload", &[FORMAT], &version.0.to_be_bytes()],
    )?;
    Cipher::new(&key)
}

fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let [a, b, c, d, e, f, g, h] = counter.to_be_bytes();
    [0, 0, 0, 0, a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use proptest::prelude::*;

    use super::*;

    fn ring() -> KeyRing {
        let ring = KeyRing::new();
        ring.insert(DekVersion(1), SecretKey::from_bytes([1; 32]));
        ring.insert(DekVersion(2), SecretKey::from_bytes([2; 32]));
        ring
    }

    #[test]
    fn seals_under_the_latest_version_and_opens_all() {
        let ring = ring();
        let latest = ring.sealer().unwrap().unwrap();
        assert_eq!(latest.version(), DekVersion(2));
        let old = Sealer::new(&SecretKey::from_bytes([1; 32]), DekVersion(1)).unwrap();
        for sealer in [&latest, &old] {
            let sealed = sealer.seal(b"place", b"text").unwrap();
            assert_eq!(KeyRing::version_of(&sealed).unwrap(), sealer.version());
            assert_eq!(ring.open(b"place", &sealed).unwrap(), b"text");
        }
        assert!(KeyRing::new().sealer().unwrap().is_none());
    }

    #[test]
    fn parts_are_sealed_as_one_and_opened_behind_what_is_there() {
        let ring = ring();
        let sealer = ring.sealer().unwrap().unwrap();
        let sealed = sealer.seal_parts(b"place", &[b"one", b"", b"two"]).unwrap();
        assert_eq!(sealed.len(), 6 + PAYLOAD_OVERHEAD);
        let mut out = b"zero".to_vec();
        ring.open_into(b"place", &sealed, &mut out).unwrap();
        assert_eq!(out, b"zeroonetwo");
        assert!(ring.open_into(b"elsewhere", &sealed, &mut out).is_err());
        assert_eq!(out, b"zeroonetwo", "nothing is left of what did not open");
    }

    #[test]
    fn every_sealer_has_its_own_subkey() {
        let key = SecretKey::from_bytes([1; 32]);
        let one = Sealer::new(&key, DekVersion(1))
            .unwrap()
            .seal(b"", b"same")
            .unwrap();
        let two = Sealer::new(&key, DekVersion(1))
            .unwrap()
            .seal(b"", b"same")
            .unwrap();
        assert_ne!(one[HEADER_LEN..], two[HEADER_LEN..]);
    }

    #[test]
    fn refuses_to_repeat_a_nonce() {
        let key = SecretKey::from_bytes([1; 32]);
        let sealer = Sealer::starting_at(&key, DekVersion(1), u64::MAX - 1).unwrap();
        sealer.seal(b"", b"last").unwrap();
        for _ in 0..3 {
            assert!(matches!(sealer.seal(b"", b"x"), Err(SealError::Exhausted)));
        }
    }

    #[test]
    fn a_removed_version_opens_nothing_even_when_its_subkey_was_cached() {
        let ring = ring();
        let sealed = ring.sealer().unwrap().unwrap().seal(b"", b"x").unwrap();
        ring.open(b"", &sealed).unwrap();
        ring.remove(DekVersion(2));
        let error = ring.open(b"", &sealed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "data key version 2 is not loaded; known versions: 1; the topic's key may have been destroyed"
        );
    }

    #[test]
    fn another_place_does_not_open() {
        let ring = ring();
        let sealed = ring
            .sealer()
            .unwrap()
            .unwrap()
            .seal(b"offset 1", b"x")
            .unwrap();
        let error = ring.open(b"offset 2", &sealed).unwrap_err();
        assert!(matches!(error, SealError::NotAuthentic { .. }), "{error}");
        assert!(error.is_corruption());
    }

    proptest! {
        #[test]
        fn round_trips(aad in proptest::collection::vec(any::<u8>(), 0..64), text in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let ring = ring();
            let sealed = ring.sealer().unwrap().unwrap().seal(&aad, &text).unwrap();
            prop_assert_eq!(sealed.len(), text.len() + PAYLOAD_OVERHEAD);
            prop_assert_eq!(ring.open(&aad, &sealed).unwrap(), text);
        }

        #[test]
        fn any_changed_bit_is_noticed(text in proptest::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let ring = ring();
            let mut sealed = ring.sealer().unwrap().unwrap().seal(b"a", &text).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(ring.open(b"a", &sealed).is_err());
        }

        #[test]
        fn any_cut_is_noticed(text in proptest::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>()) {
            let ring = ring();
            let sealed = ring.sealer().unwrap().unwrap().seal(b"a", &text).unwrap();
            prop_assert!(ring.open(b"a", &sealed[..at.index(sealed.len())]).is_err());
        }
    }
}
