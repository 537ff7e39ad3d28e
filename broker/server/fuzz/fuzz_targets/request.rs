//! The request decoder meets arbitrary bytes: it never panics, and never takes memory that the frame's size does not justify.
#![no_main]

use bytes::{BufMut, Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use palisade_server::decode_request;

#[path = "../../../peer/fuzz/alloc.rs"]
mod alloc;

fuzz_target!(|data: &[u8]| {
    // As they come.
    decode(Bytes::copy_from_slice(data));
    // And behind a header that is right, so that the bodies are reached: the first two bytes choose the request.
    if let [key, version, body @ ..] = data {
        let mut frame = BytesMut::with_capacity(body.len() + 16);
        frame.put_i16(i16::from(key % 80));
        frame.put_i16(i16::from(version % 20));
        frame.put_i32(1);
        frame.put_i16(-1);
        frame.extend_from_slice(body);
        decode(frame.freeze());
    }
});

fn decode(frame: Bytes) {
    let size = frame.len();
    let ((), largest) = alloc::largest_of(|| drop(decode_request(frame)));
    // The largest is an array's: it has at most as many elements as bytes follow it, and the largest element of any request takes 128 bytes. The rest is
    // for what does not depend on the frame: nodes of trees, messages of errors.
    assert!(
        largest <= 256 * size + (64 << 10),
        "{largest} bytes at once for {size}"
    );
}
