//! PKCS#12 files for Java.

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKey, PrivateKeyChain};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

use super::{PkiError, certificates};

fn failed(error: impl std::fmt::Display) -> PkiError {
    PkiError::Store(error.to_string())
}

/// A trust store with every certificate of a PEM bundle.
///
/// # Errors
/// [`PkiError`].
pub fn trust_store(bundle: &str, password: &str) -> Result<Vec<u8>, PkiError> {
    let mut store = KeyStore::new();
    for (index, der) in certificates(bundle)?.iter().enumerate() {
        let certificate = Certificate::from_der(der).map_err(failed)?;
        store.add_entry(
            &format!("authority-{index}"),
            KeyStoreEntry::Certificate(certificate),
        );
    }
    store.writer(password).write().map_err(failed)
}

/// A key store with one key (PKCS#8 PEM) and its chain (PEM, leaf first).
///
/// # Errors
/// [`PkiError`].
pub fn key_store(alias: &str, key: &str, chain: &str, password: &str) -> Result<Vec<u8>, PkiError> {
    let key =
        PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).map_err(|error| PkiError::Read {
            what: "a private key",
            reason: error.to_string(),
        })?;
    let key = PrivateKey::from_der(key.secret_pkcs8_der()).map_err(failed)?;
    let chain = certificates(chain)?
        .iter()
        .map(|der| Certificate::from_der(der).map_err(failed))
        .collect::<Result<Vec<_>, _>>()?;
    let mut store = KeyStore::new();
    store.add_entry(
        alias,
        KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(alias, key, chain)),
    );
    store.writer(password).write().map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::process::Command;

    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::pki::{Authority, CommonName, KeyAlgorithm, LeafKey, LeafUse};

    /// What Java's own keytool says of a store, or nothing where there is no Java.
    fn keytool(store: &[u8], password: &str) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), store).unwrap();
        let output = Command::new("keytool")
            .args([
                "-J-Duser.language=en",
                "-list",
                "-v",
                "-storetype",
                "PKCS12",
                "-storepass",
                password,
                "-keystore",
            ])
            .arg(file.path())
            .output()
            .ok()?;
        Some(
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        )
    }

    fn authority() -> Authority {
        let name = CommonName::new("events-cluster").unwrap();
        Authority::generate(
            &name,
            KeyAlgorithm::EcdsaP256,
            Duration::days(10),
            OffsetDateTime::now_utc(),
        )
        .unwrap()
    }

    #[test]
    fn java_reads_a_trust_store() {
        let bundle = authority().certificate_pem().to_owned() + authority().certificate_pem();
        let store = trust_store(&bundle, "changeit").unwrap();
        let read =
            KeyStore::from_pkcs12(&store, "changeit", p12_keystore::Pkcs12ImportPolicy::Strict)
                .unwrap();
        assert_eq!(read.entries_len(), 2);
        if let Some(listing) = keytool(&store, "changeit") {
            assert_eq!(
                listing.matches("Entry type: trustedCertEntry").count(),
                2,
                "{listing}"
            );
        }
    }

    #[test]
    fn java_reads_a_key_store() {
        let authority = authority();
        let leaf = authority
            .issue(
                &CommonName::new("alice").unwrap(),
                &[],
                LeafUse::Client,
                LeafKey::New(KeyAlgorithm::EcdsaP256),
                Duration::days(5),
                OffsetDateTime::now_utc(),
            )
            .unwrap();
        let chain = leaf.certificate.clone() + authority.certificate_pem();
        let store = key_store("alice", &leaf.key, &chain, "changeit").unwrap();
        let read =
            KeyStore::from_pkcs12(&store, "changeit", p12_keystore::Pkcs12ImportPolicy::Strict)
                .unwrap();
        assert_eq!(read.private_key_chain().unwrap().1.certs().len(), 2);
        if let Some(listing) = keytool(&store, "changeit") {
            assert!(listing.contains("Entry type: PrivateKeyEntry"), "{listing}");
            assert!(listing.contains("Certificate chain length: 2"), "{listing}");
            assert!(listing.contains("Owner: CN=alice"), "{listing}");
        }
    }

    #[test]
    fn a_broken_key_is_an_error() {
        let error = key_store("alice", "nonsense", "", "changeit")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot read a private key"), "{error}");
    }
}
