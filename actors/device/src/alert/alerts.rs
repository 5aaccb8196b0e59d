//! All alerts of one device: part of its state, changed only by entries that are durable.
//!
//! Transitions come out of entries and become an entry themselves. Until that one is durable they are kept here, and
//! in the device's snapshot; so a crash between the two neither loses nor repeats one.

use std::collections::VecDeque;

use super::lane::Lane;
use super::machine::{Sample, Step};
use super::rules::{Row, Rules};
use super::transition::{Ack, Event, IncidentId, State, Transition};
use crate::entry::Records;
use crate::time::Timestamp;

/// Most transitions of one entry.
pub const MAX_LOGGED: usize = 256;

/// When a device wants to be told that time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Now: something changes.
    Now,
    /// Not before then.
    At(Timestamp),
    /// Only when something else happens.
    Nothing,
}

/// All alerts of one device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Alerts {
    /// The rules that the lanes' indexes belong to.
    pub(super) set: u64,
    pub(super) lanes: Vec<Lane>,
    /// Made, and not known to be in the log.
    pub(super) pending: VecDeque<Transition>,
    /// Transitions made so far.
    pub(super) made: u64,
}

/// Whose alerts, under which rules, and when.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The rules that count.
    pub rules: &'a Rules,
    /// Name of the device.
    pub device: &'a str,
    /// The engine's time.
    pub now: Timestamp,
}

impl Alerts {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.pending.is_empty() && self.made == 0
    }

    /// Records are durable.
    pub fn records(&mut self, scene: Scene<'_>, records: &Records) {
        self.adopt(scene);
        self.samples(scene, scene.rules.samples(scene.device, scene.now, records));
    }

    /// A record was durable: one that is read from its table.
    pub fn row(&mut self, scene: Scene<'_>, row: &Row<'_>) {
        self.adopt(scene);
        self.samples(scene, scene.rules.row(scene.device, scene.now, row));
    }

    fn samples(&mut self, scene: Scene<'_>, samples: Vec<(u16, Sample)>) {
        for (rule, sample) in samples {
            let Some(of) = scene.rules.all().get(usize::from(rule)) else { continue };
            let at = match self.lanes.binary_search_by_key(&rule, |lane| lane.rule) {
                Ok(at) => at,
                Err(at) => {
                    self.lanes.insert(at, Lane::new(rule, of));
                    at
                }
            };
            let mut out = Vec::new();
            let mut step = Step { rule: of, device: scene.device, now: scene.now, out: &mut out };
            if let Some(lane) = self.lanes.get_mut(at) {
                lane.take(&mut step, sample);
            }
            self.keep(out);
        }
    }

    /// Time has passed; nothing could be heard before `floor`.
    pub fn tick(&mut self, scene: Scene<'_>, floor: Timestamp) {
        self.adopt(scene);
        self.each(scene, |lane, step| lane.time(step, floor));
    }

    /// Somebody takes care of an incident, or (`None`) no longer does.
    pub fn acknowledge(&mut self, scene: Scene<'_>, incident: IncidentId, ack: Option<&Ack>) {
        self.adopt(scene);
        self.each(scene, |lane, step| {
            if lane.line.machine.incident.as_ref().is_some_and(|open| open.id == incident) {
                lane.line.machine.acknowledge(step, ack.cloned());
            }
        });
    }

    /// Whether that incident is open.
    pub fn is_open(&self, incident: IncidentId) -> bool {
        self.lanes.iter().filter_map(|lane| lane.line.machine.incident.as_ref()).any(|open| open.id == incident)
    }

    /// Goes over to other rules: what is unchanged goes on, what is not ends.
    fn adopt(&mut self, scene: Scene<'_>) {
        if self.set == scene.rules.version() {
            return;
        }
        self.set = scene.rules.version();
        let mut out = Vec::new();
        self.lanes.retain_mut(|lane| {
            let rule = scene.rules.all().iter().position(|rule| rule.name == lane.name && rule.version == lane.version);
            if let Some(rule) = rule {
                lane.rule = rule as u16;
                return true;
            }
            out.extend(lane.drop_at(scene.now, scene.device));
            false
        });
        self.lanes.sort_by_key(|lane| lane.rule);
        self.keep(out);
    }

    fn each(&mut self, scene: Scene<'_>, mut act: impl FnMut(&mut Lane, &mut Step<'_>)) {
        let mut out = Vec::new();
        for lane in &mut self.lanes {
            let Some(rule) = scene.rules.all().get(usize::from(lane.rule)) else { continue };
            let mut step = Step { rule, device: scene.device, now: scene.now, out: &mut out };
            act(lane, &mut step);
        }
        self.keep(out);
    }

    fn keep(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            self.made += 1;
            self.pending.push_back(Transition { number: self.made, ..transition });
        }
    }

    /// Transitions behind number `after` that are not known to be in the log: at most [`MAX_LOGGED`].
    pub fn unlogged(&self, after: u64) -> Vec<Transition> {
        self.pending.iter().filter(|transition| transition.number > after).take(MAX_LOGGED).cloned().collect()
    }

    /// These transitions are durable.
    pub fn logged(&mut self, transitions: &[Transition]) {
        let upto = transitions.iter().map(|transition| transition.number).max().unwrap_or(0);
        while self.pending.pop_front_if(|transition| transition.number <= upto).is_some() {}
    }

    /// When to say that time has passed.
    pub fn wants(&self, scene: Scene<'_>, floor: Timestamp) -> Wants {
        if self.set != scene.rules.version() && !self.lanes.is_empty() {
            return Wants::Now;
        }
        match self.due(scene, floor) {
            None => Wants::Nothing,
            Some(at) if at > scene.now => Wants::At(at),
            Some(_) => {
                let mut then = self.clone();
                then.tick(scene, floor);
                if then.made > self.made {
                    return Wants::Now;
                }
                // Samples that wait change nothing by themselves: the next record finds them as they are.
                then.due(scene, floor).map_or(Wants::Nothing, |at| Wants::At(at.max(scene.now.plus(1))))
            }
        }
    }

    fn due(&self, scene: Scene<'_>, floor: Timestamp) -> Option<Timestamp> {
        let of = |lane: &Lane| lane.due(scene.rules.all().get(usize::from(lane.rule))?, floor);
        self.lanes.iter().filter_map(of).min()
    }
}

impl Lane {
    /// The rule is gone: its incident ends.
    fn drop_at(&self, now: Timestamp, device: &str) -> Option<Transition> {
        let machine = &self.line.machine;
        if machine.state == State::Ok {
            return None;
        }
        let since = machine.incident.as_ref().map_or(machine.since, |incident| incident.since);
        let incident = machine.incident.as_ref().map(|incident| incident.id);
        Some(Transition {
            number: 0,
            rule: self.name.clone(),
            version: self.version,
            ts: now,
            event: Event::Dropped,
            from: machine.state,
            to: State::Ok,
            severity: "".into(),
            incident: incident.unwrap_or_else(|| IncidentId::of(&self.name, self.version, device, since)),
            since,
            value: None,
            backfilled: false,
            history: false,
            stale: false,
            ack: None,
            told: machine.incident.as_ref().map_or_else(Vec::new, |incident| incident.told.clone()),
            labels: "".into(),
        })
    }
}
