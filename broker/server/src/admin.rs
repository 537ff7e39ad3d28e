//! The admin port: health, metrics and status over HTTPS.
//!
//! | path | who | what |
//! | --- | --- | --- |
//! | `/healthz` | anyone | the process answers |
//! | `/readyz` | anyone | 200 when clients are served, else 503 and why |
//! | `/metrics` | a certificate of the cluster authority, or anyone with `anonymous_metrics` | Prometheus' text format |
//! | `/status` | a certificate of the cluster authority | [`palisade_config::status::BrokerStatus`] |

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::State as Extract,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::assembly::State;

/// Scrapers, probes and operators at once.
const MAX_CONNECTIONS: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the client showed a certificate of the cluster authority.
#[derive(Clone, Copy, Debug)]
struct Verified(bool);

/// Serves the admin port until the broker has stopped.
pub(crate) async fn serve(socket: TcpListener, state: Arc<State>, stopped: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(Arc::clone(&state));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Fails only when the semaphore is closed, which nobody does.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stopped.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                debug!(%peer, "admin connection");
                let (router, state, stopped) =
                    (router.clone(), Arc::clone(&state), stopped.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        () = connection(stream, router, state, place) => {}
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept an admin connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    state: Arc<State>,
    place: OwnedSemaphorePermit,
) {
    let _place = place;
    let Some(endpoint) = state.admin_endpoint() else {
        return;
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&endpoint.current().config));
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "admin TLS handshake failed"),
        Err(_) => return debug!("admin TLS handshake took too long"),
    };
    let verified = stream
        .get_ref()
        .1
        .peer_certificates()
        .is_some_and(|chain| !chain.is_empty());
    let service = TowerToHyperService::new(router.layer(Extension(Verified(verified))));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "admin connection failed");
    }
}

async fn readyz(Extract(state): Extract<Arc<State>>) -> Response {
    match state.readiness() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics(
    Extract(state): Extract<Arc<State>>,
    Extension(verified): Extension<Verified>,
) -> Response {
    if !verified.0 && !state.anonymous_metrics() {
        return forbidden();
    }
    state.refresh_metrics();
    match state.broker.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn status(
    Extract(state): Extract<Arc<State>>,
    Extension(verified): Extension<Verified>,
) -> Response {
    if !verified.0 {
        return forbidden();
    }
    Json(state.status()).into_response()
}

fn forbidden() -> Response {
    let message = "a client certificate of the cluster authority is needed\n";
    (StatusCode::FORBIDDEN, message).into_response()
}
