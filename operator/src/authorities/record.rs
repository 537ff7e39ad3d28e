//! What an authority's Secret holds.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt;
use palisade_crds::RotationMode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{AuthorityPolicy, steps::RENEWAL};
use crate::pki::{Authority, CertificateInfo, CommonName, PkiError, certificates};

/// Annotation by which a CertRotation asks for a rotation: a [`RotationRequest`] as JSON.
pub const REQUEST_ANNOTATION: &str = "palisade.dev/rotation-request";
const RUNNING_ANNOTATION: &str = "palisade.dev/rotation-running";
const DONE_ANNOTATION: &str = "palisade.dev/rotation-done";

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS: &str = "previous.crt";
const CROSS: &str = "cross.crt";
/// Cross-signed certificates kept in the brokers' chain; an authority's path length allows no more.
const MAX_CROSS: usize = 2;

/// A rotation that a CertRotation asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationRequest {
    /// Tells one run from another; a run that is done is not begun again.
    pub id: String,
    /// Whether the key is replaced.
    pub mode: RotationMode,
    /// When it was asked for, RFC 3339.
    pub at: String,
}

/// An authority and where its rotation stands.
#[derive(Debug)]
pub struct AuthorityRecord {
    current: Authority,
    next: Option<Authority>,
    previous: Vec<String>,
    cross: Vec<String>,
    running: Option<String>,
    done: Option<String>,
    request: Option<RotationRequest>,
}

