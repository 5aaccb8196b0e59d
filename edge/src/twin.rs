//! What the device holds of its shadows and of commands: the pure part, and its stored form.
//!
//! A wish counts once: only a version above the one applied last is taken, and version and values are stored together
//! before the device says that it has applied them. A change made on the device itself is told with its time until the
//! engine has heard of it; until then no wish counts that touches the same value, since the engine has decided on that one
//! without knowing of the change. A command is handed out once; what came of it is kept, and said again whenever it is asked.

use std::collections::{BTreeMap, VecDeque};

use device::shadow::{cbor, merge_plain, read_object};
use device::time::Timestamp;
use serde_json::{Map, Value, json};

use crate::clock::Stamp;

/// Commands whose end is remembered.
const REMEMBERED: usize = 1024;

/// One shadow as the device has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Held {
    /// The version of what is desired that is applied.
    pub applied_dv: u64,
    /// All values.
    pub values: Map<String, Value>,
    /// Paths that were changed here and not reported yet.
    local: BTreeMap<String, Local>,
    /// A wish was passed over since it touches one of them.
    passed_over: bool,
}

/// A change that was made on the device itself.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Local {
    /// By the wall clock, in nanoseconds.
    at: i64,
    /// Wall less monotonic time then; `None`: in an earlier process.
    apart: Option<i128>,
}

impl Local {
    /// The time as the wall clock would have shown it, had it stood as it does now: it may have been set since.
    fn as_of(self, now: Stamp) -> i64 {
        let step = self.apart.map_or(0, |apart| now.apart() - apart);
        i64::try_from(i128::from(self.at) + step).unwrap_or(self.at)
    }
}

/// A command that is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id: the answer names it.
    pub id: String,
    /// What to do.
    pub name: String,
    /// With what.
    pub args: Value,
    /// Not to be begun after this time.
    pub deadline: Timestamp,
}

/// What to do with a command that has come.
#[derive(Debug, PartialEq)]
pub enum Given {
    /// It is new: do it, then say what came of it.
    New(Task),
    /// It was given before: this is what to say.
    Known(Vec<u8>),
    /// It cannot be read.
    Bad(String),
}

/// Everything a device holds of the kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Twin {
    shadows: BTreeMap<String, Held>,
    /// Id, state and output, oldest first.
    commands: VecDeque<(String, String, Value)>,
    rseq: u64,
}

/// A report on its way: what it says was changed here.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    shadow: String,
    local: BTreeMap<String, Local>,
}

impl Sent {
    /// The name of the shadow.
    pub fn shadow(&self) -> &str {
        &self.shadow
    }
}

/// What follows from a report having been heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeardOf {
    /// Changes that need not be told any more: the twin is to be stored.
    pub news: bool,
    /// A wish was passed over meanwhile: report once more, and the engine says again what it wants.
    pub again: bool,
}

fn paths(at: &str, object: &Map<String, Value>, out: &mut Vec<String>) {
    for (name, value) in object {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match value {
            Value::Object(inner) => paths(&path, inner, out),
            _ => out.push(path),
        }
    }
}

