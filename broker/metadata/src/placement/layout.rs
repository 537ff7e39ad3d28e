//! One pool while it is being placed: brokers are indexes here, and a shard is the list of its brokers, the leader first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use palisade_shard::NodeId;

use super::Site;

/// What brokers carry of the pools that are placed already.
pub(super) struct Totals {
    replicas: Vec<usize>,
    leaders: Vec<usize>,
}

impl Totals {
    pub(super) fn new(sites: &[Site]) -> Self {
        Self {
            replicas: vec![0; sites.len()],
            leaders: vec![0; sites.len()],
        }
    }
}

/// Exchanges of replicas that are tried in a new pool: all that there are in a small cluster, and a part of a second in a large one.
const MOST_EXCHANGES: usize = 1 << 20;

pub(super) struct Layout<'a> {
    nodes: Vec<NodeId>,
    /// The rack of each broker.
    racks: Vec<usize>,
    /// Most replicas of a shard in one rack.
    cap: usize,
    replication_factor: usize,
    before: Vec<Vec<usize>>,
    now: Vec<Vec<usize>>,
    replicas: Vec<usize>,
    leaders: Vec<usize>,
    totals: &'a mut Totals,
    /// How many shards two brokers share.
    pairs: Vec<Vec<usize>>,
}

/// A move that is possible from one broker to another, of one shard.
#[derive(Clone, Copy)]
struct Edge {
    cost: usize,
    shard: usize,
}

impl<'a> Layout<'a> {
    /// `None`: there are fewer brokers than replicas.
    pub(super) fn new(
        sites: &[Site],
        replication_factor: u16,
        totals: &'a mut Totals,
        current: &[&[NodeId]],
    ) -> Option<Self> {
        let mut sites: Vec<&Site> = sites.iter().collect();
        sites.sort_unstable_by_key(|site| site.node);
        let replication_factor = usize::from(replication_factor);
        let names: BTreeSet<Option<&str>> = sites.iter().map(|site| site.rack.as_deref()).collect();
        let racks: Vec<usize> = sites
            .iter()
            .filter_map(|site| names.iter().position(|name| *name == site.rack.as_deref()))
            .collect();
        let cap = rack_cap(&racks, names.len(), replication_factor)?;
        let index: BTreeMap<NodeId, usize> = (0..)
            .zip(&sites)
            .map(|(at, site)| (site.node, at))
            .collect();
        let before: Vec<Vec<usize>> = current
            .iter()
            .map(|nodes| {
                nodes
                    .iter()
                    .filter_map(|node| index.get(node).copied())
                    .collect()
            })
            .collect();
        let count = sites.len();
        let mut layout = Self {
            nodes: sites.iter().map(|site| site.node).collect(),
            racks,
            cap,
            replication_factor,
            now: vec![Vec::new(); before.len()],
            before,
            replicas: vec![0; count],
            leaders: vec![0; count],
            totals,
            pairs: vec![vec![0; count]; count],
        };
        for shard in 0..layout.before.len() {
            for at in layout.before[shard].clone() {
                layout.add(shard, at);
            }
        }
        Some(layout)
    }

    /// The outcome: replicas of each shard, the preferred leader first.
    pub(super) fn replicas(self) -> Vec<Vec<NodeId>> {
        for (total, count) in self.totals.replicas.iter_mut().zip(&self.replicas) {
            *total += count;
        }
        for (total, count) in self.totals.leaders.iter_mut().zip(&self.leaders) {
            *total += count;
        }
        self.now
            .iter()
            .map(|shard| shard.iter().map(|at| self.nodes[*at]).collect())
            .collect()
    }

    /// Makes all the rules hold.
    pub(super) fn settle(&mut self) {
        for shard in 0..self.now.len() {
            self.thin(shard);
        }
        for shard in 0..self.now.len() {
            self.fill(shard);
        }
        self.balance_replicas();
        if self.before.iter().all(Vec::is_empty) {
            self.mix();
        }
        for shard in &self.now {
            if let Some(leader) = shard.first() {
                self.leaders[*leader] += 1;
            }
        }
        self.balance_leaders();
    }

    fn add(&mut self, shard: usize, at: usize) {
        for other in &self.now[shard] {
            self.pairs[*other][at] += 1;
            self.pairs[at][*other] += 1;
        }
        self.now[shard].push(at);
        self.replicas[at] += 1;
    }

    fn remove(&mut self, shard: usize, at: usize) {
        self.now[shard].retain(|other| *other != at);
        self.replicas[at] -= 1;
        for other in &self.now[shard] {
            self.pairs[*other][at] -= 1;
            self.pairs[at][*other] -= 1;
        }
    }

    fn in_rack(&self, shard: usize, rack: usize) -> usize {
        self.now[shard]
            .iter()
            .filter(|at| self.racks[**at] == rack)
            .count()
    }

