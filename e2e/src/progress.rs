//! What a long step tells the person who waits for it.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Prints one line on standard error, with the seconds since the first such line of this process.
pub fn say(message: impl Display) {
    let elapsed = STARTED.get_or_init(Instant::now).elapsed().as_secs_f32();
    // Progress is a courtesy: a closed standard error must not stop the work.
    let _ = writeln!(std::io::stderr().lock(), "[{elapsed:6.1} s] {message}");
}
