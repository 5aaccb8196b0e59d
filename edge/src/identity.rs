//! The device's certificate: how it gets its first one, and each next one before the last has ended.
//!
//! A map:
//! - `step`: the pure core. [`Identity::step`] takes what happened and the time, and says what to do; [`Identity::way`] says how
//!   to connect next. It knows no bytes, sockets or files.
//! - [`folder`]: what is kept, each step of it durable before the next is taken.
//! - [`paper`]: keys, signing requests, certificates, and the messages about them.
//!
//! The order of things: a new key is made and kept before anything is asked for it; the certificate that comes is kept beside
//! the present one; the device connects with it; when the engine has answered its hello, it takes the place of the present one in
//! one step. Whatever fails or is lost on the way, the present one goes on working, and asking again with the same key gives the
//! same certificate. A first certificate comes the same way, with the claim of the device's group in the place of a present one.

pub mod folder;
pub mod paper;
mod step;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use device::id::DeviceId;
use device::time::Timestamp;

/// Where a device's identity is kept, and what it has to begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// The folder: `current.pem` (key and chain), `new.pem` while a certificate is being renewed, `ca.pem` (engines to trust).
    pub folder: PathBuf,
    /// Whom to trust until `ca.pem` is there (PEM).
    pub authority: Option<PathBuf>,
    /// The claim of the device's group, certificate and key (PEM), for its first certificate.
    pub claim: Option<(PathBuf, PathBuf)>,
    /// The name in the engine's certificate, if it is not the host of the address.
    pub server_name: Option<String>,
    /// `host:port` where certificates that have expired are renewed.
    pub recovery: Option<String>,
}

/// When a certificate that the device has begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// What is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// The certificate that is used.
    pub current: Option<Held>,
    /// The key of the next one, with its certificate once that has come.
    pub new: Option<Option<Held>>,
}

/// What the device can do beside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Means {
    /// It has the claim of its group.
    pub claim: bool,
    /// It knows where certificates that have expired are renewed.
    pub recovery: bool,
}

/// What the device shows when it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// The claim of its group: it may ask for its first certificate, and nothing else.
    Claim,
    /// Its certificate.
    Current,
    /// The one that is to take its place.
    New,
    /// Its certificate, where those that have expired are renewed: it may ask for the next, and nothing else.
    Recovery,
    /// The same with the one that is to take its place: it was used, and has expired before it was noted that it works.
    RecoveryNew,
}

impl Way {
    /// Whether a session of it is one in which records are sent.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Current | Self::New)
    }
}

/// What the engine answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What is to be signed.
    Nonce(Vec<u8>),
    /// A certificate for the new key (its chain), and whom to trust, both PEM.
    Given {
        /// The certificate and those that lead to the authority.
        chain: String,
        /// Whom to trust.
        bundle: String,
    },
    /// None, for this reason.
    Refused(String),
}

/// Whom to trust from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Certificates of authorities, PEM.
    pub bundle: String,
    /// What the engine calls it.
    pub id: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection stands.
    Connected(Way),
    /// The engine has answered the hello; `renew`: it says that the certificate is due.
    Greeted {
        /// See above.
        renew: bool,
    },
    /// A connection could not be made, or has ended.
    Ended {
        /// Which.
        way: Way,
        /// Whether anybody was there to refuse it.
        reached: bool,
        /// Whether the certificate was refused because it has expired.
        expired: bool,
    },
    /// The engine has answered a request.
    Answer(Answer),
    /// The engine says, unasked, that the certificate is due.
    Due,
    /// The engine says, unasked, whom to trust from now on.
    Trust(Trust),
    /// What the last [`Effect`] that writes was about is durable: this is kept now.
    Kept(Kept),
    /// It could not be done.
    NotKept,
    /// The owner wants another certificate, now.
    Rotate,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make a key and keep it as the new one; answer with [`Event::Kept`].
    MakeKey,
    /// Ask for what is to be signed, over the connection of the claim.
    AskNonce,
    /// Ask for a first certificate for the new key, with the new key's signature of this.
    AskFirst(Vec<u8>),
    /// Ask for the next certificate, for the new key.
    AskNext,
    /// Keep this certificate beside the new key, and whom to trust; answer with [`Event::Kept`].
    Keep {
        /// See [`Answer::Given`].
        chain: String,
        /// See [`Answer::Given`].
        bundle: String,
    },
    /// Put the new certificate in the place of the current one; answer with [`Event::Kept`].
    Promote,
    /// Forget the new key and certificate; answer with [`Event::Kept`].
    Forget,
    /// Keep whom to trust; when that is durable, say so to the engine. If it cannot be done, the engine will say it again.
    Trust(Trust),
    /// End the connection and connect as [`Identity::way`] says, at once.
    Reconnect,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Certificates that were taken into use.
    pub promoted: u64,
    /// Requests that the engine refused.
    pub refused: u64,
    /// Connections with a new certificate that failed.
    pub failed: u64,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// Something is being written.
    Writing,
    /// The engine was asked; asked again at this time.
    Asking(Duration),
}

/// The certificate of one device.
#[derive(Debug)]
pub struct Identity {
    device: DeviceId,
    means: Means,
    kept: Kept,
    session: Option<Way>,
    /// Whether the hello of this session was answered.
    greeted: bool,
    /// Whether another certificate is wanted.
    wanted: bool,
    doing: Doing,
    /// Not before this time a new certificate is tried, or asked for again.
    retry_at: Duration,
    pause: Duration,
    /// The way that failed last, and how often the current certificate has been refused since it last worked.
    failed: Option<Way>,
    refused: u32,
    /// The engine says that the current certificate has expired.
    expired: bool,
    counts: Counts,
}

impl Identity {
    /// The identity of a device that keeps this.
    pub fn new(device: DeviceId, kept: Kept, means: Means) -> Self {
        Self {
            device,
            means,
            kept,
            session: None,
            greeted: false,
            wanted: false,
            doing: Doing::Nothing,
            retry_at: Duration::ZERO,
            pause: step::FIRST_PAUSE,
            failed: None,
            refused: 0,
            expired: false,
            counts: Counts::default(),
        }
    }

    /// What is kept.
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// What the device has shown in the present connection.
    pub fn session(&self) -> Option<Way> {
        self.session
    }

    /// Counters since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
