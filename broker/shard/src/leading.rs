//! Who leads, as it is seen from here, and what to do when the leader is gone.

use std::{sync::Arc, time::Duration};

use openraft::{
    Instant as _, Raft, ServerState, async_runtime::watch::WatchReceiver,
    raft::TransferLeaderRequest,
};
use palisade_log::ShardId;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    Leadership, NodeId, StateMachine, Timing,
    config::ShardConfig,
    engine::{Machine, Shared},
    log_store::LogStore,
    members::LeaderView,
    raft_types::{Types, Vote},
    receive::Inbox,
};

/// What is known here of who leads.
pub(crate) struct Standing {
    pub(crate) leadership: watch::Sender<Option<Leadership>>,
    pub(crate) leader: watch::Sender<LeaderView>,
    /// When proposals without an outcome are to be given up; `None` while this replica leads and is heard.
    pub(crate) give_up: Mutex<Option<Instant>>,
    /// Whose process is known to be gone, since when.
    pub(crate) lost: watch::Sender<Option<(NodeId, Instant)>>,
    /// The shard has stopped.
    pub(crate) over: watch::Sender<bool>,
}

impl Standing {
    pub(crate) fn new() -> Self {
        Self {
            leadership: watch::channel(None).0,
            leader: watch::channel(LeaderView::default()).0,
            give_up: Mutex::new(None),
            lost: watch::channel(None).0,
            over: watch::channel(false).0,
        }
    }

    /// Nobody leads from here any more.
    pub(crate) fn end(&self) {
        self.leadership.send_replace(None);
        self.leader.send_modify(|view| view.leader = None);
        self.over.send_replace(true);
    }

    /// Whether proposals have no hope of an outcome here.
    pub(crate) fn is_hopeless(&self) -> bool {
        let give_up = *self.give_up.lock();
        give_up.is_some_and(|at| at <= Instant::now())
    }
}

/// What there is to judge from.
#[derive(Clone, Copy, Debug)]
struct Seen {
    me: NodeId,
    /// The engine thinks that this replica leads.
    leads: bool,
    term: u64,
    /// Term of the last applied entry.
    applied_term: u64,
    /// How long ago the leader's latest message that a majority answered was sent. `None`: there was none yet, or no other's answer is needed.
    acknowledged: Option<Duration>,
    /// Who leads as far as the engine knows.
    leader: Option<NodeId>,
    /// How long ago that one was heard of.
    heard: Duration,
    /// Its process is known to be gone.
    is_lost: bool,
    /// How long a leader may be out of touch.
    limit: Duration,
}

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    leadership: Option<Leadership>,
    view: LeaderView,
    /// The engine leads, but nobody hears it.
    is_cut_off: bool,
}

fn judge(seen: &Seen) -> Verdict {
    let is_cut_off = seen.leads && seen.acknowledged.is_some_and(|age| age > seen.limit);
    let is_ready = seen.leads && !is_cut_off && seen.applied_term == seen.term;
    let is_there = match seen.leader {
        Some(leader) if leader == seen.me => seen.leads && !is_cut_off,
        Some(_) => !seen.is_lost && seen.heard <= seen.limit,
        None => false,
    };
    Verdict {
        leadership: is_ready.then_some(Leadership { term: seen.term }),
        view: LeaderView {
            term: seen.term,
            leader: seen.leader.filter(|_| is_there),
        },
        is_cut_off,
    }
}

