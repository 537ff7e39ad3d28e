//! Certificate authorities and what they issue.

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::{BACKDATE, CertificateInfo, CommonName, PkiError, certificates, inspect::hex};

/// Authorities between a leaf and the oldest root: a chain carries at most two cross-signed ones.
const PATH_LENGTH: u8 = 2;

/// Kind of key of an authority and of what it issues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    EcdsaP256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384,
    /// RSA of 3072 bits with SHA-256.
    Rsa3072,
}

impl KeyAlgorithm {
    fn generate(self) -> Result<KeyPair, PkiError> {
        Ok(match self {
            Self::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
            Self::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?,
            Self::Rsa3072 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)?
            }
        })
    }
}

/// What a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafUse {
    /// A broker: server, and client of other brokers.
    Broker,
    /// A client only.
    Client,
}

/// The key of a leaf.
#[derive(Clone, Copy, Debug)]
pub enum LeafKey<'a> {
    /// Make one.
    New(KeyAlgorithm),
    /// Keep this one (PKCS#8 PEM).
    Existing(&'a str),
}

/// A certificate and its key.
pub struct Leaf {
    /// The certificate alone, PEM.
    pub certificate: String,
    /// The key, PKCS#8 PEM.
    pub key: Zeroizing<String>,
}

/// An authority that can sign.
pub struct Authority {
    certificate: String,
    info: CertificateInfo,
    key: KeyPair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("certificate", &self.info)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority with a new key. The subject carries part of the key's identifier, so no two authorities share a subject: chains of
    /// old and new never confuse a client that chooses issuers by name.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn generate(
        name: &CommonName,
        algorithm: KeyAlgorithm,
        validity: Duration,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let key = algorithm.generate()?;
        let id = authority_params(None, validity, now)?.key_identifier(&key);
        let short = hex(id.get(..4).unwrap_or(&id));
        // 64 characters is the longest a common name may be; the identifier takes nine.
        let stem: String = name.as_str().chars().take(55).collect();
        Self::self_signed(&format!("{stem} {short}"), key, validity, now)
    }

    /// Reads an authority back.
    ///
    /// # Errors
    /// [`PkiError::Read`], or [`PkiError::Mismatch`] when key and certificate do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let info = CertificateInfo::from_pem(certificate)?;
        let key = read_key(key)?;
        if key.subject_public_key_info() != info.public_key {
            return Err(PkiError::Mismatch(info.subject));
        }
        Ok(Self {
            certificate: certificate.to_owned(),
            info,
            key,
        })
    }

    /// The same authority, name and key, valid from now on.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn renew(&self, validity: Duration, now: OffsetDateTime) -> Result<Self, PkiError> {
        let name = self.common_name()?;
        Self::self_signed(&name, read_key(&self.key_pem())?, validity, now)
    }

    fn self_signed(
        common_name: &str,
        key: KeyPair,
        validity: Duration,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let certificate = authority_params(Some(common_name), validity, now)?.self_signed(&key)?;
        let info = CertificateInfo::from_der(certificate.der())?;
        Ok(Self {
            certificate: certificate.pem(),
            info,
            key,
        })
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// The key, PKCS#8 PEM.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// What the certificate says.
    #[must_use]
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// Signs another authority's name and key, so that who trusts only `self` accepts what `other` issues. Valid until the earlier end of the two.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn cross_sign(&self, other: &Self, now: OffsetDateTime) -> Result<String, PkiError> {
        let end = self.info.not_after.min(other.info.not_after);
        let params = authority_params(Some(&other.common_name()?), end - now, now)?;
        Ok(self.sign(params, &other.key)?.pem())
    }

    /// Issues a leaf whose subject is `CN=<name>`. It never outlives the authority.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(
        &self,
        name: &CommonName,
        dns_names: &[String],
        usage: LeafUse,
        key: LeafKey<'_>,
        validity: Duration,
        now: OffsetDateTime,
    ) -> Result<Leaf, PkiError> {
        let key = match key {
            LeafKey::New(algorithm) => algorithm.generate()?,
            LeafKey::Existing(pem) => read_key(pem)?,
        };
        let mut params = base_params(
            Some(name.as_str()),
            validity.min(self.info.not_after - now),
            now,
        )?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            LeafUse::Broker => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            LeafUse::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.subject_alt_names = dns_names
            .iter()
            .map(|dns| Ok(SanType::DnsName(dns.as_str().try_into()?)))
            .collect::<Result<_, rcgen::Error>>()?;
        params.use_authority_key_identifier_extension = true;
        let certificate = self.sign(params, &key)?.pem();
        Ok(Leaf {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn sign(&self, params: CertificateParams, key: &KeyPair) -> Result<Certificate, PkiError> {
        let der = certificates(&self.certificate)?;
        let der = der.first().ok_or_else(|| PkiError::Read {
            what: "an authority",
            reason: "the PEM text holds no certificate".to_owned(),
        })?;
        let issuer = Issuer::from_ca_cert_der(der, &self.key)?;
        Ok(params.signed_by(key, &issuer)?)
    }

    fn common_name(&self) -> Result<String, PkiError> {
        self.info
            .subject
            .strip_prefix("CN=")
            .map(ToOwned::to_owned)
            .ok_or_else(|| PkiError::Read {
                what: "an authority",
                reason: format!("subject `{}` is not a common name", self.info.subject),
            })
    }
}

fn read_key(pem: &str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(pem).map_err(|error| PkiError::Read {
        what: "a private key",
        reason: error.to_string(),
    })
}

fn base_params(
    common_name: Option<&str>,
    validity: Duration,
    now: OffsetDateTime,
) -> Result<CertificateParams, PkiError> {
    let end = now
        .checked_add(validity)
        .filter(|end| *end > now && validity <= Duration::days(36_525));
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| PkiError::Random)?;
    // Positive and of full length (RFC 5280 section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = end.ok_or(PkiError::Validity(validity))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    Ok(params)
}

fn authority_params(
    common_name: Option<&str>,
    validity: Duration,
    now: OffsetDateTime,
) -> Result<CertificateParams, PkiError> {
    let mut params = base_params(common_name, validity, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(PATH_LENGTH));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    const HOST: &str = "events-0.events-brokers.messaging.svc";

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn name(text: &str) -> CommonName {
        CommonName::new(text).unwrap()
    }

    fn authority() -> Authority {
        Authority::generate(
            &name("events-cluster"),
            KeyAlgorithm::EcdsaP256,
            Duration::days(1095),
            now(),
        )
        .unwrap()
    }

    fn broker(authority: &Authority) -> Leaf {
        authority
            .issue(
                &name("events-0"),
                &[HOST.to_owned()],
                LeafUse::Broker,
                LeafKey::New(KeyAlgorithm::EcdsaP384),
                Duration::days(90),
                now(),
            )
            .unwrap()
    }

    /// Whether a TLS client that trusts `roots` accepts `chain` for `host` at `time`.
    fn accepted(roots: &[&str], chain: &[&str], host: &str, time: OffsetDateTime) -> bool {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(certificates(root).unwrap().remove(0)).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .unwrap();
        let mut chain: Vec<_> = chain
            .iter()
            .map(|pem| certificates(pem).unwrap().remove(0))
            .collect();
        let leaf = chain.remove(0);
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            time.unix_timestamp().unsigned_abs(),
        ));
        verifier
            .verify_server_cert(
                &leaf,
                &chain,
                &ServerName::try_from(host.to_owned()).unwrap(),
                &[],
                time,
            )
            .is_ok()
    }

    #[test]
    fn a_leaf_is_accepted_for_its_names_while_it_is_valid() {
        let authority = authority();
        let leaf = broker(&authority);
        let root = authority.certificate_pem();
        assert!(accepted(&[root], &[&leaf.certificate], HOST, now()));
        assert!(accepted(
            &[root],
            &[&leaf.certificate],
            HOST,
            now() - Duration::minutes(4)
        ));
        assert!(!accepted(&[root], &[&leaf.certificate], "localhost", now()));
        assert!(!accepted(
            &[root],
            &[&leaf.certificate],
            HOST,
            now() + Duration::days(91)
        ));
    }

    #[test]
    fn who_trusts_only_the_old_authority_accepts_the_new_ones_leaf_by_the_cross_signed_chain() {
        let (old, new, newest) = (authority(), authority(), authority());
        let leaf = broker(&new);
        let cross = old.cross_sign(&new, now()).unwrap();
        assert!(!accepted(
            &[old.certificate_pem()],
            &[&leaf.certificate],
            HOST,
            now()
        ));
        assert!(accepted(
            &[old.certificate_pem()],
            &[&leaf.certificate, &cross],
            HOST,
            now()
        ));
        assert!(accepted(
            &[new.certificate_pem()],
            &[&leaf.certificate, &cross],
            HOST,
            now()
        ));
        let leaf = broker(&newest);
        let second = new.cross_sign(&newest, now()).unwrap();
        assert!(accepted(
            &[old.certificate_pem()],
            &[&leaf.certificate, &second, &cross],
            HOST,
            now()
        ));
    }

    #[test]
    fn a_renewed_authority_keeps_name_and_key_so_old_leaves_stay_good() {
        let old = authority();
        let leaf = broker(&old);
        let renewed = old
            .renew(Duration::days(1095), now() + Duration::days(30))
            .unwrap();
        assert_eq!(renewed.info().subject, old.info().subject);
        assert_ne!(renewed.info().serial, old.info().serial);
        assert!(accepted(
            &[renewed.certificate_pem()],
            &[&leaf.certificate],
            HOST,
            now() + Duration::days(31)
        ));
    }

    #[test]
    fn every_algorithm_issues_what_tls_accepts() {
        for algorithm in [KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa3072] {
            let made =
                Authority::generate(&name("events"), algorithm, Duration::days(9), now()).unwrap();
            let authority = Authority::from_pem(made.certificate_pem(), &made.key_pem()).unwrap();
            let leaf = broker(&authority);
            assert!(accepted(
                &[authority.certificate_pem()],
                &[&leaf.certificate],
                HOST,
                now()
            ));
        }
    }

    #[test]
    fn authorities_have_distinct_subjects_and_read_back() {
        let (one, two) = (authority(), authority());
        assert_ne!(one.info().subject, two.info().subject);
        let read = Authority::from_pem(one.certificate_pem(), &one.key_pem()).unwrap();
        assert_eq!(read.info(), one.info());
        let error = Authority::from_pem(one.certificate_pem(), &two.key_pem())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the private key does not belong to certificate `CN=events-cluster "),
            "{error}"
        );
    }

    #[test]
    fn a_leaf_says_who_issued_it_and_never_outlives_it() {
        let authority = authority();
        let leaf = authority
            .issue(
                &name("alice"),
                &[],
                LeafUse::Client,
                LeafKey::New(KeyAlgorithm::EcdsaP256),
                Duration::days(9000),
                now(),
            )
            .unwrap();
        let info = CertificateInfo::from_pem(&leaf.certificate).unwrap();
        assert_eq!(info.subject, "CN=alice");
        assert!(info.is_issued_by(authority.info()));
        assert!(!info.is_issued_by(super::tests::authority().info()));
        assert_eq!(info.not_after, authority.info().not_after);
        assert_eq!(info.issued_at(), now());
        assert_eq!(info.serial.len(), 32);
    }

    #[test]
    fn renewing_a_leaf_may_keep_its_key() {
        let authority = authority();
        let first = broker(&authority);
        let second = authority
            .issue(
                &name("events-0"),
                &[],
                LeafUse::Broker,
                LeafKey::Existing(&first.key),
                Duration::days(90),
                now(),
            )
            .unwrap();
        assert_eq!(*first.key, *second.key);
        assert_ne!(first.certificate, second.certificate);
    }

    #[test]
    fn an_impossible_validity_is_refused() {
        let error = Authority::generate(
            &name("a"),
            KeyAlgorithm::EcdsaP256,
            Duration::days(40_000),
            now(),
        )
        .unwrap_err();
        assert!(
            error.to_string().ends_with("use 1 hour to 100 years"),
            "{error}"
        );
    }
}
