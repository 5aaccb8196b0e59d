//! The table `_audit`: the acts of the trail as rows, in files and, until they are there, live.
//!
//! Its files are named `0000-<from>-<to>` by the numbers of the lines they hold, so the covering rule, retention and
//! compaction work as for other tables. A file holds lines of one day only: then one PUT takes a run of lines from
//! *not in a file* to *in a file*, and a process that dies in between leaves none double and none out. How far the files
//! reach is read from their names at the start, and from a note of it, since retention may have removed the last ones.
//!
//! Deliberately absent: deciding what an act is. The journal is what counts; the table can be made again from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use access::audit::{self, Act};
use access::journal::{Journal, JournalError, Line};
use arrow::array::{ArrayRef, StringArray, TimestampNanosecondArray, UInt64Array};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use device::id::ShardId;
use device::seq::Barrier;
use parking_lot::Mutex;
use storage::layout::{self, Granularity, Partition};
use storage::parquet::{TableRows, WriteError, write_cut};
use storage::schema::{AUDIT, audit_schema};
use storage::store::Store;
use storage::table::{LiveShard, LiveTable, TableError, TableStore};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// The shard that stands in the names of its files.
const SHARD: ShardId = ShardId(0);

/// Lines that are kept in memory at most before they are put into a file; a line is some hundred bytes.
const MOST_LIVE: usize = 10_000;

/// How often the journal is asked for what others have added: an attribute of a file.
const FOLLOW: Duration = Duration::from_millis(500);

