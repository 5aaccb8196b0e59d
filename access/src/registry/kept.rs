//! The registry as a file that several processes add to.

use std::path::Path;

use device::time::Timestamp;
use parking_lot::{Mutex, RwLock};

use super::{Fact, State};
use crate::journal::{Journal, JournalError, Line};

/// The registry of one data directory. Readers never wait for a disk.
#[derive(Debug)]
pub struct Registry {
    journal: Mutex<Journal<Fact>>,
    state: RwLock<State>,
}

impl Registry {
    /// Opens the registry of a data directory and reads what it holds.
    pub fn open(data: &Path) -> Result<Self, JournalError> {
        let journal = Mutex::new(Journal::open(&data.join("access/registry.journal"))?);
        let registry = Self { journal, state: RwLock::default() };
        registry.read_on()?;
        Ok(registry)
    }

    /// Looks at what is known, as of the last read or change.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read())
    }

    fn take_in(&self, lines: &[Line<Fact>]) {
        let mut state = self.state.write();
        lines.iter().for_each(|line| state.apply(line.at, &line.fact));
    }

    /// Takes in what other processes have added; returned is that. Reads a file.
    pub fn read_on(&self) -> Result<Vec<Line<Fact>>, JournalError> {
        let mut journal = self.journal.lock();
        let lines = journal.read_on()?;
        self.take_in(&lines);
        Ok(lines)
    }

    /// Decides on a change by what is known up to now, and makes it durable. Returned is all that is new. Writes a file.
    pub fn change<E: From<JournalError>>(
        &self,
        now: Timestamp,
        decide: impl FnOnce(&State) -> Result<Vec<Fact>, E>,
    ) -> Result<Vec<Line<Fact>>, E> {
        let mut journal = self.journal.lock();
        let mut seen = 0;
        let lines = journal.add(now, |others| {
            // Also when the decision is no: the journal has read them.
            self.take_in(others);
            seen = others.len();
            decide(&self.state.read())
        })?;
        self.take_in(lines.get(seen..).unwrap_or_default());
        Ok(lines)
    }
}
