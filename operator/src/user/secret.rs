//! The Secret that a workload mounts.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, ResourceExt};
use palisade_crds::User;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{
    credential::{self, CredentialRecord, RECORD_ANNOTATION},
    files::{self, Login},
};
use crate::{
    kubernetes::{FIELD_MANAGER, digest, names},
    pki::{Authority, CertificateInfo, PkiError, key_store, trust_store},
};

/// Key of the client certificate.
pub const USER_CERTIFICATE: &str = "user.crt";
/// Key of the client certificate's key.
pub(super) const USER_KEY: &str = "user.key";
const TRUST_STORE: &str = "truststore.p12";
const TRUST_PASSWORD: &str = "truststore.password";
const KEY_STORE: &str = "user.p12";
const KEY_PASSWORD: &str = "user.password";
/// Annotations with digests of what the stores were made of, their passwords included: a store is made anew only when that changes, because its bytes differ
/// every time.
const TRUST_DIGEST: &str = "palisade.dev/truststore-of";
const KEY_DIGEST: &str = "palisade.dev/keystore-of";
const USER_LABEL: &str = "palisade.dev/user";
const STORE_PASSWORD_LENGTH: usize = 24;

/// What proves who the user is.
pub(super) enum Material {
    /// A password that brokers accept.
    Password {
        /// User name.
        username: String,
        /// Password.
        password: Zeroizing<String>,
        /// What is remembered of pushing it.
        record: CredentialRecord,
    },
    /// A certificate that brokers accept.
    Certificate {
        /// Chain, PEM.
        chain: String,
        /// Key, PKCS#8 PEM.
        key: Zeroizing<String>,
    },
}

/// What the Secret is made of.
pub(super) struct Plan<'a> {
    pub(super) user: &'a User,
    pub(super) cluster: &'a str,
    pub(super) bootstrap: &'a str,
    pub(super) bundle: &'a str,
    pub(super) material: &'a Material,
    pub(super) held: Option<&'a Secret>,
}

impl Plan<'_> {
    /// The Secret.
    pub(super) fn build(&self) -> Result<Secret, PkiError> {
        let mut data = BTreeMap::new();
        let mut annotations = BTreeMap::new();
        let mechanism = self
            .user
            .spec
            .authentication
            .type_
            .sasl_mechanism()
            .unwrap_or_default();
        let login = match self.material {
            Material::Password {
                username, password, ..
            } => Login::Password {
                mechanism,
                username,
                password,
            },
            Material::Certificate { chain, key } => Login::Certificate { chain, key },
        };
        let mut put = |key: &str, bytes: Vec<u8>| {
            data.insert(key.to_owned(), ByteString(bytes));
        };
        put("bootstrap.servers", self.bootstrap.into());
        put("security.protocol", files::protocol(&login).into());
        put("ca.crt", self.bundle.into());
        put(
            "client.properties",
            files::client_properties(self.bootstrap, self.bundle, &login).into(),
        );
        put(
            "librdkafka.conf",
            files::librdkafka_conf(self.bootstrap, &login).into(),
        );
        match self.material {
            Material::Password {
                username,
                password,
                record,
            } => {
                put("username", username.as_bytes().to_vec());
                put("password", password.as_bytes().to_vec());
                put("sasl.mechanism", mechanism.into());
                put(
                    "sasl.jaas.config",
                    files::jaas(mechanism, username, password).into(),
                );
                annotations.insert(RECORD_ANNOTATION.to_owned(), record.render());
            }
            Material::Certificate { chain, key } => {
                put(USER_CERTIFICATE, chain.as_bytes().to_vec());
                put(USER_KEY, key.as_bytes().to_vec());
                let password = self.store_password(KEY_PASSWORD)?;
                let of = digest(&(chain, key.as_str(), password.as_str()));
                let store = match self.kept(KEY_STORE, KEY_DIGEST, &of) {
                    Some(store) => store,
                    None => key_store(&self.user.name_any(), key, chain, &password)?,
                };
                put(KEY_STORE, store);
                put(KEY_PASSWORD, password.as_bytes().to_vec());
                annotations.insert(KEY_DIGEST.to_owned(), of);
            }
        }
        let password = self.store_password(TRUST_PASSWORD)?;
        let of = digest(&(self.bundle, password.as_str()));
        let store = match self.kept(TRUST_STORE, TRUST_DIGEST, &of) {
            Some(store) => store,
            None => trust_store(self.bundle, &password)?,
        };
        put(TRUST_STORE, store);
        put(TRUST_PASSWORD, password.as_bytes().to_vec());
        annotations.insert(TRUST_DIGEST.to_owned(), of);
        let labels = [
            (names::MANAGED_BY_LABEL, FIELD_MANAGER.to_owned()),
            (names::CLUSTER_LABEL, self.cluster.to_owned()),
            (USER_LABEL, self.user.name_any()),
        ];
        Ok(Secret {
            metadata: ObjectMeta {
                name: Some(self.user.secret_name().to_owned()),
                namespace: self.user.namespace(),
                labels: Some(
                    labels
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                ),
                annotations: Some(annotations),
                owner_references: self.user.controller_owner_ref(&()).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(data),
            ..Secret::default()
        })
    }

    /// A store that was made of the same things, the password beside it among them.
    fn kept(&self, key: &str, annotation: &str, of: &str) -> Option<Vec<u8>> {
        let held = self.held?;
        if held
            .annotations()
            .get(annotation)
            .is_none_or(|held| held != of)
        {
            return None;
        }
        Some(held.data.as_ref()?.get(key)?.0.clone())
    }

    fn store_password(&self, key: &str) -> Result<Zeroizing<String>, PkiError> {
        match self
            .held
            .and_then(|held| text(held, key))
            .filter(|password| password.len() == STORE_PASSWORD_LENGTH)
        {
            Some(password) => Ok(Zeroizing::new(password)),
            None => credential::generate(STORE_PASSWORD_LENGTH),
        }
    }
}

