//! A PLAIN message from the fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_security::{name::check_user_name, parse_plain};

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = parse_plain(data) {
        assert!(check_user_name(message.user()).is_ok());
        assert!(!message.password().is_empty());
        let tail = format!("\0{}\0{}", message.user(), message.password());
        assert!(data.ends_with(tail.as_bytes()));
    }
});
