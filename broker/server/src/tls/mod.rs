//! TLS endpoints: certificates and trust from PEM files, replaced while connections go on.
//!
//! [`load`] turns files into a rustls configuration and says what is in them; [`Endpoint`] holds the configuration that new
//! connections get, and looks at the files again when told to. Connections that exist keep what they began with.

mod client;
mod describe;
mod endpoint;
mod load;

pub(crate) use client::PEER_ALPN;
#[cfg(test)]
pub(crate) use describe::sha256_hex;
pub(crate) use describe::{Leaf, common_name};
pub(crate) use endpoint::Endpoint;
pub(crate) use load::TlsError;
