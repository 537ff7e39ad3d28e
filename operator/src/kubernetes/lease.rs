//! Leader election by a Lease: of several operators one acts, and another takes over when it stops renewing.
//!
//! Expiry is judged by how long *this* process has seen the lease unchanged, never by comparing its clock with the holder's.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::PostParams};
use tokio::sync::oneshot;

use crate::Error;

const DURATION: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// The holder gives up this long after its last renewal: sooner than any other may take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// A lease to compete for.
pub struct LeaseLock {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// A lease that is held. Dropping it without [`Leadership::release`] leaves others waiting until it expires.
pub struct Leadership {
    lock: LeaseLock,
    task: tokio::task::JoinHandle<()>,
    lost: oneshot::Receiver<()>,
}

impl LeaseLock {
    /// A lease by name; `identity` must differ between processes.
    #[must_use]
    pub fn new(api: Api<Lease>, name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            api,
            name: name.into(),
            identity: identity.into(),
        }
    }

    /// Waits until the lease is ours, then keeps renewing it in the background.
    pub async fn acquire(self) -> Leadership {
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, lease = self.name, "cannot acquire the lease yet")
                }
            }
            tokio::time::sleep(RETRY).await;
        }
        tracing::info!(lease = self.name, identity = self.identity, "leading");
        let (gone, lost) = oneshot::channel();
        let renewer = Self {
            api: self.api.clone(),
            name: self.name.clone(),
            identity: self.identity.clone(),
        };
        let task = tokio::spawn(async move {
            renewer.keep().await;
            let _ = gone.send(());
        });
        Leadership {
            lock: self,
            task,
            lost,
        }
    }

    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<bool, Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.spec = Some(claim(None, &self.identity, Timestamp::now()));
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = lease.resource_version().unwrap_or_default();
        let since = match seen {
            Some((held, since)) if *held == version => *since,
            _ => {
                let now = Instant::now();
                *seen = Some((version, now));
                now
            }
        };
        if !may_take(lease.spec.as_ref(), &self.identity, since.elapsed()) {
            return Ok(false);
        }
        lease.spec = Some(claim(lease.spec.as_ref(), &self.identity, Timestamp::now()));
        won(self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await)
    }

    /// Renews until the lease is lost.
    async fn keep(&self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            tokio::time::sleep(if renewed.elapsed() < RENEW_EVERY {
                RENEW_EVERY
            } else {
                RETRY
            })
            .await;
            match tokio::time::timeout(RETRY, self.renew()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.name, "cannot renew the lease")
                }
                Err(_) => tracing::warn!(
                    lease = self.name,
                    "the API server did not answer the renewal of the lease"
                ),
            }
        }
    }

    async fn renew(&self) -> Result<bool, Error> {
        let mut lease = self.api.get(&self.name).await?;
        if lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            != Some(&self.identity)
        {
            return Ok(false);
        }
        lease.spec = Some(claim(lease.spec.as_ref(), &self.identity, Timestamp::now()));
        won(self
            .api
            .replace(&self.name, &PostParams::default(), &lease)
            .await)
    }
}

impl Leadership {
    /// Completes when the lease is lost; whoever acts under it must stop at once.
    pub async fn lost(&mut self) {
        let _ = (&mut self.lost).await;
    }

    /// Gives the lease up, so that another operator takes over at once.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn release(self) -> Result<(), Error> {
        self.task.abort();
        // A renewal that was under way when it was cut off may still arrive.
        for _ in 0..3 {
            let mut lease = self.lock.api.get(&self.lock.name).await?;
            let held = lease
                .spec
                .as_mut()
                .filter(|spec| spec.holder_identity.as_deref() == Some(&self.lock.identity));
            let Some(spec) = held else { return Ok(()) };
            spec.holder_identity = None;
            let api = &self.lock.api;
            if won(api
                .replace(&self.lock.name, &PostParams::default(), &lease)
                .await)?
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A conflict means that another process was faster.
fn won(outcome: kube::Result<Lease>) -> Result<bool, Error> {
    match outcome {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the lease may be taken: nobody holds it, we do, or it has stood unchanged for longer than it says.
fn may_take(spec: Option<&LeaseSpec>, identity: &str, unchanged: Duration) -> bool {
    let Some(spec) = spec else { return true };
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        Some(holder) if holder == identity => true,
        Some(_) => {
            let seconds = spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok());
            unchanged > Duration::from_secs(seconds.unwrap_or(DURATION.as_secs()))
        }
    }
}

/// The specification that holds the lease for `identity`.
fn claim(former: Option<&LeaseSpec>, identity: &str, now: Timestamp) -> LeaseSpec {
    let kept = former.filter(|spec| spec.holder_identity.as_deref() == Some(identity));
    let transitions = former.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: kept
            .and_then(|spec| spec.acquire_time.clone())
            .or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if kept.is_some() {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_it_is_free_ours_or_expired() {
        let held = claim(None, "one", Timestamp::UNIX_EPOCH);
        let free = LeaseSpec {
            holder_identity: None,
            ..held.clone()
        };
        for (spec, identity, unchanged, expected) in [
            (None, "two", 0, true),
            (Some(&free), "two", 0, true),
            (Some(&held), "one", 0, true),
            (Some(&held), "two", 0, false),
            (Some(&held), "two", 15, false),
            (Some(&held), "two", 16, true),
        ] {
            assert_eq!(
                may_take(spec, identity, Duration::from_secs(unchanged)),
                expected,
                "{identity} {unchanged}"
            );
        }
    }

    #[test]
    fn renewing_keeps_the_time_of_acquisition_and_taking_over_counts_a_transition() {
        let first = claim(None, "one", Timestamp::from_second(10).unwrap());
        let renewed = claim(Some(&first), "one", Timestamp::from_second(20).unwrap());
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(renewed.lease_transitions, Some(1));
        let taken = claim(Some(&renewed), "two", Timestamp::from_second(30).unwrap());
        assert_eq!(
            taken.acquire_time,
            Some(MicroTime(Timestamp::from_second(30).unwrap()))
        );
        assert_eq!(taken.lease_transitions, Some(2));
    }
}
