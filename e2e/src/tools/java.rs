//! Apache Kafka's own tools: fetched once with Maven, run by main class, many calls in one JVM (`kafka/ToolRunner.java`).

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead, BufReader, Write as _},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{Access, Background, Outcome, run};

const POM: &str = include_str!("../../kafka/pom.xml");
const RUNNER: &str = include_str!("../../kafka/ToolRunner.java");

/// How long a tool may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The status of a tool that did not end within its time. Its thread goes on.
const TIMED_OUT: i32 = 124;
/// Bounds the memory of a JVM and its start: these programs live for seconds.
const JVM_OPTIONS: [&str; 5] = [
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dfile.encoding=UTF-8",
];

/// JVMs that no test uses at the moment.
static IDLE: Mutex<Vec<Java>> = Mutex::new(Vec::new());

/// Main classes.
pub mod tool {
    /// `kafka-topics`.
    pub const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
    /// `kafka-acls`.
    pub const ACLS: &str = "org.apache.kafka.tools.AclCommand";
    /// `kafka-configs`.
    pub const CONFIGS: &str = "kafka.admin.ConfigCommand";
    /// `kafka-console-producer`.
    pub const CONSOLE_PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
    /// `kafka-console-consumer`.
    pub const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    /// `kafka-consumer-groups`.
    pub const CONSUMER_GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    /// `kafka-get-offsets`.
    pub const GET_OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
    /// `kafka-delete-records`.
    pub const DELETE_RECORDS: &str = "org.apache.kafka.tools.DeleteRecordsCommand";
    /// `kafka-log-dirs`.
    pub const LOG_DIRS: &str = "org.apache.kafka.tools.LogDirsCommand";
    /// `kafka-cluster`.
    pub const CLUSTER: &str = "org.apache.kafka.tools.ClusterTool";
    /// `kafka-metadata-quorum`; see [`Java::subcommand`](super::Java::subcommand).
    pub const METADATA_QUORUM: &str = "org.apache.kafka.tools.MetadataQuorumCommand";
    /// `kafka-leader-election`.
    pub const LEADER_ELECTION: &str = "org.apache.kafka.tools.LeaderElectionCommand";
    /// `kafka-broker-api-versions`.
    pub const API_VERSIONS: &str = "org.apache.kafka.tools.BrokerApiVersionsCommand";
    /// `kafka-producer-perf-test`.
    pub const PRODUCER_PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";
    /// `kafka-verifiable-producer`.
    pub const VERIFIABLE_PRODUCER: &str = "org.apache.kafka.tools.VerifiableProducer";
    /// `kafka-verifiable-consumer`.
    pub const VERIFIABLE_CONSUMER: &str = "org.apache.kafka.tools.VerifiableConsumer";
}

/// A JVM that runs tools one after the other.
#[derive(Debug)]
pub struct Java {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Whether a call was begun and not answered in full, or its tool is still running after its time and would meddle with the next call.
    broken: bool,
}

impl Java {
    /// A JVM for this test alone: an idle one of an earlier test, or a new one.
    ///
    /// # Errors
    /// When the libraries cannot be fetched or Java does not start.
    pub fn lease() -> Result<Lease> {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let java = match idle {
            Some(java) => java,
            None => Self::start()?,
        };
        Ok(Lease(Some(java)))
    }

    /// Starts a main class in a JVM of its own, to be stopped or dropped by the caller; `--bootstrap-server` and `--command-config` are
    /// added to its arguments. Its temporary files are beside `log`.
    ///
    /// # Errors
    /// When the libraries cannot be fetched or Java does not start.
    pub fn background(
        class: &str,
        access: &Access,
        arguments: &[&str],
        log: &Path,
    ) -> Result<Background> {
        let mut command = Command::new("java");
        command
            .args(JVM_OPTIONS)
            .arg(temporary_files(log.parent().context("no directory")?))
            .arg("-cp")
            .arg(class_path()?)
            .arg(class);
        command.args(arguments).args(connection(access));
        Background::start(&mut command, log)
    }

