//! A SCRAM exchange with both messages of the client from the fuzzer. The server's nonce is fixed, so that the fuzzer can
//! get as far as the proof; it cannot have the password, so an exchange that succeeds is a hole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_security::{
    Decoy, ScramCredential, ScramMechanism, ScramServer, ScramStep,
    name::check_user_name,
    scram::{ClientFinal, ClientFirst},
};

fuzz_target!(|data: &[u8]| {
    let split = data
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(data.len());
    let (first, rest) = data.split_at(split);
    let last = rest.get(1..).unwrap_or_default();
    if let Ok(parsed) = ClientFirst::parse(first) {
        assert!(check_user_name(&parsed.user).is_ok());
        assert_eq!(
            format!("{}{}", parsed.gs2_header, parsed.bare).as_bytes(),
            first
        );
    }
    if let Ok(parsed) = ClientFinal::parse(last) {
        assert!(last.starts_with(parsed.without_proof.as_bytes()));
    }
    let mechanism = ScramMechanism::Sha256;
    let decoy = Decoy::from_bytes([1; 32]);
    let mut server = ScramServer::with_nonce(mechanism, decoy, "server");
    let credential = ScramCredential::from_salted_password(mechanism, b"salt", 4096, &[7; 32]).ok();
    if server
        .step(first, |user| credential.filter(|_| user == "u"))
        .is_ok()
    {
        let outcome = server.step(last, |_| None);
        assert!(
            !matches!(outcome, Ok(ScramStep::Done { .. })),
            "let in without the password"
        );
    }
    assert!(
        server.step(last, |_| None).is_err(),
        "went on after the end"
    );
});
