//! The data shards of a broker: what producers send is checked, sealed once, replicated through a shard's log, kept in partition segments, and served to
//! consumers.

pub mod records;
