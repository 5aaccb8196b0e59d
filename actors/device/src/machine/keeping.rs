//! Shadows, commands and presence of the device: what is asked of it, what it says, and what it is told.

use std::borrow::Cow;
use std::sync::Arc;

use super::types::{Counts, Decision, Effect, Event, Message, Verdict};
use super::{Device, letter};
use crate::command::{self, Commands, Order, Step};
use crate::entry::{Body, Entries, Entry, Reason};
use crate::hello::Hello;
use crate::payload::Refusal;
use crate::shadow::{self, Ask, Change, DEFAULT, ShadowRules, Shadows, What};
use crate::status::{Heard, Status};
use crate::time::Timestamp;
use crate::topic::Leaf;

/// Something durable, and what it will be once all that is in flight is durable too.
#[derive(Debug, Default)]
pub(super) struct Held<T> {
    durable: T,
    /// With all that is in flight, and how many changes those are.
    ahead: Option<(T, usize)>,
}

impl<T: Clone + Default + PartialEq> Held<T> {
    pub(super) fn of(durable: T) -> Self {
        Self { durable, ahead: None }
    }

    pub(super) fn durable(&self) -> &T {
        &self.durable
    }

    /// What decisions are made on.
    fn latest(&self) -> &T {
        self.ahead.as_ref().map_or(&self.durable, |(ahead, _)| ahead)
    }

    fn stage(&mut self, change: impl FnOnce(&mut T)) {
        let (ahead, changes) = self.ahead.get_or_insert_with(|| (self.durable.clone(), 0));
        change(ahead);
        *changes += 1;
    }

    fn settle(&mut self, change: impl FnOnce(&mut T)) {
        change(&mut self.durable);
        if let Some((_, changes)) = &mut self.ahead {
            *changes = changes.saturating_sub(1);
            if *changes == 0 {
                self.ahead = None;
            }
        }
    }
}

/// What a device has besides its records and alerts. Most devices of a fleet that only measures have nothing.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    pub(super) shadows: Held<Shadows>,
    pub(super) commands: Held<Commands>,
    pub(super) status: Held<Option<Status>>,
}

impl Device {
    /// Who wins where both sides of a shadow have changed; without this call what is desired does.
    pub fn with_rules(mut self, rules: Arc<ShadowRules>) -> Self {
        self.shadow_rules = rules;
        self
    }

    /// Its shadows, as far as they are durable.
    pub fn shadows(&self) -> Option<&Shadows> {
        self.keeping.as_ref().map(|keeping| keeping.shadows.durable())
    }

    /// Its commands, as far as they are durable.
    pub fn commands(&self) -> Option<&Commands> {
        self.keeping.as_ref().map(|keeping| keeping.commands.durable())
    }

    /// Whether it is there, as far as it has said so.
    pub fn status(&self) -> Option<&Status> {
        self.keeping.as_ref()?.status.durable().as_ref()
    }

    /// A shadow as it is at `now`.
    pub fn shadow(&self, name: &str, now: Timestamp) -> Option<shadow::View> {
        self.shadows()?.view(name, now, &self.shadow_rules)
    }

    /// Somebody asks for a change of what is desired. The answer counts when the entries, and all before them, are
    /// durable.
    pub fn ask(&mut self, ask: Ask, now: Timestamp) -> (shadow::Answer, Entries) {
        self.now = self.now.max(now);
        let keeping = self.keeping.get_or_insert_default();
        let ruling = keeping.shadows.latest().ask(ask, now);
        let entries = self.stage_changes(ruling.changes, now);
        self.drop_empty();
        (ruling.answer, entries)
    }

    /// Somebody has a command for it. The answer counts when the entries, and all before them, are durable.
    pub fn order(&mut self, order: Order, now: Timestamp) -> (command::Answer, Entries) {
        self.now = self.now.max(now);
        let keeping = self.keeping.get_or_insert_default();
        let (answer, step) = keeping.commands.latest().queue(order, now);
        let entries = self.stage_steps(step, now);
        self.drop_empty();
        (answer, entries)
    }

