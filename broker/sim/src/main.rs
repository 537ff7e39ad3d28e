//! Runs seeds of the simulation, and replays one.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use clap::Parser;
use palisade_sim::{Mutation, Options, Outcome, run};
use parking_lot::Mutex;

/// Deterministic simulation of several brokers, their network and their disks.
#[derive(Parser)]
struct Arguments {
    /// Run only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the last events.
    #[arg(long)]
    trace: bool,
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    base: u64,
    /// Break something on purpose.
    #[arg(long, value_enum)]
    mutation: Option<Mutation>,
    /// Go on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
    /// Threads; 0: as many as there are processors.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Print what the brokers log (set RUST_LOG).
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .with_writer(io::stderr)
            .init();
    }
    let mut out = io::stdout();
    match sweep(&arguments, &mut out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(out, "[sim] {error}");
            ExitCode::FAILURE
        }
    }
}

fn sweep(arguments: &Arguments, out: &mut impl Write) -> io::Result<bool> {
    let (base, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.base, arguments.seeds),
    };
    let jobs = match arguments.jobs {
        0 => thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let (events, acks) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..jobs.min(usize::try_from(count).unwrap_or(usize::MAX)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let stop = !arguments.keep_going && !failures.lock().is_empty();
                    if number >= count || stop {
                        return;
                    }
                    let outcome = one(arguments, base.saturating_add(number));
                    match outcome {
                        Ok(outcome) => {
                            events.fetch_add(outcome.events, Ordering::Relaxed);
                            acks.fetch_add(outcome.acks as u64, Ordering::Relaxed);
                            if outcome.violation.is_some() || arguments.seed.is_some() {
                                failures.lock().push(Ok(outcome));
                            }
                        }
                        Err(error) => failures.lock().push(Err(error)),
                    }
                }
            });
        }
    });
    let mut is_good = true;
    for outcome in failures.into_inner() {
        is_good &= report(arguments, outcome, out)?;
    }
    let ran = next.into_inner().min(count);
    writeln!(
        out,
        "[sim] {ran} seeds from {base}: {} events, {} acknowledged batches, {:.1} s",
        events.into_inner(),
        acks.into_inner(),
        begun.elapsed().as_secs_f64()
    )?;
    Ok(is_good)
}

fn one(arguments: &Arguments, seed: u64) -> Result<Outcome, String> {
    let options = Options {
        seed,
        trace: arguments.trace,
        mutation: arguments.mutation,
    };
    run(options)
}

fn report(
    arguments: &Arguments,
    outcome: Result<Outcome, String>,
    out: &mut impl Write,
) -> io::Result<bool> {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            writeln!(out, "[sim] {error}")?;
            return Ok(false);
        }
    };
    if let Some(violation) = &outcome.violation {
        // The run is the same again, this time with its text.
        let again = match arguments.trace {
            true => Ok(None),
            false => run(Options {
                seed: outcome.seed,
                trace: true,
                mutation: arguments.mutation,
            })
            .map(Some),
        };
        let lines = match again {
            Ok(Some(again)) => again.lines,
            _ => outcome.lines,
        };
        let shown = if arguments.trace { lines.len() } else { 60 };
        for line in lines.iter().skip(lines.len().saturating_sub(shown)) {
            writeln!(out, "{line}")?;
        }
        writeln!(
            out,
            "[sim] seed {} violates {}: {}",
            outcome.seed, violation.invariant, violation.message
        )?;
        writeln!(
            out,
            "[sim] replay: make sim SEEDS=1 SEED_BASE={0}; with the whole trace: palisade-sim --seed {0} --trace",
            outcome.seed
        )?;
        return Ok(false);
    }
    for line in &outcome.lines {
        writeln!(out, "{line}")?;
    }
    writeln!(
        out,
        "[sim] seed {} holds: hash {:016x}, {} events, {} acknowledged batches, {:.1} s simulated",
        outcome.seed,
        outcome.hash,
        outcome.events,
        outcome.acks,
        outcome.time.as_secs_f64()
    )?;
    Ok(true)
}
