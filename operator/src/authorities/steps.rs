//! What a rotation may do next.

use palisade_crds::RotationMode;
use time::{Duration, OffsetDateTime};

use super::{AuthorityRecord, Evidence};
use crate::pki::KeyAlgorithm;

/// Run id of a rotation that nobody asked for: the authority came close to its end.
pub(super) const RENEWAL: &str = "renewal";

/// What the spec says of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityPolicy {
    /// How long a certificate of it is valid.
    pub validity: Duration,
    /// How long before its end it is replaced.
    pub renew_before: Duration,
    /// Its kind of key.
    pub algorithm: KeyAlgorithm,
}

/// What may be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is under way.
    Settled,
    /// Make the next authority.
    Begin {
        /// Id of the run.
        id: String,
        /// Whether it has a new key.
        mode: RotationMode,
    },
    /// Wait until everyone named trusts the next authority.
    AwaitTrust(Vec<String>),
    /// Everyone trusts it: let it issue.
    Switch,
    /// Wait until everyone named uses what the new authority issued.
    AwaitLeaves(Vec<String>),
    /// Nobody uses the former one, or the present one has to be replaced soon: withdraw trust in the former.
    Withdraw,
}

/// Decides. The phase is what the record holds; each is left only by evidence, or because the authority that issues ends.
#[must_use]
pub fn next_step(
    record: &AuthorityRecord,
    policy: &AuthorityPolicy,
    evidence: &Evidence,
    now: OffsetDateTime,
) -> Step {
    let left = record.current().info().not_after - now;
    // Nobody accepts an authority past its end, so there is no trust left to wait for.
    let ended = left <= Duration::ZERO;
    // An authority whose validity is shorter than `renewBefore` would otherwise be replaced on every look.
    let lead = policy.renew_before.min(policy.validity / 2);
    if record.next().is_some() {
        return if ended || evidence.distrusting.is_empty() {
            Step::Switch
        } else {
            Step::AwaitTrust(evidence.distrusting.clone())
        };
    }
    if record.has_previous() {
        // Whoever stays on an old leaf must not keep the present authority from being replaced in time: with it everyone's leaves would end.
        return if left <= lead / 2 || evidence.on_old_leaves.is_empty() {
            Step::Withdraw
        } else {
            Step::AwaitLeaves(evidence.on_old_leaves.clone())
        };
    }
    if let Some(request) = record.request() {
        return Step::Begin {
            id: request.id.clone(),
            mode: request.mode,
        };
    }
    if left <= lead {
        return Step::Begin {
            id: RENEWAL.to_owned(),
            mode: RotationMode::ReplaceKey,
        };
    }
    Step::Settled
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::Secret;
    use kube::ResourceExt;

    use super::*;
    use crate::{
        authorities::{REQUEST_ANNOTATION, RotationRequest},
        pki::CommonName,
    };

    fn start() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn policy() -> AuthorityPolicy {
        AuthorityPolicy {
            validity: Duration::days(100),
            renew_before: Duration::days(10),
            algorithm: KeyAlgorithm::EcdsaP256,
        }
    }

    fn name() -> CommonName {
        CommonName::new("events-cluster").unwrap()
    }

    fn record() -> AuthorityRecord {
        AuthorityRecord::generate(&name(), &policy(), start()).unwrap()
    }

    /// Takes a record through a whole rotation.
    fn rotate(record: &mut AuthorityRecord, id: &str, now: OffsetDateTime) {
        let (id, mode) = (id.to_owned(), RotationMode::ReplaceKey);
        record.begin(id, mode, &name(), &policy(), now).unwrap();
        record.switch(now).unwrap();
        record.withdraw();
    }

    fn waiting(distrusting: &[&str], on_old_leaves: &[&str]) -> Evidence {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Evidence {
            distrusting: owned(distrusting),
            on_old_leaves: owned(on_old_leaves),
            ..Evidence::default()
        }
    }

    #[test]
    fn an_authority_far_from_its_end_is_left_alone() {
        assert_eq!(
            next_step(
                &record(),
                &policy(),
                &Evidence::default(),
                start() + Duration::days(89)
            ),
            Step::Settled
        );
    }

    #[test]
    fn an_authority_close_to_its_end_is_replaced_with_a_new_key() {
        let step = next_step(
            &record(),
            &policy(),
            &Evidence::default(),
            start() + Duration::days(90),
        );
        assert_eq!(
            step,
            Step::Begin {
                id: RENEWAL.to_owned(),
                mode: RotationMode::ReplaceKey
            }
        );
    }

    #[test]
    fn a_validity_shorter_than_the_lead_does_not_rotate_without_end() {
        let policy = AuthorityPolicy {
            renew_before: Duration::days(400),
            ..policy()
        };
        assert_eq!(
            next_step(
                &record(),
                &policy,
                &Evidence::default(),
                start() + Duration::days(1)
            ),
            Step::Settled
        );
    }

    #[test]
    fn an_authority_past_its_end_is_replaced_without_waiting_for_anyone() {
        let mut record = record();
        let late = start() + Duration::days(101);
        record
            .begin(
                "run-1".to_owned(),
                RotationMode::ReplaceKey,
                &name(),
                &policy(),
                late,
            )
            .unwrap();
        assert_eq!(
            next_step(
                &record,
                &policy(),
                &waiting(&["broker events-0"], &[]),
                late
            ),
            Step::Switch
        );
    }

    #[test]
    fn a_request_begins_a_rotation() {
        let mut secret = Secret::default();
        record().write(&mut secret);
        let request = RotationRequest {
            id: "run-1".to_owned(),
            mode: RotationMode::Renew,
            at: String::new(),
        };
        secret.annotations_mut().insert(
            REQUEST_ANNOTATION.to_owned(),
            serde_json::to_string(&request).unwrap(),
        );
        let record = AuthorityRecord::read(&secret).unwrap();
        let step = next_step(&record, &policy(), &Evidence::default(), start());
        assert_eq!(
            step,
            Step::Begin {
                id: "run-1".to_owned(),
                mode: RotationMode::Renew
            }
        );
    }

    #[test]
    fn a_renewal_does_not_bring_back_a_request_that_is_done() {
        let mut secret = Secret::default();
        record().write(&mut secret);
        let request = RotationRequest {
            id: "run-1".to_owned(),
            mode: RotationMode::ReplaceKey,
            at: String::new(),
        };
        secret.annotations_mut().insert(
            REQUEST_ANNOTATION.to_owned(),
            serde_json::to_string(&request).unwrap(),
        );
        let mut record = AuthorityRecord::read(&secret).unwrap();
        rotate(&mut record, "run-1", start());
        let later = start() + Duration::days(95);
        rotate(&mut record, RENEWAL, later);
        assert_eq!((record.running(), record.done()), (None, Some("run-1")));
        assert_eq!(
            next_step(&record, &policy(), &Evidence::default(), later),
            Step::Settled
        );
    }

    #[test]
    fn an_authority_about_to_end_is_replaced_although_someone_stays_on_a_former_leaf() {
        let mut record = record();
        let (id, mode) = ("run-1".to_owned(), RotationMode::ReplaceKey);
        record.begin(id, mode, &name(), &policy(), start()).unwrap();
        record.switch(start()).unwrap();
        let late = waiting(&[], &["user alice"]);
        let step = |record: &AuthorityRecord, days| {
            next_step(record, &policy(), &late, start() + Duration::days(days))
        };
        assert_eq!(
            step(&record, 94),
            Step::AwaitLeaves(vec!["user alice".to_owned()])
        );
        assert_eq!(step(&record, 95), Step::Withdraw);
        assert_eq!(step(&record, 101), Step::Withdraw);
        record.withdraw();
        assert_eq!(
            step(&record, 95),
            Step::Begin {
                id: RENEWAL.to_owned(),
                mode: RotationMode::ReplaceKey
            }
        );
    }

    #[test]
    fn nothing_issues_before_everyone_trusts_it_and_nothing_is_withdrawn_before_everyone_left_it() {
        let mut record = record();
        record
            .begin(
                "run-1".to_owned(),
                RotationMode::ReplaceKey,
                &name(),
                &policy(),
                start(),
            )
            .unwrap();
        let step = |record: &AuthorityRecord, evidence: &Evidence| {
            next_step(record, &policy(), evidence, start())
        };
        assert_eq!(
            step(&record, &waiting(&["broker events-0"], &[])),
            Step::AwaitTrust(vec!["broker events-0".to_owned()])
        );
        assert_eq!(
            step(&record, &waiting(&[], &["broker events-0"])),
            Step::Switch
        );
        record.switch(start()).unwrap();
        assert_eq!(
            step(&record, &waiting(&[], &["user alice"])),
            Step::AwaitLeaves(vec!["user alice".to_owned()])
        );
        assert_eq!(step(&record, &waiting(&[], &[])), Step::Withdraw);
        record.withdraw();
        assert_eq!(step(&record, &waiting(&[], &[])), Step::Settled);
    }
}
