//! What the proposer checks before a command becomes a log entry.

use std::collections::BTreeMap;

use palisade_seal::DekVersion;

use super::{Outcome, keys::MAX_VERSIONS};
use crate::{
    Image, MetadataCommand, MetadataError,
    command::{ConfigOp, ConfigResource, FORMAT},
    config::{ConfigError, Namespace},
    keys::VERSION_CONFIG,
};

/// Longest cluster id.
const MAX_CLUSTER_ID: usize = 64;
/// Data shards that make sense on one broker.
const MAX_DATA_SHARDS: u32 = 64;
/// How far above its newest version a topic's key may be wanted at once.
const MAX_VERSION_STEP: u32 = 1000;
/// How the names end of the configs that [`Namespace::check_together`] compares.
const LAG_CONFIGS: &str = "compaction.lag.ms";

impl Image {
    /// Checks a command against this state and encodes it: what a request does before it proposes. The state may change
    /// before the entry is applied, so `apply` decides again; this is where a request with a mistake ends early.
    ///
    /// # Errors
    /// [`MetadataError`], the same that applying it now would give, what is wrong with values, and [`MetadataError::NotReadByAll`].
    pub fn admit(&self, command: &MetadataCommand) -> Result<Vec<u8>, MetadataError> {
        self.dry_run(command)?;
        command.encode()
    }

    /// What the command would answer now, changing nothing: `validateOnly` of requests.
    ///
    /// # Errors
    /// As [`Image::admit`].
    pub fn dry_run(&self, command: &MetadataCommand) -> Outcome {
        self.check_values(command)?;
        let response = self.clone().apply(command.clone())?;
        // With its registration a broker says what it reads, so that one cannot wait for the others to have said it. It is the baseline: no version that a cluster
        // is upgraded from lacks it.
        if !matches!(command, MetadataCommand::Register { .. }) {
            self.check_read_by_all(command.format())?;
        }
        Ok(response)
    }

    /// Whether every registered broker reads commands of this format: one that does not would stop at it.
    pub(super) fn check_read_by_all(&self, format: u8) -> Result<(), MetadataError> {
        let mut brokers = self.brokers.keys().map(|id| (*id, self.reads_of(*id)));
        match brokers.find(|(_, reads)| *reads < format) {
            None => Ok(()),
            Some((broker, reads)) => Err(MetadataError::NotReadByAll {
                broker,
                format,
                reads,
            }),
        }
    }

    /// Up to which format a registered broker reads commands.
    fn reads_of(&self, id: i32) -> u8 {
        let said = self.reads.get(&id).copied();
        // Every version reads the first format, and a broker can be removed with it whatever it has said.
        said.map_or(MetadataCommand::UNSAID_FORMAT, |reads| reads.max(FORMAT))
    }

    fn check_values(&self, command: &MetadataCommand) -> Result<(), MetadataError> {
        match command {
            MetadataCommand::Bootstrap {
                cluster_id,
                data_shards,
            } => check_bootstrap(cluster_id, *data_shards),
            MetadataCommand::CreateTopic { config, .. } => {
                Namespace::Topic.check(config)?;
                Ok(check_key_version(config, DekVersion(1), 1)?)
            }
            MetadataCommand::AlterConfigs {
                resource,
                replace,
                ops,
            } => self.check_alter_configs(resource, *replace, ops),
            MetadataCommand::AlterQuotas { entity, changes } => {
                for (key, value) in changes {
                    if let Some(value) = value {
                        entity.check_value(*key, *value)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_alter_configs(
        &self,
        resource: &ConfigResource,
        replace: bool,
        ops: &[ConfigOp],
    ) -> Result<(), MetadataError> {
        let (namespace, current) = match resource {
            ConfigResource::Topic(id) => (Namespace::Topic, &self.topic(*id)?.config),
            ConfigResource::Brokers => (Namespace::Broker, &*self.broker_configs),
        };
        namespace.check_ops(ops)?;
        let next = namespace.altered(current, replace, ops);
        // An override of an older version that is left alone must not stand in the way of changing another.
        let touched: BTreeMap<String, String> = next
            .iter()
            .filter(|(name, value)| current.get(*name) != Some(*value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        namespace.check(&touched)?;
        if touched.keys().any(|name| name.ends_with(LAG_CONFIGS)) {
            namespace.check_together(&next)?;
        }
        if let ConfigResource::Topic(id) = resource {
            let topic = self.topic(*id)?;
            let newest = topic
                .current_key()
                .map_or(DekVersion(0), |(newest, _)| newest);
            check_key_version(&touched, newest, topic.keys.len())?;
        }
        Ok(())
    }
}

/// Whether a topic with so many `versions` of its key, this one the `newest`, can have the one that it is to have. One far away would leave none for later.
fn check_key_version(
    config: &BTreeMap<String, String>,
    newest: DekVersion,
    versions: usize,
) -> Result<(), ConfigError> {
    let Some(value) = config.get(VERSION_CONFIG) else {
        return Ok(());
    };
    let DekVersion(newest) = newest;
    let (most, reason) = if versions < MAX_VERSIONS {
        let most = newest.saturating_add(MAX_VERSION_STEP);
        let reason = format!("{MAX_VERSION_STEP} above the newest version of the key");
        (most, reason)
    } else {
        let reason = format!("{versions} versions of the key are still in use");
        (newest, reason)
    };
    match value.trim().parse::<i64>() {
        Ok(wanted) if wanted > i64::from(most) => Err(ConfigError::Value {
            name: VERSION_CONFIG.into(),
            value: value.clone(),
            reason: format!("must be at most {most}: {reason}"),
        }),
        // What is no number was refused as a value.
        _ => Ok(()),
    }
}

fn check_bootstrap(cluster_id: &str, data_shards: u32) -> Result<(), MetadataError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if cluster_id.is_empty()
        || cluster_id.len() > MAX_CLUSTER_ID
        || !cluster_id.bytes().all(allowed)
    {
        return Err(MetadataError::Malformed(format!(
            "a cluster id has 1 to {MAX_CLUSTER_ID} letters, digits, `_` or `-`"
        )));
    }
    if data_shards == 0 || data_shards > MAX_DATA_SHARDS {
        return Err(ConfigError::Contradiction("a broker has 1 to 64 data shards".into()).into());
    }
    Ok(())
}
