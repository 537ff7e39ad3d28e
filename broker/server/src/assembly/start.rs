//! Starting: shard 0, then the data shards, then the ports.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use palisade_config::{
    BrokerConfig, CONTROL_LISTENER, ClientAuth, ConnectionLimits, KeyProviderConfig, ListenerConfig,
};
use palisade_coordinator::group::GroupSettings;
use palisade_peer::Peers;
use palisade_seal::{DirectoryProvider, KeyProvider};
use palisade_security::{Principal, PrincipalMapper};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use super::{Plan, State, data_dir::DataDir, follow, join, peers, status::LiveConfig, storage};
use crate::{
    admin,
    broker::Broker,
    error::StartError,
    groups::GroupRuntime,
    keys::Keeper,
    metrics::Metrics,
    net::{self, Budget, Kind, Limiter, Listener, Shared},
    quotas::Quotas,
    sasl::Authenticator,
    session::Sessions,
    tls::{Endpoint, PEER_ALPN, TlsError},
};

/// Name of the admin port among the endpoints.
pub(super) const ADMIN: &str = "ADMIN";
/// The admin port speaks HTTP/1.1.
const ADMIN_ALPN: &[&[u8]] = &[b"http/1.1"];

/// A running broker.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) state: Arc<State>,
    /// Listeners and the addresses they are bound to.
    pub(crate) addresses: BTreeMap<String, SocketAddr>,
    pub(super) tasks: TaskTracker,
    pub(super) background: TaskTracker,
    pub(super) stopping: CancellationToken,
    pub(super) stopped: CancellationToken,
    pub(super) _data_dir: DataDir,
}

