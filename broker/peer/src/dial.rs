//! From an address to a connection whose other side is known.

use std::{
    io::{Error, ErrorKind},
    sync::Arc,
};

use palisade_shard::NodeId;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    api::{ALPN, PeerAddress},
    frame::What,
    hello::{Hello, MAX_HELLO, judge_server, text},
    stream::{FrameReader, READ_AHEAD},
};

/// Ciphertext that rustls makes before it is written.
const TLS_BUFFER: usize = 256 * 1024;

type Stream = TlsStream<BufReader<TcpStream>>;

/// A connection on which both sides have said hello.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) node: NodeId,
    /// What the other side has shown.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) reader: FrameReader<ReadHalf<Stream>>,
    pub(crate) writer: WriteHalf<Stream>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("no address of it is known")]
    NoAddress,
    #[error("{host} is no name of a host")]
    Host { host: String },
    #[error("cannot connect to {host}:{port}: {error}")]
    Connect {
        host: String,
        port: u16,
        error: Error,
    },
    #[error("TLS with {host}:{port}: {error}")]
    Tls {
        host: String,
        port: u16,
        error: Error,
    },
    #[error("what listens at {host}:{port} does not speak the protocol of brokers")]
    Protocol { host: String, port: u16 },
    #[error("it refuses this broker: {0}")]
    Rejected(String),
    #[error("it is not who is wanted: {0}")]
    Stranger(String),
    #[error("the connection broke before the hello: {0}")]
    Broken(String),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("this broker stops")]
    Stopping,
}

impl DialError {
    /// Whether it says that the process is not there, not only that it cannot be reached.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Connect { error, .. } if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable))
    }
}

/// Connects and says hello.
pub(crate) async fn dial(
    address: PeerAddress,
    config: Arc<ClientConfig>,
    mine: &Hello,
    called: i32,
    frame_bytes: usize,
) -> Result<Dialled, DialError> {
    let PeerAddress { host, port } = address;
    let Ok(name) = ServerName::try_from(host.clone()) else {
        return Err(DialError::Host { host });
    };
    let tcp = match TcpStream::connect((host.as_str(), port)).await {
        Ok(tcp) => tcp,
        Err(error) => return Err(DialError::Connect { host, port, error }),
    };
    // Sizes of socket buffers are the system's to adapt: a fixed one is capped far below what it grows to by itself.
    let connected = match tcp.set_nodelay(true) {
        Ok(()) => {
            let buffered = BufReader::with_capacity(READ_AHEAD, tcp);
            TlsConnector::from(config).connect(name, buffered).await
        }
        Err(error) => Err(error),
    };
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => return Err(DialError::Tls { host, port, error }),
    };
    let tls = stream.get_mut().1;
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(DialError::Protocol { host, port });
    }
    tls.set_buffer_limit(Some(TLS_BUFFER));
    let shown = tls.peer_certificates().unwrap_or_default();
    let chain = shown.iter().map(|one| one.clone().into_owned()).collect();
    let (reader, mut writer) = split(stream);
    let broken = |error: Error| DialError::Broken(error.to_string());
    let hello = mine.frame();
    let header = hello.header().unwrap_or_default();
    writer.write_all(&header).await.map_err(broken)?;
    writer
        .write_all(&hello.message.head)
        .await
        .map_err(broken)?;
    writer.flush().await.map_err(broken)?;
    let mut reader = FrameReader::new(reader, MAX_HELLO);
    let answer = reader
        .frame()
        .await
        .map_err(|error| DialError::Broken(error.to_string()))?;
    if answer.what == What::Reject {
        return Err(DialError::Rejected(text(&answer.message.head)));
    }
    let theirs = Hello::parse(&answer).map_err(DialError::Stranger)?;
    judge_server(&theirs, mine, called).map_err(DialError::Stranger)?;
    reader.limit(frame_bytes);
    Ok(Dialled {
        node: theirs.node,
        chain,
        reader,
        writer,
    })
}
