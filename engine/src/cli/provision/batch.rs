//! `weir provision batch`: many devices from a file, one result line for each row, resumed where it stopped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use access::authority::public_key_hash;
use access::registry::{Expected, Fact, RegistryError, State};
use access::subject::is_name;
use device::id::DeviceId;
use serde::Deserialize;
use serde_json::json;

use super::{At, Exit, print, public_key};
use crate::clock;

/// Rows that become durable together.
const ROWS: usize = 500;

/// Arguments of `weir provision batch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// CSV or JSON lines.
    file: PathBuf,
    /// One line of JSON for each row; if it is there, the rows that it has are done. By default the file's name with
    /// `.results` behind it.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    #[command(flatten)]
    at: At,
}

/// One row.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    serial: String,
    #[serde(default)]
    hw: String,
    group: String,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    pubkey: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Labels {
    Map(BTreeMap<String, String>),
    Text(String),
}

impl Default for Labels {
    fn default() -> Self {
        Self::Map(BTreeMap::new())
    }
}

impl Row {
    fn expected(self) -> Result<Expected, String> {
        DeviceId::new(&self.serial).map_err(|e| format!("serial {:?}: {e}", self.serial))?;
        if !is_name(&self.group) {
            return Err(format!("group {:?}: use 1 to 64 letters, digits, `.`, `_` or `-`", self.group));
        }
        let labels = match self.labels {
            Labels::Map(map) => map,
            Labels::Text(text) => {
                let mut map = BTreeMap::new();
                for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
                    let (name, value) =
                        part.split_once('=').ok_or_else(|| format!("labels: {part:?} is not name=value"))?;
                    map.insert(name.trim().to_owned(), value.trim().to_owned());
                }
                map
            }
        };
        let key = match self.pubkey.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => Some(key_hash(text).map_err(|e| format!("pubkey: {e}"))?),
        };
        Ok(Expected { device: self.serial, group: self.group, hw: self.hw, labels, key, token: None })
    }
}

fn key_hash(text: &str) -> Result<String, String> {
    public_key_hash(&public_key(text)?).map_err(|e| e.to_string())
}

/// The rows of the file, each with what is wrong with it.
fn rows(file: File) -> Result<Box<dyn Iterator<Item = Result<Row, String>>>, Exit> {
    let mut reader = BufReader::new(file);
    let first = reader.fill_buf().map_err(Exit::failed)?.iter().find(|byte| !byte.is_ascii_whitespace()).copied();
    if first == Some(b'{') {
        let lines = reader.lines().filter(|line| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
        return Ok(Box::new(lines.map(|line| {
            let line = line.map_err(|e| e.to_string())?;
            serde_json::from_str(&line).map_err(|e| e.to_string())
        })));
    }
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(reader);
    let head = reader.headers().map_err(Exit::failed)?.clone();
    for needed in ["serial", "group"] {
        if !head.iter().any(|name| name == needed) {
            let text =
                format!("the first line must name the columns serial,hw,group,labels[,pubkey]; there is no {needed:?}");
            return Err(Exit::Failed(text));
        }
    }
    Ok(Box::new(reader.into_deserialize::<Row>().map(|row| row.map_err(|e| e.to_string()))))
}

/// How many rows have a result; half a line of a crash is taken off.
fn done(results: &mut File) -> std::io::Result<usize> {
    let mut bytes = Vec::new();
    results.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    results.set_len(whole as u64)?;
    results.seek(SeekFrom::End(0))?;
    Ok(bytes.get(..whole).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count())
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    let named = |path: &PathBuf, e: &dyn std::fmt::Display| Exit::Failed(format!("{}: {e}", path.display()));
    let path = args.results.clone().unwrap_or_else(|| {
        let mut name = args.file.clone().into_os_string();
        name.push(".results");
        name.into()
    });
    let file = File::open(&args.file).map_err(|e| named(&args.file, &e))?;
    let mut results = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let results = results.as_mut().map_err(|e| named(&path, e))?;
    let skipped = done(results).map_err(|e| named(&path, &e))?;
    let registry = args.at.registry()?;
    let mut rows = rows(file)?.enumerate().skip(skipped).peekable();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    while rows.peek().is_some() {
        let part: Vec<_> = rows.by_ref().take(ROWS).collect();
        let mut lines = String::new();
        registry
            .change::<RegistryError>(clock::now(), |state| {
                let mut facts: Vec<Fact> = Vec::new();
                for (at, row) in part {
                    let (status, serial, text) = decide(state, row, &mut facts);
                    *counts.entry(status).or_default() += 1;
                    lines.push_str(&format!(
                        "{}\n",
                        json!({ "row": at + 1, "serial": serial, "status": status, "text": text })
                    ));
                }
                Ok(facts)
            })
            .map_err(Exit::failed)?;
        // After the rows are durable: after a crash between the two they are looked at again, and are unchanged.
        results.write_all(lines.as_bytes()).and_then(|()| results.sync_data()).map_err(|e| named(&path, &e))?;
    }
    let total: usize = counts.values().sum();
    args.at.note("provision.batch", &args.file.display().to_string(), json!(counts))?;
    let told: Vec<String> = counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    let before = if skipped > 0 { format!(", {skipped} were done before") } else { String::new() };
    print(&format!("{total} rows: {}{before}; results in {}\n", told.join(", "), path.display()))?;
    if counts.contains_key("error") { Err(Exit::Silent) } else { Ok(()) }
}

/// What becomes of a row: status, serial number, and what is wrong.
fn decide(state: &State, row: Result<Row, String>, facts: &mut Vec<Fact>) -> (&'static str, String, Option<String>) {
    let row = match row {
        Ok(row) => row,
        Err(text) => return ("error", String::new(), Some(text)),
    };
    let serial = row.serial.clone();
    let expected = match row.expected() {
        Ok(expected) => expected,
        Err(text) => return ("error", serial, Some(text)),
    };
    // A row of this part that names the same device counts like one of before.
    let known = facts.iter().rev().find_map(|fact| match fact {
        Fact::Expected(known) if known.device == serial => Some(known),
        _ => None,
    });
    let known = known.or_else(|| state.expected(&serial));
    // A token that the device has been given is not taken back by a list that says nothing of tokens.
    let expected = Expected { token: known.and_then(|known| known.token.clone()), ..expected };
    match known {
        Some(known) if *known == expected => ("unchanged", serial, None),
        Some(_) => {
            facts.push(Fact::Expected(expected));
            ("changed", serial, None)
        }
        None => {
            facts.push(Fact::Expected(expected));
            ("added", serial, None)
        }
    }
}