impl AuthorityRecord {
    /// A new authority.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn generate(
        name: &CommonName,
        policy: &AuthorityPolicy,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let current = Authority::generate(name, policy.algorithm, policy.validity, now)?;
        Ok(Self {
            current,
            next: None,
            previous: Vec::new(),
            cross: Vec::new(),
            running: None,
            done: None,
            request: None,
        })
    }

    /// Reads a Secret.
    ///
    /// # Errors
    /// [`PkiError`] when a key is missing or what it holds cannot be used.
    pub fn read(secret: &Secret) -> Result<Self, PkiError> {
        let text = |key: &'static str| -> Result<Option<String>, PkiError> {
            let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(key)) else {
                return Ok(None);
            };
            let text = std::str::from_utf8(&bytes.0).map_err(|_| PkiError::Read {
                what: key,
                reason: "it is not text".to_owned(),
            })?;
            Ok(Some(text.to_owned()))
        };
        let needed = |key: &'static str| {
            text(key)?.ok_or_else(|| PkiError::Read {
                what: key,
                reason: "the Secret does not have it".to_owned(),
            })
        };
        let next = match (text(NEXT_CERTIFICATE)?, text(NEXT_KEY)?) {
            (Some(certificate), Some(key)) => Some(Authority::from_pem(&certificate, &key)?),
            _ => None,
        };
        let annotation = |key: &str| secret.annotations().get(key).cloned();
        Ok(Self {
            current: Authority::from_pem(&needed(CERTIFICATE)?, &needed(KEY)?)?,
            next,
            previous: split(&text(PREVIOUS)?.unwrap_or_default())?,
            cross: split(&text(CROSS)?.unwrap_or_default())?,
            running: annotation(RUNNING_ANNOTATION),
            done: annotation(DONE_ANNOTATION),
            // What cannot be read was not written by a CertRotation.
            request: annotation(REQUEST_ANNOTATION)
                .and_then(|text| serde_json::from_str(&text).ok()),
        })
    }

    /// Writes the record into a Secret, leaving what else it holds.
    pub fn write(&self, secret: &mut Secret) {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: &str| {
            if !text.is_empty() {
                data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
            }
        };
        put(CERTIFICATE, self.current.certificate_pem());
        put(KEY, &self.current.key_pem());
        if let Some(next) = &self.next {
            put(NEXT_CERTIFICATE, next.certificate_pem());
            put(NEXT_KEY, &next.key_pem());
        }
        put(PREVIOUS, &self.previous.concat());
        put(CROSS, &self.cross.concat());
        secret.data = Some(data);
        let annotations = secret.annotations_mut();
        for (key, value) in [
            (RUNNING_ANNOTATION, &self.running),
            (DONE_ANNOTATION, &self.done),
        ] {
            match value {
                Some(value) => annotations.insert(key.to_owned(), value.clone()),
                None => annotations.remove(key),
            };
        }
    }

    /// The authority that issues.
    #[must_use]
    pub const fn current(&self) -> &Authority {
        &self.current
    }

    /// The authority that will issue once everyone trusts it.
    #[must_use]
    pub const fn next(&self) -> Option<&Authority> {
        self.next.as_ref()
    }

    /// Whether former authorities are still trusted.
    #[must_use]
    pub const fn has_previous(&self) -> bool {
        !self.previous.is_empty()
    }

    /// The run that is under way.
    #[must_use]
    pub fn running(&self) -> Option<&str> {
        self.running.as_deref()
    }

    /// The last run that ended of those that a CertRotation asked for.
    #[must_use]
    pub fn done(&self) -> Option<&str> {
        self.done.as_deref()
    }

    /// What a CertRotation asks for, unless it is done.
    #[must_use]
    pub fn request(&self) -> Option<&RotationRequest> {
        self.request
            .as_ref()
            .filter(|request| self.done.as_deref() != Some(&request.id))
    }

    /// Everything that is trusted, PEM: what issues, what will, and what did.
    #[must_use]
    pub fn bundle(&self) -> String {
        let next = self
            .next
            .as_ref()
            .map(Authority::certificate_pem)
            .unwrap_or_default();
        self.current.certificate_pem().to_owned() + next + &self.previous.concat()
    }

    /// Fingerprints of everything that is trusted, sorted.
    #[must_use]
    pub fn trusted(&self) -> Vec<String> {
        // The bundle was parsed when it was read or made.
        let mut fingerprints: Vec<_> = certificates(&self.bundle())
            .unwrap_or_default()
            .iter()
            .map(|der| crate::pki::fingerprint(der))
            .collect();
        fingerprints.sort();
        fingerprints.dedup();
        fingerprints
    }

    /// What follows a leaf in its chain, so that who trusts only a former authority accepts it too.
    #[must_use]
    pub fn chain(&self) -> String {
        self.cross.concat()
    }

    /// Makes the next authority: from now on it is trusted, and nothing uses it.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn begin(
        &mut self,
        id: String,
        mode: RotationMode,
        name: &CommonName,
        policy: &AuthorityPolicy,
        now: OffsetDateTime,
    ) -> Result<(), PkiError> {
        self.next = Some(match mode {
            RotationMode::Renew => self.current.renew(policy.validity, now)?,
            RotationMode::ReplaceKey => {
                Authority::generate(name, policy.algorithm, policy.validity, now)?
            }
        });
        self.running = Some(id);
        Ok(())
    }

    /// Lets the next authority issue; the former one stays trusted, and signs the new one for those who know only it.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn switch(&mut self, now: OffsetDateTime) -> Result<(), PkiError> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        self.cross
            .retain(|pem| CertificateInfo::from_pem(pem).is_ok_and(|info| info.not_after > now));
        // A renewed authority has the same name and key, so every chain stays good without another link.
        if next.info().subject_key != self.current.info().subject_key
            && self.current.info().not_after > now
        {
            self.cross.insert(0, self.current.cross_sign(&next, now)?);
            self.cross.truncate(MAX_CROSS);
        }
        self.previous
            .insert(0, self.current.certificate_pem().to_owned());
        self.current = next;
        Ok(())
    }

    /// Withdraws trust in former authorities. A renewal that nobody asked for leaves the last run that was asked for as done: it is not begun again.
    pub fn withdraw(&mut self) {
        self.previous.clear();
        if let Some(run) = self.running.take().filter(|run| run != RENEWAL) {
            self.done = Some(run);
        }
    }
}

