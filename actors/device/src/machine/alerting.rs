//! The alerts of the device: what durable entries do to them, and what has to become an entry because of them.

use super::Device;
use crate::alert::{IncidentId, Rules, Scene, Wants};
use crate::entry::{Body, Entry};
use crate::time::Timestamp;

/// The alert rules that count for an entry.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    /// The rules.
    pub rules: &'a Rules,
    /// Streams that the records of the entry may belong to; see [`crate::alert::stream_bit`]. All bits: not known.
    pub streams: u64,
}

impl Device {
    /// What a durable entry does to the alerts.
    pub(super) fn alert(&mut self, entry: &Entry, watch: Watch<'_>) {
        let scene = Scene { rules: watch.rules, device: self.id.as_str(), now: entry.received };
        match &entry.body {
            Body::Records(records) if watch.rules.look_at(watch.streams) => {
                let alerts = self.alerts.get_or_insert_default();
                alerts.records(scene, records);
                if alerts.is_empty() {
                    // Its records are of other streams: it stays as cheap as it was.
                    self.alerts = None;
                }
            }
            Body::Tick { floor } => {
                if let Some(alerts) = &mut self.alerts {
                    alerts.tick(scene, *floor);
                }
            }
            Body::Acknowledge { incident, ack } => {
                if let Some(alerts) = &mut self.alerts {
                    alerts.acknowledge(scene, *incident, ack.as_ref());
                }
            }
            _ => {}
        }
    }

    /// Whether it has alerts to look after.
    pub fn is_alerting(&self) -> bool {
        self.alerts.is_some()
    }

    /// Transitions behind number `after` that have to become an entry, and the number of the last one. They are made
    /// by durable entries alone.
    pub fn unlogged(&self, received: Timestamp, after: u64) -> Option<(Entry, u64)> {
        let transitions = self.alerts.as_ref()?.unlogged(after);
        let last = transitions.last()?.number;
        Some((Entry { device: self.id.clone(), received, body: Body::Transitions(transitions) }, last))
    }

    /// When the alerts want an entry that says that time has passed ([`Body::Tick`]). The engine could hear nothing
    /// before `floor`.
    pub fn wants(&self, rules: &Rules, now: Timestamp, floor: Timestamp) -> Wants {
        let scene = Scene { rules, device: self.id.as_str(), now };
        self.alerts.as_ref().map_or(Wants::Nothing, |alerts| alerts.wants(scene, floor))
    }

    /// Whether that incident is open.
    pub fn has_incident(&self, incident: IncidentId) -> bool {
        self.alerts.as_ref().is_some_and(|alerts| alerts.is_open(incident))
    }
}
