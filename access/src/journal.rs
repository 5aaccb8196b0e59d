//! A file that facts are only ever added to: one line of JSON each, chained by hashes.
//!
//! A line is `{"n":1,"at":"2026-01-01T00:00:00.000000000Z","fact":{...},"hash":"..."}`. `hash` is SHA-256 over the hash of the
//! line before (32 bytes; zeros before the first) and all of this line before `,"hash"`. So a line that is changed, taken
//! out or put in breaks the chain at its place; only the end can be cut off unseen, by somebody who can write the file.
//! Whoever wants to see that, too, keeps the last hash elsewhere.
//!
//! Several processes may have it open. Writers take the file's lock, read what others have added, decide, write, sync. A
//! last line without its end is what a crash in the middle of writing left: nobody was told that it counts, so the next
//! writer removes it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use device::time::Timestamp;
use ring::digest::{Context, SHA256};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line is not what was written.
    #[error("{path}:{line}: {message}; the file was changed by something else, restore it from a copy")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
}

/// A fact as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<T> {
    /// Its number, from 1, without gaps.
    pub n: u64,
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// What it says.
    pub fact: T,
    /// The hash of the chain up to and including this line.
    pub hash: Hash,
}

/// A place in the chain.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl Hash {
    fn then(self, body: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(body);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self(hash)
    }
}

/// An open journal of facts `T`, read up to some line.
#[derive(Debug)]
pub struct Journal<T> {
    path: PathBuf,
    file: File,
    /// Bytes that are read, all of whole lines.
    end: u64,
    /// Lines that are read.
    lines: u64,
    head: Hash,
    facts: PhantomData<fn() -> T>,
}

/// What a line says beside its hash.
#[derive(Deserialize)]
struct Body<T> {
    n: u64,
    at: String,
    fact: T,
}

/// The same, to be written.
#[derive(Serialize)]
struct BodyRef<'a, T> {
    n: u64,
    at: String,
    fact: &'a T,
}

const TAIL: &str = ",\"hash\":\"";

