//! `palisade-e2e`: the built-in Kubernetes and what is shown and tested on it, from the command line.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use palisade_e2e::cluster::{ApiServer, Cluster, Program};
use palisade_e2e::image::Image;
use palisade_e2e::tools::{cache, program};

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
    /// The built-in cluster.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Writes a container image as an archive.
    #[command(subcommand)]
    Image(ImageVerb),
    /// Writes all container images as archives into a directory, and prints their paths.
    Images {
        /// The directory, which is made; without it, one in the cache.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    /// Starts a Kubernetes (`CLUSTER=builtin`, `kind` or `current`), installs the chart, applies the example and shows what it does.
    Demo(Which),
    /// Removes everything that the demo started.
    DemoStop(Which),
}

#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Starts it, unless it runs already.
    Up {
        #[command(flatten)]
        which: Which,
        /// How many nodes it has.
        #[arg(long, default_value_t = 1)]
        nodes: u8,
    },
    /// Stops it and removes everything of it, even when it is broken.
    Down(Which),
    /// Shows its programs; fails unless all of them run.
    Status(Which),
    /// Prints the path of its administrator's kubeconfig.
    Kubeconfig(Which),
    /// Calls kubectl as its administrator.
    Kubectl {
        #[command(flatten)]
        which: Which,
        /// What kubectl is to do.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Loads images, from archives, into every node.
    LoadImage {
        #[command(flatten)]
        which: Which,
        /// Archives in the OCI or Docker layout.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Which {
    /// The cluster's name.
    #[arg(long, env = "PALISADE_CLUSTER", default_value = "palisade")]
    name: String,
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
    /// The operator's, from its binary.
    Operator {
        /// The binary `palisade-operator`.
        binary: PathBuf,
        /// The archive to write.
        archive: PathBuf,
    },
    /// The broker's, from its binary.
    Broker {
        /// The binary `palisade-broker`.
        binary: PathBuf,
        /// The archive to write.
        archive: PathBuf,
    },
    /// A Kafka client with a shell, from this machine's packages.
    Kcat {
        /// The archive to write.
        archive: PathBuf,
    },
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
        Verb::Cluster(verb) => return run_cluster(verb),
        Verb::Demo(which) => palisade_e2e::demo::run(&which.name)?,
        Verb::DemoStop(which) => palisade_e2e::demo::stop(&which.name)?,
        Verb::Images { directory } => {
            let directory = match directory {
                Some(directory) => directory,
                None => cache()?.join("images"),
            };
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("making {}", directory.display()))?;
            let operator = program(
                "palisade-operator",
                "palisade-operator",
                "PALISADE_OPERATOR_BIN",
            )?;
            let broker = program("palisade-server", "palisade-broker", "PALISADE_BROKER_BIN")?;
            for (name, image) in [
                ("operator", Image::operator(&operator)?),
                ("broker", Image::broker(&broker)?),
                ("kcat", Image::kcat()?),
            ] {
                let archive = directory.join(format!("{name}.tar"));
                image.write(&archive)?;
                writeln!(out, "{}", archive.display())?;
            }
        }
        Verb::Image(verb) => match verb {
            ImageVerb::Operator { binary, archive } => Image::operator(&binary)?.write(&archive)?,
            ImageVerb::Broker { binary, archive } => Image::broker(&binary)?.write(&archive)?,
            ImageVerb::Kcat { archive } => Image::kcat()?.write(&archive)?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn run_cluster(verb: ClusterVerb) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    match verb {
        ClusterVerb::Up { which, nodes } => {
            let cluster = Cluster::up(&which.name, nodes)?;
            writeln!(out, "export KUBECONFIG={}", cluster.kubeconfig().display())?;
        }
        ClusterVerb::Down(which) => Cluster::remove(&which.name)?,
        ClusterVerb::Status(which) => {
            let cluster = Cluster::load(&which.name)?;
            for (program, alive) in cluster.programs() {
                let state = if alive { "running" } else { "stopped" };
                writeln!(out, "{program:30} {state}")?;
            }
            if !cluster.is_whole() {
                return Ok(ExitCode::FAILURE);
            }
        }
        ClusterVerb::Kubeconfig(which) => {
            writeln!(
                out,
                "{}",
                Cluster::attach(&which.name)?.kubeconfig().display()
            )?;
        }
        ClusterVerb::Kubectl { which, arguments } => {
            let error = Cluster::attach(&which.name)?
                .kubectl()
                .args(arguments)
                .exec();
            return Err(error).context("calling kubectl");
        }
        ClusterVerb::LoadImage { which, archives } => {
            let cluster = Cluster::attach(&which.name)?;
            for archive in archives {
                cluster.load_image(&archive)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
