//! The frame decoder meets arbitrary bytes in pieces of any size: it never panics, lets no frame over the limit through, and holds no more memory than
//! the bytes that have arrived justify.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_peer::{decode_all, decode_hello};

#[path = "../alloc.rs"]
mod alloc;

/// As in a broker, so that a length may promise much.
const MAX: usize = 64 << 20;
/// Bytes that are made of one input: enough to fill several buffers.
const TOTAL: usize = 512 << 10;
/// Bytes that a length counts before the head.
const COUNTED: usize = 18;

fuzz_target!(|data: &[u8]| {
    let [step, small, rest @ ..] = data else {
        return;
    };
    decode_hello(rest);
    let max = match small % 2 {
        0 => MAX,
        _ => usize::from(*small),
    };
    // Short pieces cut everywhere, long ones fill buffers.
    let step = match step % 2 {
        0 => usize::from(*step),
        _ => usize::from(*step) << 10,
    };
    // As they come.
    drop(check(rest, step, max));
    // And with lengths that are right, so that whole frames are reached: the first byte says how long each one is.
    let mut stream = Vec::new();
    let mut left = rest;
    while let [length, more @ ..] = left {
        let (body, more) = more.split_at(more.len().min(usize::from(*length)));
        stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
        stream.extend_from_slice(body);
        left = more;
    }
    drop(check(&stream, step, max));
    // And whole frames with heads of up to 32 KiB and payloads of up to 256 KiB: from 16 KiB on they are parts of a buffer, which ends within them.
    let mut stream = Vec::new();
    let mut frames = 0;
    let (sizes, _) = rest.as_chunks::<4>();
    for [what, head, payload, more] in sizes {
        let head = usize::from(*head) << 7;
        let length = COUNTED + head + (usize::from(*payload) << 10) + usize::from(*more);
        if stream.len() + length > TOTAL {
            break;
        }
        let end = stream.len() + 4 + length;
        stream.extend_from_slice(&(length as u32).to_be_bytes());
        stream.extend_from_slice(&1u32.to_be_bytes());
        stream.extend_from_slice(&2u64.to_be_bytes());
        stream.extend_from_slice(&[what % 7, *what]);
        stream.extend_from_slice(&(head as u32).to_be_bytes());
        stream.resize(end, *what);
        frames += 1;
    }
    // In pieces of a few bytes, hundreds of thousands would take their time.
    assert_eq!(check(&stream, step.max(1021), MAX), Ok(frames));
});

fn check(bytes: &[u8], step: usize, max: usize) -> Result<usize, String> {
    let (outcome, largest) = alloc::largest_of(|| decode_all(bytes, step, max));
    // A buffer has 128 KiB, or doubles so that what has arrived fits; the rest is for small things.
    assert!(
        largest <= 4 * bytes.len() + (512 << 10),
        "{largest} bytes at once for {}",
        bytes.len()
    );
    if let Err(error) = &outcome {
        assert!(
            !error.contains("got through") && !error.contains("are held"),
            "{error}"
        );
    }
    outcome
}