/// Bytes that [`Journal::read_some`] takes at a time; of a longer line, as many as it has.
const CHUNK: u64 = 4 << 20;

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens the file, made with its folder if it is not there; only its owner may read it. Nothing is read yet.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let error = |source| JournalError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(error)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(error)?;
        let path = path.to_owned();
        Ok(Self { path, file, end: 0, lines: 0, head: Hash::default(), facts: PhantomData })
    }

    /// Opens a file that is there, to read it only.
    pub fn read_only(path: &Path) -> Result<Self, JournalError> {
        let file = File::open(path).map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
        let path = path.to_owned();
        Ok(Self { path, file, end: 0, lines: 0, head: Hash::default(), facts: PhantomData })
    }

    /// The number of the last line that was read, and the hash of the chain there.
    pub fn head(&self) -> (u64, Hash) {
        (self.lines, self.head)
    }

    /// Reads what was added since the last read.
    pub fn read_on(&mut self) -> Result<Vec<Line<T>>, JournalError> {
        self.read(u64::MAX)
    }

    /// The same, a few megabytes at a time: nothing is left when it gives nothing.
    pub fn read_some(&mut self) -> Result<Vec<Line<T>>, JournalError> {
        let mut most = CHUNK;
        loop {
            let lines = self.read(most)?;
            let left = self.file.metadata().map_err(|e| self.io(e))?.len().saturating_sub(self.end);
            if !lines.is_empty() || left <= most {
                return Ok(lines);
            }
            most *= 2;
        }
    }

    fn read(&mut self, most: u64) -> Result<Vec<Line<T>>, JournalError> {
        let length = self.file.metadata().map_err(|e| self.io(e))?.len();
        if length < self.end {
            return Err(self.broken(self.lines, format!("the file ends here; it had {} bytes", self.end)));
        }
        if length == self.end {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(self.end)).map_err(|e| self.io(e))?;
        (&self.file).take((length - self.end).min(most)).read_to_end(&mut bytes).map_err(|e| self.io(e))?;
        let mut lines = Vec::new();
        for text in bytes.split_inclusive(|byte| *byte == b'\n') {
            // The last may be in the middle of being written.
            let Some(text) = text.strip_suffix(b"\n") else { break };
            let line = self.parse(text).map_err(|message| self.broken(self.lines + 1, message))?;
            self.end += text.len() as u64 + 1;
            self.lines = line.n;
            self.head = line.hash;
            lines.push(line);
        }
        Ok(lines)
    }

    fn parse(&self, text: &[u8]) -> Result<Line<T>, String> {
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        let (body, hash) = text.rsplit_once(TAIL).ok_or("the line has no hash")?;
        let expected = self.head.then(body.as_bytes());
        if hash.strip_suffix("\"}") != Some(expected.to_string().as_str()) {
            return Err("the hash does not fit this line and those before it".to_owned());
        }
        let body: Body<T> = serde_json::from_str(&format!("{body}}}")).map_err(|e| e.to_string())?;
        if body.n != self.lines + 1 {
            return Err(format!("line {} has the number {}", self.lines + 1, body.n));
        }
        let at = humantime::parse_rfc3339(&body.at).map_err(|e| e.to_string())?;
        let at = at.duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
        let at = i64::try_from(at.as_nanos()).map_err(|e| e.to_string())?;
        Ok(Line { n: body.n, at: Timestamp(at), fact: body.fact, hash: expected })
    }

    /// Adds facts. `decide` is given what others have added since the last read, and says what to add; nothing can come in
    /// between. It may refuse, and then nothing is added. Returned is all that is new: of others, then of this call, durable.
    pub fn add<E: From<JournalError>>(
        &mut self,
        now: Timestamp,
        decide: impl FnOnce(&[Line<T>]) -> Result<Vec<T>, E>,
    ) -> Result<Vec<Line<T>>, E> {
        self.add_timed(|lines| Ok(decide(lines)?.into_iter().map(|fact| (now, fact)).collect()))
    }

    /// The same for facts that have their own times.
    pub fn add_timed<E: From<JournalError>>(
        &mut self,
        decide: impl FnOnce(&[Line<T>]) -> Result<Vec<(Timestamp, T)>, E>,
    ) -> Result<Vec<Line<T>>, E> {
        self.file.lock().map_err(|e| self.io(e))?;
        let added = self.add_locked(decide);
        let unlocked = self.file.unlock().map_err(|e| self.io(e));
        let added = added?;
        unlocked?;
        Ok(added)
    }

    fn add_locked<E: From<JournalError>>(
        &mut self,
        decide: impl FnOnce(&[Line<T>]) -> Result<Vec<(Timestamp, T)>, E>,
    ) -> Result<Vec<Line<T>>, E> {
        let mut lines = self.read_on()?;
        let facts = decide(&lines)?;
        if facts.is_empty() {
            return Ok(lines);
        }
        let mut bytes = Vec::new();
        let (mut n, mut head) = (self.lines, self.head);
        for (now, fact) in facts {
            n += 1;
            let at = time_text(now);
            let body = serde_json::to_string(&BodyRef { n, at, fact: &fact }).map_err(|e| self.io(e.into()))?;
            let body = body.strip_suffix('}').unwrap_or(&body);
            head = head.then(body.as_bytes());
            bytes.extend_from_slice(format!("{body}{TAIL}{head}\"}}\n").as_bytes());
            lines.push(Line { n, at: now, fact, hash: head });
        }
        // Whatever stands behind the last whole line is half a line of a writer that is gone.
        self.file.set_len(self.end).map_err(|e| self.io(e))?;
        self.file.seek(SeekFrom::Start(self.end)).map_err(|e| self.io(e))?;
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Nobody will be told that these count: they must not come to count later.
            let _ = self.file.set_len(self.end);
            return Err(self.io(error).into());
        }
        (self.end, self.lines, self.head) = (self.end + bytes.len() as u64, n, head);
        Ok(lines)
    }

    fn io(&self, source: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), source }
    }

    fn broken(&self, line: u64, message: String) -> JournalError {
        JournalError::Broken { path: self.path.clone(), line, message }
    }
}

