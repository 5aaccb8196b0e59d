//! The alert rules once more, as plainly as they can be said: lists of samples, searched from one end to the other.
//!
//! Property tests drive this model and `device::machine::Device` with the same records and compare every transition.
//! It looks at one rule over one number; not covered are conditions, and how records are read.

/// One second in nanoseconds.
pub const SECOND: i64 = 1_000_000_000;

/// What silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Nothing.
    Keep,
    /// It opens an incident.
    Raise,
    /// It ends one.
    Resolve,
}

/// A severity.
#[derive(Debug, Clone)]
pub struct Level {
    /// Above this, readings raise.
    pub above: f64,
    /// Below this, they clear; `None`: where they do not raise.
    pub below: Option<f64>,
    /// For how long they have to raise.
    pub lasts: i64,
}

/// Somebody to tell.
#[derive(Debug, Clone)]
pub struct Rung {
    /// Who.
    pub to: String,
    /// After how long.
    pub after: i64,
    /// Again after so long.
    pub every: Option<i64>,
    /// How often in all.
    pub most: u32,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Lowest first.
    pub levels: Vec<Level>,
    /// For how long readings have to clear.
    pub keep: i64,
    /// How many in a row have to raise.
    pub samples: usize,
    /// A longer time between two samples is a gap.
    pub gap: Option<i64>,
    /// Silence of so long is no data.
    pub silent_after: Option<i64>,
    /// What that means.
    pub silence: Silence,
    /// People are told of incidents of the past, too.
    pub notify: bool,
    /// Whom to tell.
    pub ladder: Vec<Rung>,
}

/// One transition, but for its number and the names of rule and incident.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What happened.
    pub event: &'static str,
    /// State before.
    pub from: &'static str,
    /// State behind.
    pub to: &'static str,
    /// Index of the severity.
    pub level: usize,
    /// When the incident began.
    pub since: i64,
    /// When it happened.
    pub ts: i64,
    /// By an old sample.
    pub old: bool,
    /// Beside the state of now.
    pub history: bool,
    /// The incident is open without data.
    pub stale: bool,
    /// Who takes care.
    pub ack: Option<(String, i64)>,
    /// Who is told.
    pub told: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    ts: i64,
    value: f64,
    old: bool,
}

#[derive(Debug, Clone)]
struct Incident {
    since: i64,
    level: usize,
    stale: bool,
    silent: bool,
    live: bool,
    ack: Option<(String, i64)>,
    from: i64,
    taken: Vec<u32>,
    told: Vec<String>,
}

/// One life of a rule over samples in the order of their time.
#[derive(Debug, Clone)]
struct Life {
    state: &'static str,
    since: i64,
    /// Everything that was evaluated.
    seen: Vec<Seen>,
    /// What stands before this in `seen` does not count as raising any more.
    deaf: usize,
    /// What stands before this in `seen` does not count as easing any more.
    mark: usize,
    open: Option<Incident>,
    ended: Option<(Incident, i64)>,
    waiting: Vec<Seen>,
    newest: i64,
    heard: i64,
}

impl Life {
    fn new() -> Self {
        Self {
            state: "ok",
            since: 0,
            seen: Vec::new(),
            deaf: 0,
            mark: 0,
            open: None,
            ended: None,
            waiting: Vec::new(),
            newest: i64::MIN,
            heard: i64::MIN,
        }
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    rule: Rule,
    life: Life,
    past: Option<Life>,
    resumed: Option<i64>,
    rows: Vec<Row>,
}

impl Model {
    /// Nothing was ever heard.
    pub fn new(rule: Rule) -> Self {
        Self { rule, life: Life::new(), past: None, resumed: None, rows: Vec::new() }
    }

    /// Everything that happened so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A record became durable.
    pub fn record(&mut self, now: i64, ts: i64, value: f64, replayed: bool) {
        if !value.is_finite() {
            return;
        }
        let sample = Seen { ts, value, old: replayed || now - ts > 300 * SECOND };
        self.life.heard = self.life.heard.max(now);
        if self.life.seen.last().is_some_and(|last| last.ts > ts) {
            let before = self.resumed.is_some_and(|resumed| ts < resumed);
            if sample.old && before {
                let mut past = self.past.take().unwrap_or_else(Life::new);
                if past.seen.last().is_none_or(|last| last.ts <= ts) {
                    past.heard = past.heard.max(now);
                    past.newest = past.newest.max(ts);
                    past.waiting.push(sample);
                    let upto = past.newest - 2 * SECOND;
                    self.evaluate(&mut past, now, upto, true);
                }
                if past.newest > i64::MIN {
                    self.past = Some(past);
                }
            }
            return;
        }
        let mut life = std::mem::replace(&mut self.life, Life::new());
        life.newest = life.newest.max(ts);
        life.waiting.push(sample);
        let upto = life.newest - 2 * SECOND;
        self.evaluate(&mut life, now, upto, false);
        self.life = life;
    }

