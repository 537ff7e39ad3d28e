//! The client of one cluster: finds the controller and keeps one connection to it.

use std::{sync::Arc, time::Duration};

use kafka_protocol::{
    error::ResponseError,
    messages::{MetadataRequest, MetadataResponse},
    protocol::Request,
};
use rustls::ClientConfig;
use tokio::sync::Mutex;

use super::{Endpoint, KafkaError, connection::Connection, error::check};

const CALL_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A controller may move between being found and being asked; twice in a row means an election is under way and the caller should come back later.
const ATTEMPTS: usize = 3;
const NOT_CONTROLLER: i16 = 41;

/// A broker as Metadata names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerNode {
    /// Kafka broker id.
    pub id: i32,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// `broker.rack`.
    pub rack: Option<String>,
}

/// An admin client of one cluster. Calls are made one after another over one connection to the controller, which is found again when it moves.
pub struct AdminClient {
    bootstrap: Vec<Endpoint>,
    tls: Arc<ClientConfig>,
    controller: Mutex<Option<Connection>>,
}

impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminClient")
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

impl AdminClient {
    /// A client that starts at `bootstrap` and authenticates with what `tls` holds. Connects on first use.
    #[must_use]
    pub fn new(bootstrap: Vec<Endpoint>, tls: Arc<ClientConfig>) -> Self {
        Self {
            bootstrap,
            tls,
            controller: Mutex::new(None),
        }
    }

    /// The brokers that are registered now.
    ///
    /// # Errors
    /// When no broker answers.
    pub async fn brokers(&self) -> Result<Vec<BrokerNode>, KafkaError> {
        let answer = self
            .call(
                "Metadata",
                &MetadataRequest::default().with_topics(Some(Vec::new())),
                |answer| answer.error_code,
            )
            .await?;
        check("Metadata", answer.error_code, None)?;
        Ok(nodes(&answer))
    }

    /// Sends `request` to the controller. `code` picks the error code that would say that the broker asked is not it.
    pub(super) async fn call<R: Request>(
        &self,
        api: &'static str,
        request: &R,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, KafkaError> {
        let mut held = self.controller.lock().await;
        let mut last = KafkaError::NoBroker {
            last: "no address is known".to_owned(),
        };
        for _ in 0..ATTEMPTS {
            // A kept connection may have died since the last call, so its failure costs an attempt; a failure to find a controller is final.
            let mut connection = match held.take() {
                Some(connection) => connection,
                None => self.find_controller().await?,
            };
            match connection.call(api, request).await {
                Ok(answer) if code(&answer) == NOT_CONTROLLER => {
                    last = KafkaError::Refused {
                        api,
                        code: ResponseError::NotController,
                        message: String::new(),
                    };
                }
                Ok(answer) => {
                    *held = Some(connection);
                    return Ok(answer);
                }
                Err(error @ (KafkaError::Lost { .. } | KafkaError::Timeout { .. })) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn find_controller(&self) -> Result<Connection, KafkaError> {
        let mut last = "no address is known".to_owned();
        for endpoint in &self.bootstrap {
            match self.follow(endpoint).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.to_string(),
            }
        }
        Err(KafkaError::NoBroker { last })
    }

    async fn follow(&self, endpoint: &Endpoint) -> Result<Connection, KafkaError> {
        let mut first = self.connect(endpoint).await?;
        let answer = first
            .call(
                "Metadata",
                &MetadataRequest::default().with_topics(Some(Vec::new())),
            )
            .await?;
        match nodes(&answer)
            .into_iter()
            .find(|node| node.id == answer.controller_id.0)
        {
            Some(node) if node.endpoint != *first.endpoint() => self.connect(&node.endpoint).await,
            Some(_) => Ok(first),
            None => Err(KafkaError::NoBroker {
                last: format!("broker {endpoint} knows no controller yet"),
            }),
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Connection, KafkaError> {
        let mut connection =
            Connection::open(endpoint, Arc::clone(&self.tls), CONNECT_LIMIT).await?;
        connection.set_limit(CALL_LIMIT);
        Ok(connection)
    }
}

fn nodes(answer: &MetadataResponse) -> Vec<BrokerNode> {
    answer
        .brokers
        .iter()
        .filter_map(|broker| {
            Some(BrokerNode {
                id: broker.node_id.0,
                endpoint: Endpoint {
                    host: broker.host.to_string(),
                    port: u16::try_from(broker.port).ok()?,
                },
                rack: broker.rack.as_ref().map(ToString::to_string),
            })
        })
        .collect()
}