    /// The device says what it is. `plain`: it came on the plain topic of the shadow of this name.
    pub fn report(&mut self, message: Message<'_>, plain: Option<&str>) -> Verdict {
        self.now = self.now.max(message.received);
        let leaf = if plain.is_some() { Leaf::ShadowReported } else { Leaf::ConfigReported };
        let mut report = match shadow::read_report(message.payload, plain) {
            Ok(report) => report,
            Err(text) => return self.refuse(message, leaf, format!("the report is {text}")),
        };
        self.correct(&mut report, message.received);
        let (touched, based) = (report.patch.clone(), report.based_on.is_some());
        let name = if report.shadow.is_empty() { DEFAULT.to_owned() } else { report.shadow.clone() };
        let keeping = self.keeping.get_or_insert_default();
        let rules = self.shadow_rules.clone();
        let ruling = keeping.shadows.latest().report(report, self.id.as_str(), self.session, &rules, message.received);
        if let shadow::Answer::Refused(text) = ruling.answer {
            return self.refuse(message, leaf, text);
        }
        let mut effects = Vec::new();
        if ruling.answer == shadow::Answer::Old {
            effects.push(Effect::Event(Event::ReportTooLate));
        } else if ruling.changes.is_empty() && based {
            // Nothing new, but it may have missed what is wanted.
            let keeping = self.keeping.get_or_insert_default();
            let view = keeping.shadows.durable().view(&name, message.received, &rules);
            if !self.is_more_coming(&name) && view.is_some_and(|view| shadow::touches(&view.delta, &touched)) {
                effects.extend(self.tell(&name));
            }
        }
        let entries = self.stage_changes(ruling.changes, message.received);
        self.drop_empty();
        let decision = self.decision(&entries);
        Verdict { entries, decision, effects, counts: Counts::default(), streams: 0 }
    }

    /// The device says what became of a command.
    pub fn command_result(&mut self, message: Message<'_>) -> Verdict {
        self.now = self.now.max(message.received);
        let heard = match &self.keeping {
            Some(keeping) => keeping.commands.latest().result(message.payload),
            None => Commands::default().result(message.payload),
        };
        let step = match heard {
            command::Heard::News(step) => Some(step),
            command::Heard::Old => None,
            command::Heard::Refused(text) => return self.refuse(message, Leaf::CommandsResult, text),
        };
        let entries = self.stage_steps(step, message.received);
        let decision = self.decision(&entries);
        Verdict { entries, decision, effects: Vec::new(), counts: Counts::default(), streams: 0 }
    }

    /// The device, or its last will, says whether it is there.
    pub fn presence(&mut self, message: Message<'_>) -> Verdict {
        self.now = self.now.max(message.received);
        let before = self.keeping.as_ref().and_then(|keeping| keeping.status.latest().as_ref());
        let mut effects = Vec::new();
        let status = match Status::hear(message.payload, before, self.session, message.received) {
            Heard::News(status) => Some(status),
            Heard::Known => None,
            Heard::Old => {
                effects.push(Effect::Event(Event::WillTooLate));
                None
            }
            Heard::Refused(text) => return self.refuse(message, Leaf::Status, text),
        };
        let mut entries = Entries::new();
        if let Some(status) = status {
            if status.online && status.session.is_some() {
                self.session = status.session;
            }
            self.keeping.get_or_insert_default().status.stage(|latest| *latest = Some(status.clone()));
            entries.push(Entry { device: self.id.clone(), received: message.received, body: Body::Status(status) });
            self.in_flight += 1;
        }
        let decision = self.decision(&entries);
        Verdict { entries, decision, effects, counts: Counts::default(), streams: 0 }
    }

    /// It begins to listen: what is wanted of it is said again.
    pub fn listening(&mut self, message: Message<'_>) -> Verdict {
        self.now = self.now.max(message.received);
        let (decision, effects) = (Decision::Duplicate, self.wanted_of_it());
        Verdict { entries: Entries::new(), decision, effects, counts: Counts::default(), streams: 0 }
    }

