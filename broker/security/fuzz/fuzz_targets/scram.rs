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
    // Behind a beginning that is right: nonces are compared in constant time, which tells the fuzzer nothing.
    let mut answer = b"c=biws,r=cserver,".to_vec();
    answer.extend_from_slice(data);
    for mechanism in ScramMechanism::ALL {
        exchange(mechanism, first, last);
        // One who has a credential, and one who has not.
        for user in ["u", "v"] {
            let begun = exchange(mechanism, format!("n,,n={user},r=c").as_bytes(), &answer);
            assert!(begun, "a good first message was refused");
        }
    }
});

/// Says whether the first message was taken.
fn exchange(mechanism: ScramMechanism, first: &[u8], last: &[u8]) -> bool {
    let salted = vec![7_u8; mechanism.hash_len()];
    let credential = ScramCredential::from_salted_password(mechanism, b"salt", 4096, &salted)
        .expect("a credential");
    let decoy = Decoy::from_bytes([1; 32]);
    let mut server = ScramServer::with_nonce(mechanism, decoy, "server");
    let begun = server
        .step(first, |user| (user == "u").then_some(credential))
        .is_ok();
    if begun {
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
    begun
}
