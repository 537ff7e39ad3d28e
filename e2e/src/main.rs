//! `palisade-e2e`: the built-in Kubernetes and what is shown and tested on it, from the command line.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use palisade_e2e::cluster::{ApiServer, Program};

/// Drives the built-in Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "palisade-e2e", version)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds every program of the built-in Kubernetes now, rather than on first use, and prints their paths.
    Build,
    /// Runs an API server without nodes until standard input ends or an interrupt comes.
    Apiserver,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "palisade-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    match verb {
        Verb::Build => {
            for program in Program::ALL {
                writeln!(out, "{}", program.build()?.display())?;
            }
        }
        Verb::Apiserver => {
            let server = ApiServer::start()?;
            writeln!(out, "export KUBECONFIG={}", server.kubeconfig().display())?;
            std::io::stdin()
                .read_to_end(&mut Vec::new())
                .context("waiting for standard input to end")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