/// Announces leadership once the first entry of the own term is applied, and withdraws it as soon as it is lost or nobody hears this replica any more;
/// announces who else leads; has the log keep a tail as long as there is somebody to send it to.
pub(crate) async fn follow<S: StateMachine>(
    config: ShardConfig,
    raft: Raft<Types<S::Response>, Machine<S>>,
    shared: Arc<Shared<S>>,
    inbox: Arc<Inbox<S>>,
    standing: Arc<Standing>,
) {
    let limit = config.timing.election_max;
    let mut server = raft.server_metrics();
    let data = raft.data_metrics();
    let mut applied_term = shared.term.subscribe();
    let mut lost = standing.lost.subscribe();
    let mut check = interval((limit / 4).max(Duration::from_millis(1)));
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = (0, None, Instant::now());
    loop {
        let (leads, term, leader, is_alone) = {
            let metrics = server.borrow_and_update();
            let members = metrics.membership_config.membership();
            (
                metrics.state == ServerState::Leader,
                metrics.vote.leader_id.term,
                metrics.current_leader.map(NodeId),
                members.nodes().all(|(node, ())| *node == config.node.0),
            )
        };
        raft.runtime_config().elect(shared.log.lacks().is_none());
        shared
            .log
            .keep(if is_alone { 0 } else { config.tail_bytes });
        if (known.0, known.1) != (term, leader) {
            known = (term, leader, Instant::now());
        }
        let heard = inbox
            .heard()
            .filter(|(from, _)| Some(*from) == leader)
            .map_or(known.2, |(_, at)| at.max(known.2));
        let gone = *lost.borrow_and_update();
        let acknowledged = data.borrow_watched().last_quorum_acked;
        let verdict = judge(&Seen {
            me: config.node,
            leads,
            term,
            applied_term: *applied_term.borrow_and_update(),
            acknowledged: acknowledged.filter(|_| !is_alone).map(|at| at.elapsed()),
            leader,
            heard: heard.elapsed(),
            is_lost: gone.is_some_and(|(node, at)| Some(node) == leader && at >= heard),
            limit,
        });
        let before = *standing.leadership.borrow();
        announce(&standing, leads, &verdict, limit);
        report(config.id, before, &verdict);
        if raft.metrics().borrow_watched().running_state.is_err() {
            standing.end();
            return;
        }
        let is_over = tokio::select! {
            biased;
            changed = server.changed() => changed.is_err(),
            changed = applied_term.changed() => changed.is_err(),
            changed = lost.changed() => changed.is_err(),
            _ = check.tick(), if !(is_alone && leads) => false,
        };
        if is_over {
            standing.end();
            return;
        }
    }
}

/// Says what operators of a cluster want to find in the log afterwards: who led when.
fn report(shard: ShardId, before: Option<Leadership>, verdict: &Verdict) {
    match (before, verdict.leadership) {
        (Some(before), None) => {
            let (term, is_cut_off) = (before.term, verdict.is_cut_off);
            tracing::info!(%shard, term, is_cut_off, "this broker does not lead the shard any more");
        }
        (before, Some(now)) if before != Some(now) => {
            tracing::info!(%shard, term = now.term, "this broker leads the shard");
        }
        _ => {}
    }
}

fn announce(standing: &Standing, leads: bool, verdict: &Verdict, grace: Duration) {
    {
        let mut give_up = standing.give_up.lock();
        *give_up = match (leads, verdict.is_cut_off) {
            (true, false) => None,
            (true, true) => Some(give_up.unwrap_or_else(Instant::now)),
            // Their outcome may still come: the next leader most likely has them.
            (false, _) => Some(give_up.unwrap_or_else(|| Instant::now() + grace)),
        };
    }
    change(&standing.leadership, verdict.leadership);
    change(&standing.leader, verdict.view);
}

fn change<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|current| {
        let is_new = *current != value;
        *current = value;
        is_new
    });
}

