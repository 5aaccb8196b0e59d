//! Promises of desk, courier and keeper.

mod courier;
mod desk;
mod golden;
mod outbox;
mod rerun;

use device::time::{SECOND, Timestamp};

use crate::change::{Change, What};
use crate::desk::{Desk, Effect, Happening};
use crate::message::Message;
use crate::settings::Settings;

/// So many seconds after the beginning.
fn at(seconds: i64) -> Timestamp {
    Timestamp(1_750_000_000 * SECOND + seconds * SECOND)
}

/// oncall is reached by `a`, lead by `a` and `b`.
fn settings() -> Settings {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Settings {
        channels: set(&["a", "b"]),
        people: [("oncall".to_owned(), set(&["a"])), ("lead".to_owned(), set(&["a", "b"]))].into(),
        ..Settings::default()
    }
}

/// A change of the incident `incident` of a device `d<incident>`.
fn change(incident: u64, number: u64, seconds: i64, what: What) -> Change {
    Change {
        what,
        device: format!("d{incident}"),
        rule: "hot".to_owned(),
        incident: format!("{incident:016x}"),
        number,
        severity: "warning".to_owned(),
        since: at(0),
        ts: at(seconds),
        stale: false,
        value: None,
        to: Vec::new(),
        labels: crate::Labels::parse("team=plant"),
        past: false,
        fleets: Vec::new(),
    }
}

fn told(incident: u64, number: u64, seconds: i64, to: &str) -> Change {
    Change { to: vec![to.to_owned()], ..change(incident, number, seconds, What::Told) }
}

/// A desk that hears of one change after the other.
struct Script {
    desk: Desk,
    position: u64,
    effects: Vec<Effect>,
    seen: u64,
}

impl Script {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let mut script = Self { desk: Desk::default(), position: 0, effects: Vec::new(), seen: 0 };
        script.happen(0, Happening::Settings(settings));
        script
    }

    fn happen(&mut self, seconds: i64, happening: Happening) -> Vec<String> {
        // Whatever is due comes first, at its time, as the loop around the desk sees to it.
        while let Some(due) = self.desk.due().filter(|due| *due < at(seconds)) {
            self.effects.extend(self.desk.step(due, &Happening::Tick));
        }
        self.effects.extend(self.desk.step(at(seconds), &happening));
        let text = serde_json::to_string(&self.desk).unwrap();
        assert_eq!(serde_json::from_str::<Desk>(&text).unwrap(), self.desk, "it reads back");
        self.news()
    }

    fn hear(&mut self, seconds: i64, changes: Vec<Change>) -> Vec<String> {
        self.position += 1;
        let position = self.position;
        self.happen(seconds, Happening::Heard { shard: 0, position, changes })
    }

    /// What is in the outbox since the last look: `seconds about channel incident-step`, in order.
    fn news(&mut self) -> Vec<String> {
        let mut all: Vec<&Message> =
            ["a", "b"].into_iter().flat_map(|channel| self.desk.outbox(channel, self.seen)).collect();
        all.sort_by_key(|message| message.number);
        let shown = all.iter().map(|message| {
            let seconds = message.at.since(at(0)) / SECOND;
            let incident = message.incident.trim_start_matches('0');
            format!("{seconds} {} {} {incident}-{}", message.about.as_str(), message.channel, message.step)
        });
        let shown = shown.collect();
        self.seen = self.desk.made();
        shown
    }

    /// What happens until then.
    fn until(&mut self, seconds: i64) -> Vec<String> {
        self.happen(seconds, Happening::Tick)
    }
}
