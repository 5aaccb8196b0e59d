//! What is handed on once it is durable: the only thing that the writers of the log and its readers share.

use std::any::Any;
use std::fmt;

use device::entry::LogRecord;
use device::seq::Position;

/// A record that stands in the shard log for good.
pub struct Durable {
    /// Its place.
    pub position: Position,
    /// What it says.
    pub record: LogRecord,
    /// Whatever must live as long as the record is in memory (the credit of its messages); dropped with it.
    pub hold: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("position", &self.position).finish_non_exhaustive()
    }
}
