//! Everything that can go wrong on the device's side, with what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the edge client could not do what it was asked to.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// The store of records failed.
    #[error("cannot {doing} in the outbox: {source}")]
    Storage {
        /// What was tried.
        doing: &'static str,
        /// What the medium said.
        source: io::Error,
    },
    /// The store was written by a newer client.
    #[error(
        "{what} of the outbox has format {found}, this client knows up to {known}: run the client that wrote it, or give this one a directory of its own"
    )]
    Newer {
        /// Which object.
        what: String,
        /// Its format.
        found: u8,
        /// The newest format this client knows.
        known: u8,
    },
    /// Another process holds the store.
    #[error("the outbox {} is in use by another process: stop it, or give this client a directory of its own", path.display())]
    Locked {
        /// Where it is.
        path: PathBuf,
    },
    /// The store is full and its policy is to wait.
    #[error("the outbox is full: wait for acknowledgements, make it larger, or choose another policy")]
    Full,
    /// One record is larger than any frame could carry.
    #[error("a record of {size} bytes does not fit: at most {limit} are allowed, split it")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A configuration value that cannot work.
    #[error("{0}")]
    Config(String),
    /// The device's key or certificate.
    #[error("identity: {0}")]
    Identity(String),
    /// Connecting or talking MQTT failed.
    #[error("mqtt: {0}")]
    Mqtt(#[from] crate::mqtt::MqttError),
    /// The client's task has ended.
    #[error("the edge client is shut down: start a new one")]
    Stopped,
    /// Not everything was acknowledged in time.
    #[error("{unacknowledged} records are not acknowledged yet: they stay in the outbox and are sent again")]
    Unacknowledged {
        /// How many.
        unacknowledged: u64,
    },
}
