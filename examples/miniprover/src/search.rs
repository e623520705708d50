//! Best-first search over whole tableaux.
//!
//! A state is the stack of branches that are still open. A move cuts the top branch on one of its undetermined
//! subformulas. The policy proposes the moves and gives each a log-probability; the energy model judges the states that
//! they lead to. The state with the highest `sum of log-probabilities − energy` is expanded next. A node is one
//! expansion, and the budget counts nodes, never time: a slow machine proves exactly what a fast one does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::rc::Rc;

use crate::branch::{assume, Propagation, Step, Values, FALSE, TRUE, UNKNOWN};
use crate::features::{candidates, encode, energy_features, BranchSummary, StackSummary, POLICY_FEATURES};
use crate::formula::{Formula, Kind};
use crate::model::{LogSoftmax, Model};

/// Moves kept per expansion, best first.
pub const WIDTH: usize = 8;
/// Off-path states that a trace keeps beside each state on the path to the proof.
const NEGATIVES: usize = 16;

/// The learned guidance; without a model, all moves are equally likely and all states equally good.
#[derive(Debug)]
pub struct Guide {
    pub policy: Option<Model>,
    pub energy: Option<Model>,
    pub softmax: LogSoftmax,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Proved { proof: String, cuts: usize },
    Refuted { countermodel: String },
    Unknown,
}

/// What became of one formula. `trace` is the training material: JSON of the steps to the proof, when there is one.
#[derive(Debug)]
pub struct Found {
    pub outcome: Outcome,
    pub nodes: usize,
    pub trace: Option<String>,
}

/// A stack of open branches, shared between states. Equal stacks get one number, so that number identifies a state.
struct Stack {
    values: Rc<Values>,
    summary: BranchSummary,
    below: Option<usize>,
    all: StackSummary,
}

/// A state in the search tree: how it was reached, and what it scores.
struct Node {
    stack: Option<usize>,
    parent: usize,
    cut: usize,
    log_probability: i64,
    energy_features: String,
    expanded: bool,
}

struct Search<'a> {
    formula: &'a Formula,
    guide: &'a Guide,
    stacks: Vec<Stack>,
    known: HashMap<(Rc<Values>, Option<usize>), usize>,
    /// The stacks that are states in the tree already.
    reached: HashSet<usize>,
    nodes: Vec<Node>,
    queue: BinaryHeap<(i64, Reverse<usize>)>,
}

/// Looks for a proof or a countermodel of `formula` within `budget` expansions.
pub fn search(formula: &Formula, guide: &Guide, budget: usize) -> Found {
    let mut values: Values = vec![UNKNOWN; formula.len()].into();
    let first = assume(formula, &mut values, formula.root(), FALSE);
    if first.closed_by.is_some() {
        return proved(formula, &[], None);
    }
    if complete(&values) {
        return refuted(formula, &values);
    }
    let mut search = Search {
        formula,
        guide,
        stacks: Vec::new(),
        known: HashMap::new(),
        reached: HashSet::new(),
        nodes: Vec::new(),
        queue: BinaryHeap::new(),
    };
    let start = search.push(values, 0, None);
    search.reached.insert(start);
    search.add(Some(start), 0, 0, 0);
    search.run(budget)
}

fn complete(values: &[u8]) -> bool {
    values.iter().all(|v| *v != UNKNOWN)
}

