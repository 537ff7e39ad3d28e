//! Names that are safe in a certificate's subject, a JAAS line, a file name and a label.

use std::fmt;

/// Longest common name: `ub-common-name` of RFC 5280.
const MAX: usize = 64;

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty or too long.
    #[error("the name has {0} characters: use 1 to 64")]
    Length(usize),
    /// A character that means something to a subject, a JAAS line, a file system or a shell.
    #[error("the name contains {0:?}: use only letters, digits and . _ @ -")]
    Character(char),
    /// Something that reads as an option, a hidden file or a path.
    #[error("the name starts or ends with {0:?}: start and end with a letter or a digit")]
    Edge(char),
}

/// A name of 1 to 64 characters of `A-Z a-z 0-9 . _ @ -` that starts and ends with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommonName(String);

impl CommonName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] with what to write instead.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if let Some(bad) = name
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '@' | '-')))
        {
            return Err(NameError::Character(bad));
        }
        if !(1..=MAX).contains(&name.len()) {
            return Err(NameError::Length(name.len()));
        }
        let edge = [name.chars().next(), name.chars().next_back()];
        if let Some(bad) = edge
            .into_iter()
            .flatten()
            .find(|c| !c.is_ascii_alphanumeric())
        {
            return Err(NameError::Edge(bad));
        }
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_mean_something_elsewhere_are_refused() {
        for (name, message) in [
            ("", "the name has 0 characters: use 1 to 64"),
            (
                "al\"ice",
                "the name contains '\"': use only letters, digits and . _ @ -",
            ),
            (
                "alice\nbob",
                "the name contains '\\n': use only letters, digits and . _ @ -",
            ),
            (
                "alice,O=admins",
                "the name contains ',': use only letters, digits and . _ @ -",
            ),
            (
                "al\\ice",
                "the name contains '\\\\': use only letters, digits and . _ @ -",
            ),
            (
                "a;b",
                "the name contains ';': use only letters, digits and . _ @ -",
            ),
            (
                "älice",
                "the name contains 'ä': use only letters, digits and . _ @ -",
            ),
            (
                "../alice",
                "the name contains '/': use only letters, digits and . _ @ -",
            ),
            (
                "..alice",
                "the name starts or ends with '.': start and end with a letter or a digit",
            ),
            (
                "-rf",
                "the name starts or ends with '-': start and end with a letter or a digit",
            ),
        ] {
            assert_eq!(CommonName::new(name).unwrap_err().to_string(), message);
        }
        assert_eq!(
            CommonName::new("a".repeat(65)).unwrap_err(),
            NameError::Length(65)
        );
    }

    #[test]
    fn ordinary_names_pass() {
        for name in [
            "alice",
            "client-1",
            "Analytics_Service",
            "bob@example.com",
            "a.b-c",
            "7",
        ] {
            assert_eq!(CommonName::new(name).unwrap().as_str(), name);
        }
    }
}
