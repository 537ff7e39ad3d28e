//! Changing who the replicas are, and which of them leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use openraft::{
    ChangeMembers, ReadPolicy,
    async_runtime::watch::WatchReceiver,
    error::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError},
    raft::VoteRequest,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    Members, MembersError, NodeId, ProposeError, Shard, ShardStatus, StateMachine,
    raft_types::{LeaderId, Types, Vote},
};

type WriteError<R> = RaftError<Types<R>, ClientWriteError<Types<R>>>;

impl<S: StateMachine> Shard<S> {
    /// Makes exactly these the voters. Those that are not replicas yet become learners first and are waited for until they have caught up; those that are not
    /// among them any more are removed. Doing it again, also after an error, goes on where it was left. When this replica is not among them, it hands over the
    /// leadership at the end.
    ///
    /// # Errors
    /// [`MembersError`]; the members are then still such that the shard can go on.
    pub async fn set_members(&self, voters: BTreeSet<NodeId>) -> Result<(), MembersError> {
        self.set_members_with_learners(voters, BTreeSet::new())
            .await
    }

    /// As [`Shard::set_members`], with replicas that receive the log without a vote.
    ///
    /// # Errors
    /// [`MembersError`]; the members are then still such that the shard can go on.
    pub async fn set_members_with_learners(
        &self,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
    ) -> Result<(), MembersError> {
        let shard = self.config.id;
        let invalid = |reason| MembersError::Invalid { shard, reason };
        if voters.is_empty() {
            return Err(invalid("there would be no voter"));
        }
        if !voters.is_disjoint(&learners) {
            return Err(invalid("a voter cannot be a learner too"));
        }
        let _one = self
            .changing
            .try_lock()
            .map_err(|_| MembersError::Changing(shard))?;
        let deadline = Instant::now() + self.config.timing.change;
        let wanted: BTreeSet<NodeId> = voters.union(&learners).copied().collect();
        let status = self.status();
        self.expect_leader(&status)?;
        let missing: BTreeMap<u64, ()> = wanted
            .iter()
            .filter(|node| !status.voters.contains(node) && !status.learners.contains(node))
            .map(|node| (node.0, ()))
            .collect();
        if !missing.is_empty() {
            self.change(ChangeMembers::AddNodes(missing), deadline)
                .await?;
        }
        let new: BTreeSet<NodeId> = voters.difference(&status.voters).copied().collect();
        self.caught_up(&new, deadline).await?;
        let status = self.status();
        if status.voters != voters || status.changing {
            let ids = voters.iter().map(|node| node.0).collect();
            self.change(ChangeMembers::ReplaceAllVoters(ids), deadline)
                .await?;
        }
        let status = self.status();
        let extra: BTreeSet<u64> = status
            .learners
            .difference(&wanted)
            .map(|node| node.0)
            .collect();
        if !extra.is_empty() {
            self.change(ChangeMembers::RemoveNodes(extra), deadline)
                .await?;
        }
        Ok(())
    }