/// Text under a key of a Secret.
pub(super) fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// Whether a client certificate stands: whole, of the present authority, and not past two thirds of its life.
pub(super) fn certificate_stands(
    chain: &str,
    key: &str,
    authority: &CertificateInfo,
    now: OffsetDateTime,
) -> bool {
    // Reads the pair and checks that they belong together.
    let Ok(pair) = Authority::from_pem(chain, key) else {
        return false;
    };
    let info = pair.info();
    let life = info.not_after - info.issued_at();
    info.is_issued_by(authority) && now < info.issued_at() + life * 2 / 3
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
    use time::Duration;

    use super::*;
    use crate::{
        pki::{CommonName, KeyAlgorithm, Leaf, LeafKey, LeafUse},
        user::tests::user,
    };

    fn authority() -> Authority {
        let name = CommonName::new("events-clients").unwrap();
        Authority::generate(&name, KeyAlgorithm::EcdsaP256, Duration::days(100), now()).unwrap()
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn build(user: &User, material: &Material, bundle: &str, held: Option<&Secret>) -> Secret {
        let plan = Plan {
            user,
            cluster: "events",
            bootstrap: "events-bootstrap.messaging.svc:9093",
            bundle,
            material,
            held,
        };
        plan.build().unwrap()
    }

    fn password() -> Material {
        Material::Password {
            username: "alice".to_owned(),
            password: Zeroizing::new("secret".to_owned()),
            record: CredentialRecord::draw().unwrap(),
        }
    }

    fn keys(secret: &Secret) -> Vec<&str> {
        secret
            .data
            .as_ref()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn a_password_users_secret_is_whole() {
        let authority = authority();
        let user = user("alice", "ScramSha512");
        let secret = build(&user, &password(), authority.certificate_pem(), None);
        assert_eq!(
            keys(&secret),
            [
                "bootstrap.servers",
                "ca.crt",
                "client.properties",
                "librdkafka.conf",
                "password",
                "sasl.jaas.config",
                "sasl.mechanism",
                "security.protocol",
                "truststore.p12",
                "truststore.password",
                "username"
            ]
        );
        assert_eq!(text(&secret, "sasl.mechanism").unwrap(), "SCRAM-SHA-512");
        assert_eq!(text(&secret, "security.protocol").unwrap(), "SASL_SSL");
        assert_eq!(secret.metadata.owner_references.unwrap()[0].uid, "u-1");
    }

    fn issue(authority: &Authority) -> Leaf {
        authority
            .issue(
                &CommonName::new("alice").unwrap(),
                &[],
                LeafUse::Client,
                LeafKey::New(KeyAlgorithm::EcdsaP256),
                Duration::days(9),
                now(),
            )
            .unwrap()
    }

    fn certificate(leaf: &Leaf) -> Material {
        Material::Certificate {
            chain: leaf.certificate.clone(),
            key: leaf.key.clone(),
        }
    }

    #[test]
    fn a_certificate_users_secret_holds_certificate_stores_and_no_sasl() {
        let authority = authority();
        let leaf = issue(&authority);
        let material = certificate(&leaf);
        let user = user("alice", "MutualTls");
        let secret = build(&user, &material, authority.certificate_pem(), None);
        assert_eq!(
            keys(&secret),
            [
                "bootstrap.servers",
                "ca.crt",
                "client.properties",
                "librdkafka.conf",
                "security.protocol",
                "truststore.p12",
                "truststore.password",
                "user.crt",
                "user.key",
                "user.p12",
                "user.password"
            ]
        );
        assert_eq!(text(&secret, "security.protocol").unwrap(), "SSL");
        assert!(certificate_stands(
            &leaf.certificate,
            &leaf.key,
            authority.info(),
            now() + Duration::days(5)
        ));
        assert!(!certificate_stands(
            &leaf.certificate,
            &leaf.key,
            authority.info(),
            now() + Duration::days(6)
        ));
        assert!(!certificate_stands(
            &leaf.certificate,
            &leaf.key,
            self::authority().info(),
            now()
        ));
        assert!(!certificate_stands(
            &leaf.certificate,
            &authority.key_pem(),
            authority.info(),
            now()
        ));
    }

    /// Whether the store under a key opens with the password under another.
    fn opens(secret: &Secret, store: &str, password: &str) -> bool {
        let password = text(secret, password).unwrap();
        let store = &secret.data.as_ref().unwrap()[store].0;
        KeyStore::from_pkcs12(store, &password, Pkcs12ImportPolicy::Strict).is_ok()
    }

    #[test]
    fn a_store_whose_password_was_removed_or_edited_is_made_anew_for_the_present_one() {
        let authority = authority();
        let user = user("alice", "MutualTls");
        let material = certificate(&issue(&authority));
        let first = build(&user, &material, authority.certificate_pem(), None);
        for (store, password) in [(TRUST_STORE, TRUST_PASSWORD), (KEY_STORE, KEY_PASSWORD)] {
            assert!(opens(&first, store, password));
            let mut removed = first.clone();
            removed.data.as_mut().unwrap().remove(password);
            let mut edited = first.clone();
            let other = ByteString(vec![b'x'; STORE_PASSWORD_LENGTH]);
            let data = edited.data.as_mut().unwrap();
            data.insert(password.to_owned(), other);
            for held in [removed, edited] {
                let again = build(&user, &material, authority.certificate_pem(), Some(&held));
                assert!(opens(&again, store, password), "{store}");
                assert_ne!(text(&again, password), text(&first, password), "{store}");
            }
        }
    }

    #[test]
    fn nothing_changes_while_nothing_changed_and_new_trust_keeps_the_password() {
        let (old, new) = (authority(), authority());
        let user = user("alice", "ScramSha512");
        let material = password();
        let first = build(&user, &material, old.certificate_pem(), None);
        assert_eq!(
            build(&user, &material, old.certificate_pem(), Some(&first)),
            first
        );
        let both = old.certificate_pem().to_owned() + new.certificate_pem();
        let second = build(&user, &material, &both, Some(&first));
        assert_ne!(
            second.data.as_ref().unwrap()["truststore.p12"],
            first.data.as_ref().unwrap()["truststore.p12"]
        );
        assert_eq!(
            text(&second, "truststore.password"),
            text(&first, "truststore.password")
        );
        assert_eq!(text(&second, "password"), text(&first, "password"));
    }
}
