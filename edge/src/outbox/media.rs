//! Where an outbox keeps its bytes: the port and its two adapters, a directory and plain memory.
//!
//! The port knows names and bytes only; what they mean is decided in [`super::segment`] and [`super::meta`].
//! Absent: any retry. A failed write is reported, and the outbox goes on in a new segment.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::EdgeError;

/// A flat set of named byte strings.
pub trait Media: Send {
    /// All names, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new object with these bytes; durable when it returns, name included.
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Puts bytes at an offset, not yet durable.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written to an object durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Sets an object to these bytes, wholly or not at all; durable when it returns.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Up to `len` bytes at an offset; fewer at the end of the object.
    fn read(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Removes an object. It may come back after a crash; whoever reads must bear that.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Whether writing waits for a device, so that it does not belong on an async task's thread.
    fn blocks(&self) -> bool;
}

/// Memory: for devices without a disk, simulated fleets and tests. A restart loses it.
#[derive(Debug, Clone, Default)]
pub struct RamMedia {
    objects: BTreeMap<String, Vec<u8>>,
}

impl RamMedia {
    /// Nothing stored.
    pub fn new() -> Self {
        Self::default()
    }

    fn object(&mut self, name: &str) -> io::Result<&mut Vec<u8>> {
        self.objects.get_mut(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
    }
}

impl Media for RamMedia {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.objects.keys().cloned().collect())
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.replace(name, bytes)
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let object = self.object(name)?;
        // Writes begin at the end of what is good; anything behind is the rest of a failed write.
        object.resize(offset as usize, 0);
        object.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.objects.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn read(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let object = self.object(name)?;
        let begin = (offset as usize).min(object.len());
        let end = begin.saturating_add(len).min(object.len());
        Ok(object.get(begin..end).unwrap_or_default().to_vec())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.objects.remove(name);
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// A directory, one file per object, held by one process at a time.
#[derive(Debug)]
pub struct FileMedia {
    directory: PathBuf,
    // The lock lives as long as this handle.
    _lock: File,
    // The file written last and the file read last: nearly every call goes to one of them.
    writing: Option<(String, File)>,
    reading: Option<(String, File)>,
}

const LOCK: &str = "LOCK";
const TEMPORARY: &str = "tmp";

impl FileMedia {
    /// Opens the directory, makes it if need be, and locks it.
    pub fn open(directory: &Path) -> Result<Self, EdgeError> {
        let failed = |source| EdgeError::Storage { doing: "open the directory", source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(EdgeError::Locked { path: directory.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Self { directory: directory.to_owned(), _lock: lock, writing: None, reading: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Without this a file that was just made may be gone after a power cut, whatever was synced into it.
    fn sync_directory(&self) -> io::Result<()> {
        // Only Unix can open a directory to sync it; elsewhere the file system keeps names with the data.
        if cfg!(unix) { File::open(&self.directory)?.sync_all() } else { Ok(()) }
    }

    fn writer(&mut self, name: &str) -> io::Result<&mut File> {
        if self.writing.as_ref().is_none_or(|(open, _)| open != name) {
            let file = OpenOptions::new().write(true).open(self.path(name))?;
            self.writing = Some((name.to_owned(), file));
        }
        match &mut self.writing {
            Some((_, file)) => Ok(file),
            None => Err(io::Error::other("no open file")),
        }
    }
}

impl Media for FileMedia {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK
                && name != TEMPORARY
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path(name))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.sync_directory()?;
        self.writing = Some((name.to_owned(), file));
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.writer(name)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.writer(name)?.sync_data()
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path(TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.path(name))?;
        self.sync_directory()
    }

    fn read(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if self.reading.as_ref().is_none_or(|(open, _)| open != name) {
            self.reading = Some((name.to_owned(), File::open(self.path(name))?));
        }
        let Some((_, file)) = &mut self.reading else { return Err(io::Error::other("no open file")) };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.writing.take_if(|(open, _)| open == name);
        self.reading.take_if(|(open, _)| open == name);
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn blocks(&self) -> bool {
        true
    }
}
