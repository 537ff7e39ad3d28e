//! One authority, a certificate for brokers and one for the client, as PEM files that both systems read.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Subject of the brokers' certificate.
pub const BROKER: &str = "broker";
/// Subject of the client's certificate, and the user's name with SCRAM.
pub const CLIENT: &str = "bench";

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// Makes everything anew: ECDSA on P-256, as both systems' operators make by default.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "bench authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        fs::write(directory.join("ca.crt"), &authority)?;
        let issuer = Issuer::from_ca_cert_pem(&authority, key)?;
        for name in [BROKER, CLIENT] {
            let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(hosts.to_vec())?;
            params.distinguished_name.remove(DnType::CommonName);
            params.distinguished_name.push(DnType::CommonName, name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let chain = params.signed_by(&key, &issuer)?.pem();
            let private = key.serialize_pem();
            fs::write(directory.join(format!("{name}.crt")), &chain)?;
            fs::write(directory.join(format!("{name}.key")), &private)?;
            // A PEM key store of Java is the key and the chain in one file.
            fs::write(directory.join(format!("{name}.pem")), private + &chain)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    pub fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.key"))
    }

    /// Key and chain in one file.
    pub fn key_store(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pem"))
    }

    /// A client of TLS 1.3 that resumes nothing, with or without the client's certificate.
    pub fn client(&self, with_certificate: bool) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        for certificate in chain(&self.authority())? {
            roots.add(certificate)?;
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let mut config = if with_certificate {
            builder.with_client_auth_cert(
                chain(&self.certificate(CLIENT))?,
                private(&self.key(CLIENT))?,
            )?
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// A server with the brokers' certificate that asks for none.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                chain(&self.certificate(BROKER))?,
                private(&self.key(BROKER))?,
            )?;
        Ok(Arc::new(config))
    }

    /// The files of a directory that [`Pki::create`] has filled.
    pub fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("cannot read {}", path.display()))
}

fn private(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_made_is_accepted_by_tls() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::create(directory.path()).unwrap();
        pki.client(true).unwrap();
        pki.client(false).unwrap();
        Pki::open(directory.path()).server().unwrap();
    }
}
