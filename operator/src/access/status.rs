//! `GET /status` of one broker.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use palisade_config::status::BrokerStatus;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kafka::Endpoint;

const LIMIT: Duration = Duration::from_secs(3);
/// A status takes about a kilobyte for each listener.
const MAX_BODY: usize = 1 << 20;

/// Why a broker's status could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// Nothing came back in time.
    #[error("no answer within {} s", LIMIT.as_secs())]
    Timeout,
    /// No connection came about.
    #[error("cannot connect: {0}")]
    Connect(#[from] std::io::Error),
    /// The answer is not HTTP, or larger than a status can be.
    #[error("the answer cannot be read: {0}")]
    Http(String),
    /// The broker refused.
    #[error("the broker answered {0}")]
    Refused(StatusCode),
    /// The answer is not a status.
    #[error("the answer is not a broker's status: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Reads a broker's status.
pub(super) async fn read(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
) -> Result<BrokerStatus, StatusError> {
    tokio::time::timeout(LIMIT, exchange(endpoint, tls))
        .await
        .map_err(|_| StatusError::Timeout)?
}

async fn exchange(
    endpoint: &Endpoint,
    tls: Arc<ClientConfig>,
) -> Result<BrokerStatus, StatusError> {
    let http = |error: &dyn std::fmt::Display| StatusError::Http(error.to_string());
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| http(&error))?;
    let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http(&error))?;
    let request = Request::get("/status")
        .header("host", &endpoint.host)
        .body(Empty::<Bytes>::new())
        .map_err(|error| http(&error))?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| http(&error))?;
        if response.status() != StatusCode::OK {
            return Err(StatusError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|error| http(&error))?;
        Ok(serde_json::from_slice(&body.to_bytes())?)
    };
    // The connection has to be driven while the exchange waits for it, and ends with it.
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        closed = &mut connection => match closed {
            // Everything was received: what is left of the exchange needs the connection no more.
            Ok(()) => answer.await,
            Err(error) => Err(http(&error)),
        },
    }
}
