//! The two authorities of a cluster and how one is replaced.
//!
//! Everything about an authority lives in one Secret ([`AuthorityRecord`]), rotation included: the certificate that issues, the next one while trust
//! in it is being distributed, the former ones while their leaves are being replaced. Where a rotation stands is what the Secret holds, so an
//! operator that dies at any moment is followed by one that reads the Secret and goes on. The Secret is only ever changed by a replace that names the
//! version it was read at.
//!
//! [`next_step`] decides, from the record and from what brokers and users report, what may be done now. Trust comes before use, and withdrawal after it.

mod evidence;
mod record;
mod steps;

pub use evidence::{BrokerReport, ClientReport, Evidence, clients_evidence, cluster_evidence};
pub use record::{AuthorityRecord, REQUEST_ANNOTATION, RotationRequest};
pub use steps::{AuthorityPolicy, Step, next_step};
