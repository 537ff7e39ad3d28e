//! Calling other programs and waiting for things, with errors that say what was tried.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::ClusterError;

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or does not report success; the error holds its output.
pub fn run(command: &mut Command) -> Result<String, ClusterError> {
    run_with_input(command, "")
}

/// Like [`run`], with something to read on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String, ClusterError> {
    let failed = |command: &Command, detail: String| ClusterError::Command {
        command: describe(command),
        detail,
    };
    command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| failed(command, error.to_string()))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()),
        None => Ok(()),
    };
    let output = child
        .wait_with_output()
        .map_err(|error| failed(command, error.to_string()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let detail = format!("{}: {}{}", output.status, stderr.trim(), stdout.trim());
        return Err(failed(command, detail));
    }
    // A program that succeeded without reading all of its input did not need it, but one that
    // could not be written to for another reason did not do what was asked.
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(failed(command, format!("writing its input: {error}")))
        }
        _ => Ok(stdout),
    }
}

/// Whether a program is found on the search path.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        // The tools of a system are not on everyone's search path.
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| is_executable(&directory.join(program)))
    })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// Asks again and again until the answer is `Ok(None)`; `Ok(Some(state))` says what it is like so far.
///
/// # Errors
/// What `check` answers as an error, at once, and [`ClusterError::TimedOut`] with the last state.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<Option<String>, ClusterError>,
) -> Result<(), ClusterError> {
    let deadline = Instant::now() + limit;
    loop {
        match check()? {
            None => return Ok(()),
            Some(last) if Instant::now() >= deadline => {
                return Err(ClusterError::TimedOut {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                    last,
                });
            }
            Some(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|it| it.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_failing_command_reports_its_line_status_and_output() {
        let error =
            run(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"])).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("sh -c echo no such luck"), "{message}");
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.ends_with("no such luck"), "{message}");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(
            run_with_input(&mut Command::new("cat"), "one\ntwo\n").unwrap(),
            "one\ntwo\n"
        );
    }

    #[test]
    fn waiting_in_vain_tells_the_last_state() {
        let error = wait_until("spring", Duration::ZERO, || Ok(Some("snow".into()))).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s in vain for spring: snow");
    }
}
