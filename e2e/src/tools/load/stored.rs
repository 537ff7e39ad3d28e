//! What a topic holds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::Acknowledged;
use crate::tools::{Access, Kcat};

/// The numbers that producers gave their records, by partition and offset.
#[derive(Clone, Debug)]
pub struct Stored(BTreeMap<(i64, i64), u64>);

impl Stored {
    /// Reads a topic whose values begin with a number, which is followed by nothing or a space.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub fn read(reader: &Access, topic: &str) -> Result<Self> {
        let text = Kcat::new(reader)?
            .consume(topic, &["-f", "%p %o %s\n"])?
            .success()?
            .stdout;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut stored = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split(' ').map(str::parse::<u64>);
            let (Some(Ok(partition)), Some(Ok(offset)), Some(Ok(number))) =
                (words.next(), words.next(), words.next())
            else {
                anyhow::bail!("no record of a test: {line}");
            };
            let place = (i64::try_from(partition)?, i64::try_from(offset)?);
            let before = stored.insert(place, number);
            ensure!(before.is_none(), "{place:?} was read twice");
        }
        Ok(Self(stored))
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn at(&self, partition: i64, offset: i64) -> Option<u64> {
        self.0.get(&(partition, offset)).copied()
    }

    /// Checks the records of one producer against what it was told: see the module.
    pub(super) fn check(&self, acknowledged: &[Acknowledged]) -> Result<()> {
        let mut numbers = BTreeSet::new();
        let mut last: Option<((i64, i64), u64)> = None;
        for (&(partition, offset), &number) in &self.0 {
            ensure!(numbers.insert(number), "record {number} is stored twice");
            let next = match last {
                Some(((before, offset), last)) if before == partition => {
                    ensure!(
                        last < number,
                        "record {number} follows {last} in partition {partition}"
                    );
                    offset + 1
                }
                _ => 0,
            };
            ensure!(
                offset == next,
                "partition {partition} has a record at {offset} and none at {next}"
            );
            last = Some(((partition, offset), number));
        }
        for told in acknowledged {
            let place = (told.partition, told.offset);
            let found = match told.offset {
                Some(offset) => self
                    .at(told.partition, offset)
                    .with_context(|| format!("acknowledged and lost: {told:?}"))?,
                None => match told.number {
                    Some(number) if numbers.contains(&number) => number,
                    Some(_) => anyhow::bail!("acknowledged and lost: {told:?}"),
                    // Its producer counts what is stored.
                    None => continue,
                },
            };
            let expected = told.number.unwrap_or(found);
            ensure!(
                found == expected,
                "record {expected} was acknowledged at {place:?}, where {found} is"
            );
        }
        Ok(())
    }

    /// Checks that exactly the records 0 to `count` - 1 are there.
    pub(super) fn holds_all(&self, count: usize) -> Result<()> {
        let numbers: BTreeSet<u64> = self.0.values().copied().collect();
        let missing = (0..count as u64).find(|number| !numbers.contains(number));
        ensure!(missing.is_none(), "record {missing:?} is lost");
        ensure!(
            self.len() == count,
            "{} records of {count} are stored",
            self.len()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(partition: i64, offset: Option<i64>, number: Option<u64>) -> Acknowledged {
        Acknowledged {
            at: 0,
            partition,
            offset,
            number,
            broker: None,
        }
    }

    fn check(text: &str, told: &[Acknowledged]) -> String {
        let stored = Stored::parse(text).unwrap();
        stored
            .check(told)
            .map_or_else(|error| error.to_string(), |()| "well".to_owned())
    }

    #[test]
    fn what_was_acknowledged_must_be_where_it_was_said_to_be() {
        let text = "0 0 0 x\n0 1 2 x\n1 0 1 x\n";
        let all = [
            told(0, Some(0), Some(0)),
            told(1, Some(0), None),
            told(0, None, Some(2)),
            told(0, None, None),
        ];
        assert_eq!(check(text, &all), "well");
        let moved = check(text, &[told(0, Some(1), Some(1))]);
        assert!(moved.contains("where 2 is"), "{moved}");
        for lost in [told(1, Some(1), Some(3)), told(1, None, Some(3))] {
            assert!(check(text, &[lost]).contains("acknowledged and lost"));
        }
    }

    #[test]
    fn doubled_reordered_and_skipped_records_are_found() {
        assert!(check("0 0 0\n1 0 0\n", &[]).contains("stored twice"));
        assert!(check("0 0 1\n0 1 0\n", &[]).contains("follows"));
        assert!(check("0 0 0\n0 2 1\n", &[]).contains("none at 1"));
        let stored = Stored::parse("0 0 0\n1 0 2\n").unwrap();
        assert!(
            stored
                .holds_all(3)
                .unwrap_err()
                .to_string()
                .contains("lost")
        );
        let stored = Stored::parse("0 0 0\n1 0 1\n").unwrap();
        assert!(stored.holds_all(2).is_ok() && stored.holds_all(1).is_err());
    }
}
