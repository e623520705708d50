//! The independent checker: it accepts a proof or a countermodel, or says what is wrong with it.
//!
//! It shares the parser with the prover and nothing else: no rule table, no propagation, no search. Each inference is
//! judged by enumerating truth values. `miniprover/check.py` is a second one that does not even share the parser.
//!
//! A proof is a preorder walk of the tableau, in tokens separated by blanks. It starts from "the formula is false".
//!
//! | token | meaning |
//! | --- | --- |
//! | `+i:j` `-i:j` | subformula `i` is true (false), because compound `j` and its children leave no other value |
//! | `xj` | the branch is closed: compound `j` and its children cannot have the values that they have |
//! | `ci` | cut: the proof goes on with `i` true; when that branch is closed, with `i` false |

use std::collections::HashMap;

use crate::formula::{Formula, Kind};

/// Verifies that `proof` closes every branch; returns the number of cuts.
pub fn check_proof(formula: &Formula, proof: &str) -> Result<usize, String> {
    let mut values: Vec<Option<bool>> = vec![None; formula.len()];
    values[formula.root()] = Some(false);
    // Branches that wait for their turn: the cut formula's second half, on a copy of the values at the cut.
    let mut waiting: Vec<Vec<Option<bool>>> = Vec::new();
    let mut cuts = 0;
    let mut tokens = proof.split_whitespace();
    loop {
        let token = tokens.next().ok_or("the proof ends with an open branch")?;
        let bad = |why: &str| format!("'{token}': {why}");
        let number = |text: &str| -> Result<usize, String> {
            text.parse().ok().filter(|n| *n < formula.len()).ok_or_else(|| bad("no such subformula"))
        };
        match token.split_at_checked(1).ok_or_else(|| bad("not a token"))? {
            ("+" | "-", rest) => {
                let (i, j) = rest.split_once(':').ok_or_else(|| bad("not an inference"))?;
                let (i, j, value) = (number(i)?, number(j)?, token.starts_with('+'));
                if completions(formula, &values, j)?.iter().any(|row| row.get(&i) != Some(&value)) {
                    return Err(bad("does not follow"));
                }
                if values[i] == Some(!value) {
                    return Err(bad("contradicts the branch, which should have been closed"));
                }
                values[i] = Some(value);
            }
            ("c", rest) => {
                let i = number(rest)?;
                if values[i].is_some() {
                    return Err(bad("cut on a subformula that has a value"));
                }
                cuts += 1;
                let mut second = values.clone();
                second[i] = Some(false);
                waiting.push(second);
                values[i] = Some(true);
            }
            ("x", rest) => {
                if !completions(formula, &values, number(rest)?)?.is_empty() {
                    return Err(bad("the branch is not closed"));
                }
                match waiting.pop() {
                    Some(branch) => values = branch,
                    None if tokens.next().is_some() => return Err("text after the end of the proof".to_string()),
                    None => return Ok(cuts),
                }
            }
            _ => return Err(bad("not a token")),
        }
    }
}

/// All values of compound `j` and its children that agree with its truth table and with the branch.
fn completions(formula: &Formula, values: &[Option<bool>], j: usize) -> Result<Vec<HashMap<usize, bool>>, String> {
    let (op, a, b) = formula.compound(j).ok_or_else(|| format!("subformula {j} is an atom"))?;
    let mut rows = Vec::new();
    for (x, y) in [(true, true), (true, false), (false, true), (false, false)] {
        if a == b && x != y {
            continue;
        }
        let row = HashMap::from([(a, x), (b, y), (j, op.apply(x, y))]);
        if row.iter().all(|(i, v)| values[*i].is_none_or(|known| known == *v)) {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Verifies that the formula is false under `model`: literals such as `p ~q`, every atom exactly once.
pub fn check_countermodel(formula: &Formula, model: &str) -> Result<(), String> {
    let mut assignment: HashMap<&str, bool> = HashMap::new();
    for literal in model.split_whitespace() {
        let atom = literal.trim_start_matches('~');
        if assignment.insert(atom, !literal.starts_with('~')).is_some() {
            return Err(format!("atom '{atom}' is given twice"));
        }
    }
    let mut truth: Vec<bool> = Vec::with_capacity(formula.len());
    for node in &formula.nodes {
        truth.push(match node {
            Kind::Atom(name) => *assignment.get(name.as_str()).ok_or_else(|| format!("atom '{name}' has no value"))?,
            Kind::Compound(op, a, b) => op.apply(truth[*a], truth[*b]),
        });
    }
    if truth[formula.root()] {
        return Err("the formula is true in that model".to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // p=0 q=1 p->q=2 (p->q)->p=3 root=4
    const PEIRCE: &str = "((p -> q) -> p) -> p";

    #[test]
    fn a_right_proof_passes() {
        let f = Formula::parse(PEIRCE).unwrap();
        assert_eq!(check_proof(&f, "+3:4 -0:4 +2:2 x3"), Ok(0));
        assert_eq!(check_proof(&f, "+3:4 -0:4 c1 +2:2 x3 -2:3 x2"), Ok(1));
    }

    #[test]
    fn a_wrong_proof_does_not() {
        let f = Formula::parse(PEIRCE).unwrap();
        for (proof, why) in [
            ("", "open branch"),
            ("+3:4 -0:4", "open branch"),
            ("-3:4", "does not follow"),
            ("+1:4", "does not follow"),
            ("+3:4 x4", "not closed"),
            ("+3:4 -0:4 +2:2 x3 x3", "after the end"),
            ("+3:4 -0:4 c1 +2:2 x3", "open branch"),
            ("+3:4 -0:4 c0 x4", "has a value"),
            ("+9:4", "no such subformula"),
            ("+3:0", "an atom"),
            ("?", "not a token"),
            ("é", "not a token"),
        ] {
            let message = check_proof(&f, proof).unwrap_err();
            assert!(message.contains(why), "{proof}: {message}");
        }
    }

    #[test]
    fn countermodels_are_evaluated() {
        let f = Formula::parse("p | q -> p & q").unwrap();
        assert_eq!(check_countermodel(&f, "p ~q"), Ok(()));
        assert!(check_countermodel(&f, "p q").unwrap_err().contains("is true"));
        assert!(check_countermodel(&f, "p").unwrap_err().contains("no value"));
        assert!(check_countermodel(&f, "p ~p q").unwrap_err().contains("twice"));
    }
}
