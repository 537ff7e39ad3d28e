//! One whole benchmark: who is measured when, what came of it, and the files that are left.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use regex::Regex;
use serde::Serialize;

use crate::{
    catalog::{self, CEILING, PRODUCE},
    librdkafka,
    load::Timing,
    plot,
    proc::Usage,
    report::{Cell, Machine, Report, short},
    stats::{Latencies, Spread},
    subject::{Subject, Who},
    systems::{KAFKA_VERSION, Programs, System},
};

/// More than this share of the machine used by others makes a run doubtful.
const OTHERS_LIMIT: f64 = 0.10;

/// What to run, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    pub cells: Regex,
    pub quick: bool,
    /// Odd.
    pub runs: usize,
    pub timing: Timing,
    /// How long a system is warmed up once with each kind of load.
    pub warm_up: Duration,
    /// Rest before idle memory and CPU are read.
    pub settle: Duration,
    /// Read back in a consume run, in bytes.
    pub consumed: u64,
    /// Data at a restart, in bytes.
    pub data: u64,
    /// No run is begun after this time.
    pub budget: Duration,
    pub out: PathBuf,
    pub palisade_version: String,
}

/// What one run gave.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub values: Vec<(&'static str, f64)>,
    pub usage: Option<Usage>,
    pub latencies: Option<Latencies>,
    /// Records or connections that failed while others succeeded.
    pub failed: u64,
}

/// One line of `runs.json`.
#[derive(Clone, Debug, Serialize)]
struct Run {
    cell: String,
    who: Who,
    run: usize,
    values: BTreeMap<&'static str, f64>,
    /// Share of the machine that others used.
    others_cpu: Option<f64>,
    generator_cores: Option<f64>,
    broker_cores: Option<f64>,
    failed: u64,
    error: Option<String>,
}

/// A benchmark under way.
#[derive(Debug)]
pub struct Bench {
    pub options: Options,
    pub programs: Programs,
    started: Instant,
    runs: Vec<Run>,
    latencies: BTreeMap<(&'static str, System), Latencies>,
    said_out_of_time: bool,
}

impl Bench {
    pub fn new(options: Options, programs: Programs) -> Self {
        Self {
            options,
            programs,
            started: Instant::now(),
            runs: Vec::new(),
            latencies: BTreeMap::new(),
            said_out_of_time: false,
        }
    }

    pub fn wants(&self, cell: &str) -> bool {
        self.options.cells.is_match(cell)
    }

    /// Whether another run may begin.
    pub fn has_time(&mut self) -> bool {
        let left = self.started.elapsed() < self.options.budget;
        if !left && !self.said_out_of_time {
            self.said_out_of_time = true;
            self.say(&format!(
                "out of time after {:?}: what is left is not measured",
                self.options.budget
            ));
        }
        left
    }

    /// A line of progress.
    pub fn say(&self, text: &str) {
        eprintln!(
            "[bench {:>5.0} s] {text}",
            self.started.elapsed().as_secs_f64()
        );
    }

    /// Measures every subject so many times, run by run, each time in the other order: drift of the machine hits all alike.
    pub fn alternate(
        &mut self,
        cell: &'static str,
        runs: usize,
        subjects: &mut [Subject],
        mut measure: impl FnMut(&Options, &mut Subject) -> Result<Measured>,
    ) {
        if !self.wants(cell) {
            return;
        }
        for run in 0..runs {
            for place in order(run, subjects.len()) {
                let Some(subject) = subjects.get_mut(place) else {
                    continue;
                };
                if !self.has_time() {
                    return;
                }
                let who = subject.who;
                let result = measure(&self.options, subject);
                if result.is_err() {
                    subject.keep_logs();
                }
                self.record(cell, who, run, result);
            }
        }
    }

