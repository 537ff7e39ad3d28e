//! One controller for each kind: what triggers it, what it does with the outcome.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config},
        events::EventType,
        finalizer::{self, finalizer},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use palisade_crds::{Acl, CertRotation, ClusterRef, Quota, Reason, SecureCluster, Topic, User};

use crate::{
    Context, Error, acl, cert_rotation, cluster,
    context::Indexes,
    kubernetes::{FIELD_MANAGER, FINALIZER, Index, StatusObject, names, publish},
    members::{self, Member},
    quota, topic, user,
};

/// Objects of one kind that are reconciled at once.
const CONCURRENCY: u16 = 16;

/// Which namespaces are watched.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All of them.
    All,
    /// These.
    Named(Vec<String>),
}

impl Scope {
    fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        match self {
            Self::All => vec![Api::all(client.clone())],
            Self::Named(names) => names
                .iter()
                .map(|name| Api::namespaced(client.clone(), name))
                .collect(),
        }
    }
}

/// The controllers of all kinds, not yet running.
pub struct Controllers {
    clusters: Vec<Controller<SecureCluster>>,
    users: Vec<Controller<User>>,
    acls: Vec<Controller<Acl>>,
    quotas: Vec<Controller<Quota>>,
    topics: Vec<Controller<Topic>>,
    rotations: Vec<Controller<CertRotation>>,
}

impl Controllers {
    /// Sets the watches up, and returns what they will have seen beside the controllers.
    #[must_use]
    pub fn new(client: &Client, scope: &Scope) -> (Self, Indexes) {
        let controllers = Self {
            clusters: clusters(client, scope),
            users: members(client, scope, true),
            acls: members(client, scope, false),
            quotas: members(client, scope, false),
            topics: members(client, scope, false),
            rotations: members(client, scope, false),
        };
        let indexes = Indexes {
            clusters: index(&controllers.clusters),
            users: index(&controllers.users),
            acls: index(&controllers.acls),
            quotas: index(&controllers.quotas),
            topics: index(&controllers.topics),
            rotations: index(&controllers.rotations),
        };
        (controllers, indexes)
    }

    /// Runs them until `stop` completes; what is under way then is finished first.
    pub async fn run(
        self,
        context: Arc<Context>,
        stop: impl Future<Output = ()> + Send + Sync + Clone + 'static,
    ) {
        let mut running: Vec<BoxFuture<'static, ()>> = Vec::new();
        let seen = {
            let context = Arc::clone(&context);
            async move { context.indexes.ready().await }
                .boxed()
                .shared()
        };
        for controller in self.clusters {
            running.push(drive(
                controller,
                &context,
                &seen,
                stop.clone(),
                |object, context| cluster::reconcile(object, context).boxed(),
                |object, context| {
                    revoke(object, context, cluster::cleanup(object, context).boxed())
                },
            ));
        }
        for controller in self.users {
            running.push(drive(
                controller,
                &context,
                &seen,
                stop.clone(),
                |object, context| user::reconcile(object, context).boxed(),
                |object, context| revoke(object, context, user::cleanup(object, context).boxed()),
            ));
        }
        for controller in self.acls {
            running.push(drive(
                controller,
                &context,
                &seen,
                stop.clone(),
                |object, context| acl::reconcile(object, context).boxed(),
                |object, context| revoke(object, context, acl::cleanup(object, context).boxed()),
            ));
        }
        for controller in self.quotas {
            running.push(drive(
                controller,
                &context,
                &seen,
                stop.clone(),
                |object, context| quota::reconcile(object, context).boxed(),
                |object, context| revoke(object, context, quota::cleanup(object, context).boxed()),
            ));
        }
        for controller in self.topics {
            running.push(drive(
                controller,
                &context,
                &seen,
                stop.clone(),
                |object, context| topic::reconcile(object, context).boxed(),
                |object, context| revoke(object, context, topic::cleanup(object, context).boxed()),
            ));
        }
        for controller in self.rotations {
            // A rotation leaves nothing behind that would have to be undone.
            running.push(drive(
                controller,
                &context,
                &seen,
                stop.clone(),
                |object, context| cert_rotation::reconcile(object, context).boxed(),
                |_, _| futures::future::ok(()).boxed(),
            ));
        }
        futures::future::join_all(running).await;
    }
}