    fn start() -> Result<Self> {
        let files = own_directory()?;
        let mut command = Command::new("java");
        command
            .args(JVM_OPTIONS)
            .arg(temporary_files(&files))
            .arg("-cp")
            .arg(class_path()?)
            .arg("ToolRunner");
        Self::run(&mut command)
    }

    /// Starts what takes requests and gives answers.
    fn run(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start java")?;
        let requests = child.stdin.take().context("java has no standard input")?;
        let answers = child.stdout.take().context("java has no standard output")?;
        Ok(Self {
            child,
            requests,
            answers: BufReader::new(answers),
            broken: false,
        })
    }

    /// Runs a tool with `--bootstrap-server` and `--command-config` added to its arguments.
    ///
    /// # Errors
    /// When the JVM is gone. A status other than 0 is no error here.
    pub fn tool(&mut self, class: &str, access: &Access, arguments: &[&str]) -> Result<Outcome> {
        self.feed(class, access, arguments, b"")
    }

    /// As [`Java::tool`], for tools that want the connection before a subcommand that has options of its own.
    ///
    /// # Errors
    /// When the JVM is gone.
    pub fn subcommand(
        &mut self,
        class: &str,
        access: &Access,
        arguments: &[&str],
    ) -> Result<Outcome> {
        let mut all: Vec<String> = connection(access).into_iter().collect();
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self.call(class, &all, b"", LIMIT)
    }

    /// As [`Java::tool`], with something on standard input.
    ///
    /// # Errors
    /// When the JVM is gone.
    pub fn feed(
        &mut self,
        class: &str,
        access: &Access,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<Outcome> {
        let arguments: Vec<String> = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .chain(connection(access))
            .collect();
        self.call(class, &arguments, input, LIMIT)
    }

    fn call(
        &mut self,
        class: &str,
        arguments: &[String],
        input: &[u8],
        limit: Duration,
    ) -> Result<Outcome> {
        if self.broken {
            // The old one is killed with its value.
            *self = Self::start()?;
        }
        let mut line = format!("{class} {} {}", limit.as_millis(), encode(input));
        for argument in arguments {
            let _ = write!(line, " {}", encode(argument.as_bytes()));
        }
        line.push('\n');
        self.broken = true;
        self.requests
            .write_all(line.as_bytes())
            .context("the JVM of the tools has ended")?;
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .context("the JVM of the tools has ended")?;
        let mut fields = answer.split_whitespace();
        let (Some(status), Some(stdout), Some(stderr)) =
            (fields.next(), fields.next(), fields.next())
        else {
            bail!("the JVM of the tools ended while it ran {class} {arguments:?}");
        };
        let name = class.rsplit('.').next().unwrap_or(class);
        let outcome = Outcome {
            what: format!("{name} {}", arguments.join(" ")),
            status: status
                .parse()
                .context("the tool's exit status is no number")?,
            stdout: decode(stdout)?,
            stderr: decode(stderr)?,
        };
        self.broken = outcome.status == TIMED_OUT;
        Ok(outcome)
    }
}

impl Drop for Java {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A JVM that goes back to the others when dropped, unless its last call was not answered in full or took too long: what such a JVM is doing is unknown.
#[derive(Debug)]
pub struct Lease(Option<Java>);

impl Deref for Lease {
    type Target = Java;

