//! What a topic may be called: Kafka's rules.

use serde::{Deserialize, Serialize};

/// Longest name: a partition's directory, `<name>-<index>`, used to be a file name.
pub const MAX_TOPIC_NAME: usize = 249;

/// Why a string is no topic name. The messages are Kafka's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TopicNameError {
    /// Nothing there.
    #[error("the topic name is invalid: the empty string is not allowed")]
    Empty,
    /// `.` or `..`.
    #[error("the topic name is invalid: '.' or '..' are not allowed")]
    Dots,
    /// Longer than [`MAX_TOPIC_NAME`].
    #[error("the topic name is invalid: {0} characters, at most {MAX_TOPIC_NAME} are allowed")]
    TooLong(usize),
    /// Another character.
    #[error(
        "the topic name is invalid: it contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
    )]
    Characters,
}

/// Checks a topic name.
///
/// # Errors
/// [`TopicNameError`].
pub fn check_topic_name(name: &str) -> Result<(), TopicNameError> {
    if name.is_empty() {
        return Err(TopicNameError::Empty);
    }
    if name == "." || name == ".." {
        return Err(TopicNameError::Dots);
    }
    if name.len() > MAX_TOPIC_NAME {
        return Err(TopicNameError::TooLong(name.chars().count()));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.bytes().all(allowed) {
        return Err(TopicNameError::Characters);
    }
    Ok(())
}

/// The name with dots as underscores: two topics with the same one collide.
#[must_use]
pub fn collision_key(name: &str) -> String {
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_rules() {
        for name in ["a", "user-events", "A.b_c-9", "...", "__consumer_offsets"] {
            assert_eq!(check_topic_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_topic_name(""), Err(TopicNameError::Empty));
        assert_eq!(check_topic_name("."), Err(TopicNameError::Dots));
        assert_eq!(check_topic_name(".."), Err(TopicNameError::Dots));
        for name in ["a b", "a/b", "ä", "a\n", "a:b", "\0"] {
            assert_eq!(
                check_topic_name(name),
                Err(TopicNameError::Characters),
                "{name}"
            );
        }
        assert_eq!(check_topic_name(&"x".repeat(249)), Ok(()));
        assert_eq!(
            check_topic_name(&"x".repeat(250)),
            Err(TopicNameError::TooLong(250))
        );
    }

    #[test]
    fn dots_and_underscores_collide() {
        assert_eq!(collision_key("a.b"), collision_key("a_b"));
        assert_ne!(collision_key("a-b"), collision_key("a_b"));
    }
}
