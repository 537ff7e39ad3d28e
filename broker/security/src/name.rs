//! Which strings may name a user.
//!
//! A name travels into log lines, ACLs, certificate subjects and configuration files, so whatever could end a line or
//! hide part of one is refused at the door. Quotes, commas and spaces are ordinary characters here: whoever writes a
//! name into a format with quoting quotes it.

use serde::{Deserialize, Serialize};

/// Longest name in bytes; certificate subjects are the long ones.
pub const MAX_NAME_BYTES: usize = 1024;

/// Why a string cannot be a user name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing there.
    #[error("the user name is empty")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("the user name has {0} bytes, at most {MAX_NAME_BYTES} are allowed")]
    TooLong(usize),
    /// A control character, a line separator or a character that reorders text.
    #[error(
        "the user name contains the character U+{code:04X} at byte {at}; control characters, line breaks and \
         text-direction marks are not allowed"
    )]
    Forbidden {
        /// Code point of the character.
        code: u32,
        /// Byte offset in the name.
        at: usize,
    },
}

/// Checks that `name` may name a user.
///
/// # Errors
/// [`NameError`] with the first thing that is wrong; the message never repeats the name itself, so it is safe to log.
pub fn check_user_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(name.len()));
    }
    match name
        .char_indices()
        .find(|(_, character)| forbidden(*character))
    {
        Some((at, character)) => Err(NameError::Forbidden {
            code: u32::from(character),
            at,
        }),
        None => Ok(()),
    }
}

/// Control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls and the byte order mark.
fn forbidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_commas_spaces_and_accents_are_ordinary() {
        for name in [
            "alice",
            "O'Brien",
            "a \"quoted\" name",
            "a,b=c",
            "O=test,CN=alice",
            "jörg",
        ] {
            assert_eq!(check_user_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn whatever_could_break_a_line_is_refused_with_its_place() {
        for (name, code, at) in [
            ("a\nb", 0x0A, 1),
            ("\0", 0, 0),
            ("ab\u{2028}", 0x2028, 2),
            ("x\u{202E}y", 0x202E, 1),
            ("\u{85}", 0x85, 0),
        ] {
            assert_eq!(
                check_user_name(name),
                Err(NameError::Forbidden { code, at })
            );
        }
    }

    #[test]
    fn empty_and_oversized_names_are_refused() {
        assert_eq!(check_user_name(""), Err(NameError::Empty));
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert_eq!(
            check_user_name(&long),
            Err(NameError::TooLong(MAX_NAME_BYTES + 1))
        );
    }

    #[test]
    fn the_message_does_not_repeat_the_name() {
        let message = NameError::Forbidden { code: 0x0A, at: 3 }.to_string();
        assert!(message.contains("U+000A at byte 3"), "{message}");
    }
}
