//! What happened, as a hash that two runs of a seed share, and as text when somebody wants to read it.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::chance::mix;

/// How many events are kept to be read.
const KEPT: usize = 2000;

/// The trace of a run.
pub(crate) struct Trace {
    text: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn new(text: bool) -> Self {
        Self {
            text,
            state: Mutex::default(),
        }
    }

    /// Takes note of an event: numbers that say what it was, and a line for the reader.
    pub(crate) fn note(&self, now: u64, parts: &[u64], line: impl FnOnce() -> String) {
        let mut state = self.state.lock();
        state.hash = mix(&[state.hash, now, mix(parts)]);
        state.events = state.events.saturating_add(1);
        if self.text {
            if state.lines.len() == KEPT {
                state.lines.pop_front();
            }
            let line = format!("{:>10.3} ms  {}", now as f64 / 1000.0, line());
            state.lines.push_back(line);
        }
    }

    pub(crate) fn hash(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hash, state.events)
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.state.lock().lines.iter().cloned().collect()
    }
}
