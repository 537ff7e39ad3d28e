//! The table at the end.

use std::{fmt::Write as _, io::Write as _, time::Duration};

use anyhow::Result;

use crate::scenario::Shown;

/// Prints the table and what follows it on standard output.
///
/// # Errors
/// When standard output is closed.
pub(super) fn print(shown: &[Shown], took: Duration, farewell: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(
        out,
        "\n{}\nShown in {:.0} s.\n\n{farewell}",
        render(shown),
        took.as_secs_f32()
    )?;
    Ok(())
}

fn render(shown: &[Shown]) -> String {
    let width = shown
        .iter()
        .map(|row| row.claim.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for row in shown {
        let _ = writeln!(text, "  ok  {:width$}  {}", row.claim, row.evidence);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_stands_in_one_column() {
        let row = |claim, evidence: &str| Shown {
            claim,
            evidence: evidence.to_owned(),
        };
        let text = render(&[row("a", "one"), row("longer", "two")]);
        assert_eq!(text, "  ok  a       one\n  ok  longer  two\n");
    }
}
