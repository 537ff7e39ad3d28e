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
use palisade_data::{DataOptions, DataPlane, ImageCatalog};
use palisade_log::{ShardId, Wal, WalOptions, WalRecord};
use palisade_metadata::{BrokerEndpoint, Image, MetadataCommand, MetadataMachine};
use palisade_seal::{DirectoryProvider, FileKeys, KeyProvider};
use palisade_security::{Principal, PrincipalMapper, ScramCredential, ScramMechanism};
use palisade_shard::{NodeId, Shard, ShardConfig};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use super::{BootstrapUser, Plan, State, data_dir::DataDir, follow, status::LiveConfig};
use crate::{
    admin,
    broker::{Broker, change},
    error::StartError,
    groups::GroupRuntime,
    metrics::Metrics,
    net::{self, Budget, Kind, Limiter, Listener, Shared},
    quotas::Quotas,
    sasl::Authenticator,
    session::Sessions,
    tls::Endpoint,
};

/// Name of the admin port among the endpoints.
pub(super) const ADMIN: &str = "ADMIN";
/// The admin port speaks HTTP/1.1.
const ADMIN_ALPN: &[&[u8]] = &[b"http/1.1"];
const SCRAM_ITERATIONS: u32 = 4096;

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
    let open = |name: &str, tls, client_auth, alpn| {
        Endpoint::open(name, tls, client_auth, alpn)
            .map(|endpoint| (name.to_owned(), Arc::new(endpoint)))
            .map_err(|error| StartError::Tls {
                name: name.to_owned(),
                reason: error.to_string(),
            })
    };
    let mut endpoints = BTreeMap::new();
    endpoints.extend([
        open(
            CONTROL_LISTENER,
            &config.control.tls,
            ClientAuth::Required,
            &[],
        )?,
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
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let endpoints = endpoints(&config)?;
    let super_users = super_users(&config, &plan.file)?;
    let provider = key_provider(&config)?;
    let node_id = config.node.id.unwrap_or(0);
    let data_dir = DataDir::open(&config.storage.data_dir, &config.node.cluster_id, node_id)?;
    let authenticator = Authenticator::new(data_dir.decoy()?).map_err(|_| StartError::Random)?;
    let (control, clients) = bind(&config)?;
    let admin_socket = bind_one(ADMIN, (config.admin.bind, config.admin.port).into())?;

    let keys: Arc<dyn KeyProvider> = provider.clone();
    let storage = Storage::open(&config, &data_dir, Arc::clone(&keys)).await?;
    let listeners = listeners(&config, &endpoints, &control, &clients)?;
    bootstrap(&storage, &config, &data_dir, &listeners, plan.user.as_ref()).await?;
    let data = storage
        .data_plane(&config, node_id, Arc::clone(&keys))
        .await?;
    data.ready().await;

    let metrics = Arc::new(Metrics::new());
    let groups = Arc::new(GroupRuntime::new(GroupSettings::default()));
    let broker = Arc::new(Broker {
        node_id,
        cluster_id: config.node.cluster_id.clone(),
        data_dir: data_dir.path.display().to_string(),
        data,
        groups: Arc::clone(&groups),
        quotas: Quotas::default(),
        metrics: Arc::clone(&metrics),
        provider: keys,
        metadata: Arc::clone(&storage.metadata),
        images: storage.images.clone(),
        super_users: ArcSwap::from_pointee(super_users),
        producer_ids: tokio::sync::Mutex::new(0..0),
    });
    let (stopping, stopped) = (CancellationToken::new(), CancellationToken::new());
    let (tasks, background) = (TaskTracker::new(), TaskTracker::new());
    let state = Arc::new(State {
        broker: Arc::clone(&broker),
        endpoints,
        listeners: listeners
            .iter()
            .map(|(listener, _)| Arc::clone(listener))
            .collect(),
        config: LiveConfig::new(config.clone()),
        provider,
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
        tasks: tasks.clone(),
    });

    let mut addresses = BTreeMap::new();
    let sockets = std::iter::once(control).chain(clients);
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
    background.spawn(groups.run(stopping.clone()));
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
    background.spawn(follow::housekeeping(broker, stopping.clone()));
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

/// The write-ahead log and shard 0, and what the log holds of the data shards.
struct Storage {
    wal: Arc<Wal>,
    file_keys: Arc<FileKeys>,
    metadata: Arc<Shard<MetadataMachine>>,
    images: watch::Receiver<Arc<Image>>,
    recovered: parking_lot::Mutex<BTreeMap<ShardId, Vec<WalRecord>>>,
    data_path: std::path::PathBuf,
}

fn storage_error(error: impl std::fmt::Display) -> StartError {
    StartError::Storage(error.to_string())
}

impl Storage {
    async fn open(
        config: &BrokerConfig,
        data_dir: &DataDir,
        keys: Arc<dyn KeyProvider>,
    ) -> Result<Self, StartError> {
        let file_keys = Arc::new(FileKeys::new(keys));
        let mut options = WalOptions::new(data_dir.path.join("wal"));
        options.file_bytes = config.storage.wal_file_size.bytes();
        let (wal, records) = Wal::open(options, Arc::clone(&file_keys)).map_err(storage_error)?;
        let wal = Arc::new(wal);
        let mut recovered: BTreeMap<ShardId, Vec<WalRecord>> = BTreeMap::new();
        for record in records {
            recovered.entry(record.shard).or_default().push(record);
        }
        let (machine, images) =
            MetadataMachine::open(data_dir.path.join("metadata"), Arc::clone(&file_keys))
                .map_err(storage_error)?;
        let shard = ShardConfig::new(ShardId::METADATA, node(config));
        let replay = recovered.remove(&ShardId::METADATA).unwrap_or_default();
        let metadata = Shard::start(shard, Arc::clone(&wal), replay, machine)
            .await
            .map_err(storage_error)?;
        metadata
            .wait_for_leadership()
            .await
            .map_err(storage_error)?;
        Ok(Self {
            wal,
            file_keys,
            metadata: Arc::new(metadata),
            images,
            recovered: parking_lot::Mutex::new(recovered),
            data_path: data_dir.path.join("data"),
        })
    }

    async fn change(&self, command: &MetadataCommand) -> Result<(), StartError> {
        let image = Arc::clone(&self.images.borrow());
        change(&self.metadata, &image, command)
            .await
            .map(drop)
            .map_err(storage_error)
    }

    async fn data_plane(
        &self,
        config: &BrokerConfig,
        node_id: i32,
        keys: Arc<dyn KeyProvider>,
    ) -> Result<Arc<DataPlane>, StartError> {
        let mut options = DataOptions::new(self.data_path.clone());
        options.node = NodeId(u64::try_from(node_id).unwrap_or(0));
        options.data_shards = config.storage.data_shards;
        options.segment_bytes = config.storage.segment_size.bytes();
        let recovered = std::mem::take(&mut *self.recovered.lock());
        let catalog = Arc::new(ImageCatalog::new(self.images.clone(), keys));
        DataPlane::open(
            options,
            Arc::clone(&self.wal),
            recovered,
            Arc::clone(&self.file_keys),
            catalog,
        )
        .await
        .map_err(storage_error)
    }
}

fn node(config: &BrokerConfig) -> NodeId {
    NodeId(
        config
            .node
            .id
            .and_then(|id| u64::try_from(id).ok())
            .unwrap_or(0),
    )
}

/// Brings the metadata to where this configuration can be served.
async fn bootstrap(
    storage: &Storage,
    config: &BrokerConfig,
    data_dir: &DataDir,
    listeners: &[(Arc<Listener>, SocketAddr)],
    user: Option<&BootstrapUser>,
) -> Result<(), StartError> {
    storage
        .change(&MetadataCommand::Bootstrap {
            cluster_id: config.node.cluster_id.clone(),
            data_shards: config.storage.data_shards,
        })
        .await?;
    let endpoints = listeners
        .iter()
        .map(|(listener, _)| BrokerEndpoint {
            listener: listener.name.clone(),
            host: listener.advertised_host.clone(),
            port: listener.advertised_port,
        })
        .collect();
    storage
        .change(&MetadataCommand::RegisterBroker {
            id: data_dir.identity.node_id,
            incarnation: data_dir.identity.incarnation,
            rack: config.node.rack.clone(),
            endpoints,
        })
        .await?;
    let pool = storage.images.borrow().new_pool(1, true);
    storage.change(&pool.map_err(storage_error)?).await?;
    if let Some(user) = user {
        make_user(storage, user).await?;
    }
    Ok(())
}

async fn make_user(storage: &Storage, user: &BootstrapUser) -> Result<(), StartError> {
    let known = {
        let image = storage.images.borrow();
        let credential = image.scram.get(&user.name, ScramMechanism::Sha512);
        credential.is_some_and(|credential| credential.verify_password(&user.password))
    };
    if known {
        return Ok(());
    }
    let upserts = ScramMechanism::ALL
        .into_iter()
        .map(|mechanism| {
            ScramCredential::from_password(mechanism, &user.password, SCRAM_ITERATIONS)
        })
        .collect::<Result<_, _>>()
        .map_err(storage_error)?;
    storage
        .change(&MetadataCommand::AlterScram {
            user: user.name.clone(),
            upserts,
            deletions: Vec::new(),
        })
        .await
}