    /// Takes replicas away that a shard has too many of, or too many of in a rack: not its leader if others will do, and from those with the most.
    fn thin(&mut self, shard: usize) {
        loop {
            let too_many = self.now[shard].len() > self.replication_factor;
            let excess = self.now[shard]
                .iter()
                .enumerate()
                .filter(|(_, at)| too_many || self.in_rack(shard, self.racks[**at]) > self.cap)
                .max_by_key(|(place, at)| (*place > 0, self.replicas[**at]))
                .map(|(_, at)| *at);
            match excess {
                Some(at) => self.remove(shard, at),
                None => return,
            }
        }
    }

    /// Gives a shard the replicas that it lacks, on those with the fewest.
    fn fill(&mut self, shard: usize) {
        while self.now[shard].len() < self.replication_factor {
            let best = (0..self.nodes.len())
                .filter(|at| self.has_room(shard, *at, None))
                .min_by_key(|at| {
                    let shared: usize = self.now[shard]
                        .iter()
                        .map(|other| self.pairs[*other][*at])
                        .sum();
                    (self.replicas[*at], self.totals.replicas[*at], shared)
                });
            match best {
                Some(at) => self.add(shard, at),
                // Not with the cap that the racks have room for.
                None => return,
            }
        }
    }

    /// Whether the shard may have a replica at `to`, instead of the one that it has at `from`.
    fn has_room(&self, shard: usize, to: usize, from: Option<usize>) -> bool {
        let rack = self.racks[to];
        let freed = from.is_some_and(|from| self.racks[from] == rack);
        !self.now[shard].contains(&to) && self.in_rack(shard, rack) < self.cap + usize::from(freed)
    }

    fn balance_replicas(&mut self) {
        // Each round brings the counts closer, and they cannot come closer more often than this.
        for _ in 0..self.rounds() {
            let edges = self.replica_edges();
            let path = cheapest(&edges, |from, to| {
                gain(&self.replicas, &self.totals.replicas, from, to)
            });
            let Some(path) = path else { return };
            let kept = (self.now.clone(), self.replicas.clone(), self.pairs.clone());
            for (from, to, shard) in path {
                let place = self.now[shard].iter().position(|at| *at == from);
                let Some(place) = place.filter(|_| self.has_room(shard, to, Some(from))) else {
                    // Two moves of one shard, each possible, not both.
                    (self.now, self.replicas, self.pairs) = kept;
                    return;
                };
                // It takes the place in the order too: a leader that is moved leads where it goes.
                self.shift((shard, place), to);
            }
        }
    }

    /// Lets shards of a new pool exchange replicas until no exchange makes brokers share more evenly, or it has taken long enough.
    fn mix(&mut self) {
        let mut left = MOST_EXCHANGES;
        let mut better = true;
        while better {
            better = false;
            for one in 0..self.now.len() {
                for other in one + 1..self.now.len() {
                    for pair in 0..self.replication_factor * self.replication_factor {
                        if left == 0 {
                            return;
                        }
                        left -= 1;
                        let (place, at) = (
                            pair / self.replication_factor,
                            pair % self.replication_factor,
                        );
                        better |= self.exchange((one, place), (other, at));
                    }
                }
            }
        }
    }

    /// Exchanges two replicas, if that is allowed and better.
    fn exchange(&mut self, one: (usize, usize), other: (usize, usize)) -> bool {
        let broker = |(shard, place): (usize, usize)| self.now[shard].get(place).copied();
        let (Some(here), Some(there)) = (broker(one), broker(other)) else {
            return false;
        };
        if !self.has_room(one.0, there, Some(here)) || !self.has_room(other.0, here, Some(there)) {
            return false;
        }
        // The sum of the squares of what pairs share, which is least when all share the same, changes by twice the difference.
        let (gone, new) = self.shift(one, there);
        let (gone_too, new_too) = self.shift(other, here);
        if new + new_too < gone + gone_too {
            return true;
        }
        self.shift(one, here);
        self.shift(other, there);
        false
    }

    /// Replaces the broker at a place of a shard; how much the old one shared with the others of the shard before, and the new one does now.
    fn shift(&mut self, (shard, place): (usize, usize), to: usize) -> (usize, usize) {
        let from = self.now[shard][place];
        let before = self.shared(shard, from);
        self.remove(shard, from);
        self.add(shard, to);
        self.now[shard][place..].rotate_right(1);
        (before, self.shared(shard, to))
    }

    /// How many shards `at` shares with the others of this one, in all.
    fn shared(&self, shard: usize, at: usize) -> usize {
        self.now[shard]
            .iter()
            .filter(|other| **other != at)
            .map(|other| self.pairs[*other][at])
            .sum()
    }

    fn replica_edges(&self) -> Vec<Vec<Option<Edge>>> {
        let count = self.nodes.len();
        let mut edges = vec![vec![None; count]; count];
        let mut shares = vec![vec![usize::MAX; count]; count];
        for shard in 0..self.now.len() {
            for from in &self.now[shard] {
                let moved_already = !self.before[shard].contains(from);
                for to in 0..count {
                    if !self.has_room(shard, to, Some(*from)) {
                        continue;
                    }
                    let free = moved_already || self.before[shard].contains(&to);
                    // A leader that moves is more work than a follower.
                    let leads = self.now[shard].first() == Some(from);
                    let cost = if free { 0 } else { 2 + usize::from(leads) };
                    let shared: usize = self.now[shard]
                        .iter()
                        .filter(|other| *other != from)
                        .map(|other| self.pairs[*other][to])
                        .sum();
                    let edge: &mut Option<Edge> = &mut edges[*from][to];
                    let better =
                        edge.is_none_or(|known| (cost, shared) < (known.cost, shares[*from][to]));
                    if better {
                        *edge = Some(Edge { cost, shard });
                        shares[*from][to] = shared;
                    }
                }
            }
        }
        edges
    }

