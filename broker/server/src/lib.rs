//! The broker: listeners, Kafka's APIs, the admin port, and the assembly of the lower rooms into one process.

mod api;
mod codec;
mod metrics;
mod net;
mod sasl;
mod session;
mod tls;

pub use codec::{CodecError, Frame, Request, decode_request};
