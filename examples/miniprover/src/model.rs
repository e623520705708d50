//! The learned models: small networks with integer weights, and integer-only log-probabilities.
//!
//! Python trains with floating point and exports whole numbers. From there on, nothing is rounded in a way that depends
//! on the machine: the same weights give the same search, node for node, on every box.
//!
//! Scores and log-probabilities are in 1/256 bit (base-2 logarithms).

use std::path::Path;

/// Binary digits after the point in the exported weights.
const WEIGHT_SHIFT: u32 = 12;
/// From the product's fixed point (`2^12`) to 1/256 bit.
const OUTPUT_SHIFT: u32 = WEIGHT_SHIFT - 8;
/// Features are written as one character each (`0`–`9`, `a`–`z`), so this is their largest value.
pub const MAX_FEATURE: u8 = 35;

/// One hidden layer with rectified units, and one output.
#[derive(Clone, Debug)]
pub struct Model {
    inputs: usize,
    w1: Vec<i64>,
    b1: Vec<i64>,
    w2: Vec<i64>,
    b2: i64,
}

impl Model {
    /// Reads an exported model; `kind` and `inputs` must be what this program computes features for.
    pub fn load(path: &Path, kind: &str, inputs: usize) -> Result<Model, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Model::parse(&text, kind, inputs).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(text: &str, kind: &str, inputs: usize) -> Result<Model, String> {
        let mut lines = text.lines();
        let mut field = |name: &str| -> Result<&str, String> {
            let line = lines.next().ok_or_else(|| format!("'{name}' is missing"))?;
            line.strip_prefix(name)
                .and_then(|rest| rest.strip_prefix(' '))
                .ok_or_else(|| format!("expected '{name} …', not '{}'", line.chars().take(40).collect::<String>()))
        };
        let numbers = |text: &str| -> Result<Vec<i64>, String> {
            text.split_whitespace()
                .map(|n| n.parse::<i32>().map(i64::from).map_err(|_| format!("'{n}' is not a weight")))
                .collect()
        };
        if field("miniprover-model")? != "1" {
            return Err("unknown version of the model format".to_string());
        }
        let found = field("kind")?;
        if found != kind {
            return Err(format!("this is a {found} model, not one of kind {kind}"));
        }
        let shape = numbers(field("shape")?)?;
        let (w1, b1, w2, b2) =
            (numbers(field("w1")?)?, numbers(field("b1")?)?, numbers(field("w2")?)?, numbers(field("b2")?)?);
        if shape.len() != 2 || shape[0] != inputs as i64 {
            return Err(format!("made for other features than these {inputs}"));
        }
        let hidden = b1.len();
        if shape[1] != hidden as i64 || w1.len() != inputs * hidden || w2.len() != hidden || b2.len() != 1 {
            return Err("the number of weights does not match the shape".to_string());
        }
        Ok(Model { inputs, w1, b1, w2, b2: b2[0] })
    }

    /// The model's output for one feature vector, in 1/256 bit.
    pub fn score(&self, features: &[u8]) -> i64 {
        debug_assert_eq!(features.len(), self.inputs);
        let mut total = 0;
        for (unit, bias) in self.b1.iter().enumerate() {
            let row = &self.w1[unit * self.inputs..(unit + 1) * self.inputs];
            let sum: i64 = bias + row.iter().zip(features).map(|(w, x)| w * i64::from(*x)).sum::<i64>();
            total += self.w2[unit] * sum.max(0);
        }
        (self.b2 + (total >> WEIGHT_SHIFT)) >> OUTPUT_SHIFT
    }
}

/// `2^(i/256)` in 1/65536, for i in 0..256. Square root and product are exact to the last bit in IEEE 754, so that the
/// table is the same everywhere.
fn exp2_table() -> [u64; 256] {
    let mut step = 2f64;
    for _ in 0..8 {
        step = step.sqrt();
    }
    let mut table = [0; 256];
    let mut value = 65536f64;
    for entry in &mut table {
        *entry = value.round() as u64;
        value *= step;
    }
    table
}

/// Turns scores into log-probabilities (softmax), in whole 1/256 bit.
#[derive(Debug)]
pub struct LogSoftmax {
    table: [u64; 256],
}

impl LogSoftmax {
    pub fn new() -> LogSoftmax {
        LogSoftmax { table: exp2_table() }
    }

    /// `2^(x/256)` in 1/65536, for x ≤ 0.
    fn exp2(&self, x: i64) -> u64 {
        let whole = x.div_euclid(256);
        self.table[x.rem_euclid(256) as usize].checked_shr((-whole).min(63) as u32).unwrap_or(0)
    }

    /// 256·log2(x/65536), rounded down, for x ≥ 65536.
    fn log2(&self, x: u64) -> i64 {
        let bits = i64::from(63 - x.leading_zeros()) - 16;
        let mantissa = x >> bits;
        bits * 256 + self.table.partition_point(|entry| *entry <= mantissa) as i64 - 1
    }

    pub fn apply(&self, scores: &mut [i64]) {
        let Some(max) = scores.iter().copied().max() else {
            return;
        };
        let sum = self.log2(scores.iter().map(|s| self.exp2(s - max)).sum());
        for score in scores {
            *score -= max + sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "miniprover-model 1\nkind policy\nshape 2 2\nw1 4096 0 0 -4096\nb1 0 4096\nw2 4096 8192\nb2 2048\n";

    #[test]
    fn scores_follow_the_network() {
        let model = Model::parse(TEXT, "policy", 2).unwrap();
        // relu(3) + 2·relu(1 - 0) + 0.5 = 5.5 bit
        assert_eq!(model.score(&[3, 0]), 5 * 256 + 128);
        // relu(3) + 2·relu(1 - 5) + 0.5 = 3.5 bit
        assert_eq!(model.score(&[3, 5]), 3 * 256 + 128);
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused() {
        assert!(Model::parse(TEXT, "energy", 2).unwrap_err().contains("not one of kind energy"));
        assert!(Model::parse(TEXT, "policy", 3).unwrap_err().contains("other features"));
        assert!(Model::parse(&TEXT.replace("w2 4096 8192", "w2 1"), "policy", 2).unwrap_err().contains("shape"));
        assert!(Model::parse(&TEXT.replace("2048", "x"), "policy", 2).unwrap_err().contains("'x'"));
        assert!(Model::parse("", "policy", 2).unwrap_err().contains("missing"));
    }

    #[test]
    fn log_probabilities_are_right_to_a_hundredth_of_a_bit() {
        let softmax = LogSoftmax::new();
        let mut scores = vec![0, 256, -512, 300, -100_000];
        let exact: Vec<f64> = scores.iter().map(|s| *s as f64 / 256.0).collect();
        let sum = exact.iter().map(|s| s.exp2()).sum::<f64>().log2();
        softmax.apply(&mut scores);
        for (got, exact) in scores.iter().zip(exact) {
            assert!((*got as f64 / 256.0 - (exact - sum)).abs() < 0.01);
        }
        let mut equal = vec![7; 8];
        softmax.apply(&mut equal);
        assert_eq!(equal, vec![-3 * 256; 8]);
    }
}
