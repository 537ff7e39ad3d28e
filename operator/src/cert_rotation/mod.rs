//! CertRotation: asks for a rotation when its time has come, and reports how it goes.
//!
//! The rotation itself is carried out where the cluster is reconciled ([`crate::authorities`], [`crate::cluster`]), by evidence alone; a renewal that nobody
//! asked for goes the same way. A run is first recorded in the status and then asked for by an annotation on the Secret that it is about, so that an
//! operator that dies between the two, or later, finds what to do.

mod observe;
mod plan;

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{ResourceExt, runtime::controller::Action};
use palisade_crds::{CertRotation, CertRotationStatus, Reason, RotationPhase, RotationRun};

use crate::{
    Context, Error,
    kubernetes::{is_paused, write_status},
    members::{self, Blocked, Stop},
};
use observe::Target;
use plan::{Due, due};

const RUNNING: Duration = Duration::from_secs(2);
/// A requeue further away would not survive a change of the clock.
const LONGEST: Duration = Duration::from_secs(3600);

/// Takes a rotation one step further.
///
/// # Errors
/// What is worth another try.
pub async fn reconcile(object: &CertRotation, context: &Context) -> Result<Action, Error> {
    let former: &[Condition] = object
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let generation = object.metadata.generation;
    let mut status = object.status.clone().unwrap_or_default();
    if is_paused(object) {
        status.conditions = members::paused(former, generation);
        write_status(context, object, &status).await?;
        return Ok(Action::await_change());
    }
    status.observed_generation = generation;
    let action = match step(object, context, &mut status).await {
        Ok((result, action)) => {
            status.conditions = members::outcome(
                former,
                generation,
                result
                    .as_ref()
                    .map(|(reason, message)| (*reason, message.as_str())),
            );
            action
        }
        Err(Stop::Blocked(blocked)) => {
            status.conditions = members::outcome(former, generation, Err(&blocked));
            Action::requeue(members::WAITING)
        }
        Err(Stop::Failed(error)) => return Err(error),
    };
    write_status(context, object, &status).await?;
    Ok(action)
}

type Outcome = (Result<(Reason, String), Blocked>, Action);

async fn step(
    object: &CertRotation,
    context: &Context,
    status: &mut CertRotationStatus,
) -> Result<Outcome, Stop> {
    let (cluster, _) = members::bind(context, object).await?;
    let now = Timestamp::now();
    let target = Target::read(context, object, &cluster).await?;
    if status.current_run.is_none() {
        match due(object, status, now)
            .map_err(|message| Blocked::new(Reason::InvalidSpec, message))?
        {
            Due::Now => {
                status.next_run = None;
                status.phase = Some(RotationPhase::Waiting);
                status.progress = Some("asked for".to_owned());
                status.current_run = Some(RotationRun {
                    started_at: Some(Time(now)),
                    old_fingerprint: target.current_fingerprint(),
                    reason: object.spec.reason.clone(),
                    ..RotationRun::default()
                });
                // Recorded now, asked for on the next look.
                let blocked = Blocked::new(Reason::RotationInProgress, "the rotation begins");
                return Ok((Err(blocked), Action::requeue(Duration::from_millis(200))));
            }
            Due::At(next) => {
                status.next_run = Some(Time(next));
                status.phase = Some(RotationPhase::Waiting);
                status.progress = None;
                let wait = u64::try_from(next.as_second().saturating_sub(now.as_second()))
                    .unwrap_or_default();
                let action = Action::requeue(Duration::from_secs(wait.max(1)).min(LONGEST));
                return Ok((
                    Ok((
                        Reason::RotationScheduled,
                        format!("the next rotation begins at {next}"),
                    )),
                    action,
                ));
            }
            Due::Never => {
                status.next_run = None;
                status.phase = Some(RotationPhase::Completed);
                status.progress = None;
                return Ok((
                    Ok((
                        Reason::RotationCompleted,
                        "the rotation is complete".to_owned(),
                    )),
                    Action::await_change(),
                ));
            }
        }
    }
    advance(object, context, status, &target, now).await
}

/// Follows the run that goes on.
async fn advance(
    object: &CertRotation,
    context: &Context,
    status: &mut CertRotationStatus,
    target: &Target,
    now: Timestamp,
) -> Result<Outcome, Stop> {
    let mut run = status.current_run.clone().unwrap_or_default();
    let id = plan::run_id(&object.uid().unwrap_or_default(), status.completed_runs);
    if target.is_overtaken(&plan::request(&id, object.spec.mode, &run)) {
        run.started_at = Some(Time(now));
    }
    let request = plan::request(&id, object.spec.mode, &run);
    let view = target.view(&request, &run);
    if !view.asked {
        target.ask(context, &request).await?;
    }
    if run.new_fingerprint.is_none() {
        run.new_fingerprint.clone_from(&view.new_fingerprint);
    }
    status.phase = Some(view.phase);
    status.progress = Some(view.progress.clone());
    if view.phase != RotationPhase::Completed {
        status.current_run = Some(run);
        return Ok((
            Err(Blocked::new(Reason::RotationInProgress, view.progress)),
            Action::requeue(RUNNING),
        ));
    }
    run.completed_at = Some(Time(now));
    status.last_run = Some(run);
    status.current_run = None;
    status.progress = None;
    status.completed_runs = Some(status.completed_runs.unwrap_or_default() + 1);
    tracing::info!(rotation = object.name_any(), target = ?object.spec.target, "rotation complete");
    Ok((
        Ok((
            Reason::RotationCompleted,
            "the rotation is complete".to_owned(),
        )),
        Action::requeue(RUNNING),
    ))
}
