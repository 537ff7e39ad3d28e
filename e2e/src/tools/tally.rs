//! Counting lines of a file that grows.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// How many lines of a file hold a text. What was counted once is not read again.
#[derive(Debug)]
pub struct Tally {
    path: PathBuf,
    text: &'static str,
    /// Where the first line begins that was not complete yet.
    offset: u64,
    count: usize,
}

impl Tally {
    /// Of a program's log, which need not exist yet.
    #[must_use]
    pub fn new(path: &Path, text: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            text,
            offset: 0,
            count: 0,
        }
    }

    /// The lines so far. One that is still being written counts later.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count(&mut self) -> Result<usize> {
        let appended = self
            .appended()
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        let end = appended.iter().rposition(|byte| *byte == b'\n');
        let complete = &appended[..end.map_or(0, |end| end + 1)];
        self.offset += u64::try_from(complete.len())?;
        let lines = String::from_utf8_lossy(complete);
        self.count += lines
            .lines()
            .filter(|line| line.contains(self.text))
            .count();
        Ok(self.count)
    }

    fn appended(&self) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[test]
    fn a_line_counts_once_and_only_when_it_is_complete() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut tally = Tally::new(file.path(), "sent");
        assert_eq!(tally.count().unwrap(), 0);
        file.write_all(b"sent 1\nfailed 2\nsent 3\nse").unwrap();
        assert_eq!(tally.count().unwrap(), 2);
        assert_eq!(tally.count().unwrap(), 2);
        file.write_all(b"nt 4").unwrap();
        assert_eq!(tally.count().unwrap(), 2);
        file.write_all(b"\n").unwrap();
        assert_eq!(tally.count().unwrap(), 3);
    }
}
