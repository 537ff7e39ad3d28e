//! ConfigMap with `broker.toml`.

use k8s_openapi::api::core::v1::ConfigMap;
use palisade_crds::SecureCluster;

use crate::{
    Error,
    cluster::{Cluster, config::CONFIG_FILE},
    kubernetes::names,
};

/// The ConfigMap.
///
/// # Errors
/// When the configuration cannot be written, which its validation has ruled out.
pub fn build(owner: &SecureCluster, cluster: &Cluster) -> Result<ConfigMap, Error> {
    let text = cluster.config.render().map_err(Error::Configuration)?;
    Ok(ConfigMap {
        metadata: names::owned_metadata(owner, names::config_map(&cluster.name)),
        data: Some([(CONFIG_FILE.to_owned(), text)].into()),
        ..ConfigMap::default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn it_holds_what_the_broker_reads() {
        let owner = fixture();
        let map = build(&owner, &validate(&owner).unwrap()).unwrap();
        assert_eq!(map.metadata.name.as_deref(), Some("events-config"));
        assert!(palisade_config::BrokerConfig::parse(&map.data.unwrap()["broker.toml"]).is_ok());
        assert_eq!(map.metadata.owner_references.unwrap()[0].name, "events");
    }
}
