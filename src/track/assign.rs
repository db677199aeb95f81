//! The pairs of the largest total weight, each row and column in one pair at most.

use pathfinding::prelude::{Matrix, kuhn_munkres};

/// A row and a column that may be paired.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) row: usize,
    pub(super) column: usize,
    /// What the pair is worth; from above 0 on.
    pub(super) weight: f64,
}

/// Units of weight in 1: whole numbers make the sum exact and the choice the same everywhere.
const UNITS: f64 = 1e6;

/// The rows and columns of the best pairing. Only candidates are paired; groups that share nothing are solved apart, so
/// that a crowd in one corner costs no more than it is.
pub(super) fn best_pairs(
    candidates: &[Candidate],
    rows: usize,
    columns: usize,
) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for group in groups(candidates, rows, columns) {
        match group[..] {
            [only] => pairs.push((only.row, only.column)),
            _ => solve(&group, &mut pairs),
        }
    }
    pairs
}

/// The candidates in groups that have no row or column in common, in the order of their first ones.
fn groups(candidates: &[Candidate], rows: usize, columns: usize) -> Vec<Vec<Candidate>> {
    // A forest over rows, then columns; each names one above it, roots themselves.
    let mut above: Vec<usize> = (0..rows + columns).collect();
    fn root(above: &mut [usize], mut of: usize) -> usize {
        while above[of] != of {
            above[of] = above[above[of]];
            of = above[of];
        }
        of
    }
    for candidate in candidates {
        let row = root(&mut above, candidate.row);
        let column = root(&mut above, rows + candidate.column);
        above[row.max(column)] = row.min(column);
    }
    let mut place = vec![usize::MAX; rows + columns];
    let mut groups: Vec<Vec<Candidate>> = Vec::new();
    for candidate in candidates {
        let root = root(&mut above, candidate.row);
        if place[root] == usize::MAX {
            place[root] = groups.len();
            groups.push(Vec::new());
        }
        groups[place[root]].push(*candidate);
    }
    groups
}

fn solve(group: &[Candidate], pairs: &mut Vec<(usize, usize)>) {
    let distinct = |side: fn(&Candidate) -> usize| {
        let mut all: Vec<usize> = group.iter().map(side).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let (rows, columns) = (distinct(|c| c.row), distinct(|c| c.column));
    // The solver wants no more rows than columns.
    let turned = rows.len() > columns.len();
    let (few, many) = if turned {
        (&columns, &rows)
    } else {
        (&rows, &columns)
    };
    let mut weights = Matrix::new(few.len(), many.len(), 0_i64);
    for candidate in group {
        let at = |all: &[usize], one: usize| all.partition_point(|&other| other < one);
        let (row, column) = (at(&rows, candidate.row), at(&columns, candidate.column));
        let place = if turned { (column, row) } else { (row, column) };
        weights[place] = ((candidate.weight * UNITS) as i64).max(1);
    }
    let (_, chosen) = kuhn_munkres(&weights);
    for (a, b) in chosen.into_iter().enumerate() {
        // Weight 0 is no candidate: what is left over had to go somewhere.
        if weights[(a, b)] > 0 {
            pairs.push(if turned {
                (many[b], few[a])
            } else {
                (few[a], many[b])
            });
        }
    }
}
