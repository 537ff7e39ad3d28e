//! Certificates and the key of a test's cluster.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Result, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority that issues everything here.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn make(home: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "e2e authority");
        let key = KeyPair::generate()?;
        fs::write(home.join("ca.crt"), params.self_signed(&key)?.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes `<name>.crt` and `<name>.key`, valid for `localhost` and these addresses.
    pub(super) fn issue(&self, home: &Path, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let mut names = vec!["localhost".to_owned()];
        names.extend(addresses.iter().map(IpAddr::to_string));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(home.join(format!("{name}.crt")), certificate.pem())?;
        fs::write(home.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
}

/// A key-encryption key, in the shape of a mounted Secret.
pub(super) fn key(dir: &Path) -> Result<()> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("no randomness"))?;
    fs::create_dir_all(dir)?;
    fs::write(dir.join("e2e.key"), STANDARD.encode(bytes))?;
    Ok(fs::write(dir.join("current"), "e2e\n")?)
}