#[cfg(test)]
impl Running {
    /// What the admin port answers from.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

/// The TLS side of every port, by listener name.
pub(super) type Endpoints = BTreeMap<String, Arc<Endpoint>>;

/// Loads the TLS files of every port.
pub(super) fn endpoints(config: &BrokerConfig) -> Result<Endpoints, StartError> {
    let named = |name: &str, opened: Result<Endpoint, TlsError>| {
        opened
            .map(|endpoint| (name.to_owned(), Arc::new(endpoint)))
            .map_err(|error| StartError::Tls {
                name: name.to_owned(),
                reason: error.to_string(),
            })
    };
    let open = |name: &str, tls, client_auth, alpn| {
        named(name, Endpoint::open(name, tls, client_auth, alpn))
    };
    let control = Endpoint::open_for_peers(CONTROL_LISTENER, &config.control.tls, PEER_ALPN);
    let mut endpoints = BTreeMap::new();
    endpoints.extend([
        named(CONTROL_LISTENER, control)?,
        open(ADMIN, &config.admin.tls, ClientAuth::Requested, ADMIN_ALPN)?,
    ]);
    for listener in &config.listeners {
        if let Some(tls) = &listener.tls {
            endpoints.extend([open(&listener.name, tls, listener.client_auth, &[])?]);
        }
    }
    Ok(endpoints)
}

/// Opens the key provider.
pub(super) fn key_provider(config: &BrokerConfig) -> Result<Arc<DirectoryProvider>, StartError> {
    let KeyProviderConfig::Directory { path } = &config.storage.key_provider;
    DirectoryProvider::load(path.clone())
        .map(Arc::new)
        .map_err(StartError::Keys)
}

/// The rules from certificate subjects to principals.
pub(super) fn mapper(listener: &ListenerConfig) -> Result<PrincipalMapper, StartError> {
    PrincipalMapper::parse(&listener.principal_mapping_rules).map_err(|error| StartError::Tls {
        name: listener.name.clone(),
        reason: format!("principal_mapping_rules: {error}"),
    })
}

/// The super users, as principals.
pub(super) fn super_users(
    config: &BrokerConfig,
    file: &Path,
) -> Result<HashSet<Principal>, StartError> {
    let parse = |text: &String| {
        Principal::parse_user(text).map_err(|error| StartError::Config {
            path: file.to_owned(),
            reason: format!("super user `{text}`: {error}"),
        })
    };
    config.super_users.iter().map(parse).collect()
}

/// Starts a broker; when this returns it serves.
pub(crate) async fn start(plan: &Plan) -> Result<Running, StartError> {
    let began = Instant::now();
    let config = plan.read()?;
    let endpoints = endpoints(&config)?;
    let super_users = super_users(&config, &plan.file)?;
    let provider = key_provider(&config)?;
    let node_id = config.node.id.unwrap_or(0);
    let data_dir = DataDir::open(&config.storage.data_dir, &config.node.cluster_id, node_id)?;
    let authenticator = Authenticator::new(data_dir.decoy()?).map_err(|_| StartError::Random)?;
    let (control, clients) = bind(&config)?;
    let admin_socket = bind_one(ADMIN, (config.admin.bind, config.admin.port).into())?;
    let listeners = listeners(&config, &endpoints, &control, &clients)?;
    let (stopping, stopped) = (CancellationToken::new(), CancellationToken::new());
    let (tasks, background) = (TaskTracker::new(), TaskTracker::new());

    let keys: Arc<dyn KeyProvider> = provider.clone();
    let opened = storage::open(&config, &data_dir, Arc::clone(&keys))?;
    let peers = peers::start(&config, &endpoints, &opened)?;
    let mut control = Control::open(control, &listeners, peers.as_ref());
    let metrics = Arc::new(Metrics::new());
    let storage = storage::form(&config, &data_dir, keys.clone(), opened, peers.as_ref()).await?;
    join::found(&storage, &config, &stopping, &background);
    join::register(&storage, &config, &data_dir, &listeners, plan.user.as_ref()).await?;
    join::host(&storage, &stopping, &background).await;

    let groups = Arc::new(GroupRuntime::new(GroupSettings::default()));
    let broker = Arc::new(Broker {
        node_id,
        cluster_id: config.node.cluster_id.clone(),
        data_dir: data_dir.path.display().to_string(),
        data: Arc::clone(&storage.data),
        groups: Arc::clone(&groups),
        quotas: Quotas::default(),
        metrics: Arc::clone(&metrics),
        provider: keys,
        cluster: Arc::clone(&storage.cluster),
        images: storage.images.clone(),
        super_users: ArcSwap::from_pointee(super_users),
        producer_ids: tokio::sync::Mutex::new(0..0),
    });
    let keeper = Arc::new(Keeper::new(
        Arc::clone(&broker),
        Arc::clone(&storage.wal),
        Arc::clone(&provider),
    ));
    let state = Arc::new(State {
        broker: Arc::clone(&broker),
        endpoints,
        listeners: listeners
            .iter()
            .map(|(listener, _)| Arc::clone(listener))
            .collect(),
        config: LiveConfig::new(config.clone()),
        provider,
        keeper: Arc::clone(&keeper),
        stopping: stopping.clone(),
        wal: Arc::clone(&storage.wal),
    });
    let shared = Arc::new(Shared {
        application: Arc::clone(&broker),
        metrics,
        authenticator,
        sessions: Arc::new(Sessions::default()),
        budget: Budget::default(),
        stopping: stopping.clone(),
        isolated: storage.cluster.isolated(),
        tasks: tasks.clone(),
        peers: peers.clone(),
    });

    let mut addresses = BTreeMap::new();
    let sockets = std::iter::once(control.close().await?).chain(clients);
    for ((listener, address), socket) in listeners.into_iter().zip(sockets) {
        info!(listener = %listener.name, %address, "listening");
        addresses.insert(listener.name.clone(), address);
        tasks.spawn(net::accept(listener, socket, Arc::clone(&shared)));
    }
    if let Ok(address) = admin_socket.local_addr() {
        info!(listener = ADMIN, %address, "listening");
        addresses.insert(ADMIN.to_owned(), address);
    }
    background.spawn(admin::serve(
        admin_socket,
        Arc::clone(&state),
        stopped.clone(),
    ));
    background.spawn(Arc::clone(&groups).run(stopping.clone()));
    background.spawn(groups.keep(Arc::clone(&broker), stopping.clone()));
    background.spawn(follow::files(
        plan.clone(),
        Arc::clone(&state),
        stopping.clone(),
    ));
    background.spawn(follow::credentials(
        Arc::clone(&broker),
        Arc::clone(&shared.sessions),
        stopping.clone(),
    ));
    background.spawn(follow::coordinators(Arc::clone(&broker), stopping.clone()));
    background.spawn(follow::checkpoints(Arc::clone(&broker), stopping.clone()));
    background.spawn(follow::housekeeping(broker, stopping.clone()));
    background.spawn(keeper.run(stopping.clone()));
    info!(
        node_id,
        cluster_id = %config.node.cluster_id,
        config_version = %config.version,
        topics = storage.images.borrow().topics.len(),
        took = ?began.elapsed(),
        "serving"
    );
    Ok(Running {
        state,
        addresses,
        tasks,
        background,
        stopping,
        stopped,
        _data_dir: data_dir,
    })
}

/// The control port before there is anything to serve but peers.
struct Control {
    open: Option<(JoinHandle<TcpListener>, CancellationToken)>,
    socket: Option<TcpListener>,
}

impl Control {
    fn open(
        socket: TcpListener,
        listeners: &[(Arc<Listener>, SocketAddr)],
        peers: Option<&Arc<Peers>>,
    ) -> Self {
        let control = listeners
            .iter()
            .map(|(listener, _)| listener)
            .find(|listener| listener.kind == Kind::Control);
        match (control, peers) {
            (Some(listener), Some(peers)) => {
                let until = CancellationToken::new();
                let task = tokio::spawn(net::accept_peers(
                    Arc::clone(listener),
                    socket,
                    Arc::clone(peers),
                    until.clone(),
                ));
                Self {
                    open: Some((task, until)),
                    socket: None,
                }
            }
            _ => Self {
                open: None,
                socket: Some(socket),
            },
        }
    }