    /// Time has passed, and the log says so.
    pub fn tick(&mut self, now: i64, floor: i64) {
        if self.life.heard == i64::MIN {
            return;
        }
        let mut life = std::mem::replace(&mut self.life, Life::new());
        if now - life.heard >= 2 * SECOND {
            self.evaluate(&mut life, now, now - 2 * SECOND, false);
        }
        if let Some(mut past) = self.past.take_if(|past| now - past.heard >= 60 * SECOND) {
            self.evaluate(&mut past, now, i64::MAX, true);
            if let Some(incident) = past.open.take() {
                let row = self.row(&incident, ("superseded", past.state, "ok"), past.newest);
                self.rows.push(Row { old: true, history: true, told: incident.told.clone(), ..row });
            }
        }
        let heard = life.heard.max(floor);
        if let Some(after) = self.rule.silent_after
            && life.state != "no_data"
            && now - heard >= after
        {
            self.silence(&mut life, now);
        }
        if life.state == "firing" && now - heard >= 60 * SECOND {
            self.surface(&mut life, now, now);
        }
        if let Some(incident) = &mut life.open
            && incident.ack.as_ref().is_some_and(|(_, until)| *until <= now)
        {
            incident.ack = None;
            let row = self.row(&incident.clone(), ("unacknowledged", life.state, life.state), now);
            self.rows.push(row);
        }
        self.climb(&mut life, now);
        self.life = life;
    }

    /// Somebody takes care of whatever incident is open, or no longer does.
    pub fn acknowledge(&mut self, now: i64, ack: Option<(String, i64)>) {
        let state = self.life.state;
        let Some(incident) = &mut self.life.open else { return };
        if incident.ack == ack {
            return;
        }
        incident.ack = ack;
        let event = if incident.ack.is_some() { "acknowledged" } else { "unacknowledged" };
        let incident = incident.clone();
        let row = self.row(&incident, (event, state, state), now);
        self.rows.push(row);
    }

    /// When the incident that is open began.
    pub fn open(&self) -> Option<i64> {
        self.life.open.as_ref().map(|incident| incident.since)
    }