/// Campaigns in place of a leader whose process is gone, those with lower numbers first.
///
/// Every replica hears of it by itself, so each forgets the lease that it gave the leader, and then asks the others whether they would elect it: if the leader is
/// there after all, a majority still hears it and would not.
pub(crate) async fn replace<S: StateMachine>(
    raft: Raft<Types<S::Response>, Machine<S>>,
    inbox: Arc<Inbox<S>>,
    log: LogStore,
    me: NodeId,
    gone: NodeId,
    timing: Timing,
) {
    let (leader, voters) = {
        let metrics = raft.server_metrics().borrow_watched().clone();
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        (metrics.current_leader, voters)
    };
    if leader != Some(gone.0) || gone == me {
        return;
    }
    let Ok(vote) = raft.with_raft_state(|state| *state.vote_ref()).await else {
        return;
    };
    if vote.leader_id.voted_for != gone.0 {
        return;
    }
    let forget = TransferLeaderRequest::new(vote, gone.0, None);
    if raft.handle_transfer_leader(forget).await.is_err() || !voters.contains(&me.0) {
        return;
    }
    let turn = turn(&voters, me, gone);
    let step = timing.heartbeat / 3;
    let mut delay = Duration::from_millis(10) + step * turn;
    for _ in 0..3 {
        tokio::time::sleep(delay).await;
        delay = step * u32::try_from(voters.len()).unwrap_or(u32::MAX);
        let is_back = inbox.heard().is_some_and(|(from, _)| from == gone);
        if is_back
            || log.lacks().is_some()
            || !holds(&raft, vote).await
            || raft.trigger().elect(true).await.is_err()
        {
            return;
        }
    }
}

/// How many others come before `me`.
fn turn(voters: &[u64], me: NodeId, gone: NodeId) -> u32 {
    let before = voters
        .iter()
        .filter(|voter| **voter != gone.0 && **voter < me.0);
    u32::try_from(before.count()).unwrap_or(u32::MAX)
}

/// Whether nothing has happened since `vote` was the newest.
async fn holds<S: StateMachine>(raft: &Raft<Types<S::Response>, Machine<S>>, vote: Vote) -> bool {
    let now = raft.with_raft_state(|state| *state.vote_ref()).await;
    now.is_ok_and(|now| now == vote)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Seen = Seen {
        me: NodeId(1),
        leads: true,
        term: 5,
        applied_term: 5,
        acknowledged: Some(Duration::from_millis(10)),
        leader: Some(NodeId(1)),
        heard: Duration::ZERO,
        is_lost: false,
        limit: Duration::from_secs(1),
    };

    #[test]
    fn leadership_is_announced_when_the_own_term_is_applied_and_others_listen() {
        assert_eq!(
            judge(&SEEN),
            Verdict {
                leadership: Some(Leadership { term: 5 }),
                view: LeaderView {
                    term: 5,
                    leader: Some(NodeId(1))
                },
                is_cut_off: false,
            }
        );
        let early = Seen {
            applied_term: 4,
            ..SEEN
        };
        assert_eq!(judge(&early).leadership, None);
        let cut_off = judge(&Seen {
            acknowledged: Some(Duration::from_secs(2)),
            ..SEEN
        });
        assert!(cut_off.is_cut_off);
        assert_eq!((cut_off.leadership, cut_off.view.leader), (None, None));
        let alone = Seen {
            acknowledged: None,
            ..SEEN
        };
        assert_eq!(judge(&alone), judge(&SEEN));
    }

    #[test]
    fn a_leader_is_believed_in_while_it_is_heard_of() {
        let follows = Seen {
            leads: false,
            leader: Some(NodeId(2)),
            ..SEEN
        };
        assert_eq!(judge(&follows).view.leader, Some(NodeId(2)));
        assert_eq!(judge(&follows).leadership, None);
        for silent in [
            Seen {
                heard: Duration::from_secs(2),
                ..follows
            },
            Seen {
                is_lost: true,
                ..follows
            },
        ] {
            assert_eq!(
                judge(&silent).view,
                LeaderView {
                    term: 5,
                    leader: None
                }
            );
        }
    }

    #[test]
    fn those_who_are_left_campaign_one_after_the_other() {
        let voters = [3, 5, 9];
        let turns = [3, 9].map(|me| turn(&voters, NodeId(me), NodeId(5)));
        assert_eq!(turns, [0, 1]);
    }
}