    /// The socket, for everyone from now on.
    async fn close(&mut self) -> Result<TcpListener, StartError> {
        if let Some((task, until)) = self.open.take() {
            until.cancel();
            self.socket = task.await.ok();
        }
        self.socket
            .take()
            .ok_or_else(|| StartError::Storage("the control port was lost".to_owned()))
    }
}

fn bind_one(name: &str, address: SocketAddr) -> Result<TcpListener, StartError> {
    net::bind(address).map_err(|error| StartError::Bind {
        name: name.to_owned(),
        address,
        error,
    })
}

fn bind(config: &BrokerConfig) -> Result<(TcpListener, Vec<TcpListener>), StartError> {
    let control = bind_one(
        CONTROL_LISTENER,
        (config.control.bind, config.control.port).into(),
    )?;
    let clients = config
        .listeners
        .iter()
        .map(|listener| bind_one(&listener.name, (listener.bind, listener.port).into()))
        .collect::<Result<_, _>>()?;
    Ok((control, clients))
}

/// The listeners with their bound addresses, the control listener first.
fn listeners(
    config: &BrokerConfig,
    endpoints: &Endpoints,
    control: &TcpListener,
    clients: &[TcpListener],
) -> Result<Vec<(Arc<Listener>, SocketAddr)>, StartError> {
    let bound = |name: &str, socket: &TcpListener, wanted: SocketAddr| {
        socket.local_addr().map_err(|error| StartError::Bind {
            name: name.to_owned(),
            address: wanted,
            error,
        })
    };
    let wanted = (config.control.bind, config.control.port).into();
    let address = bound(CONTROL_LISTENER, control, wanted)?;
    let control = Listener {
        name: CONTROL_LISTENER.to_owned(),
        kind: Kind::Control,
        endpoint: endpoints.get(CONTROL_LISTENER).cloned(),
        mechanisms: Vec::new(),
        mapper: PrincipalMapper::default(),
        limiter: Arc::new(Limiter::new(ConnectionLimits::default())),
        advertised_host: config.control.advertised_host.clone(),
        advertised_port: address.port(),
    };
    let mut all = vec![(Arc::new(control), address)];
    for (listener, socket) in config.listeners.iter().zip(clients) {
        let address = bound(
            &listener.name,
            socket,
            (listener.bind, listener.port).into(),
        )?;
        let built = Listener {
            name: listener.name.clone(),
            kind: Kind::Client,
            endpoint: endpoints.get(&listener.name).cloned(),
            mechanisms: listener.sasl_mechanisms.clone(),
            mapper: mapper(listener)?,
            limiter: Arc::new(Limiter::new(listener.limits.clone())),
            advertised_host: listener.advertised_host.clone(),
            advertised_port: listener.advertised_port.unwrap_or(address.port()),
        };
        all.push((Arc::new(built), address));
    }
    Ok(all)
}
