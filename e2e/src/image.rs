//! Container images without a container engine: archives in the OCI image layout
//! (<https://github.com/opencontainers/image-spec>) with a single layer, which containerd, kind, Docker and Podman load.
//!
//! An image holds the listed files and nothing else. A program that is not static brings the shared libraries that
//! `ldd` names. The same files give the same image, byte for byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::cluster::command::{installed, run};
use crate::cluster::{ClusterError, Program};

/// The image of the operator.
pub const OPERATOR_IMAGE: &str = "palisade.local/operator:dev";
/// The image of the broker.
pub const BROKER_IMAGE: &str = "palisade.local/broker:dev";
/// The image of a Kafka client with a shell.
pub const KCAT_IMAGE: &str = "palisade.local/kcat:dev";
/// The image of the process that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "palisade.local/pause:1";
/// The image of the cluster's DNS server.
pub(crate) const COREDNS_IMAGE: &str = "palisade.local/coredns:1";

/// The user that our own images run as, unless a pod says otherwise.
const USER: u32 = 65532;

/// The commands of the shell that the client's image offers.
const SHELL_COMMANDS: [&str; 30] = [
    "awk", "basename", "cat", "cp", "cut", "date", "echo", "env", "expr", "false", "find", "grep",
    "head", "id", "ls", "mkdir", "mv", "nc", "nslookup", "printf", "rm", "sed", "seq", "sh",
    "sleep", "sort", "tail", "timeout", "true", "wget",
];

/// An image that is being put together.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    user: u32,
    entries: BTreeMap<PathBuf, Entry>,
    /// Files that were made for the image, for as long as it is there.
    made: Vec<Arc<TempDir>>,
}

#[derive(Debug, Clone)]
enum Entry {
    Directory { mode: u32 },
    File { source: PathBuf, mode: u32 },
    Text { content: String },
    Link { target: PathBuf },
}

impl Image {
    /// An image that runs `entrypoint` as an unprivileged user, and has a `/tmp` and the users root and nonroot.
    pub fn new(name: &str, entrypoint: &[&str]) -> Self {
        let image = Self {
            name: name.to_owned(),
            entrypoint: entrypoint.iter().map(|it| (*it).to_owned()).collect(),
            user: USER,
            entries: BTreeMap::new(),
            made: Vec::new(),
        };
        image
            .entry("/tmp", Entry::Directory { mode: 0o1777 })
            .text("/etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n")
            .text("/etc/group", "root:x:0:\nnonroot:x:65532:\n")
    }

    /// Adds a small file.
    #[must_use]
    pub fn text(self, path: &str, content: &str) -> Self {
        let content = content.to_owned();
        self.entry(path, Entry::Text { content })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        let target = target.into();
        self.entry(path, Entry::Link { target })
    }

    /// Adds a program at `path`, and the shared libraries that it needs at the paths where they are here.
    ///
    /// # Errors
    /// When the program cannot be read or lacks a library.
    pub fn program(mut self, path: &str, source: &Path) -> Result<Self, ClusterError> {
        for library in shared_libraries(source)? {
            let mode = 0o755;
            let source = library.clone();
            self.entries.insert(library, Entry::File { source, mode });
        }
        let source = source.to_owned();
        Ok(self.entry(
            path,
            Entry::File {
                source,
                mode: 0o755,
            },
        ))
    }

    /// Like [`Image::program`], without the symbols, which are most of a binary that was not built for release.
    ///
    /// # Errors
    /// As [`Image::program`].
    pub fn stripped_program(mut self, path: &str, source: &Path) -> Result<Self, ClusterError> {
        let directory = TempDir::new().map_err(ClusterError::io(std::env::temp_dir()))?;
        let stripped = directory.path().join("program");
        strip(source, &stripped)?;
        self.made.push(Arc::new(directory));
        self.program(path, &stripped)
    }

    fn entry(mut self, path: &str, entry: Entry) -> Self {
        self.entries.insert(path.into(), entry);
        self
    }

    /// The operator's image, from its binary.
    ///
    /// # Errors
    /// As [`Image::program`].
    pub fn operator(binary: &Path) -> Result<Self, ClusterError> {
        Self::new(OPERATOR_IMAGE, &["/palisade-operator"])
            .stripped_program("/palisade-operator", binary)
    }

    /// The broker's image, from its binary.
    ///
    /// # Errors
    /// As [`Image::program`].
    pub fn broker(binary: &Path) -> Result<Self, ClusterError> {
        Self::new(BROKER_IMAGE, &["/palisade-broker"]).stripped_program("/palisade-broker", binary)
    }

