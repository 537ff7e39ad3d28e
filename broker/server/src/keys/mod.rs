//! Keys that change while the broker runs.
//!
//! ```text
//! assess   what on this broker needs which key-encryption key, and what follows from it: pure
//! keeper   looks, moves everything to the current key, and makes topics' new keys; what it saw last is what the admin port shows
//! ```
//!
//! # A new KEK
//!
//! Somebody adds a key to the provider's directory and then makes it the current one. Every broker moves what lies on its volume: the headers of segments in
//! place, manifests and the metadata checkpoint by writing them again, the write-ahead log by a new file (the old ones go with the next checkpoints). The
//! leader of the metadata proposes every topic's key wrapped anew. Data is not touched: only a segment whose header has no place for a longer name of a key is
//! copied. A broker that does not have the new key yet goes on with the topics it has open.
//!
//! # A new key of a topic
//!
//! The topic config `palisade.key.version` asks for it; the leader of the metadata makes it. The next batch is sealed under it, and the cleaner seals the older
//! ones anew. The old version stays in the metadata: a replica that was away may still bring batches that are sealed under it.
//!
//! # A deleted topic
//!
//! Its keys leave the metadata with it, and the volume with the next metadata checkpoint, which is written at once.

mod assess;
mod keeper;

pub(crate) use keeper::Keeper;
