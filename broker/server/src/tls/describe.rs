//! What a certificate says of itself.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::X509Name};

/// The leaf certificate of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Serial number, lower-case hex.
    pub(crate) serial: String,
    /// SHA-256 of the DER, lower-case hex.
    pub(crate) fingerprint: String,
    /// Issuer, RFC 2253.
    pub(crate) issuer: String,
    /// Start of validity.
    pub(crate) not_before: OffsetDateTime,
    /// End of validity.
    pub(crate) not_after: OffsetDateTime,
}

impl Leaf {
    /// Reads a certificate's DER.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("not a certificate: {error}"))?;
        let validity = certificate.validity();
        Ok(Self {
            serial: hex(certificate.raw_serial()),
            fingerprint: sha256_hex(der),
            issuer: rfc2253(certificate.issuer()),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
        })
    }

    /// RFC 3339 of a moment; empty only for years that have no such form.
    pub(crate) fn rfc3339(moment: OffsetDateTime) -> String {
        moment.format(&Rfc3339).unwrap_or_default()
    }
}

/// The one common name of a certificate's subject; `None` when there is none, or several.
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

/// SHA-256, lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// RFC 2253: the last component first, separated by commas.
fn rfc2253(name: &X509Name<'_>) -> String {
    let text = name.to_string();
    let mut parts: Vec<&str> = text.split(", ").collect();
    parts.reverse();
    parts.join(",")
}
