//! A device's storage: what was written and not synced may be gone, or torn, after a crash.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use edge::outbox::Media;
use parking_lot::Mutex;

use super::random::Random;

#[derive(Debug, Default)]
struct Object {
    synced: Vec<u8>,
    now: Vec<u8>,
}

#[derive(Debug)]
struct Inner {
    objects: BTreeMap<String, Object>,
    /// Removed, but perhaps not for good.
    removed: BTreeMap<String, Vec<u8>>,
    random: Random,
    /// How often a call fails, of a thousand.
    failing: u64,
}

/// Named objects that survive the process. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct SimMedia {
    inner: Arc<Mutex<Inner>>,
}

impl SimMedia {
    /// Nothing stored.
    pub(super) fn new(random: Random) -> Self {
        let inner = Inner { objects: BTreeMap::new(), removed: BTreeMap::new(), random, failing: 0 };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// How often a call fails, of a thousand.
    pub(super) fn set_failing(&self, per_mille: u64) {
        self.inner.lock().failing = per_mille;
    }

    /// The power goes: of what was not synced a part is left, and what was removed may be back.
    pub(super) fn crash(&self) {
        let mut inner = self.inner.lock();
        let Inner { objects, removed, random, .. } = &mut *inner;
        for object in objects.values_mut() {
            let kept = random.between(object.synced.len().min(object.now.len()) as u64, object.now.len() as u64);
            object.now.truncate(kept as usize);
            if object.now.len() > object.synced.len() && random.chance(300) {
                // The length was written, the last bytes were not.
                if let Some(last) = object.now.last_mut() {
                    *last ^= 0x55;
                }
            }
            object.synced = object.now.clone();
        }
        for (name, bytes) in std::mem::take(removed) {
            if random.chance(300) {
                objects.entry(name).or_insert_with(|| Object { synced: bytes.clone(), now: bytes });
            }
        }
    }

    fn fails(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let failing = inner.failing;
        if inner.random.chance(failing) { Err(io::Error::other("a fault of the simulated medium")) } else { Ok(()) }
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, name.to_owned())
}

impl Media for SimMedia {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.lock().objects.keys().cloned().collect())
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.replace(name, bytes)
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let fails = self.fails();
        let mut inner = self.inner.lock();
        let part = if fails.is_err() { inner.random.below(bytes.len() as u64) as usize } else { bytes.len() };
        let object = inner.objects.get_mut(name).ok_or_else(|| missing(name))?;
        object.now.resize(offset as usize, 0);
        object.now.extend_from_slice(&bytes[..part]);
        fails
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.fails()?;
        let mut inner = self.inner.lock();
        let object = inner.objects.get_mut(name).ok_or_else(|| missing(name))?;
        object.synced = object.now.clone();
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.fails()?;
        let object = Object { synced: bytes.to_vec(), now: bytes.to_vec() };
        self.inner.lock().objects.insert(name.to_owned(), object);
        Ok(())
    }

    fn read(&mut self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.fails()?;
        let inner = self.inner.lock();
        let object = inner.objects.get(name).ok_or_else(|| missing(name))?;
        let begin = (offset as usize).min(object.now.len());
        let end = begin.saturating_add(len).min(object.now.len());
        Ok(object.now[begin..end].to_vec())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.fails()?;
        let mut inner = self.inner.lock();
        if let Some(object) = inner.objects.remove(name) {
            inner.removed.insert(name.to_owned(), object.now);
        }
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}
