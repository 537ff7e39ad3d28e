//! What a shard takes from its surroundings that a simulation has to decide: chance, and threads that wait for a disk.
//!
//! Outside of a simulation chance is the operating system's and such threads are the runtime's. [`Simulated`] changes both for one thread, on which a simulation
//! runs everything.

use std::{cell::Cell, convert::Infallible, future::Future, io, sync::OnceLock, time::Duration};

use openraft::{AsyncRuntime, Instant as _, OptionalSend, TokioRuntime};
use rand_core::TryRng;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static OVERTAKES: Cell<bool> = const { Cell::new(false) };
}

/// While this lives, shards on this thread draw their chance from a seed and block where they are.
#[derive(Debug)]
pub struct Simulated(());

impl Simulated {
    /// Begins it on this thread.
    #[must_use]
    pub fn begin(seed: u64) -> Self {
        SEED.set(Some(seed));
        OVERTAKES.set(false);
        Self(())
    }

    /// Breaks something on purpose: checkpoints do not wait for the write-ahead log any more.
    pub fn let_checkpoints_overtake(&self) {
        OVERTAKES.set(true);
    }

    /// Sets what chance goes on from, so that what one replica draws does not depend on how often another did.
    pub fn reseed(&self, seed: u64) {
        SEED.set(Some(seed));
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        SEED.set(None);
        OVERTAKES.set(false);
    }
}

/// Whether a simulation wants checkpoints to be wrong.
pub(crate) fn checkpoints_overtake() -> bool {
    OVERTAKES.get()
}

/// Runs what may wait for a disk on a thread that may; in a simulation here and now.
///
/// # Errors
/// When it panicked, or the runtime is being shut down.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if SEED.get().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// The next number of a simulation's chance; `None` outside of one.
pub(crate) fn next_number() -> Option<u64> {
    // splitmix64
    let seed = SEED.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
    SEED.set(Some(seed));
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Some(mixed ^ (mixed >> 31))
}

/// What deadlines are rounded up to: the time between two looks of the engine at its timers (13/64 of a heartbeat of 150 ms), so that all shards look at once.
const GRID: Duration = Duration::from_millis(30);
/// What is due as soon as this is due now. The engine hands on what it has written a microsecond later when something else was written meanwhile; of that a timer
/// would make a millisecond, and the grid many.
const NOW: Duration = Duration::from_micros(20);
static ORIGIN: OnceLock<Moment> = OnceLock::new();

type Moment = <TokioRuntime as AsyncRuntime>::Instant;

/// When to wake up for a deadline: at once, or at the next step of the grid.
fn wake(deadline: Moment, now: Moment, origin: Moment) -> Moment {
    match deadline <= now + NOW {
        // Long past, so that no timer takes it for the future.
        true => now - Duration::from_secs(1),
        false => on_grid(deadline, origin),
    }
}

/// The first moment from `deadline` on that is a whole number of steps of the grid after `origin`, to the microsecond.
fn on_grid(deadline: Moment, origin: Moment) -> Moment {
    if deadline <= origin {
        return deadline;
    }
    let since = (deadline - origin).as_micros();
    let step = GRID.as_micros();
    let late = since
        .div_ceil(step)
        .saturating_mul(step)
        .saturating_sub(since);
    deadline + Duration::from_micros(u64::try_from(late).unwrap_or(0))
}

/// The engine's runtime: tokio, with a chance that can be seeded.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

/// [`Runtime`]'s source of chance.
pub(crate) struct Chance(<TokioRuntime as AsyncRuntime>::ThreadLocalRng);

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        match next_number() {
            Some(number) => Ok((number >> 32) as u32),
            None => self.0.try_next_u32(),
        }
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match next_number() {
            Some(number) => Ok(number),
            None => self.0.try_next_u64(),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let number = self.try_next_u64()?.to_le_bytes();
            let (part, _) = number.split_at(chunk.len());
            chunk.copy_from_slice(part);
        }
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Chance;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    /// Until the deadline, or a little longer: the engine of every shard wakes up many times a second, and a processor that is woken once for all of them does less.
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(match SEED.get() {
            Some(_) => deadline,
            None => wake(deadline, Moment::now(), *ORIGIN.get_or_init(Moment::now)),
        })
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Chance(TokioRuntime::thread_rng())
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        blocking(work).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(count: usize) -> Vec<u64> {
        let mut chance = Runtime::thread_rng();
        (0..count)
            .map(|_| chance.try_next_u64().unwrap_or_default())
            .collect()
    }

    #[test]
    fn deadlines_are_put_off_to_the_next_step_and_no_further() {
        let origin = Moment::now();
        let at = |micros| origin + Duration::from_micros(micros);
        for (deadline, expected) in [(0, 0), (1, 30_000), (30_000, 30_000), (35_300, 60_000)] {
            assert_eq!(on_grid(at(deadline), origin), at(expected), "{deadline}");
        }
        let before = origin - Duration::from_millis(1);
        assert_eq!(on_grid(before, origin), before);
    }

    #[test]
    fn what_is_due_now_is_not_put_off() {
        let origin = Moment::now();
        let now = origin + Duration::from_millis(40);
        let soon = now + Duration::from_micros(1);
        for deadline in [origin, now, soon] {
            assert!(wake(deadline, now, origin) < now);
        }
        let later = now + Duration::from_millis(1);
        assert_eq!(wake(later, now, origin), origin + Duration::from_millis(60));
    }

    #[test]
    fn a_seed_decides_chance_and_without_one_nothing_does() {
        let free = draws(4);
        let seeded = {
            let _simulated = Simulated::begin(7);
            draws(4)
        };
        let again = {
            let _simulated = Simulated::begin(7);
            draws(4)
        };
        assert_eq!(seeded, again);
        assert_ne!(free, draws(4));
        assert_ne!(seeded, draws(4));
    }
}
