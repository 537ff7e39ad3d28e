//! The certificates and kubeconfigs of a cluster: one authority, made new for each cluster.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::ClusterError;

/// The authority of a cluster, with the directory in which all its files are.
pub(crate) struct Authority {
    directory: PathBuf,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate names, and for what it may be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    /// The common name: to Kubernetes, the user.
    pub(crate) user: &'a str,
    /// The organisation: to Kubernetes, the group.
    pub(crate) group: Option<&'a str>,
    /// The names under which it serves; none for a mere client.
    pub(crate) dns_names: &'a [&'a str],
    /// The addresses at which it serves.
    pub(crate) addresses: &'a [IpAddr],
}

impl<'a> Identity<'a> {
    /// A client without a group.
    pub(crate) fn user(user: &'a str) -> Self {
        Self {
            user,
            group: None,
            dns_names: &[],
            addresses: &[],
        }
    }

    /// A client that is a member of a group.
    pub(crate) fn member(user: &'a str, group: &'a str) -> Self {
        Self {
            group: Some(group),
            ..Self::user(user)
        }
    }
}

impl Authority {
    /// Makes a new authority and writes `ca.crt`, `ca.key`, `service-account.key` and `service-account.pub`
    /// into a directory, which is made.
    ///
    /// # Errors
    /// When the certificate cannot be made or a file not be written.
    pub(crate) fn create(directory: &Path) -> Result<Self, ClusterError> {
        fs::create_dir_all(directory).map_err(ClusterError::io(directory))?;
        let failed = |error| ClusterError::Certificate {
            subject: "the cluster's authority".to_owned(),
            error,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = parameters("palisade-e2e-authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = params.self_signed(&key).map_err(failed)?;
        write_private(&directory.join("ca.crt"), certificate.pem().as_bytes())?;
        write_private(&directory.join("ca.key"), key.serialize_pem().as_bytes())?;
        let tokens = KeyPair::generate().map_err(failed)?;
        write_private(
            &directory.join("service-account.key"),
            tokens.serialize_pem().as_bytes(),
        )?;
        write_private(
            &directory.join("service-account.pub"),
            tokens.public_key_pem().as_bytes(),
        )?;
        Ok(Self {
            directory: directory.to_owned(),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// The path of one of the authority's files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Issues a certificate and writes `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When the certificate cannot be made or a file not be written.
    pub(crate) fn issue(&self, name: &str, identity: Identity<'_>) -> Result<(), ClusterError> {
        let (certificate, key) = self.sign(identity)?;
        write_private(&self.file(&format!("{name}.crt")), certificate.as_bytes())?;
        write_private(&self.file(&format!("{name}.key")), key.as_bytes())
    }

    /// Writes a kubeconfig that holds everything a client needs to be `identity` at `server`.
    ///
    /// # Errors
    /// When the certificate cannot be made or the file not be written.
    pub(crate) fn kubeconfig(
        &self,
        path: &Path,
        server: &str,
        identity: Identity<'_>,
    ) -> Result<(), ClusterError> {
        let (certificate, key) = self.sign(identity)?;
        let data = |pem: &str| base64(pem.as_bytes());
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "palisade",
            "clusters": [{"name": "palisade", "cluster": {
                "server": server,
                "certificate-authority-data": data(&self.certificate.pem()),
            }}],
            "users": [{"name": identity.user, "user": {
                "client-certificate-data": data(&certificate),
                "client-key-data": data(&key),
            }}],
            "contexts": [{"name": "palisade", "context": {"cluster": "palisade", "user": identity.user}}],
        });
        // JSON is YAML, and needs no quoting rules of its own here.
        write_private(path, format!("{config:#}\n").as_bytes())
    }

    fn sign(&self, identity: Identity<'_>) -> Result<(String, String), ClusterError> {
        let failed = |error| ClusterError::Certificate {
            subject: identity.user.to_owned(),
            error,
        };
        let mut params = parameters(identity.user);
        if let Some(group) = identity.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !identity.dns_names.is_empty() || !identity.addresses.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for name in identity.dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName((*name).try_into().map_err(failed)?));
        }
        for address in identity.addresses {
            params.subject_alt_names.push(SanType::IpAddress(*address));
        }
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn parameters(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // A little in the past: in a namespace or a guest the clock may lag.
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(365);
    params
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), ClusterError> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(ClusterError::io(path))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