fn index<K>(controllers: &[Controller<K>]) -> Index<K>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    Index::new(controllers.iter().map(Controller::store).collect())
}

/// Watches only what the operator made.
fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={FIELD_MANAGER}", names::MANAGED_BY_LABEL))
}

fn settings() -> Config {
    Config::default()
        .concurrency(CONCURRENCY)
        .debounce(Duration::from_millis(100))
}

fn clusters(client: &Client, scope: &Scope) -> Vec<Controller<SecureCluster>> {
    let mut controllers = Vec::new();
    for (position, api) in scope.apis::<SecureCluster>(client).into_iter().enumerate() {
        let controller = Controller::new(api, watcher::Config::default()).with_config(settings());
        let store = controller.store();
        let users = store.clone();
        let mut controller = controller;
        controller = owns::<StatefulSet>(controller, client, scope, position);
        controller = owns::<Secret>(controller, client, scope, position);
        controller = owns::<ConfigMap>(controller, client, scope, position);
        controller = owns::<Service>(controller, client, scope, position);
        controller = owns::<ServiceAccount>(controller, client, scope, position);
        controller = owns::<NetworkPolicy>(controller, client, scope, position);
        controller = owns::<PodDisruptionBudget>(controller, client, scope, position);
        // What a user's Secret trusts is evidence in a rotation.
        for api in scope.apis::<User>(client) {
            let users = users.clone();
            controller = controller.watches(api, watcher::Config::default(), move |user: User| {
                let (namespace, name) = members::cluster_key(
                    &user.spec.cluster_ref,
                    &user.namespace().unwrap_or_default(),
                );
                let reference = ObjectRef::<SecureCluster>::new(&name).within(&namespace);
                let rotating = users
                    .get(&reference)
                    .is_some_and(|cluster| cluster::is_rotating(&cluster));
                rotating.then_some(reference)
            });
        }
        controllers.push(controller);
    }
    controllers
}

fn owns<Child>(
    controller: Controller<SecureCluster>,
    client: &Client,
    scope: &Scope,
    position: usize,
) -> Controller<SecureCluster>
where
    Child: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    match scope.apis::<Child>(client).into_iter().nth(position) {
        Some(api) => controller.owns(api, ours()),
        None => controller,
    }
}

/// A controller of a kind that belongs to a cluster: it runs again when its cluster, or another object of its kind in the same cluster, changes.
fn members<K>(client: &Client, scope: &Scope, owns_secret: bool) -> Vec<Controller<K>>
where
    K: Member + Sync,
{
    let mut controllers = Vec::new();
    for (position, api) in scope.apis::<K>(client).into_iter().enumerate() {
        let mut controller =
            Controller::new(api, watcher::Config::default()).with_config(settings());
        let store = controller.store();
        for api in scope.apis::<SecureCluster>(client) {
            let store = store.clone();
            controller = controller.watches(
                api,
                watcher::Config::default(),
                move |cluster: SecureCluster| of_cluster(&store, &cluster),
            );
        }
        if owns_secret && let Some(api) = scope.apis::<Secret>(client).into_iter().nth(position) {
            controller = controller.owns(api, ours());
        }
        controllers.push(controller);
    }
    controllers
}

/// The objects that refer to a cluster.
fn of_cluster<K: Member>(store: &Store<K>, cluster: &SecureCluster) -> Vec<ObjectRef<K>> {
    let place = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    store
        .state()
        .iter()
        .filter(|object| {
            let reference: &ClusterRef = object.cluster_ref();
            members::cluster_key(reference, &object.namespace().unwrap_or_default()) == place
        })
        .map(|object| ObjectRef::from_obj(object.as_ref()))
        .collect()
}

