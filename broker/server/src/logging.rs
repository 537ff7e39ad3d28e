//! Structured logs on stderr: text for a terminal, JSON lines for everyone else.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What is logged when `PALISADE_LOG` does not say otherwise. The Raft engine warns of every heartbeat that is late, which on a busy machine drowns the rest; what follows
/// from it (lost connections, changes of leadership) the broker reports itself.
const DEFAULT_FILTER: &str = "info,openraft=error";

/// Starts logging; a second call changes nothing.
pub fn start() {
    let filter =
        EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    // Fails only when logging has been started before.
    drop(started);
}
