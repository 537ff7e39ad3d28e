//! Bytes over TLS: for what no well-behaved client sends, and for the admin port.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::Certificate;

/// Answers are read into memory: larger ones are a fault.
const LARGEST_ANSWER: u32 = 16 << 20;
/// For a connection, and for every piece of an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A TLS connection to a broker that speaks no protocol of its own accord.
#[derive(Debug)]
pub struct RawClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    correlation: i32,
}

/// What came back for one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A response, without its length: correlation id first.
    Frame(Vec<u8>),
    /// The broker closed the connection.
    Closed,
}

impl Answer {
    /// The response.
    ///
    /// # Errors
    /// When the connection was closed instead.
    pub fn frame(self) -> Result<Vec<u8>> {
        match self {
            Self::Frame(bytes) => Ok(bytes),
            Self::Closed => bail!("the broker closed the connection instead of answering"),
        }
    }
}

impl RawClient {
    /// Connects to a port of 127.0.0.1 as `localhost`, trusting the authority in a PEM file.
    ///
    /// # Errors
    /// When the port does not answer or the handshake fails.
    pub fn connect(port: u16, authority: &Path) -> Result<Self> {
        Self::connect_as(port, authority, None)
    }

    /// As [`RawClient::connect`], with a client certificate.
    ///
    /// # Errors
    /// When the port does not answer, the handshake fails or the certificate cannot be read.
    pub fn connect_as(
        port: u16,
        authority: &Path,
        certificate: Option<&Certificate>,
    ) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Self::connect_to(address, authority, certificate)
    }

    /// As [`RawClient::connect_as`], to another address, whose certificate must be valid for `localhost` nevertheless.
    ///
    /// # Errors
    /// As [`RawClient::connect_as`].
    pub fn connect_to(
        address: SocketAddr,
        authority: &Path,
        certificate: Option<&Certificate>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority)
            .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", authority.display()))?
        {
            roots.add(certificate.map_err(|error| anyhow::anyhow!("{error}"))?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match certificate {
            None => config.with_no_client_auth(),
            Some(pair) => config.with_client_auth_cert(
                CertificateDer::pem_file_iter(&pair.certificate)
                    .and_then(Iterator::collect)
                    .map_err(|error| anyhow::anyhow!("{error}"))?,
                PrivateKeyDer::from_pem_file(&pair.key)
                    .map_err(|error| anyhow::anyhow!("{error}"))?,
            )?,
        };
        let socket = TcpStream::connect_timeout(&address, LIMIT).context("cannot connect")?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        let connection =
            ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(connection, socket);
        stream
            .conn
            .complete_io(&mut stream.sock)
            .context("the TLS handshake failed")?;
        Ok(Self {
            stream,
            correlation: 0,
        })
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()?;
        Ok(())
    }

    /// Writes a frame: the length, then these bytes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_frame(&mut self, body: &[u8]) -> Result<()> {
        let length = u32::try_from(body.len())?;
        self.send(&[&length.to_be_bytes()[..], body].concat())
    }

    /// Sends a request with a version 1 header (no tagged fields) and reads its answer.
    ///
    /// # Errors
    /// When the connection breaks in another way than by being closed.
    pub fn request(&mut self, key: i16, version: i16, body: &[u8]) -> Result<Answer> {
        self.correlation += 1;
        let header = [
            &key.to_be_bytes()[..],
            &version.to_be_bytes(),
            &self.correlation.to_be_bytes(),
            &string("raw"),
        ];
        self.send_frame(&[&header.concat()[..], body].concat())?;
        self.answer()
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// After ten seconds without one, or when its length is absurd.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut length = [0; 4];
        if !self.fill(&mut length)? {
            return Ok(Answer::Closed);
        }
        let length = u32::from_be_bytes(length);
        if length > LARGEST_ANSWER {
            bail!("the broker announced an answer of {length} bytes");
        }
        let mut body = vec![0; usize::try_from(length)?];
        Ok(if self.fill(&mut body)? {
            Answer::Frame(body)
        } else {
            Answer::Closed
        })
    }

    /// Reads until the broker closes the connection.
    ///
    /// # Errors
    /// When it neither writes nor closes for ten seconds.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) if is_closed(&error) => Ok(bytes),
            Err(error) => Err(error).context("the broker did not close the connection"),
        }
    }

    /// Logs in with SASL PLAIN.
    ///
    /// # Errors
    /// When the broker refuses.
    pub fn login(&mut self, user: &str, password: &str) -> Result<()> {
        let handshake = self.request(17, 1, &string("PLAIN"))?.frame()?;
        if handshake.get(4..6) != Some(&[0, 0]) {
            bail!("the broker does not offer PLAIN: {handshake:?}");
        }
        let message = format!("\0{user}\0{password}");
        let length = u32::try_from(message.len())?;
        let answer = self
            .request(
                36,
                0,
                &[&length.to_be_bytes()[..], message.as_bytes()].concat(),
            )?
            .frame()?;
        if answer.get(4..6) != Some(&[0, 0]) {
            bail!(
                "the broker refuses the password: {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(())
    }

    /// One HTTP/1.1 GET; the status code and the body.
    ///
    /// # Errors
    /// When the answer is no HTTP.
    pub fn get(mut self, path: &str) -> Result<(u16, String)> {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        self.send(request.as_bytes())?;
        let answer = String::from_utf8(self.rest()?).context("the answer is not UTF-8")?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("no HTTP: {answer}"))?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((
            status.with_context(|| format!("no HTTP: {head}"))?,
            body.to_owned(),
        ))
    }

    /// Fills the buffer; false when the connection was closed before.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if is_closed(&error) => Ok(false),
            Err(error) => Err(error).context("no answer"),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// A Kafka string: a two-byte length and the text.
fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}
