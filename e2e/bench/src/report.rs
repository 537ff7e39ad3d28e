//! The report: cells with what they must reach, as JSON and as a table.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stats::Spread;

/// What a cell must reach. Its text names the one number that `ratio` is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Must {
    /// Palisade's median over Kafka's is at least this.
    AtLeast(f64),
    /// Palisade's median over Kafka's is at most this.
    AtMost(f64),
    /// Palisade's median is at most this, in the cell's unit, whatever Kafka's is; `ratio` is the median over the limit.
    Within(f64),
    /// Palisade's median, which is a quotient of two of its own figures already, is at least this.
    OwnAtLeast(f64),
    /// Measured to be known; nothing is demanded.
    Nothing,
}

impl Must {
    /// The number that is compared.
    fn ratio(self, palisade: Option<Spread>, kafka: Option<Spread>) -> Option<f64> {
        let ours = palisade?.median;
        let ratio = match self {
            Self::AtLeast(_) | Self::AtMost(_) | Self::Nothing => ours / kafka?.median,
            Self::Within(limit) => ours / limit,
            Self::OwnAtLeast(_) => ours,
        };
        ratio.is_finite().then_some(ratio)
    }

    fn met(self, ratio: Option<f64>) -> Option<bool> {
        let ratio = ratio?;
        match self {
            Self::AtLeast(limit) | Self::OwnAtLeast(limit) => Some(ratio >= limit),
            Self::AtMost(limit) => Some(ratio <= limit),
            Self::Within(_) => Some(ratio <= 1.0),
            Self::Nothing => None,
        }
    }

    fn text(self, unit: &str) -> Option<String> {
        match self {
            Self::AtLeast(limit) | Self::OwnAtLeast(limit) => Some(format!("≥ {limit}")),
            Self::AtMost(limit) => Some(format!("≤ {limit}")),
            Self::Within(limit) => Some(format!("≤ 1 × {limit} {unit}")),
            Self::Nothing => None,
        }
    }
}

/// One line of the table: one metric of one cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub name: String,
    pub metric: String,
    pub unit: String,
    pub palisade: Option<Spread>,
    pub kafka: Option<Spread>,
    pub ratio: Option<f64>,
    pub must: Option<String>,
    pub met: Option<bool>,
}

impl Cell {
    pub fn new(
        name: &str,
        metric: &str,
        unit: &str,
        must: Must,
        palisade: Option<Spread>,
        kafka: Option<Spread>,
    ) -> Self {
        let ratio = must.ratio(palisade, kafka);
        Self {
            name: name.to_owned(),
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            palisade,
            kafka,
            ratio,
            must: must.text(unit),
            met: must.met(ratio),
        }
    }
}

/// What was measured on, and how loaded it was.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gb: f64,
    pub kernel: String,
    pub date: String,
    pub palisade: String,
    pub kafka: String,
    pub librdkafka: String,
    pub quick: bool,
    pub runs: usize,
    /// Share of the machine's CPU that others used, over all runs.
    pub others_cpu_median: Option<f64>,
    pub others_cpu_max: Option<f64>,
}

/// `report.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub cells: Vec<Cell>,
}

impl Report {
    /// Writes the report, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let part = path.with_extension("part");
        fs::write(&part, text + "\n")
            .with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, path).with_context(|| format!("cannot name {}", path.display()))
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let mut rows = vec![
            [
                "cell",
                "metric",
                "unit",
                "Palisade",
                "(min – max)",
                "Kafka",
                "(min – max)",
                "ratio",
                "must",
                "",
            ]
            .map(str::to_owned),
        ];
        for cell in &self.cells {
            let median = |spread: Option<Spread>| {
                spread.map_or_else(|| "–".to_owned(), |spread| short(spread.median))
            };
            let range = |spread: Option<Spread>| {
                spread.map_or_else(String::new, |spread| {
                    format!("({} – {})", short(spread.min), short(spread.max))
                })
            };
            rows.push([
                cell.name.clone(),
                cell.metric.clone(),
                cell.unit.clone(),
                median(cell.palisade),
                range(cell.palisade),
                median(cell.kafka),
                range(cell.kafka),
                cell.ratio.map_or_else(|| "–".to_owned(), short),
                cell.must.clone().unwrap_or_default(),
                match cell.met {
                    Some(true) => "met".to_owned(),
                    Some(false) => "MISSED".to_owned(),
                    None => String::new(),
                },
            ]);
        }
        align(&rows)
    }
}

fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|text| text.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (text, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - text.chars().count());
            // Words to the left, numbers to the right.
            let _ = if matches!(column, 3 | 5 | 7) {
                write!(line, "{pad}{text}  ")
            } else {
                write!(line, "{text}{pad}  ")
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Three significant digits are more than the machine's noise leaves.
pub fn short(value: f64) -> String {
    match value.abs() {
        x if !x.is_finite() => "–".to_owned(),
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spread(median: f64) -> Option<Spread> {
        Some(Spread {
            min: median / 2.0,
            median,
            max: median * 2.0,
        })
    }

    fn cell(must: Must, palisade: f64, kafka: Option<f64>) -> Cell {
        Cell::new(
            "c",
            "m",
            "MB/s",
            must,
            spread(palisade),
            kafka.and_then(spread),
        )
    }

    #[test]
    fn a_throughput_must_be_at_least_so_many_times_kafkas() {
        let met = cell(Must::AtLeast(1.2), 240.0, Some(200.0));
        assert_eq!((met.ratio, met.met), (Some(1.2), Some(true)));
        assert_eq!(met.must.as_deref(), Some("≥ 1.2"));
        assert_eq!(
            cell(Must::AtLeast(1.2), 239.0, Some(200.0)).met,
            Some(false)
        );
    }

    #[test]
    fn a_cost_must_be_at_most_so_many_times_kafkas() {
        assert_eq!(cell(Must::AtMost(0.5), 1.0, Some(2.0)).met, Some(true));
        assert_eq!(cell(Must::AtMost(0.5), 1.1, Some(2.0)).met, Some(false));
    }

    #[test]
    fn a_limit_of_its_own_needs_no_kafka() {
        let met = cell(Must::Within(400.0), 200.0, None);
        assert_eq!((met.ratio, met.met), (Some(0.5), Some(true)));
        assert_eq!(met.must.as_deref(), Some("≤ 1 × 400 MB/s"));
        assert_eq!(
            cell(Must::Within(400.0), 401.0, Some(900.0)).met,
            Some(false)
        );
    }

    #[test]
    fn a_quotient_of_its_own_is_compared_as_it_is() {
        let cell = cell(Must::OwnAtLeast(0.7), 0.8, Some(0.4));
        assert_eq!((cell.ratio, cell.met), (Some(0.8), Some(true)));
    }

    #[test]
    fn nothing_is_met_that_was_not_measured() {
        assert_eq!(cell(Must::AtLeast(1.0), 5.0, None).met, None);
        let none = Cell::new("c", "m", "s", Must::Within(5.0), None, spread(1.0));
        assert_eq!((none.ratio, none.met), (None, None));
        assert_eq!(cell(Must::AtMost(1.0), 5.0, Some(0.0)).met, None);
        let known = cell(Must::Nothing, 5.0, Some(10.0));
        assert_eq!(
            (known.ratio, known.must, known.met),
            (Some(0.5), None, None)
        );
    }

    fn report() -> Report {
        Report {
            machine: Machine {
                cpu: "a CPU".to_owned(),
                cores: 2,
                memory_gb: 16.0,
                kernel: "6.1".to_owned(),
                date: "2026-01-01T00:00:00Z".to_owned(),
                palisade: "0.1.0".to_owned(),
                kafka: "4.3.1".to_owned(),
                librdkafka: "2".to_owned(),
                quick: true,
                runs: 3,
                others_cpu_median: Some(0.01),
                others_cpu_max: None,
            },
            cells: vec![
                cell(Must::AtLeast(1.2), 240.0, Some(200.0)),
                cell(Must::AtMost(1.0), 3.0, None),
            ],
        }
    }

    #[test]
    fn the_report_has_the_documented_shape() {
        let value: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&report()).unwrap()).unwrap();
        let mut keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["cells", "machine"]);
        for cell in value["cells"].as_array().unwrap() {
            let mut keys: Vec<&String> = cell.as_object().unwrap().keys().collect();
            keys.sort();
            assert_eq!(
                keys,
                [
                    "kafka", "met", "metric", "must", "name", "palisade", "ratio", "unit"
                ]
            );
        }
        let first = &value["cells"][0];
        assert_eq!(first["palisade"]["min"], 120.0);
        assert_eq!(first["palisade"]["median"], 240.0);
        assert_eq!(first["palisade"]["max"], 480.0);
        assert_eq!(first["met"], true);
        assert!(value["cells"][1]["kafka"].is_null() && value["cells"][1]["met"].is_null());
    }

    #[test]
    fn the_table_says_what_was_missed_and_what_is_not_known() {
        let mut report = report();
        report.cells.push(cell(Must::AtMost(0.5), 9.0, Some(10.0)));
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[1].ends_with("met") && lines[1].contains("240"),
            "{table}"
        );
        assert!(
            lines[2].contains('–') && !lines[2].contains("met"),
            "{table}"
        );
        assert!(lines[3].ends_with("MISSED"), "{table}");
    }

    #[test]
    fn a_written_report_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        report().write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
