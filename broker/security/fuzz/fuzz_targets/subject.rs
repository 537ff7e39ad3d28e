//! A client certificate from the fuzzer, as far as its subject is read. (TLS has verified a certificate before that; this
//! must not depend on it.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_security::{PrincipalMapper, name::check_user_name};

fuzz_target!(|data: &[u8]| {
    if let Ok(name) = PrincipalMapper::default().map_certificate(data) {
        assert!(check_user_name(&name).is_ok());
    }
});
