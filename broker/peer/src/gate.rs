//! Keeps the order of a peer's messages when it comes back on another connection while bytes of the one before are still to be read here.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// What lets the messages of one connection through.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: Mutex<bool>,
    /// For who waits for bytes.
    pub(crate) ended: CancellationToken,
}

impl Gate {
    /// Runs while the gate cannot be shut; `None` when it is.
    pub(crate) fn pass<T>(&self, hand_over: impl FnOnce() -> T) -> Option<T> {
        let shut = self.shut.lock();
        (!*shut).then(hand_over)
    }

    /// When this returns nothing goes through any more.
    fn shut(&self) {
        *self.shut.lock() = true;
        self.ended.cancel();
    }
}

/// The accepted connections by broker.
#[derive(Debug, Default)]
pub(crate) struct Gates(Mutex<HashMap<i32, Vec<Arc<Gate>>>>);

impl Gates {
    /// A gate for another connection of the broker. Unless it takes over, those before are shut.
    pub(crate) fn open(&self, broker: i32, takes_over: bool) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        let mut gates = self.0.lock();
        let gates = gates.entry(broker).or_default();
        if !takes_over {
            for before in gates.drain(..) {
                before.shut();
            }
        }
        gates.push(Arc::clone(&gate));
        gate
    }

    /// The connection ended.
    pub(crate) fn remove(&self, broker: i32, gate: &Arc<Gate>) {
        let mut gates = self.0.lock();
        if let Some(here) = gates.get_mut(&broker) {
            here.retain(|other| !Arc::ptr_eq(other, gate));
            if here.is_empty() {
                gates.remove(&broker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_shuts_the_ones_before_unless_it_takes_over() {
        let gates = Gates::default();
        let first = gates.open(1, false);
        let second = gates.open(1, true);
        let other = gates.open(2, false);
        assert_eq!(first.pass(|| 1), Some(1));
        let third = gates.open(1, false);
        assert_eq!(first.pass(|| 1), None);
        assert_eq!(second.pass(|| 1), None);
        assert!(second.ended.is_cancelled());
        assert_eq!(third.pass(|| 1), Some(1));
        assert_eq!(other.pass(|| 1), Some(1));
        gates.remove(1, &third);
        gates.remove(2, &other);
        assert!(gates.0.lock().is_empty());
    }
}
