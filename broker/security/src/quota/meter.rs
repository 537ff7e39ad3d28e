//! Measuring use against a limit: the sampled rate of bytes and request time, and the token bucket of mutations.
//!
//! Both take the time as an argument and never look at a clock. Time that goes backwards counts as no time passed.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::set::{Bucket, Limit, QuotaKey};

/// Samples that a rate is taken over, the current one included (Kafka's `quota.window.num`).
pub const SAMPLES: u32 = 11;
/// Length of a sample (Kafka's `quota.window.size.seconds`).
pub const SAMPLE_WINDOW: Duration = Duration::from_secs(1);

/// Longest wait for request time, so that one slow request does not silence a client for minutes.
const MAX_REQUEST_THROTTLE: Duration = Duration::from_secs(SAMPLES as u64 - 1);
/// A meter that nobody has used for so long says nothing any more.
const IDLE: Duration = Duration::from_secs(60);
/// Longest wait that is ever computed: what a client's 32-bit milliseconds can hold, and then some sense.
const MAX_THROTTLE: Duration = Duration::from_secs(3600);

/// Units per second over the last samples, as Kafka's `Rate`: the window is never taken to be shorter than ten
/// samples, so a client that was idle may use ten seconds' worth at once before it has to wait.
///
/// This is Kafka's arithmetic to the millisecond, and has its weakness: a client whose every request is worth more than
/// twenty seconds, and which waits exactly as told, gets up to twice its limit, since its samples are forgotten meanwhile.
#[derive(Clone, Debug, Default)]
pub struct RateMeter {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    start: Instant,
    amount: f64,
}

impl RateMeter {
    /// A meter that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `amount` units; a negative amount takes back what was counted and not used after all.
    pub fn record(&mut self, now: Instant, amount: f64) {
        self.forget(now);
        match self.samples.back_mut() {
            Some(last) if now.saturating_duration_since(last.start) < SAMPLE_WINDOW => {
                last.amount += amount;
            }
            _ => self.samples.push_back(Sample { start: now, amount }),
        }
    }

    /// Units per second.
    #[must_use]
    pub fn rate(&mut self, now: Instant) -> f64 {
        self.forget(now);
        let total: f64 = self.samples.iter().map(|sample| sample.amount).sum();
        total.max(0.0) / self.window(now).as_secs_f64()
    }

    /// How long to wait until the rate is back at `limit`: `(rate - limit) / limit` windows.
    #[must_use]
    pub fn throttle(&mut self, now: Instant, limit: f64) -> Duration {
        let rate = self.rate(now);
        if rate <= limit || limit <= 0.0 {
            return Duration::ZERO;
        }
        seconds((rate - limit) / limit * self.window(now).as_secs_f64())
    }

    fn forget(&mut self, now: Instant) {
        while self.samples.front().is_some_and(|sample| {
            now.saturating_duration_since(sample.start) >= SAMPLE_WINDOW * SAMPLES
        }) {
            self.samples.pop_front();
        }
    }

    /// Time since the oldest sample began, at least ten sample windows and what has passed of the current one.
    fn window(&self, now: Instant) -> Duration {
        let elapsed = self.samples.front().map_or(Duration::ZERO, |sample| {
            now.saturating_duration_since(sample.start)
        });
        let full =
            u32::try_from(elapsed.as_millis() / SAMPLE_WINDOW.as_millis()).unwrap_or(u32::MAX);
        elapsed + SAMPLE_WINDOW * (SAMPLES - 1).saturating_sub(full)
    }
}

/// A token bucket as in KIP-599: it fills by `limit` tokens a second up to eleven seconds' worth, may be overdrawn once,
/// and whoever finds it overdrawn waits until it is not.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(now: Instant, limit: f64) -> Self {
        Self {
            tokens: burst(limit),
            filled: now,
        }
    }

    /// How long until the bucket is not overdrawn; zero: go ahead.
    #[must_use]
    pub fn throttle(&mut self, now: Instant, limit: f64) -> Duration {
        self.fill(now, limit);
        if self.tokens >= 0.0 || limit <= 0.0 {
            return Duration::ZERO;
        }
        seconds(-self.tokens / limit)
    }

    /// Takes `amount` tokens, below zero if need be.
    pub fn take(&mut self, now: Instant, limit: f64, amount: f64) {
        self.fill(now, limit);
        self.tokens -= amount;
    }

    fn fill(&mut self, now: Instant, limit: f64) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * limit).min(burst(limit));
        self.filled = self.filled.max(now);
    }
}

