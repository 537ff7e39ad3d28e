//! The authority and the certificate of a development broker.
//!
//! One authority signs the server and the client certificates a developer may want; a second one, whose key nobody keeps, is
//! what the control port trusts, so that no such certificate passes for a broker or the operator.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::{Duration, OffsetDateTime};

use super::files::write;
use crate::{error::StartError, tls::Leaf};

const AUTHORITY_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 90;
/// A certificate that has less left is replaced at start.
const RENEW_BEFORE_DAYS: i64 = 30;

/// Makes what is missing and replaces what is about to expire.
pub(crate) fn renew(dir: &Path) -> Result<(), StartError> {
    let now = OffsetDateTime::now_utc();
    palisade_seal::create_private(&dir.join("tls")).map_err(|error| StartError::Io {
        action: "make",
        path: dir.join("tls"),
        error,
    })?;
    if !is_good(&dir.join("ca.crt"), now) || !dir.join("ca.key").exists() {
        let (certificate, key) = authority("Palisade development authority", now)?;
        write(&dir.join("ca.key"), key.as_bytes(), 0o600)?;
        write(&dir.join("ca.crt"), certificate.as_bytes(), 0o644)?;
        // A leaf of the authority before is of no use any more.
        drop(fs::remove_file(dir.join("tls/server.crt")));
    }
    if !is_good(&dir.join("tls/control-ca.crt"), now) {
        let (certificate, _) = authority("Palisade development control authority", now)?;
        write(
            &dir.join("tls/control-ca.crt"),
            certificate.as_bytes(),
            0o644,
        )?;
    }
    if !is_good(&dir.join("tls/server.crt"), now) || !dir.join("tls/server.key").exists() {
        let (certificate, key) = leaf(dir, now)?;
        write(&dir.join("tls/server.key"), key.as_bytes(), 0o600)?;
        write(&dir.join("tls/server.crt"), certificate.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Whether the file holds a certificate that lasts for some time yet.
fn is_good(path: &Path, now: OffsetDateTime) -> bool {
    fs::read(path)
        .ok()
        .and_then(|pem| CertificateDer::from_pem_slice(&pem).ok())
        .and_then(|der| Leaf::parse(&der).ok())
        .is_some_and(|leaf| leaf.not_after > now + Duration::days(RENEW_BEFORE_DAYS))
}

fn params(
    name: &str,
    now: OffsetDateTime,
    days: i64,
    sans: &[&str],
) -> Result<CertificateParams, rcgen::Error> {
    let sans: Vec<String> = sans.iter().map(|san| (*san).to_owned()).collect();
    let mut params = CertificateParams::new(sans)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    // An hour back, for clocks that are a little behind.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
    Ok(params)
}

fn authority(name: &str, now: OffsetDateTime) -> Result<(String, String), StartError> {
    let make = || {
        let mut params = params(name, now, AUTHORITY_DAYS, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    };
    make().map_err(StartError::Certificate)
}

fn leaf(dir: &Path, now: OffsetDateTime) -> Result<(String, String), StartError> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|error| StartError::Io {
            action: "read",
            path,
            error,
        })
    };
    let (ca, ca_key) = (read("ca.crt")?, read("ca.key")?);
    let make = || {
        let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&ca_key)?)?;
        let mut params = params("localhost", now, LEAF_DAYS, &["localhost", "127.0.0.1"])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    };
    make().map_err(StartError::Certificate)
}
