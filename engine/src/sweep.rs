//! What a `kill -9` in the middle of a file leaves: half a file under a name of its own, beside the name that it would have got.
//!
//! The store writes `x.parquet#1` and then renames it. Our readers and globs of `*.parquet` pass such a file over; readers that take
//! every file of a folder do not. Whoever holds the lock of the data directory is the only writer, so at its start they are nobody's.

use std::io;
use std::path::Path;

/// Removes them below `dir`; returns how many.
pub(crate) fn sweep(dir: &Path) -> io::Result<usize> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut count = 0;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += sweep(&entry.path())?;
        } else if is_half(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
            count += 1;
        }
    }
    Ok(count)
}

fn is_half(name: &str) -> bool {
    name.rsplit_once(".parquet#").is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_files_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sweep(&dir.path().join("none")).unwrap(), 0);
        let deep = dir.path().join("t/date=2026-11-23/hour=01");
        std::fs::create_dir_all(&deep).unwrap();
        for name in ["a.parquet", "a.parquet#1", "b.parquet#12", "c.parquet#", "d#1", "e.parquet#x"] {
            std::fs::write(deep.join(name), "x").unwrap();
        }
        assert_eq!(sweep(dir.path()).unwrap(), 2);
        let mut left: Vec<_> = std::fs::read_dir(&deep).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a.parquet", "c.parquet#", "d#1", "e.parquet#x"]);
    }
}
