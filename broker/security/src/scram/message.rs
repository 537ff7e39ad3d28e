//! The two messages of a SCRAM client, parsed with limits (RFC 5802 section 7).
//!
//! ```text
//! client-first = gs2-header client-first-bare        gs2-header = ("n" / "y" / "p=" name) "," ["a=" saslname] ","
//! client-first-bare = ["m=" value ","] "n=" saslname "," "r=" nonce ["," extensions]
//! client-final = "c=" base64 "," "r=" nonce ["," extensions] "," "p=" base64
//! ```

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::name::{NameError, check_user_name};

/// Longest message that is looked at.
pub const MAX_MESSAGE_BYTES: usize = 8192;
/// Longest nonce of a client; 16 to 36 characters are usual.
const MAX_NONCE_BYTES: usize = 1024;
const MAX_EXTENSIONS: usize = 16;

/// What is wrong with a message. Says nothing about users, so a client may see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("the message has {0} bytes, at most {MAX_MESSAGE_BYTES} are allowed")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("the message is not UTF-8")]
    NotUtf8,
    /// Something else than this was found.
    #[error("expected {0}")]
    Expected(&'static str),
    /// The client insists on channel binding.
    #[error(
        "channel binding is not supported: use the mechanism without -PLUS and the flag `n` or `y`"
    )]
    ChannelBinding,
    /// A mandatory extension (`m=`), which no server may ignore.
    #[error("the mandatory extension `m=` is not supported")]
    MandatoryExtension,
    /// `tokenauth=true`.
    #[error(
        "authentication with a delegation token (tokenauth) is not supported; use the password of a user"
    )]
    TokenAuthentication,
    /// The escapes of a name are wrong.
    #[error("a name may contain `=` only as `=2C` (a comma) or `=3D` (an equals sign)")]
    Escape,
    /// The user name is not allowed.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The nonce is empty, too long, or not printable ASCII without commas.
    #[error("the nonce must be 1 to {MAX_NONCE_BYTES} printable ASCII characters without a comma")]
    Nonce,
    /// Not base64.
    #[error("{0} is not base64")]
    Base64(&'static str),
    /// More extensions than anyone sends.
    #[error("more than {MAX_EXTENSIONS} extensions")]
    TooManyExtensions,
}

/// The first message, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFirst {
    /// The header with its closing comma; the second message repeats it in base64.
    pub gs2_header: String,
    /// Who the client wants to act as, unescaped; `None` when absent or empty.
    pub authzid: Option<String>,
    /// The message without the header: a part of what is signed.
    pub bare: String,
    /// Who the client is, unescaped and checked.
    pub user: String,
    /// The client's part of the nonce.
    pub nonce: String,
}

impl ClientFirst {
    /// Parses the first message.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(message: &[u8]) -> Result<Self, MessageError> {
        let text = text(message)?;
        let (flag, rest) = text
            .split_once(',')
            .ok_or(MessageError::Expected("a channel-binding flag and a comma"))?;
        match flag {
            "n" | "y" => {}
            other if other.starts_with("p=") => return Err(MessageError::ChannelBinding),
            _ => {
                return Err(MessageError::Expected(
                    "the channel-binding flag `n` or `y`",
                ));
            }
        }
        let (authzid, bare) = rest
            .split_once(',')
            .ok_or(MessageError::Expected("a comma after the authorization id"))?;
        let authzid = match authzid.strip_prefix("a=") {
            Some(escaped) => Some(unescape(escaped)?).filter(|id| !id.is_empty()),
            None if authzid.is_empty() => None,
            None => {
                return Err(MessageError::Expected(
                    "`a=` or nothing before the second comma",
                ));
            }
        };
        let header_len = text.len() - bare.len();
        if bare.starts_with("m=") {
            return Err(MessageError::MandatoryExtension);
        }
        let mut attributes = bare.split(',');
        let user = attribute(&mut attributes, "n=", "the user name, `n=`")?;
        let user = unescape(user)?;
        check_user_name(&user)?;
        let nonce = attribute(&mut attributes, "r=", "the nonce, `r=`")?;
        check_nonce(nonce, MAX_NONCE_BYTES)?;
        check_extensions(attributes)?;
        Ok(Self {
            gs2_header: text.get(..header_len).unwrap_or_default().to_owned(),
            authzid,
            bare: bare.to_owned(),
            user,
            nonce: nonce.to_owned(),
        })
    }
}