    fn wanted_of_it(&self) -> Vec<Effect> {
        let names: Vec<Arc<str>> = self.shadows().map(|shadows| shadows.names().cloned().collect()).unwrap_or_default();
        let mut effects = Vec::new();
        for name in names {
            if self.shadow(&name, self.now).is_some_and(|view| !view.delta.is_empty() || view.applied_dv < view.dv) {
                effects.extend(self.tell(&name));
            }
        }
        effects.extend(
            self.commands().into_iter().flat_map(|all| all.waiting(self.now)).map(|command| give(&command.order)),
        );
        effects
    }

    /// It greets: from now on only this session counts. Returns the version and the delta of its default shadow, if it
    /// has not applied that version, and what else to tell it.
    pub(super) fn greeted(&mut self, hello: &Hello, now: Timestamp) -> (Option<u64>, Option<Vec<u8>>, Vec<Effect>) {
        self.session = Some(hello.session);
        let view = self.shadow(DEFAULT, now);
        let dv = view.as_ref().map(|view| view.dv);
        let delta = view.filter(|view| hello.applied_dv != Some(view.dv) || !view.delta.is_empty());
        let delta = delta.map(|view| shadow::cbor(&view.delta));
        (dv, delta, self.wanted_of_it())
    }

    /// What time asks for: values and commands whose time is over. The entries belong into one log record.
    pub fn overdue(&mut self, now: Timestamp) -> Entries {
        let Some(keeping) = &self.keeping else { return Entries::new() };
        let changes = keeping.shadows.latest().expire(now);
        let steps = keeping.commands.latest().expire(now);
        let mut entries = self.stage_changes(changes, now);
        entries.extend(self.stage_steps(steps, now));
        entries
    }

    /// When [`Self::overdue`] has something next.
    pub fn due(&self) -> Option<Timestamp> {
        let keeping = self.keeping.as_ref()?;
        [keeping.shadows.latest().due(), keeping.commands.latest().due()].into_iter().flatten().min()
    }

    /// A change of a shadow is durable.
    pub(super) fn apply_change(&mut self, change: &Change, received: Timestamp) -> Vec<Effect> {
        let keeping = self.keeping.get_or_insert_default();
        keeping.shadows.settle(|shadows| shadows.apply(change, received));
        let tell = match &change.what {
            What::Desired { .. } | What::Expired { .. } | What::Deleted { .. } => true,
            // With what is taken over from the report the device is told; before, it would be told to undo it.
            What::Reported(_) if self.is_more_coming(&change.shadow) => false,
            What::Reported(reported) => self.shadow(&change.shadow, received).is_some_and(|view| {
                !view.delta.is_empty() && (reported.applied.is_some() || shadow::touches(&view.delta, &reported.patch))
            }),
            What::Conflict(_) => false,
        };
        if tell { self.tell(&change.shadow) } else { Vec::new() }
    }

    /// A step of a command is durable.
    pub(super) fn apply_step(&mut self, step: &Step, received: Timestamp) -> Vec<Effect> {
        let keeping = self.keeping.get_or_insert_default();
        keeping.commands.settle(|commands| commands.apply(step, received));
        match step {
            Step::Queued(order) => vec![give(order)],
            Step::Moved { .. } => Vec::new(),
        }
    }

    /// It has durably come or gone.
    pub(super) fn apply_status(&mut self, status: &Status) {
        let keeping = self.keeping.get_or_insert_default();
        keeping.status.settle(|latest| *latest = Some(status.clone()));
    }

    /// Whether another version of what is desired is on its way: the device is told when that is durable.
    fn is_more_coming(&self, name: &str) -> bool {
        let dv = |shadows: &Shadows| shadows.version(name);
        self.keeping.as_ref().is_some_and(|keeping| dv(keeping.shadows.latest()) > dv(keeping.shadows.durable()))
    }

    /// What is wanted of it, in whole: in CBOR for our own agent, in JSON for plain clients.
    fn tell(&self, name: &str) -> Vec<Effect> {
        let Some(view) = self.shadow(name, self.now) else { return Vec::new() };
        let plain = if name == DEFAULT { "shadow/delta".into() } else { format!("shadow/{name}/delta").into() };
        let config = Effect::Publish {
            topic: Cow::Borrowed("config"),
            payload: shadow::delta_cbor(name, view.dv, &view.delta),
            qos: 2,
        };
        let json = Effect::Publish { topic: plain, payload: shadow::delta_json(name, view.dv, &view.delta), qos: 1 };
        vec![config, json]
    }

