//! What one alert rule says. `sql` makes it from `CREATE ALERT`, and has checked it.

use std::sync::Arc;

use super::condition::Expr;
use crate::schema::StreamIndex;

/// One `WHEN` of a rule: a severity and the readings that mean it.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Its name, as in `warning`.
    pub severity: Arc<str>,
    /// True: the reading raises.
    pub raise: Expr,
    /// True: the reading clears. `None`: every reading clears that does not raise.
    pub clear: Option<Expr>,
    /// How long readings have to raise, from sample to sample, in nanoseconds.
    pub for_ns: i64,
    /// The number that is compared, for people to see; `None` where there is no single one.
    pub subject: Option<Expr>,
}

/// What silence means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum NoData {
    /// An incident that is open stays open, marked stale.
    #[default]
    Keep,
    /// Silence opens an incident.
    Raise,
    /// Silence ends an incident.
    Resolve,
}

impl NoData {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Raise => "raise",
            Self::Resolve => "resolve",
        }
    }
}

/// What samples that were buffered for long are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Backfill {
    /// Incidents of the past are recorded; nobody is told.
    #[default]
    Record,
    /// People are told of them, too.
    Notify,
}

impl Backfill {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Notify => "notify",
        }
    }
}

/// One step of the ladder: who is told if nobody has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// Who.
    pub to: Arc<str>,
    /// How long after the incident began, by the engine's clock, in nanoseconds.
    pub after_ns: i64,
    /// Again and again after so many nanoseconds.
    pub repeat_ns: Option<i64>,
    /// How often in all, with repetitions.
    pub most: u32,
}

/// One alert.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: Arc<str>,
    /// Changes with everything that changes what readings do.
    pub version: u64,
    /// The stream it looks at, in the catalog of the same project.
    pub stream: StreamIndex,
    /// Severities, lowest first; at least one.
    pub levels: Vec<Level>,
    /// How long readings have to clear until the incident is over, in nanoseconds.
    pub keep_firing_for_ns: i64,
    /// How many samples in a row have to raise.
    pub min_samples: u32,
    /// Time between two samples above which nothing is known of what lies between, in nanoseconds. `None`: three
    /// times the usual one.
    pub max_gap_ns: Option<i64>,
    /// Silence of so many nanoseconds, by the engine's clock, is no data. `None`: it may be silent for ever.
    pub no_data_after_ns: Option<i64>,
    /// What no data means.
    pub no_data: NoData,
    /// What old samples are for.
    pub backfill: Backfill,
    /// Who is told, in the order of time.
    pub ladder: Vec<Step>,
    /// Names and values that travel with each incident, ordered by name.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
}
