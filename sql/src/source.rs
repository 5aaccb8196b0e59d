//! Finds and reads `.sql` files.
//!
//! Folders are read recursively and in the order of their names, so that two runs say the same. Hidden files and
//! folders are skipped, and so are links to folders, which could form a ring.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A pipeline file is text written by people; anything larger is the wrong file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Deeper than anybody nests folders.
const MAX_DEPTH: usize = 32;

/// One file's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As shown in messages: the path as it was given or found.
    pub name: String,
    /// The whole file.
    pub text: String,
}

/// Why files could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A path that was named does not exist.
    #[error("{path}: no such file or folder: give the path of a .sql file or of a folder with .sql files")]
    Missing {
        /// The path.
        path: String,
    },
    /// The file or folder cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Unreadable {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Not text.
    #[error("{path}:{line}: not UTF-8 text: save the file as UTF-8")]
    NotUtf8 {
        /// The path.
        path: String,
        /// Line of the first wrong byte.
        line: usize,
    },
    /// Too large to be a pipeline file.
    #[error("{path}: {bytes} bytes, but a pipeline file may have {MAX_FILE_BYTES}: is this the right file?")]
    TooLarge {
        /// The path.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// Folders nested without end.
    #[error("{path}: folders nested more than {MAX_DEPTH} deep")]
    TooDeep {
        /// The path.
        path: String,
    },
}

/// Reads the named files, and all `.sql` files of the named folders. A file that is reached twice is read once.
pub fn load(paths: &[PathBuf]) -> Result<Vec<SourceFile>, LoadError> {
    let mut found = Vec::new();
    for path in paths {
        let meta = fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LoadError::Missing { path: shown(path) },
            _ => LoadError::Unreadable { path: shown(path), source },
        })?;
        if meta.is_dir() {
            walk(path, 0, &mut found)?;
        } else {
            found.push(path.clone());
        }
    }
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    for path in found {
        let real = fs::canonicalize(&path).map_err(|source| LoadError::Unreadable { path: shown(&path), source })?;
        if seen.insert(real) {
            files.push(read(&path)?);
        }
    }
    Ok(files)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: shown(folder), source };
    if depth > MAX_DEPTH {
        return Err(LoadError::TooDeep { path: shown(folder) });
    }
    let mut entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("sql"))
            && !(kind.is_symlink() && path.is_dir())
        {
            found.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<SourceFile, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: shown(path), source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: shown(path), bytes });
    }
    let text = String::from_utf8(fs::read(path).map_err(unreadable)?).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        LoadError::NotUtf8 { path: shown(path), line: 1 + good.iter().filter(|b| **b == b'\n').count() }
    })?;
    Ok(SourceFile { name: shown(path), text })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read_in_order_and_files_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir_all(at("b/c")).unwrap();
        fs::create_dir_all(at(".git")).unwrap();
        for (path, text) in [
            ("z.sql", "z"),
            ("a.sql", "a"),
            ("b/c/x.SQL", "x"),
            ("b/no.txt", "n"),
            (".git/h.sql", "h"),
            ("b/.h.sql", "h"),
        ] {
            fs::write(at(path), text).unwrap();
        }
        let files = load(&[dir.path().to_owned(), at("a.sql"), at("b/no.txt")]).unwrap();
        let texts: Vec<&str> = files.iter().map(|f| f.text.as_str()).collect();
        assert_eq!(texts, ["a", "x", "z", "n"]);
        assert_eq!(files[0].name, at("a.sql").display().to_string());
        assert!(load(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        let says = |p: &str| load(&[at(p)]).unwrap_err().to_string();
        assert!(says("gone.sql").contains("gone.sql: no such file or folder"));
        fs::write(at("bytes.sql"), b"SELECT 1;\n-- \xff\xfe").unwrap();
        assert!(says("bytes.sql").contains("bytes.sql:2: not UTF-8 text"));
        fs::write(at("big.sql"), vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap();
        assert!(says("big.sql").contains("1048577 bytes"));
        #[cfg(unix)]
        {
            fs::create_dir(at("links")).unwrap();
            std::os::unix::fs::symlink(at("links"), at("links/ring")).unwrap();
            std::os::unix::fs::symlink(at("nowhere"), at("links/broken.sql")).unwrap();
            let error = load(&[at("links")]).unwrap_err();
            assert!(matches!(error, LoadError::Unreadable { .. }), "{error}");
        }
    }
}
