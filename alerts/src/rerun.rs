//! Rules over records of the past, with the machine that devices have.
//!
//! Records come in the order in which they were received, and time passes between them as it did: a ladder climbs, silence is
//! noticed. Nobody acknowledges anything.

use device::alert::{Alerts, Event, Row, Rules, Scene, State, Transition, Wants};
use device::time::Timestamp;
use serde::Serialize;

use crate::time::{maybe_shown, rfc3339};

/// More changes at one point in time than rules can make: a guard against going round for ever.
const MOST: usize = 100_000;

/// One device of the past.
#[derive(Debug)]
pub struct Rerun<'a> {
    rules: &'a Rules,
    device: &'a str,
    alerts: Alerts,
    now: Timestamp,
    /// Nothing could be heard before.
    floor: Timestamp,
    made: Vec<Transition>,
}

impl<'a> Rerun<'a> {
    /// A device of which nothing is known before `floor`.
    pub fn new(rules: &'a Rules, device: &'a str, floor: Timestamp) -> Self {
        Self { rules, device, alerts: Alerts::default(), now: floor, floor, made: Vec::new() }
    }

    fn scene(&self) -> Scene<'a> {
        Scene { rules: self.rules, device: self.device, now: self.now }
    }

    fn gather(&mut self) {
        loop {
            let after = self.made.last().map_or(0, |last| last.number);
            let all = self.alerts.unlogged(after);
            if all.is_empty() {
                return;
            }
            self.alerts.logged(&all);
            self.made.extend(all);
        }
    }

    /// A record that was received then; not before the one before.
    pub fn row(&mut self, received: Timestamp, row: &Row<'_>) {
        self.pass(received);
        self.alerts.row(self.scene(), row);
        self.gather();
    }

    /// Time passes.
    pub fn pass(&mut self, until: Timestamp) {
        for _ in 0..MOST {
            match self.alerts.wants(self.scene(), self.floor) {
                Wants::Now => {
                    self.alerts.tick(self.scene(), self.floor);
                    self.gather();
                }
                Wants::At(at) if at <= until => self.now = at,
                Wants::At(_) | Wants::Nothing => break,
            }
        }
        self.now = self.now.max(until);
    }

    /// Everything that happened up to then.
    pub fn end(mut self, until: Timestamp) -> Vec<Transition> {
        self.pass(until);
        self.made
    }
}

/// One incident of the past.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Incident {
    /// The rule.
    pub rule: String,
    /// The device.
    pub device: String,
    /// Its id.
    pub id: String,
    /// Its highest severity.
    pub severity: String,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub since: Timestamp,
    /// When it was over; none: not by the end.
    #[serde(serialize_with = "maybe_shown")]
    pub until: Option<Timestamp>,
    /// The reading with which it fired.
    pub value: Option<f64>,
    /// Who would have been told, in order, if nobody had acknowledged.
    pub told: Vec<String>,
    /// Old samples made it.
    pub backfilled: bool,
}

impl Incident {
    /// The incidents of a device from all its transitions. `severities`: those of a rule, lowest first.
    pub fn all(device: &str, transitions: &[Transition], rules: &Rules) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for transition in transitions {
            let id = transition.incident.to_string();
            let at = all.iter().rposition(|incident| incident.id == id);
            let opens = transition.event == Event::Fired || (transition.event == Event::NoData && transition.stale);
            let at = match at {
                Some(at) => at,
                None if opens => {
                    all.push(Self {
                        rule: transition.rule.to_string(),
                        device: device.to_owned(),
                        id,
                        severity: transition.severity.to_string(),
                        since: transition.since,
                        until: None,
                        value: transition.value,
                        told: Vec::new(),
                        backfilled: transition.backfilled,
                    });
                    all.len() - 1
                }
                None => continue,
            };
            let Some(incident) = all.get_mut(at) else { continue };
            match transition.event {
                Event::Told => incident.told.extend(transition.told.iter().map(|to| to.to_string())),
                Event::Escalated if rank(rules, transition) > of(rules, &incident.rule, &incident.severity) => {
                    incident.severity = transition.severity.to_string();
                }
                _ => {}
            }
            incident.until = (transition.to == State::Ok).then_some(transition.ts);
        }
        all.sort_by(|a, b| (a.since, &a.rule, &a.id).cmp(&(b.since, &b.rule, &b.id)));
        all
    }
}

fn of(rules: &Rules, rule: &str, severity: &str) -> Option<usize> {
    let rule = rules.all().iter().find(|other| &*other.name == rule)?;
    rule.levels.iter().position(|level| &*level.severity == severity)
}

fn rank(rules: &Rules, transition: &Transition) -> Option<usize> {
    of(rules, &transition.rule, &transition.severity)
}
