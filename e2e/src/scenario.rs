//! What the demo shows and the tests on a cluster assert: one function each, used by both.
//!
//! - [`Site`]: the Kubernetes it happens on: built in, kind, or the one of the current KUBECONFIG.
//! - [`install`]: images, the chart, `examples/quickstart`.
//! - [`ClientPod`]: a pod with kcat and a mounted Secret.
//! - [`shows`]: alice, analytics, mallory, plaintext, the outsider, client-1, and the rotation.

mod client;
mod install;
mod kubectl;
mod rotation;
pub mod shows;
mod site;

pub use client::{ClientPod, ClientPodSpec};
pub use install::{NAMESPACE, OPERATOR_NAMESPACE, install, remove_objects};
pub use kubectl::Kubectl;
pub use rotation::{Rotation, SteadyProducer, both_authorities_are_replaced};
pub use site::{Site, inability};

/// Something that was shown, for the table at the end.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What is claimed.
    pub claim: &'static str,
    /// What was seen.
    pub evidence: String,
}

/// The kinds of Palisade, as kubectl takes them.
pub const KINDS: [&str; 6] = [
    "secureclusters.palisade.dev",
    "users.palisade.dev",
    "acls.palisade.dev",
    "quotas.palisade.dev",
    "topics.palisade.dev",
    "certrotations.palisade.dev",
];
