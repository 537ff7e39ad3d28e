//! The client's side of SCRAM-SHA-512 (RFC 5802), which derives a password's key once and not for each connection.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine as _, prelude::BASE64_STANDARD};

/// Bytes of SHA-512.
pub const LENGTH: usize = 64;

/// Salted passwords by password, salt and iterations: deriving one takes longer than all else that a connection costs the client.
static SALTED: Mutex<Option<Cache>> = Mutex::new(None);

type Cache = HashMap<(String, Vec<u8>, u32), [u8; LENGTH]>;

/// PBKDF2 of a password.
pub fn salted(password: &str, salt: &[u8], iterations: u32) -> Result<[u8; LENGTH]> {
    let mut cache = SALTED.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = cache.get_or_insert_default();
    let entry = (password.to_owned(), salt.to_vec(), iterations);
    if let Some(known) = cache.get(&entry) {
        return Ok(*known);
    }
    let mut key = [0; LENGTH];
    let iterations = NonZeroU32::new(iterations).context("no iterations")?;
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA512,
        iterations,
        salt,
        password.as_bytes(),
        &mut key,
    );
    cache.insert(entry, key);
    Ok(key)
}

/// The first message. User and nonce hold neither comma nor equals sign.
pub fn first(user: &str, nonce: &str) -> String {
    format!("n,,n={user},r={nonce}")
}

/// The second message, in answer to the server's first.
pub fn last(user: &str, password: &str, nonce: &str, server_first: &str) -> Result<String> {
    let field = |name: char| {
        server_first
            .split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
            .with_context(|| format!("the server's message has no {name}: {server_first}"))
    };
    let (both, salt, iterations) = (field('r')?, field('s')?, field('i')?);
    if !both.starts_with(nonce) {
        bail!("the server answers another client");
    }
    let salt = BASE64_STANDARD.decode(salt)?;
    let salted = salted(password, &salt, iterations.parse()?)?;
    let client_key = sign(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA512, client_key.as_ref());
    let without_proof = format!("c=biws,r={both}");
    let message = format!("n={user},r={nonce},{server_first},{without_proof}");
    let signature = sign(stored_key.as_ref(), message.as_bytes());
    let proof: Vec<u8> = client_key
        .as_ref()
        .iter()
        .zip(signature.as_ref())
        .map(|(key, signature)| key ^ signature)
        .collect();
    Ok(format!(
        "{without_proof},p={}",
        BASE64_STANDARD.encode(proof)
    ))
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, key), message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_proof_opens_what_the_server_stores() {
        let server_first = format!("r=abcdef,s={},i=4096", BASE64_STANDARD.encode(b"salt"));
        let message = last("user", "pencil", "abc", &server_first).unwrap();
        let (without, proof) = message.rsplit_once(",p=").unwrap();
        let salted = salted("pencil", b"salt", 4096).unwrap();
        let stored = digest::digest(&digest::SHA512, sign(&salted, b"Client Key").as_ref());
        let signed = sign(
            stored.as_ref(),
            format!("n=user,r=abc,{server_first},{without}").as_bytes(),
        );
        // The server recovers the client's key from the proof, and its hash is what it stores.
        let key: Vec<u8> = BASE64_STANDARD
            .decode(proof)
            .unwrap()
            .iter()
            .zip(signed.as_ref())
            .map(|(proof, signed)| proof ^ signed)
            .collect();
        assert_eq!(
            digest::digest(&digest::SHA512, &key).as_ref(),
            stored.as_ref()
        );
    }

    #[test]
    fn an_answer_to_another_nonce_is_refused() {
        assert!(last("u", "p", "abc", "r=xyz,s=c2FsdA==,i=4096").is_err());
        assert!(last("u", "p", "abc", "e=other-error").is_err());
    }
}
