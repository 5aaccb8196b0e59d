//! The pipeline project in the data directory: which version counts, and the change to another one at start.
//!
//! The versions that logs were written under are kept beside them. When the folder has changed since the engine ran, it
//! first finishes what is old with the old project (replay, then a cut), and only then goes on with the new one. When
//! it changes while the engine runs, each shard goes over at a position of its log ([`Registry`], `watch.rs`). So a row is never read against a schema it was not written for, nor looked up in rows that came later.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use pipelines::output::{from_ipc, to_ipc};
use serde::{Deserialize, Serialize};
use sql::{Diagnostic, Project, SourceFile};
use thiserror::Error;

/// Why there is no project to run.
#[derive(Debug, Error)]
pub enum ProjectError {
    /// The folder cannot be read.
    #[error("{0}")]
    Load(#[from] sql::LoadError),
    /// The files have errors; the text is what `weir check` prints.
    #[error("{rendered}")]
    Check {
        /// All diagnostics, rendered.
        rendered: String,
        /// Nothing else is wrong than that an object store does not answer: it may work a moment later.
        may_pass: bool,
    },
    /// The copy in the data directory cannot be read or written.
    #[error("{path}: {message}")]
    Registry {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// A checked project and the files it came from.
pub struct Loaded {
    /// Its meaning, with the rows of its reference tables.
    pub project: Project,
    /// Its text.
    pub files: Vec<SourceFile>,
}

impl Loaded {
    /// Says in the log what can run but is probably not meant.
    pub fn warn(&self) {
        for warning in &self.project.warnings {
            let help = warning.help.as_deref().unwrap_or_default();
            tracing::warn!("{}:{}:{}: {}; {help}", warning.file, warning.line, warning.column, warning.message);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    files: Vec<StoredFile>,
    /// The rows that reference tables had, each in a file beside this one. The files they came from may change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tables: Vec<StoredTable>,
}

#[derive(Serialize, Deserialize)]
struct StoredTable {
    name: String,
    file: String,
}

#[derive(Serialize, Deserialize)]
struct StoredFile {
    name: String,
    text: String,
}

const VERSION: u32 = 1;

/// Reads and checks the files below `dir`; without a folder the project is empty.
pub fn load(dir: Option<&Path>) -> Result<Loaded, ProjectError> {
    let files = match dir {
        Some(dir) => sql::load(&[dir.to_owned()])?,
        None => Vec::new(),
    };
    check(files)
}

/// Checks files that are already in memory, and reads the rows of their reference tables.
pub fn check(files: Vec<SourceFile>) -> Result<Loaded, ProjectError> {
    checked(files, sql::read_tables)
}

fn checked(
    files: Vec<SourceFile>,
    rows: impl FnOnce(&mut Project) -> Result<(), Vec<Diagnostic>>,
) -> Result<Loaded, ProjectError> {
    let project = sql::check(&files).and_then(|mut project| rows(&mut project).map(|()| project));
    match project {
        Ok(project) => Ok(Loaded { project, files }),
        Err(diagnostics) => Err(ProjectError::Check {
            rendered: sql::render_all(&diagnostics, &files),
            may_pass: diagnostics.iter().all(|one| one.code == sql::code::UNREACHABLE),
        }),
    }
}

/// As [`load`], for an engine that starts: where an object store does not answer, a reference table has the rows that
/// the data directory knows of it. Devices must not wait for a store that they have nothing to do with.
pub fn load_for(dir: Option<&Path>, data: &Path) -> Result<Loaded, ProjectError> {
    let files = match dir {
        Some(dir) => sql::load(&[dir.to_owned()])?,
        None => Vec::new(),
    };
    let kept = |project: &mut Project, found: Vec<Diagnostic>| {
        let before = stored(&crate::core::project_file(data)).ok().flatten();
        let mut left = Vec::new();
        for one in found {
            let missing = |decl: &&sql::TableDecl| decl.at.0 == one.file && decl.location_at == one.span();
            let table = project.tables.iter().find(missing);
            let same = |decl: &&sql::TableDecl| {
                table.is_some_and(|table| {
                    (&table.name, &table.schema, &table.key, &table.location)
                        == (&decl.name, &decl.schema, &decl.key, &decl.location)
                })
            };
            let rows = before.as_ref().and_then(|loaded| loaded.project.tables.iter().find(same));
            match rows.filter(|_| one.code == sql::code::UNREACHABLE) {
                Some(table) => {
                    tracing::warn!("table {}: {}; the rows of before count until it does", table.name, one.message);
                    project.set_rows(&table.name, &table.rows);
                }
                None => left.push(one),
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    };
    checked(files, |project| sql::read_tables(project).or_else(|found| kept(project, found)))
}

/// The project that the log in this data directory was written under, if there is one.
pub fn stored(path: &Path) -> Result<Option<Loaded>, ProjectError> {
    let failed = |message: String| ProjectError::Registry { path: path.to_owned(), message };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
    if stored.version != VERSION {
        let found = stored.version;
        return Err(failed(match found > VERSION {
            true => format!(
                "format {found} is newer than this weir, which knows {VERSION}: run the weir that wrote it, or a newer one"
            ),
            false => format!("there is no format {found}: the file is damaged; restore it from a copy"),
        }));
    }
    let files = stored.files.into_iter().map(|file| SourceFile { name: file.name, text: file.text }).collect();
    let mut loaded = checked(files, |_| Ok(()))?;
    for table in stored.tables {
        let path = path.with_file_name(&table.file);
        let failed = |message: String| ProjectError::Registry { path: path.clone(), message };
        let bytes = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let batches = from_ipc(&bytes.into()).map_err(|e| failed(e.to_string()))?;
        let rows = batches.first().ok_or_else(|| failed("the file is damaged; restore it from a copy".to_owned()))?;
        loaded.project.set_rows(&table.name, rows);
    }
    Ok(Some(loaded))
}

/// The versions of the project that logs and states of a data directory may name.
///
/// `project.json` is the one that counts for all shards; each version that a shard may still be at, or go over to,
/// stands beside it under its fingerprint, and the rows of its tables under names of their own.
pub struct Registry {
    current: PathBuf,
    known: Mutex<HashMap<u64, Arc<Project>>>,
}

impl Registry {
    /// The registry whose `project.json` is `current`.
    pub fn new(current: PathBuf) -> Self {
        Self { current, known: Mutex::new(HashMap::new()) }
    }

    /// The version that counts for all shards, if there is one yet.
    pub fn current(&self) -> Result<Option<Loaded>, ProjectError> {
        stored(&self.current)
    }

    fn path(&self, version: u64) -> PathBuf {
        self.current.with_file_name(format!("{version:016x}.json"))
    }

    /// Makes a version durable before any log names it.
    pub fn keep(&self, loaded: &Loaded) -> Result<Arc<Project>, ProjectError> {
        let version = loaded.project.fingerprint();
        write(&self.path(version), loaded)?;
        let project = Arc::new(loaded.project.clone());
        self.known.lock().insert(version, project.clone());
        Ok(project)
    }

    /// The version with that fingerprint.
    pub fn get(&self, version: u64) -> Option<Arc<Project>> {
        if let Some(project) = self.known.lock().get(&version) {
            return Some(project.clone());
        }
        match stored(&self.path(version)) {
            Ok(loaded) => {
                let project = Arc::new(loaded?.project);
                self.known.lock().insert(version, project.clone());
                Some(project)
            }
            Err(error) => {
                tracing::error!(%error, "a version of the project that a shard may be at cannot be read");
                None
            }
        }
    }

    /// From now on the version counts for all shards; no other one is needed any more.
    pub fn settle(&self, loaded: &Loaded) -> Result<(), ProjectError> {
        write(&self.current, loaded)?;
        let version = loaded.project.fingerprint();
        let (own, rows) = (self.path(version), format!("-{version:016x}.arrow"));
        self.known.lock().retain(|known, _| *known == version);
        let dir = self.current.parent().unwrap_or(Path::new("."));
        // Only space is lost if one stays.
        for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let version = name.strip_suffix(".json").is_some_and(|stem| stem.len() == 16 && path != own);
            if version || (name.ends_with(".arrow") && !name.ends_with(&rows)) {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }
}

/// Writes a project in one step; the rows of its tables stand there before.
fn write(path: &Path, loaded: &Loaded) -> Result<(), ProjectError> {
    let Loaded { project, files } = loaded;
    let fingerprint = project.fingerprint();
    let name_of = |table: &str| format!("{table}-{fingerprint:016x}.arrow");
    let tables = project.tables.iter().map(|decl| StoredTable { name: decl.name.clone(), file: name_of(&decl.name) });
    let files = files.iter().map(|file| StoredFile { name: file.name.clone(), text: file.text.clone() });
    let stored = Stored { version: VERSION, files: files.collect(), tables: tables.collect() };
    let write = || -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        for decl in &project.tables {
            let rows = to_ipc(&decl.rows).map_err(std::io::Error::other)?;
            write_new(&path.with_file_name(name_of(&decl.name)), &rows)?;
        }
        write_new(path, &serde_json::to_vec_pretty(&stored)?)
    };
    write().map_err(|e| ProjectError::Registry { path: path.to_owned(), message: e.to_string() })
}

/// Writes a whole file or nothing, and returns when it is durable.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes)?;
    std::fs::File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = "CREATE TABLE sites (device TEXT, site TEXT) WITH (location = 'sites.csv', key = 'device');
CREATE PIPELINE p AS SELECT t.ts, t.device, site FROM telemetry t JOIN sites s ON t.device = s.device;";

    #[test]
    fn the_rows_of_tables_are_kept_with_the_version_that_looked_them_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry/project.json");
        let sources = dir.path().join("sources");
        std::fs::create_dir(&sources).unwrap();
        std::fs::write(sources.join("p.sql"), SQL).unwrap();
        std::fs::write(sources.join("sites.csv"), "device,site\na,north\n").unwrap();
        let first = load(Some(&sources)).unwrap();
        let registry = Registry::new(path.clone());
        registry.keep(&first).unwrap();
        registry.settle(&first).unwrap();
        std::fs::write(sources.join("sites.csv"), "device,site\na,south\nb,south\n").unwrap();
        let kept = stored(&path).unwrap().unwrap();
        assert_eq!(kept.project.fingerprint(), first.project.fingerprint());
        assert_eq!(kept.project.pipelines[0].joins[0].rows, first.project.pipelines[0].joins[0].rows);

        let second = load(Some(&sources)).unwrap();
        assert_ne!(second.project.fingerprint(), first.project.fingerprint(), "other rows are another version");
        let plan = |loaded: &Loaded| loaded.project.pipelines[0].fingerprint;
        assert_eq!(plan(&second), plan(&first), "but the pipeline goes on with its windows");
        registry.keep(&second).unwrap();
        let again = Registry::new(path.clone());
        let versions = [&first, &second].map(|loaded| again.get(loaded.project.fingerprint()).unwrap());
        assert_eq!(
            versions.map(|project| project.tables[0].rows.num_rows()),
            [1, 2],
            "both, until all shards went over"
        );
        registry.settle(&second).unwrap();
        assert!(Registry::new(path.clone()).get(first.project.fingerprint()).is_none());
        assert_eq!(stored(&path).unwrap().unwrap().project.tables[0].rows.num_rows(), 2);
        let files = std::fs::read_dir(dir.path().join("registry")).unwrap().count();
        assert_eq!(files, 3, "the rows of the first version are gone");

        std::fs::remove_file(sources.join("sites.csv")).unwrap();
        let refused = load(Some(&sources)).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("sites.csv: no such file") && refused.contains("p.sql:1:"), "{refused}");
    }
}
