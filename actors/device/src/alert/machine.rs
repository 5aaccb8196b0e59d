//! The state machine of one rule for one device: samples in the order of their time, and time itself.
//!
//! `for` and `keep_firing_for` are measured from sample to sample, never against a clock; only silence and the ladder
//! go by the engine's clock, which comes in as a value.

use std::sync::Arc;

use super::rule::{Backfill, NoData, Rule};
use super::transition::{Ack, Event, IncidentId, State, Transition};
use crate::time::{SECOND, Timestamp};

/// An incident that comes back within this time is the same one: 10 minutes.
pub const REFIRE: i64 = 600 * SECOND;

/// An incident found in old samples counts as going on when nothing more came for so long: a minute, by the engine's
/// clock.
pub const SETTLED: i64 = 60 * SECOND;

/// The gap that is taken for one while the usual time between two samples is not known: a minute.
pub const UNKNOWN_GAP: i64 = 60 * SECOND;

/// What a rule says about one record. Bits stand for levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Its time.
    pub ts: Timestamp,
    /// Levels that it raises.
    pub raise: u8,
    /// Levels about which it says something.
    pub known: u8,
    /// Levels that it clears.
    pub clear: u8,
    /// It was buffered for long: see [`Backfill`].
    pub old: bool,
    /// The number that was compared.
    pub value: Option<f64>,
}

/// Readings that raise, without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rising {
    pub(super) since: Timestamp,
    pub(super) count: u32,
}

/// An incident that is open.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Incident {
    pub(super) id: IncidentId,
    pub(super) since: Timestamp,
    pub(super) level: u8,
    pub(super) stale: bool,
    /// Silence has opened it.
    pub(super) silent: bool,
    /// People may be told.
    pub(super) live: bool,
    pub(super) ack: Option<Ack>,
    /// When the ladder began, by the engine's clock.
    pub(super) from: Timestamp,
    /// How often each step was taken.
    pub(super) steps: Vec<u32>,
    /// Who was told.
    pub(super) told: Vec<Arc<str>>,
}

/// One rule for one device.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Machine {
    pub(super) state: State,
    /// When readings began to raise (`Pending`), or to clear (`Recovering`).
    pub(super) since: Timestamp,
    pub(super) incident: Option<Incident>,
    /// By level.
    pub(super) rising: Vec<Option<Rising>>,
    /// Since when readings clear the severity, but not the incident.
    pub(super) falling: Option<Timestamp>,
    /// Time of the last sample.
    pub(super) last: Option<Timestamp>,
    /// The usual time between two samples; 0: not known.
    pub(super) interval: i64,
    /// The last incident that ended, and when.
    pub(super) recent: Option<(Incident, Timestamp)>,
}

/// What a step works with.
pub(super) struct Step<'a> {
    pub(super) rule: &'a Rule,
    pub(super) device: &'a str,
    /// The engine's time.
    pub(super) now: Timestamp,
    /// Takes the transitions; they are numbered there.
    pub(super) out: &'a mut Vec<Transition>,
}

impl Machine {
    /// Takes a sample; its time is not before that of the last one.
    pub(super) fn sample(&mut self, step: &mut Step<'_>, sample: &Sample) {
        let rule = step.rule;
        self.returned(step, sample);
        let broken = self.last.is_some_and(|last| sample.ts.since(last) > self.gap(rule));
        self.learn(sample.ts);
        self.rising.resize(rule.levels.len(), None);
        let mut reached = None;
        for (at, (rising, level)) in self.rising.iter_mut().zip(&rule.levels).enumerate() {
            let bit = 1u8 << at;
            if sample.known & bit == 0 {
                continue;
            }
            *rising = match (*rising, sample.raise & bit != 0) {
                (_, false) => None,
                (Some(before), true) if !broken => Some(Rising { count: before.count.saturating_add(1), ..before }),
                (_, true) => Some(Rising { since: sample.ts, count: 1 }),
            };
            let long_enough = |r: &Rising| sample.ts.since(r.since) >= level.for_ns && r.count >= rule.min_samples;
            if rising.as_ref().is_some_and(long_enough) {
                reached = Some(at as u8);
            }
        }
        match self.state {
            State::Ok | State::Pending | State::NoData => self.calm(step, sample, reached),
            State::Firing => self.firing(step, sample, reached),
            State::Recovering => self.recovering(step, sample, reached),
        }
        self.surface(step, sample);
    }