    /// Notes what a run gave.
    pub fn record(&mut self, cell: &'static str, who: Who, run: usize, result: Result<Measured>) {
        let (measured, error) = match result {
            Ok(measured) => (measured, None),
            Err(error) => (Measured::default(), Some(format!("{error:#}"))),
        };
        let shown: Vec<String> = measured
            .values
            .iter()
            .map(|(metric, value)| format!("{metric} {}", short(*value)))
            .collect();
        let mut line = format!("{cell} {who} run {}: {}", run + 1, shown.join(", "));
        if let Some(usage) = measured.usage {
            line.push_str(&format!(
                "; cores: brokers {:.2}, generator {:.2}; others {:.0} %",
                usage.brokers / usage.elapsed.as_secs_f64(),
                usage.generator / usage.elapsed.as_secs_f64(),
                usage.others * 100.0
            ));
            if usage.others > OTHERS_LIMIT {
                line.push_str(" WARNING: others used more than 10 % of the machine");
            }
        }
        if measured.failed > 0 {
            line.push_str(&format!(" WARNING: {} failed", measured.failed));
        }
        if let Some(error) = &error {
            line.push_str(&format!("FAILED: {error}"));
        }
        self.say(&line);
        if let (Some(latencies), Who::System(system)) = (&measured.latencies, who) {
            self.latencies
                .entry((cell, system))
                .or_default()
                .merge(latencies);
        }
        let cores = |seconds: fn(&Usage) -> f64| {
            measured
                .usage
                .map(|usage| seconds(&usage) / usage.elapsed.as_secs_f64())
        };
        self.runs.push(Run {
            cell: cell.to_owned(),
            who,
            run,
            values: measured.values.iter().copied().collect(),
            others_cpu: measured.usage.map(|usage| usage.others),
            generator_cores: cores(|usage| usage.generator),
            broker_cores: cores(|usage| usage.brokers),
            failed: measured.failed,
            error,
        });
    }

    /// Errors of all runs, one line each.
    pub fn errors(&self) -> Vec<String> {
        self.runs
            .iter()
            .filter_map(|run| {
                let error = run.error.as_ref()?;
                Some(format!("{} {}: {error}", run.cell, run.who))
            })
            .collect()
    }

    fn samples(&self, cell: &str, metric: &str, who: Who) -> Vec<f64> {
        self.runs
            .iter()
            .filter(|run| run.cell == cell && run.who == who)
            .filter_map(|run| run.values.get(metric).copied())
            .collect()
    }

    fn spread(&self, cell: &str, metric: &str, system: System) -> Option<Spread> {
        let samples = if metric == CEILING {
            let ceiling = Spread::of(&self.samples(cell, PRODUCE, Who::Sink))?.median;
            self.samples(cell, PRODUCE, Who::System(system))
                .iter()
                .map(|throughput| throughput / ceiling * 100.0)
                .collect()
        } else {
            self.samples(cell, metric, Who::System(system))
        };
        Spread::of(&samples)
    }

    /// The report on all that has been measured so far.
    pub fn report(&self) -> Report {
        let cells = catalog::all()
            .into_iter()
            .filter(|spec| self.wants(spec.cell))
            .map(|spec| {
                let spread = |system| self.spread(spec.cell, spec.metric, system);
                Cell::new(
                    spec.cell,
                    spec.metric,
                    spec.unit,
                    spec.must,
                    spread(System::Palisade),
                    spread(System::Kafka),
                )
            })
            .collect();
        Report {
            machine: self.machine(),
            cells,
        }
    }

    fn machine(&self) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes = memory
            .split(' ')
            .next()
            .and_then(|number| number.parse::<f64>().ok());
        let others: Vec<f64> = self.runs.iter().filter_map(|run| run.others_cpu).collect();
        let others = Spread::of(&others);
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gb: (kilobytes.unwrap_or(0.0) / 1e5).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date: time::OffsetDateTime::now_utc()
                .format(&time::format_description::well_known::Rfc3339)
                .unwrap_or_default(),
            palisade: self.options.palisade_version.clone(),
            kafka: KAFKA_VERSION.to_owned(),
            librdkafka: librdkafka::version(),
            quick: self.options.quick,
            runs: self.options.runs,
            others_cpu_median: others.map(|spread| spread.median),
            others_cpu_max: others.map(|spread| spread.max),
        }
    }

    /// Writes the report, the runs and the plots as they are now.
    pub fn write(&self) -> Result<Report> {
        let out = &self.options.out;
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let report = self.report();
        report.write(&out.join("report.json"))?;
        fs::write(
            out.join("runs.json"),
            serde_json::to_string_pretty(&self.runs)? + "\n",
        )?;
        let mut plots = vec![
            (
                "throughput.svg".to_owned(),
                plot::bars("Throughput", "MB/s", &report.cells),
            ),
            (
                "cpu.svg".to_owned(),
                plot::bars("Broker CPU per record", "µs", &report.cells),
            ),
        ];
        for cell in [catalog::RF3_LATENCY, catalog::RF3_END_TO_END] {
            let both: Vec<(System, &Latencies)> = System::BOTH
                .into_iter()
                .filter_map(|system| Some((system, self.latencies.get(&(cell, system))?)))
                .collect();
            plots.push((
                format!("{cell}.svg"),
                plot::distribution(&format!("{cell}: latency by percentile"), &both),
            ));
        }
        for (name, svg) in plots {
            if let Some(svg) = svg {
                fs::write(out.join(name), svg)?;
            }
        }
        Ok(report)
    }
}

