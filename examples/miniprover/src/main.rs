//! `prover`: a small propositional prover whose search is guided by models that learn from it.

mod branch;
mod checker;
mod features;
mod files;
mod formula;
mod json;
mod model;
mod run;
mod search;

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::features::{decode, ENERGY_FEATURES, POLICY_FEATURES};
use crate::files::{read_lines, read_theorems};
use crate::model::{LogSoftmax, Model};
use crate::run::Settings;
use crate::search::Guide;

const USAGE: &str = "\
usage: prover search --theorems FILE… --output FILE [--traces FILE] [--journal FILE] [--policy FILE] [--energy FILE]
                     [--nodes 600] [--flush-every 50] [--on-flush COMMAND] [--resume-from FILE]
                     [--pace-ms 0]
       prover search --dry-run --theorems FILE… [--policy FILE] [--energy FILE] [--nodes 600]
       prover check  --theorems FILE… --results FILE
       prover parse  --theorems FILE…
       prover score  --kind policy|energy --model FILE      (feature vectors on standard input)
       prover info   [--policy FILE] [--energy FILE]

search  proves or refutes every theorem within a budget of nodes. Results, traces (training material) and the journal
        (one line for each theorem begun) are appended to; results and traces reach the disk every --flush-every theorems, and then
        --on-flush is run. --resume-from skips what that file already has. SIGINT finishes the current theorem, flushes
        and exits with 130; SIGTERM kills. --pace-ms makes every theorem take at least that long, for demonstrations.
        --dry-run loads everything, tries one theorem and writes nothing.
check   has the independent checker verify every proof and countermodel of a result file.
parse   shows the size of every formula.   score  shows what a model says.   info  shows what this build expects.
";

const SEARCH_OPTIONS: [&str; 12] = [
    "theorems",
    "output",
    "traces",
    "journal",
    "policy",
    "energy",
    "nodes",
    "flush-every",
    "on-flush",
    "resume-from",
    "pace-ms",
    "dry-run",
];

/// Command-line options; those that may be repeated keep all their values.
struct Options(HashMap<String, Vec<String>>);

impl Options {
    fn parse(arguments: &[String], allowed: &[&str]) -> Result<Options, String> {
        let mut options: HashMap<String, Vec<String>> = HashMap::new();
        let mut current: Option<&str> = None;
        for argument in arguments {
            if let Some(name) = argument.strip_prefix("--") {
                if !allowed.contains(&name) {
                    return Err(format!("unknown option {argument}"));
                }
                options.entry(name.to_string()).or_default();
                current = Some(name);
            } else {
                let name = current.ok_or_else(|| format!("unexpected argument '{argument}'"))?;
                options.entry(name.to_string()).or_default().push(argument.clone());
            }
        }
        Ok(Options(options))
    }

    fn flag(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn one(&self, name: &str) -> Result<Option<&str>, String> {
        match self.0.get(name).map(Vec::as_slice) {
            None => Ok(None),
            Some([value]) => Ok(Some(value)),
            Some(_) => Err(format!("--{name} takes one value")),
        }
    }

    fn required(&self, name: &str) -> Result<&str, String> {
        self.one(name)?.ok_or_else(|| format!("--{name} is required"))
    }

    fn count(&self, name: &str, default: usize) -> Result<usize, String> {
        let Some(text) = self.one(name)? else {
            return Ok(default);
        };
        text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("--{name} must be a positive number, not '{text}'"))
    }

    fn theorems(&self) -> Result<Vec<files::Theorem>, String> {
        let paths: Vec<PathBuf> = self.0.get("theorems").into_iter().flatten().map(PathBuf::from).collect();
        if paths.is_empty() {
            return Err("--theorems is required".to_string());
        }
        read_theorems(&paths)
    }

    fn guide(&self) -> Result<Guide, String> {
        let load = |kind: &str, inputs| -> Result<Option<Model>, String> {
            self.one(kind)?.map(|path| Model::load(&PathBuf::from(path), kind, inputs)).transpose()
        };
        Ok(Guide {
            policy: load("policy", POLICY_FEATURES)?,
            energy: load("energy", ENERGY_FEATURES)?,
            softmax: LogSoftmax::new(),
        })
    }
}