    fn stage_changes(&mut self, changes: Vec<Change>, received: Timestamp) -> Entries {
        let mut entries = Entries::new();
        for change in changes {
            let keeping = self.keeping.get_or_insert_default();
            keeping.shadows.stage(|shadows| shadows.apply(&change, received));
            entries.push(Entry { device: self.id.clone(), received, body: Body::Shadow(Box::new(change)) });
        }
        self.in_flight += entries.len();
        entries
    }

    fn stage_steps(&mut self, steps: impl IntoIterator<Item = Step>, received: Timestamp) -> Entries {
        let mut entries = Entries::new();
        for step in steps {
            let keeping = self.keeping.get_or_insert_default();
            keeping.commands.stage(|commands| commands.apply(&step, received));
            entries.push(Entry { device: self.id.clone(), received, body: Body::Command(step) });
        }
        self.in_flight += entries.len();
        entries
    }

    /// When the sender is told. What brings nothing new may repeat what is still on its way.
    fn decision(&self, entries: &Entries) -> Decision {
        let under_way = |keeping: &Keeping| {
            keeping.shadows.ahead.is_some() || keeping.commands.ahead.is_some() || keeping.status.ahead.is_some()
        };
        match &self.keeping {
            _ if !entries.is_empty() => Decision::Commit,
            Some(keeping) if under_way(keeping) => Decision::Staged,
            _ => Decision::Duplicate,
        }
    }

    /// Whoever asked for nothing that could be done leaves nothing behind.
    pub(super) fn drop_empty(&mut self) {
        let empty = |keeping: &Keeping| {
            keeping.shadows.latest() == &Shadows::default()
                && keeping.commands.latest() == &Commands::default()
                && keeping.status.latest().is_none()
        };
        if self.keeping.as_ref().is_some_and(|keeping| empty(keeping)) {
            self.keeping = None;
        }
    }

    /// Kept as a dead letter, and its sender is told why.
    fn refuse(&mut self, message: Message<'_>, leaf: Leaf, text: String) -> Verdict {
        self.drop_empty();
        let refusal = Refusal::new(Reason::BadPayload, text);
        if message.payload.is_empty() {
            return letter::refused(&self.id, leaf, refusal);
        }
        let verdict = letter::kept(&self.id, message, leaf, refusal, None, 1);
        self.in_flight += verdict.entries.len();
        verdict
    }
}

