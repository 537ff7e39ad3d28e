//! The operator's way to a cluster's brokers: a certificate of its own, issued in memory by the cluster authority, an admin client on the control
//! port and a reader of `/status` on the admin port.

mod status;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use palisade_crds::SecureCluster;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};

pub use status::StatusError;

use crate::{
    Error,
    authorities::AuthorityRecord,
    cluster::{ADMIN_PORT, CONTROL_PORT},
    kafka::{AdminClient, Endpoint},
    kubernetes::{digest, names},
    pki::{CommonName, KeyAlgorithm, LeafKey, LeafUse, PkiError, certificates},
};

/// Common name of the operator's certificate; brokers know it as `System:palisade-operator`.
pub const COMMON_NAME: &str = "palisade-operator";
/// How long a certificate lives; it exists in memory only, so a short life costs nothing.
const VALIDITY: Duration = Duration::hours(24);
const RENEW_AFTER: Duration = Duration::hours(12);

/// Why there is no way to the brokers yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The cluster has no authority yet.
    #[error("Secret {0} does not exist yet: the cluster is being set up")]
    NoAuthority(String),
    /// TLS could not be set up.
    #[error("cannot set up TLS to the brokers: {0}")]
    Tls(String),
}

/// The way to one cluster's brokers.
pub struct ClusterAccess {
    /// Admin protocol, on the control port.
    pub admin: AdminClient,
    tls: Arc<ClientConfig>,
    brokers: Vec<(String, Endpoint)>,
    key: String,
    issued: OffsetDateTime,
}

impl ClusterAccess {
    /// What every broker says of itself, in the order of ordinals; beside the pod's name a status, or why there is none.
    pub async fn statuses(
        &self,
    ) -> Vec<(
        String,
        Result<palisade_config::status::BrokerStatus, StatusError>,
    )> {
        let reads = self.brokers.iter().map(|(pod, endpoint)| async {
            (
                pod.clone(),
                status::read(endpoint, Arc::clone(&self.tls)).await,
            )
        });
        futures::future::join_all(reads).await
    }
}

/// Keeps the way to each cluster for as long as what it was made of stands.
#[derive(Default)]
pub struct AccessCache {
    clusters: Mutex<HashMap<(String, String), Arc<ClusterAccess>>>,
}

impl AccessCache {
    /// The way to a cluster, read from its authority's Secret.
    ///
    /// # Errors
    /// When the authority does not exist yet or cannot be used.
    pub async fn get(
        &self,
        client: &Client,
        cluster: &SecureCluster,
    ) -> Result<Arc<ClusterAccess>, Error> {
        let namespace = cluster.namespace().unwrap_or_default();
        let name = names::cluster_authority_secret(&cluster.name_any());
        let secret = Api::<Secret>::namespaced(client.clone(), &namespace)
            .get_opt(&name)
            .await?
            .ok_or(AccessError::NoAuthority(name))?;
        let record = AuthorityRecord::read(&secret)?;
        // Those that the last status tells of: brokers that leave are still asked.
        let told = cluster.status.as_ref().map_or(0, |it| it.brokers.len());
        let brokers = i32::try_from(told).unwrap_or(i32::MAX);
        let brokers = brokers.max(cluster.spec.brokers.replicas);
        self.with(cluster, brokers, &record, OffsetDateTime::now_utc())
    }

    /// The way to a cluster whose authority and number of brokers are known.
    ///
    /// # Errors
    /// When the authority cannot be used.
    pub fn with(
        &self,
        cluster: &SecureCluster,
        brokers: i32,
        record: &AuthorityRecord,
        now: OffsetDateTime,
    ) -> Result<Arc<ClusterAccess>, Error> {
        let place = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let key = digest(&(
            record.bundle(),
            &record.current().info().fingerprint,
            brokers,
        ));
        let mut held = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(access) = held.get(&place)
            && access.key == key
            && now - access.issued < RENEW_AFTER
        {
            return Ok(Arc::clone(access));
        }
        let access = Arc::new(connect(cluster, brokers, record, key, now)?);
        held.insert(place, Arc::clone(&access));
        Ok(access)
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut held = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

fn connect(
    cluster: &SecureCluster,
    brokers: i32,
    record: &AuthorityRecord,
    key: String,
    now: OffsetDateTime,
) -> Result<ClusterAccess, Error> {
    let tls = Arc::new(client_config(record, now)?);
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let endpoints = |port: u16| {
        (0..brokers)
            .map(|ordinal| {
                let host = names::broker_host(&name, &namespace, ordinal);
                (names::pod(&name, ordinal), Endpoint { host, port })
            })
            .collect::<Vec<_>>()
    };
    let bootstrap = endpoints(CONTROL_PORT)
        .into_iter()
        .map(|(_, endpoint)| endpoint)
        .collect();
    Ok(ClusterAccess {
        admin: AdminClient::new(bootstrap, Arc::clone(&tls)),
        tls,
        brokers: endpoints(ADMIN_PORT),
        key,
        issued: now,
    })
}

/// TLS that trusts what the cluster trusts and presents a certificate of its authority.
fn client_config(record: &AuthorityRecord, now: OffsetDateTime) -> Result<ClientConfig, Error> {
    let failed = |error: &dyn std::fmt::Display| AccessError::Tls(error.to_string());
    let name = CommonName::new(COMMON_NAME).map_err(|error| failed(&error))?;
    let leaf = record.current().issue(
        &name,
        &[],
        LeafUse::Client,
        LeafKey::New(KeyAlgorithm::EcdsaP256),
        VALIDITY,
        now,
    )?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&record.bundle())? {
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    let private =
        PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|error| PkiError::Read {
            what: "a private key",
            reason: error.to_string(),
        })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&leaf.certificate)?, private)
        .map_err(|error| failed(&error))?;
    Ok(config)
}
