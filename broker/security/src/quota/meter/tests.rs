#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn millis(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn limit(value: f64, client: &str) -> Limit {
    Limit {
        value,
        bucket: Bucket {
            user: None,
            client_id: Some(client.to_owned()),
        },
    }
}

#[test]
fn a_burst_of_ten_seconds_worth_is_free_and_the_rest_is_waited_for() {
    let start = Instant::now();
    let mut meter = RateMeter::new();
    meter.record(start, 1000.0);
    assert_eq!(meter.throttle(start, 100.0), Duration::ZERO);
    meter.record(start + millis(500), 500.0);
    // 1500 units in a window of 10.5 s are 142.86/s: (142.86 - 100) / 100 * 10.5 s.
    assert_eq!(meter.throttle(start + millis(500), 100.0), millis(4500));
}

#[test]
fn waiting_as_long_as_told_brings_the_rate_back_to_the_limit() {
    let start = Instant::now();
    let mut meter = RateMeter::new();
    for step in 0..20 {
        meter.record(start + millis(step * 500), 150.0);
    }
    let now = start + millis(9_500);
    let wait = meter.throttle(now, 100.0);
    assert!(wait > Duration::ZERO);
    assert_eq!(meter.throttle(now + wait, 100.0), Duration::ZERO);
}

#[test]
fn a_client_of_small_requests_is_held_to_its_limit_over_minutes() {
    let start = Instant::now();
    let mut now = start;
    let mut meter = RateMeter::new();
    let mut total = 0.0;
    while now - start < Duration::from_secs(300) {
        meter.record(now, 100.0);
        total += 100.0;
        now += meter.throttle(now, 1000.0) + millis(1);
    }
    let rate = total / (now - start).as_secs_f64();
    assert!((800.0..1300.0).contains(&rate), "{rate} of 1000 per second");
}

#[test]
fn what_is_older_than_the_samples_is_forgotten() {
    let start = Instant::now();
    let mut meter = RateMeter::new();
    meter.record(start, 1e9);
    assert!(meter.throttle(start + millis(10_999), 1.0) > Duration::ZERO);
    assert_eq!(meter.throttle(start + millis(11_000), 1.0), Duration::ZERO);
    assert_eq!(meter.rate(start + millis(11_000)), 0.0);
}

#[test]
fn a_wait_is_never_longer_than_anyone_can_wait() {
    let start = Instant::now();
    let mut meter = RateMeter::new();
    meter.record(start, f64::MAX);
    assert_eq!(meter.throttle(start, 1.0), MAX_THROTTLE);
}

#[test]
fn time_that_goes_backwards_is_no_time() {
    let start = Instant::now() + Duration::from_secs(100);
    let mut meter = RateMeter::new();
    meter.record(start, 10.0);
    meter.record(start - millis(50_000), 10.0);
    assert_eq!(meter.rate(start - millis(50_000)), 2.0);
}

#[test]
fn what_was_not_used_is_taken_back() {
    let start = Instant::now();
    let mut meters = QuotaMeters::new();
    let limit = limit(100.0, "app");
    let key = QuotaKey::ConsumerByteRate;
    assert!(meters.record(start, key, &limit, 5000.0) > Duration::ZERO);
    meters.take_back(start, key, &limit, 5000.0);
    assert_eq!(meters.record(start, key, &limit, 1.0), Duration::ZERO);
}

#[test]
fn a_raised_limit_ends_the_wait_at_once() {
    let start = Instant::now();
    let mut meters = QuotaMeters::new();
    let key = QuotaKey::ProducerByteRate;
    assert!(meters.record(start, key, &limit(10.0, "app"), 5000.0) > Duration::ZERO);
    assert_eq!(
        meters.record(start, key, &limit(10_000.0, "app"), 1.0),
        Duration::ZERO
    );
}

