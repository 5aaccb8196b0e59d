//! Gateways that are away: of incidents of the devices behind them nobody is told, as those say nothing new.

use std::collections::{BTreeMap, BTreeSet};

use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};

use crate::time::maybe_nanos;

/// When a gateway is back, the devices behind it get so long to be heard again: a minute.
const SETTLE: i64 = 60 * SECOND;

/// Why a device cannot be heard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Behind {
    gateway: String,
    /// The gateway is back: the device counts as behind it until then.
    #[serde(default, with = "maybe_nanos")]
    until: Option<Timestamp>,
}

/// The devices that cannot be heard.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Gateways(BTreeMap<String, Behind>);

impl Gateways {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These devices, and no others, are behind a gateway that is away.
    pub(crate) fn note(&mut self, now: Timestamp, gateway: &str, children: &BTreeSet<String>) {
        for (child, behind) in &mut self.0 {
            if behind.gateway == gateway && !children.contains(child) {
                behind.until.get_or_insert(now.plus(SETTLE));
            }
        }
        for child in children {
            self.0.insert(child.clone(), Behind { gateway: gateway.to_owned(), until: None });
        }
    }

    /// True: some count as heard from now on.
    pub(crate) fn settle(&mut self, now: Timestamp) -> bool {
        let before = self.0.len();
        self.0.retain(|_, behind| behind.until.is_none_or(|until| now < until));
        self.0.len() < before
    }

    /// When some will.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.0.values().filter_map(|behind| behind.until).min()
    }

    /// The gateway because of which a device is not heard.
    pub(crate) fn of(&self, device: &str) -> Option<&str> {
        self.0.get(device).map(|behind| behind.gateway.as_str())
    }

    /// Those that are away, with the devices behind them.
    pub(crate) fn away(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut away: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (child, behind) in self.0.iter().filter(|(_, behind)| behind.until.is_none()) {
            away.entry(behind.gateway.clone()).or_default().insert(child.clone());
        }
        away
    }
}