    /// How long between two samples is a gap.
    fn gap(&self, rule: &Rule) -> i64 {
        match (rule.max_gap_ns, self.interval) {
            (Some(gap), _) => gap,
            (None, 0) => UNKNOWN_GAP,
            (None, interval) => interval.saturating_mul(3),
        }
    }

    /// Learns the usual time between two samples; a gap moves it by no more than twice.
    fn learn(&mut self, ts: Timestamp) {
        if let Some(last) = self.last {
            let gap = ts.since(last);
            self.interval = match self.interval {
                0 => gap,
                usual => usual.saturating_add((gap.min(usual.saturating_mul(2)) - usual) / 8).max(1),
            };
        }
        self.last = Some(ts);
    }

    fn calm(&mut self, step: &mut Step<'_>, sample: &Sample, reached: Option<u8>) {
        let before = self.state;
        let began = self.rising.iter().flatten().map(|rising| rising.since).min();
        match (reached, began) {
            (Some(level), Some(began)) => self.fire(step, sample, level, began),
            (None, Some(began)) => {
                self.since = began;
                self.state = State::Pending;
                if before != State::Pending {
                    self.note(step, Event::Pending, before, sample);
                }
            }
            _ if before == State::Pending => {
                self.state = State::Ok;
                self.note(step, Event::Lapsed, before, sample);
            }
            _ => self.state = State::Ok,
        }
    }

    fn fire(&mut self, step: &mut Step<'_>, sample: &Sample, level: u8, began: Timestamp) {
        let before = self.state;
        let recent = self.recent.take().filter(|(_, ended)| sample.ts.since(*ended) <= REFIRE);
        let live = !sample.old || step.rule.backfill == Backfill::Notify;
        let mut incident = match recent {
            Some((incident, _)) => Incident { level, stale: false, silent: false, ..incident },
            None => self.incident(step, level, began),
        };
        // What comes back in old samples may be over by now: people hear of it when it has reached the present.
        if live && !incident.live {
            incident.from = step.now;
        }
        incident.live = live;
        self.state = State::Firing;
        self.since = incident.since;
        self.falling = None;
        self.incident = Some(incident);
        self.note(step, Event::Fired, before, sample);
        self.climb(step);
    }

    fn incident(&self, step: &Step<'_>, level: u8, since: Timestamp) -> Incident {
        Incident {
            id: IncidentId::of(&step.rule.name, step.rule.version, step.device, since),
            since,
            level,
            stale: false,
            silent: false,
            live: false,
            ack: None,
            from: step.now,
            steps: Vec::new(),
            told: Vec::new(),
        }
    }

    fn firing(&mut self, step: &mut Step<'_>, sample: &Sample, reached: Option<u8>) {
        let keep = step.rule.keep_firing_for_ns;
        if self.escalate(step, sample, reached) {
            return;
        }
        let Some(incident) = &mut self.incident else { return };
        let bit = 1u8 << incident.level;
        if sample.raise == 0 && (sample.clear & 1 != 0 || incident.silent) {
            self.falling = None;
            if keep == 0 || incident.silent {
                return self.resolve(step, sample.ts, Some(sample), Event::Resolved);
            }
            self.state = State::Recovering;
            self.since = sample.ts;
            return self.note(step, Event::Recovering, State::Firing, sample);
        }
        if incident.level > 0 && sample.raise & bit == 0 && sample.clear & bit != 0 {
            let since = *self.falling.get_or_insert(sample.ts);
            if sample.ts.since(since) >= keep {
                let lower = (0..incident.level).rev().find(|at| sample.clear & (1 << at) == 0);
                incident.level = lower.unwrap_or(0);
                self.falling = None;
                self.note(step, Event::Eased, State::Firing, sample);
            }
        } else if sample.known & bit != 0 {
            self.falling = None;
        }
        if let Some(incident) = &mut self.incident {
            incident.silent = false;
        }
    }

    fn recovering(&mut self, step: &mut Step<'_>, sample: &Sample, reached: Option<u8>) {
        if sample.raise != 0 {
            self.state = State::Firing;
            self.since = self.incident.as_ref().map_or(sample.ts, |incident| incident.since);
            self.note(step, Event::Relapsed, State::Recovering, sample);
            self.escalate(step, sample, reached);
        } else if sample.clear & 1 != 0 && sample.ts.since(self.since) >= step.rule.keep_firing_for_ns {
            self.resolve(step, sample.ts, Some(sample), Event::Resolved);
        }
    }

