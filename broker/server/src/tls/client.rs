//! The other direction: this broker as a client of its peers, with the files of an endpoint.

use std::sync::Arc;

use palisade_config::TlsConfig;
use rustls::{ClientConfig, client::Resumption, crypto::CryptoProvider, version::TLS13};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};

use super::load::{Files, TlsError, certificates, content, pair, roots};

/// ALPN of the protocol between brokers. An endpoint that offers it serves clients without ALPN, as those of Kafka are, on the same port; the two are told apart by what
/// was agreed.
pub(crate) const PEER_ALPN: &[&[u8]] = &[palisade_peer::ALPN];

/// The endpoint's leaf as client certificate, its client authorities as those of the servers.
pub(super) fn load(
    paths: &TlsConfig,
    files: &Files,
    alpn: &[&[u8]],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let chain = certificates(&files.certificate)
        .map_err(|reason| content(&paths.certificate, "certificate", reason))?;
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|error| content(&paths.key, "private key", error.to_string()))?;
    let (roots, _) = roots(paths, files)?;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| pair(paths, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| pair(paths, &error))?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // A resumed session is not verified again, neither here nor there.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::{fs, path::Path};

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::{ProtocolVersion, ServerConfig};
    use rustls_pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::tls::{Endpoint, PEER_ALPN};

    fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn write(dir: &Path, ca: &(String, Issuer<'static, KeyPair>), host: &str) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![host.to_owned()])
            .unwrap()
            .signed_by(&key, &ca.1)
            .unwrap();
        fs::write(dir.join("tls.crt"), leaf.pem()).unwrap();
        fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        fs::write(dir.join("ca.crt"), &ca.0).unwrap();
    }

    fn open(dir: &Path) -> Endpoint {
        let paths = TlsConfig {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            client_ca: Some(dir.join("ca.crt")),
        };
        Endpoint::open_for_peers("control", &paths, PEER_ALPN).unwrap()
    }

    /// What both sides see of a handshake: the agreed ALPN, the version and the client's leaf.
    type Seen = (Option<Vec<u8>>, Option<ProtocolVersion>, Vec<u8>);

    async fn shake(
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
        host: &'static str,
    ) -> Result<Seen, String> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from(host).unwrap();
        let (client, server) = tokio::join!(
            TlsConnector::from(client).connect(name, near),
            TlsAcceptor::from(server).accept(far)
        );
        client.map_err(|error| error.to_string())?;
        let server = server.map_err(|error| error.to_string())?;
        let connection = server.get_ref().1;
        Ok((
            connection.alpn_protocol().map(<[u8]>::to_vec),
            connection.protocol_version(),
            connection.peer_certificates().unwrap()[0].to_vec(),
        ))
    }

    #[tokio::test]
    async fn peers_and_clients_of_kafka_share_a_port_and_are_told_apart() {
        let ca = authority("cluster");
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path(), &ca, "one");
        write(two.path(), &ca, "two");
        let (one, two) = (open(one.path()).current(), open(two.path()).current());
        let client = one.client.clone().unwrap();
        let server = Arc::clone(&two.config);
        let seen = shake(Arc::clone(&client), Arc::clone(&server), "two").await;
        let (alpn, version, leaf) = seen.unwrap();
        assert_eq!(alpn.as_deref(), Some(PEER_ALPN[0]));
        assert_eq!(version, Some(ProtocolVersion::TLSv1_3));
        assert_eq!(crate::tls::sha256_hex(&leaf), one.leaf.fingerprint);

        let mut kafka = (*client).clone();
        kafka.alpn_protocols.clear();
        let seen = shake(Arc::new(kafka), Arc::clone(&server), "two").await;
        assert_eq!(seen.unwrap().0, None);
        let error = shake(client, server, "three").await.unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
    }

    #[tokio::test]
    async fn the_client_side_follows_the_files() {
        let (before, after) = (authority("before"), authority("after"));
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path(), &before, "one");
        write(two.path(), &after, "two");
        let (one_endpoint, two) = (open(one.path()), open(two.path()).current());
        let connect = async || {
            let client = one_endpoint.current().client.clone().unwrap();
            shake(client, Arc::clone(&two.config), "two").await
        };
        let error = connect().await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
        write(one.path(), &after, "one");
        assert!(one_endpoint.refresh());
        connect().await.unwrap();
    }
}
