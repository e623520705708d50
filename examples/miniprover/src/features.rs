//! What the models see: small whole numbers that describe a possible cut, and the state after it.
//!
//! The policy sees each candidate before anything is tried, so its features are cheap. The energy model judges the state
//! that a cut really leads to, so it may look at the result of the propagation.

use crate::branch::{forced, from_children, Forced, FALSE, TRUE, UNKNOWN};
use crate::formula::Formula;
use crate::model::MAX_FEATURE;

pub const POLICY_FEATURES: usize = 19;
pub const ENERGY_FEATURES: usize = 12;

fn clip(value: usize) -> u8 {
    value.min(usize::from(MAX_FEATURE)) as u8
}

/// Features in the trace files: one character each.
pub fn encode(features: &[u8]) -> String {
    features.iter().map(|f| char::from_digit(u32::from(*f), 36).unwrap_or('z')).collect()
}

pub fn decode(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| c.to_digit(36).map(|d| d as u8)).collect()
}

/// Whether a compound has a value that its children do not yet justify: there is work left to do on it.
fn active(formula: &Formula, values: &[u8], j: usize) -> bool {
    values[j] != UNKNOWN && from_children(formula, values, j).is_some_and(|value| value != values[j])
}

/// How many values the triples around `i` would force at once if it had `value`.
fn pull(formula: &Formula, values: &mut [u8], i: usize, value: u8) -> usize {
    values[i] = value;
    let mut count = 0;
    for &j in std::iter::once(&i).chain(&formula.parents[i]) {
        count += match forced(formula, values, j) {
            Some((Forced::Contradiction, _)) => 4,
            Some((Forced::Values(new), _)) => new.iter().filter(|v| **v != UNKNOWN).count(),
            None => 0,
        };
    }
    values[i] = UNKNOWN;
    count
}

/// The subformulas that a cut may use on this branch, with one feature vector each.
pub fn candidates(formula: &Formula, values: &[u8], open_branches: usize) -> Vec<(usize, [u8; POLICY_FEATURES])> {
    let mut values = values.to_vec();
    let is_active: Vec<bool> = (0..formula.len()).map(|j| active(formula, &values, j)).collect();
    let unknown: Vec<usize> = (0..formula.len()).filter(|i| values[*i] == UNKNOWN).collect();
    let unknown_atoms = formula.atoms.iter().filter(|a| values[**a] == UNKNOWN).count();
    let mut rows = Vec::with_capacity(unknown.len());
    let (mut best_sum, mut best_product) = (0, 0);
    for i in unknown {
        let (up, down) = (pull(formula, &mut values, i, TRUE), pull(formula, &mut values, i, FALSE));
        best_sum = best_sum.max(up + down);
        best_product = best_product.max(up * down);
        let parents = &formula.parents[i];
        let active_parents = parents.iter().filter(|j| is_active[**j]).count();
        let open_parents = parents.iter().filter(|j| values[**j] == UNKNOWN).count();
        let mut row = [0; POLICY_FEATURES];
        match formula.compound(i) {
            None => row[0] = 8,
            Some((op, a, b)) => {
                row[1 + op as usize] = 8;
                row[6] = 4 * (u8::from(values[a] == UNKNOWN) + u8::from(values[b] == UNKNOWN));
            }
        }
        row[7] = clip(formula.sizes[i]);
        row[8] = clip(2 * parents.len());
        row[9] = clip(4 * active_parents);
        row[10] = clip(2 * open_parents);
        row[11] = clip(4 * up);
        row[12] = clip(4 * down);
        row[13] = clip(2 * up.min(down));
        row[14] = clip(up * down);
        row[15] = clip(2 * unknown_atoms);
        row[16] = clip(4 * open_branches);
        rows.push((i, row, up + down, up * down));
    }
    // How a candidate stands among the others says more than its plain numbers.
    rows.into_iter()
        .map(|(i, mut row, sum, product)| {
            row[17] = clip(4 * (best_sum - sum));
            row[18] = clip(best_product - product);
            (i, row)
        })
        .collect()
}

/// What the energy model adds up over the open branches of a state.
#[derive(Clone, Copy, Debug, Default)]
pub struct BranchSummary {
    pub unknown_atoms: usize,
    pub unknown: usize,
    pub active: usize,
    pub depth: usize,
}

impl BranchSummary {
    pub fn of(formula: &Formula, values: &[u8], depth: usize) -> BranchSummary {
        BranchSummary {
            unknown_atoms: formula.atoms.iter().filter(|a| values[**a] == UNKNOWN).count(),
            unknown: values.iter().filter(|v| **v == UNKNOWN).count(),
            active: (0..formula.len()).filter(|j| active(formula, values, *j)).count(),
            depth,
        }
    }
}

/// Running totals over a stack of open branches.
#[derive(Clone, Copy, Debug, Default)]
pub struct StackSummary {
    pub branches: usize,
    pub unknown_atoms: usize,
    pub active: usize,
    pub depth: usize,
    /// Sum of 2^(unknown atoms): no more leaves than this can follow.
    pub leaves: u64,
}

impl StackSummary {
    pub fn push(self, branch: &BranchSummary) -> StackSummary {
        StackSummary {
            branches: self.branches + 1,
            unknown_atoms: self.unknown_atoms + branch.unknown_atoms,
            active: self.active + branch.active,
            depth: self.depth + branch.depth,
            leaves: self.leaves.saturating_add(1 << branch.unknown_atoms.min(40)),
        }
    }
}

/// The energy model's view of a state: its open branches, and the one on top that comes next.
pub fn energy_features(formula: &Formula, top: &BranchSummary, all: &StackSummary) -> [u8; ENERGY_FEATURES] {
    let log2 = |x: u64| (64 - x.leading_zeros()) as usize;
    [
        clip(4 * all.branches),
        clip(2 * top.unknown_atoms),
        clip(top.unknown),
        clip(top.active),
        clip(4 * top.depth),
        clip(all.unknown_atoms),
        clip(all.active / 2),
        clip(2 * log2(all.leaves)),
        clip(all.depth),
        clip(2 * formula.atoms.len()),
        clip(formula.len() / 4),
        clip(2 * all.active / all.branches),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::assume;

    #[test]
    fn only_subformulas_without_a_value_are_candidates() {
        let f = Formula::parse("(p | q) & (p -> r) & (q -> r) -> r").unwrap();
        let mut values = vec![UNKNOWN; f.len()];
        assume(&f, &mut values, f.root(), FALSE);
        assert!(candidates(&f, &values, 1).is_empty(), "propagation alone closes this one");

        let f = Formula::parse("(p | q) & (p -> r | s) & (q -> s | r) -> r | s & t").unwrap();
        let mut values = vec![UNKNOWN; f.len()];
        assume(&f, &mut values, f.root(), FALSE);
        let found: Vec<usize> = candidates(&f, &values, 1).iter().map(|(i, _)| *i).collect();
        assert!(found.contains(&f.atoms[0]) && found.iter().all(|i| values[*i] == UNKNOWN));
    }

    #[test]
    fn features_survive_the_trace_format() {
        let row: Vec<u8> = (0..=MAX_FEATURE).collect();
        assert_eq!(decode(&encode(&row)), Some(row));
        assert_eq!(decode("0!"), None);
    }
}
