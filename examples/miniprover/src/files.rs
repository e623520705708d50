//! Input lists, and the output files that survive an interruption.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::formula::Formula;
use crate::json::members;

#[derive(Debug)]
pub struct Theorem {
    pub id: String,
    pub formula: Formula,
}

/// Reads lists of `id<TAB>status<TAB>formula`; blank lines and `#` comments are skipped. The status column is for
/// `evaluate`: it is deliberately not kept here.
pub fn read_theorems(paths: &[PathBuf]) -> Result<Vec<Theorem>, String> {
    let mut theorems = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let place = || format!("{}:{}", path.display(), i + 1);
            let mut columns = line.split('\t');
            let (Some(id), Some(_status), Some(text), None) =
                (columns.next(), columns.next(), columns.next(), columns.next())
            else {
                return Err(format!("{}: expected id, status and formula, separated by tabs", place()));
            };
            let formula = Formula::parse(text).map_err(|e| format!("{}: {e}", place()))?;
            if !seen.insert(id.to_string()) {
                return Err(format!("{}: the id '{id}' is used twice", place()));
            }
            theorems.push(Theorem { id: id.to_string(), formula });
        }
    }
    Ok(theorems)
}

/// One line of a result or trace file: its simple members, and the text itself.
pub type Record = (BTreeMap<String, String>, String);

/// The whole lines of a file that have an `id`, in file order. A torn or foreign line is left out.
pub fn read_lines(path: &Path) -> Result<Vec<Record>, String> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| format!("{}: {e}", path.display()))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole
        .lines()
        .filter_map(|line| members(line).map(|m| (m, line.to_string())))
        .filter(|(m, _)| m.contains_key("id"))
        .collect())
}

/// A file that lines are appended to in batches, each batch on the disk before the call returns.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Starts with exactly `lines`, whatever the file held. They replace it in one step, so that a crash here loses
    /// nothing.
    pub fn start(path: &Path, lines: &[String]) -> Result<Appender, String> {
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut new_name = path.as_os_str().to_owned();
        new_name.push(".new");
        let mut file = File::create(&new_name).map_err(failed)?;
        file.write_all(joined(lines).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&new_name, path).map_err(failed)?;
        Ok(Appender { path: path.to_path_buf(), file })
    }

    /// Goes on at the end of the file.
    pub fn open(path: &Path) -> Result<Appender, String> {
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(Appender { path: path.to_path_buf(), file })
    }

    pub fn append(&mut self, lines: &[String], sync: bool) -> Result<(), String> {
        let written = self.file.write_all(joined(lines).as_bytes());
        let done = written.and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        done.map_err(|e| format!("{}: {e}", self.path.display()))
    }
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