    #[allow(clippy::expect_used, reason = "the value is taken out only by drop")]
    fn deref(&self) -> &Java {
        self.0
            .as_ref()
            .expect("a lease holds its JVM until it is dropped")
    }
}

impl DerefMut for Lease {
    #[allow(clippy::expect_used, reason = "the value is taken out only by drop")]
    fn deref_mut(&mut self) -> &mut Java {
        self.0
            .as_mut()
            .expect("a lease holds its JVM until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(java) = self.0.take()
            && !java.broken
        {
            IDLE.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(java);
        }
    }
}

fn connection(access: &Access) -> [String; 4] {
    [
        "--bootstrap-server".to_owned(),
        access.bootstrap.clone(),
        "--command-config".to_owned(),
        access.properties.display().to_string(),
    ]
}

/// Where a JVM unpacks the native libraries of its codecs. One that is killed leaves them behind.
fn temporary_files(directory: &Path) -> String {
    format!("-Djava.io.tmpdir={}", directory.display())
}

/// A directory for the JVMs that tests share, which outlive every test. It is removed by the next process that needs one of its own.
fn own_directory() -> Result<PathBuf> {
    const PREFIX: &str = "jvm-";
    let home = cache()?;
    let own = home.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    for entry in fs::read_dir(&home)?.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another process may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(own)
}

/// The class path, after fetching the libraries and compiling the runner if that has not been done for these versions of the two files.
fn class_path() -> Result<String> {
    let home = cache()?;
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let hash = digest(&SHA256, [POM, RUNNER].concat().as_bytes());
    let name: String = hash
        .as_ref()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let directory = home.join(format!("kafka-{name}"));
    // Two test programs must not fetch at once.
    let lock =
        File::create(home.join("kafka.lock")).context("cannot make the cache's lock file")?;
    lock.lock().context("cannot lock the cache")?;
    if !directory.exists() {
        fetch(&home, &directory)?;
    }
    Ok(format!("{0}/classes:{0}/libs/*", directory.display()))
}

/// Fills a fresh directory and only then gives it its name: a half-filled one is never used.
fn fetch(home: &Path, directory: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(home).context("cannot make a directory in the cache")?;
    let (pom, runner) = (
        work.path().join("pom.xml"),
        work.path().join("ToolRunner.java"),
    );
    fs::write(&pom, POM)?;
    fs::write(&runner, RUNNER)?;
    let libs = work.path().join("libs");
    let mut maven = Command::new("mvn");
    maven
        .args(["-q", "-B", "-f"])
        .arg(&pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", libs.display()));
    run(&mut maven, b"", Duration::from_secs(600))
        .context("Apache Kafka's tools are fetched with Maven (Debian: apt-get install maven default-jdk-headless)")?
        .success()?;
    let mut compiler = Command::new("javac");
    compiler
        .arg("-cp")
        .arg(format!("{}/*", libs.display()))
        .arg("-d")
        .arg(work.path().join("classes"))
        .arg(&runner);
    run(&mut compiler, b"", Duration::from_secs(120))?.success()?;
    fs::rename(work.path(), directory).context("cannot name the fetched libraries")
}

/// Where what was built or fetched is kept between runs.
///
/// # Errors
/// When neither `HOME` nor `XDG_CACHE_HOME` is set.
pub fn cache() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(cache).join("palisade"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set: set it or XDG_CACHE_HOME")?;
    Ok(PathBuf::from(home).join(".cache/palisade"))
}

fn encode(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        "-".to_owned()
    } else {
        BASE64_STANDARD.encode(bytes)
    }
}

fn decode(field: &str) -> Result<String> {
    if field == "-" {
        return Ok(String::new());
    }
    let bytes = BASE64_STANDARD
        .decode(field)
        .context("the answer of the JVM is not base64")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A shell that answers one request in a JVM's place.
    fn answering(answer: &str) -> Java {
        let script = format!("read -r request; {answer}");
        Java::run(Command::new("sh").args(["-c", &script])).unwrap()
    }

    /// Whether the JVM is used again after a call that was answered like this.
    fn is_used_again(answer: &str) -> bool {
        let mut lease = Lease(Some(answering(answer)));
        let id = lease.child.id();
        let _ = lease.call("a.Tool", &[], b"", LIMIT);
        drop(lease);
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = idle.len();
        idle.retain(|java| java.child.id() != id);
        idle.len() < before
    }

    #[test]
    fn a_jvm_is_used_again_only_after_a_complete_answer() {
        assert!(is_used_again("echo 0 - -"));
        // A tool that fails is no fault of the JVM.
        assert!(is_used_again("echo 1 - -"));
        assert!(!is_used_again("echo 124 - -"));
        assert!(!is_used_again("echo 0 -"));
        assert!(!is_used_again("echo 0 - %"));
        assert!(!is_used_again("true"));
    }
}
