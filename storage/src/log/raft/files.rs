//! The files under raft-engine, watched: how far each of them is known to be on the disk.
//!
//! Three things raft-engine does not do for us. After an fsync failed, the page cache may hold bytes that the disk
//! will never have, so a record that can be read back proves nothing: [`WatchedFiles::repair`] cuts every file back
//! to the last fsync that succeeded, and whoever waited for one of the lost records writes it again. When an fsync
//! fails it panics in the writer that led the group, while the others of the group are told "written": they ask
//! [`WatchedFiles::failed`]. And on a full disk it starts a new file at each attempt, until there are no more
//! file descriptors: so the error it recognises a full disk by is given another text.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Error, Read, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};

type PlainHandle = <DefaultFileSystem as FileSystem>::Handle;
type PlainFile = <DefaultFileSystem as FileSystem>::Writer;

/// How far a file was written and how far it is on the disk, in bytes.
#[derive(Debug, Default)]
struct Mark {
    written: AtomicU64,
    durable: AtomicU64,
}

#[derive(Debug, Default)]
struct Watch {
    marks: Mutex<HashMap<PathBuf, Arc<Mark>>>,
    failed: AtomicBool,
    closing: AtomicBool,
    #[cfg(test)]
    faults: faults::Faults,
}

/// The file system of one instance of raft-engine. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct WatchedFiles {
    watch: Arc<Watch>,
}

impl WatchedFiles {
    /// Whether an fsync of this instance failed, or [`WatchedFiles::fail`] was called: it must not be used on.
    pub(super) fn failed(&self) -> bool {
        self.watch.failed.load(Ordering::SeqCst)
    }

    /// Marks the instance as not to be used on.
    pub(super) fn fail(&self) {
        self.watch.failed.store(true, Ordering::SeqCst);
    }

    /// From now on fsyncs do nothing: a failed instance is being dropped, and would panic in its destructor if the
    /// disk still refused. What it leaves behind is repaired afterwards.
    pub(super) fn close(&self) {
        self.watch.closing.store(true, Ordering::SeqCst);
    }

