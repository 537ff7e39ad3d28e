//! Sizes, periods and schedules as people write them, checked by the schema and by these parsers alike.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod schedule;

pub use schedule::Schedule;

/// Text that is not the size, period or schedule it should be; the message says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// Not a size.
    #[error(
        "`{0}` is not a size: write a whole number of bytes, or one with Ki, Mi, Gi, Ti, k, M, G or T, such as 10Mi"
    )]
    Size(String),
    /// Not a period.
    #[error(
        "`{0}` is not a period: write days, hours, minutes and seconds such as 90d, 24h or 1h30m, or ISO 8601 such as P90D"
    )]
    Period(String),
    /// Not a schedule.
    #[error(
        "`{text}` is not a schedule: {problem}; write five cron fields (minute hour day-of-month month day-of-week), such as `0 3 1 1 *`"
    )]
    Schedule {
        /// The text as it was written.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Implements text (de)serialisation and the schema of a newtype whose form on the wire is a string.
macro_rules! text_type {
    ($type:ident, max = $max:literal, rule = $rule:literal, message = $message:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'_, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "maxLength": $max,
                    "x-kubernetes-validations": [{
                        "rule": $rule,
                        "message": $message,
                    }],
                })
            }
        }
    };
}

/// A number of bytes, or of bytes a second: `10Mi`, `1Gi`, `65536`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

text_type!(
    Size,
    max = 20,
    rule = "self.matches('^([0-9]{1,15}|[0-9]{1,12}(Ki|k)|[0-9]{1,9}(Mi|M)|[0-9]{1,6}(Gi|G)|[0-9]{1,4}(Ti|T))$')",
    message = "not a size: write a whole number of bytes, or one with Ki, Mi, Gi, Ti, k, M, G or T, such as 10Mi"
);

const SIZE_UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl Size {
    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (digits, factor) = SIZE_UNITS
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, *factor)))
            .unwrap_or((text, 1));
        whole_number(digits)
            .and_then(|number| number.checked_mul(factor))
            .map(Self)
            .ok_or_else(|| UnitError::Size(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZE_UNITS
            .iter()
            .take(4)
            .rev()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A length of time in whole seconds: `90d`, `24h`, `1h30m`, or ISO 8601 (`P90D`, `PT24H`). A day is 24 hours; months and years are
/// not accepted because their length varies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(Duration);

text_type!(
    Period,
    max = 32,
    rule = "self.matches('^(([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,9}s)?|P([0-9]{1,6}W|([0-9]{1,6}D)?(T([0-9]{1,6}H)?([0-9]{1,6}M)?([0-9]{1,9}S)?)?))$') && self.matches('[0-9][dhmsWDHMS]$')",
    message = "not a period: write days, hours, minutes and seconds such as 90d, 24h or 1h30m, or ISO 8601 such as P90D"
);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

impl Period {
    /// A period of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A period of whole days.
    #[must_use]
    pub const fn from_days(days: u32) -> Self {
        Self::from_secs(days as u64 * DAY)
    }

    /// The same as a [`Duration`].
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// The number of seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0.as_secs()
    }
}

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let seconds = match text.strip_prefix('P') {
            Some(iso) => iso_seconds(iso),
            None => sum_of_parts(text, &[('d', DAY), ('h', HOUR), ('m', MINUTE), ('s', 1)]),
        };
        seconds
            .map(Self::from_secs)
            .ok_or_else(|| UnitError::Period(text.to_owned()))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.seconds();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, length) in [('d', DAY), ('h', HOUR), ('m', MINUTE), ('s', 1)] {
            if rest >= length {
                write!(f, "{}{unit}", rest / length)?;
                rest %= length;
            }
        }
        Ok(())
    }
}

/// What follows `P` in an ISO 8601 duration of weeks, days, hours, minutes and seconds.
fn iso_seconds(text: &str) -> Option<u64> {
    if let Some(weeks) = text.strip_suffix('W') {
        return whole_number(weeks)?.checked_mul(7 * DAY);
    }
    let time_units = [('H', HOUR), ('M', MINUTE), ('S', 1)];
    match text.split_once('T') {
        None => sum_of_parts(text, &[('D', DAY)]),
        Some(("", time)) => sum_of_parts(time, &time_units),
        Some((days, time)) => {
            sum_of_parts(days, &[('D', DAY)])?.checked_add(sum_of_parts(time, &time_units)?)
        }
    }
}

/// Adds up `<number><unit>` parts, each unit at most once and in the order given; at least one part.
fn sum_of_parts(text: &str, units: &[(char, u64)]) -> Option<u64> {
    let mut units = units.iter();
    let mut rest = text;
    let mut total = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (digits, tail) = rest.split_at_checked(end)?;
        let unit = tail.chars().next()?;
        let (_, length) = units.by_ref().find(|(candidate, _)| *candidate == unit)?;
        total = total.checked_add(whole_number(digits)?.checked_mul(*length)?)?;
        rest = tail.get(unit.len_utf8()..)?;
    }
    Some(total)
}

/// A decimal number of ASCII digits only: no sign, no space.
fn whole_number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_read_as_written_and_print_back() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10Mi", 10 << 20),
            ("100Gi", 100 << 30),
            ("3k", 3000),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        assert_eq!(Size(10 << 20).to_string(), "10Mi");
        assert_eq!(Size(1000).to_string(), "1000");
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_advice() {
        for text in [
            "",
            "ten",
            "-1",
            "+1",
            " 1",
            "1.5Gi",
            "99999999999Ti",
            "Mi",
            "10mi",
        ] {
            assert!(
                text.parse::<Size>()
                    .unwrap_err()
                    .to_string()
                    .contains("such as 10Mi"),
                "{text}"
            );
        }
    }

    #[test]
    fn periods_read_go_style_and_iso() {
        for (text, seconds) in [
            ("90d", 90 * DAY),
            ("24h", DAY),
            ("1h30m", 5400),
            ("1d12h", 36 * HOUR),
            ("45s", 45),
            ("P90D", 90 * DAY),
            ("PT24H", DAY),
            ("P1DT12H", 36 * HOUR),
            ("P2W", 14 * DAY),
            ("PT1H30M5S", 5405),
        ] {
            assert_eq!(text.parse::<Period>().unwrap().seconds(), seconds, "{text}");
        }
    }

    #[test]
    fn periods_print_in_a_form_that_reads_back() {
        for seconds in [0, 1, 59, 60, 3600, 5405, DAY, 36 * HOUR, 1095 * DAY] {
            let period = Period::from_secs(seconds);
            assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
        }
        assert_eq!(Period::from_days(1095).to_string(), "1095d");
    }

    #[test]
    fn what_is_not_a_period_is_refused_with_advice() {
        for text in [
            "",
            "90",
            "d",
            "1.5h",
            "-1h",
            "30m1h",
            "1h1h",
            "1y",
            "P",
            "PT",
            "P1M",
            "P1Y",
            "1h ",
            "99999999999999999999d",
            "P1DT",
        ] {
            assert!(
                text.parse::<Period>()
                    .unwrap_err()
                    .to_string()
                    .contains("such as 90d"),
                "{text}"
            );
        }
    }
}
