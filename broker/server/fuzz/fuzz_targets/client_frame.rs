//! The reader of clients' frames meets arbitrary bytes in pieces of any size: it never panics, lets no frame over the limit through, and holds no more
//! memory than the bytes that have arrived justify.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_server::cut_frames;

#[path = "../../../peer/fuzz/alloc.rs"]
mod alloc;

/// Bytes that are made of one input: enough for several frames that need a share of the budget.
const TOTAL: usize = 512 << 10;

fuzz_target!(|data: &[u8]| {
    let [trusted, step, rest @ ..] = data else {
        return;
    };
    let trusted = trusted % 2 == 1;
    // Short pieces cut everywhere, long ones hold several frames.
    let step = match step % 2 {
        0 => usize::from(*step),
        _ => usize::from(*step) << 10,
    };
    // As they come.
    drop(check(rest, step, trusted));
    // And with lengths that are right, of up to 256 KiB: from 64 KiB on the client must have authenticated, and the frame needs a share.
    let mut stream = Vec::new();
    let mut frames = 0;
    let (sizes, _) = rest.as_chunks::<2>();
    for [size, more] in sizes {
        let size = (usize::from(*size) << 10) + usize::from(*more);
        if stream.len() + size > TOTAL {
            break;
        }
        let end = stream.len() + 4 + size;
        stream.extend_from_slice(&(size as u32).to_be_bytes());
        stream.resize(end, *more);
        frames += 1;
    }
    // In pieces of a few bytes, hundreds of thousands would take their time.
    let outcome = check(&stream, step.max(1021), trusted);
    if trusted {
        assert_eq!(outcome, Ok(frames));
    }
});

fn check(bytes: &[u8], step: usize, trusted: bool) -> Result<usize, String> {
    let (outcome, largest) = alloc::largest_of(|| cut_frames(bytes, step, trusted));
    // Room for as much again as has arrived, or 16 KiB, and a buffer that does not have it doubles; the rest is for small things.
    assert!(
        largest <= 4 * bytes.len() + (64 << 10),
        "{largest} bytes at once for {}",
        bytes.len()
    );
    if let Err(error) = &outcome {
        assert!(
            !error.contains("got through")
                && !error.contains("are held")
                && !error.contains("waits for nothing"),
            "{error}"
        );
    }
    outcome
}