fn burst(limit: f64) -> f64 {
    limit * f64::from(SAMPLES) * SAMPLE_WINDOW.as_secs_f64()
}

/// Rounded to the millisecond as Kafka does, and never more than anyone can wait.
fn seconds(value: f64) -> Duration {
    let millis = (value * 1000.0).round();
    // Also what turns infinity, and the nothing that infinities make of each other, into a wait.
    if millis.is_nan() || millis >= MAX_THROTTLE.as_secs_f64() * 1000.0 {
        return MAX_THROTTLE;
    }
    Duration::from_secs_f64(millis.max(0.0) / 1000.0)
}

/// The meters of every client that has a limit. Limits are given with each call, so a changed value counts at once.
#[derive(Debug, Default)]
pub struct QuotaMeters {
    rates: HashMap<(QuotaKey, Bucket), Metered<RateMeter>>,
    mutations: HashMap<Bucket, Metered<TokenBucket>>,
    pruned: Option<Instant>,
}

#[derive(Debug)]
struct Metered<M> {
    meter: M,
    used: Instant,
}

impl QuotaMeters {
    /// No meters yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `amount` units of `key` and says how long the client has to wait.
    ///
    /// Bytes for the byte rates; for [`QuotaKey::RequestPercentage`] 100 times the seconds of a request thread.
    pub fn record(&mut self, now: Instant, key: QuotaKey, limit: &Limit, amount: f64) -> Duration {
        let meter = self.rate(now, key, limit);
        meter.record(now, amount);
        let wait = meter.throttle(now, limit.value);
        if key == QuotaKey::RequestPercentage {
            wait.min(MAX_REQUEST_THROTTLE)
        } else {
            wait
        }
    }

    /// Takes back what [`QuotaMeters::record`] counted: a fetch that is answered empty because the client has to wait
    /// has not used its bytes.
    pub fn take_back(&mut self, now: Instant, key: QuotaKey, limit: &Limit, amount: f64) {
        self.rate(now, key, limit).record(now, -amount);
    }

    /// Whether `partitions` may be created or deleted now. `Err` with the wait when the client has overdrawn its limit
    /// (nothing is counted then); `strict` is for requests that can be told so (KIP-599), the others are counted anyway
    /// and get the wait as `Ok`.
    ///
    /// # Errors
    /// How long to wait before the next attempt.
    pub fn mutate(
        &mut self,
        now: Instant,
        limit: &Limit,
        partitions: f64,
        strict: bool,
    ) -> Result<Duration, Duration> {
        self.prune(now);
        let metered = self
            .mutations
            .entry(limit.bucket.clone())
            .or_insert_with(|| Metered {
                meter: TokenBucket::new(now, limit.value),
                used: now,
            });
        metered.used = now;
        let bucket = &mut metered.meter;
        let wait = bucket.throttle(now, limit.value);
        if strict && !wait.is_zero() {
            return Err(wait);
        }
        bucket.take(now, limit.value, partitions);
        Ok(if strict {
            Duration::ZERO
        } else {
            bucket.throttle(now, limit.value)
        })
    }

    fn rate(&mut self, now: Instant, key: QuotaKey, limit: &Limit) -> &mut RateMeter {
        self.prune(now);
        let metered = self
            .rates
            .entry((key, limit.bucket.clone()))
            .or_insert_with(|| Metered {
                meter: RateMeter::new(),
                used: now,
            });
        metered.used = now;
        &mut metered.meter
    }

    /// Drops idle meters, at most once per [`IDLE`], so that made-up client ids do not pile up.
    fn prune(&mut self, now: Instant) {
        let last = *self.pruned.get_or_insert(now);
        if now.saturating_duration_since(last) < IDLE {
            return;
        }
        self.pruned = Some(now);
        let idle = |used: Instant| now.saturating_duration_since(used) >= IDLE;
        self.rates.retain(|_, metered| !idle(metered.used));
        self.mutations
            .retain(|_, metered| !idle(metered.used) || metered.meter.tokens < 0.0);
    }
}

#[cfg(test)]
mod tests;
