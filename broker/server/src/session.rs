//! Who is on a connection, and the register of live ones.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use palisade_security::{Principal, ScramMechanism};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::net::Listener;

/// An authenticated connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) principal: Principal,
    pub(crate) host: IpAddr,
    pub(crate) listener: Arc<Listener>,
}

/// Live sessions that rest on a stored credential, so that they can be ended when it is withdrawn.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    next: AtomicU64,
    live: Mutex<HashMap<u64, Live>>,
}

#[derive(Debug)]
struct Live {
    user: String,
    credential: ScramMechanism,
    end: CancellationToken,
}

/// A place in the register; dropping it leaves the register.
#[derive(Debug)]
pub(crate) struct Registered {
    sessions: Arc<Sessions>,
    id: u64,
}

impl Sessions {
    /// Enters a session; `end` is cancelled when its credential goes.
    pub(crate) fn register(
        self: &Arc<Self>,
        user: &str,
        credential: ScramMechanism,
        end: CancellationToken,
    ) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Live {
            user: user.to_owned(),
            credential,
            end,
        };
        self.live.lock().insert(id, live);
        Registered {
            sessions: Arc::clone(self),
            id,
        }
    }

    /// Ends every session whose credential `exists` no more; returns how many.
    pub(crate) fn end_unless(&self, exists: impl Fn(&str, ScramMechanism) -> bool) -> usize {
        let live = self.live.lock();
        let gone = live
            .values()
            .filter(|session| !exists(&session.user, session.credential));
        gone.map(|session| session.end.cancel()).count()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.sessions.live.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_of_withdrawn_credentials_end() {
        let sessions = Arc::new(Sessions::default());
        let tokens = [
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        ];
        let [alice, bob, gone] = &tokens;
        let _alice = sessions.register("alice", ScramMechanism::Sha512, alice.clone());
        let _bob = sessions.register("bob", ScramMechanism::Sha512, bob.clone());
        drop(sessions.register("bob", ScramMechanism::Sha512, gone.clone()));
        assert_eq!(sessions.end_unless(|user, _| user == "alice"), 1);
        assert!(!alice.is_cancelled() && bob.is_cancelled() && !gone.is_cancelled());
    }
}
