//! Carries out the steps of [`super::scale`].

use std::collections::BTreeSet;

use kube::{ResourceExt, runtime::events::EventType};
use palisade_crds::{Reason, ReclaimPolicy};

use super::{
    Reconcile,
    observe::BrokerView,
    scale::{self, Seen, Step},
    volumes,
};
use crate::{
    Error,
    kafka::{AdminClient, KafkaError},
    kubernetes::{names, publish},
};

/// How far the removal of brokers is, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scaling {
    /// None leaves.
    #[default]
    Settled,
    /// One leaves: what is being done, or waited for.
    Leaving(String),
    /// None can leave: what to write instead.
    Refused(String),
}

impl Reconcile<'_> {
    /// Takes the next step towards the number of brokers that the spec asks for; what is built after this is for those that stand.
    pub(super) async fn scale(
        &mut self,
        brokers: &mut Vec<BrokerView>,
        admin: Option<&AdminClient>,
    ) -> Result<Scaling, Error> {
        let pods = self.ordinals();
        let step = scale::next(Seen {
            wanted: self.cluster.wanted,
            standing: self.standing(),
            brokers,
            pods: &pods,
        });
        let pod = |id: i32| names::pod(&self.cluster.name, id);
        match (step, admin) {
            (Step::Settled, _) => {
                self.delete_left_over(brokers, &pods).await?;
                Ok(Scaling::Settled)
            }
            (Step::Refuse(message), _) => Ok(Scaling::Refused(message)),
            (Step::Wait(id, why), _) => Ok(Scaling::Leaving(format!("{} leaves: {why}", pod(id)))),
            (Step::Stop(id), _) => {
                let note = format!("{} has nothing left and is stopped", pod(id));
                let cluster = self.cluster.clone().with_brokers(id);
                self.cluster = cluster.map_err(Error::Configuration)?;
                brokers.truncate(self.cluster.pods().len());
                self.tell(Reason::BrokerRemoved, &note).await;
                Ok(Scaling::Leaving(note))
            }
            (Step::Drain(id), Some(admin)) => {
                let note = format!("{} gives everything to the other brokers", pod(id));
                let told = admin.set_draining(id, true).await;
                Ok(self.told(told, note, Scaling::Refused).await)
            }
            (Step::Restore(id), Some(admin)) => {
                let note = format!("{} stays and is given its share again", pod(id));
                let told = admin.set_draining(id, false).await;
                Ok(self.told(told, note, Scaling::Leaving).await)
            }
            (Step::Forget(id), Some(admin)) => {
                let note = format!("{} is forgotten by the other brokers", pod(id));
                let told = admin.unregister_broker(id).await;
                Ok(self.told(told, note, Scaling::Leaving).await)
            }
            (Step::Drain(id) | Step::Restore(id) | Step::Forget(id), None) => Ok(Scaling::Leaving(
                format!("{} leaves: there is no way to the brokers yet", pod(id)),
            )),
        }
    }

    /// What a change of the brokers comes to, which they may have refused for good.
    async fn told(
        &mut self,
        outcome: Result<(), KafkaError>,
        note: String,
        refused: fn(String) -> Scaling,
    ) -> Scaling {
        self.context.metrics.broker_write("SecureCluster");
        match outcome {
            Ok(()) => {
                self.written = true;
                self.tell(Reason::Draining, &note).await;
                Scaling::Leaving(note)
            }
            Err(error) if error.is_final() => refused(error.to_string()),
            Err(error) => Scaling::Leaving(format!("{note}, as soon as they answer: {error}")),
        }
    }

    async fn tell(&self, reason: Reason, note: &str) {
        let kind = EventType::Normal;
        publish(self.context, self.object, kind, reason, note.to_owned()).await;
    }

    /// Deletes the claims of brokers that were removed, where the policy says so.
    async fn delete_left_over(
        &mut self,
        brokers: &[BrokerView],
        pods: &BTreeSet<i32>,
    ) -> Result<(), Error> {
        if self.cluster.reclaim_policy != ReclaimPolicy::Delete {
            return Ok(());
        }
        let Some(registered) = scale::registered(brokers) else {
            return Ok(());
        };
        let known = scale::known(brokers);
        let in_use = registered.keys().chain(pods).copied().chain(known);
        let in_use = in_use.collect();
        let claims = &self.observed.claims;
        for claim in volumes::left_over(claims, &self.cluster, &in_use) {
            volumes::delete_claim(self.context, &self.cluster.namespace, claim).await?;
            self.written = true;
        }
        Ok(())
    }

    /// Brokers of the StatefulSet.
    fn standing(&self) -> i32 {
        super::standing(&self.observed).unwrap_or(self.cluster.wanted)
    }

    /// Ordinals of the pods that exist.
    fn ordinals(&self) -> BTreeSet<i32> {
        let prefix = format!("{}-", self.cluster.name);
        let pods = self.observed.pods.iter();
        pods.filter_map(|pod| pod.name_any().strip_prefix(&prefix)?.parse().ok())
            .collect()
    }
}