/// Who comes when in a run: forwards in one, backwards in the next.
fn order(run: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if run % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bench(cells: &str) -> Bench {
        let options = Options {
            cells: Regex::new(cells).unwrap(),
            quick: true,
            runs: 3,
            timing: Timing {
                warm: Duration::ZERO,
                measure: Duration::from_secs(1),
            },
            warm_up: Duration::ZERO,
            settle: Duration::ZERO,
            consumed: 0,
            data: 0,
            budget: Duration::from_secs(60),
            out: PathBuf::from("/nonexistent"),
            palisade_version: "test".to_owned(),
        };
        let programs = Programs {
            broker: PathBuf::new(),
            kafka: String::new(),
            work: PathBuf::new(),
            logs: PathBuf::new(),
        };
        Bench::new(options, programs)
    }

    fn gives(value: f64) -> Result<Measured> {
        Ok(Measured {
            values: vec![(PRODUCE, value)],
            ..Measured::default()
        })
    }

    #[test]
    fn each_run_has_the_other_order() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
    }

    #[test]
    fn the_report_holds_only_the_cells_that_were_asked_for() {
        let names = |cells: &str| {
            let mut names: Vec<String> = bench(cells)
                .report()
                .cells
                .into_iter()
                .map(|cell| cell.name)
                .collect();
            names.dedup();
            names
        };
        assert_eq!(names("^one"), [catalog::ONE]);
        assert_eq!(names("scram|mtls"), [catalog::SCRAM, catalog::MTLS]);
    }

    #[test]
    fn medians_ratio_and_ceiling_come_from_the_runs() {
        let mut bench = bench("^one");
        for (run, values) in [
            [100.0, 40.0, 200.0],
            [300.0, 50.0, 200.0],
            [120.0, 90.0, 400.0],
        ]
        .into_iter()
        .enumerate()
        {
            let who = [
                Who::System(System::Palisade),
                Who::System(System::Kafka),
                Who::Sink,
            ];
            for (who, value) in who.into_iter().zip(values) {
                bench.record(catalog::ONE, who, run, gives(value));
            }
        }
        let cells = bench.report().cells;
        let cell = |metric: &str| cells.iter().find(|cell| cell.metric == metric).unwrap();
        let produce = cell(PRODUCE);
        assert_eq!(produce.palisade.unwrap().median, 120.0);
        assert_eq!(produce.kafka.unwrap().max, 90.0);
        assert_eq!(produce.ratio, Some(2.4));
        assert_eq!(cell(CEILING).palisade.unwrap().median, 60.0);
        assert_eq!(cell(CEILING).kafka.unwrap().median, 25.0);
    }

    #[test]
    fn a_failed_run_is_kept_as_an_error_and_not_as_a_number() {
        let mut bench = bench("^one");
        let palisade = Who::System(System::Palisade);
        bench.record(
            catalog::ONE,
            palisade,
            0,
            Err(anyhow::anyhow!("did not come up")),
        );
        bench.record(catalog::ONE, palisade, 1, gives(7.0));
        assert_eq!(bench.errors(), ["one-1KiB Palisade: did not come up"]);
        let cells = bench.report().cells;
        assert_eq!(cells[0].palisade.unwrap().median, 7.0);
        assert_eq!(cells[0].met, None);
    }
}