/// Why the table does not follow the trail.
#[derive(Debug, Error)]
pub enum TrailError {
    /// The journal.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// Its files cannot be listed.
    #[error("{0}")]
    Table(#[from] TableError),
    /// A file cannot be written.
    #[error("{0}")]
    Write(#[from] WriteError),
    /// Rows cannot be made: a bug.
    #[error("the rows of {AUDIT}: {0}")]
    Rows(#[from] ArrowError),
    /// The note of how far the files reach.
    #[error("{path}: {message}")]
    Note {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// What is known of the lines that are in no file.
struct Tail {
    journal: Journal<Act>,
    /// Lines up to here are in files.
    written: u64,
    /// Those behind it.
    lines: Vec<Line<Act>>,
}

/// The table of one data directory.
pub struct Trail {
    tail: Mutex<Tail>,
    /// One at a time writes files.
    cutting: tokio::sync::Mutex<()>,
    store: Store,
    note: PathBuf,
}

impl Trail {
    /// Opens the trail of a data directory and finds how far its files reach.
    pub async fn open(data: &Path, store: Store, tables: &TableStore) -> Result<Self, TrailError> {
        let note = data.join(layout::registry("audit", "written"));
        let noted = match std::fs::read_to_string(&note) {
            Ok(text) => text.trim().parse().map_err(|_| TrailError::Note {
                path: note.clone(),
                message: format!("{text:?} is no number; remove the file, the names of the table's files say it too"),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(TrailError::Note { path: note, message: error.to_string() }),
        };
        let files = tables.files(AUDIT).await?;
        let reach = files.iter().filter_map(|path| layout::parse_table_file(path).map(|(_, _, file)| file.to.0)).max();
        let written = reach.unwrap_or(0).max(noted);
        let path = audit::journal(data);
        let opening = tokio::task::spawn_blocking(move || -> Result<Tail, JournalError> {
            let mut tail = Tail { journal: Journal::open(&path)?, written, lines: Vec::new() };
            while tail.read()? > 0 {}
            Ok(tail)
        });
        let tail = match opening.await {
            Ok(tail) => tail?,
            Err(error) => return Err(TrailError::Note { path: note, message: error.to_string() }),
        };
        Ok(Self { tail: Mutex::new(tail), cutting: tokio::sync::Mutex::default(), store, note })
    }

    /// The rows that are in no file, and up to which line the files count beside them.
    pub fn live(&self) -> Result<LiveTable, TrailError> {
        let mut tail = self.tail.lock();
        while tail.read()? > 0 {}
        let batches = if tail.lines.is_empty() { Vec::new() } else { vec![rows(&tail.lines)?] };
        Ok(LiveTable {
            schema: Some(audit_schema()),
            time_column: Some("ts".to_owned()),
            shards: vec![LiveShard { shard: SHARD, files_upto: Barrier(tail.written), batches }],
        })
    }

    /// The last line that is in a file.
    pub fn written(&self) -> Barrier {
        Barrier(self.tail.lock().written)
    }

    /// Puts everything that stands in the journal into files.
    pub async fn cut(&self) -> Result<(), TrailError> {
        let _one = self.cutting.lock().await;
        loop {
            let (from, run, partition) = {
                let mut tail = self.tail.lock();
                while tail.read()? > 0 {}
                let Some(first) = tail.lines.first() else { return Ok(()) };
                let partition = Partition::of(first.at.0, Granularity::Day);
                let same = |line: &&Line<Act>| Partition::of(line.at.0, Granularity::Day) == partition;
                let run: Vec<Line<Act>> = tail.lines.iter().take_while(same).cloned().collect();
                (tail.written, run, partition)
            };
            let to = from + run.len() as u64;
            let table = TableRows {
                table: AUDIT.to_owned(),
                version: "1.0".to_owned(),
                time_column: "ts".to_owned(),
                granularity: Granularity::Day,
                batches: vec![rows(&run)?],
            };
            write_cut(&self.store, SHARD, Barrier(from), Barrier(to), vec![table]).await?;
            self.note(to)?;
            tracing::debug!(%partition, from, to, "acts are in a file");
            let mut tail = self.tail.lock();
            tail.written = to;
            tail.lines.drain(..run.len());
        }
    }

    fn note(&self, to: u64) -> Result<(), TrailError> {
        let write = || -> std::io::Result<()> {
            if let Some(dir) = self.note.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let fresh = self.note.with_extension("new");
            std::fs::write(&fresh, format!("{to}\n"))?;
            std::fs::File::open(&fresh)?.sync_all()?;
            std::fs::rename(&fresh, &self.note)
        };
        write().map_err(|error| TrailError::Note { path: self.note.clone(), message: error.to_string() })
    }

    /// Follows the journal and puts acts into files every so often, until the engine stops.
    pub async fn keep(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let keeping = async {
            let mut due = tokio::time::Instant::now() + every;
            loop {
                tokio::time::sleep(FOLLOW).await;
                let lines = {
                    let mut tail = self.tail.lock();
                    tail.read().map(|_| tail.lines.len())
                };
                let now = tokio::time::Instant::now();
                let done = match lines {
                    Ok(lines) if lines > 0 && (now >= due || lines >= MOST_LIVE) => self.cut().await,
                    Ok(_) if now < due => continue,
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = done {
                    tracing::error!(%error, "the table {AUDIT} does not follow the audit trail now; it tries again");
                }
                due = now + every;
            }
        };
        let _ = stop.run_until_cancelled(keeping).await;
    }
}

impl Tail {
    /// Reads on; given is how many lines.
    fn read(&mut self) -> Result<usize, JournalError> {
        let lines = self.journal.read_some()?;
        let read = lines.len();
        let written = self.written;
        self.lines.extend(lines.into_iter().filter(|line| line.n > written));
        Ok(read)
    }
}

/// Lines as rows.
fn rows(lines: &[Line<Act>]) -> Result<RecordBatch, ArrowError> {
    let text =
        |of: fn(&Line<Act>) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(lines.iter().map(of))) };
    let maybe = |of: fn(&Line<Act>) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(lines.iter().map(|line| of(line).filter(|text| !text.is_empty()))))
    };
    let times = TimestampNanosecondArray::from_iter_values(lines.iter().map(|line| line.at.0));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(lines.iter().map(|line| line.n))),
        Arc::new(times.with_timezone("UTC")),
        text(|line| &line.fact.who),
        maybe(|line| Some(line.fact.role.clone())),
        text(|line| &line.fact.action),
        maybe(|line| Some(line.fact.subject.clone())),
        text(|line| line.fact.outcome.as_str()),
        maybe(|line| Some(line.fact.reason.clone())),
        maybe(|line| (!line.fact.detail.is_null()).then(|| line.fact.detail.to_string())),
        maybe(|line| Some(line.fact.from.clone())),
        Arc::new(StringArray::from_iter_values(lines.iter().map(|line| line.hash.to_string()))),
    ];
    RecordBatch::try_new(audit_schema(), columns)
}

#[cfg(test)]
mod tests;
