#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

const KIND: FileKind = FileKind(*b"PALITEST");

/// A provider whose keys, reachability and number of calls a test controls.
#[derive(Debug)]
struct TestProvider {
    current: Mutex<KekId>,
    key: SecretKey,
    away: std::sync::atomic::AtomicBool,
    calls: AtomicUsize,
}

impl TestProvider {
    fn new(seed: u8) -> Arc<Self> {
        Arc::new(Self {
            current: Mutex::new(KekId::new("k1").unwrap()),
            key: SecretKey::from_bytes([seed; 32]),
            away: false.into(),
            calls: 0.into(),
        })
    }

    fn answer(&self) -> Result<(), SealError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Err(SealError::Provider {
                place: "test".to_owned(),
                reason: "away".to_owned(),
            });
        }
        Ok(())
    }
}

impl KeyProvider for TestProvider {
    fn current(&self) -> KekId {
        self.current.lock().unwrap().clone()
    }

    fn wrap(&self, key: &SecretKey, context: &[u8]) -> Result<WrappedKey, SealError> {
        self.answer()?;
        WrappedKey::wrap(self.current(), &self.key, key, context)
    }

    fn unwrap(&self, wrapped: &WrappedKey, context: &[u8]) -> Result<SecretKey, SealError> {
        self.answer()?;
        wrapped.unwrap_with(&self.key, "test", context)
    }
}

#[test]
fn a_reopened_file_opens_its_frames() {
    let provider = TestProvider::new(1);
    let (key, header) = FileKeys::new(provider.clone()).create(KIND, b"7").unwrap();
    assert!(header.len() <= HEADER_LIMIT);
    let mut text = *b"meta";
    let (nonce, tag) = key.sealer().unwrap().seal(b"payload", &mut text).unwrap();
    let sealed = [&text[..], &tag[..]].concat();

    let mut padded = header.clone();
    padded.extend_from_slice(&[0; 100]);
    let (again, length) = FileKeys::new(provider).open(KIND, b"7", &padded).unwrap();
    assert_eq!(length, header.len());
    assert_eq!(again.marker(), key.marker());
    assert_eq!(again.open(nonce, b"payload", &sealed).unwrap(), b"meta");
    assert!(
        again
            .open(nonce, b"payloae", &sealed)
            .unwrap_err()
            .is_corruption()
    );
}

#[test]
fn a_header_serves_its_kind_and_context_only() {
    let keys = FileKeys::new(TestProvider::new(1));
    let (_, header) = keys.create(KIND, b"7").unwrap();
    let error = keys.open(KIND, b"8", &header).unwrap_err();
    assert!(matches!(error, SealError::NotAuthentic { .. }), "{error}");
    let error = keys
        .open(FileKind(*b"PALIOTHR"), b"7", &header)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "file header is malformed: it begins with `PALITEST`, not with `PALIOTHR`"
    );
}

#[test]
fn a_wrong_key_is_not_taken_for_damage() {
    let (_, header) = FileKeys::new(TestProvider::new(1))
        .create(KIND, b"7")
        .unwrap();
    let error = FileKeys::new(TestProvider::new(2))
        .open(KIND, b"7", &header)
        .unwrap_err();
    assert!(matches!(error, SealError::WrongKek { .. }), "{error}");
    assert_eq!(FileKeys::kek_of(KIND, &header).unwrap().as_str(), "k1");
}