fn give(order: &Order) -> Effect {
    Effect::Publish { topic: Cow::Borrowed("commands"), payload: order.message(), qos: 1 }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::DeviceId;
    use crate::machine::Channel;
    use crate::seq::Position;

    const START: Timestamp = Timestamp(1_795_867_200_000_000_000);

    fn object(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
        value.as_object().cloned().unwrap()
    }

    /// A device of which `{"knob": 1, "mode": 1}` is desired.
    fn with_wishes(policy: shadow::Policy) -> Device {
        let rule = shadow::Rule { shadow: None, path: vec!["knob".to_owned()], policy, deadband: 0.0 };
        let rules = Arc::new(ShadowRules(vec![rule]));
        let mut device = Device::new(DeviceId::new("pump").unwrap()).with_rules(rules);
        let patch = Some(object(serde_json::json!({"knob": 1, "mode": 1})));
        let ask = Ask { shadow: "main".into(), patch, by: "ann".into(), request: None, if_dv: None, ttl: None };
        for entry in &device.ask(ask, START).1 {
            device.apply(Position(1), entry);
        }
        device
    }

    /// A report is heard and becomes durable; what the device is told.
    fn reported(device: &mut Device, at: (u64, Timestamp), report: serde_json::Value) -> Vec<serde_json::Value> {
        let payload = Bytes::from(report.to_string());
        let message =
            Message { channel: Channel::Telemetry, payload: &payload, format: None, received: at.1, session: 1 };
        let verdict = device.report(message, None);
        let mut effects = verdict.effects;
        verdict.entries.iter().for_each(|entry| effects.extend(device.apply(Position(at.0), entry)));
        let told = effects.into_iter().filter_map(|effect| match effect {
            Effect::Publish { topic, payload, .. } if topic == "shadow/delta" => serde_json::from_slice(&payload).ok(),
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn a_device_is_not_told_to_undo_what_is_taken_over_from_it() {
        let mut device = with_wishes(shadow::Policy::Device);
        let report = serde_json::json!({"based_on_dv": 0, "full": {"knob": 5, "mode": 0}, "local": ["knob"]});
        let told = reported(&mut device, (2, START.plus(1)), report);
        assert_eq!(told, [serde_json::json!({"shadow": "main", "dv": 2, "delta": {"mode": 1}})]);
    }

    #[test]
    fn times_of_changes_are_those_of_a_clock_that_is_right() {
        use crate::payload::{FrameHeader, FrameRecord, encode_frame};
        const HOUR: i64 = 3_600_000_000_000;
        for (ahead, wins) in [(0, 1), (HOUR, 1), (-HOUR, 1), (HOUR, 5)] {
            let mut device = with_wishes(shadow::Policy::Later);
            let now = START.plus(HOUR / 2);
            let wall = |at: Timestamp| at.plus(ahead);
            // It measures that its clock is off.
            let header = FrameHeader {
                epoch: 3,
                seq: 1,
                schema_id: 1,
                schema_version: crate::schema::SchemaVersion { major: 1, minor: 0 },
                base_time: wall(now),
                send_time: wall(now),
                clock: Some((-ahead, 10_000_000)),
                ..FrameHeader::default()
            };
            let record = FrameRecord { ts: wall(now), values: Vec::new(), flags: 0 };
            let payload = Bytes::from(encode_frame(&header, &[record]).unwrap());
            let message =
                Message { channel: Channel::Telemetry, payload: &payload, format: None, received: now, session: 1 };
            let stream = crate::schema::Stream {
                name: "telemetry".into(),
                schema_id: Some(1),
                version: crate::schema::SchemaVersion { major: 1, minor: 0 },
                fields: Vec::new(),
            };
            let verdict = device.admit(message, &crate::schema::Catalog::new(vec![stream]), &mut || 5);
            for entry in &verdict.entries {
                device.apply(Position(2), entry);
            }
            // Changed a minute before, or after, somebody wanted something else.
            let changed = START.plus(if wins == 5 { HOUR / 60 } else { -HOUR / 60 });
            let report = serde_json::json!({
                "based_on_dv": 0, "full": {"knob": 5}, "local": ["knob"], "t": {"knob": wall(changed).0},
            });
            reported(&mut device, (3, now), report);
            let desired = device.shadow("main", now).unwrap().desired;
            assert_eq!(desired["knob"], wins, "{ahead} ns ahead");
        }
    }

    #[test]
    fn a_repetition_is_not_acknowledged_before_its_first_copy_is_durable() {
        let mut device = Device::new(DeviceId::new("pump").unwrap());
        let now = Timestamp(1_795_867_200_000_000_000);
        let order = Order {
            id: "c".into(),
            name: "open".into(),
            args: serde_json::Value::Null,
            deadline: now.plus(1_000_000_000),
            by: "ann".into(),
        };
        for entry in &device.order(order, now).1 {
            device.apply(Position(1), entry);
        }
        type Say = fn(&mut Device, Message<'_>) -> Verdict;
        let all: [(Say, &str); 3] = [
            (|device, message| device.report(message, Some("main")), r#"{"a": 1}"#),
            (|device, message| device.command_result(message), r#"{"cmd_id": "c", "state": "ok"}"#),
            (|device, message| device.presence(message), r#"{"online": true, "session": 7}"#),
        ];
        for (at, (say, text)) in (2..).zip(all) {
            let payload = Bytes::from_static(text.as_bytes());
            let hear = |device: &mut Device| {
                let channel = Channel::Telemetry;
                say(device, Message { channel, payload: &payload, format: None, received: now, session: 1 })
            };
            let first = hear(&mut device);
            assert_eq!((first.decision, hear(&mut device).decision), (Decision::Commit, Decision::Staged), "{text}");
            for entry in &first.entries {
                device.apply(Position(at), entry);
            }
            assert_eq!(hear(&mut device).decision, Decision::Duplicate, "{text}");
        }
    }
}