impl Search<'_> {
    fn run(mut self, budget: usize) -> Found {
        let mut expanded = 0;
        while expanded < budget {
            let Some((_, Reverse(current))) = self.queue.pop() else {
                break;
            };
            expanded += 1;
            if let Some(mut found) = self.expand(current) {
                found.nodes = expanded;
                return found;
            }
        }
        Found { outcome: Outcome::Unknown, nodes: expanded, trace: None }
    }

    /// The number of the stack with this branch on top.
    fn push(&mut self, values: Values, depth: usize, below: Option<usize>) -> usize {
        let values = Rc::new(values);
        if let Some(number) = self.known.get(&(values.clone(), below)) {
            return *number;
        }
        let summary = BranchSummary::of(self.formula, &values, depth);
        let all = below.map_or_else(StackSummary::default, |b| self.stacks[b].all).push(&summary);
        let number = self.stacks.len();
        self.known.insert((values.clone(), below), number);
        self.stacks.push(Stack { values, summary, below, all });
        number
    }

    /// Adds a state to the tree and, unless it is the goal, to the queue.
    fn add(&mut self, stack: Option<usize>, parent: usize, cut: usize, log_probability: i64) -> usize {
        let number = self.nodes.len();
        let mut text = String::new();
        if let Some(stack) = stack {
            let stack = &self.stacks[stack];
            let features = energy_features(self.formula, &stack.summary, &stack.all);
            let energy = self.guide.energy.as_ref().map_or(0, |model| model.score(&features));
            self.queue.push((log_probability - energy, Reverse(number)));
            text = encode(&features);
        }
        self.nodes.push(Node { stack, parent, cut, log_probability, energy_features: text, expanded: false });
        number
    }

    /// The moves on the top branch, most likely first, each with its log-probability.
    fn moves(&self, values: &[u8], branches: usize) -> Vec<(usize, i64)> {
        let rows = candidates(self.formula, values, branches);
        let mut scores: Vec<i64> =
            rows.iter().map(|(_, row)| self.guide.policy.as_ref().map_or(0, |model| model.score(row))).collect();
        self.guide.softmax.apply(&mut scores);
        let mut moves: Vec<(usize, i64)> = rows.iter().map(|(i, _)| *i).zip(scores).collect();
        moves.sort_by_key(|(i, score)| (Reverse(*score), *i));
        moves.truncate(WIDTH);
        moves
    }

    fn expand(&mut self, current: usize) -> Option<Found> {
        let stack = self.nodes[current].stack?;
        let (values, depth, below, branches) = {
            let top = &self.stacks[stack];
            (top.values.clone(), top.summary.depth + 1, top.below, top.all.branches)
        };
        let log_probability = self.nodes[current].log_probability;
        self.nodes[current].expanded = true;
        for (cut, log_p) in self.moves(&values, branches) {
            let mut next = below;
            // The branch with the cut formula true has to be on top: proofs list it first.
            for value in [FALSE, TRUE] {
                let mut half = Values::clone(&values);
                if assume(self.formula, &mut half, cut, value).closed_by.is_some() {
                    continue;
                }
                if complete(&half) {
                    return Some(refuted(self.formula, &half));
                }
                next = Some(self.push(half, depth, next));
            }
            if next.is_some_and(|stack| !self.reached.insert(stack)) {
                continue;
            }
            let child = self.add(next, current, cut, log_probability + log_p);
            if next.is_none() {
                return Some(self.success(child));
            }
        }
        None
    }

    /// Collects proof and training material from the path to the goal.
    fn success(&self, goal: usize) -> Found {
        let mut path = Vec::new();
        let mut node = goal;
        while node != 0 {
            path.push(node);
            node = self.nodes[node].parent;
        }
        path.reverse();
        let cuts: Vec<usize> = path.iter().map(|n| self.nodes[*n].cut).collect();
        let steps: Vec<String> = path.iter().filter_map(|n| self.trace_step(*n, &path)).collect();
        proved(self.formula, &cuts, Some(format!("[{}]", steps.join(","))))
    }

    /// One step of the trace: what the policy could choose from and did, what the energy model should prefer to what.
    fn trace_step(&self, node: usize, path: &[usize]) -> Option<String> {
        let parent = self.nodes[node].parent;
        let stack = &self.stacks[self.nodes[parent].stack?];
        let rows: Vec<(usize, [u8; POLICY_FEATURES])> = candidates(self.formula, &stack.values, stack.all.branches);
        let chosen = rows.iter().position(|(i, _)| *i == self.nodes[node].cut)?;
        let rows: Vec<String> = rows.iter().map(|(_, row)| format!("\"{}\"", encode(row))).collect();
        // The hardest comparisons first: what was expanded in vain, then what else the same expansion proposed.
        let off_path = |n: &usize| !path.contains(n) && *n != 0;
        let expanded: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].expanded).filter(off_path).collect();
        let siblings = (0..self.nodes.len()).filter(|n| self.nodes[*n].parent == parent).filter(off_path);
        let every = expanded.len().div_ceil(NEGATIVES / 2).max(1);
        let negatives: Vec<String> = siblings
            .take(NEGATIVES / 2)
            .chain(expanded.iter().copied().step_by(every))
            .map(|n| format!("\"{}\"", self.nodes[n].energy_features))
            .collect();
        Some(format!(
            "{{\"x\":[{}],\"y\":{chosen},\"pos\":\"{}\",\"neg\":[{}]}}",
            rows.join(","),
            self.nodes[node].energy_features,
            negatives.join(",")
        ))
    }
}

