//! Silences: incidents of which nobody is told for a while.

use std::fmt;

use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::matcher::{Facts, Matcher};
use crate::time::nanos;

/// Longest silence: 30 days. Whoever wants one for longer wants another rule.
pub const MAX_SILENCE: i64 = 30 * 86_400 * SECOND;

/// Most silences at a time.
pub const MAX_SILENCES: usize = 1000;

/// Most matchers of one.
const MAX_MATCHERS: usize = 32;

/// Longest author and reason in bytes.
const MAX_TEXT: usize = 1000;

/// Names a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SilenceId(pub u64);

impl SilenceId {
    /// From its text.
    pub fn parse(text: &str) -> Option<Self> {
        text.strip_prefix('s')?.parse().ok().map(Self)
    }
}

impl fmt::Display for SilenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// Why nobody is told of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MutedBy {
    /// Somebody wants it so.
    Silence(SilenceId),
    /// Another incident makes it not worth telling.
    Incident(String),
    /// Its device cannot be heard, because this gateway is away.
    Gateway(String),
}

impl fmt::Display for MutedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence(id) => write!(f, "silence {id}"),
            Self::Incident(id) => write!(f, "incident {id}"),
            Self::Gateway(id) => write!(f, "gateway {id} is away"),
        }
    }
}

/// Of incidents for which all matchers hold nobody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// What it is about.
    pub matchers: Vec<Matcher>,
    /// From when on.
    #[serde(with = "nanos")]
    pub start: Timestamp,
    /// Until when.
    #[serde(with = "nanos")]
    pub end: Timestamp,
    /// Who wants it.
    pub author: String,
    /// Why.
    pub reason: String,
}

/// Why a silence is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SilenceError {
    /// It would be about everything.
    #[error("a silence needs 1 to {MAX_MATCHERS} matchers, such as rule=overheating or device=~pump-.*")]
    Matchers,
    /// Its times.
    #[error("{0}")]
    Times(String),
    /// Its texts.
    #[error("`{0}` has to be a text of 1 to {MAX_TEXT} bytes")]
    Text(&'static str),
    /// There is no room.
    #[error("there are {MAX_SILENCES} silences already; end some with `weir alerts unsilence`")]
    TooMany,
}

impl Silence {
    /// Whether it can be one from `now` on.
    pub fn check(&self, now: Timestamp) -> Result<(), SilenceError> {
        if self.matchers.is_empty() || self.matchers.len() > MAX_MATCHERS {
            return Err(SilenceError::Matchers);
        }
        if self.end <= self.start {
            return Err(SilenceError::Times("a silence has to end after its start".to_owned()));
        }
        if self.end <= now {
            return Err(SilenceError::Times("this silence would be over already".to_owned()));
        }
        if self.end.since(self.start) > MAX_SILENCE || self.start.since(now) > MAX_SILENCE {
            let text = "a silence begins within 30 days and lasts at most 30 days; for longer, change the rule";
            return Err(SilenceError::Times(text.to_owned()));
        }
        for (name, text) in [("author", &self.author), ("reason", &self.reason)] {
            if text.trim().is_empty() || text.len() > MAX_TEXT {
                return Err(SilenceError::Text(name));
            }
        }
        Ok(())
    }

    /// Whether it counts at a time.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.start <= now && now < self.end
    }

    /// Whether it is about these.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        Matcher::all(&self.matchers, facts)
    }
}
