//! Two leaders never both acknowledge at one place: a term has one leader, and an offset is acknowledged for one record only, whoever does it.

use palisade_log::ShardId;
use palisade_shard::NodeId;

use crate::oracle::{Ack, History};

/// Its name.
pub const NAME: &str = "one_leader";

/// A node leads.
///
/// # Errors
/// When another led in this term.
pub fn on_leader(
    history: &mut History,
    node: NodeId,
    shard: ShardId,
    term: u64,
) -> Result<(), String> {
    let first = *history.leaders.entry((shard, term)).or_insert(node);
    if first != node {
        return Err(format!(
            "{first} and {node} both lead {shard} in term {term}"
        ));
    }
    Ok(())
}

/// A node acknowledges.
///
/// # Errors
/// When another record was acknowledged at one of its offsets.
pub fn on_ack(history: &mut History, ack: &Ack) -> Result<(), String> {
    for number in 0..ack.count {
        let offset = ack.base.saturating_add(u64::from(number));
        let record = (ack.producer, ack.sequence.saturating_add(number), ack.node);
        let first = *history
            .acknowledged
            .entry((ack.shard, ack.partition, offset))
            .or_insert(record);
        if (first.0, first.1) != (record.0, record.1) {
            return Err(format!(
                "{} acknowledged record {} of producer {} at offset {offset} of {}/{}, where {} had acknowledged record {} of producer {}",
                ack.node, record.1, record.0, ack.shard, ack.partition, first.2, first.1, first.0
            ));
        }
    }
    Ok(())
}
