//! Many incidents of one kind at once are one storm: people hear of that, and not of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use device::alert::IncidentId;
use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};

use crate::change::Fleet;
use crate::time::nanos;

/// More new incidents than this within [`WITHIN`] are a storm.
pub(crate) const MOST: usize = 100;

/// More than this share of a group of devices, too: a fifth.
const SHARE: usize = 5;

/// But no fewer than one more than this: two of three devices are no storm.
const FEWEST: usize = 4;

/// In a group with so many devices [`MOST`] is reached no later than its share.
pub const LARGEST_FLEET: usize = MOST * SHARE;

/// Within so long, in nanoseconds: a minute.
const WITHIN: i64 = 60 * SECOND;

/// It is over when there was less than half of that for so long: 5 minutes.
const CALM: i64 = 300 * SECOND;

/// Most devices that are counted by name.
const DEVICES: usize = 1000;

/// Most devices that are named to people.
const NAMED: usize = 10;

/// A storm as people are told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StormFacts {
    /// How many incidents, also those that were told of before it was one.
    pub count: u64,
    /// The group of devices in which it is; none: in all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<String>,
    /// The devices with most of them.
    pub devices: Vec<String>,
    /// When the last one began, by the engine's clock.
    #[serde(with = "nanos")]
    pub last: Timestamp,
    /// How many of them still fire.
    pub open: u64,
}

/// What is going on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Raging {
    id: String,
    #[serde(with = "nanos")]
    since: Timestamp,
    count: u64,
    devices: BTreeMap<String, u64>,
    informed: BTreeSet<String>,
}

/// The new incidents of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Storm {
    /// More than this within [`WITHIN`] are a storm.
    #[serde(default = "most")]
    most: usize,
    /// The group of devices that it is about; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fleet: Option<String>,
    /// When the last ones began, by the engine's clock: at most one more than `most`.
    starts: VecDeque<i64>,
    devices: VecDeque<String>,
    #[serde(default)]
    raging: Option<Raging>,
}

fn most() -> usize {
    MOST
}

impl Storm {
    /// Of incidents of all devices.
    pub(crate) fn of_all() -> Self {
        Self { most: MOST, fleet: None, starts: VecDeque::new(), devices: VecDeque::new(), raging: None }
    }

    /// Of incidents in a group of devices.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        Self { fleet: Some(fleet.name.clone()), ..Self::of_all() }.sized(fleet.devices)
    }

    /// As many devices belong to its group now.
    pub(crate) fn sized(self, devices: u32) -> Self {
        Self { most: (devices as usize / SHARE).clamp(FEWEST, MOST), ..self }
    }

    /// The group of devices that it is about; none: all.
    pub(crate) fn fleet(&self) -> Option<&str> {
        self.fleet.as_deref()
    }

    /// A new incident. True: it is part of a storm.
    pub(crate) fn note(&mut self, now: Timestamp, group: &str, device: &str) -> bool {
        self.starts.push_back(now.0);
        self.devices.push_back(device.to_owned());
        while self.starts.len() > self.most + 1 {
            self.starts.pop_front();
            self.devices.pop_front();
        }
        let soon = self.starts.front().is_some_and(|first| now.since(Timestamp(*first)) <= WITHIN);
        match &mut self.raging {
            Some(raging) => {
                raging.count += 1;
                count(&mut raging.devices, device);
            }
            None if self.starts.len() > self.most && soon => {
                let since = self.starts.front().map_or(now, |first| Timestamp(*first));
                let id = IncidentId::of(group, 0, "storm", since).to_string();
                let mut devices = BTreeMap::new();
                self.devices.iter().for_each(|device| count(&mut devices, device));
                let informed = BTreeSet::new();
                self.raging = Some(Raging { id, since, count: self.starts.len() as u64, devices, informed });
            }
            None => return false,
        }
        true
    }

    /// A channel would be told of an incident of the storm now. True: it has not heard of the storm yet.
    pub(crate) fn inform(&mut self, channel: &str) -> bool {
        self.raging.as_mut().is_some_and(|raging| raging.informed.insert(channel.to_owned()))
    }

    /// Its id, and when it began, while it rages.
    pub(crate) fn id(&self) -> Option<(&str, Timestamp)> {
        self.raging.as_ref().map(|raging| (raging.id.as_str(), raging.since))
    }

    pub(crate) fn facts(&self, open: u64) -> Option<StormFacts> {
        let raging = self.raging.as_ref()?;
        let mut devices: Vec<(&String, &u64)> = raging.devices.iter().collect();
        devices.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
        Some(StormFacts {
            count: raging.count,
            fleet: self.fleet.clone(),
            devices: devices.into_iter().take(NAMED).map(|(name, _)| name.clone()).collect(),
            last: self.starts.back().map_or(raging.since, |last| Timestamp(*last)),
            open,
        })
    }

    /// When it will be over.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.raging.as_ref()?;
        // From then on no minute holds more than half.
        let at = self.starts.len().checked_sub(self.most / 2 + 1)?;
        self.starts.get(at).map(|start| Timestamp(*start).plus(WITHIN + CALM))
    }

    /// It is over. Gives those who have heard of it.
    pub(crate) fn end(&mut self) -> BTreeSet<String> {
        self.raging.take().map(|raging| raging.informed).unwrap_or_default()
    }

    /// Whether nothing need be remembered.
    pub(crate) fn is_past(&self, now: Timestamp) -> bool {
        self.raging.is_none() && self.starts.back().is_none_or(|last| now.since(Timestamp(*last)) > WITHIN)
    }
}

fn count(devices: &mut BTreeMap<String, u64>, device: &str) {
    if let Some(count) = devices.get_mut(device) {
        *count += 1;
    } else if devices.len() < DEVICES {
        devices.insert(device.to_owned(), 1);
    }
}
