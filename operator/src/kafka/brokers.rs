//! Brokers that leave: drained, and then forgotten.

use kafka_protocol::{
    messages::{
        BrokerId, IncrementalAlterConfigsRequest, UnregisterBrokerRequest,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
    protocol::StrBytes,
};

use super::{AdminClient, KafkaError, acls::complete, error::check};

const BROKER_RESOURCE: i8 = 4;
const OP_SET: i8 = 0;
const OP_DELETE: i8 = 1;
/// The one config that a single broker has.
const DRAINING: &str = "palisade.draining";
/// `BROKER_ID_NOT_REGISTERED`.
const NOT_REGISTERED: i16 = 102;

impl AdminClient {
    /// Has the brokers take everything away from one of them, or give it its share again.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse; they refuse when replicas would not find room on the others.
    pub async fn set_draining(&self, broker: i32, draining: bool) -> Result<(), KafkaError> {
        const API: &str = "IncrementalAlterConfigs";
        let config = AlterableConfig::default()
            .with_name(StrBytes::from_static_str(DRAINING))
            .with_config_operation(if draining { OP_SET } else { OP_DELETE })
            .with_value(draining.then(|| StrBytes::from_static_str("true")));
        let resource = AlterConfigsResource::default()
            .with_resource_type(BROKER_RESOURCE)
            .with_resource_name(StrBytes::from_string(broker.to_string()))
            .with_configs(vec![config]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let answer = self
            .call(API, &request, |answer| {
                answer
                    .responses
                    .first()
                    .map_or(0, |result| result.error_code)
            })
            .await?;
        complete(API, answer.responses.len(), 1)?;
        answer
            .responses
            .iter()
            .try_for_each(|result| check(API, result.error_code, result.error_message.as_ref()))
    }

    /// Has the brokers forget one that is drained. Forgetting one that they do not know changes nothing.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse; they refuse while the broker is a member of any shard.
    pub async fn unregister_broker(&self, broker: i32) -> Result<(), KafkaError> {
        const API: &str = "UnregisterBroker";
        let request = UnregisterBrokerRequest::default().with_broker_id(BrokerId(broker));
        let answer = self.call(API, &request, |answer| answer.error_code).await?;
        match answer.error_code {
            NOT_REGISTERED => Ok(()),
            code => check(API, code, answer.error_message.as_ref()),
        }
    }
}
