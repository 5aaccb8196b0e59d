//! The lock of a data directory: one engine writes, a second one is refused at once.
//!
//! It is the file lock of the operating system, so it ends with the process, however that ends. It guards one
//! machine only; shards on shared storage are fenced by their state database.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::layout;

/// Why a data directory could not be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "the data directory {directory} is in use by another weir{holder}: stop that one, or give this one a \
         directory of its own with --data"
    )]
    Held {
        /// Which directory.
        directory: PathBuf,
        /// Who, as far as known: ` (process 4711)`.
        holder: String,
    },
    /// The directory or its lock file cannot be used.
    #[error("cannot use {directory} as data directory: {source}; it must be a local directory this user can write to")]
    Io {
        /// Which directory.
        directory: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// A data directory that this process alone may write to, as long as the value lives.
#[derive(Debug)]
pub struct DataLock {
    directory: PathBuf,
    /// Closing the file ends the lock.
    _file: File,
}

impl DataLock {
    /// Creates the directory if it is missing and takes its lock.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { directory: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(layout::lock_file(directory))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The number is only for the message; an unreadable file must not hide the real reason.
                let _ = file.read_to_string(&mut text);
                let holder = text.trim().parse::<u32>().map(|id| format!(" (process {id})")).unwrap_or_default();
                return Err(LockError::Held { directory: directory.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // Not being able to note the number, on a full disk for instance, is no reason not to run.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { directory: directory.to_owned(), _file: file })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = DataLock::acquire(&data).unwrap();
        let refused = DataLock::acquire(&data).unwrap_err().to_string();
        assert!(refused.contains(&data.display().to_string()), "{refused}");
        assert!(refused.contains("--data"), "{refused}");
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(first);
        DataLock::acquire(&data).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::write(&data, b"").unwrap();
        let refused = DataLock::acquire(&data).unwrap_err().to_string();
        assert!(refused.contains(&data.display().to_string()), "{refused}");
    }
}
