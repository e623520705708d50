//! Formulas: the syntax, and the numbered, shared subformulas that everything else works on.
//!
//! Syntax, tightest first: `~`, `&`, `|`, `->`, `<->`; `&` and `|` group to the left, the arrows to the right. Atoms are
//! a letter and then letters, digits or underscores.
//!
//! Every distinct subformula gets one number, in the order in which a left-to-right reading *completes* it. The proof
//! format relies on that numbering, so a second checker in another language can rebuild it from the text alone.

use std::collections::HashMap;

/// Deeper nesting than this is refused, so that the recursive parser cannot exhaust the stack.
const MAX_NESTING: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Not,
    And,
    Or,
    Implies,
    Iff,
}

impl Op {
    /// The truth table. `Not` looks at its first argument only.
    pub fn apply(self, a: bool, b: bool) -> bool {
        match self {
            Op::Not => !a,
            Op::And => a && b,
            Op::Or => a || b,
            Op::Implies => !a || b,
            Op::Iff => a == b,
        }
    }
}

/// One subformula. `Not` is stored with both children equal, which spares every user a special case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Atom(String),
    Compound(Op, usize, usize),
}

/// A parsed formula: its distinct subformulas, children before parents, the whole formula last.
#[derive(Clone, Debug)]
pub struct Formula {
    pub nodes: Vec<Kind>,
    /// For each subformula, the compounds that it is a child of.
    pub parents: Vec<Vec<usize>>,
    /// Number of symbols (atoms and connectives) of each subformula, written out in full.
    pub sizes: Vec<usize>,
    pub atoms: Vec<usize>,
}

impl Formula {
    pub fn parse(text: &str) -> Result<Formula, String> {
        let mut parser =
            Parser { tokens: tokenise(text)?, next: 0, depth: 0, nodes: Vec::new(), numbers: HashMap::new() };
        parser.binary(0)?;
        if let Some((token, at)) = parser.tokens.get(parser.next) {
            return Err(format!("unexpected '{token}' at character {}", at + 1));
        }
        Ok(Formula::from_nodes(parser.nodes))
    }

    fn from_nodes(nodes: Vec<Kind>) -> Formula {
        let mut parents = vec![Vec::new(); nodes.len()];
        let mut sizes = Vec::with_capacity(nodes.len());
        let mut atoms = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let size = match node {
                Kind::Atom(_) => {
                    atoms.push(i);
                    1
                }
                Kind::Compound(op, a, b) => {
                    parents[*a].push(i);
                    if a != b {
                        parents[*b].push(i);
                    }
                    let right: usize = if *op == Op::Not { 0 } else { sizes[*b] };
                    (sizes[*a] + right).saturating_add(1)
                }
            };
            sizes.push(size);
        }
        Formula { nodes, parents, sizes, atoms }
    }

    pub fn root(&self) -> usize {
        self.nodes.len() - 1
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The connective and children of a compound; `None` for an atom.
    pub fn compound(&self, i: usize) -> Option<(Op, usize, usize)> {
        match self.nodes[i] {
            Kind::Atom(_) => None,
            Kind::Compound(op, a, b) => Some((op, a, b)),
        }
    }
}

/// Splits `text` into tokens, each with its character position.
fn tokenise(text: &str) -> Result<Vec<(String, usize)>, String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        let rest = &chars[i..];
        if chars[i].is_whitespace() {
            i += 1;
            continue;
        } else if "()~&|".contains(chars[i]) {
            i += 1;
        } else if rest.starts_with(&['<', '-', '>']) {
            i += 3;
        } else if rest.starts_with(&['-', '>']) {
            i += 2;
        } else if chars[i].is_ascii_alphabetic() {
            while i < chars.len() && (chars[i].is_ascii_alphanumeric() || chars[i] == '_') {
                i += 1;
            }
        } else {
            return Err(format!("unexpected character '{}' at character {}", chars[i], i + 1));
        }
        tokens.push((chars[start..i].iter().collect(), start));
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<(String, usize)>,
    next: usize,
    depth: usize,
    nodes: Vec<Kind>,
    numbers: HashMap<Kind, usize>,
}

/// Binary connectives, loosest first: token, connective, groups to the right.
const LEVELS: [(&str, Op, bool); 4] =
    [("<->", Op::Iff, true), ("->", Op::Implies, true), ("|", Op::Or, false), ("&", Op::And, false)];

impl Parser {
    fn intern(&mut self, node: Kind) -> usize {
        let fresh = self.nodes.len();
        let number = *self.numbers.entry(node.clone()).or_insert(fresh);
        if number == fresh {
            self.nodes.push(node);
        }
        number
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.tokens.get(self.next).is_some_and(|(t, _)| t == token);
        self.next += usize::from(found);
        found
    }

    fn binary(&mut self, level: usize) -> Result<usize, String> {
        let Some(&(token, op, right)) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        while self.take(token) {
            let other = if right { self.nested(|p| p.binary(level))? } else { self.binary(level + 1)? };
            left = self.intern(Kind::Compound(op, left, other));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<usize, String> {
        if self.take("~") {
            let inner = self.nested(Parser::unary)?;
            return Ok(self.intern(Kind::Compound(Op::Not, inner, inner)));
        }
        if self.take("(") {
            let inner = self.nested(|p| p.binary(0))?;
            return if self.take(")") { Ok(inner) } else { Err("missing ')'".to_string()) };
        }
        let Some((token, at)) = self.tokens.get(self.next).cloned() else {
            return Err("the formula ends too early".to_string());
        };
        if !token.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(format!("expected an atom, '~' or '(' at character {}, not '{token}'", at + 1));
        }
        self.next += 1;
        Ok(self.intern(Kind::Atom(token)))
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Parser) -> Result<usize, String>) -> Result<usize, String> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(format!("nested more than {MAX_NESTING} deep"));
        }
        let result = parse(self);
        self.depth -= 1;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subformulas_are_shared_and_numbered_in_reading_order() {
        let f = Formula::parse("(p -> q) & ~q -> ~p").unwrap();
        assert_eq!(f.nodes[0], Kind::Atom("p".into()));
        assert_eq!(f.compound(2), Some((Op::Implies, 0, 1)));
        assert_eq!(f.compound(3), Some((Op::Not, 1, 1)));
        assert_eq!(f.root(), 6);
        assert_eq!(f.sizes[f.root()], 9);
        assert_eq!(f.parents[1], vec![2, 3]);
    }

    #[test]
    fn arrows_group_to_the_right_and_bind_loosest() {
        let explicit = Formula::parse("p -> (q -> ((p & q) | r))").unwrap();
        assert_eq!(Formula::parse("p -> q -> p & q | r").unwrap().nodes, explicit.nodes);
    }

    #[test]
    fn bad_text_is_refused_with_its_position() {
        for (text, expected) in [
            ("p &", "ends too early"),
            ("(p", "missing ')'"),
            ("p q", "'q' at character 3"),
            ("p $ q", "'$' at character 3"),
            ("", "ends too early"),
            ("p & -> q", "at character 5"),
        ] {
            let message = Formula::parse(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        assert!(Formula::parse(&"~".repeat(100_000)).unwrap_err().contains("deep"));
    }
}
