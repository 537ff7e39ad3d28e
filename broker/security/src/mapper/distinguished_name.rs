//! The subject of a certificate as a string, in the form that Kafka's principals have: RFC 2253, last RDN first, written
//! the way Java's `X500Principal.getName()` writes it.

use std::fmt::Write as _;

use x509_parser::{
    asn1_rs::{Any, Class, Tag},
    prelude::{FromDer, X509Certificate},
    x509::{AttributeTypeAndValue, X509Name},
};

/// Why a subject cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// Not a certificate.
    #[error("it is not an X.509 certificate")]
    Certificate,
    /// The certificate names nobody.
    #[error("the subject is empty")]
    Empty,
    /// A value that is not what its type says.
    #[error("the value of attribute {0} is not the string that its type promises")]
    Value(String),
}

/// The subject of a certificate (DER).
///
/// # Errors
/// [`SubjectError`].
pub fn rfc2253_subject(der: &[u8]) -> Result<String, SubjectError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SubjectError::Certificate)?;
    render(certificate.subject())
}

fn render(name: &X509Name<'_>) -> Result<String, SubjectError> {
    let mut parts = Vec::new();
    for rdn in name.iter_rdn() {
        let attributes: Result<Vec<String>, SubjectError> = rdn.iter().map(attribute).collect();
        parts.push(attributes?.join("+"));
    }
    parts.reverse();
    if parts.is_empty() {
        return Err(SubjectError::Empty);
    }
    Ok(parts.join(","))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Result<String, SubjectError> {
    let oid = attribute.attr_type().to_id_string();
    let value = attribute.attr_value();
    let Some(keyword) = keyword(&oid) else {
        // RFC 2253 section 2.4: an attribute without a keyword is written as the hexadecimal of its encoding.
        return Ok(format!("{oid}=#{}", hexadecimal(value)));
    };
    match text(value) {
        Reading::Text(text) => Ok(format!("{keyword}={}", escape(&text))),
        Reading::Broken => Err(SubjectError::Value(oid)),
        Reading::Other => Ok(format!("{keyword}=#{}", hexadecimal(value))),
    }
}

/// The keywords of RFC 2253 section 2.3.
fn keyword(oid: &str) -> Option<&'static str> {
    match oid {
        "2.5.4.3" => Some("CN"),
        "2.5.4.6" => Some("C"),
        "2.5.4.7" => Some("L"),
        "2.5.4.8" => Some("ST"),
        "2.5.4.9" => Some("STREET"),
        "2.5.4.10" => Some("O"),
        "2.5.4.11" => Some("OU"),
        "0.9.2342.19200300.100.1.25" => Some("DC"),
        "0.9.2342.19200300.100.1.1" => Some("UID"),
        _ => None,
    }
}

enum Reading {
    Text(String),
    /// Claims to be text and is not.
    Broken,
    Other,
}

fn text(value: &Any<'_>) -> Reading {
    if value.header.class() != Class::Universal {
        return Reading::Other;
    }
    let decoded = match value.header.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::GeneralString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        Tag::T61String => Some(value.data.iter().map(|byte| char::from(*byte)).collect()),
        Tag::BmpString => utf16(value.data),
        Tag::UniversalString => utf32(value.data),
        _ => return Reading::Other,
    };
    decoded.map_or(Reading::Broken, Reading::Text)
}

fn utf16(data: &[u8]) -> Option<String> {
    let (pairs, rest) = data.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
    String::from_utf16(&units).ok()
}

fn utf32(data: &[u8]) -> Option<String> {
    let (quads, rest) = data.as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    quads
        .iter()
        .map(|quad| char::from_u32(u32::from_be_bytes(*quad)))
        .collect()
}

/// RFC 2253 section 2.4 as Java does it: the special characters wherever they stand, spaces at either end, NUL as `\00`.
fn escape(value: &str) -> String {
    let leading = value.len() - value.trim_start_matches(is_blank).len();
    let trailing = value.trim_end_matches(is_blank).len();
    let mut escaped = String::with_capacity(value.len());
    for (at, character) in value.char_indices() {
        if character == '\0' {
            escaped.push_str("\\00");
            continue;
        }
        let blank_at_an_end = at < leading || at >= trailing;
        if blank_at_an_end
            || matches!(
                character,
                ',' | '=' | '+' | '<' | '>' | '#' | ';' | '"' | '\\'
            )
        {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

const fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\r')
}

/// The DER encoding of a value in lower-case hexadecimal.
fn hexadecimal(value: &Any<'_>) -> String {
    let header = &value.header;
    let class = match header.class() {
        Class::Universal => 0,
        Class::Application => 1,
        Class::ContextSpecific => 2,
        Class::Private => 3,
    };
    let mut encoded =
        vec![(class << 6) | (u8::from(header.is_constructed()) << 5) | low_tag(header.tag().0)];
    let length = value.data.len();
    if length < 0x80 {
        encoded.push(u8::try_from(length).unwrap_or(u8::MAX));
    } else {
        let bytes = length.to_be_bytes();
        let significant: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
        encoded.push(0x80 | u8::try_from(significant.len()).unwrap_or(u8::MAX));
        encoded.extend(significant);
    }
    encoded.extend_from_slice(value.data);
    let mut text = String::with_capacity(encoded.len() * 2);
    for byte in encoded {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Tag numbers above 30 take several bytes; no attribute value of a name has one, so they are written as 31.
fn low_tag(tag: u32) -> u8 {
    u8::try_from(tag.min(31)).unwrap_or(31)
}
