//! Puts the crates together: one process from one configuration, and what it does while it runs and when it stops.

mod data_dir;
mod follow;
mod join;
mod peers;
mod start;
mod status;
mod stop;
mod storage;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use palisade_config::BrokerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use zeroize::Zeroizing;

use crate::{dev, error::StartError};

pub(crate) use start::{Running, start};
pub(crate) use status::State;

/// A user that is made when it is not there. `Debug` does not show its password.
#[derive(Clone)]
pub struct BootstrapUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Zeroizing<String>,
}

impl std::fmt::Debug for BootstrapUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootstrapUser")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The configuration file, which is followed.
    pub(crate) file: PathBuf,
    /// Host name that placeholders stand for.
    pub(crate) hostname: String,
    /// Rack that takes the place of the configuration's; empty: not known.
    pub(crate) rack: Option<String>,
    /// A user that is made when it is not there.
    pub(crate) user: Option<BootstrapUser>,
}

impl Plan {
    /// Reads the configuration as it is now.
    pub(crate) fn read(&self) -> Result<BrokerConfig, StartError> {
        let text = fs::read_to_string(&self.file).map_err(|error| StartError::Io {
            action: "read",
            path: self.file.clone(),
            error,
        })?;
        BrokerConfig::parse(&text)
            .and_then(|config| config.for_pod(&self.hostname, self.rack.as_deref()))
            .map_err(|error| StartError::Config {
                path: self.file.clone(),
                reason: error.to_string(),
            })
    }
}

/// Runs a broker by its configuration file until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// [`StartError`] when it does not start.
pub fn run(file: &Path, hostname: Option<String>, rack: Option<String>) -> Result<(), StartError> {
    let plan = Plan {
        file: file.to_owned(),
        hostname: hostname.unwrap_or_else(machine_name),
        rack,
        user: None,
    };
    serve(&plan, None)
}

/// Runs a development broker, see [`crate::DevOptions`].
///
/// # Errors
/// [`StartError`] when it does not start.
pub fn run_dev(options: &dev::DevOptions) -> Result<(), StartError> {
    let prepared = dev::prepare(options)?;
    let plan = Plan {
        file: prepared.config_file,
        hostname: "palisade-dev-0".to_owned(),
        rack: None,
        user: Some(prepared.admin),
    };
    serve(&plan, Some(&prepared.greeting))
}

/// Checks a configuration and the files it names.
///
/// # Errors
/// [`StartError`] for the first thing that is wrong.
pub fn check(file: &Path, hostname: Option<String>) -> Result<(), StartError> {
    let plan = Plan {
        file: file.to_owned(),
        hostname: hostname.unwrap_or_else(machine_name),
        rack: None,
        user: None,
    };
    let config = plan.read()?;
    start::endpoints(&config)?;
    start::key_provider(&config)?;
    for listener in &config.listeners {
        start::mapper(listener)?;
    }
    start::super_users(&config, file)?;
    say(&format!("{}: good", file.display()));
    Ok(())
}

fn serve(plan: &Plan, greeting: Option<&str>) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("palisade")
        .build()
        .map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Runtime)?;
        let running = tokio::select! {
            running = start(plan) => running?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        match greeting {
            Some(greeting) => say(greeting),
            None => say(&ready_line(&running)),
        }
        tokio::select! {
            _ = terminate.recv() => info!("stopping: SIGTERM"),
            _ = interrupt.recv() => info!("stopping: SIGINT"),
        }
        running.stop().await;
        info!("stopped");
        Ok(())
    })
}

fn ready_line(running: &Running) -> String {
    let ports = running
        .addresses
        .iter()
        .map(|(name, address)| format!("{name} {address}"))
        .collect::<Vec<_>>()
        .join(", ");
    format!("palisade-broker is ready: {ports}")
}

/// A line for people on stdout; whoever closed it does not want to read it.
fn say(text: &str) {
    let mut out = std::io::stdout();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

fn machine_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