    fn row(&self, incident: &Incident, (event, from, to): (&'static str, &'static str, &'static str), ts: i64) -> Row {
        Row {
            event,
            from,
            to,
            level: incident.level,
            since: incident.since,
            ts,
            old: false,
            history: false,
            stale: incident.stale,
            ack: incident.ack.clone(),
            told: Vec::new(),
        }
    }

    fn incident(&self, level: usize, since: i64, from: i64) -> Incident {
        let (ack, taken, told) = (None, vec![0; self.rule.ladder.len()], Vec::new());
        Incident { since, level, stale: false, silent: false, live: false, ack, from, taken, told }
    }

    fn raises(&self, level: usize, value: f64) -> bool {
        self.rule.levels.get(level).is_some_and(|level| value > level.above)
    }

    fn clears(&self, level: usize, value: f64) -> bool {
        self.rule.levels.get(level).is_some_and(|level| level.below.map_or(value <= level.above, |below| value < below))
    }

    /// Whether there is a gap before sample `at`.
    fn gap(&self, seen: &[Seen], at: usize) -> bool {
        let Some(before) = at.checked_sub(1) else { return false };
        let mut usual = 0;
        for pair in seen[..at].windows(2) {
            let step = pair[1].ts - pair[0].ts;
            usual = if usual == 0 { step } else { (usual + (step.min(usual * 2) - usual) / 8).max(1) };
        }
        let most = self.rule.gap.unwrap_or(if usual == 0 { 60 * SECOND } else { usual * 3 });
        seen[at].ts - seen[before].ts > most
    }

    /// Since when, and how often, the last samples raise without a gap.
    fn raising(&self, life: &Life, level: usize) -> Option<(i64, usize)> {
        let mut found = None;
        for at in (life.deaf..life.seen.len()).rev() {
            let sample = life.seen[at];
            if !self.raises(level, sample.value) {
                break;
            }
            found = Some((sample.ts, found.map_or(1, |(_, count)| count + 1)));
            if self.gap(&life.seen, at) {
                break;
            }
        }
        found
    }

    fn evaluate(&mut self, life: &mut Life, now: i64, upto: i64, history: bool) {
        life.waiting.sort_by_key(|sample| sample.ts);
        while life.waiting.first().is_some_and(|sample| sample.ts <= upto) {
            let sample = life.waiting.remove(0);
            if !history && life.seen.last().is_none_or(|last| sample.ts - last.ts > 300 * SECOND) {
                self.resumed = Some(sample.ts);
            }
            let before = self.rows.len();
            self.sample(life, now, sample);
            self.rows[before..].iter_mut().for_each(|row| row.history = history);
        }
    }

    fn sample(&mut self, life: &mut Life, now: i64, sample: Seen) {
        let Seen { ts, value, old } = sample;
        if life.state == "no_data" {
            life.state = if life.open.is_some() { "firing" } else { "ok" };
            let incident = match &mut life.open {
                Some(incident) => {
                    incident.stale = false;
                    life.since = incident.since;
                    incident.clone()
                }
                None => self.incident(0, ts, now),
            };
            let row = self.row(&incident, ("returned", "no_data", life.state), ts);
            self.rows.push(Row { old, ..row });
        }
        life.seen.push(sample);
        let levels = 0..self.rule.levels.len();
        let raising: Vec<Option<(i64, usize)>> = levels.map(|level| self.raising(life, level)).collect();
        let reached = (0..raising.len()).rev().find(|level| {
            let lasts = self.rule.levels[*level].lasts;
            raising[*level].is_some_and(|(since, count)| ts - since >= lasts && count >= self.rule.samples)
        });
        let any = raising.iter().any(Option::is_some);
        match life.state {
            "ok" | "pending" => {
                let before = life.state;
                let began = raising.iter().flatten().map(|(since, _)| *since).min();
                match (reached, began) {
                    (Some(level), Some(began)) => self.fire(life, now, sample, level, began),
                    (_, Some(began)) => {
                        (life.state, life.since) = ("pending", began);
                        if before == "ok" {
                            let level = raising.iter().rposition(Option::is_some).unwrap_or(0);
                            let row = self.row(&self.incident(level, began, now), ("pending", "ok", "pending"), ts);
                            self.rows.push(Row { old, ..row });
                        }
                    }
                    _ => {
                        life.state = "ok";
                        if before == "pending" {
                            let row = self.row(&self.incident(0, life.since, now), ("lapsed", "pending", "ok"), ts);
                            self.rows.push(Row { old, ..row });
                        }
                    }
                }
            }
            "firing" => self.firing(life, now, sample, reached, any),
            "recovering" => {
                if any {
                    life.state = "firing";
                    life.mark = life.seen.len();
                    self.change(life, "relapsed", "recovering", sample);
                    self.escalate(life, now, sample, reached);
                } else if self.clears(0, value) && ts - life.since >= self.rule.keep {
                    self.resolve(life, ts, Some(sample));
                }
            }
            _ => {}
        }
        if !old && life.state == "firing" {
            self.surface(life, now, ts);
        }
    }

    fn change(&mut self, life: &Life, event: &'static str, from: &'static str, sample: Seen) {
        if let Some(incident) = &life.open {
            let row = self.row(incident, (event, from, life.state), sample.ts);
            self.rows.push(Row { old: sample.old, ..row });
        }
    }

    fn fire(&mut self, life: &mut Life, now: i64, sample: Seen, level: usize, began: i64) {
        let before = life.state;
        let mut incident = match life.ended.take() {
            Some((incident, ended)) if sample.ts - ended <= 600 * SECOND => incident,
            _ => self.incident(level, began, now),
        };
        (incident.level, incident.stale, incident.silent) = (level, false, false);
        let live = !sample.old || self.rule.notify;
        if live && !incident.live {
            incident.from = now;
        }
        incident.live = live;
        life.since = incident.since;
        life.open = Some(incident);
        life.state = "firing";
        life.mark = life.seen.len();
        self.change(life, "fired", before, sample);
        self.climb(life, now);
    }

    fn firing(&mut self, life: &mut Life, now: i64, sample: Seen, reached: Option<usize>, any: bool) {
        if self.escalate(life, now, sample, reached) {
            return;
        }
        let Some(incident) = life.open.clone() else { return };
        if !any && (self.clears(0, sample.value) || incident.silent) {
            if self.rule.keep == 0 || incident.silent {
                return self.resolve(life, sample.ts, Some(sample));
            }
            (life.state, life.since) = ("recovering", sample.ts);
            return self.change(life, "recovering", "firing", sample);
        }
        let easing =
            |sample: &Seen| !self.raises(incident.level, sample.value) && self.clears(incident.level, sample.value);
        if incident.level > 0 && easing(&sample) {
            let first = life.seen[life.mark..].iter().rev().take_while(|sample| easing(sample)).last();
            if sample.ts - first.map_or(sample.ts, |first| first.ts) >= self.rule.keep {
                let lower = (0..incident.level).rev().find(|level| !self.clears(*level, sample.value));
                if let Some(open) = &mut life.open {
                    open.level = lower.unwrap_or(0);
                }
                life.mark = life.seen.len();
                self.change(life, "eased", "firing", sample);
            }
        }
        if let Some(open) = &mut life.open {
            open.silent = false;
        }
    }

    fn escalate(&mut self, life: &mut Life, now: i64, sample: Seen, reached: Option<usize>) -> bool {
        let Some(incident) = &mut life.open else { return false };
        let Some(level) = reached.filter(|level| *level > incident.level) else { return false };
        (incident.level, incident.ack, incident.silent, incident.from) = (level, None, false, now);
        incident.live = !sample.old || self.rule.notify;
        incident.taken.fill(0);
        life.mark = life.seen.len();
        self.change(life, "escalated", "firing", sample);
        self.climb(life, now);
        true
    }

    fn resolve(&mut self, life: &mut Life, ts: i64, sample: Option<Seen>) {
        let Some(incident) = life.open.take() else { return };
        let row = self.row(&incident, ("resolved", life.state, "ok"), ts);
        self.rows.push(Row { old: sample.is_some_and(|sample| sample.old), told: incident.told.clone(), ..row });
        (life.state, life.since) = ("ok", ts);
        life.ended = Some((incident, ts));
    }

    fn surface(&mut self, life: &mut Life, now: i64, ts: i64) {
        let Some(incident) = life.open.as_mut().filter(|incident| !incident.live) else { return };
        (incident.live, incident.from) = (true, now);
        let row = self.row(&incident.clone(), ("surfaced", "firing", "firing"), ts);
        self.rows.push(row);
        self.climb(life, now);
    }

    fn silence(&mut self, life: &mut Life, now: i64) {
        life.deaf = life.seen.len();
        life.mark = life.seen.len();
        if self.rule.silence == Silence::Resolve {
            self.resolve(life, now, None);
        }
        let from = life.state;
        (life.state, life.since) = ("no_data", now);
        if self.rule.silence == Silence::Raise && life.open.is_none() {
            life.open = Some(Incident { silent: true, live: true, ..self.incident(0, now, now) });
        }
        let incident = match &mut life.open {
            Some(incident) => {
                incident.stale = true;
                incident.clone()
            }
            None => self.incident(0, now, now),
        };
        let row = self.row(&incident, ("no_data", from, "no_data"), now);
        self.rows.push(row);
    }

    fn climb(&mut self, life: &mut Life, now: i64) {
        let state = life.state;
        let Some(incident) = &mut life.open else { return };
        if !incident.live || incident.ack.is_some() || !(state == "firing" || (state == "no_data" && incident.silent)) {
            return;
        }
        let mut told = Vec::new();
        for (rung, taken) in self.rule.ladder.iter().zip(&mut incident.taken) {
            let due = |taken: u32| incident.from + rung.after + rung.every.unwrap_or(0) * i64::from(taken);
            if *taken < rung.most && due(*taken) <= now {
                while *taken < rung.most && due(*taken) <= now {
                    *taken += 1;
                }
                if !incident.told.contains(&rung.to) {
                    incident.told.push(rung.to.clone());
                }
                told.push(rung.to.clone());
            }
        }
        let incident = incident.clone();
        for to in told {
            let row = self.row(&incident, ("told", state, state), now);
            self.rows.push(Row { told: vec![to], ..row });
        }
    }
}