    /// A Kafka client, kcat, with the shell that examples need, both from Debian's packages.
    ///
    /// # Errors
    /// When they are not installed.
    pub fn kcat() -> Result<Self, ClusterError> {
        let kcat = find(&["/usr/bin/kcat", "/usr/bin/kafkacat"], "kafkacat")?;
        let busybox = find(&["/bin/busybox", "/usr/bin/busybox"], "busybox-static")?;
        let mut image = Self::new(KCAT_IMAGE, &["/bin/kcat"])
            .program("/bin/kcat", &kcat)?
            .program("/bin/busybox", &busybox)?
            .text("/etc/nsswitch.conf", "hosts: files dns\n");
        for command in SHELL_COMMANDS {
            image = image.link(&format!("/bin/{command}"), "busybox");
        }
        Ok(image)
    }

    /// The image that containerd starts first in every pod.
    ///
    /// # Errors
    /// When the program cannot be built.
    pub(crate) fn pause() -> Result<Self, ClusterError> {
        Self::new(PAUSE_IMAGE, &["/pause"]).program("/pause", &Program::Pause.build()?)
    }

    /// The image of the cluster's DNS server.
    ///
    /// # Errors
    /// When the program cannot be built.
    pub(crate) fn coredns() -> Result<Self, ClusterError> {
        Self::new(COREDNS_IMAGE, &["/coredns"]).program("/coredns", &Program::CoreDns.build()?)
    }

    /// Writes the image's archive.
    ///
    /// # Errors
    /// When a file cannot be read or the archive not be written.
    pub fn write(&self, archive: &Path) -> Result<(), ClusterError> {
        self.try_write(archive).map_err(ClusterError::io(archive))
    }

    fn try_write(&self, archive: &Path) -> io::Result<()> {
        let mut layer = tempfile::tempfile()?;
        let (layer_digest, layer_size) = {
            let mut hashing = Hashing::new(BufWriter::new(&layer));
            self.write_layer(&mut hashing)?;
            hashing.finish()?
        };
        layer.rewind()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/bin:/usr/bin"],
                "User": format!("{0}:{0}", self.user),
                "WorkingDir": "/tmp",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        })
        .to_string();
        let config_digest = sha256(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_digest, config.len() as u64),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer_digest, layer_size)],
        })
        .to_string();
        let manifest_digest = sha256(manifest.as_bytes());
        let mut entry = descriptor(MANIFEST_TYPE, &manifest_digest, manifest.len() as u64);
        let tag = self.name.rsplit(':').next().unwrap_or_default();
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        // What Docker's and Podman's `load` read.
        let docker = json!([{
            "Config": blob(&config_digest),
            "RepoTags": [self.name],
            "Layers": [blob(&layer_digest)],
        }])
        .to_string();

        let temporary = archive.with_extension("tar.new");
        let mut tar = Builder::new(BufWriter::new(File::create(&temporary)?));
        append(
            &mut tar,
            "oci-layout",
            r#"{"imageLayoutVersion":"1.0.0"}"#.as_bytes(),
        )?;
        append(&mut tar, "index.json", index.as_bytes())?;
        append(&mut tar, "manifest.json", docker.as_bytes())?;
        append(&mut tar, blob(&config_digest), config.as_bytes())?;
        append(&mut tar, blob(&manifest_digest), manifest.as_bytes())?;
        let mut header = header(EntryType::Regular, 0o644, layer_size);
        tar.append_data(&mut header, blob(&layer_digest), BufReader::new(layer))?;
        tar.into_inner()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(&temporary, archive)
    }

    fn write_layer(&self, out: impl Write) -> io::Result<()> {
        let mut tar = Builder::new(out);
        for directory in self.directories() {
            let mode = match self.entries.get(&directory) {
                Some(Entry::Directory { mode }) => *mode,
                _ => 0o755,
            };
            tar.append_data(
                &mut header(EntryType::Directory, mode, 0),
                inside(&directory),
                io::empty(),
            )?;
        }
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory { .. } => {}
                Entry::Text { content } => append(&mut tar, inside(path), content.as_bytes())?,
                Entry::Link { target } => {
                    tar.append_link(
                        &mut header(EntryType::Symlink, 0o777, 0),
                        inside(path),
                        target,
                    )?;
                }
                Entry::File { source, mode } => {
                    let open = |source: &Path| {
                        let file = File::open(source)?;
                        let size = file.metadata()?.len();
                        io::Result::Ok((file, size))
                    };
                    let (file, size) = open(source).map_err(|error| named(source, &error))?;
                    let mut header = header(EntryType::Regular, *mode, size);
                    tar.append_data(&mut header, inside(path), file.take(size))?;
                }
            }
        }
        tar.into_inner()?.flush()
    }

    /// Every directory that an entry is or is in, parents first.
    fn directories(&self) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        for (path, entry) in &self.entries {
            let itself = matches!(entry, Entry::Directory { .. }).then_some(path.as_path());
            let all = path.ancestors().skip(1).chain(itself);
            directories.extend(all.filter(|it| it.parent().is_some()).map(Path::to_owned));
        }
        directories.sort();
        directories.dedup();
        directories
    }
}