    /// A higher severity: whoever takes care of the lower one knows nothing of it.
    fn escalate(&mut self, step: &mut Step<'_>, sample: &Sample, reached: Option<u8>) -> bool {
        let Some(incident) = &mut self.incident else { return false };
        let Some(level) = reached.filter(|level| *level > incident.level) else { return false };
        incident.live = !sample.old || step.rule.backfill == Backfill::Notify;
        incident.level = level;
        incident.ack = None;
        incident.silent = false;
        incident.from = step.now;
        incident.steps.clear();
        self.falling = None;
        self.note(step, Event::Escalated, State::Firing, sample);
        self.climb(step);
        true
    }

    /// Ends the incident. Those who were told of it are told.
    pub(super) fn resolve(&mut self, step: &mut Step<'_>, ts: Timestamp, sample: Option<&Sample>, event: Event) {
        let from = self.state;
        self.state = State::Ok;
        self.since = ts;
        let Some(incident) = self.incident.take() else { return };
        let mut transition = transition(step, &incident, (event, from, State::Ok), ts);
        transition.value = sample.and_then(|sample| sample.value);
        transition.backfilled = sample.map_or(event == Event::Superseded, |sample| sample.old);
        transition.told = incident.told.clone();
        step.out.push(transition);
        self.recent = Some((incident, ts));
    }

    /// The incident of old samples is one of now, if a new sample leaves it open.
    fn surface(&mut self, step: &mut Step<'_>, sample: &Sample) {
        if !sample.old && self.state == State::Firing {
            self.rise_to_the_present(step, sample.ts);
        }
    }

    fn rise_to_the_present(&mut self, step: &mut Step<'_>, ts: Timestamp) {
        let Some(incident) = self.incident.as_mut().filter(|incident| !incident.live) else { return };
        incident.live = true;
        incident.from = step.now;
        let transition = transition(step, incident, (Event::Surfaced, self.state, self.state), ts);
        step.out.push(transition);
        self.climb(step);
    }

    /// Something is heard again.
    fn returned(&mut self, step: &mut Step<'_>, sample: &Sample) {
        if self.state != State::NoData {
            return;
        }
        self.state = match &mut self.incident {
            Some(incident) => {
                incident.stale = false;
                self.since = incident.since;
                State::Firing
            }
            None => State::Ok,
        };
        self.note(step, Event::Returned, State::NoData, sample);
    }

    fn note(&self, step: &mut Step<'_>, event: Event, from: State, sample: &Sample) {
        let mut transition = match &self.incident {
            Some(incident) => transition(step, incident, (event, from, self.state), sample.ts),
            None => {
                let since = if self.state == State::Ok && from == State::NoData { sample.ts } else { self.since };
                let level = self.rising.iter().rposition(Option::is_some).unwrap_or(0) as u8;
                transition(step, &self.incident(step, level, since), (event, from, self.state), sample.ts)
            }
        };
        transition.value = sample.value;
        transition.backfilled = sample.old;
        step.out.push(transition);
    }

    /// What time does. `heard`: when something was last heard, by the engine's clock; `None`: silence does not count.
    pub(super) fn time(&mut self, step: &mut Step<'_>, heard: Option<Timestamp>) {
        let now = step.now;
        if let (Some(heard), Some(after)) = (heard, step.rule.no_data_after_ns)
            && self.state != State::NoData
            && now.since(heard) >= after
        {
            self.silence(step);
        }
        if let Some(heard) = heard
            && self.state == State::Firing
            && now.since(heard) >= SETTLED
        {
            self.rise_to_the_present(step, now);
        }
        let state = self.state;
        let Some(incident) = &mut self.incident else { return };
        if incident.ack.as_ref().is_some_and(|ack| ack.until <= now) {
            incident.ack = None;
            let transition = transition(step, incident, (Event::Unacknowledged, state, state), now);
            step.out.push(transition);
        }
        self.climb(step);
    }