/// The certificates of a bundle, each as PEM.
fn split(bundle: &str) -> Result<Vec<String>, PkiError> {
    const END: &str = "-----END CERTIFICATE-----";
    certificates(bundle)?;
    Ok(bundle
        .split_inclusive(END)
        .map(str::trim_start)
        .filter(|part| part.ends_with(END))
        .map(|part| format!("{part}\n"))
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::Duration;

    use super::*;
    use crate::pki::KeyAlgorithm;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn policy() -> AuthorityPolicy {
        AuthorityPolicy {
            validity: Duration::days(100),
            renew_before: Duration::days(10),
            algorithm: KeyAlgorithm::EcdsaP256,
        }
    }

    fn name() -> CommonName {
        CommonName::new("events-cluster").unwrap()
    }

    /// What another operator would read after this one died.
    fn reread(record: &AuthorityRecord) -> AuthorityRecord {
        let mut secret = Secret::default();
        record.write(&mut secret);
        AuthorityRecord::read(&secret).unwrap()
    }

    #[test]
    fn a_rotation_survives_a_restart_at_every_step() {
        let mut record = AuthorityRecord::generate(&name(), &policy(), now()).unwrap();
        let old = record.current().info().fingerprint.clone();
        record
            .begin(
                "run-1".to_owned(),
                RotationMode::ReplaceKey,
                &name(),
                &policy(),
                now(),
            )
            .unwrap();
        let mut record = reread(&record);
        let new = record.next().unwrap().info().fingerprint.clone();
        assert_eq!(record.current().info().fingerprint, old);
        assert!(record.trusted().contains(&old) && record.trusted().contains(&new));
        record.switch(now()).unwrap();
        let mut record = reread(&record);
        assert_eq!(record.current().info().fingerprint, new);
        assert!(record.next().is_none() && record.has_previous());
        assert!(record.trusted().contains(&old) && record.trusted().contains(&new));
        assert_eq!(certificates(&record.chain()).unwrap().len(), 1);
        record.withdraw();
        let record = reread(&record);
        assert_eq!(record.trusted(), [new]);
        assert_eq!((record.running(), record.done()), (None, Some("run-1")));
        // The chain still serves clients that have not read the new trust.
        assert_eq!(certificates(&record.chain()).unwrap().len(), 1);
    }

    #[test]
    fn a_renewal_keeps_the_key_and_needs_no_link_in_the_chain() {
        let mut record = AuthorityRecord::generate(&name(), &policy(), now()).unwrap();
        let key = record.current().info().subject_key.clone();
        record
            .begin(
                "run-1".to_owned(),
                RotationMode::Renew,
                &name(),
                &policy(),
                now(),
            )
            .unwrap();
        record.switch(now()).unwrap();
        assert_eq!(record.current().info().subject_key, key);
        assert_eq!(record.chain(), "");
    }

    #[test]
    fn the_chain_never_grows_beyond_what_a_path_allows_and_drops_what_expired() {
        let mut record = AuthorityRecord::generate(&name(), &policy(), now()).unwrap();
        for run in 0..4 {
            record
                .begin(
                    format!("run-{run}"),
                    RotationMode::ReplaceKey,
                    &name(),
                    &policy(),
                    now(),
                )
                .unwrap();
            record.switch(now()).unwrap();
            record.withdraw();
        }
        assert_eq!(certificates(&record.chain()).unwrap().len(), MAX_CROSS);
        let later = now() + Duration::days(101);
        record
            .begin(
                "late".to_owned(),
                RotationMode::ReplaceKey,
                &name(),
                &policy(),
                later,
            )
            .unwrap();
        record.switch(later).unwrap();
        assert_eq!(record.chain(), "");
    }

    #[test]
    fn a_request_that_is_done_is_none() {
        let mut secret = Secret::default();
        AuthorityRecord::generate(&name(), &policy(), now())
            .unwrap()
            .write(&mut secret);
        let request = RotationRequest {
            id: "run-1".to_owned(),
            mode: RotationMode::Renew,
            at: "2027-01-01T00:00:00Z".to_owned(),
        };
        secret.annotations_mut().insert(
            REQUEST_ANNOTATION.to_owned(),
            serde_json::to_string(&request).unwrap(),
        );
        assert_eq!(
            AuthorityRecord::read(&secret).unwrap().request(),
            Some(&request)
        );
        secret
            .annotations_mut()
            .insert(DONE_ANNOTATION.to_owned(), "run-1".to_owned());
        assert_eq!(AuthorityRecord::read(&secret).unwrap().request(), None);
    }

    #[test]
    fn a_secret_without_its_key_or_with_anothers_says_so() {
        let mut secret = Secret::default();
        assert_eq!(
            AuthorityRecord::read(&secret).unwrap_err().to_string(),
            "cannot read ca.crt: the Secret does not have it"
        );
        AuthorityRecord::generate(&name(), &policy(), now())
            .unwrap()
            .write(&mut secret);
        let mut other = Secret::default();
        AuthorityRecord::generate(&name(), &policy(), now())
            .unwrap()
            .write(&mut other);
        let key = other.data.unwrap().remove(KEY).unwrap();
        secret.data.as_mut().unwrap().insert(KEY.to_owned(), key);
        let message = AuthorityRecord::read(&secret).unwrap_err().to_string();
        assert!(
            message.starts_with("the private key does not belong to certificate"),
            "{message}"
        );
    }
}
