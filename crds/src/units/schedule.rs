//! Five-field cron schedules, in UTC.

use std::{borrow::Cow, fmt, str::FromStr};

use k8s_openapi::jiff::{Timestamp, ToSpan, civil, tz::TimeZone};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::UnitError;

/// When something recurs: `minute hour day-of-month month day-of-week`, in UTC. Fields take `*`, numbers, ranges (`1-5`), lists
/// (`1,15`) and steps (`*/6`, `0-30/10`); Sunday is 0 or 7. As in Vixie cron, when both days are restricted either may match.
#[derive(Clone, PartialEq, Eq)]
pub struct Schedule {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    either_day: bool,
}

/// The longest a schedule can be silent is the eight years between two 29 Februaries around 2100; beyond that it never fires.
const HORIZON_DAYS: u32 = 366 * 9;

impl Schedule {
    /// The first minute after `after` that matches, or `None` when the schedule never fires (30 February).
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let start = after.to_zoned(TimeZone::UTC).datetime();
        let mut day = start.date();
        let mut from = Some((start.hour(), start.minute()));
        for _ in 0..HORIZON_DAYS {
            if self.day_matches(day)
                && let Some((hour, minute)) = self.time_after(from)
            {
                let at = day.at(hour, minute, 0, 0);
                return at
                    .to_zoned(TimeZone::UTC)
                    .ok()
                    .map(|zoned| zoned.timestamp());
            }
            day = day.checked_add(1.day()).ok()?;
            from = None;
        }
        None
    }

    fn day_matches(&self, day: civil::Date) -> bool {
        if !has(self.months, day.month()) {
            return false;
        }
        let in_month = has(self.days, day.day());
        let in_week = has(self.weekdays, day.weekday().to_sunday_zero_offset());
        if self.either_day {
            in_month || in_week
        } else {
            in_month && in_week
        }
    }

    /// The first matching time of a day strictly after `from`, or from midnight on.
    fn time_after(&self, from: Option<(i8, i8)>) -> Option<(i8, i8)> {
        let (from_hour, from_minute) = from.map_or((0, -1), |(hour, minute)| (hour, minute));
        (from_hour..24)
            .filter(|hour| has(self.hours, *hour))
            .find_map(|hour| {
                let first = if hour == from_hour {
                    from_minute + 1
                } else {
                    0
                };
                (first..60)
                    .find(|minute| has(self.minutes, *minute))
                    .map(|minute| (hour, minute))
            })
    }
}

fn has(set: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| set & (1_u64 << value) != 0)
}

impl FromStr for Schedule {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = |problem: String| UnitError::Schedule {
            text: text.to_owned(),
            problem,
        };
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(fail(format!("it has {} fields", fields.len())));
        };
        let parse = |name: &str, field: &str, low: u32, high: u32| {
            field_set(field, low, high).ok_or_else(|| {
                fail(format!(
                    "the {name} `{field}` is not made of numbers from {low} to {high}"
                ))
            })
        };
        let weekdays = parse("day of week", weekday, 0, 7)?;
        Ok(Self {
            text: text.to_owned(),
            minutes: parse("minute", minute, 0, 59)?,
            hours: parse("hour", hour, 0, 23)?,
            days: parse("day of month", day, 1, 31)?,
            months: parse("month", month, 1, 12)?,
            weekdays: (weekdays | (weekdays >> 7)) & 0x7f,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        })
    }
}

/// The numbers that one field names, as bits.
fn field_set(field: &str, low: u32, high: u32) -> Option<u64> {
    let mut set = 0_u64;
    for part in field.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, small_number(step)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (small_number(first)?, small_number(last)?),
            None if range == "*" => (low, high),
            // `5/10` means from 5 on, every 10.
            None if part.contains('/') => (small_number(range)?, high),
            None => (small_number(range)?, small_number(range)?),
        };
        if first < low || last > high || first > last || step == 0 {
            return None;
        }
        for value in (first..=last).step_by(usize::try_from(step).ok()?) {
            set |= 1_u64 << value;
        }
    }
    Some(set)
}

