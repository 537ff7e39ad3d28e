//! PodDisruptionBudget: one broker at a time.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use palisade_crds::SecureCluster;

use crate::{cluster::Cluster, kubernetes::names};

/// The PodDisruptionBudget.
#[must_use]
pub fn build(owner: &SecureCluster, cluster: &Cluster) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: names::owned_metadata(owner, names::brokers_service(&cluster.name)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(names::broker_selector(&cluster.name)),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::validate::{tests::fixture, validate};

    #[test]
    fn a_drain_takes_one_broker_at_a_time() {
        let owner = fixture();
        let spec = build(&owner, &validate(&owner).unwrap()).spec.unwrap();
        assert_eq!(spec.max_unavailable, Some(IntOrString::Int(1)));
        assert_eq!(
            spec.selector.unwrap().match_labels.unwrap()["palisade.dev/cluster"],
            "events"
        );
    }
}