    /// Cuts each file back to what is known to be on the disk. To be called when the instance is gone.
    pub(super) fn repair(&self) -> Result<()> {
        for (path, mark) in self.watch.marks.lock().iter() {
            let durable = mark.durable.load(Ordering::SeqCst);
            let file = match OpenOptions::new().write(true).open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if file.metadata()?.len() > durable {
                file.set_len(durable)?;
            }
            file.sync_all()?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn faults(&self) -> &faults::Faults {
        &self.watch.faults
    }

    fn mark(&self, path: &Path, len: u64) -> Arc<Mark> {
        let fresh = || Arc::new(Mark { written: AtomicU64::new(len), durable: AtomicU64::new(len) });
        self.watch.marks.lock().entry(path.to_owned()).or_insert_with(fresh).clone()
    }
}

impl FileSystem for WatchedFiles {
    type Handle = WatchedHandle;
    type Reader = PlainFile;
    type Writer = WatchedWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<WatchedHandle> {
        let inner = Arc::new(DefaultFileSystem.create(&path)?);
        Ok(WatchedHandle { inner, mark: self.mark(path.as_ref(), 0), watch: self.watch.clone() })
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<WatchedHandle> {
        let inner = Arc::new(DefaultFileSystem.open(&path, permission)?);
        // What is there when the log is opened is fsynced before the log is used.
        let mark = self.mark(path.as_ref(), inner.file_size()? as u64);
        Ok(WatchedHandle { inner, mark, watch: self.watch.clone() })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        DefaultFileSystem.delete(&path)?;
        self.watch.marks.lock().remove(path.as_ref());
        Ok(())
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        DefaultFileSystem.rename(&from, &to)?;
        // raft-engine renames only files it uses anew: what they held counts no more.
        let mut marks = self.watch.marks.lock();
        marks.remove(from.as_ref());
        marks.insert(to.as_ref().to_owned(), Arc::default());
        Ok(())
    }

    fn new_reader(&self, handle: Arc<WatchedHandle>) -> Result<PlainFile> {
        DefaultFileSystem.new_reader(handle.inner.clone())
    }

    fn new_writer(&self, handle: Arc<WatchedHandle>) -> Result<WatchedWriter> {
        let inner = DefaultFileSystem.new_writer(handle.inner.clone())?;
        Ok(WatchedWriter { inner, offset: 0, mark: handle.mark.clone(), watch: handle.watch.clone() })
    }
}

/// A file that knows how much of it is on the disk.
pub(super) struct WatchedHandle {
    inner: Arc<PlainHandle>,
    mark: Arc<Mark>,
    watch: Arc<Watch>,
}

impl Handle for WatchedHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        Handle::truncate(&*self.inner, offset)?;
        cut(&self.mark, offset);
        Ok(())
    }

    fn file_size(&self) -> Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> Result<()> {
        if self.watch.closing.load(Ordering::SeqCst) {
            return Ok(());
        }
        let written = self.mark.written.load(Ordering::SeqCst);
        let synced = self.inner.sync();
        #[cfg(test)]
        let synced = synced.and_then(|()| self.watch.faults.sync());
        if synced.is_err() {
            self.watch.failed.store(true, Ordering::SeqCst);
        } else {
            self.mark.durable.fetch_max(written, Ordering::SeqCst);
        }
        synced
    }
}

fn cut(mark: &Mark, len: usize) {
    mark.written.store(len as u64, Ordering::SeqCst);
    mark.durable.fetch_min(len as u64, Ordering::SeqCst);
}

/// Writes at an offset and notes how far it came.
pub(super) struct WatchedWriter {
    inner: PlainFile,
    offset: u64,
    mark: Arc<Mark>,
    #[cfg_attr(not(test), expect(dead_code, reason = "holds the faults that tests inject"))]
    watch: Arc<Watch>,
}

/// The same failure under a text that raft-engine does not know, so that it does not start a new file for it.
fn renamed(error: &Error) -> Error {
    Error::new(error.kind(), format!("write failed ({})", error.kind()))
}

impl Write for WatchedWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        #[cfg(test)]
        self.watch.faults.write(&mut self.inner, bytes).map_err(|error| renamed(&error))?;
        let len = self.inner.write(bytes).map_err(|error| renamed(&error))?;
        self.offset += len as u64;
        self.mark.written.fetch_max(self.offset, Ordering::SeqCst);
        Ok(len)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

impl Seek for WatchedWriter {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.offset = self.inner.seek(to)?;
        Ok(self.offset)
    }
}

impl Read for WatchedWriter {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.inner.read(bytes)
    }
}

impl WriteExt for WatchedWriter {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.inner.truncate(offset)?;
        self.offset = offset as u64;
        cut(&self.mark, offset);
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.inner.allocate(offset, size)
    }
}

/// Failures that tests ask for.
#[cfg(test)]
pub(super) mod faults {
    use std::io::{Error, ErrorKind, Result, Write};
    use std::sync::atomic::{AtomicI64, Ordering};

    /// Counts down; the operation that finds 0 or less in an armed counter fails, and so do all after it.
    #[derive(Debug)]
    pub(in super::super) struct Faults {
        pub(in super::super) writes_left: AtomicI64,
        pub(in super::super) syncs_left: AtomicI64,
    }

    impl Default for Faults {
        fn default() -> Self {
            Self { writes_left: AtomicI64::new(i64::MAX), syncs_left: AtomicI64::new(i64::MAX) }
        }
    }

    impl Faults {
        pub(super) fn write(&self, file: &mut impl Write, bytes: &[u8]) -> Result<()> {
            if self.writes_left.fetch_sub(1, Ordering::SeqCst) > 0 {
                return Ok(());
            }
            // As a full disk does it: some bytes still go in.
            let some = bytes.get(..bytes.len() / 2).unwrap_or_default();
            let _ = file.write(some);
            Err(Error::new(ErrorKind::StorageFull, "nospace"))
        }

        pub(super) fn sync(&self) -> Result<()> {
            match self.syncs_left.fetch_sub(1, Ordering::SeqCst) > 0 {
                true => Ok(()),
                false => Err(Error::other("told to fail")),
            }
        }
    }
}
