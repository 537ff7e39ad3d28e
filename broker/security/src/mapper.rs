//! From a client certificate to a principal's name: Kafka's `ssl.principal.mapping.rules`.

mod distinguished_name;

use regex::Regex;

use crate::name::{NameError, check_user_name};

pub use distinguished_name::{SubjectError, rfc2253_subject};

/// Longest rule that is compiled.
const MAX_RULE_BYTES: usize = 4096;
const MAX_RULES: usize = 64;

/// The rules of a listener, in order; the first whose pattern matches the whole subject names the user.
#[derive(Clone, Debug)]
pub struct PrincipalMapper {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
enum Rule {
    /// The subject as it is.
    Default,
    Replace {
        pattern: Regex,
        replacement: String,
        case: Case,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    AsIs,
    Lower,
    Upper,
}

/// Why a rule cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// Not one of the two shapes.
    #[error(
        "principal mapping rule `{0}` is neither `DEFAULT` nor `RULE:pattern/replacement/[LU]`"
    )]
    Shape(String),
    /// The pattern does not compile.
    #[error("the pattern of principal mapping rule `{rule}` is not usable: {reason}")]
    Pattern {
        /// The rule.
        rule: String,
        /// What the regular-expression engine says.
        reason: String,
    },
    /// Too long or too many.
    #[error("principal mapping rules: at most {MAX_RULES} of at most {MAX_RULE_BYTES} bytes")]
    Limit,
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The subject cannot be read.
    #[error("cannot read the subject of the client certificate: {0}")]
    Subject(#[from] SubjectError),
    /// No rule applies.
    #[error(
        "no principal mapping rule applies to the certificate subject `{0}`: add DEFAULT as the last rule to take it as it is"
    )]
    NoRule(String),
    /// The name is not allowed.
    #[error("the certificate gives no usable principal: {0}")]
    Name(#[from] NameError),
}

impl PrincipalMapper {
    /// A mapper with these rules; each string holds one rule, or several separated by commas as in Kafka's properties.
    /// None at all means `DEFAULT`.
    ///
    /// # Errors
    /// [`RuleError`] for the first rule that cannot be used.
    pub fn parse<S: AsRef<str>>(rules: &[S]) -> Result<Self, RuleError> {
        let mut parsed = Vec::new();
        for text in rules {
            let mut rest = text.as_ref().trim();
            if rest.len() > MAX_RULE_BYTES * MAX_RULES {
                return Err(RuleError::Limit);
            }
            while !rest.is_empty() {
                if parsed.len() >= MAX_RULES {
                    return Err(RuleError::Limit);
                }
                let (rule, after) = parse_rule(rest)?;
                parsed.push(rule);
                rest = after;
            }
        }
        if parsed.is_empty() {
            parsed.push(Rule::Default);
        }
        Ok(Self { rules: parsed })
    }

    /// The user name of a certificate (DER).
    ///
    /// # Errors
    /// [`MapError`] when the subject is unreadable, no rule applies, or the result is not a user name.
    pub fn map_certificate(&self, der: &[u8]) -> Result<String, MapError> {
        self.map_subject(&rfc2253_subject(der)?)
    }

    /// The user name of a subject in RFC 2253 form.
    ///
    /// # Errors
    /// [`MapError`] when no rule applies, or the result is not a user name.
    pub fn map_subject(&self, subject: &str) -> Result<String, MapError> {
        // Checked before it is matched, and before it can appear in a message.
        check_user_name(subject)?;
        let name = self
            .rules
            .iter()
            .find_map(|rule| rule.apply(subject))
            .ok_or_else(|| MapError::NoRule(subject.to_owned()))?;
        check_user_name(&name)?;
        Ok(name)
    }
}

impl Default for PrincipalMapper {
    fn default() -> Self {
        Self {
            rules: vec![Rule::Default],
        }
    }
}

impl Rule {
    fn apply(&self, subject: &str) -> Option<String> {
        let Self::Replace {
            pattern,
            replacement,
            case,
        } = self
        else {
            return Some(subject.to_owned());
        };
        let groups = pattern.captures(subject)?;
        let mut name = String::new();
        let mut characters = replacement.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' => name.extend(characters.next()),
                '$' => {
                    // As many digits as still name a group, the way Java reads them; `$` alone is a dollar sign.
                    let mut group: Option<usize> = None;
                    while let Some(digit) = characters.peek().and_then(|next| next.to_digit(10)) {
                        let longer = group.unwrap_or(0).saturating_mul(10) + digit as usize;
                        if longer >= groups.len() {
                            break;
                        }
                        group = Some(longer);
                        characters.next();
                    }
                    match group {
                        Some(group) => {
                            name.push_str(groups.get(group).map_or("", |found| found.as_str()));
                        }
                        None => name.push('$'),
                    }
                }
                other => name.push(other),
            }
        }
        Some(match case {
            Case::AsIs => name,
            Case::Lower => name.to_lowercase(),
            Case::Upper => name.to_uppercase(),
        })
    }
}

/// Takes the first rule off `text`; what follows its comma is returned with it.
fn parse_rule(text: &str) -> Result<(Rule, &str), RuleError> {
    let shape = || RuleError::Shape(shorten(text));
    if let Some(rest) = text.strip_prefix("DEFAULT") {
        return Ok((Rule::Default, after_comma(rest).ok_or_else(shape)?));
    }
    let body = text.strip_prefix("RULE:").ok_or_else(shape)?;
    let (pattern, rest) = until_slash(body).ok_or_else(shape)?;
    let (replacement, rest) = until_slash(rest).ok_or_else(shape)?;
    if pattern.len() + replacement.len() > MAX_RULE_BYTES {
        return Err(RuleError::Limit);
    }
    let (case, rest) = match rest.chars().next() {
        Some('L') => (Case::Lower, rest.get(1..).unwrap_or_default()),
        Some('U') => (Case::Upper, rest.get(1..).unwrap_or_default()),
        _ => (Case::AsIs, rest),
    };
    let rest = after_comma(rest).ok_or_else(shape)?;
    // The whole subject has to match, whatever anchors the pattern has.
    let pattern = regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(1 << 20)
        .build()
        .map_err(|error| RuleError::Pattern {
            rule: shorten(text),
            reason: error.to_string(),
        })?;
    Ok((
        Rule::Replace {
            pattern,
            replacement: replacement.to_owned(),
            case,
        },
        rest,
    ))
}

/// Splits at the first `/` that no backslash precedes.
fn until_slash(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '/' => return Some((text.get(..at)?, text.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

/// What follows the comma; empty at the end; `None` when something else stands there.
fn after_comma(rest: &str) -> Option<&str> {
    let rest = rest.trim_start();
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_prefix(',').map(str::trim_start)
}

fn shorten(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(120)
        .collect()
}

#[cfg(test)]
mod tests;
