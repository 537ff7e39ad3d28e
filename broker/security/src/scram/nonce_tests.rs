//! Which nonces the second message may carry; the proof fits in every case, so that the nonce alone decides.

#![allow(clippy::unwrap_used, clippy::panic)]

use aws_lc_rs::{digest, hmac, pbkdf2};

use super::*;

const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SALT: &[u8] = b"sixteen bytes ..";

/// Runs an exchange in which the client answers with this nonce.
fn exchange(password: &str, nonce: &str) -> Result<ScramStep, ScramError> {
    let lookup = |_: &str| {
        ScramCredential::from_password_and_salt(
            ScramMechanism::Sha256,
            "pencil",
            SALT.to_vec(),
            4096,
        )
        .ok()
    };
    let decoy = Decoy::from_bytes([7; 32]);
    let mut server = ScramServer::with_nonce(ScramMechanism::Sha256, decoy, SERVER_NONCE);
    let bare = format!("n=user,r={CLIENT_NONCE}");
    let ScramStep::Continue(server_first) = server.step(format!("n,,{bare}").as_bytes(), lookup)?
    else {
        panic!("done after one message");
    };
    let server_first = String::from_utf8(server_first).unwrap();

    let mut salted = [0; 32];
    let iterations = std::num::NonZeroU32::new(4096).unwrap();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        SALT,
        password.as_bytes(),
        &mut salted,
    );
    let mac =
        |key: &[u8], message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let client_key = mac(&salted, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let without_proof = format!("c=biws,r={nonce}");
    let message = format!("{bare},{server_first},{without_proof}");
    let signature = mac(stored_key.as_ref(), message.as_bytes());
    let proof: Vec<u8> = client_key
        .as_ref()
        .iter()
        .zip(signature.as_ref())
        .map(|(key, sign)| key ^ sign)
        .collect();
    server.step(
        format!("{without_proof},p={}", STANDARD.encode(proof)).as_bytes(),
        lookup,
    )
}

#[test]
fn the_whole_nonce_is_the_right_answer() {
    let nonce = format!("{CLIENT_NONCE}{SERVER_NONCE}");
    assert!(matches!(
        exchange("pencil", &nonce),
        Ok(ScramStep::Done { .. })
    ));
}

#[test]
fn librdkafka_before_2_6_1_repeats_its_part_and_is_accepted_with_the_right_password_only() {
    let nonce = format!("{CLIENT_NONCE}{CLIENT_NONCE}{SERVER_NONCE}");
    assert!(matches!(
        exchange("pencil", &nonce),
        Ok(ScramStep::Done { .. })
    ));
    assert!(matches!(
        exchange("pencils", &nonce),
        Err(ScramError::WrongProof { .. })
    ));
}

#[test]
fn any_other_nonce_is_refused_although_the_proof_fits() {
    for nonce in [
        CLIENT_NONCE.to_owned(),
        SERVER_NONCE.to_owned(),
        format!("{CLIENT_NONCE}{SERVER_NONCE}x"),
        format!("x{CLIENT_NONCE}{SERVER_NONCE}"),
        format!("{CLIENT_NONCE}{CLIENT_NONCE}"),
        format!("{CLIENT_NONCE}{CLIENT_NONCE}{CLIENT_NONCE}{SERVER_NONCE}"),
    ] {
        assert!(
            matches!(exchange("pencil", &nonce), Err(ScramError::Nonce { .. })),
            "{nonce}"
        );
    }
}
