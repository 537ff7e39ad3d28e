//! `palisade-operator`: waits for the lease, runs the controllers, and stops when asked or when the lease is lost.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use futures::FutureExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    runtime::events::{Recorder, Reporter},
};
use palisade_operator::{
    Context, Settings,
    access::AccessCache,
    controllers::{Controllers, Scope},
    http::{self, Health},
    kubernetes::{FIELD_MANAGER, LeaseLock},
    metrics::Metrics,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, fmt};

/// The Palisade operator.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Image of the broker.
    #[arg(
        long,
        env = "PALISADE_BROKER_IMAGE",
        default_value = "palisade.local/broker:dev"
    )]
    broker_image: String,
    /// When kubelets pull the broker's image.
    #[arg(long, env = "PALISADE_BROKER_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    broker_image_pull_policy: String,
    /// Secrets with credentials for the broker's image, in the namespaces of clusters, separated by commas.
    #[arg(
        long,
        env = "PALISADE_BROKER_IMAGE_PULL_SECRETS",
        value_delimiter = ',',
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    broker_image_pull_secrets: Vec<String>,
    /// Namespace the operator runs in; the lease is kept there, and its pods are admitted to the brokers' own ports.
    #[arg(
        long,
        env = "PALISADE_OPERATOR_NAMESPACE",
        default_value = "palisade-system"
    )]
    namespace: String,
    /// Namespaces to watch, separated by commas; empty: all.
    #[arg(
        long,
        env = "PALISADE_WATCH_NAMESPACES",
        default_value = "",
        hide_default_value = true
    )]
    watch_namespaces: String,
    /// Identity in leader election; must differ between replicas.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Address for health and metrics.
    #[arg(long, env = "PALISADE_OPERATOR_HTTP", default_value = "0.0.0.0:8080")]
    http: SocketAddr,
}

impl Arguments {
    fn scope(&self) -> Scope {
        let names: Vec<String> = self
            .watch_namespaces
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        if names.is_empty() {
            Scope::All
        } else {
            Scope::Named(names)
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    fmt()
        .json()
        .with_span_list(false)
        .with_env_filter(filter)
        .init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // One provider for all of TLS; a second install is a mistake of a library and harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let metrics = Arc::new(Metrics::default());
    let health = Health::new(Arc::clone(&metrics));
    let address = arguments.http;
    let served = tokio::spawn(http::serve(address, health.clone()));
    let client = Client::try_default()
        .await
        .context("cannot find the API server: set KUBECONFIG, or run in a pod")?;
    client
        .apiserver_version()
        .await
        .context("the API server does not answer")?;
    health.set_ready();

    let mut interrupted = Box::pin(interruption()?);
    let identity = match &arguments.identity {
        Some(identity) => identity.clone(),
        None => format!("{FIELD_MANAGER}-{}", uuid::Uuid::new_v4()),
    };
    let leases: Api<Lease> = Api::namespaced(client.clone(), &arguments.namespace);
    let lock = LeaseLock::new(leases, FIELD_MANAGER, identity.clone());
    let mut leadership = tokio::select! {
        leadership = lock.acquire() => leadership,
        () = &mut interrupted => return Ok(()),
        ended = served => return ended?.with_context(|| format!("cannot serve health and metrics on {address}")),
    };
    metrics.set_leading(true);

    let (controllers, indexes) = Controllers::new(&client, &arguments.scope());
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: Some(identity),
    };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        settings: Settings {
            broker_image: arguments.broker_image,
            image_pull_policy: arguments.broker_image_pull_policy,
            image_pull_secrets: arguments.broker_image_pull_secrets,
            operator_namespace: arguments.namespace,
        },
        metrics,
        indexes,
        access: AccessCache::default(),
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = stopped.map(|_| ()).shared();
    let mut running = tokio::spawn(controllers.run(context, stopped));
    tokio::select! {
        () = interrupted => {}
        // Whoever leads and does nothing keeps others from doing it.
        ended = &mut running => {
            ended.context("a controller broke down")?;
            anyhow::bail!("the controllers ended although nobody stopped them");
        }
        // Another operator acts from now on: nothing may be finished.
        () = leadership.lost() => anyhow::bail!("the lease was lost"),
    }
    tracing::info!("stopping");
    let _ = stop.send(());
    running.await.context("the controllers ended badly")?;
    leadership
        .release()
        .await
        .context("cannot give the lease up")?;
    Ok(())
}

/// Completes when the process is asked to end.
fn interruption() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