/// RFC 3339 in UTC; times before 1970 stand as 1970.
fn time_text(time: Timestamp) -> String {
    let since = Duration::from_nanos(u64::try_from(time.0).unwrap_or(0));
    humantime::format_rfc3339_nanos(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Facts = Journal<String>;

    fn add(journal: &mut Facts, now: i64, text: &str) -> Vec<Line<String>> {
        journal.add::<JournalError>(Timestamp(now), |_| Ok(vec![text.to_owned()])).unwrap()
    }

    fn texts(lines: &[Line<String>]) -> Vec<&str> {
        lines.iter().map(|line| line.fact.as_str()).collect()
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/journal");
        (dir, path)
    }

    #[test]
    fn what_is_added_is_read_by_all_in_one_order() {
        let (_dir, path) = file();
        let (mut a, mut b) = (Facts::open(&path).unwrap(), Facts::open(&path).unwrap());
        add(&mut a, 1_500_000_000_000_000_007, "one");
        assert_eq!(texts(&add(&mut b, 2, "two, \",\"hash\":\"")), ["one", "two, \",\"hash\":\""]);
        assert_eq!(texts(&a.read_on().unwrap()), ["two, \",\"hash\":\""]);
        assert!(a.read_on().unwrap().is_empty());
        let again = Facts::open(&path).unwrap().read_on().unwrap();
        assert_eq!((again[0].n, again[0].at, again[1].n), (1, Timestamp(1_500_000_000_000_000_007), 2));
        assert_eq!(a.head(), b.head());
        let mut some = Facts::read_only(&path).unwrap();
        assert_eq!(texts(&some.read_some().unwrap()), ["one", "two, \",\"hash\":\""]);
        assert!(some.read_some().unwrap().is_empty());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn writers_at_once_lose_nothing() {
        let (_dir, path) = file();
        std::thread::scope(|scope| {
            for who in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let mut journal = Facts::open(path).unwrap();
                    (0..25).for_each(|i| drop(add(&mut journal, 1, &format!("{who}-{i}"))));
                });
            }
        });
        assert_eq!(Facts::open(&path).unwrap().read_on().unwrap().len(), 100);
    }

    #[test]
    fn a_long_journal_is_read_in_parts_and_a_long_line_whole() {
        let (_dir, path) = file();
        let mut journal = Facts::open(&path).unwrap();
        let long = "x".repeat(CHUNK as usize + 1);
        for text in ["a", &long, "b"] {
            add(&mut journal, 1, text);
        }
        let mut reader = Facts::read_only(&path).unwrap();
        let mut parts = Vec::new();
        loop {
            let lines = reader.read_some().unwrap();
            if lines.is_empty() {
                break;
            }
            parts.push(lines.len());
        }
        assert_eq!(parts.iter().sum::<usize>(), 3);
        assert!(parts.len() > 1, "{parts:?}");
        assert_eq!(reader.head(), journal.head());
    }

    #[test]
    fn a_refusal_adds_nothing() {
        let (_dir, path) = file();
        let mut journal = Facts::open(&path).unwrap();
        let refused = journal.add(Timestamp(1), |_| {
            Err(JournalError::Broken { path: PathBuf::new(), line: 0, message: "no".to_owned() })
        });
        assert!(refused.is_err());
        assert_eq!(journal.head().0, 0);
        // And the lock is free.
        add(&mut Facts::open(&path).unwrap(), 1, "a");
    }

    #[test]
    fn half_a_line_of_a_crash_is_removed_by_the_next_writer() {
        let (_dir, path) = file();
        add(&mut Facts::open(&path).unwrap(), 1, "whole");
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            let mut torn = whole.clone();
            torn.extend_from_slice(&whole[..cut]);
            // The last byte of a line makes it whole, and then it is a wrong one.
            std::fs::write(&path, &torn).unwrap();
            let mut journal = Facts::open(&path).unwrap();
            assert_eq!(texts(&journal.read_on().unwrap()), ["whole"]);
            add(&mut journal, 2, "next");
            assert_eq!(texts(&Facts::open(&path).unwrap().read_on().unwrap()), ["whole", "next"]);
        }
    }

    #[test]
    fn every_change_of_what_was_written_is_seen_and_named() {
        let (_dir, path) = file();
        let mut journal = Facts::open(&path).unwrap();
        (0..3).for_each(|i| drop(add(&mut journal, i, "fact")));
        let whole = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        let second = lines[0].len() + 1;
        for at in 0..lines[1].len() {
            let mut changed = whole.clone().into_bytes();
            changed[second + at] ^= 1;
            std::fs::write(&path, changed).unwrap();
            let error = Facts::open(&path).unwrap().read_on().unwrap_err();
            assert!(error.to_string().contains(":2: "), "{at}: {error}");
        }
        std::fs::write(&path, format!("{}\n{}\n", lines[0], lines[2])).unwrap();
        assert!(Facts::open(&path).unwrap().read_on().is_err(), "a line was taken out");
        std::fs::write(&path, format!("{}\n", lines[0])).unwrap();
        let error = journal.read_on().unwrap_err().to_string();
        assert!(error.contains("ends here"), "{error}");
    }
}
