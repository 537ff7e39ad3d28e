//! Messages between brokers.
//!
//! Each broker has one connection to each other broker for what it asks, and accepts one for what it is asked, so that requests of one direction never wait for those of
//! the other. Both are TLS with certificates on both sides, on the port for brokers, told apart from Kafka's protocol by ALPN ([`ALPN`]).
//!
//! ```text
//! api      what is asked of the broker around, and what it is told
//! peers    the front: calls, accepted connections, state
//! link     one per broker: connects, connects again, replaces what is old
//! dial     from an address to a connection whose other side is known
//! lane     the calls of one connection          run    its calling side
//! gate     order across connections             serve  its answering side
//! hello    who is there                         outbox, stream, frame   bytes
//! ```
//!
//! # Order
//!
//! Calls about one channel reach the peer's [`Handler`] in the order in which they were made, as long as the connection stands. When it breaks all calls without an answer
//! fail at once, and a later connection never lets a message of the one before through. A connection that is replaced because of its age hands over without a gap.
//!
//! # Bounds
//!
//! What waits to be written is bounded in bytes, calls beyond fail; what is being handled is bounded, nothing is read beyond; no length on the wire sizes an allocation.
//! See [`Limits`].

mod api;
mod dial;
mod frame;
mod gate;
mod hello;
mod lane;
mod link;
mod outbox;
mod peers;
mod run;
mod serve;
mod shared;
mod stream;

#[cfg(test)]
mod tests;

pub use api::{
    ALPN, CLUSTER_CHANNEL, CallError, Connector, Directory, Handler, Limits, PeerAddress,
    PeerCertificate, PeerEvent, PeerOptions, PeerState, Refused,
};
#[doc(hidden)]
pub use frame::decode_all;
#[doc(hidden)]
pub use hello::decode_hello;
pub use peers::Peers;
pub use stream::READ_AHEAD;
