//! The pipeline project in the data directory: which version counts, and the change to another one at start.
//!
//! The version that the log was written under is kept beside it. When the folder has changed since, the engine
//! first finishes what is old with the old project (replay, then a cut), and only then goes on with the new one:
//! so a row is never read against a schema it was not written for.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sql::{Project, SourceFile};
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
    /// Its meaning.
    pub project: Project,
    /// Its text.
    pub files: Vec<SourceFile>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    files: Vec<StoredFile>,
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

/// Checks files that are already in memory.
pub fn check(files: Vec<SourceFile>) -> Result<Loaded, ProjectError> {
    match sql::check(&files) {
        Ok(project) => Ok(Loaded { project, files }),
        Err(diagnostics) => Err(ProjectError::Check { rendered: sql::render_all(&diagnostics, &files) }),
    }
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
    check(files).map(Some)
}

/// Keeps the files as the version that counts from now on. Replaces the old copy in one step.
pub fn store(path: &Path, files: &[SourceFile]) -> Result<(), ProjectError> {
    let stored = Stored {
        version: VERSION,
        files: files.iter().map(|file| StoredFile { name: file.name.clone(), text: file.text.clone() }).collect(),
    };
    let write = || -> std::io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec_pretty(&stored)?)?;
        std::fs::File::open(&fresh)?.sync_all()?;
        std::fs::rename(&fresh, path)?;
        if let Some(dir) = path.parent() {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|e| ProjectError::Registry { path: path.to_owned(), message: e.to_string() })
}
