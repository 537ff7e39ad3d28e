//! Ports for the servers that tests start.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    io,
    net::{Ipv4Addr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Below those that the kernel gives to outgoing connections (`net.ipv4.ip_local_port_range`, from 32768 on unless somebody has changed it): a client of another
/// test would otherwise take a port between the moment it was found free and the moment the server listens.
const FIRST: u16 = 15_000;
const COUNT: usize = 17_000;

/// Where this process goes on looking: somewhere, so that two test programs do not look at the same ports.
static NEXT: LazyLock<AtomicUsize> = LazyLock::new(|| {
    let somewhere = RandomState::new().hash_one(std::process::id());
    AtomicUsize::new(usize::try_from(somewhere % COUNT as u64).unwrap_or(0))
});

/// A port of loopback that is free now, and that is not given out again for as long as possible.
///
/// # Errors
/// When none is free.
pub fn free_port() -> io::Result<u16> {
    let mut last = None;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + u16::try_from(step).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_port_that_is_taken_is_passed_over() {
        let ports: BTreeSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50, "each is given out once");
        let after = ports.last().unwrap() + 1;
        // The next one is somebody's, unless the range has just begun anew.
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, after));
        let next = free_port().unwrap();
        assert!(taken.is_err() || next != after);
        assert!(!ports.contains(&next));
    }
}