#[test]
fn the_provider_is_asked_once_and_may_go_away() {
    let provider = TestProvider::new(1);
    let keys = FileKeys::new(provider.clone());
    let headers: Vec<_> = (0..10).map(|_| keys.create(KIND, b"").unwrap().1).collect();
    assert_eq!(provider.calls.load(Ordering::Relaxed), 1);

    let reader = FileKeys::new(provider.clone());
    for header in &headers {
        reader.open(KIND, b"", header).unwrap();
    }
    assert_eq!(provider.calls.load(Ordering::Relaxed), 2);

    provider.away.store(true, Ordering::Relaxed);
    *provider.current.lock().unwrap() = KekId::new("k2").unwrap();
    let (_, header) = keys.create(KIND, b"").unwrap();
    assert_eq!(FileKeys::kek_of(KIND, &header).unwrap().as_str(), "k1");
    provider.away.store(false, Ordering::Relaxed);
    let (_, header) = keys.create(KIND, b"").unwrap();
    assert_eq!(FileKeys::kek_of(KIND, &header).unwrap().as_str(), "k2");

    provider.away.store(true, Ordering::Relaxed);
    let message = FileKeys::new(provider)
        .create(KIND, b"")
        .unwrap_err()
        .to_string();
    assert_eq!(message, "key provider test: away");
}

#[test]
fn nonces_do_not_repeat_and_end() {
    let (key, _) = FileKeys::new(TestProvider::new(1))
        .create(KIND, b"")
        .unwrap();
    let mut sealer = key.sealer().unwrap();
    sealer.start = u64::MAX - 1;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..4 {
        assert!(seen.insert(sealer.seal(b"", &mut []).unwrap().0));
    }
    assert!(seen.insert(key.sealer().unwrap().seal(b"", &mut []).unwrap().0));
    sealer.used = u64::MAX;
    assert!(matches!(
        sealer.seal(b"", &mut []),
        Err(SealError::Exhausted)
    ));
}

proptest! {
    #[test]
    fn any_changed_bit_of_a_header_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let keys = FileKeys::new(TestProvider::new(1));
        let (_, mut header) = keys.create(KIND, b"7").unwrap();
        let at = at.index(header.len());
        header[at] ^= 1 << bit;
        let error = keys.open(KIND, b"7", &header).unwrap_err();
        prop_assert!(error.is_corruption(), "{}", error);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), honest in any::<bool>()) {
        let keys = FileKeys::new(TestProvider::new(1));
        let mut header = bytes;
        if honest {
            header.splice(..0, *b"PALITEST\x00\x01");
        }
        prop_assert!(keys.open(KIND, b"7", &header).is_err());
    }
}

#[test]
fn a_file_moves_to_a_new_kek_and_does_not_need_the_old_one() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let dir = tempfile::tempdir().unwrap();
    let add = |id: &str| {
        let key = STANDARD.encode(SecretKey::generate().unwrap().as_bytes());
        std::fs::write(dir.path().join(format!("{id}.key")), key).unwrap();
        std::fs::write(dir.path().join("current"), id).unwrap();
    };
    add("one");
    let provider = Arc::new(crate::DirectoryProvider::load(dir.path()).unwrap());
    let keys = FileKeys::new(provider.clone());
    let (key, header) = keys.create(KIND, b"7").unwrap();
    let mut sealed = b"frame".to_vec();
    let (nonce, tag) = key.sealer().unwrap().seal(b"", &mut sealed).unwrap();
    sealed.extend_from_slice(&tag);
    assert_eq!(keys.rewrap(KIND, b"7", &header).unwrap(), None);
    add("two");
    provider.reload().unwrap();
    assert!(keys.rewrap(KIND, b"8", &header).is_err(), "another file's");
    let again = keys.rewrap(KIND, b"7", &header).unwrap().unwrap();
    assert_eq!(again.len(), header.len());
    assert_eq!(FileKeys::kek_of(KIND, &again).unwrap().as_str(), "two");
    std::fs::remove_file(dir.path().join("one.key")).unwrap();
    let keys = FileKeys::new(Arc::new(
        crate::DirectoryProvider::load(dir.path()).unwrap(),
    ));
    assert!(keys.open(KIND, b"7", &header).is_err());
    let (key, _) = keys.open(KIND, b"7", &again).unwrap();
    assert_eq!(key.open(nonce, b"", &sealed).unwrap(), b"frame");
}
