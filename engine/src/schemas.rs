//! What a data directory knows of the streams it holds, and what a project may make of them.
//!
//! `registry/pipelines/schemas.json` holds every major version of every stream that ever counted, also of those that are no
//! longer declared: their tables are still there. It is written before the project that changes it counts
//! for all shards, and asked before one is taken over. A directory without it is one of an earlier weir; then the project
//! that counts there is what is known.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sql::{Known, Project, SourceFile, evolve, known_with};
use storage::layout;

use crate::core::project_file;
use crate::project::{self, Loaded, ProjectError, write_new};

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    streams: Vec<Known>,
}

const VERSION: u32 = 1;

fn path(data: &Path) -> PathBuf {
    data.join(layout::registry("pipelines", "schemas.json"))
}

/// What a data directory knows; nothing if it is new.
pub fn known(data: &Path) -> Result<Vec<Known>, ProjectError> {
    let path = path(data);
    let failed = |message: String| ProjectError::Registry { path: path.clone(), message };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let before = project::stored(&project_file(data))?;
            return Ok(before.map(|loaded| known_with(&[], &loaded.project)).unwrap_or_default());
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
    match stored.version {
        VERSION => Ok(stored.streams),
        found if found > VERSION => Err(failed(format!(
            "format {found} is newer than this weir, which knows {VERSION}: run the weir that wrote it, or a newer one"
        ))),
        found => Err(failed(format!("there is no format {found}: the file is damaged; restore it from a copy"))),
    }
}

/// Refuses a project that may not follow upon what is known.
pub fn allowed(known: &[Known], project: &Project, files: &[SourceFile]) -> Result<(), ProjectError> {
    let found = evolve(known, project);
    match found.is_empty() {
        true => Ok(()),
        false => Err(ProjectError::Check { rendered: sql::render_all(&found, files), may_pass: false }),
    }
}

/// Notes that a project counts. Durable when this returns.
pub fn note(data: &Path, loaded: &Loaded) -> Result<(), ProjectError> {
    let path = path(data);
    let failed = |message: String| ProjectError::Registry { path: path.clone(), message };
    let before = known(data)?;
    let streams = known_with(&before, &loaded.project);
    if streams == before && path.exists() {
        return Ok(());
    }
    let bytes = serde_json::to_vec_pretty(&Stored { version: VERSION, streams }).map_err(|e| failed(e.to_string()))?;
    let write = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        write_new(&path, &bytes)
    };
    write().map_err(|e: std::io::Error| failed(e.to_string()))
}
