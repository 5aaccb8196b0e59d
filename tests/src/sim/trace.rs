//! What happened, in order: a running hash of it, and the lines themselves if they are wanted.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// Everything that can be seen of a world from outside goes in here. Clones write into the same trace.
#[derive(Debug, Clone)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    hash: u64,
    lines: u64,
    now: i64,
    keep: Option<Vec<String>>,
    wrong: Vec<String>,
}

/// FNV-1a, 64 bits.
pub(super) fn hash(bytes: &[u8], from: u64) -> u64 {
    bytes.iter().fold(from, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Where a hash begins.
pub(super) const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

impl Trace {
    /// An empty trace; `keep`: the lines are wanted.
    pub fn new(keep: bool) -> Self {
        let inner = Inner { hash: BASIS, lines: 0, now: 0, keep: keep.then(Vec::new), wrong: Vec::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Sets the virtual time of what follows, in milliseconds since the world began.
    pub fn at(&self, now: i64) {
        self.inner.lock().now = now;
    }

    /// Notes something.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.inner.lock();
        let line = format!("{:>9}.{:03} {what}", inner.now / 1000, inner.now % 1000);
        inner.hash = hash(line.as_bytes(), inner.hash);
        inner.lines += 1;
        if let Some(keep) = &mut inner.keep {
            keep.push(line);
        }
    }

    /// Notes that a promise is broken.
    pub fn wrong(&self, what: String) {
        self.note(format_args!("WRONG {what}"));
        let mut inner = self.inner.lock();
        if inner.wrong.len() < 20 {
            inner.wrong.push(what);
        }
    }

    /// Whether a promise was broken.
    pub fn is_wrong(&self) -> bool {
        !self.inner.lock().wrong.is_empty()
    }

    /// The broken promises.
    pub fn wrongs(&self) -> Vec<String> {
        self.inner.lock().wrong.clone()
    }

    /// Hash and number of lines.
    pub fn digest(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.hash, inner.lines)
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> Vec<String> {
        self.inner.lock().keep.clone().unwrap_or_default()
    }
}

/// Notes a line in a trace.
#[macro_export]
macro_rules! note {
    ($trace:expr, $($what:tt)*) => { $trace.note(format_args!($($what)*)) };
}