fn search_command(options: &Options) -> Result<u8, String> {
    let theorems = options.theorems()?;
    let guide = options.guide()?;
    let nodes = options.count("nodes", 600)?;
    if options.flag("dry-run") {
        let theorem = theorems.first().ok_or("the list of theorems is empty")?;
        let found = run::search_checked(theorem, &guide, nodes)?;
        println!("dry run: {} theorems read; {}", theorems.len(), run::result_line(&theorem.id, &found));
        return Ok(0);
    }
    let output = PathBuf::from(options.required("output")?);
    let beside = |option: &str, name: &str| -> Result<PathBuf, String> {
        Ok(options.one(option)?.map_or_else(|| output.with_file_name(name), PathBuf::from))
    };
    let settings = Settings {
        traces: beside("traces", "traces.jsonl")?,
        journal: beside("journal", "search.log.jsonl")?,
        resume_from: options.one("resume-from")?.map(PathBuf::from),
        nodes,
        pace: Duration::from_millis(
            options
                .one("pace-ms")?
                .map_or(Ok(0), |text| text.parse().map_err(|_| format!("--pace-ms must be a number, not '{text}'")))?,
        ),
        flush_every: options.count("flush-every", 50)?,
        on_flush: options.one("on-flush")?.filter(|command| !command.is_empty()).map(str::to_string),
        output,
    };
    run::run(&theorems, &guide, &settings)
}

fn check_command(options: &Options) -> Result<u8, String> {
    let theorems = options.theorems()?;
    let by_id: HashMap<&str, &files::Theorem> = theorems.iter().map(|t| (t.id.as_str(), t)).collect();
    let path = options.required("results")?;
    let (mut good, mut bad) = (0, 0);
    for (members, _) in read_lines(&PathBuf::from(path))? {
        let id = members["id"].as_str();
        let formula = by_id.get(id).map(|t| &t.formula).ok_or_else(|| format!("{path}: no theorem '{id}'"))?;
        let text = |key: &str| members.get(key).map_or("", String::as_str);
        let verdict = match text("outcome") {
            "proved" => checker::check_proof(formula, text("proof")).map(|_| ()),
            "refuted" => checker::check_countermodel(formula, text("countermodel")),
            _ => continue,
        };
        match verdict {
            Ok(()) => good += 1,
            Err(why) => {
                bad += 1;
                eprintln!("{id}: {why}");
            }
        }
    }
    println!("{good} answers verified, {bad} wrong");
    Ok(u8::from(bad > 0))
}

fn parse_command(options: &Options) -> Result<u8, String> {
    for theorem in options.theorems()? {
        let f = &theorem.formula;
        println!("{}\tatoms {}\tsubformulas {}\tsymbols {}", theorem.id, f.atoms.len(), f.len(), f.sizes[f.root()]);
    }
    Ok(0)
}

fn score_command(options: &Options) -> Result<u8, String> {
    let kind = options.required("kind")?;
    let inputs = match kind {
        "policy" => POLICY_FEATURES,
        "energy" => ENERGY_FEATURES,
        other => return Err(format!("--kind must be policy or energy, not '{other}'")),
    };
    let model = Model::load(&PathBuf::from(options.required("model")?), kind, inputs)?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|e| format!("standard input: {e}"))?;
        let features = decode(&line).filter(|f| f.len() == inputs);
        let features = features.ok_or_else(|| format!("'{line}' is not a vector of {inputs} features"))?;
        println!("{}", model.score(&features));
    }
    Ok(0)
}

fn info_command(options: &Options) -> Result<u8, String> {
    let guide = options.guide()?;
    let told = |model: &Option<Model>| if model.is_some() { "loaded" } else { "none" };
    println!("prover {}", env!("CARGO_PKG_VERSION"));
    println!("policy features {POLICY_FEATURES}, model {}", told(&guide.policy));
    println!("energy features {ENERGY_FEATURES}, model {}", told(&guide.energy));
    println!("moves per node {}", search::WIDTH);
    Ok(0)
}

fn dispatch(arguments: &[String]) -> Result<u8, String> {
    let (command, rest) = arguments.split_first().ok_or("no command given")?;
    let options = |allowed: &[&str]| Options::parse(rest, allowed);
    match command.as_str() {
        "search" => search_command(&options(&SEARCH_OPTIONS)?),
        "check" => check_command(&options(&["theorems", "results"])?),
        "parse" => parse_command(&options(&["theorems"])?),
        "score" => score_command(&options(&["kind", "model"])?),
        "info" => info_command(&options(&["policy", "energy"])?),
        other => Err(format!("unknown command '{other}'")),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if matches!(arguments.first().map(String::as_str), Some("help" | "--help" | "-h")) {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match dispatch(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(message) => {
            eprintln!("prover: {message}\n`prover help` shows how it is used.");
            ExitCode::from(2)
        }
    }
}