/// Completes when every kind was listed.
type Seen = Shared<BoxFuture<'static, ()>>;
type Step<K, T> = for<'a> fn(&'a K, &'a Context) -> BoxFuture<'a, Result<T, Error>>;

/// Runs one controller.
fn drive<K>(
    controller: Controller<K>,
    context: &Arc<Context>,
    seen: &Seen,
    stop: impl Future<Output = ()> + Send + Sync + Clone + 'static,
    reconcile: Step<K, Action>,
    cleanup: Step<K, ()>,
) -> BoxFuture<'static, ()>
where
    K: StatusObject + Unpin,
{
    let kind = K::kind(&());
    let (seen, stopped) = (seen.clone(), stop.clone());
    let run = move |object: Arc<K>, context: Arc<Context>| {
        let (seen, stopped) = (seen.clone(), stopped.clone());
        async move {
            // The lists of the other kinds come in beside this: no reconcile keeps a watch waiting.
            tokio::select! {
                () = seen => one(object, context, reconcile, cleanup).await,
                () = stopped => Ok(Action::await_change()),
            }
        }
    };
    let failed = |object: Arc<K>, error: &Error, context: Arc<Context>| {
        context.metrics.failed(&K::kind(&()));
        tracing::warn!(kind = %K::kind(&()), namespace = object.namespace(), name = object.name_any(), %error, "reconcile failed, trying again");
        Action::requeue(Duration::from_secs(5))
    };
    controller
        .graceful_shutdown_on(stop)
        .run(run, failed, Arc::clone(context))
        .for_each(move |outcome| {
            if let Err(error) = outcome {
                tracing::debug!(%kind, %error, "controller");
            }
            futures::future::ready(())
        })
        .boxed()
}

/// Reconciles one object, or cleans up after it, in the order that its finalizer sets.
async fn one<K>(
    object: Arc<K>,
    context: Arc<Context>,
    reconcile: Step<K, Action>,
    cleanup: Step<K, ()>,
) -> Result<Action, Error>
where
    K: StatusObject,
{
    context.metrics.reconciled(&K::kind(&()));
    let api: Api<K> = Api::namespaced(
        context.client.clone(),
        &object.namespace().unwrap_or_default(),
    );
    let outcome = finalizer(&api, FINALIZER, Arc::clone(&object), |event| {
        let context = Arc::clone(&context);
        async move {
            match event {
                finalizer::Event::Apply(object) => reconcile(&object, &context).await,
                finalizer::Event::Cleanup(object) => cleanup(&object, &context)
                    .await
                    .map(|()| Action::await_change()),
            }
        }
    })
    .await;
    match outcome {
        Ok(action) => Ok(action),
        // The watch had not seen the object's latest version yet.
        Err(finalizer::Error::AddFinalizer(error) | finalizer::Error::RemoveFinalizer(error))
            if is_stale(&error) =>
        {
            Ok(Action::requeue(Duration::from_millis(200)))
        }
        Err(finalizer::Error::ApplyFailed(error)) => Err(error),
        Err(finalizer::Error::CleanupFailed(error)) => {
            // What is being deleted shows no condition that anybody would still read.
            let note = format!("it cannot be deleted yet: {error}");
            publish(
                &context,
                object.as_ref(),
                EventType::Warning,
                Reason::Retrying,
                note,
            )
            .await;
            Err(error)
        }
        Err(other) => Err(Error::Finalizer(other.to_string())),
    }
}

/// Whether a patch of a finalizer failed because the object was changed, or went away, in the meantime.
fn is_stale(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}

/// A cleanup that may be given up in a namespace that is going away.
fn revoke<'a, K: StatusObject>(
    object: &'a K,
    context: &'a Context,
    revocation: BoxFuture<'a, Result<(), Error>>,
) -> BoxFuture<'a, Result<(), Error>> {
    async move {
        match revocation.await {
            Err(error) if members::give_up(context, object, &error).await => Ok(()),
            outcome => outcome,
        }
    }
    .boxed()
}
