//! `prover search`: a list of theorems, with results that outlive the process.
//!
//! Results go to the disk every N theorems. SIGINT ends the run in good order: the current theorem is finished, results
//! are flushed, exit code 130. **SIGTERM is not handled** and kills the process on the spot, as it does in BurnQED;
//! whoever stops a search and wants its latest results must send SIGINT and give it time.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checker::{check_countermodel, check_proof};
use crate::files::{read_lines, Appender, Theorem};
use crate::json::quote;
use crate::search::{search, Found, Guide, Outcome};

pub const INTERRUPTED: u8 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_sigint(_signal: i32) {
    STOP.store(true, Ordering::SeqCst);
}

/// Asks for a graceful end on SIGINT.
fn catch_sigint() {
    extern "C" {
        // ISO C's `signal`, from the C library that std links in any case. The return value, the old handler, is not
        // used, and a pointer-sized integer can hold it.
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    }
    const SIGINT: i32 = 2;
    // SAFETY: the signature is that of C's `signal`, and the handler only stores to an atomic, which is allowed in a
    // signal handler.
    unsafe {
        signal(SIGINT, on_sigint);
    }
}

/// What `prover search` was asked to do.
#[derive(Debug)]
pub struct Settings {
    pub output: PathBuf,
    pub traces: PathBuf,
    pub journal: PathBuf,
    pub resume_from: Option<PathBuf>,
    pub nodes: usize,
    pub flush_every: usize,
    pub on_flush: Option<String>,
    /// A theorem takes at least this long. For demonstrations: it changes no result.
    pub pace: Duration,
}

/// One result line. It says nothing that differs between two runs: no time, no host, no attempt.
pub fn result_line(id: &str, found: &Found) -> String {
    let head = format!("{{\"id\":{},\"nodes\":{},\"outcome\":", quote(id), found.nodes);
    match &found.outcome {
        Outcome::Proved { proof, cuts } => format!("{head}\"proved\",\"cuts\":{cuts},\"proof\":{}}}", quote(proof)),
        Outcome::Refuted { countermodel } => format!("{head}\"refuted\",\"countermodel\":{}}}", quote(countermodel)),
        Outcome::Unknown => format!("{head}\"unknown\"}}"),
    }
}

/// Searches for one theorem and has the checker look at the answer before anybody else sees it.
pub fn search_checked(theorem: &Theorem, guide: &Guide, nodes: usize) -> Result<Found, String> {
    let found = search(&theorem.formula, guide, nodes);
    let verdict = match &found.outcome {
        Outcome::Proved { proof, .. } => check_proof(&theorem.formula, proof).map(|_| ()),
        Outcome::Refuted { countermodel } => check_countermodel(&theorem.formula, countermodel),
        Outcome::Unknown => Ok(()),
    };
    verdict.map_err(|why| format!("{}: the checker refuses the answer: {why}", theorem.id))?;
    Ok(found)
}

struct Output {
    results: Appender,
    traces: Appender,
    journal: Appender,
    waiting_results: Vec<String>,
    waiting_traces: Vec<String>,
}

impl Output {
    /// Writes what waits; traces first, so that a proof on the disk has its trace there too. Then runs the flush command
    /// and waits for it.
    fn flush(&mut self, on_flush: Option<&str>) -> Result<(), String> {
        if self.waiting_results.is_empty() {
            return Ok(());
        }
        self.traces.append(&self.waiting_traces, true)?;
        self.results.append(&self.waiting_results, true)?;
        self.waiting_traces.clear();
        self.waiting_results.clear();
        if let Some(command) = on_flush {
            // A process group of its own: a Ctrl-C that ends this search must not cut the publication short.
            let status = Command::new("sh").arg("-c").arg(command).process_group(0).status();
            match status {
                Ok(status) if status.success() => {}
                // The results are safe here; a bucket that is away is no reason to stop proving.
                Ok(status) => eprintln!("warning: the flush command failed ({status})"),
                Err(e) => eprintln!("warning: the flush command did not start: {e}"),
            }
        }
        Ok(())
    }
}

/// Sets up the output files; returns them with the ids of the theorems that are done.
fn open(settings: &Settings) -> Result<(Output, BTreeSet<String>), String> {
    let (mut done, mut results, mut traces) = (BTreeSet::new(), Vec::new(), Vec::new());
    if let Some(from) = &settings.resume_from {
        let known_traces = read_lines(&settings.traces)?;
        let traced: BTreeSet<&String> = known_traces.iter().map(|(m, _)| &m["id"]).collect();
        for (members, line) in read_lines(from)? {
            // The two files may come from a copy that was made between two writes. A proof without its trace is
            // searched again, or the training material would depend on the interruption.
            let proved = members.get("outcome").is_some_and(|o| o == "proved");
            if (!proved || traced.contains(&members["id"])) && done.insert(members["id"].clone()) {
                results.push(line);
            }
        }
        let mut kept = BTreeSet::new();
        for (members, line) in &known_traces {
            if done.contains(&members["id"]) && kept.insert(&members["id"]) {
                traces.push(line.clone());
            }
        }
    }
    let output = Output {
        results: Appender::start(&settings.output, &results)?,
        traces: Appender::start(&settings.traces, &traces)?,
        journal: Appender::open(&settings.journal)?,
        waiting_results: Vec::new(),
        waiting_traces: Vec::new(),
    };
    Ok((output, done))
}

/// Runs the search; returns the exit code.
pub fn run(theorems: &[Theorem], guide: &Guide, settings: &Settings) -> Result<u8, String> {
    catch_sigint();
    let started = Instant::now();
    let (mut output, done) = open(settings)?;
    if settings.resume_from.is_some() {
        println!("resuming: {} of {} theorems are done", done.len(), theorems.len());
    }
    let (mut count, mut proved, mut refuted, mut nodes) = (done.len(), 0, 0, 0);
    for theorem in theorems.iter().filter(|t| !done.contains(&t.id)) {
        if STOP.load(Ordering::SeqCst) {
            break;
        }
        output.journal.append(&[format!("{{\"id\":{}}}", quote(&theorem.id))], false)?;
        let begun = Instant::now();
        let found = search_checked(theorem, guide, settings.nodes)?;
        std::thread::sleep(settings.pace.saturating_sub(begun.elapsed()));
        count += 1;
        nodes += found.nodes;
        proved += usize::from(matches!(found.outcome, Outcome::Proved { .. }));
        refuted += usize::from(matches!(found.outcome, Outcome::Refuted { .. }));
        if matches!(found.outcome, Outcome::Proved { .. }) {
            let steps = found.trace.as_deref().unwrap_or("[]");
            let id = quote(&theorem.id);
            output.waiting_traces.push(format!("{{\"id\":{id},\"nodes\":{},\"steps\":{steps}}}", found.nodes));
        }
        output.waiting_results.push(result_line(&theorem.id, &found));
        if output.waiting_results.len() >= settings.flush_every {
            output.flush(settings.on_flush.as_deref())?;
            println!(
                "search {count}/{} proved {proved} refuted {refuted} nodes {nodes} seconds {:.1}",
                theorems.len(),
                started.elapsed().as_secs_f64()
            );
        }
    }
    output.flush(settings.on_flush.as_deref())?;
    let interrupted = STOP.load(Ordering::SeqCst) && count < theorems.len();
    let word = if interrupted { "interrupted" } else { "finished" };
    println!(
        "search {word} at {count}/{}: proved {proved} refuted {refuted} in this attempt, nodes {nodes}, seconds {:.1}",
        theorems.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(if interrupted { INTERRUPTED } else { 0 })
}