fn refuted(formula: &Formula, values: &[u8]) -> Found {
    let literals: Vec<String> = formula
        .atoms
        .iter()
        .map(|i| match &formula.nodes[*i] {
            Kind::Atom(name) if values[*i] == TRUE => name.clone(),
            Kind::Atom(name) => format!("~{name}"),
            Kind::Compound(..) => unreachable!("atoms lists atoms only"),
        })
        .collect();
    Found { outcome: Outcome::Refuted { countermodel: literals.join(" ") }, nodes: 0, trace: None }
}

/// Writes the proof that cuts on `cuts`, in the order in which the branches were taken from the stack.
fn proved(formula: &Formula, cuts: &[usize], trace: Option<String>) -> Found {
    let mut values: Values = vec![UNKNOWN; formula.len()].into();
    let mut tokens = Vec::new();
    let mut waiting: Vec<(Values, usize)> = Vec::new();
    let mut cuts_left = cuts.iter();
    let mut assumption = (formula.root(), FALSE);
    loop {
        let done = assume(formula, &mut values, assumption.0, assumption.1);
        tokens.extend(written(formula, &done));
        if done.closed_by.is_some() {
            let Some((branch, cut)) = waiting.pop() else {
                break;
            };
            values = branch;
            assumption = (cut, FALSE);
        } else {
            let cut = *cuts_left.next().expect("every open branch on the path was cut");
            tokens.push(format!("c{cut}"));
            waiting.push((values.clone(), cut));
            assumption = (cut, TRUE);
        }
    }
    Found { outcome: Outcome::Proved { proof: tokens.join(" "), cuts: cuts.len() }, nodes: 0, trace }
}

/// The inferences that lead to the contradiction, or all of them when the branch stays open.
fn written(formula: &Formula, done: &Propagation) -> Vec<String> {
    let token = |s: &Step| format!("{}{}:{}", if s.value == TRUE { '+' } else { '-' }, s.formula, s.by);
    let Some(last) = done.closed_by else {
        return done.steps.iter().map(token).collect();
    };
    let mut needed = vec![false; formula.len()];
    let need = |j: usize, needed: &mut Vec<bool>| {
        let (_, a, b) = formula.compound(j).expect("only compounds force values");
        for i in [j, a, b] {
            needed[i] = true;
        }
    };
    need(last, &mut needed);
    let mut tokens = vec![format!("x{last}")];
    for step in done.steps.iter().rev() {
        if needed[step.formula] {
            need(step.by, &mut needed);
            tokens.push(token(step));
        }
    }
    tokens.reverse();
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{check_countermodel, check_proof};

    fn unguided(text: &str, budget: usize) -> (Formula, Found) {
        let formula = Formula::parse(text).unwrap();
        let guide = Guide { policy: None, energy: None, softmax: LogSoftmax::new() };
        let found = search(&formula, &guide, budget);
        (formula, found)
    }

    #[test]
    fn theorems_get_proofs_that_the_checker_accepts() {
        for text in [
            "p | ~p",
            "(p <-> q) | (p <-> r) | (q <-> r)",
            "((p | q) & (~p | q) & (p | ~q)) -> ~(~p | ~q)",
            "(p | q -> p | r) -> p | (q -> r)",
            "(p & (q -> r) -> s) <-> (~p | q | s) & (~p | ~r | s)",
        ] {
            let (formula, found) = unguided(text, 600);
            let Outcome::Proved { proof, cuts } = found.outcome else {
                panic!("{text}: {:?}", found.outcome);
            };
            assert_eq!(check_proof(&formula, &proof), Ok(cuts), "{text}: {proof}");
        }
    }

    #[test]
    fn non_theorems_get_countermodels() {
        for text in ["p", "p & ~p", "(p -> q) -> (q -> p)", "(p | q) & (q | r) -> (p <-> r)"] {
            let (formula, found) = unguided(text, 600);
            let Outcome::Refuted { countermodel } = found.outcome else {
                panic!("{text}: {:?}", found.outcome);
            };
            assert_eq!(check_countermodel(&formula, &countermodel), Ok(()), "{text}");
        }
    }

    #[test]
    fn the_budget_counts_expansions() {
        let php = "(a1|a2) & (b1|b2) & (c1|c2) -> (a1&b1) | (a1&c1) | (b1&c1) | (a2&b2) | (a2&c2) | (b2&c2)";
        let (_, found) = unguided(php, 0);
        assert_eq!((found.outcome, found.nodes), (Outcome::Unknown, 0));
        let (_, found) = unguided(php, 600);
        assert!(matches!(found.outcome, Outcome::Proved { .. }) && found.nodes > 0);
        let trace = found.trace.unwrap();
        assert!(trace.starts_with("[{\"x\":[\"") && trace.contains("\"neg\":["));
    }
}
