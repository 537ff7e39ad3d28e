//! Reading certificates.

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer};

use super::{BACKDATE, PkiError};

/// What the operator needs to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Serial number, lower-case hex.
    pub serial: String,
    /// SHA-256 of the DER, lower-case hex.
    pub fingerprint: String,
    /// Subject, RFC 2253.
    pub subject: String,
    /// Issuer, RFC 2253.
    pub issuer: String,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    /// Subject key identifier.
    pub subject_key: Vec<u8>,
    /// Authority key identifier.
    pub authority_key: Vec<u8>,
    /// DNS names it is valid for, sorted.
    pub dns_names: Vec<String>,
    /// Subject public key info, DER.
    pub public_key: Vec<u8>,
}

impl CertificateInfo {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`PkiError::Read`].
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let failed = |reason: String| PkiError::Read {
            what: "a certificate",
            reason,
        };
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|error| failed(error.to_string()))?;
        let time = |seconds: i64| {
            OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| failed(error.to_string()))
        };
        let mut info = Self {
            serial: hex(parsed.raw_serial()),
            fingerprint: fingerprint(der),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
            subject_key: Vec::new(),
            authority_key: Vec::new(),
            dns_names: Vec::new(),
            public_key: parsed.public_key().raw.to_vec(),
        };
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => info.subject_key = id.0.to_vec(),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    info.authority_key = id
                        .key_identifier
                        .as_ref()
                        .map(|id| id.0.to_vec())
                        .unwrap_or_default();
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    info.dns_names = names
                        .general_names
                        .iter()
                        .filter_map(|name| match name {
                            x509_parser::extensions::GeneralName::DNSName(name) => {
                                Some((*name).to_owned())
                            }
                            _ => None,
                        })
                        .collect();
                    info.dns_names.sort();
                }
                _ => {}
            }
        }
        Ok(info)
    }

    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`PkiError::Read`], also when there is none.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let certificates = certificates(pem)?;
        let first = certificates.first().ok_or_else(|| PkiError::Read {
            what: "a certificate",
            reason: "the PEM text holds none".to_owned(),
        })?;
        Self::from_der(first)
    }

    /// When it was issued.
    #[must_use]
    pub fn issued_at(&self) -> OffsetDateTime {
        self.not_before + BACKDATE
    }

    /// Whether `authority` issued it: its key and its name.
    #[must_use]
    pub fn is_issued_by(&self, authority: &Self) -> bool {
        !self.authority_key.is_empty()
            && self.authority_key == authority.subject_key
            && self.issuer == authority.subject
    }
}

/// All certificates of a PEM text, in order. Other sections are skipped.
///
/// # Errors
/// [`PkiError::Read`] when a section is broken.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::Read {
            what: "a PEM text",
            reason: error.to_string(),
        })
}

/// SHA-256 of a certificate's DER, lower-case hex.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, der).as_ref())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_an_error_and_not_a_panic() {
        for pem in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n",
        ] {
            assert!(CertificateInfo::from_pem(pem).is_err(), "{pem}");
        }
    }
}
