//! The `palisade-broker` binary.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use palisade_server::{DevOptions, StartError};

/// A Kafka-compatible broker that seals everything it stores.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker by its configuration file.
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Host name that `{pod}` and `{ordinal}` in the configuration stand for.
        #[arg(long, env = "POD_NAME", value_name = "NAME")]
        hostname: Option<String>,
        /// Where the broker stands, in place of `node.rack` in the configuration; empty: it is not known.
        #[arg(long, env = "BROKER_RACK", value_name = "NAME")]
        rack: Option<String>,
    },
    /// Run a single broker on loopback, with everything it needs made on the first start.
    Dev {
        /// Where it keeps everything.
        #[arg(long, value_name = "DIR", default_value = "palisade-dev")]
        data_dir: PathBuf,
        /// Port for clients; 0 takes any free one.
        #[arg(long, default_value_t = 9094)]
        port: u16,
        /// Port for health, metrics and status; by default the one after --port; 0 takes any free one.
        #[arg(long)]
        admin_port: Option<u16>,
    },
    /// Check a configuration file and the files it names, and start nothing.
    Check {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Host name that `{pod}` and `{ordinal}` in the configuration stand for.
        #[arg(long, env = "POD_NAME", value_name = "NAME")]
        hostname: Option<String>,
    },
}

fn main() -> ExitCode {
    palisade_server::start_logging();
    if let Err(error) = palisade_log::fs::forbid_core_dumps() {
        tracing::warn!(%error, "a crash of this process may write its memory to a disk, keys included");
    }
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<(), StartError> {
    match command {
        Command::Run {
            config,
            hostname,
            rack,
        } => palisade_server::run(&config, hostname, rack),
        Command::Dev {
            data_dir,
            port,
            admin_port,
        } => palisade_server::run_dev(&DevOptions {
            data_dir,
            port,
            admin_port,
        }),
        Command::Check { config, hostname } => palisade_server::check(&config, hostname),
    }
}

/// One line on stderr, with every cause.
#[expect(
    clippy::print_stderr,
    reason = "the last word of a process that could not start"
)]
fn report(error: &StartError) {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !message.contains(&cause_text) {
            message.push_str(": ");
            message.push_str(&cause_text);
        }
        source = cause.source();
    }
    eprintln!("palisade-broker: {}", message.replace('\n', " "));
}
