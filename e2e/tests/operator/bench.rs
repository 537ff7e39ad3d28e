//! A namespace on a real API server, and an operator that watches it.

use super::*;

/// The server that the tests of this file share, with the definitions applied.
pub(super) fn server() -> &'static ApiServer {
    static SERVER: OnceLock<ApiServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = ApiServer::start().expect("a real API server");
        let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/yaml");
        for arguments in [
            vec![
                "apply",
                "--server-side",
                "-f",
                definitions.to_str().unwrap(),
            ],
            vec![
                "wait",
                "--for=condition=Established",
                "crd",
                "--all",
                "--timeout=30s",
            ],
        ] {
            let output = server.kubectl().args(&arguments).output().unwrap();
            assert!(
                output.status.success(),
                "{arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        server
    })
}

/// A namespace, and an operator that watches it and those beside it.
pub(super) struct Bench {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) context: Arc<Context>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) running: Option<JoinHandle<()>>,
}

impl Bench {
    pub(super) async fn new(namespace: &str, others: &[&str]) -> Self {
        let client = server().client().await.unwrap();
        let namespaces: Vec<String> = [namespace]
            .iter()
            .chain(others)
            .map(|name| (*name).to_owned())
            .collect();
        let api: Api<Namespace> = Api::all(client.clone());
        for name in &namespaces {
            let object = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
        }
        let (controllers, indexes) = Controllers::new(&client, &Scope::Named(namespaces));
        let context = Arc::new(Context {
            client: client.clone(),
            settings: Settings {
                broker_image: "palisade.local/broker:dev".to_owned(),
                image_pull_policy: "Never".to_owned(),
                image_pull_secrets: Vec::new(),
                operator_namespace: "palisade-system".to_owned(),
            },
            recorder: Recorder::new(client.clone(), Reporter::from("palisade-operator")),
            metrics: Arc::new(Metrics::default()),
            indexes,
            access: AccessCache::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let running =
            tokio::spawn(controllers.run(Arc::clone(&context), stopped.map(|_| ()).shared()));
        Self {
            client,
            namespace: namespace.to_owned(),
            context,
            stop: Some(stop),
            running: Some(running),
        }
    }

    /// Stops the controllers; what was reconciled stays.
    pub(super) async fn halt(&mut self) {
        if let (Some(stop), Some(running)) = (self.stop.take(), self.running.take()) {
            stop.send(()).unwrap();
            running.await.unwrap();
        }
    }

    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        api.create(
            &PostParams::default(),
            &serde_json::from_value(object).unwrap(),
        )
        .await
        .unwrap()
    }

    pub(super) async fn cluster(&self) -> SecureCluster {
        self.create(&self.namespace, a_cluster()).await
    }

    /// Waits until the Ready condition of an object has a reason, and returns its message.
    pub(super) async fn reason<K>(&self, namespace: &str, name: &str, reason: &str) -> String
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let mut seen = Value::Null;
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            seen = serde_json::to_value(api.get(name).await.unwrap()).unwrap()["status"].take();
            let ready = seen["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|condition| condition["type"] == "Ready");
            if let Some(ready) = ready.filter(|ready| ready["reason"] == reason) {
                return ready["message"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{namespace}/{name} was not Ready with {reason}: {seen:#}");
    }

    pub(super) async fn gone<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let api: Api<K> = self.api();
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if api.get_opt(name).await.unwrap().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} {name} is still there", K::kind(&()));
    }
}

pub(super) fn a_cluster() -> Value {
    json!({
        "apiVersion": "palisade.dev/v1alpha1", "kind": "SecureCluster", "metadata": { "name": "events" },
        "spec": {
            "storage": { "size": "1Gi" },
            "logEncryption": { "keyProvider": { "secret": { "name": "events-log-kek" } } },
            "listeners": [
                { "name": "internal", "port": 9093, "authentication": ["ScramSha512", "MutualTls"],
                  "allowFrom": [{ "podSelector": { "matchLabels": { "tier": "application" } } }] },
                { "name": "batch", "port": 9094, "authentication": ["MutualTls"] }
            ],
            "allowedNamespaces": ["order-shop"]
        }
    })
}

pub(super) fn member(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({ "apiVersion": "palisade.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    if object["spec"]["clusterRef"].is_null() {
        object["spec"]["clusterRef"] = json!({ "name": "events" });
    }
    object
}
