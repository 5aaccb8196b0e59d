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

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{"version":1,"streams":[{"stream":"telemetry","major":1,"minor":4,"schema":1,"fields":[
        {"id":1,"name":"t","type":"DOUBLE","unit":"Cel","scale":-1,"range":[-40.0,125.0]},
        {"id":2,"name":"s","type":"TEXT","symbols":["on","off"]}]}]}"#;

    const SQL: &str =
        "CREATE STREAM telemetry (t DOUBLE OPTIONS (id = 1, unit = 'Cel', scale = -1, range = '-40..125'),
        s ENUM('on', 'off') OPTIONS (id = 2)) WITH (version = '1.4');";

    fn loaded(text: &str) -> Loaded {
        project::check(vec![SourceFile { name: "p.sql".to_owned(), text: text.to_owned() }]).unwrap()
    }

    #[test]
    fn what_was_written_once_reads_and_is_written_the_same() {
        let dir = tempfile::tempdir().unwrap();
        assert!(known(dir.path()).unwrap().is_empty());
        note(dir.path(), &loaded(SQL)).unwrap();
        let written: Stored = serde_json::from_slice(&std::fs::read(path(dir.path())).unwrap()).unwrap();
        let old: Stored = serde_json::from_str(OLD).unwrap();
        assert_eq!(written.streams, old.streams);
        std::fs::write(path(dir.path()), OLD).unwrap();
        let now = known(dir.path()).unwrap();
        allowed(&now, &loaded(SQL).project, &[]).unwrap();
        let other = loaded(&SQL.replace("scale = -1", "scale = -2"));
        let refused = allowed(&now, &other.project, &other.files).unwrap_err().to_string();
        assert!(refused.contains("p.sql:1:") && refused.contains("the scale of `t` was -1 and is -2"), "{refused}");
        std::fs::write(path(dir.path()), OLD.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(known(dir.path()).unwrap_err().to_string().contains("run the weir that wrote it"));
    }

    #[test]
    fn a_directory_of_an_earlier_weir_knows_the_project_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let registry = project::Registry::new(project_file(dir.path()));
        registry.settle(&loaded(SQL)).unwrap();
        let now = known(dir.path()).unwrap();
        assert_eq!((now.len(), now[0].minor, now[0].fields.len()), (1, 4, 2));
    }
}
