//! One branch of a tableau: what is known to be true or false, and everything that follows without a case split.
//!
//! The calculus is a KE tableau with the "simple rules" of Stålmarck's method. A compound `j = a ∘ b` ties three truth
//! values together; whenever the known ones leave a third only one value, that value is added. Only the cut (assume a
//! subformula true on one branch, false on the other) splits, so *which subformula to cut on* is the one real choice.

use std::sync::OnceLock;

use crate::formula::{Formula, Op};

/// A truth value on a branch. The numbers index the rule table.
pub const UNKNOWN: u8 = 0;
pub const TRUE: u8 = 1;
pub const FALSE: u8 = 2;

/// What one triple `(j, a, b)` forces: the new values in that order (`UNKNOWN`: nothing new), or a contradiction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    Values([u8; 3]),
    Contradiction,
}

/// One inference: `formula` has `value` because of the triple of the compound `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub formula: usize,
    pub value: u8,
    pub by: usize,
}

/// What propagation did: the inferences in order, and the compound whose triple cannot be satisfied, if one can't.
#[derive(Debug, Default)]
pub struct Propagation {
    pub steps: Vec<Step>,
    pub closed_by: Option<usize>,
}

/// The values of all subformulas on a branch, by subformula number.
pub type Values = Box<[u8]>;

fn table_index(op: Op, j: u8, a: u8, b: u8) -> usize {
    (op as usize * 27) + usize::from(j) * 9 + usize::from(a) * 3 + usize::from(b)
}

fn rule_table() -> &'static [Forced; 135] {
    static TABLE: OnceLock<[Forced; 135]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = [Forced::Contradiction; 135];
        for op in [Op::Not, Op::And, Op::Or, Op::Implies, Op::Iff] {
            for j in [UNKNOWN, TRUE, FALSE] {
                for a in [UNKNOWN, TRUE, FALSE] {
                    for b in [UNKNOWN, TRUE, FALSE] {
                        table[table_index(op, j, a, b)] = force(op, [j, a, b]);
                    }
                }
            }
        }
        table
    })
}

/// Computes one entry of the table by trying every completion of the triple.
fn force(op: Op, known: [u8; 3]) -> Forced {
    let truth = |value: bool| if value { TRUE } else { FALSE };
    let mut possible: Vec<[u8; 3]> = Vec::new();
    for (a, b) in [(true, true), (true, false), (false, true), (false, false)] {
        let row = [truth(op.apply(a, b)), truth(a), truth(b)];
        let agrees = known.iter().zip(row).all(|(k, r)| *k == UNKNOWN || *k == r);
        if agrees && (op != Op::Not || a == b) {
            possible.push(row);
        }
    }
    let Some(first) = possible.first().copied() else {
        return Forced::Contradiction;
    };
    let mut forced = [UNKNOWN; 3];
    for i in 0..3 {
        if known[i] == UNKNOWN && possible.iter().all(|row| row[i] == first[i]) {
            forced[i] = first[i];
        }
    }
    Forced::Values(forced)
}

/// What the compound `j` forces on a branch.
pub fn forced(formula: &Formula, values: &[u8], j: usize) -> Option<(Forced, [usize; 3])> {
    let (op, a, b) = formula.compound(j)?;
    Some((rule_table()[table_index(op, values[j], values[a], values[b])], [j, a, b]))
}

/// The value that the children of compound `j` give it, whatever value it has; `None` for an atom.
pub fn from_children(formula: &Formula, values: &[u8], j: usize) -> Option<u8> {
    let (op, a, b) = formula.compound(j)?;
    match rule_table()[table_index(op, UNKNOWN, values[a], values[b])] {
        Forced::Values(new) => Some(new[0]),
        Forced::Contradiction => Some(UNKNOWN),
    }
}

/// Sets `formula_number` to `value` and adds everything that follows by the triples.
pub fn assume(formula: &Formula, values: &mut [u8], formula_number: usize, value: u8) -> Propagation {
    let mut result = Propagation::default();
    values[formula_number] = value;
    let mut queue = vec![formula_number];
    let mut next = 0;
    while next < queue.len() {
        let changed = queue[next];
        next += 1;
        for &j in std::iter::once(&changed).chain(&formula.parents[changed]) {
            match forced(formula, values, j) {
                None => {}
                Some((Forced::Contradiction, _)) => {
                    result.closed_by = Some(j);
                    return result;
                }
                Some((Forced::Values(new), places)) => {
                    for (place, value) in places.into_iter().zip(new) {
                        if value != UNKNOWN && values[place] == UNKNOWN {
                            values[place] = value;
                            result.steps.push(Step { formula: place, value, by: j });
                            queue.push(place);
                        }
                    }
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modus_ponens_and_contraposition_need_no_cut() {
        for text in ["(p -> q) & p -> q", "(p -> q) & ~q -> ~p", "~(p | q) -> ~p & ~q", "p -> p"] {
            let f = Formula::parse(text).unwrap();
            let mut values = vec![UNKNOWN; f.len()];
            let done = assume(&f, &mut values, f.root(), FALSE);
            assert!(done.closed_by.is_some(), "{text}");
        }
    }

    #[test]
    fn a_case_distinction_needs_a_cut() {
        let f = Formula::parse("(p | q) & (p -> r) & (q -> r) & (r -> s | t) -> s | t & r | p & q").unwrap();
        let mut values = vec![UNKNOWN; f.len()];
        assert_eq!(assume(&f, &mut values, f.root(), FALSE).closed_by, None);
        assert_eq!(values[f.root()], FALSE);
    }

    #[test]
    fn every_forced_value_agrees_with_the_truth_table() {
        // (T, T, ?) for a conjunction forces the second child; (T, F, ?) contradicts.
        assert_eq!(force(Op::And, [TRUE, TRUE, UNKNOWN]), Forced::Values([UNKNOWN, UNKNOWN, TRUE]));
        assert_eq!(force(Op::And, [TRUE, FALSE, UNKNOWN]), Forced::Contradiction);
        assert_eq!(force(Op::Or, [TRUE, UNKNOWN, UNKNOWN]), Forced::Values([UNKNOWN; 3]));
        assert_eq!(force(Op::Iff, [UNKNOWN, TRUE, FALSE]), Forced::Values([FALSE, UNKNOWN, UNKNOWN]));
        assert_eq!(force(Op::Not, [TRUE, UNKNOWN, UNKNOWN]), Forced::Values([UNKNOWN, FALSE, FALSE]));
    }
}
