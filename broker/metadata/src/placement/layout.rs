//! One pool while it is being placed: brokers are indexes here, and a shard is the list of its brokers, the leader first.

use std::collections::{BTreeMap, BTreeSet};

use palisade_shard::NodeId;

use super::{
    Site,
    paths::{Edge, Step, cheapest, gain, saving_round},
};

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
const MOST_EXCHANGES: usize = 1 << 18;

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
        self.save_moves();
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
            // A shortest path moves no shard from one rack to another twice, so that its moves are possible together as they are one by one.
            if !self.follow(&path) {
                return;
            }
        }
    }

    /// Finds moves that can be spared: rounds of moves after which all have as many as before, but more replicas are where they were.
    fn save_moves(&mut self) {
        for _ in 0..self.rounds() {
            let round = saving_round(&self.saving_edges(), |from, to| {
                let all = |at: usize| self.replicas[at] + self.totals.replicas[at];
                self.replicas[from] == self.replicas[to] + 1 && all(from) == all(to) + 1
            });
            if !round.is_some_and(|round| self.turn(round)) {
                return;
            }
        }
    }

    /// Makes the moves of a round, or of the part of it that is possible and spares moves.
    fn turn(&mut self, mut round: Vec<Step>) -> bool {
        while !self.follow(&round) {
            // Some shard would go from rack to rack twice: let it go there at once, which leaves two shorter rounds.
            let twice = (0..round.len()).find_map(|later| {
                let shard = round[later].shard?;
                (0..later)
                    .find(|sooner| round[*sooner].shard == Some(shard))
                    .map(|sooner| (sooner, later, shard))
            });
            let Some((sooner, later, shard)) = twice else {
                return false;
            };
            let step = |from, to| Step {
                from,
                to,
                shard: Some(shard),
            };
            let mut inner = round.split_off(sooner);
            let outer_end = inner.split_off(later - sooner + 1);
            let (first, last) = (inner[0], inner[later - sooner]);
            round.push(step(first.from, last.to));
            round.extend(outer_end);
            inner.pop();
            inner[0] = step(last.from, first.to);
            if self.cost(&round) >= 0 {
                round = inner;
            }
            if self.cost(&round) >= 0 {
                return false;
            }
        }
        true
    }

    /// How many more replicas are not where they were after these moves.
    fn cost(&self, steps: &[Step]) -> isize {
        let home = |shard: usize, at: usize| isize::from(self.before[shard].contains(&at));
        steps
            .iter()
            .filter_map(|step| {
                let shard = step.shard?;
                Some(home(shard, step.from) - home(shard, step.to))
            })
            .sum()
    }

    /// Makes these moves, all or none.
    fn follow(&mut self, steps: &[Step]) -> bool {
        let kept = (self.now.clone(), self.replicas.clone(), self.pairs.clone());
        for step in steps {
            let Some(shard) = step.shard else { continue };
            // It takes the place in the order too: a leader that is moved leads where it goes.
            if let Some(place) = self.now[shard].iter().position(|at| *at == step.from) {
                self.shift((shard, place), step.to);
            }
        }
        let good = steps.iter().filter_map(|step| step.shard).all(|shard| {
            let distinct: BTreeSet<usize> = self.now[shard].iter().copied().collect();
            distinct.len() == self.replication_factor
                && distinct
                    .iter()
                    .all(|at| self.in_rack(shard, self.racks[*at]) <= self.cap)
        });
        if !good {
            (self.now, self.replicas, self.pairs) = kept;
        }
        good
    }

    /// Moves by what they spare.
    fn saving_edges(&self) -> Vec<Vec<Option<Edge>>> {
        self.edges(|shard, from, to| {
            let home = |at: usize| isize::from(self.before[shard].contains(&at));
            // A leader that moves is more work than a follower, which only counts between moves that are alike.
            let leads = usize::from(self.now[shard].first() == Some(&from));
            (home(from) - home(to), leads)
        })
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

    /// Moves by what they cost, and among those by how little the others of the shard have in common with the new one.
    fn replica_edges(&self) -> Vec<Vec<Option<Edge>>> {
        self.edges(|shard, from, to| {
            let free = !self.before[shard].contains(&from) || self.before[shard].contains(&to);
            let leads = self.now[shard].first() == Some(&from);
            let cost = if free { 0 } else { 2 + isize::from(leads) };
            let shared = self.now[shard]
                .iter()
                .filter(|other| **other != from)
                .map(|other| self.pairs[*other][to])
                .sum();
            (cost, shared)
        })
    }

    /// For each two brokers the shard that is best moved from one to the other.
    fn edges(
        &self,
        rank: impl Fn(usize, usize, usize) -> (isize, usize),
    ) -> Vec<Vec<Option<Edge>>> {
        let count = self.nodes.len();
        let mut edges = vec![vec![None; count]; count];
        let mut ranks = vec![vec![(isize::MAX, usize::MAX); count]; count];
        for shard in 0..self.now.len() {
            for from in self.now[shard].iter().copied() {
                for to in 0..count {
                    if !self.has_room(shard, to, Some(from)) {
                        continue;
                    }
                    let found = rank(shard, from, to);
                    if found < ranks[from][to] {
                        ranks[from][to] = found;
                        edges[from][to] = Some(Edge {
                            cost: found.0,
                            shard,
                        });
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
            for step in path {
                let Some(shard) = step.shard else { continue };
                if let Some(place) = self.now[shard].iter().position(|at| *at == step.to) {
                    self.now[shard][..=place].rotate_right(1);
                    self.leaders[step.from] -= 1;
                    self.leaders[step.to] += 1;
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
                let cost = isize::from(!free);
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
