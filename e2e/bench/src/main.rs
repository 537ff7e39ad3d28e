//! Measures Palisade and Apache Kafka side by side: `make bench`. How, and how to read it: README.md.

mod bench;
mod catalog;
mod cells;
mod connections;
mod frames;
mod librdkafka;
mod load;
mod pki;
mod plot;
mod proc;
mod process;
mod report;
mod scram;
mod sink;
mod stats;
mod subject;
mod systems;
mod wire;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use regex::Regex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    bench::{Bench, Options},
    load::Timing,
    systems::Programs,
};

/// Measures Palisade and Apache Kafka side by side.
#[derive(Debug, Parser)]
#[command(arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, print a table and write report.json, runs.json and plots.
    Run(Box<Run>),
    /// List the cells.
    List,
    /// Acknowledge produce requests over TLS and store nothing.
    #[command(hide = true)]
    Sink {
        #[arg(long)]
        tls: PathBuf,
        #[arg(long = "port")]
        ports: Vec<u16>,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The palisade-broker to measure.
    #[arg(long)]
    broker: PathBuf,
    /// Where Apache Kafka's libraries are kept.
    #[arg(long)]
    cache: PathBuf,
    /// Where the report goes.
    #[arg(long)]
    out: PathBuf,
    /// Where data is written while measuring; by default below the report.
    #[arg(long)]
    work: Option<PathBuf>,
    /// Only cells whose name this matches.
    #[arg(long, default_value = "")]
    cells: String,
    /// Fewer and shorter runs, less data: to try things out, not to quote.
    #[arg(long)]
    quick: bool,
    /// Runs of each cell; made odd. By default 5, or 3 when quick.
    #[arg(long)]
    runs: Option<usize>,
    /// Seconds of each run. By default 15, or 5 when quick.
    #[arg(long)]
    seconds: Option<u64>,
    /// Data at the restart, in GB. By default 10, or 1 when quick.
    #[arg(long)]
    data_gb: Option<u64>,
    /// No run begins after so many minutes. By default 150, or 40 when quick.
    #[arg(long)]
    minutes: Option<u64>,
}

impl Run {
    fn options(&self) -> Result<Options> {
        let pick = |full, quick| if self.quick { quick } else { full };
        let version = process::run(
            &self.broker.display().to_string(),
            &["--version".to_owned()],
        )
        .context("the broker does not run")?;
        Ok(Options {
            cells: Regex::new(&self.cells).context("--cells is no regular expression")?,
            quick: self.quick,
            runs: stats::odd(self.runs.unwrap_or(pick(5, 3) as usize)),
            timing: Timing {
                warm: Duration::from_secs(pick(3, 2)),
                measure: Duration::from_secs(self.seconds.unwrap_or(pick(15, 5))),
            },
            warm_up: Duration::from_secs(pick(25, 10)),
            settle: Duration::from_secs(pick(10, 5)),
            consumed: pick(2, 1) << 30,
            data: self.data_gb.unwrap_or(pick(10, 1)) << 30,
            budget: Duration::from_secs(self.minutes.unwrap_or(pick(150, 40)) * 60),
            out: self.out.clone(),
            palisade_version: version.trim().to_owned(),
        })
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(run) => measure(&run),
        Command::List => {
            for spec in catalog::all() {
                println!("{:22} {} ({})", spec.cell, spec.metric, spec.unit);
            }
            Ok(true)
        }
        Command::Sink { tls, ports } => sink::serve(&ports, &tls).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("palisade-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when everything could be measured, whether or not it is fast enough.
fn measure(run: &Run) -> Result<bool> {
    let options = run.options()?;
    process::clean_up_on_signals()?;
    raise_file_limit();
    let out = &run.out;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let out = std::fs::canonicalize(out)?;
    let work = run.work.clone().unwrap_or_else(|| out.join("work"));
    let programs = Programs {
        broker: absolute(&run.broker)?,
        kafka: systems::kafka_class_path(&run.cache)?,
        logs: out.join("logs"),
        work: work.clone(),
    };
    let _ = std::fs::remove_dir_all(&programs.logs);
    let mut bench = Bench::new(options, programs);
    cells::run(&mut bench)?;
    let report = bench.write()?;
    // Gone only when it is empty: others may use it.
    let _ = std::fs::remove_dir(&work);
    println!("{}", report.table());
    println!("{}", out.join("report.json").display());
    let errors = bench.errors();
    if !errors.is_empty() {
        println!(
            "\n{} run(s) failed; logs of the brokers are in {}:",
            errors.len(),
            out.join("logs").display()
        );
        for error in &errors {
            println!("  {error}");
        }
    }
    Ok(errors.is_empty())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
}

/// Brokers with many partitions hold many files open; they inherit the limit. Best effort: what is not allowed is not needed for most cells.
fn raise_file_limit() {
    let wanted = 1 << 20;
    let both = |limit| Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    if setrlimit(Resource::Nofile, both(wanted)).is_err()
        && let Some(most) = getrlimit(Resource::Nofile).maximum
    {
        let _ = setrlimit(Resource::Nofile, both(most));
    }
}