    fn balance_leaders(&mut self) {
        for _ in 0..self.rounds() {
            let edges = self.leader_edges();
            let path = cheapest(&edges, |from, to| {
                gain(&self.leaders, &self.totals.leaders, from, to)
            });
            let Some(path) = path else { return };
            for (from, to, shard) in path {
                if let Some(place) = self.now[shard].iter().position(|at| *at == to) {
                    self.now[shard][..=place].rotate_right(1);
                    self.leaders[from] -= 1;
                    self.leaders[to] += 1;
                }
            }
        }
    }

    fn leader_edges(&self) -> Vec<Vec<Option<Edge>>> {
        let count = self.nodes.len();
        let mut edges = vec![vec![None; count]; count];
        for (shard, (now, before)) in self.now.iter().zip(&self.before).enumerate() {
            let Some((leader, others)) = now.split_first() else {
                continue;
            };
            for to in others {
                let free = before.first() == Some(to) || before.first() != Some(leader);
                let cost = usize::from(!free);
                let edge: &mut Option<Edge> = &mut edges[*leader][*to];
                if edge.is_none_or(|known| cost < known.cost) {
                    *edge = Some(Edge { cost, shard });
                }
            }
        }
        edges
    }

    fn rounds(&self) -> usize {
        let replicas = self.now.len().saturating_mul(self.replication_factor);
        replicas.saturating_mul(4).saturating_add(16)
    }
}

/// The fewest replicas in one rack with which a shard still finds room for all of them. `None`: there are too few brokers.
fn rack_cap(racks: &[usize], count: usize, replicas: usize) -> Option<usize> {
    let mut sizes = vec![0; count];
    for rack in racks {
        sizes[*rack] += 1;
    }
    (1..=replicas).find(|cap| {
        let room: usize = sizes.iter().map(|size: &usize| (*size).min(*cap)).sum();
        room >= replicas
    })
}

/// How much better it gets by one less at `from` and one more at `to`: within the pool, then over all pools. `None`: it does not.
fn gain(counts: &[usize], totals: &[usize], from: usize, to: usize) -> Option<(usize, usize)> {
    let difference = counts[from].checked_sub(counts[to])?;
    let all = |at: usize| counts[at] + totals[at];
    match difference {
        0 => None,
        1 => all(from)
            .checked_sub(all(to))
            .filter(|total| *total >= 2)
            .map(|total| (1, total)),
        _ => Some((difference, 0)),
    }
}

/// The cheapest way to bring something from where there is too much to where there is too little, as moves in the order in which they are possible.
fn cheapest(
    edges: &[Vec<Option<Edge>>],
    gain: impl Fn(usize, usize) -> Option<(usize, usize)>,
) -> Option<Vec<(usize, usize, usize)>> {
    let count = edges.len();
    let mut best = None;
    let mut previous_of_best = Vec::new();
    for start in 0..count {
        if (0..count).all(|end| gain(start, end).is_none()) {
            continue;
        }
        let (cost, previous) = distances(edges, start);
        let found = (0..count)
            .filter_map(|end| {
                let gain = gain(start, end)?;
                Some((cost[end]?, Reverse(gain), start, end))
            })
            .min();
        if let Some(found) = found
            && best.is_none_or(|known| found < known)
        {
            best = Some(found);
            previous_of_best = previous;
        }
    }
    let (_, _, start, end) = best?;
    let mut path = Vec::new();
    let mut at = end;
    while at != start {
        let from = previous_of_best[at];
        path.push((from, at, edges[from][at]?.shard));
        at = from;
    }
    Some(path)
}

/// Dijkstra's algorithm: the cost of each broker from `start` and the one before it on the way. A longer way costs a little more than a shorter one.
fn distances(edges: &[Vec<Option<Edge>>], start: usize) -> (Vec<Option<usize>>, Vec<usize>) {
    let count = edges.len();
    let mut cost: Vec<Option<usize>> = vec![None; count];
    let mut previous = vec![start; count];
    let mut done = vec![false; count];
    cost[start] = Some(0);
    loop {
        let next = (0..count)
            .filter(|at| !done[*at])
            .filter_map(|at| cost[at].map(|cost| (cost, at)))
            .min();
        let Some((so_far, from)) = next else {
            return (cost, previous);
        };
        done[from] = true;
        for (to, edge) in edges[from].iter().enumerate() {
            let Some(edge) = edge else { continue };
            let through = so_far + edge.cost * count + 1;
            if !done[to] && cost[to].is_none_or(|known| through < known) {
                cost[to] = Some(through);
                previous[to] = from;
            }
        }
    }
}
