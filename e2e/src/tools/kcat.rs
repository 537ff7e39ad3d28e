//! kcat, the command-line client on librdkafka.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{Access, Background, Lan, Outcome, run};

/// Longer than any single step of a test needs: a hang is a failure, slowness is not.
const LIMIT: Duration = Duration::from_secs(40);

/// kcat with one client's configuration.
#[derive(Clone, Debug)]
pub struct Kcat {
    binary: PathBuf,
    configuration: PathBuf,
    place: Option<(Arc<Lan>, usize)>,
}

impl Kcat {
    /// kcat as this client.
    ///
    /// # Errors
    /// When neither `kcat` nor `kafkacat` is installed.
    pub fn new(access: &Access) -> Result<Self> {
        Ok(Self {
            binary: kcat()?,
            configuration: access.librdkafka.clone(),
            place: None,
        })
    }

    /// The same, running where a broker does.
    #[must_use]
    pub fn beside(self, lan: &Arc<Lan>, broker: usize) -> Self {
        Self {
            place: Some((Arc::clone(lan), broker)),
            ..self
        }
    }

    /// Runs kcat with these arguments, after `-F <configuration>`.
    ///
    /// # Errors
    /// When it cannot be run. A status other than 0 is no error here.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<Outcome> {
        run(self.command().args(arguments), input.as_bytes(), LIMIT)
    }

    /// Produces one record a line and waits for the acknowledgements.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn produce(&self, topic: &str, lines: &str, more: &[&str]) -> Result<Outcome> {
        // A refused topic is an error at once instead of a wait for the delivery time-out.
        let arguments = [&["-P", "-t", topic, "-X", "message.timeout.ms=20000"], more].concat();
        self.run(&arguments, lines)
    }

    /// Reads a topic from its start to its end, one value a line.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn consume(&self, topic: &str, more: &[&str]) -> Result<Outcome> {
        self.run(
            &[&["-C", "-t", topic, "-o", "beginning", "-e", "-q"], more].concat(),
            "",
        )
    }

    /// Reads topics to their ends as a member of a group, one value a line.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn consume_group(&self, group: &str, topics: &[&str], more: &[&str]) -> Result<Outcome> {
        let base = ["-X", "auto.offset.reset=earliest", "-e", "-q"];
        self.run(&[&base, more, &["-G", group], topics].concat(), "")
    }

    /// The cluster's metadata as kcat prints it in JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn metadata(&self) -> Result<serde_json::Value> {
        let outcome = self.run(&["-L", "-J"], "")?.success()?;
        serde_json::from_str(&outcome.stdout)
            .with_context(|| format!("kcat -L -J printed {}", outcome.stdout))
    }

    /// Starts kcat with these arguments in the background.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn background(&self, arguments: &[&str], log: &Path) -> Result<Background> {
        Background::start(self.command().args(arguments), log)
    }

    pub(super) fn command(&self) -> Command {
        let mut command = match &self.place {
            Some((lan, broker)) => lan.command(*broker, &self.binary),
            None => Command::new(&self.binary),
        };
        command.arg("-F").arg(&self.configuration);
        command
    }
}

/// Where kcat is: Debian calls the package kafkacat, and the program has had both names.
///
/// # Errors
/// When it is not installed.
pub fn kcat() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in ["kcat", "kafkacat"] {
        if let Some(found) = std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .find(|candidate| candidate.is_file())
        {
            return Ok(found);
        }
    }
    bail!("kcat is not installed (Debian: apt-get install kafkacat)")
}
