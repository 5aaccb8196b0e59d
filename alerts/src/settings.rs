//! Who is reached by which channel.

use std::collections::{BTreeMap, BTreeSet};

use device::time::SECOND;
use serde::{Deserialize, Serialize};

use crate::inhibit::Inhibit;

/// What of the configuration decides who is told. Addresses and secrets are not among it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Names of the channels.
    pub channels: BTreeSet<String>,
    /// Channels by the names that ladders tell.
    pub people: BTreeMap<String, BTreeSet<String>>,
    /// Which incidents make which others not worth telling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inhibit: Vec<Inhibit>,
    /// By rule: the names by whose values its incidents are told of together.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Vec<String>>,
    /// How long the first news of a group wait for more, in nanoseconds.
    pub group_wait_ns: i64,
    /// How long later ones wait.
    pub group_interval_ns: i64,
    /// After how long it is said again what goes on.
    pub repeat_ns: i64,
    /// A message that could not be delivered for so many nanoseconds is given up.
    pub max_age_ns: i64,
    /// Most messages of one channel that wait.
    pub max_waiting: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            channels: BTreeSet::new(),
            people: BTreeMap::new(),
            inhibit: Vec::new(),
            groups: BTreeMap::new(),
            group_wait_ns: 30 * SECOND,
            group_interval_ns: 300 * SECOND,
            repeat_ns: 4 * 3600 * SECOND,
            max_age_ns: 86_400 * SECOND,
            max_waiting: 10_000,
        }
    }
}

impl Settings {
    /// The channels of somebody.
    pub fn reach(&self, to: &str) -> impl Iterator<Item = &String> {
        self.people.get(to).into_iter().flatten().filter(|channel| self.channels.contains(*channel))
    }

    /// Whether somebody is reached at all.
    pub fn reaches(&self, to: &str) -> bool {
        self.reach(to).next().is_some()
    }
}
