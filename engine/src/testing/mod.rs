//! `weir test`: scripts in the sqllogictest format that stand beside pipelines as `*.slt`.
//!
//! <https://www.sqlite.org/sqllogictest/doc/trunk/about.wiki>, as the crate `sqllogictest` reads it. Each file runs
//! against an engine of its own, in memory and on a virtual clock (`lab`): `INSERT INTO stream (device, ts, ..)
//! VALUES ..` and `COPY stream FROM 'file.ndjson'` are messages from devices, `FLUSH` lets time pass until all windows
//! close, and anything else is a query over the tables.

mod lab;
mod rows;
mod statement;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::FutureExt;
use futures::future::BoxFuture;
use sql::{Project, StreamDecl};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Record};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::core::blocking;
use crate::project;
use crate::query::{self, Bounds};
use lab::Lab;
use rows::Publish;
use statement::Statement;

/// What one query of a test may take.
const BOUNDS: Bounds = Bounds { rows: 1_000_000, time: Duration::from_secs(60) };

/// Why a statement failed, or a test could not be run.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Failure(String);

impl Failure {
    fn new(reason: impl Display) -> Self {
        Self(reason.to_string())
    }
}

/// How a test file went.
#[derive(Debug)]
pub struct Report {
    /// Which file.
    pub file: PathBuf,
    /// Statements and queries in it.
    pub records: usize,
    /// How long it took.
    pub took: Duration,
    /// What is wrong, with the place and a diff; `None`: it passed.
    pub failure: Option<String>,
}

/// A test file and the folder of its project.
type Found = (PathBuf, PathBuf);

/// The test files below `paths`, each with the folder of its project: the path that was given, or for a single file the nearest
/// folder above it that holds `.sql` files.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        let unreadable = |e: std::io::Error| Failure::new(format!("{}: cannot be read: {e}", path.display()));
        if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            let mut files = Vec::new();
            walk(path, 0, &mut files).map_err(unreadable)?;
            found.extend(files.into_iter().map(|file| (file, path.clone())));
        } else {
            found.push((path.clone(), project_of(path)));
        }
    }
    Ok(found)
}

/// Deeper than anybody nests folders.
const MAX_DEPTH: usize = 32;

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries.into_iter().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if depth < MAX_DEPTH {
                walk(&path, depth + 1, found)?;
            }
        } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("slt")) {
            found.push(path);
        }
    }
    Ok(())
}

fn project_of(file: &Path) -> PathBuf {
    let has_sql = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|e| e.path().extension().is_some_and(|e| e.eq_ignore_ascii_case("sql")))
    };
    let folder = |path: &Path| if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() };
    let mut above = file.ancestors().skip(1).map(folder);
    let first = above.next().unwrap_or_else(|| PathBuf::from("."));
    std::iter::once(first.clone()).chain(above).find(|path| has_sql(path)).unwrap_or(first)
}

/// Runs one test file; with `update`, the results it gives are written into it instead of being compared.
pub async fn run(file: PathBuf, project: Arc<Project>, update: bool) -> Report {
    let began = Instant::now();
    let path = file.clone();
    let done = blocking(async move || {
        // A test that ends the library's parser in a panic must not end the others.
        let script = AssertUnwindSafe(script(path, project, update));
        script.catch_unwind().await.unwrap_or_else(|_| Err(Failure::new("the test ended in a panic")))
    });
    let (records, failure) = match done.await {
        Ok(Ok((records, failure))) => (records, failure),
        Ok(Err(error)) => (0, Some(error.to_string())),
        Err(error) => (0, Some(error.to_string())),
    };
    Report { file, records, took: began.elapsed(), failure }
}

/// The project below a folder.
pub fn load(folder: &Path) -> Result<Arc<Project>, project::ProjectError> {
    Ok(Arc::new(project::load(Some(folder))?.project))
}

async fn script(file: PathBuf, project: Arc<Project>, update: bool) -> Result<(usize, Option<String>), Failure> {
    // The library takes file names as text, and files that are not read at all as a reason to panic.
    let Some(name) = file.to_str().map(str::to_owned) else {
        return Err(Failure::new(format!("{}: the name is not UTF-8 text: rename the file", file.display())));
    };
    let text = std::fs::read_to_string(&file).map_err(|e| Failure::new(format!("{name}: cannot be read: {e}")))?;
    let records = match sqllogictest::parse_file::<DefaultColumnType>(&name) {
        Ok(records) => records,
        Err(error) => return Ok((0, Some(format!("{}: {}", error.location(), error.kind())))),
    };
    let count = records.iter().filter(|r| matches!(r, Record::Statement { .. } | Record::Query { .. })).count();
    let lab = Arc::new(Mutex::new(Lab::new(project).await?));
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let connect = {
        let lab = lab.clone();
        move || -> BoxFuture<'static, Result<Database, Failure>> {
            let database = Database { lab: lab.clone(), folder: folder.clone() };
            Box::pin(async move { Ok(database) })
        }
    };
    let mut runner = sqllogictest::Runner::new(connect);
    let failure = match update {
        false => runner.run_multi_async(records).await.err().map(|error| error.to_string().trim_end().to_owned()),
        true if text.trim().is_empty() => None,
        true => {
            let (validator, normalizer) = (sqllogictest::default_validator, sqllogictest::default_normalizer);
            let columns = sqllogictest::default_column_validator;
            let updated = runner.update_test_file(&name, " ", validator, normalizer, columns).await;
            updated.err().map(|error| format!("{name}: cannot be updated: {error}"))
        }
    };
    runner.shutdown_async().await;
    lab.lock().await.end().await;
    Ok((count, failure))
}