fn small_number(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 2 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({:?})", self.text)
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for Schedule {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Schedule".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 128,
            "x-kubernetes-validations": [{
                "rule": admission_rule(),
                "message": "not a schedule: write five cron fields in UTC (minute hour day-of-month month day-of-week), such as 0 3 1 1 *",
            }],
        })
    }
}

/// What the parser reads, in CEL: an object that the API server admits must be one that the operator can read.
fn admission_rule() -> String {
    let numbers = [
        "[0-5]?[0-9]",
        "([01]?[0-9]|2[0-3])",
        "(0?[1-9]|[12][0-9]|3[01])",
        "(0?[1-9]|1[0-2])",
        "0?[0-7]",
    ];
    let fields = numbers.map(|number| {
        let part = format!("([*]|{number}(-{number})?)(/(0?[1-9]|[1-9][0-9]))?");
        format!("{part}(,{part})*")
    });
    format!(
        "self.matches('^{}$') && self.findAll('[0-9]+-[0-9]+').all(range, int(range.split('-')[0]) <= int(range.split('-')[1]))",
        fields.join(" +")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        schedule
            .parse::<Schedule>()
            .unwrap()
            .next_after(after.parse().unwrap())
            .map_or_else(|| "never".to_owned(), |at| at.to_string())
    }

    #[test]
    fn the_next_run_is_the_first_matching_minute_after_now() {
        for (schedule, after, expected) in [
            ("0 3 1 1 *", "2026-11-24T18:00:00Z", "2027-01-01T03:00:00Z"),
            ("0 3 1 1 *", "2027-01-01T03:00:00Z", "2028-01-01T03:00:00Z"),
            (
                "*/15 * * * *",
                "2026-11-24T18:07:30Z",
                "2026-11-24T18:15:00Z",
            ),
            (
                "*/15 * * * *",
                "2026-11-24T23:59:59Z",
                "2026-11-25T00:00:00Z",
            ),
            ("30 2 * * 0", "2026-11-24T18:00:00Z", "2026-11-29T02:30:00Z"),
            ("30 2 * * 7", "2026-11-24T18:00:00Z", "2026-11-29T02:30:00Z"),
            ("0 0 29 2 *", "2026-11-24T18:00:00Z", "2028-02-29T00:00:00Z"),
            (
                "0 9-17/4 * * 1-5",
                "2026-11-27T13:30:00Z",
                "2026-11-27T17:00:00Z",
            ),
            (
                "0 12 1,15 * *",
                "2026-11-24T18:00:00Z",
                "2026-12-01T12:00:00Z",
            ),
            // Both days restricted: either one is enough.
            ("0 0 1 * 5", "2026-11-24T18:00:00Z", "2026-11-27T00:00:00Z"),
            ("0 0 30 2 *", "2026-11-24T18:00:00Z", "never"),
        ] {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn what_is_not_a_schedule_is_refused_with_what_is_wrong() {
        for (text, problem) in [
            ("", "it has 0 fields"),
            ("0 3 1 1", "it has 4 fields"),
            ("@yearly", "it has 1 fields"),
            ("60 3 1 1 *", "the minute `60`"),
            ("0 24 1 1 *", "the hour `24`"),
            ("0 3 0 1 *", "the day of month `0`"),
            ("0 3 1 13 *", "the month `13`"),
            ("0 3 1 1 8", "the day of week `8`"),
            ("*/0 3 1 1 *", "the minute `*/0`"),
            ("5-1 3 1 1 *", "the minute `5-1`"),
            ("1,,2 3 1 1 *", "the minute `1,,2`"),
        ] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(
                error.contains(problem) && error.contains("five cron fields"),
                "{text}: {error}"
            );
        }
    }
}
