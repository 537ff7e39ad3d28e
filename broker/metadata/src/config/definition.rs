//! One config: its name, type, range and default.

use std::collections::BTreeMap;

use super::{ConfigError, list_items, shorten};

/// Longest value, far above what any config needs: what is stored is copied and sent with every image.
const MAX_VALUE_BYTES: usize = 256;

/// The type of a config, with Kafka's code in `DescribeConfigs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigKind {
    /// `true` or `false`.
    Boolean,
    /// Text.
    String,
    /// A 32-bit integer.
    Int,
    /// A 64-bit integer.
    Long,
    /// A decimal number.
    Double,
    /// Items separated by commas.
    List,
}

impl ConfigKind {
    /// Kafka's code.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::Boolean => 1,
            Self::String => 2,
            Self::Int => 3,
            Self::Long => 5,
            Self::Double => 6,
            Self::List => 7,
        }
    }
}

/// What a config may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed {
    /// A number from the first to the second, both included.
    Integer(i64, i64),
    /// A decimal number from 0 to 1.
    Ratio,
    /// `true` or `false`.
    Boolean,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Some of these, at least one.
    SomeOf(&'static [&'static str]),
    /// Only the default, for this reason.
    Fixed(&'static str),
}

/// One config of topics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConfigDefinition {
    /// Name of the topic config.
    pub name: &'static str,
    /// Name of the broker config that is its dynamic default.
    pub broker_name: Option<&'static str>,
    /// Its type.
    pub kind: ConfigKind,
    /// What it may be.
    pub allowed: Allowed,
    /// The built-in default.
    pub default: &'static str,
    /// What it does, for `DescribeConfigs` with documentation.
    pub doc: &'static str,
}

impl ConfigDefinition {
    /// Checks a value.
    ///
    /// # Errors
    /// [`ConfigError`] that says what the value may be.
    pub fn check(&self, value: &str) -> Result<(), ConfigError> {
        let invalid = |reason: String| ConfigError::Value {
            name: self.name.into(),
            value: shorten(value),
            reason,
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(invalid(format!(
                "must have at most {MAX_VALUE_BYTES} bytes"
            )));
        }
        match self.allowed {
            Allowed::Integer(least, most) => match value.trim().parse::<i64>() {
                Ok(number) if (least..=most).contains(&number) => Ok(()),
                Ok(_) => Err(invalid(format!("must be between {least} and {most}"))),
                Err(_) => Err(invalid("must be an integer".to_owned())),
            },
            Allowed::Ratio => match value.trim().parse::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
                _ => Err(invalid("must be a number between 0 and 1".to_owned())),
            },
            Allowed::Boolean => match value.trim() {
                "true" | "false" => Ok(()),
                _ => Err(invalid("must be true or false".to_owned())),
            },
            Allowed::OneOf(values) => {
                if values.contains(&value) {
                    Ok(())
                } else {
                    Err(invalid(format!("must be one of {}", values.join(", "))))
                }
            }
            Allowed::SomeOf(values) => {
                let mut items = list_items(value).peekable();
                if items.peek().is_some() && items.all(|item| values.contains(&item)) {
                    Ok(())
                } else {
                    Err(invalid(format!(
                        "must be one or more of {}",
                        values.join(", ")
                    )))
                }
            }
            Allowed::Fixed(reason) => {
                if value.trim() == self.default {
                    Ok(())
                } else {
                    Err(ConfigError::Fixed {
                        name: self.name.into(),
                        default: self.default.into(),
                        reason: reason.into(),
                    })
                }
            }
        }
    }

    /// The value that counts, and where it comes from.
    #[must_use]
    pub fn effective<'a>(
        &'static self,
        topic: &'a BTreeMap<String, String>,
        brokers: &'a BTreeMap<String, String>,
    ) -> Effective<'a> {
        let from_brokers = || self.broker_name.and_then(|name| brokers.get(name));
        let (value, source) = match (topic.get(self.name), from_brokers()) {
            (Some(value), _) => (value.as_str(), Source::Topic),
            (None, Some(value)) => (value.as_str(), Source::Brokers),
            (None, None) => (self.default, Source::Default),
        };
        Effective {
            definition: self,
            value,
            source,
        }
    }
}

/// Where a value comes from, with Kafka's code in `DescribeConfigs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The topic's override.
    Topic,
    /// The brokers' dynamic default.
    Brokers,
    /// The built-in default.
    Default,
}

impl Source {
    /// Kafka's code.
    #[must_use]
    pub const fn code(self) -> i8 {
        match self {
            Self::Topic => 1,
            Self::Brokers => 3,
            Self::Default => 5,
        }
    }
}

/// A config's value that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effective<'a> {
    /// Which config.
    pub definition: &'static ConfigDefinition,
    /// Its value.
    pub value: &'a str,
    /// Where it comes from.
    pub source: Source,
}

impl Effective<'_> {
    /// The value as a number; the default's when a stored value is none, which checked values never are.
    #[must_use]
    pub fn as_i64(&self) -> i64 {
        let read = |text: &str| text.trim().parse().ok();
        read(self.value)
            .or_else(|| read(self.definition.default))
            .unwrap_or(0)
    }
}