    /// Who the replicas are, beyond doubt: whoever is not among them when this is called is counted on by nobody, until it is added again.
    ///
    /// [`Shard::status`] says what this replica believes, which a leader that was replaced without knowing it believes wrongly. Here a majority confirms, after the
    /// call, that this replica leads still; then what is committed, and with it applied here, is what every later leader begins with. Who is on the way in or out
    /// counts as a member.
    ///
    /// # Errors
    /// [`MembersError::NotLeader`], [`MembersError::Unconfirmed`], [`MembersError::Stopped`].
    pub async fn confirmed_members(&self) -> Result<Members, MembersError> {
        let shard = self.config.id;
        let patience = self.config.timing.election_max * 2;
        let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match timeout(patience, read).await {
            Ok(Ok(_)) => {}
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                return Err(MembersError::NotLeader {
                    shard,
                    leader: to.leader_id.map(NodeId),
                });
            }
            Ok(Err(RaftError::APIError(_))) | Err(_) => {
                return Err(MembersError::Unconfirmed(shard));
            }
            Ok(Err(RaftError::Fatal(_))) => return Err(MembersError::Stopped(shard)),
        }
        let committed = self.shared.state.lock().membership.clone();
        let metrics = self.raft.metrics();
        let effective = metrics.borrow_watched().membership_config.clone();
        let mut members = Members::default();
        for known in [committed.membership(), effective.membership()] {
            members.voters.extend(known.voter_ids().map(NodeId));
            members.learners.extend(known.learner_ids().map(NodeId));
        }
        Ok(members)
    }

    /// Has `to`, one of the other voters, lead from now on; returns when it is known here to do so. Proposals that are in the log keep their place and are
    /// answered if this replica learns their outcome before it has to give them up; new ones are refused.
    ///
    /// # Errors
    /// [`MembersError`]; this replica then still leads, or another is elected.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), MembersError> {
        let shard = self.config.id;
        let status = self.status();
        self.expect_leader(&status)?;
        if to == self.config.node {
            return Ok(());
        }
        if !status.voters.contains(&to) {
            return Err(MembersError::Invalid {
                shard,
                reason: "only a voter can lead",
            });
        }
        let _one = self
            .changing
            .try_lock()
            .map_err(|_| MembersError::Changing(shard))?;
        // The engine takes no proposals from here until somebody else leads, so that must not last.
        let election = self.config.timing.election_max;
        self.caught_up(&BTreeSet::from([to]), Instant::now() + election * 8)
            .await?;
        self.raft
            .trigger()
            .transfer_leader(to.0)
            .await
            .map_err(|_| MembersError::Stopped(shard))?;
        let mut leader = self.leader();
        let is_done = leader.wait_for(|view| {
            view.term > status.term && view.leader.is_some_and(|leader| leader == to)
        });
        // The guard that it gives must not live into another wait: the future would not be `Send`.
        let outcome = timeout_at(Instant::now() + election * 2, is_done)
            .await
            .map(|found| found.map(|_| ()));
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(MembersError::Stopped(shard)),
            Err(_) => {
                self.step_down(to, status.term).await;
                Err(MembersError::TimedOut(shard))
            }
        }
    }

    /// Ends a leadership that was to be handed over but was not taken: the engine would refuse proposals for as long as it lasts.
    async fn step_down(&self, to: NodeId, term: u64) {
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await;
        let Ok(vote) = vote else { return };
        // Nothing was appended since the engine was told to hand over.
        let last = self.raft.data_metrics().borrow_watched().last_log;
        if vote.leader_id.term != term || vote.leader_id.voted_for != self.config.node.0 {
            return;
        }
        let next = Vote {
            leader_id: LeaderId {
                term: term.saturating_add(1),
                voted_for: to.0,
            },
            committed: false,
        };
        let mut request = VoteRequest::new(next, last);
        request.leadership_transfer = true;
        if self.raft.vote(request).await.is_ok() {
            tracing::warn!(shard = %self.config.id, %to, "a leadership was not taken over; there will be an election");
        }
    }

    /// Waits until `copies` voters have the log up to `index` durably. For those who want more than the majority that every answer of [`Shard::propose`] means;
    /// bound it by a timeout.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when leadership is lost before.
    pub fn replicated(
        &self,
        index: u64,
        copies: usize,
    ) -> impl Future<Output = Result<(), ProposeError>> + Send + 'static + use<S> {
        let shard = self.config.id;
        let mut data = self.raft.data_metrics();
        let server = self.raft.server_metrics();
        let mut leadership = self.leadership();
        async move {
            loop {
                if leadership.borrow_and_update().is_none() {
                    return Err(ProposeError::NotLeader(shard));
                }
                let matched = data.borrow_and_update().replication.clone();
                let found = {
                    let members = server.borrow_watched();
                    let voters: BTreeSet<u64> = members.membership_config.voter_ids().collect();
                    let has = |node: &u64| {
                        let matched = matched.as_ref().and_then(|matched| matched.get(node));
                        matched
                            .and_then(Option::as_ref)
                            .is_some_and(|id| id.index >= index)
                    };
                    voters.iter().filter(|node| has(node)).count()
                };
                if found >= copies {
                    return Ok(());
                }
                let is_over = tokio::select! {
                    biased;
                    changed = data.changed() => changed.is_err(),
                    changed = leadership.changed() => changed.is_err(),
                };
                if is_over {
                    return Err(ProposeError::Stopped(shard));
                }
            }
        }
    }

    fn expect_leader(&self, status: &ShardStatus) -> Result<(), MembersError> {
        match self.standing.leadership.borrow().is_some() {
            true => Ok(()),
            false => Err(MembersError::NotLeader {
                shard: self.config.id,
                leader: status.leader.filter(|leader| *leader != self.config.node),
            }),
        }
    }

    /// Waits until all of `nodes` have what is in the log now.
    async fn caught_up(
        &self,
        nodes: &BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Result<(), MembersError> {
        let shard = self.config.id;
        let mut data = self.raft.data_metrics();
        let mut leadership = self.leadership();
        let goal = data.borrow_watched().last_log.map_or(0, |last| last.index);
        for node in nodes {
            loop {
                if leadership.borrow_and_update().is_none() {
                    self.expect_leader(&self.status())?;
                }
                let matched = {
                    let metrics = data.borrow_and_update();
                    let matched = metrics.replication.as_ref();
                    matched.and_then(|matched| matched.get(&node.0).copied().flatten())
                };
                if matched.is_some_and(|id| id.index >= goal) {
                    break;
                }
                let changed = async {
                    tokio::select! {
                        biased;
                        changed = data.changed() => changed.is_ok(),
                        changed = leadership.changed() => changed.is_ok(),
                    }
                };
                match timeout_at(deadline, changed).await {
                    Ok(true) => {}
                    Ok(false) => return Err(MembersError::Stopped(shard)),
                    Err(_) => return Err(MembersError::Behind { shard, node: *node }),
                }
            }
        }
        Ok(())
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, ()>,
        deadline: Instant,
    ) -> Result<(), MembersError> {
        let shard = self.config.id;
        let done = self.raft.change_membership(change, true);
        match timeout_at(deadline, done).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.refusal(&error)),
            Err(_) => Err(MembersError::TimedOut(shard)),
        }
    }

    fn refusal(&self, error: &WriteError<S::Response>) -> MembersError {
        let shard = self.config.id;
        tracing::info!(%shard, %error, "a change of members was refused");
        let RaftError::APIError(error) = error else {
            return MembersError::Stopped(shard);
        };
        match error {
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::EmptyMembership(_)) => {
                MembersError::Invalid {
                    shard,
                    reason: "there would be no voter",
                }
            }
            ClientWriteError::ChangeMembershipError(_) => MembersError::Changing(shard),
            ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to) => {
                MembersError::NotLeader {
                    shard,
                    leader: to.leader_id.map(NodeId),
                }
            }
            ClientWriteError::PreconditionFailed(_) => MembersError::Changing(shard),
        }
    }
}
