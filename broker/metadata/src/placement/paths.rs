//! Ways from broker to broker along moves that are possible.

use std::cmp::Reverse;

/// A move that is possible from one broker to another, of one shard.
#[derive(Clone, Copy)]
pub(super) struct Edge {
    pub(super) cost: isize,
    pub(super) shard: usize,
}

/// One move of a way. Without a shard nothing moves: one of the two has one more than the other, and the other may as well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) shard: Option<usize>,
}

/// How much better it gets by one less at `from` and one more at `to`: within the pool, then over all pools. `None`: it does not.
pub(super) fn gain(
    counts: &[usize],
    totals: &[usize],
    from: usize,
    to: usize,
) -> Option<(usize, usize)> {
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

/// The shortest way to bring something from where there is too much to where there is too little, the cheapest of those; the last move first, so that each is
/// possible when it is made.
pub(super) fn cheapest(
    edges: &[Vec<Option<Edge>>],
    gain: impl Fn(usize, usize) -> Option<(usize, usize)>,
) -> Option<Vec<Step>> {
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
        path.push(Step {
            from,
            to: at,
            shard: Some(edges[from][at]?.shard),
        });
        at = from;
    }
    Some(path)
}

/// What a way costs: its moves, then what they cost.
type Cost = (usize, isize);

/// Dijkstra's algorithm: what it costs to get to each broker from `start`, and the broker before it on the way.
fn distances(edges: &[Vec<Option<Edge>>], start: usize) -> (Vec<Option<Cost>>, Vec<usize>) {
    let count = edges.len();
    let mut cost: Vec<Option<Cost>> = vec![None; count];
    let mut previous = vec![start; count];
    let mut done = vec![false; count];
    cost[start] = Some((0, 0));
    loop {
        let next = (0..count)
            .filter(|at| !done[*at])
            .filter_map(|at| cost[at].map(|cost| (cost, at)))
            .min();
        let Some(((moves, so_far), from)) = next else {
            return (cost, previous);
        };
        done[from] = true;
        for (to, edge) in edges[from].iter().enumerate() {
            let Some(edge) = edge else { continue };
            let through = (moves + 1, so_far + edge.cost);
            if !done[to] && cost[to].is_none_or(|known| through < known) {
                cost[to] = Some(through);
                previous[to] = from;
            }
        }
    }
}

/// A round of moves, from a broker back to it, that costs less than nothing (Bellman and Ford's algorithm). `even(from, to)`: it is as good if `from` has one less
/// and `to` one more, so that a round may go from `to` to `from` without a move.
pub(super) fn saving_round(
    edges: &[Vec<Option<Edge>>],
    even: impl Fn(usize, usize) -> bool,
) -> Option<Vec<Step>> {
    let count = edges.len();
    let step = |from: usize, to: usize| {
        let moved = edges[from][to].map(|edge| (edge.cost, Some(edge.shard)));
        let stays = (from != to && even(to, from)).then_some((0, None));
        moved.into_iter().chain(stays).min_by_key(|(cost, _)| *cost)
    };
    let mut cost = vec![0_isize; count];
    let mut previous: Vec<Option<Step>> = vec![None; count];
    let mut changed = None;
    for _ in 0..=count {
        changed = None;
        for from in 0..count {
            for to in 0..count {
                let Some((more, shard)) = step(from, to) else {
                    continue;
                };
                if cost[from] + more < cost[to] {
                    cost[to] = cost[from] + more;
                    previous[to] = Some(Step { from, to, shard });
                    changed = Some(to);
                }
            }
        }
        changed?;
    }
    // What still gets cheaper after as many rounds as there are brokers comes from such a round of moves: that many steps back one is within it.
    let mut at = changed?;
    for _ in 0..count {
        at = previous[at]?.from;
    }
    let mut round = Vec::new();
    let begin = at;
    loop {
        let step = previous[at]?;
        round.push(step);
        at = step.from;
        if at == begin {
            round.reverse();
            return Some(round);
        }
    }
}
