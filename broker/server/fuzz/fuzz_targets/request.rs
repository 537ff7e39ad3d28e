//! The request decoder meets arbitrary bytes: it never panics, and never takes memory that the frame's size does not justify
//! (the limit of the fuzzer's own process is what notices).
#![no_main]

use bytes::{BufMut, Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use palisade_server::decode_request;

fuzz_target!(|data: &[u8]| {
    // As they come.
    drop(decode_request(Bytes::copy_from_slice(data)));
    // And behind a header that is right, so that the bodies are reached: the first two bytes choose the request.
    if let [key, version, body @ ..] = data {
        let mut frame = BytesMut::with_capacity(body.len() + 16);
        frame.put_i16(i16::from(key % 80));
        frame.put_i16(i16::from(version % 20));
        frame.put_i32(1);
        frame.put_i16(-1);
        frame.extend_from_slice(body);
        drop(decode_request(frame.freeze()));
    }
});