#[test]
fn buckets_and_keys_are_counted_apart() {
    let start = Instant::now();
    let mut meters = QuotaMeters::new();
    let key = QuotaKey::ProducerByteRate;
    assert!(meters.record(start, key, &limit(10.0, "a"), 5000.0) > Duration::ZERO);
    assert_eq!(
        meters.record(start, key, &limit(10.0, "b"), 1.0),
        Duration::ZERO
    );
    let other = QuotaKey::ConsumerByteRate;
    assert_eq!(
        meters.record(start, other, &limit(10.0, "a"), 1.0),
        Duration::ZERO
    );
}

#[test]
fn request_time_is_waited_for_ten_seconds_at_most() {
    let start = Instant::now();
    let mut meters = QuotaMeters::new();
    let wait = meters.record(start, QuotaKey::RequestPercentage, &limit(1.0, "a"), 1e6);
    assert_eq!(wait, Duration::from_secs(10));
}

#[test]
fn mutations_may_overdraw_once_and_then_wait() {
    let start = Instant::now();
    let mut meters = QuotaMeters::new();
    let limit = limit(2.0, "a");
    // Eleven seconds' worth are 22; 30 overdraw by 8, which is 4 s.
    assert_eq!(meters.mutate(start, &limit, 30.0, true), Ok(Duration::ZERO));
    assert_eq!(meters.mutate(start, &limit, 1.0, true), Err(millis(4000)));
    assert_eq!(
        meters.mutate(start + millis(3999), &limit, 1.0, true),
        Err(millis(1))
    );
    assert_eq!(
        meters.mutate(start + millis(4000), &limit, 1.0, true),
        Ok(Duration::ZERO)
    );
    // An old client cannot be told, so it is counted, and slowed.
    assert_eq!(
        meters.mutate(start + millis(4000), &limit, 1.0, false),
        Ok(millis(1000))
    );
}

#[test]
fn meters_that_nobody_uses_are_dropped() {
    let start = Instant::now();
    let mut meters = QuotaMeters::new();
    for client in 0..100 {
        let limit = limit(10.0, &client.to_string());
        meters.record(start, QuotaKey::ProducerByteRate, &limit, 1.0);
    }
    let later = start + IDLE;
    meters.record(later, QuotaKey::ProducerByteRate, &limit(10.0, "new"), 1.0);
    assert_eq!(meters.rates.len(), 1);
}

proptest! {
    #[test]
    fn a_client_that_waits_as_told_never_gets_more_than_twice_its_limit_and_one_burst(
        limit in 1_u32..1000,
        amounts in prop::collection::vec((1_u32..2000, 0_u64..500), 1..200),
    ) {
        let limit = f64::from(limit);
        let start = Instant::now();
        let mut now = start;
        let mut meter = RateMeter::new();
        let mut total = 0.0;
        let mut largest: f64 = 0.0;
        for (amount, pause) in amounts {
            let amount = f64::from(amount);
            meter.record(now, amount);
            total += amount;
            largest = largest.max(amount);
            now += meter.throttle(now, limit) + millis(pause);
        }
        let seconds = (now - start).as_secs_f64();
        prop_assert!(
            total <= 2.0 * limit * (seconds + 11.0) + largest,
            "{total} in {seconds} s at {limit}/s"
        );
    }

    #[test]
    fn a_token_bucket_never_gives_more_than_rate_and_burst(
        limit in 1_u32..100,
        takes in prop::collection::vec((1_u32..50, 0_u64..2000), 1..100),
    ) {
        let limit = f64::from(limit);
        let start = Instant::now();
        let mut now = start;
        let mut bucket = TokenBucket::new(now, limit);
        let mut taken = 0.0;
        let mut largest: f64 = 0.0;
        for (amount, pause) in takes {
            if bucket.throttle(now, limit).is_zero() {
                bucket.take(now, limit, f64::from(amount));
                taken += f64::from(amount);
                largest = largest.max(f64::from(amount));
            }
            let seconds = (now - start).as_secs_f64();
            prop_assert!(taken <= limit * (seconds + 11.0) + largest + 1e-6);
            now += millis(pause);
        }
    }
}
