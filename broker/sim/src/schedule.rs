//! What happens when: one queue for messages, disks, faults and clients. Each event has a millisecond of its own, so that all it causes has happened before the next.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

type Action = Box<dyn FnOnce() + Send>;

struct Event {
    at: u64,
    key: u64,
    action: Action,
}

impl Event {
    fn order(&self) -> (u64, u64) {
        (self.at, self.key)
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// The queue.
pub(crate) struct Schedule {
    begun: Instant,
    events: Mutex<BinaryHeap<Reverse<Event>>>,
    earlier: Notify,
}

impl Schedule {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            events: Mutex::default(),
            earlier: Notify::new(),
        }
    }

    /// Simulated microseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Has `action` happen at `at`. Of those at the same microsecond the smaller key is first, whoever came first.
    pub(crate) fn at(&self, at: u64, key: u64, action: impl FnOnce() + Send + 'static) {
        let action: Action = Box::new(action);
        self.events.lock().push(Reverse(Event { at, key, action }));
        self.earlier.notify_one();
    }

    fn next(&self) -> Option<u64> {
        self.events.lock().peek().map(|Reverse(event)| event.at)
    }

    fn pop(&self) -> Option<Event> {
        let now = self.now();
        let mut events = self.events.lock();
        let is_due = events.peek().is_some_and(|Reverse(event)| event.at <= now);
        if is_due {
            return events.pop().map(|Reverse(event)| event);
        }
        None
    }

    /// Runs events until `go_on`, which is asked after each, says no.
    pub(crate) async fn run(&self, mut go_on: impl FnMut() -> bool) {
        loop {
            let sleep = async {
                match self.next() {
                    // Timers have milliseconds, and an event waits until all that the last one caused is done.
                    Some(at) => {
                        let due = self.begun + Duration::from_millis(at.div_ceil(1000));
                        let soonest = Instant::now() + Duration::from_millis(1);
                        tokio::time::sleep_until(due.max(soonest)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.earlier.notified() => continue,
                () = sleep => {}
            }
            if let Some(event) = self.pop() {
                (event.action)();
                if !go_on() {
                    return;
                }
            }
        }
    }
}
