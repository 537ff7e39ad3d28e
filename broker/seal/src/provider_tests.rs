#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt;

use super::*;

fn write_key(dir: &Path, id: &str, seed: u8) {
    let mut bytes = [seed; 32];
    bytes[0] = seed.wrapping_add(1);
    fs::write(dir.join(format!("{id}.key")), STANDARD.encode(bytes)).unwrap();
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_key(dir.path(), "k1", 1);
    fs::write(dir.path().join("current"), "k1\n").unwrap();
    dir
}

#[test]
fn wraps_and_unwraps() {
    let dir = directory();
    fs::write(dir.path().join("..data"), "ignored").unwrap();
    let provider = DirectoryProvider::load(dir.path()).unwrap();
    let key = SecretKey::generate().unwrap();
    let wrapped = provider.wrap(&key, b"ctx").unwrap();
    assert_eq!(wrapped.kek.as_str(), "k1");
    let opened = provider.unwrap(&wrapped, b"ctx").unwrap();
    assert_eq!(opened.as_bytes(), key.as_bytes());
}

#[test]
fn created_keys_are_private_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let first = DirectoryProvider::create(&path).unwrap();
    let again = DirectoryProvider::create(&path).unwrap();
    assert_eq!(first.current(), again.current());
    assert_eq!(again.ids().len(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn every_mistake_has_its_message() {
    type Case = (&'static str, fn(&Path), &'static str);
    let cases: [Case; 8] = [
        (
            "no directory",
            |dir| fs::remove_dir_all(dir).unwrap(),
            "cannot read the directory",
        ),
        (
            "no current",
            |dir| fs::remove_file(dir.join("current")).unwrap(),
            "cannot read `current`",
        ),
        (
            "current names nothing",
            |dir| fs::write(dir.join("current"), "k9").unwrap(),
            "`current` names `k9`, but there is no `k9.key` (keys found: k1); add it or correct `current`",
        ),
        (
            "current is no id",
            |dir| fs::write(dir.join("current"), "../k1").unwrap(),
            "\"../k1\" is not a key id",
        ),
        (
            "not base64",
            |dir| fs::write(dir.join("k1.key"), "secret!!").unwrap(),
            "`k1.key` is not base64; it must hold base64 of 32 random bytes",
        ),
        (
            "short",
            |dir| fs::write(dir.join("k1.key"), STANDARD.encode([1, 2, 3])).unwrap(),
            "`k1.key` holds 3 bytes after base64, it must hold exactly 32",
        ),
        (
            "repeated byte",
            |dir| fs::write(dir.join("k1.key"), STANDARD.encode([7; 32])).unwrap(),
            "`k1.key` holds one repeated byte",
        ),
        (
            "huge",
            |dir| fs::write(dir.join("k1.key"), [b'A'; 4096]).unwrap(),
            "`k1.key` cannot be read (4096 bytes, at most 1024 are expected)",
        ),
    ];
    for (name, spoil, expected) in cases {
        let dir = directory();
        spoil(dir.path());
        let message = DirectoryProvider::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
        assert!(!message.contains("secret!!"), "{name} leaks: {message}");
    }
}

#[test]
fn a_missing_and_a_wrong_key_are_told_apart() {
    let dir = directory();
    let provider = DirectoryProvider::load(dir.path()).unwrap();
    let wrapped = provider
        .wrap(&SecretKey::generate().unwrap(), b"ctx")
        .unwrap();

    write_key(dir.path(), "k2", 2);
    fs::write(dir.path().join("current"), "k2").unwrap();
    fs::remove_file(dir.path().join("k1.key")).unwrap();
    let error = DirectoryProvider::load(dir.path())
        .unwrap()
        .unwrap(&wrapped, b"ctx")
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "key `k1` is not in {}; restore it (as `k1.key`), or the data it protects cannot be read",
            dir.path().display()
        )
    );

    write_key(dir.path(), "k1", 9);
    let error = DirectoryProvider::load(dir.path())
        .unwrap()
        .unwrap(&wrapped, b"ctx")
        .unwrap_err();
    assert!(matches!(error, SealError::WrongKek { .. }), "{error}");
}

#[test]
fn a_new_current_key_is_taken_over_and_old_data_stays_readable() {
    let dir = directory();
    let provider = DirectoryProvider::load(dir.path()).unwrap();
    let old = provider
        .wrap(&SecretKey::generate().unwrap(), b"ctx")
        .unwrap();
    assert!(!provider.reload().unwrap());

    write_key(dir.path(), "k2", 2);
    fs::write(dir.path().join("current"), "k2").unwrap();
    assert!(provider.reload().unwrap());
    assert_eq!(provider.current().as_str(), "k2");
    provider.unwrap(&old, b"ctx").unwrap();
    assert_eq!(
        provider
            .wrap(&SecretKey::generate().unwrap(), b"x")
            .unwrap()
            .kek
            .as_str(),
        "k2"
    );

    fs::write(dir.path().join("current"), "k3").unwrap();
    assert!(provider.reload().is_err());
    assert_eq!(
        provider.current().as_str(),
        "k2",
        "a bad directory changes nothing"
    );
}

#[test]
fn a_key_added_later_is_found_without_a_reload() {
    let dir = directory();
    let provider = DirectoryProvider::load(dir.path()).unwrap();
    write_key(dir.path(), "k2", 2);
    fs::write(dir.path().join("current"), "k2").unwrap();
    let newer = DirectoryProvider::load(dir.path()).unwrap();
    let wrapped = newer.wrap(&SecretKey::generate().unwrap(), b"ctx").unwrap();
    provider.unwrap(&wrapped, b"ctx").unwrap();
}

#[test]
fn a_key_that_was_replaced_under_its_name_stays_what_it_was() {
    let dir = directory();
    let provider = DirectoryProvider::load(dir.path()).unwrap();
    let key = SecretKey::generate().unwrap();
    let wrapped = provider.wrap(&key, b"ctx").unwrap();
    write_key(dir.path(), "k1", 9);
    write_key(dir.path(), "k2", 2);
    fs::write(dir.path().join("current"), "k2").unwrap();
    let message = provider.reload().unwrap_err().to_string();
    assert!(
        message.contains("`k1.key` holds another key than before"),
        "{message}"
    );
    // What is sealed can be opened, and the new key can be moved to.
    let opened = provider.unwrap(&wrapped, b"ctx").unwrap();
    assert_eq!(opened.as_bytes(), key.as_bytes());
    assert_eq!(provider.current().as_str(), "k2");
    assert!(
        provider.reload().is_err(),
        "it is said for as long as it is so"
    );
    write_key(dir.path(), "k1", 1);
    assert!(!provider.reload().unwrap());
}
