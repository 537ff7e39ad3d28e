//! ServiceAccount of the brokers: an identity without a token, because brokers never speak to Kubernetes.

use k8s_openapi::api::core::v1::ServiceAccount;
use palisade_crds::SecureCluster;

use crate::{cluster::Cluster, kubernetes::names};

/// The ServiceAccount.
#[must_use]
pub fn build(owner: &SecureCluster, cluster: &Cluster) -> ServiceAccount {
    ServiceAccount {
        metadata: names::owned_metadata(owner, names::brokers_service(&cluster.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn its_token_is_mounted_nowhere() {
        let owner = fixture();
        assert_eq!(
            build(&owner, &validate(&owner).unwrap()).automount_service_account_token,
            Some(false)
        );
    }
}
