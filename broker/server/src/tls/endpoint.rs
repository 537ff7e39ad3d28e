//! An endpoint whose files may change at any moment.

use std::sync::Arc;

use arc_swap::ArcSwap;
use palisade_config::{ClientAuth, TlsConfig};
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{info, warn};

use super::load::{Files, Loaded, TlsError, load};

/// The TLS side of one port.
#[derive(Debug)]
pub(crate) struct Endpoint {
    name: String,
    paths: TlsConfig,
    client_auth: ClientAuth,
    alpn: &'static [&'static [u8]],
    /// What the endpoint's owner offers as a client of its peers, if it has any.
    client_alpn: Option<&'static [&'static [u8]]>,
    current: ArcSwap<Loaded>,
    /// Told after `current` was replaced.
    changes: watch::Sender<()>,
    watched: Mutex<Watched>,
}

/// What the last look at the files found.
#[derive(Debug, Default)]
struct Watched {
    /// Digest of the files in use.
    loaded: String,
    /// Digest of files that could not be used, and why; reported once they have been seen twice, because a mounted directory
    /// can be read between two of its files.
    refused: Option<(String, String)>,
    reported: bool,
}

impl Endpoint {
    /// Loads the files for the first time.
    ///
    /// # Errors
    /// [`TlsError`]; at start a bad file is fatal, later it only keeps the old one in use.
    pub(crate) fn open(
        name: &str,
        paths: &TlsConfig,
        client_auth: ClientAuth,
        alpn: &'static [&'static [u8]],
    ) -> Result<Self, TlsError> {
        Self::load(name, paths, client_auth, alpn, None)
    }

    /// The same for a port of peers, which show their certificates to each other: [`Loaded::client`] is there, and is replaced together with the rest.
    ///
    /// # Errors
    /// As [`Endpoint::open`].
    pub(crate) fn open_for_peers(
        name: &str,
        paths: &TlsConfig,
        alpn: &'static [&'static [u8]],
    ) -> Result<Self, TlsError> {
        Self::load(name, paths, ClientAuth::Required, alpn, Some(alpn))
    }

    fn load(
        name: &str,
        paths: &TlsConfig,
        client_auth: ClientAuth,
        alpn: &'static [&'static [u8]],
        client_alpn: Option<&'static [&'static [u8]]>,
    ) -> Result<Self, TlsError> {
        let files = Files::read(paths)?;
        let loaded = load(paths, &files, client_auth, alpn, client_alpn)?;
        warn_if_expired(name, &loaded);
        Ok(Self {
            name: name.to_owned(),
            paths: paths.clone(),
            client_auth,
            alpn,
            client_alpn,
            current: ArcSwap::from_pointee(loaded),
            changes: watch::Sender::new(()),
            watched: Mutex::new(Watched {
                loaded: files.digest(),
                ..Watched::default()
            }),
        })
    }

    /// Listener name.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What new connections get.
    #[must_use]
    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.current.load_full()
    }

    /// Tells of every replacement of [`Endpoint::current`] from now on.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Looks at the files again; true when new ones are in use now.
    pub(crate) fn refresh(&self) -> bool {
        let mut watched = self.watched.lock();
        let files = match Files::read(&self.paths) {
            Ok(files) => files,
            Err(error) => {
                self.refuse(&mut watched, "unreadable".to_owned(), &error);
                return false;
            }
        };
        let digest = files.digest();
        if digest == watched.loaded {
            if watched.refused.take().is_some() && watched.reported {
                info!(listener = %self.name, "the TLS files in use are back in place");
            }
            watched.reported = false;
            return false;
        }
        match load(
            &self.paths,
            &files,
            self.client_auth,
            self.alpn,
            self.client_alpn,
        ) {
            Ok(loaded) => {
                info!(
                    listener = %self.name,
                    serial = %loaded.leaf.serial,
                    not_after = %super::Leaf::rfc3339(loaded.leaf.not_after),
                    authorities = loaded.trust.authorities.len(),
                    "loaded new TLS files"
                );
                warn_if_expired(&self.name, &loaded);
                self.current.store(Arc::new(loaded));
                self.changes.send_replace(());
                *watched = Watched {
                    loaded: digest,
                    ..Watched::default()
                };
                true
            }
            Err(error) => {
                self.refuse(&mut watched, digest, &error);
                false
            }
        }
    }

    fn refuse(&self, watched: &mut Watched, digest: String, error: &TlsError) {
        let seen_before = matches!(&watched.refused, Some((seen, _)) if *seen == digest);
        if seen_before && !watched.reported {
            warn!(listener = %self.name, %error, "new TLS files are refused, the old ones stay in use");
            watched.reported = true;
        } else if !seen_before {
            watched.reported = false;
        }
        watched.refused = Some((digest, error.to_string()));
    }

    /// What is wrong with the endpoint now; `None` when all is well.
    #[must_use]
    pub(crate) fn problem(&self, now: OffsetDateTime) -> Option<String> {
        let watched = self.watched.lock();
        if let (true, Some((_, reason))) = (watched.reported, &watched.refused) {
            return Some(format!(
                "listener {}: new TLS files are refused, the old ones stay in use: {reason}",
                self.name
            ));
        }
        let not_after = self.current.load().leaf.not_after;
        (not_after <= now).then(|| {
            format!(
                "listener {}: the certificate expired at {}",
                self.name,
                super::Leaf::rfc3339(not_after)
            )
        })
    }
}

