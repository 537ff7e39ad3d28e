//! Authenticated connections per second: full TLS 1.3 handshakes, nothing resumed, a fixed number at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use kafka_protocol::{
    messages::{
        ApiVersionsRequest, MetadataRequest, SaslAuthenticateRequest, SaslHandshakeRequest,
    },
    protocol::{Request, StrBytes},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    frames,
    load::{Target, Timing},
    pki,
    proc::{CpuMeter, Usage},
    scram,
};

/// Connections being made at the same time.
const AT_ONCE: usize = 16;
/// Longest time for one connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a connection proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// TLS, ApiVersions, SaslHandshake, SaslAuthenticate twice.
    Scram,
    /// TLS with a client certificate, ApiVersions, Metadata.
    Mtls,
}

/// What was reached.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_second: f64,
    pub broker_millis_each: f64,
    pub failed: u64,
    pub usage: Usage,
}

/// Makes connections to the first broker, one after the other in several tasks.
pub fn rate(target: &Target, login: Login, timing: Timing) -> Result<Rate> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(measure(target, login, timing));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn measure(target: &Target, login: Login, timing: Timing) -> Result<Rate> {
    let ports = match login {
        Login::Scram => &target.access.ports,
        Login::Mtls => &target.access.mtls_ports,
    };
    let port = *ports.first().context("no such listener")?;
    let config = target.access.pki.client(login == Login::Mtls)?;
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let end = Instant::now() + timing.warm + timing.measure;
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (config, password) = (Arc::clone(&config), target.access.password.clone());
        let (done, failed) = (Arc::clone(&done), Arc::clone(&failed));
        tasks.spawn(async move {
            let mut last = None;
            while Instant::now() < end {
                let connection = connect(port, Arc::clone(&config), login, &password);
                match tokio::time::timeout(PATIENCE, connection).await {
                    Ok(Ok(())) => {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(Err(error)) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        last = Some(error);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(_) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            last
        });
    }
    tokio::time::sleep(timing.warm).await;
    let (from, failed_before) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    let meter = CpuMeter::start(&target.pids)?;
    tokio::time::sleep(timing.measure).await;
    let made = done.load(Ordering::Relaxed) - from;
    let failed = failed.load(Ordering::Relaxed) - failed_before;
    let usage = meter.usage()?;
    let mut last = None;
    while let Some(finished) = tasks.join_next().await {
        last = finished.ok().flatten().or(last);
    }
    if made == 0 {
        return Err(last.unwrap_or_else(|| anyhow::anyhow!("no answer")))
            .context("no connection could be made");
    }
    Ok(Rate {
        per_second: made as f64 / usage.elapsed.as_secs_f64(),
        broker_millis_each: usage.brokers * 1e3 / made as f64,
        failed,
        usage,
    })
}

async fn connect(port: u16, config: Arc<ClientConfig>, login: Login, password: &str) -> Result<()> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.set_nodelay(true)?;
    let mut stream = TlsConnector::from(config)
        .connect(ServerName::try_from("localhost")?, socket)
        .await
        .context("the TLS handshake failed")?;
    let versions = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("bench"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    let answer = call(&mut stream, &versions, 3, 1).await?;
    refused(answer.error_code, "ApiVersions")?;
    match login {
        Login::Mtls => {
            let request = MetadataRequest::default().with_topics(Some(Vec::new()));
            call(&mut stream, &request, 9, 2).await?;
        }
        Login::Scram => {
            let handshake = SaslHandshakeRequest::default()
                .with_mechanism(StrBytes::from_static_str("SCRAM-SHA-512"));
            let answer = call(&mut stream, &handshake, 1, 2).await?;
            refused(answer.error_code, "SaslHandshake")?;
            let nonce = uuid::Uuid::new_v4().simple().to_string();
            let first = scram::first(pki::CLIENT, &nonce);
            let server_first = authenticate(&mut stream, first, 3).await?;
            let last = scram::last(pki::CLIENT, password, &nonce, &server_first)?;
            authenticate(&mut stream, last, 4).await?;
        }
    }
    stream.shutdown().await.ok();
    Ok(())
}

async fn authenticate(
    stream: &mut TlsStream<TcpStream>,
    message: String,
    correlation: i32,
) -> Result<String> {
    let request =
        SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(message.into_bytes()));
    let answer = call(stream, &request, 2, correlation).await?;
    refused(answer.error_code, "SaslAuthenticate")?;
    Ok(String::from_utf8(answer.auth_bytes.to_vec())?)
}

async fn call<R: Request>(
    stream: &mut TlsStream<TcpStream>,
    request: &R,
    version: i16,
    correlation: i32,
) -> Result<R::Response> {
    stream
        .write_all(&frames::request(request, version, correlation)?)
        .await?;
    stream.flush().await?;
    let length = stream.read_u32().await.context("no answer")?;
    if length as usize > frames::LARGEST {
        bail!("the broker announced an answer of {length} bytes");
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    frames::response::<R>(Bytes::from(body), version)
}

fn refused(code: i16, what: &str) -> Result<()> {
    if code != 0 {
        bail!("{what} was refused with error {code}");
    }
    Ok(())
}
