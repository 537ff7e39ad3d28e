//! What a peer may send that it should not, and when it sends nothing.

use std::{io::Write, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio_rustls::TlsConnector;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::{
    frame::{Frame, HEADER, What},
    hello::{Hello, VERSION},
    stream::FrameReader,
};

pub(super) fn hello(broker: i32) -> Hello {
    Hello {
        version: VERSION,
        cluster_id: CLUSTER.to_owned(),
        node: NodeId::of(broker, 1),
        broker,
        takes_over: false,
    }
}

/// One side of a connection, played by the test.
pub(super) struct Raw<S> {
    reader: FrameReader<ReadHalf<S>>,
    pub(super) writer: WriteHalf<S>,
}

type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

impl Raw<ClientStream> {
    /// Connects as one broker to another, without a hello.
    pub(super) async fn connect(net: &Net, me: i32, to: i32) -> Self {
        let address = net.addresses.address(to).unwrap();
        let tcp = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .unwrap();
        let name = rustls_pki_types::ServerName::try_from(address.host).unwrap();
        let connector = TlsConnector::from(net.identity(me).client(&net.authority));
        Self::of(soon(connector.connect(name, tcp)).await.unwrap())
    }

    /// And with one.
    pub(super) async fn greeted(net: &Net, me: i32, to: i32) -> Self {
        // Whose address nobody knows is refused; nothing has to listen there.
        net.addresses.0.lock().entry(me).or_insert(1);
        let mut raw = Self::connect(net, me, to).await;
        raw.send(&hello(me).frame()).await;
        assert_eq!(raw.frame().await.unwrap().what, What::Hello);
        raw
    }
}

impl<S: AsyncRead + AsyncWrite> Raw<S> {
    pub(super) fn of(stream: S) -> Self {
        let (reader, writer) = split(stream);
        Self {
            reader: FrameReader::new(reader, 1 << 30),
            writer,
        }
    }

    pub(super) async fn send(&mut self, frame: &Frame) {
        let mut bytes = frame.header().unwrap().to_vec();
        bytes.extend_from_slice(&frame.message.head);
        bytes.extend_from_slice(&frame.message.payload.concat());
        self.bytes(&bytes).await;
    }

    async fn bytes(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// The next frame that is no sign of life; `None` at the end.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        loop {
            match soon(self.reader.frame()).await {
                Ok(frame) if frame.what == What::Ping && frame.correlation == 0 => {}
                Ok(frame) => return Some(frame),
                Err(_) => return None,
            }
        }
    }
}

impl Fake {
    /// Takes the next connection and says hello.
    pub(super) async fn greeted(&self, me: i32) -> Raw<TlsStream<BufReader<TcpStream>>> {
        let mut raw = Raw::of(self.tls().await);
        assert_eq!(raw.frame().await.unwrap().what, What::Hello);
        raw.send(&hello(me).frame()).await;
        raw
    }
}

/// Catches the log of one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

fn bad(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = Frame::bare(What::Request, 1).header().unwrap();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header.to_vec()
}

