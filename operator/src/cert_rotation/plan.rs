//! When a rotation begins, and what it is asked for with.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use palisade_crds::{CertRotation, CertRotationStatus, RotationMode, RotationRun};

use crate::authorities::RotationRequest;

/// When the next run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Its time has come.
    Now,
    /// Then.
    At(Timestamp),
    /// There is none.
    Never,
}

/// Decides when the next run begins. A schedule that was missed, however often, is made up for once.
pub(super) fn due(
    object: &CertRotation,
    status: &CertRotationStatus,
    now: Timestamp,
) -> Result<Due, String> {
    let trigger = &object.spec.trigger;
    let ran = status.completed_runs.unwrap_or_default() > 0;
    let moment = |time: Timestamp| if time <= now { Due::Now } else { Due::At(time) };
    let last = status
        .last_run
        .as_ref()
        .and_then(|run| run.started_at.as_ref())
        .map(|time| time.0);
    match (&trigger.once, &trigger.schedule, &trigger.at) {
        (Some(_), None, None) => Ok(if ran { Due::Never } else { Due::Now }),
        (None, None, Some(at)) => {
            // A moment that was written after the last run is another one. A status may say whole seconds.
            let done = last.is_some_and(|last| last.as_second() >= at.0.as_second());
            Ok(if done { Due::Never } else { moment(at.0) })
        }
        (None, Some(schedule), None) => {
            let since = last
                .or_else(|| object.creation_timestamp().map(|time| time.0))
                .unwrap_or(now);
            let next = schedule.next_after(since).ok_or(
                "trigger.schedule names a moment that never comes, such as 30 February: correct it",
            )?;
            Ok(moment(next))
        }
        _ => Err("trigger: write exactly one of once, schedule and at".to_owned()),
    }
}

/// Id of a run; the next run has another.
pub(super) fn run_id(uid: &str, completed: Option<i64>) -> String {
    format!("{uid}-{}", completed.unwrap_or_default() + 1)
}

/// What a run is asked for with. The same run always asks for the same.
pub(super) fn request(id: &str, mode: RotationMode, run: &RotationRun) -> RotationRequest {
    let started = run
        .started_at
        .as_ref()
        .map(|time| time.0)
        .unwrap_or_default();
    RotationRequest {
        id: id.to_owned(),
        mode,
        at: Timestamp::from_second(started.as_second())
            .unwrap_or(started)
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    fn rotation(trigger: Value) -> CertRotation {
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "CertRotation",
            "metadata": { "name": "annual", "namespace": "messaging", "creationTimestamp": "2027-06-01T00:00:00Z" },
            "spec": { "clusterRef": { "name": "events" }, "target": "ClusterAuthority", "trigger": trigger }
        }))
        .unwrap()
    }

    fn after(runs: i64, started: &str) -> CertRotationStatus {
        CertRotationStatus {
            completed_runs: Some(runs),
            last_run: Some(RotationRun {
                started_at: Some(Time(started.parse().unwrap())),
                ..RotationRun::default()
            }),
            ..CertRotationStatus::default()
        }
    }

    #[test]
    fn a_run_begins_when_its_trigger_says() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let now = at("2027-07-01T00:00:00Z");
        let fresh = CertRotationStatus::default();
        let schedule = json!({ "schedule": "0 3 1 1 *" });
        for (trigger, status, now, expected) in [
            (json!({ "once": {} }), &fresh, now, Due::Now),
            (
                json!({ "once": {} }),
                &after(1, "2027-06-30T00:00:00Z"),
                now,
                Due::Never,
            ),
            (
                json!({ "at": "2027-06-30T00:00:00Z" }),
                &fresh,
                now,
                Due::Now,
            ),
            (
                json!({ "at": "2027-08-01T00:00:00Z" }),
                &fresh,
                now,
                Due::At(at("2027-08-01T00:00:00Z")),
            ),
            (
                json!({ "at": "2027-06-30T00:00:00.5Z" }),
                &after(1, "2027-06-30T00:00:00Z"),
                now,
                Due::Never,
            ),
            // A new moment is another run.
            (
                json!({ "at": "2027-08-01T00:00:00Z" }),
                &after(1, "2027-06-30T00:00:00Z"),
                now,
                Due::At(at("2027-08-01T00:00:00Z")),
            ),
            (
                json!({ "at": "2027-06-30T12:00:00Z" }),
                &after(1, "2027-06-30T00:00:00Z"),
                now,
                Due::Now,
            ),
            (
                schedule.clone(),
                &fresh,
                now,
                Due::At(at("2028-01-01T03:00:00Z")),
            ),
            (
                schedule.clone(),
                &fresh,
                at("2028-01-01T03:00:00Z"),
                Due::Now,
            ),
            (
                schedule.clone(),
                &after(1, "2028-01-01T03:00:00Z"),
                at("2028-01-01T03:05:00Z"),
                Due::At(at("2029-01-01T03:00:00Z")),
            ),
            // Five missed years are one run, not five.
            (
                schedule,
                &after(1, "2028-01-01T03:00:00Z"),
                at("2033-05-01T00:00:00Z"),
                Due::Now,
            ),
        ] {
            assert_eq!(
                due(&rotation(trigger.clone()), status, now),
                Ok(expected),
                "{trigger}"
            );
        }
    }

    #[test]
    fn a_trigger_that_contradicts_itself_is_refused() {
        let both = rotation(json!({ "once": {}, "at": "2027-08-01T00:00:00Z" }));
        assert!(
            due(&both, &CertRotationStatus::default(), Timestamp::UNIX_EPOCH)
                .unwrap_err()
                .contains("exactly one")
        );
    }

    #[test]
    fn a_run_asks_for_the_same_however_often_and_the_next_for_another() {
        let run = RotationRun {
            started_at: Some(Time("2027-07-01T00:00:00.5Z".parse().unwrap())),
            ..RotationRun::default()
        };
        let first = request(&run_id("u", None), RotationMode::Renew, &run);
        assert_eq!(
            first,
            request(&run_id("u", Some(0)), RotationMode::Renew, &run)
        );
        assert_eq!(first.at, "2027-07-01T00:00:00Z");
        assert_ne!(first.id, run_id("u", Some(1)));
    }
}
