//! palisade-shard