#[tokio::test]
async fn malformed_frames_end_the_connection_and_are_named() {
    let (log, _guard) = Log::start();
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let pong = Frame::bare(What::Pong, 1).header().unwrap().to_vec();
    let cases: [(Vec<u8>, &str); 6] = [
        (
            bad(0, &u32::MAX.to_be_bytes()),
            "a frame of 4294967295 bytes is over the limit of 67108864",
        ),
        (
            bad(0, &0u32.to_be_bytes()),
            "a frame of 0 bytes is shorter than its header",
        ),
        (
            bad(18, &1u32.to_be_bytes()),
            "a head of 1 bytes does not fit its frame of 18",
        ),
        (bad(16, &[200]), "frame type 200 is unknown"),
        (pong, "it sends a Pong where it only asks"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            "is over the limit",
        ),
    ];
    for (bytes, expected) in cases {
        let mut raw = Raw::greeted(&net, 1, 2).await;
        raw.bytes(&bytes).await;
        assert!(raw.frame().await.is_none(), "{expected}");
        let text = log.text();
        let line = text
            .lines()
            .find(|line| line.contains(expected))
            .unwrap_or_else(|| panic!("no line has {expected:?}: {text}"));
        assert!(
            line.contains("WARN") && line.contains("peer=broker 1 (00000001)"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn before_the_hello_only_a_small_frame_is_taken() {
    let (log, _guard) = Log::start();
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let mut raw = Raw::connect(&net, 1, 2).await;
    raw.bytes(&bad(0, &5000u32.to_be_bytes())).await;
    assert!(raw.frame().await.is_none());
    let text = log.text();
    assert!(
        text.contains("a frame of 5000 bytes is over the limit of 4096"),
        "{text}"
    );
}

#[tokio::test]
async fn a_malformed_answer_ends_the_connection() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let one = net.broker(1, echo()).await;
    let mut events = one.peers.events();
    let call = one.peers.call_cluster(2, message(1, "a", 0));
    let mut raw = fake.greeted(2).await;
    assert_eq!(raw.frame().await.unwrap().what, What::Request);
    raw.bytes(&bad(0, &3u32.to_be_bytes())).await;
    let error = soon(call).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Broken(reason) if reason.contains("malformed: a frame of 3 bytes")),
        "{error}"
    );
    assert_eq!(next(&mut events).await, PeerEvent::Up(NodeId::of(2, 1)));
    assert_eq!(next(&mut events).await, PeerEvent::Lost(NodeId::of(2, 1)));
}

#[tokio::test]
async fn a_frame_in_pieces_over_many_reads_arrives_whole() {
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let mut raw = Raw::greeted(&net, 1, 2).await;
    let frame = Frame {
        channel: 4,
        correlation: 99,
        message: message(3, "pieces", 100),
        ..Frame::bare(What::Request, 0)
    };
    let mut bytes = frame.header().unwrap().to_vec();
    bytes.extend_from_slice(&frame.message.head);
    bytes.extend_from_slice(&frame.message.payload.concat());
    for byte in &bytes {
        raw.bytes(std::slice::from_ref(byte)).await;
    }
    let answer = raw.frame().await.unwrap();
    assert_eq!(
        (answer.what, answer.channel, answer.correlation),
        (What::Answer, 4, 99)
    );
    assert_eq!(answer.message.len(), bytes.len() - HEADER);
}

#[tokio::test]
async fn a_connection_that_comes_again_ends_the_one_before() {
    let net = Net::new();
    let _two = net.broker(2, echo()).await;
    let mut first = Raw::greeted(&net, 1, 2).await;
    let mut second = Raw::greeted(&net, 1, 2).await;
    assert!(first.frame().await.is_none());
    second.send(&Frame::bare(What::Request, 5)).await;
    assert_eq!(second.frame().await.unwrap().correlation, 5);
}

#[tokio::test]
async fn calls_beyond_the_queue_s_limit_fail_at_once() {
    let net = Net::new();
    let fake = net.fake(2).await;
    let mut options = net.options(NodeId::of(1, 1));
    options.limits.queue_bytes = 1 << 20;
    let one = net.start(options, echo()).await;
    // Accepted, greeted, and then not read from.
    one.peers.connect(2);
    let _raw = fake.greeted(2).await;
    one.connected_to(2).await;
    let mut waiting = Vec::new();
    let error = loop {
        let mut call = one.peers.call_cluster(2, message(1, "", 100_000));
        match futures::poll!(&mut call) {
            std::task::Poll::Ready(result) => break result.unwrap_err(),
            std::task::Poll::Pending => waiting.push(call),
        }
        tokio::task::yield_now().await;
        assert!(waiting.len() < 1000, "nothing bounds the queue");
    };
    assert!(
        matches!(&error, CallError::Unreachable(reason) if reason.contains("bytes wait to be sent already")),
        "{error}"
    );
    assert!(waiting.len() >= 10);
}