    fn silence(&mut self, step: &mut Step<'_>) {
        let (now, policy) = (step.now, step.rule.no_data);
        self.rising.clear();
        self.falling = None;
        if policy == NoData::Resolve && self.incident.is_some() {
            self.resolve(step, now, None, Event::Resolved);
        }
        if policy == NoData::Raise && self.incident.is_none() {
            let incident = Incident { silent: true, live: true, ..self.incident(step, 0, now) };
            self.incident = Some(incident);
        }
        let from = self.state;
        self.state = State::NoData;
        self.since = now;
        let change = (Event::NoData, from, State::NoData);
        let transition = match &mut self.incident {
            Some(incident) => {
                incident.stale = true;
                transition(step, incident, change, now)
            }
            None => transition(step, &self.incident(step, 0, now), change, now),
        };
        step.out.push(transition);
    }

    /// Whether the ladder counts.
    fn climbs(&self) -> bool {
        let silent = |incident: &Incident| self.state == State::NoData && incident.silent;
        self.incident.as_ref().is_some_and(|incident| {
            incident.live && incident.ack.is_none() && (self.state == State::Firing || silent(incident))
        })
    }

    fn climb(&mut self, step: &mut Step<'_>) {
        if !self.climbs() {
            return;
        }
        let state = self.state;
        let Some(incident) = &mut self.incident else { return };
        incident.steps.resize(step.rule.ladder.len(), 0);
        for at in 0..step.rule.ladder.len() {
            let Some(mut due) = next_of(step.rule, incident, at) else { continue };
            if due > step.now {
                continue;
            }
            // An engine that was away makes up for it once.
            while due <= step.now
                && let Some(count) = incident.steps.get_mut(at)
            {
                *count += 1;
                match next_of(step.rule, incident, at) {
                    Some(next) => due = next,
                    None => break,
                }
            }
            let Some(rung) = step.rule.ladder.get(at) else { continue };
            if !incident.told.contains(&rung.to) {
                incident.told.push(rung.to.clone());
            }
            let mut transition = transition(step, incident, (Event::Told, state, state), step.now);
            transition.told = vec![rung.to.clone()];
            step.out.push(transition);
        }
    }

    /// When time will do something next, by the engine's clock.
    pub(super) fn due(&self, rule: &Rule, heard: Timestamp) -> Option<Timestamp> {
        let mut all = Vec::new();
        if self.state != State::NoData {
            all.extend(rule.no_data_after_ns.map(|after| heard.plus(after)));
        }
        if let Some(incident) = &self.incident {
            all.extend(incident.ack.as_ref().map(|ack| ack.until));
            if !incident.live && self.state == State::Firing {
                all.push(heard.plus(SETTLED));
            }
            if self.climbs() {
                all.extend((0..rule.ladder.len()).filter_map(|at| next_of(rule, incident, at)));
            }
        }
        all.into_iter().min()
    }

    /// Somebody takes care of the incident, or (`None`) no longer does.
    pub(super) fn acknowledge(&mut self, step: &mut Step<'_>, ack: Option<Ack>) {
        let state = self.state;
        let Some(incident) = &mut self.incident else { return };
        if incident.ack == ack {
            return;
        }
        incident.ack = ack;
        let event = if incident.ack.is_some() { Event::Acknowledged } else { Event::Unacknowledged };
        let transition = transition(step, incident, (event, state, state), step.now);
        step.out.push(transition);
    }
}

/// When a step of the ladder is due, by the engine's clock; `None`: it was taken as often as it may be.
fn next_of(rule: &Rule, incident: &Incident, at: usize) -> Option<Timestamp> {
    let step = rule.ladder.get(at)?;
    let taken = incident.steps.get(at).copied().unwrap_or(0);
    if taken >= step.most {
        return None;
    }
    let again = step.repeat_ns.unwrap_or(0).saturating_mul(i64::from(taken));
    Some(incident.from.plus(step.after_ns).plus(again))
}

fn transition(
    step: &Step<'_>,
    incident: &Incident,
    (event, from, to): (Event, State, State),
    ts: Timestamp,
) -> Transition {
    let rule = step.rule;
    let severity = rule.levels.get(usize::from(incident.level)).or(rule.levels.first());
    let labels: Vec<String> = rule.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Transition {
        number: 0,
        rule: rule.name.clone(),
        version: rule.version,
        ts,
        event,
        from,
        to,
        severity: severity.map_or_else(|| Arc::from(""), |level| level.severity.clone()),
        incident: incident.id,
        since: incident.since,
        value: None,
        backfilled: false,
        history: false,
        stale: incident.stale,
        ack: incident.ack.clone(),
        told: Vec::new(),
        labels: labels.join(",").into(),
    }
}