/// Those who verify the certificate cannot be told by `/status`: it is served under the same one.
fn warn_if_expired(listener: &str, loaded: &Loaded) {
    let not_after = loaded.leaf.not_after;
    if not_after <= OffsetDateTime::now_utc() {
        warn!(listener, not_after = %super::Leaf::rfc3339(not_after), "the certificate has expired: clients refuse it until it is replaced");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::{fs, path::Path};

    use super::*;

    fn write_pair(dir: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        fs::write(dir.join("tls.crt"), certificate.pem()).unwrap();
        fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    }

    fn endpoint(dir: &Path) -> Result<Endpoint, TlsError> {
        let paths = TlsConfig {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            client_ca: Some(dir.join("ca.crt")),
        };
        Endpoint::open("internal", &paths, ClientAuth::Requested, &[])
    }

    #[test]
    fn new_files_replace_the_old_and_bad_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        write_pair(dir.path(), "one");
        fs::copy(dir.path().join("tls.crt"), dir.path().join("ca.crt")).unwrap();
        let endpoint = endpoint(dir.path()).unwrap();
        let first = endpoint.current().leaf.clone();
        assert!(!endpoint.refresh());

        write_pair(dir.path(), "two");
        assert!(endpoint.refresh());
        let second = endpoint.current().leaf.clone();
        assert_ne!(first.serial, second.serial);
        assert_eq!(endpoint.problem(second.not_before), None);

        fs::write(dir.path().join("tls.key"), "not a key").unwrap();
        assert!(!endpoint.refresh());
        assert_eq!(
            endpoint.problem(second.not_before),
            None,
            "one look may fall between two writes"
        );
        assert!(!endpoint.refresh());
        let problem = endpoint.problem(second.not_before).unwrap();
        assert!(
            problem.contains("the old ones stay in use") && problem.contains("tls.key"),
            "{problem}"
        );
        assert_eq!(endpoint.current().leaf, second);

        write_pair(dir.path(), "three");
        assert!(endpoint.refresh());
        assert_eq!(endpoint.problem(second.not_before), None);
    }

    #[test]
    fn an_expired_certificate_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        write_pair(dir.path(), "one");
        fs::copy(dir.path().join("tls.crt"), dir.path().join("ca.crt")).unwrap();
        let endpoint = endpoint(dir.path()).unwrap();
        let after = endpoint.current().leaf.not_after + time::Duration::seconds(1);
        assert!(
            endpoint
                .problem(after)
                .unwrap()
                .contains("certificate expired at")
        );
    }

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = endpoint(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("cannot read") && message.contains("tls.crt"),
            "{message}"
        );
        write_pair(dir.path(), "one");
        fs::write(dir.path().join("ca.crt"), "").unwrap();
        let message = endpoint(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("ca.crt holds no usable authority: it has no CERTIFICATE block"),
            "{message}"
        );
    }
}
