//! From PEM files to a rustls configuration.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use palisade_config::{ClientAuth, TlsConfig};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use zeroize::Zeroizing;

use super::{
    client,
    describe::{Leaf, sha256_hex},
};

/// Why an endpoint's files cannot be used; says which file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TlsError {
    /// A file is not there or not readable.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} holds no usable {what}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why it was not found.
        reason: String,
    },
    /// Certificate and key do not belong together, or rustls refuses them.
    #[error("certificate {} and key {} cannot be used together: {reason}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        reason: String,
    },
    /// Client certificates are asked for and no authority is configured.
    #[error("client certificates are asked for but tls.client_ca names no file")]
    NoAuthority,
}

/// The bytes of an endpoint's files at one moment.
pub(super) struct Files {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    pub(super) fn read(paths: &TlsConfig) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&paths.certificate)?,
            key: Zeroizing::new(read(&paths.key)?),
            client_ca: paths.client_ca.as_deref().map(read).transpose()?,
        })
    }

    /// Differs when any file differs.
    pub(super) fn digest(&self) -> String {
        let parts = [
            sha256_hex(&self.certificate),
            sha256_hex(&self.key),
            self.client_ca
                .as_deref()
                .map(sha256_hex)
                .unwrap_or_default(),
        ];
        sha256_hex(parts.concat().as_bytes())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read {
        path: path.to_owned(),
        error,
    })
}

/// The authorities whose client certificates an endpoint accepts, as the rest of the broker wants to talk of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientTrust {
    /// SHA-256 of each authority's DER, lower-case hex, sorted.
    pub(crate) authorities: Vec<String>,
}

/// What an endpoint uses now.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// For new connections.
    pub(crate) config: Arc<ServerConfig>,
    /// For connections to peers, when the endpoint is for those.
    pub(crate) client: Option<Arc<ClientConfig>>,
    /// What the leaf says of itself.
    pub(crate) leaf: Leaf,
    /// Whom it trusts.
    pub(crate) trust: ClientTrust,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Loaded {
    /// Whether a client that shows this chain, its own certificate first, would be let in now.
    pub(crate) fn trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        chain.split_first().is_some_and(|(leaf, others)| {
            let verified = self
                .verifier
                .verify_client_cert(leaf, others, UnixTime::now());
            verified.is_ok()
        })
    }
}

pub(super) fn load(
    paths: &TlsConfig,
    files: &Files,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
    client_alpn: Option<&[&[u8]]>,
) -> Result<Loaded, TlsError> {
    let chain = certificates(&files.certificate)
        .map_err(|reason| content(&paths.certificate, "certificate", reason))?;
    let leaf = chain
        .first()
        .ok_or_else(|| content(&paths.certificate, "certificate", "it is empty".to_owned()))
        .and_then(|leaf| {
            Leaf::parse(leaf).map_err(|reason| content(&paths.certificate, "certificate", reason))
        })?;
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|error| content(&paths.key, "private key", error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (verifier, trust) = verifier(paths, files, client_auth, &provider)?;
    let client = client_alpn
        .map(|alpn| client::load(paths, files, alpn, &provider))
        .transpose()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| pair(paths, &error))?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(chain, key)
        .map_err(|error| pair(paths, &error))?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // A client that connects often resumes its session with one ticket; more of them cost every handshake a round of signing.
    config.send_tls13_tickets = 1;
    Ok(Loaded {
        config: Arc::new(config),
        client,
        leaf,
        trust,
        verifier,
    })
}

pub(super) fn content(path: &Path, what: &'static str, reason: String) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        what,
        reason,
    }
}

pub(super) fn pair(paths: &TlsConfig, error: &rustls::Error) -> TlsError {
    TlsError::Pair {
        certificate: paths.certificate.clone(),
        key: paths.key.clone(),
        reason: error.to_string(),
    }
}

fn verifier(
    paths: &TlsConfig,
    files: &Files,
    client_auth: ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<dyn ClientCertVerifier>, ClientTrust), TlsError> {
    if client_auth == ClientAuth::None {
        return Ok((
            WebPkiClientVerifier::no_client_auth(),
            ClientTrust::default(),
        ));
    }
    let (roots, trust) = roots(paths, files)?;
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = if client_auth == ClientAuth::Requested {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    let verifier = builder.build().map_err(|error| {
        let path = paths.client_ca.as_deref().unwrap_or(Path::new(""));
        content(path, "authority", error.to_string())
    })?;
    Ok((verifier, trust))
}

/// The authorities of an endpoint.
pub(super) fn roots(
    paths: &TlsConfig,
    files: &Files,
) -> Result<(Arc<RootCertStore>, ClientTrust), TlsError> {
    let (Some(path), Some(pem)) = (&paths.client_ca, &files.client_ca) else {
        return Err(TlsError::NoAuthority);
    };
    let bad = |reason: String| content(path, "authority", reason);
    let mut roots = RootCertStore::empty();
    let mut authorities = Vec::new();
    for authority in certificates(pem).map_err(bad)? {
        authorities.push(sha256_hex(&authority));
        roots
            .add(authority)
            .map_err(|error| bad(error.to_string()))?;
    }
    authorities.sort();
    authorities.dedup();
    Ok((Arc::new(roots), ClientTrust { authorities }))
}

pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    if chain.is_empty() {
        return Err("it has no CERTIFICATE block".to_owned());
    }
    Ok(chain)
}
