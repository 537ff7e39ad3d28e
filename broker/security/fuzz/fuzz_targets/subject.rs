//! A client certificate from the fuzzer, as far as its subject is read. (TLS has verified a certificate before that; this
//! must not depend on it.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_security::{PrincipalMapper, name::check_user_name};

/// A certificate whose subject has three attributes, two of them in one RDN.
const CERTIFICATE: &[u8] = include_bytes!("../../src/mapper/testdata/multi-valued.der");

fuzz_target!(|data: &[u8]| {
    map(data);
    // A real one with some bytes changed: triples of a position and what is added to the byte there; then cut.
    let mut tampered = CERTIFICATE.to_vec();
    let (changes, rest) = data.as_chunks::<3>();
    for [high, low, add] in changes {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % tampered.len();
        tampered[at] = tampered[at].wrapping_add(*add);
    }
    if let [high, low] = rest {
        tampered.truncate(usize::from(u16::from_be_bytes([*high, *low])));
    }
    map(&tampered);
});

fn map(der: &[u8]) {
    if let Ok(name) = PrincipalMapper::default().map_certificate(der) {
        assert!(check_user_name(&name).is_ok());
    }
}
