//! What must hold, one file each. Some are looked at all the time, all at the end, when everything has healed.

use crate::oracle::{History, Replica, Violation};

pub mod idempotence;
pub mod liveness;
pub mod no_loss;
pub mod offsets;
pub mod one_leader;
pub mod order;
pub mod replicas;

type Check = fn(&History, &[Replica]) -> Result<(), String>;

/// Those that are looked at in the end.
const AT_THE_END: [(&str, Check); 5] = [
    (no_loss::NAME, no_loss::check),
    (order::NAME, order::check),
    (offsets::NAME, offsets::check),
    (idempotence::NAME, idempotence::check),
    (replicas::NAME, replicas::check),
];

/// The first that does not hold.
#[must_use]
pub fn check(history: &History, replicas: &[Replica]) -> Option<Violation> {
    AT_THE_END.into_iter().find_map(|(invariant, check)| {
        let message = check(history, replicas).err()?;
        Some(Violation { invariant, message })
    })
}