/// The second message, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFinal {
    /// The channel binding, decoded: with no binding data this is the header of the first message.
    pub channel_binding: Vec<u8>,
    /// The whole nonce, client's part and server's part.
    pub nonce: String,
    /// The proof, decoded.
    pub proof: Vec<u8>,
    /// The message up to the comma before the proof: a part of what is signed.
    pub without_proof: String,
}

impl ClientFinal {
    /// Parses the second message.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(message: &[u8]) -> Result<Self, MessageError> {
        let text = text(message)?;
        let (without_proof, proof) = text
            .rsplit_once(",p=")
            .ok_or(MessageError::Expected("the proof, `p=`, at the end"))?;
        let proof = STANDARD
            .decode(proof)
            .map_err(|_| MessageError::Base64("the proof"))?;
        let mut attributes = without_proof.split(',');
        let binding = attribute(&mut attributes, "c=", "the channel binding, `c=`")?;
        let channel_binding = STANDARD
            .decode(binding)
            .map_err(|_| MessageError::Base64("the channel binding"))?;
        let nonce = attribute(&mut attributes, "r=", "the nonce, `r=`")?;
        // The server's part has been appended to the client's, which old versions of librdkafka repeat.
        check_nonce(nonce, 3 * MAX_NONCE_BYTES)?;
        check_extensions(attributes)?;
        Ok(Self {
            channel_binding,
            nonce: nonce.to_owned(),
            proof,
            without_proof: without_proof.to_owned(),
        })
    }
}

fn text(message: &[u8]) -> Result<&str, MessageError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLong(message.len()));
    }
    std::str::from_utf8(message).map_err(|_| MessageError::NotUtf8)
}

fn attribute<'a>(
    attributes: &mut impl Iterator<Item = &'a str>,
    prefix: &str,
    expected: &'static str,
) -> Result<&'a str, MessageError> {
    attributes
        .next()
        .and_then(|found| found.strip_prefix(prefix))
        .ok_or(MessageError::Expected(expected))
}

/// Optional extensions are ignored (RFC 5802 section 5.1), but for the one that changes who the user is.
fn check_extensions<'a>(attributes: impl Iterator<Item = &'a str>) -> Result<(), MessageError> {
    for (count, extension) in attributes.enumerate() {
        if count >= MAX_EXTENSIONS {
            return Err(MessageError::TooManyExtensions);
        }
        let (name, value) = extension
            .split_once('=')
            .ok_or(MessageError::Expected("an extension, `name=value`"))?;
        if name == "m" {
            return Err(MessageError::MandatoryExtension);
        }
        if name == "tokenauth" && value.eq_ignore_ascii_case("true") {
            return Err(MessageError::TokenAuthentication);
        }
        // Kafka's clients send names of several letters where the RFC has one.
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(MessageError::Expected(
                "letters as the name of an extension",
            ));
        }
    }
    Ok(())
}

fn check_nonce(nonce: &str, limit: usize) -> Result<(), MessageError> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x2B | 0x2D..=0x7E);
    if nonce.is_empty() || nonce.len() > limit || !nonce.bytes().all(printable) {
        return Err(MessageError::Nonce);
    }
    Ok(())
}

/// `saslname`: a comma is `=2C`, an equals sign is `=3D`, and no other `=` may stand.
fn unescape(escaped: &str) -> Result<String, MessageError> {
    let mut parts = escaped.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let Some(rest) = part.strip_prefix("2C") {
            name.push(',');
            name.push_str(rest);
        } else if let Some(rest) = part.strip_prefix("3D") {
            name.push('=');
            name.push_str(rest);
        } else {
            return Err(MessageError::Escape);
        }
    }
    Ok(name)
}
