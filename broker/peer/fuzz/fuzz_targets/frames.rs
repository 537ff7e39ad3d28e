//! The frame decoder meets arbitrary bytes in pieces of any size: it never panics, lets no frame over the limit through, and holds no more memory than the bytes that
//! have arrived justify.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_peer::{decode_all, decode_hello};

/// As in a broker, so that a length may promise much.
const MAX: usize = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let [step, small, rest @ ..] = data else {
        return;
    };
    decode_hello(rest);
    let max = if *small % 2 == 0 { MAX } else { usize::from(*small) };
    // As they come.
    check(rest, usize::from(*step), max);
    // And with lengths that are right, so that whole frames are reached: the first byte says how long each one is.
    let mut stream = Vec::new();
    let mut left = rest;
    while let [length, more @ ..] = left {
        let (body, more) = more.split_at(more.len().min(usize::from(*length)));
        stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
        stream.extend_from_slice(body);
        left = more;
    }
    check(&stream, usize::from(*step), max);
});

fn check(bytes: &[u8], step: usize, max: usize) {
    if let Err(error) = decode_all(bytes, step, max) {
        assert!(!error.contains("got through") && !error.contains("are held"), "{error}");
    }
}
