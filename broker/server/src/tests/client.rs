//! A Kafka client over TLS, byte by byte.

use std::{net::SocketAddr, path::Path, sync::Arc};

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
    },
    protocol::{Decodable, Encodable, Request},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// One connection.
pub(super) struct Client {
    stream: TlsStream<TcpStream>,
    correlation: i32,
    pub(super) client_id: &'static str,
}

impl Client {
    /// Connects, with a client certificate and key (PEM) if given.
    pub(super) async fn connect(
        address: SocketAddr,
        ca: &Path,
        identity: Option<(&str, &str)>,
    ) -> Self {
        Self::try_connect(address, ca, identity).await.unwrap()
    }

    pub(super) async fn try_connect(
        address: SocketAddr,
        ca: &Path,
        identity: Option<(&str, &str)>,
    ) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(ca).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let socket = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await?;
        Ok(Self {
            stream,
            correlation: 0,
            client_id: "test",
        })
    }

    /// The certificate that the broker showed.
    pub(super) fn server_certificate(&self) -> Vec<u8> {
        self.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// Writes bytes as they are.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next frame, or `None` when the broker closed the connection.
    pub(super) async fn frame(&mut self) -> Option<Bytes> {
        let length = self.stream.read_i32().await.ok()?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut frame).await.ok()?;
        Some(frame.into())
    }

    /// A request as bytes, with its length.
    pub(super) fn encode<R: Request>(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &R,
    ) -> BytesMut {
        self.correlation += 1;
        let mut out = BytesMut::new();
        out.put_i32(0);
        RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(self.client_id.into()))
            .encode(&mut out, api.request_header_version(version))
            .unwrap();
        request.encode(&mut out, version).unwrap();
        let length = i32::try_from(out.len() - 4).unwrap();
        out[..4].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// Sends a request and reads its answer; `None` when the broker closed the connection.
    pub(super) async fn try_call<R: Request>(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &R,
    ) -> Option<R::Response> {
        let bytes = self.encode(api, version, request);
        self.stream.write_all(&bytes).await.ok()?;
        self.stream.flush().await.ok()?;
        let mut frame = self.frame().await?;
        let header =
            ResponseHeader::decode(&mut frame, api.response_header_version(version)).unwrap();
        assert_eq!(header.correlation_id, self.correlation);
        let response = R::Response::decode(&mut frame, version).unwrap();
        assert!(
            !frame.has_remaining(),
            "{api:?} v{version}: bytes after the answer"
        );
        Some(response)
    }

    pub(super) async fn call<R: Request>(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &R,
    ) -> R::Response {
        self.try_call(api, version, request)
            .await
            .expect("the connection was closed")
    }

    async fn token(&mut self, token: Vec<u8>) -> Result<Bytes, (i16, String)> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token.into());
        let response = self.call(ApiKey::SaslAuthenticate, 2, &request).await;
        match response.error_code {
            0 => Ok(response.auth_bytes),
            code => Err((code, response.error_message.unwrap_or_default().to_string())),
        }
    }

    pub(super) async fn handshake(&mut self, mechanism: &'static str) -> i16 {
        let request = SaslHandshakeRequest::default().with_mechanism(mechanism.into());
        self.call(ApiKey::SaslHandshake, 1, &request)
            .await
            .error_code
    }

    /// Logs in by PLAIN.
    pub(super) async fn plain(&mut self, user: &str, password: &str) -> Result<(), (i16, String)> {
        assert_eq!(self.handshake("PLAIN").await, 0);
        self.token(format!("\0{user}\0{password}").into_bytes())
            .await
            .map(drop)
    }

    /// Logs in by SCRAM-SHA-512 (RFC 5802) and checks the broker's own proof.
    pub(super) async fn scram(&mut self, user: &str, password: &str) -> Result<(), (i16, String)> {
        assert_eq!(self.handshake("SCRAM-SHA-512").await, 0);
        let bare = format!("n={user},r=clientnonce");
        let first = self.token(format!("n,,{bare}").into_bytes()).await?;
        let first = String::from_utf8(first.to_vec()).unwrap();
        let field = |name: &str| {
            first
                .split(',')
                .find_map(|part| part.strip_prefix(name))
                .unwrap()
                .to_owned()
        };
        let (nonce, salt, iterations) = (field("r="), field("s="), field("i="));
        let mut salted = [0; digest::SHA512_OUTPUT_LEN];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA512,
            iterations.parse().unwrap(),
            &STANDARD.decode(salt).unwrap(),
            password.as_bytes(),
            &mut salted,
        );
        let sign = |key: &[u8], message: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, key), message)
        };
        let client_key = sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA512, client_key.as_ref());
        let last = format!("c=biws,r={nonce}");
        let transcript = format!("{bare},{first},{last}");
        let signature = sign(stored.as_ref(), transcript.as_bytes());
        let proof: Vec<u8> = client_key
            .as_ref()
            .iter()
            .zip(signature.as_ref())
            .map(|(a, b)| a ^ b)
            .collect();
        let answer = self
            .token(format!("{last},p={}", STANDARD.encode(proof)).into_bytes())
            .await?;
        let server_key = sign(&salted, b"Server Key");
        let expected = format!(
            "v={}",
            STANDARD.encode(sign(server_key.as_ref(), transcript.as_bytes()))
        );
        assert_eq!(answer, expected.as_bytes());
        Ok(())
    }

    /// An HTTP request: status and body.
    pub(super) async fn get(&mut self, path: &str) -> (u16, String) {
        self.write(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await;
        let mut answer = Vec::new();
        // The end may come without TLS's own goodbye.
        drop(self.stream.read_to_end(&mut answer).await);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }
}
