//! Secret with the key-encryption key of the log.

use aws_lc_rs::rand;
use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use zeroize::Zeroizing;

use crate::{cluster::Cluster, kubernetes::names, pki::PkiError};

const KEY_BYTES: usize = 32;
/// Id of the first key.
const FIRST: &str = "k1";

/// The Secret, with a fresh key. Nothing owns it: without it the volumes that a deleted cluster leaves behind could never be read again.
///
/// # Errors
/// When the system has no randomness.
pub fn build(cluster: &Cluster) -> Result<Secret, PkiError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(key.as_mut()).map_err(|_| PkiError::Random)?;
    let data = [
        ("current".to_owned(), format!("{FIRST}\n")),
        (format!("{FIRST}.key"), STANDARD.encode(key.as_ref())),
    ]
    .map(|(name, text)| (name, ByteString(text.into_bytes())));
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(cluster.kek_secret.clone()),
            namespace: Some(cluster.namespace.clone()),
            labels: Some(names::cluster_labels(&cluster.name)),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    })
}

/// Checks a Secret that the user brought, or that stands.
///
/// # Errors
/// What to put into it.
pub fn check(secret: &Secret) -> Result<(), String> {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        std::str::from_utf8(&bytes.0).ok().map(str::trim)
    };
    let current = text("current").filter(|id| !id.is_empty()).ok_or_else(|| {
        format!("Secret {name} has no key `current`: put the id of the key in use there")
    })?;
    let file = format!("{current}.key");
    let key = text(&file).ok_or_else(|| {
        format!(
            "Secret {name} has no key `{file}`: `current` names it, put 32 bytes in base64 there"
        )
    })?;
    match STANDARD.decode(key).map(Zeroizing::new) {
        Ok(bytes) if bytes.len() == KEY_BYTES => Ok(()),
        _ => Err(format!(
            "key `{file}` of Secret {name} is not 32 bytes in base64: make one with `openssl rand -base64 32`"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn a_made_secret_passes_the_check_and_outlives_its_cluster() {
        let secret = build(&validate(&fixture()).unwrap()).unwrap();
        check(&secret).unwrap();
        assert_eq!(secret.metadata.owner_references, None);
    }

    #[test]
    fn a_brought_secret_is_refused_with_advice() {
        let mut secret = build(&validate(&fixture()).unwrap()).unwrap();
        let data = secret.data.as_mut().unwrap();
        data.insert("k1.key".to_owned(), ByteString(b"c2hvcnQ=".to_vec()));
        assert!(
            check(&secret)
                .unwrap_err()
                .contains("is not 32 bytes in base64")
        );
        secret.data.as_mut().unwrap().remove("k1.key");
        assert!(check(&secret).unwrap_err().contains("has no key `k1.key`"));
        secret.data = None;
        assert!(check(&secret).unwrap_err().contains("has no key `current`"));
    }
}
