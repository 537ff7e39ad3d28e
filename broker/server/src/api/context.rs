//! What a handler knows of the request it answers, and what the client may do.

use std::{sync::Arc, time::Duration};

use kafka_protocol::messages::ApiKey;
use palisade_metadata::{Image, Topic};
use palisade_security::acl::{Authorizer, CLUSTER_NAME, Operation, ResourceType};
use parking_lot::Mutex;
use tracing::info;

use crate::{
    broker::Broker,
    codec::versions,
    kafka_error::KafkaError,
    metrics::{ByError, ByPermission},
    quotas::Client,
    session::Session,
};

/// One request on its way through a handler.
pub(crate) struct Context {
    pub(crate) broker: Arc<Broker>,
    pub(crate) session: Arc<Session>,
    pub(crate) client_id: String,
    pub(crate) api: ApiKey,
    pub(crate) version: i16,
    /// The metadata when the request came; handlers decide on one state of it.
    pub(crate) image: Arc<Image>,
    authorizer: Authorizer,
    wait: Mutex<Duration>,
}

impl Context {
    pub(crate) fn new(
        broker: Arc<Broker>,
        session: Arc<Session>,
        client_id: String,
        api: ApiKey,
        version: i16,
    ) -> Self {
        let image = broker.image();
        let authorizer = Authorizer::new(Arc::clone(&image.acls), broker.super_users());
        Self {
            broker,
            session,
            client_id,
            api,
            version,
            image,
            authorizer,
            wait: Mutex::new(Duration::ZERO),
        }
    }

    /// Whether the client may do this; a refusal is logged and counted.
    pub(crate) fn allows(&self, operation: Operation, resource: ResourceType, name: &str) -> bool {
        let principal = &self.session.principal;
        let host = self.session.host;
        let decision = self
            .authorizer
            .authorize(principal, host, operation, resource, name);
        if !decision.is_allowed() {
            self.denied(operation, resource, name, decision.reason());
        }
        decision.is_allowed()
    }

    /// As [`Context::allows`], for lists that leave out what the client may not see: that is no denial.
    pub(crate) fn shows(&self, operation: Operation, resource: ResourceType, name: &str) -> bool {
        let principal = &self.session.principal;
        self.authorizer
            .authorize(principal, self.session.host, operation, resource, name)
            .is_allowed()
    }

    /// Whether the client may do this to the cluster.
    pub(crate) fn allows_cluster(&self, operation: Operation) -> bool {
        self.allows(operation, ResourceType::Cluster, CLUSTER_NAME)
    }

    /// Whether the client may do this to any resource of the type, existing or not.
    pub(crate) fn allows_some(&self, operation: Operation, resource: ResourceType) -> bool {
        self.authorizer
            .authorize_by_resource_type(
                &self.session.principal,
                self.session.host,
                operation,
                resource,
            )
            .is_allowed()
    }

    /// The `authorized_operations` of a resource.
    pub(crate) fn operations(&self, resource: ResourceType, name: &str) -> i32 {
        self.authorizer.authorized_operations(
            &self.session.principal,
            self.session.host,
            resource,
            name,
        )
    }

    /// The `authorized_operations` of the cluster: nothing for who may not describe it.
    pub(crate) fn cluster_operations(&self) -> i32 {
        if self.shows(Operation::Describe, ResourceType::Cluster, CLUSTER_NAME) {
            self.operations(ResourceType::Cluster, CLUSTER_NAME)
        } else {
            0
        }
    }

    fn denied(&self, operation: Operation, resource: ResourceType, name: &str, reason: &str) {
        let labels = ByPermission {
            operation: format!("{operation:?}"),
            resource: resource_label(resource),
        };
        self.broker
            .metrics
            .authorization_denied
            .get_or_create(&labels)
            .inc();
        info!(
            principal = %self.session.principal,
            host = %self.session.host,
            listener = %self.session.listener.name,
            api = versions::name(self.api),
            ?operation,
            resource = labels.resource,
            name,
            reason,
            "denied"
        );
    }

    /// Counts an error of the answer and gives its code.
    pub(crate) fn code(&self, error: KafkaError) -> i16 {
        let labels = ByError {
            api: versions::name(self.api),
            error: format!("{error:?}"),
        };
        self.broker.metrics.errors.get_or_create(&labels).inc();
        error.code()
    }

    /// Who is metered; nobody for brokers and the operator.
    pub(crate) fn client(&self) -> Option<Client<'_>> {
        (!self.session.principal.is_system()).then(|| Client {
            user: self.session.principal.name(),
            client_id: &self.client_id,
        })
    }

    /// Has the client wait at least so long.
    pub(crate) fn throttle(&self, wait: Duration) {
        let mut longest = self.wait.lock();
        *longest = longest.max(wait);
    }

    /// How long the client has to wait.
    pub(crate) fn wait(&self) -> Duration {
        *self.wait.lock()
    }

    /// A topic that the client may do this to: `Err` carries the error that hides or refuses it.
    pub(crate) fn topic(
        &self,
        operation: Operation,
        name: &str,
    ) -> Result<&Arc<Topic>, KafkaError> {
        if !self.allows(operation, ResourceType::Topic, name) {
            return Err(KafkaError::TopicAuthorizationFailed);
        }
        self.image
            .topics
            .by_name(name)
            .ok_or(KafkaError::UnknownTopicOrPartition)
    }

    /// As [`Context::topic`], and the topic has this partition.
    pub(crate) fn partition(
        &self,
        topic: &Topic,
        partition: i32,
    ) -> Result<palisade_log::PartitionIndex, KafkaError> {
        let index = palisade_log::PartitionIndex(partition);
        topic
            .shard(index)
            .map(|_| index)
            .ok_or(KafkaError::UnknownTopicOrPartition)
    }

    /// Checks the leader epoch that a client believes in; -1 is none.
    pub(crate) fn check_epoch(
        &self,
        topic: &Topic,
        partition: palisade_log::PartitionIndex,
        believed: i32,
    ) -> Result<(), KafkaError> {
        let epoch = self
            .broker
            .data
            .leader_epoch(topic.id, partition)
            .ok_or(KafkaError::NotLeaderOrFollower)?;
        compare_epochs(believed, epoch.0)
    }

    /// As [`Context::check_epoch`], for a request that a follower may answer.
    pub(crate) fn check_epoch_of_leader(
        &self,
        topic: &Topic,
        partition: palisade_log::PartitionIndex,
        believed: i32,
    ) -> Result<(), KafkaError> {
        let shard = topic.shard(partition);
        match shard.and_then(|shard| self.broker.cluster.leader(shard)) {
            Some(leader) => {
                compare_epochs(believed, i32::try_from(leader.term).unwrap_or(i32::MAX))
            }
            // While there is no leader, what was committed can be read all the same.
            None => Ok(()),
        }
    }
}

/// What a client that believes in a leader epoch is told; -1 believes in none.
const fn compare_epochs(believed: i32, epoch: i32) -> Result<(), KafkaError> {
    match believed {
        -1 => Ok(()),
        believed if believed < epoch => Err(KafkaError::FencedLeaderEpoch),
        believed if believed > epoch => Err(KafkaError::UnknownLeaderEpoch),
        _ => Ok(()),
    }
}

const fn resource_label(resource: ResourceType) -> &'static str {
    match resource {
        ResourceType::Topic => "Topic",
        ResourceType::Group => "Group",
        ResourceType::Cluster => "Cluster",
        ResourceType::TransactionalId => "TransactionalId",
        ResourceType::DelegationToken => "DelegationToken",
        ResourceType::User => "User",
    }
}