/// Whether two paths are the same, or one leads through the other.
fn touch(one: &str, other: &str) -> bool {
    let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl Twin {
    /// The shadows.
    pub fn shadows(&self) -> &BTreeMap<String, Held> {
        &self.shadows
    }

    /// What is desired has come, `{"shadow", "dv", "delta"}`. The name of the shadow if the device has changed.
    pub fn wanted(&mut self, payload: &[u8]) -> Result<Option<String>, String> {
        let mut message = read_object(payload)?;
        let dv = message.get("dv").and_then(Value::as_u64).ok_or("`dv` is missing")?;
        let name = message.get("shadow").and_then(Value::as_str).unwrap_or(device::shadow::DEFAULT).to_owned();
        let Some(Value::Object(delta)) = message.remove("delta") else { return Err("`delta` is missing".to_owned()) };
        Ok(self.apply(&name, dv, &delta).then_some(name))
    }

    /// The answer to the hello says what is desired in the default shadow.
    pub fn greeted(&mut self, dv: Option<u64>, delta: Option<&[u8]>) -> Result<bool, String> {
        match (dv, delta) {
            (Some(dv), Some(delta)) => Ok(self.apply(device::shadow::DEFAULT, dv, &read_object(delta)?)),
            _ => Ok(false),
        }
    }

    fn apply(&mut self, name: &str, dv: u64, delta: &Map<String, Value>) -> bool {
        if dv <= self.shadows.get(name).map_or(0, |held| held.applied_dv) {
            return false;
        }
        let held = self.shadows.entry(name.to_owned()).or_default();
        let mut wanted = Vec::new();
        paths("", delta, &mut wanted);
        if held.local.keys().any(|local| wanted.iter().any(|path| touch(local, path))) {
            held.passed_over = true;
            return false;
        }
        merge_plain(&mut held.values, delta);
        held.applied_dv = dv;
        held.passed_over = false;
        true
    }

    /// Values were changed on the device itself.
    pub fn change(&mut self, name: &str, patch: &Map<String, Value>, now: Stamp) {
        let held = self.shadows.entry(name.to_owned()).or_default();
        merge_plain(&mut held.values, patch);
        let mut changed = Vec::new();
        paths("", patch, &mut changed);
        let local = Local { at: now.wall.0, apart: Some(now.apart()) };
        held.local.extend(changed.into_iter().map(|path| (path, local)));
    }

    /// A report of all there is in a shadow, in CBOR.
    pub fn report(&mut self, name: &str, session: u64, now: Stamp) -> Option<(Vec<u8>, Sent)> {
        self.rseq += 1;
        let held = self.shadows.get(name)?;
        let local: Vec<&String> = held.local.keys().collect();
        let times: BTreeMap<&String, i64> = held.local.iter().map(|(path, local)| (path, local.as_of(now))).collect();
        let report = json!({
            "shadow": name, "session": session, "rseq": self.rseq, "based_on_dv": held.applied_dv,
            "full": held.values, "t": times, "local": local,
        });
        let Value::Object(report) = report else { return None };
        Some((cbor(&report), Sent { shadow: name.to_owned(), local: held.local.clone() }))
    }

    /// The engine has heard a report.
    pub fn heard(&mut self, sent: &Sent) -> HeardOf {
        let Some(held) = self.shadows.get_mut(&sent.shadow) else { return HeardOf::default() };
        let before = held.local.len();
        held.local.retain(|path, at| sent.local.get(path) != Some(at));
        HeardOf { news: held.local.len() != before, again: std::mem::take(&mut held.passed_over) }
    }

    /// A command has come.
    pub fn given(&mut self, payload: &[u8], now: Timestamp) -> Given {
        let message = match read_object(payload) {
            Ok(message) => message,
            Err(text) => return Given::Bad(text),
        };
        let text = |name: &str| message.get(name).and_then(Value::as_str).map(str::to_owned);
        let (Some(id), Some(name)) = (text("cmd_id"), text("name")) else {
            return Given::Bad("`cmd_id` and `name` are missing".to_owned());
        };
        if let Some((id, state, out)) = self.commands.iter().find(|(of, _, _)| *of == id) {
            return Given::Known(result(id, state, out));
        }
        let deadline = Timestamp(message.get("deadline").and_then(Value::as_i64).unwrap_or(i64::MAX));
        if now > deadline {
            return Given::Known(self.ended(&id, "expired", Value::Null));
        }
        self.ended(&id, "accepted", Value::Null);
        Given::New(Task { id, name, args: message.get("args").cloned().unwrap_or(Value::Null), deadline })
    }

    /// A command stands elsewhere now; what to say of it.
    pub fn ended(&mut self, id: &str, state: &str, out: Value) -> Vec<u8> {
        let message = result(id, state, &out);
        match self.commands.iter_mut().find(|(of, _, _)| of == id) {
            Some(known) => (known.1, known.2) = (state.to_owned(), out),
            None => self.commands.push_back((id.to_owned(), state.to_owned(), out)),
        }
        while self.commands.len() > REMEMBERED {
            self.commands.pop_front();
        }
        message
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let shadows: Map<String, Value> = self
            .shadows
            .iter()
            .map(|(name, held)| {
                let local: BTreeMap<&String, i64> = held.local.iter().map(|(path, local)| (path, local.at)).collect();
                let held = json!({ "dv": held.applied_dv, "values": held.values, "local": local });
                (name.clone(), held)
            })
            .collect();
        json!({ "version": 1, "shadows": shadows, "commands": self.commands }).to_string().into_bytes()
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if stored["version"] != 1 {
            return Err(format!("version {} is not known", stored["version"]));
        }
        let mut twin = Self::default();
        for (name, held) in stored["shadows"].as_object().into_iter().flatten() {
            let local: BTreeMap<String, i64> =
                serde_json::from_value(held["local"].clone()).map_err(|error| error.to_string())?;
            let held = Held {
                applied_dv: held["dv"].as_u64().unwrap_or(0),
                values: held["values"].as_object().cloned().unwrap_or_default(),
                local: local.into_iter().map(|(path, at)| (path, Local { at, apart: None })).collect(),
                passed_over: false,
            };
            twin.shadows.insert(name.clone(), held);
        }
        twin.commands = serde_json::from_value(stored["commands"].clone()).map_err(|error| error.to_string())?;
        Ok(twin)
    }
}

fn result(id: &str, state: &str, out: &Value) -> Vec<u8> {
    json!({ "cmd_id": id, "state": state, "out": out }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use device::shadow::{delta_cbor, read_report};

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_867_200_000_000_000);

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_wish_counts_once_and_local_changes_are_told_until_heard() {
        let mut twin = Twin::default();
        let wish = |dv, delta| delta_cbor("main", dv, &object(delta));
        assert_eq!(twin.wanted(&wish(3, json!({"a": 1, "b": {"c": 2}}))), Ok(Some("main".to_owned())));
        assert_eq!(twin.wanted(&wish(3, json!({"a": 9}))), Ok(None), "a repetition");
        assert_eq!(twin.wanted(&wish(2, json!({"a": 9}))), Ok(None), "an older one");
        let at = |passed: i64| Stamp { wall: NOW.plus(passed), mono: (1_000_000 + passed) as u64 };
        twin.change("main", &object(json!({"b": {"c": 5}})), at(0));
        let (payload, sent) = twin.report("main", 7, at(0)).unwrap();
        let report = read_report(&payload, None).unwrap();
        assert_eq!((report.based_on, report.session, report.rseq, report.full), (Some(3), Some(7), Some(1), true));
        assert_eq!(Value::Object(report.patch), json!({"a": 1, "b": {"c": 5}}));
        assert_eq!((report.times[0].1, report.local.unwrap().len()), (NOW, 1));
        // Changed once more while the report is on its way: that is still to be told.
        twin.change("main", &object(json!({"b": {"c": 6}})), at(1));
        assert_eq!(twin.heard(&sent), HeardOf::default());
        let (_, sent) = twin.report("main", 7, at(1)).unwrap();
        assert_eq!(twin.heard(&sent), HeardOf { news: true, again: false });
        assert_eq!(read_report(&twin.report("main", 7, at(1)).unwrap().0, None).unwrap().local, Some(Vec::new()));
        let again = Twin { rseq: 0, ..twin.clone() };
        assert_eq!(Twin::decode(&twin.encode()), Ok(again));
        assert!(twin.wanted(b"{}").is_err());
        assert_eq!(twin.greeted(Some(4), Some(&cbor(&object(json!({"a": null}))))), Ok(true));
        assert_eq!(Value::Object(twin.shadows()["main"].values.clone()), json!({"b": {"c": 6}}));
    }

    #[test]
    fn a_change_made_here_is_told_before_a_wish_counts_that_knows_nothing_of_it() {
        let mut twin = Twin::default();
        let wish = |dv, delta| delta_cbor("main", dv, &object(delta));
        let at = |passed: i64| Stamp { wall: NOW.plus(passed), mono: (1_000_000 + passed) as u64 };
        assert_eq!(twin.wanted(&wish(1, json!({"a": {"b": 1}, "ab": 1}))), Ok(Some("main".to_owned())));
        twin.change("main", &object(json!({"a": {"b": 5}})), at(0));
        for delta in
            [json!({"a": {"b": 2}}), json!({"a": 2}), json!({"a": {"b": {"c": 2}}}), json!({"z": 1, "a": {"b": 2}})]
        {
            assert_eq!(twin.wanted(&wish(2, delta)), Ok(None));
        }
        assert_eq!(twin.wanted(&wish(2, json!({"ab": 2, "a": {"c": 3}}))), Ok(Some("main".to_owned())), "others count");
        assert_eq!(twin.greeted(Some(3), Some(&cbor(&object(json!({"a": {"b": 3}}))))), Ok(false));
        assert_eq!(Value::Object(twin.shadows()["main"].values.clone()), json!({"a": {"b": 5, "c": 3}, "ab": 2}));
        // The wall clock was set ahead by an hour since: the time is told as that clock has it.
        let now = Stamp { wall: NOW.plus(3_600_000_000_007), mono: 1_000_007 };
        let (payload, sent) = twin.report("main", 7, now).unwrap();
        let report = read_report(&payload, None).unwrap();
        assert_eq!((report.based_on, report.times[0].1), (Some(2), NOW.plus(3_600_000_000_000)));
        assert_eq!(twin.heard(&sent), HeardOf { news: true, again: true });
        assert_eq!(twin.heard(&sent), HeardOf::default());
        assert_eq!(twin.wanted(&wish(3, json!({"a": {"b": 3}}))), Ok(Some("main".to_owned())));
        // In another process nobody knows how the clocks stood.
        twin.change("main", &object(json!({"a": {"b": 6}})), at(9));
        let mut twin = Twin::decode(&twin.encode()).unwrap();
        let report = read_report(&twin.report("main", 8, now).unwrap().0, None).unwrap();
        assert_eq!((report.local.unwrap().len(), report.times[0].1), (1, NOW.plus(9)));
    }

    #[test]
    fn a_command_is_done_once() {
        let mut twin = Twin::default();
        let command = json!({"cmd_id": "c1", "name": "open", "args": [1], "deadline": NOW.0}).to_string();
        let Given::New(task) = twin.given(command.as_bytes(), NOW) else { panic!("it is new") };
        assert_eq!((&*task.name, &task.args), ("open", &json!([1])));
        let Given::Known(said) = twin.given(command.as_bytes(), NOW) else { panic!("it is known") };
        assert!(String::from_utf8(said).unwrap().contains("accepted"));
        twin.ended("c1", "ok", json!({"took": 3}));
        let mut twin = Twin::decode(&twin.encode()).unwrap();
        let Given::Known(said) = twin.given(command.as_bytes(), NOW.plus(5)) else { panic!("it is known") };
        let said: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(said, json!({"cmd_id": "c1", "state": "ok", "out": {"took": 3}}));
        let late = command.replace("c1", "c2");
        let Given::Known(said) = twin.given(late.as_bytes(), NOW.plus(5)) else { panic!("it is over") };
        assert!(String::from_utf8(said).unwrap().contains("expired"));
        assert!(matches!(twin.given(b"{}", NOW), Given::Bad(_)));
    }
}