/// Copies a program without its symbols if this machine has the tool; else as it is.
fn strip(program: &Path, to: &Path) -> Result<(), ClusterError> {
    if installed("strip") {
        return run(Command::new("strip").arg("-o").arg(to).arg(program)).map(drop);
    }
    fs::copy(program, to)
        .map(drop)
        .map_err(ClusterError::io(program))
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn find(candidates: &[&str], package: &str) -> Result<PathBuf, ClusterError> {
    let found = candidates.iter().map(PathBuf::from).find(|it| it.exists());
    found.ok_or_else(|| {
        ClusterError::Invalid(format!(
            "{} is missing; install Debian's package {package} (e2e/bootstrap.sh does)",
            candidates.join(" or ")
        ))
    })
}

/// The shared libraries of a program, its loader among them; none for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>, ClusterError> {
    let failed = |detail: String| ClusterError::Command {
        command: format!("ldd {}", program.display()),
        detail,
    };
    fs::metadata(program).map_err(ClusterError::io(program))?;
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !complaint.contains("not a dynamic executable") {
        return Err(failed(complaint.trim().to_owned()));
    }
    parse_libraries(&listed)
        .map_err(|missing| failed(format!("it needs {missing}, which is not installed")))
}

/// Reads the lines `NAME => PATH (ADDRESS)` and `PATH (ADDRESS)` of ldd; the kernel's own library has no path.
fn parse_libraries(listed: &str) -> Result<Vec<PathBuf>, String> {
    let mut libraries = Vec::new();
    for line in listed.lines().map(str::trim) {
        let (name, found) = line.split_once(" => ").unwrap_or(("", line));
        if found.starts_with("not found") {
            return Err(name.to_owned());
        }
        let path = found.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(path.into());
        }
    }
    Ok(libraries)
}

fn append(tar: &mut Builder<impl Write>, path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
    tar.append_data(&mut header, path, content)
}

/// Owned by root and without a time, so that the same content always has the same digest.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Counts and hashes what is written through it.
struct Hashing<W> {
    inner: W,
    context: digest::Context,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            context: digest::Context::new(&digest::SHA256),
            size: 0,
        }
    }

    fn finish(mut self) -> io::Result<(String, u64)> {
        self.inner.flush()?;
        Ok((hex(self.context.finish().as_ref()), self.size))
    }
}

impl<W: Write> Write for &mut Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.context
            .update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn read(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(File::open(archive).unwrap());
        let mut files = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        files
    }

    #[test]
    fn every_blob_has_the_digest_and_size_by_which_it_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("image.tar");
        let image = Image::new("test.local/image:1", &["/hello"])
            .text("/hello", "hi")
            .link("/bin/ls", "busybox");
        image.write(&archive).unwrap();
        let files = read(&archive);
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let described = &index["manifests"][0];
        assert_eq!(
            described["annotations"]["io.containerd.image.name"],
            "test.local/image:1"
        );
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap();
            let content = files[&blob(digest)].clone();
            assert_eq!(sha256(&content), digest);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let manifest: Value = serde_json::from_slice(&follow(described)).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        let layer = directory.path().join("layer.tar");
        fs::write(&layer, follow(&manifest["layers"][0])).unwrap();
        let inside = read(&layer);
        assert_eq!(inside["hello"], b"hi");
        assert!(
            inside.contains_key("tmp")
                && inside.contains_key("bin/ls")
                && inside.contains_key("bin")
        );
    }

    #[test]
    fn the_same_files_give_the_same_archive() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (
            directory.path().join("one.tar"),
            directory.path().join("two.tar"),
        );
        let image = Image::new("test.local/image:1", &["/hello"]).text("/hello", "hi");
        image.write(&one).unwrap();
        image.write(&two).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let listed = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x7f1)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f2)\n";
        let expected: Vec<PathBuf> = vec![
            "/lib/x86_64-linux-gnu/libm.so.6".into(),
            "/lib64/ld-linux-x86-64.so.2".into(),
        ];
        assert_eq!(parse_libraries(listed).unwrap(), expected);
        assert_eq!(
            parse_libraries("\tlibx.so.1 => not found\n").unwrap_err(),
            "libx.so.1"
        );
    }
}
