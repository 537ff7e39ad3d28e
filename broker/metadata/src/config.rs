//! Configurations of topics: which there are, what they may be, and what counts when several places set one.
//!
//! A topic's override wins over the brokers' dynamic default, which wins over the built-in default; Kafka's names differ
//! between topics (`retention.ms`) and brokers (`log.retention.ms`).

mod definition;
mod settings;
mod table;

use std::{borrow::Cow, collections::BTreeMap};

pub use definition::{Allowed, ConfigDefinition, ConfigKind, Effective, Source};
pub use settings::{CleanupPolicy, TimestampType, TopicSettings};
pub use table::TOPIC_CONFIGS;

use serde::{Deserialize, Serialize};

use crate::command::ConfigOp;

/// Overrides that one resource may have.
pub(crate) const MAX_OVERRIDES: usize = 100;

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such config.
    #[error("unknown topic config name: {0}")]
    UnknownTopicConfig(String),
    /// No such dynamic config of brokers.
    #[error(
        "`{0}` is not a dynamic broker config: what a broker reads from its configuration file is changed there"
    )]
    UnknownBrokerConfig(String),
    /// Not a value of this config.
    #[error("invalid value `{value}` for configuration {name}: {reason}")]
    Value {
        /// The config.
        name: Cow<'static, str>,
        /// The value, shortened.
        value: String,
        /// What it may be.
        reason: String,
    },
    /// The config exists in Kafka, but another value than the default would have no effect here.
    #[error("configuration {name} cannot be changed from `{default}`: {reason}")]
    Fixed {
        /// The config.
        name: Cow<'static, str>,
        /// Its only value.
        default: Cow<'static, str>,
        /// Why.
        reason: Cow<'static, str>,
    },
    /// The config is no list.
    #[error(
        "configuration {0} is not a list: it can be set or deleted, not appended to or subtracted from"
    )]
    NotAList(String),
    /// The same config twice in one request.
    #[error("the request changes configuration {0} more than once")]
    Duplicate(String),
    /// Two values that contradict each other.
    #[error("{0}")]
    Contradiction(Cow<'static, str>),
    /// Too many.
    #[error("more than {MAX_OVERRIDES} overrides")]
    TooMany,
}

/// The names that a set of overrides is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Names of topic configs.
    Topic,
    /// Names of broker configs.
    Broker,
}

impl Namespace {
    /// The definition of a config by its name in this namespace.
    ///
    /// # Errors
    /// [`ConfigError`] for a name that does not exist.
    pub fn find(self, name: &str) -> Result<&'static ConfigDefinition, ConfigError> {
        TOPIC_CONFIGS
            .iter()
            .find(|definition| match self {
                Self::Topic => definition.name == name,
                Self::Broker => definition.broker_name == Some(name),
            })
            .ok_or_else(|| match self {
                Self::Topic => ConfigError::UnknownTopicConfig(shorten(name)),
                Self::Broker => ConfigError::UnknownBrokerConfig(shorten(name)),
            })
    }

    /// Checks a whole set of overrides, as it would be stored.
    ///
    /// # Errors
    /// [`ConfigError`] for the first one that is wrong.
    pub fn check(self, overrides: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        if overrides.len() > MAX_OVERRIDES {
            return Err(ConfigError::TooMany);
        }
        for (name, value) in overrides {
            self.find(name)?.check(value)?;
        }
        self.check_together(overrides)
    }

    /// Checks the values that limit each other, in all that one resource would have then.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`].
    pub fn check_together(self, all: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let (shortest, longest) = match self {
            Self::Topic => ("min.compaction.lag.ms", "max.compaction.lag.ms"),
            Self::Broker => (
                "log.cleaner.min.compaction.lag.ms",
                "log.cleaner.max.compaction.lag.ms",
            ),
        };
        let number = |name: &str| all.get(name)?.trim().parse::<i64>().ok();
        match (number(shortest), number(longest)) {
            (Some(least), Some(most)) if least > most => Err(ConfigError::Contradiction(
                format!("{shortest} is greater than {longest}").into(),
            )),
            _ => Ok(()),
        }
    }

    /// Checks the operations by themselves: known names, each once, lists where lists are needed.
    ///
    /// # Errors
    /// [`ConfigError`] for the first one that is wrong.
    pub fn check_ops(self, ops: &[ConfigOp]) -> Result<(), ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for op in ops {
            if !seen.insert(op.name()) {
                return Err(ConfigError::Duplicate(shorten(op.name())));
            }
            // A name that does not exist may be deleted: it may have been known to an older version.
            if matches!(op, ConfigOp::Delete { .. }) {
                continue;
            }
            let definition = self.find(op.name())?;
            let needs_list = matches!(op, ConfigOp::Append { .. } | ConfigOp::Subtract { .. });
            if needs_list && definition.kind != ConfigKind::List {
                return Err(ConfigError::NotAList(op.name().to_owned()));
            }
        }
        Ok(())
    }

    /// The overrides after the operations. Does not check values: this runs on every broker with whatever the log holds.
    ///
    /// An append or a subtraction with no override starts from the built-in default; defaults of lists are therefore part
    /// of the log's format.
    #[must_use]
    pub fn altered(
        self,
        current: &BTreeMap<String, String>,
        replace: bool,
        ops: &[ConfigOp],
    ) -> BTreeMap<String, String> {
        let mut next = if replace {
            BTreeMap::new()
        } else {
            current.clone()
        };
        for op in ops {
            match op {
                ConfigOp::Set { name, value } => {
                    next.insert(name.clone(), value.clone());
                }
                ConfigOp::Delete { name } => {
                    next.remove(name);
                }
                ConfigOp::Append { name, value } => {
                    let mut items = self.items(&next, name);
                    for item in list_items(value) {
                        if !items.iter().any(|known| known == item) {
                            items.push(item.to_owned());
                        }
                    }
                    next.insert(name.clone(), items.join(","));
                }
                ConfigOp::Subtract { name, value } => {
                    let mut items = self.items(&next, name);
                    items.retain(|item| !list_items(value).any(|gone| gone == item));
                    next.insert(name.clone(), items.join(","));
                }
            }
        }
        next
    }

    fn items(self, overrides: &BTreeMap<String, String>, name: &str) -> Vec<String> {
        let value = overrides.get(name).map(String::as_str);
        let value = value
            .or_else(|| self.find(name).ok().map(|definition| definition.default))
            .unwrap_or_default();
        list_items(value).map(str::to_owned).collect()
    }
}

/// The items of a list, without blanks and empty ones.
pub(crate) fn list_items(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// A user's text as it may stand in a message.
fn shorten(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests;
