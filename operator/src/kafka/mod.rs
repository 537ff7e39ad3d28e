//! A Kafka admin client over mutual TLS: the calls that this operator makes, and no others.
//!
//! Everything goes to the brokers through the public admin protocol, so whatever the operator does can be done and seen with Apache Kafka's own
//! tools. Bytes from a broker are bounded before they are decoded ([`guard`]); a call has a deadline; an answer is a value or a [`KafkaError`].

pub mod acls;
mod admin;
mod brokers;
mod connection;
mod error;
mod guard;
pub mod quotas;
pub mod scram;
pub mod topics;

pub use admin::{AdminClient, BrokerNode};
pub use connection::Endpoint;
pub use error::KafkaError;
pub use kafka_protocol::error::ResponseError as ErrorCode;