/// What the library takes for a database.
struct Database {
    lab: Arc<Mutex<Lab>>,
    /// What names of files are relative to.
    folder: PathBuf,
}

#[async_trait::async_trait]
impl AsyncDB for Database {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, text: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        let mut lab = self.lab.lock().await;
        match statement::read(text)? {
            Statement::Insert { stream, columns, rows } => insert(&mut lab, &stream, &columns, &rows).await,
            Statement::Copy { stream, file } => copy(&mut lab, &stream, &self.folder.join(file)).await,
            Statement::Flush => {
                lab.flush().await?;
                Ok(DBOutput::StatementComplete(0))
            }
            Statement::Query => select(&mut lab, text).await,
        }
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "weir"
    }

    async fn run_command(_: std::process::Command) -> std::io::Result<std::process::Output> {
        Err(std::io::Error::other("tests of pipelines do not run programs"))
    }
}

fn stream<'a>(project: &'a Project, name: &str) -> Result<&'a StreamDecl, Failure> {
    if project.pipelines.iter().any(|plan| plan.name == name) {
        return Err(Failure::new(format!("`{name}` is a pipeline: rows come to it through the stream that it reads")));
    }
    project.streams.iter().find(|decl| &*decl.stream.name == name).ok_or_else(|| {
        let names: Vec<&str> = project.streams.iter().map(|decl| &*decl.stream.name).collect();
        Failure::new(format!("there is no stream `{name}`; there are: {}", names.join(", ")))
    })
}

async fn insert(
    lab: &mut Lab,
    name: &str,
    columns: &[String],
    rows: &str,
) -> Result<DBOutput<DefaultColumnType>, Failure> {
    let project = lab.project.clone();
    let stream = stream(&project, name)?;
    let session = lab.session().await?;
    let table = query::run(&session, rows, BOUNDS).await.map_err(Failure::new)?;
    let mut published = Vec::new();
    for batch in &table.batches {
        published.extend(rows::of_batch(stream, columns, batch)?);
    }
    let rows = published.into_iter().enumerate().map(|(at, publish)| (format!("row {}", at + 1), publish));
    publish(lab, rows.collect()).await
}

async fn copy(lab: &mut Lab, name: &str, file: &Path) -> Result<DBOutput<DefaultColumnType>, Failure> {
    let project = lab.project.clone();
    let stream = stream(&project, name)?;
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{shown}: cannot be read: {e}")))?;
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{shown}:{}", at + 1);
        let row = rows::of_line(stream, line).map_err(|e| Failure::new(format!("{place}: {e}")))?;
        rows.push((place, row));
    }
    publish(lab, rows).await
}

/// Devices publish, one after the other; all is committed when it returns. The first refusal is the statement's error.
async fn publish(lab: &mut Lab, rows: Vec<(String, Publish)>) -> Result<DBOutput<DefaultColumnType>, Failure> {
    let mut tickets = Vec::with_capacity(rows.len());
    for (place, Publish { device, payload, format, time }) in rows {
        tickets.push((place, lab.publish(&device, payload, format, time).await?));
    }
    lab.settle().await?;
    let count = tickets.len() as u64;
    let refused: Vec<String> = tickets
        .into_iter()
        .filter_map(|(place, ticket)| lab.refused(ticket).map(|reason| format!("{place}: {reason}")))
        .collect();
    match refused.first() {
        None => Ok(DBOutput::StatementComplete(count)),
        Some(first) => Err(Failure::new(format!("{} of {count} refused: {first}", refused.len()))),
    }
}

async fn select(lab: &mut Lab, text: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
    let session = lab.session().await?;
    let table = query::run(&session, text, BOUNDS).await.map_err(Failure::new)?;
    let types = table.schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DefaultColumnType::Text,
        kind if kind.is_integer() => DefaultColumnType::Integer,
        kind if kind.is_floating() => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Any,
    });
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in &table.batches {
        let columns = batch.columns().iter().map(|array| ArrayFormatter::try_new(array, &options));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(Failure::new)?;
        for row in 0..batch.num_rows() {
            let cells = columns.iter().map(|column| {
                let text = column.value(row).try_to_string().map_err(Failure::new)?;
                Ok(if text.is_empty() { "(empty)".to_owned() } else { text })
            });
            rows.push(cells.collect::<Result<Vec<_>, Failure>>()?);
        }
    }
    Ok(DBOutput::Rows { types: types.collect(), rows })
}
