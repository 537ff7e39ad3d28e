//! Child processes: run to their end with a time limit, or in the background until dropped.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Pause between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);

/// How a program ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run, for messages.
    pub what: String,
    /// Exit status; 124 after a time-out, 128 + the signal when one ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output followed by standard error.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// The outcome, if the status is 0.
    ///
    /// # Errors
    /// With all that the program wrote, otherwise.
    pub fn success(self) -> Result<Self> {
        if self.status != 0 {
            bail!(
                "`{}` ended with status {}:\n{}",
                self.what,
                self.status,
                self.text()
            );
        }
        Ok(self)
    }

    /// The outcome, if the program failed and said `message` (compared without case).
    ///
    /// # Errors
    /// With all that the program wrote, when it succeeded or said something else.
    pub fn refused(self, message: &str) -> Result<Self> {
        if self.status == 0 {
            bail!(
                "`{}` succeeded, but `{message}` was expected:\n{}",
                self.what,
                self.text()
            );
        }
        self.says(message)
    }

    /// The outcome, if the program said `message` (compared without case), whatever its status.
    ///
    /// # Errors
    /// With all that the program wrote, otherwise.
    pub fn says(self, message: &str) -> Result<Self> {
        if !self.text().to_lowercase().contains(&message.to_lowercase()) {
            bail!("`{}` did not say `{message}`:\n{}", self.what, self.text());
        }
        Ok(self)
    }
}

/// Runs a program to its end, feeding it `input`; it is killed when `limit` has passed.
///
/// # Errors
/// When it cannot be started or waited for. A status other than 0 is no error here: see [`Outcome::success`].
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Result<Outcome> {
    let what = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{what}`"))?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let (status, stdout, stderr) = thread::scope(|scope| {
        scope.spawn(move || {
            // A program that ends without reading its input is not our concern.
            stdin.map(|mut pipe| pipe.write_all(input))
        });
        let stdout = scope.spawn(move || drain(stdout));
        let stderr = scope.spawn(move || drain(stderr));
        let status = wait(&mut child, limit);
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        (
            status,
            stdout.join().unwrap_or_default(),
            stderr.join().unwrap_or_default(),
        )
    });
    let mut outcome = Outcome {
        what,
        status: status.map_or(124, status_code),
        stdout,
        stderr,
    };
    if status.is_none() {
        outcome
            .stderr
            .push_str(&format!("\nkilled: it was still running after {limit:?}\n"));
    }
    Ok(outcome)
}

/// A program that runs until it is stopped or dropped. What it writes goes to a file.
#[derive(Debug)]
pub struct Background {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts a program; both its outputs are appended to `log`, its input is empty.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let what = describe(command);
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{what}`"))?;
        Ok(Self {
            what,
            child,
            log: log.to_owned(),
        })
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(status_code)
    }

    /// Waits for its own end.
    ///
    /// # Errors
    /// When it is still running after `limit`; it goes on running.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        wait(&mut self.child, limit)
            .map(status_code)
            .with_context(|| {
                format!(
                    "`{}` is still running after {limit:?}:\n{}",
                    self.what,
                    self.log()
                )
            })
    }

    /// Asks it to end (SIGTERM) and waits; kills it when `limit` has passed.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn terminate(&mut self, limit: Duration) -> Result<i32> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).context("cannot send SIGTERM")?;
        }
        let status = self.wait(limit);
        if status.is_err() {
            self.kill();
        }
        status
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks at something until it is there.
///
/// # Errors
/// When `limit` has passed; the message carries `what` and the last error of `look`.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("{what}: not so after {limit:?}")));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < limit => thread::sleep(POLL),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn status_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn drain(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error still helps whoever reads the message.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_and_says_so() {
        let outcome = run(
            Command::new("sleep").arg("30"),
            b"",
            Duration::from_millis(100),
        )
        .unwrap();
        assert_eq!(outcome.status, 124);
        assert!(
            outcome.stderr.contains("still running"),
            "{}",
            outcome.stderr
        );
    }

    #[test]
    fn input_larger_than_a_pipe_does_not_block() {
        let input = vec![b'x'; 1 << 20];
        let outcome = run(&mut Command::new("cat"), &input, Duration::from_secs(10)).unwrap();
        assert_eq!((outcome.status, outcome.stdout.len()), (0, input.len()));
    }

    #[test]
    fn a_dropped_background_program_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let child = Background::start(
            Command::new("sleep").arg("60"),
            &directory.path().join("log"),
        )
        .unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists());
    }
}
