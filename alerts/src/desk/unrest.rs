//! What is told instead of each incident, when there are too many: of one device (flapping), or of many (a storm).

use std::collections::BTreeSet;

use device::time::Timestamp;

use super::{Desk, Effect, lane, post, storm_key};
use crate::case::{Case, Rung, Whom};
use crate::change::Change;
use crate::flap::Flap;
use crate::message::{About, Message};
use crate::storm::Storm;

impl Desk {
    /// It comes and goes from now on.
    pub(super) fn begins_to_flap(&mut self, now: Timestamp, key: &str, change: &Change, out: &mut Vec<Effect>) {
        let Some(case) = self.cases.get(&change.incident) else { return };
        if self.muted(now, &case.facts()).is_some() {
            return;
        }
        let knowing: BTreeSet<String> = case.paged.union(&case.ended).cloned().collect();
        if let Some(flap) = self.flaps.get_mut(key) {
            flap.informed.clone_from(&knowing);
        }
        self.tell(now, (&change.incident, About::Flapping, change.number), knowing, out);
    }

    /// Says of those that have settled how they have.
    pub(super) fn settle(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let settled: Vec<(String, Flap)> =
            self.flaps.extract_if(.., |_, flap| flap.due().is_some_and(|due| due <= now)).collect();
        for (_, Flap { informed, last: (incident, step), .. }) in settled {
            let Some(case) = self.cases.get_mut(&incident) else { continue };
            if informed.is_empty() {
                continue;
            }
            if case.is_open() {
                let to = Whom::Channels(informed);
                case.waiting.push(Rung { about: About::Again, step, at: now, to });
                self.look_at(now, &incident, out);
            } else {
                case.ended.clone_from(&informed);
                self.tell(now, (&incident, About::Resolved, step), informed, out);
            }
        }
        self.flaps.retain(|_, flap| !flap.is_past(now));
    }

    /// Says of storms that they are over.
    pub(super) fn calm(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let over = self.storms.iter().filter(|(_, storm)| storm.due().is_some_and(|due| due <= now));
        let over: Vec<String> = over.map(|(group, _)| group.clone()).collect();
        for group in over {
            let Some(message) = self.storm_message(&group, About::StormOver, now) else { continue };
            let informed = self.storms.get_mut(&group).map(Storm::end).unwrap_or_default();
            for channel in informed.into_iter().filter(|channel| self.settings.channels.contains(channel)) {
                post(&mut self.outbox, &mut self.last_message, Message { channel, ..message.clone() });
            }
        }
        self.storms.retain(|_, storm| !storm.is_past(now));
        self.bound(out);
    }

    /// A message about a storm, but for its channel.
    fn storm_message(&self, group: &str, about: About, now: Timestamp) -> Option<Message> {
        let storm = self.storms.get(group)?;
        let (id, since) = storm.id()?;
        let mut open = 0;
        let mut severity = "";
        let mut rule = "";
        let in_it = |case: &&Case| {
            let key = storm_key(&self.group_of(case), storm.fleet());
            case.is_open() && key == group && storm.fleet().is_none_or(|name| case.fleets.iter().any(|of| of == name))
        };
        for case in self.cases.values().filter(in_it) {
            rule = &case.rule;
            open += 1;
            severity = &case.severity;
        }
        let storm = storm.facts(open);
        Some(Message {
            number: 0,
            about,
            channel: String::new(),
            incident: id.to_owned(),
            step: if about == About::Storm { 1 } else { 2 },
            to: None,
            rule: rule.to_owned(),
            device: String::new(),
            state: if about == About::Storm { "firing" } else { "ok" }.to_owned(),
            severity: severity.to_owned(),
            since,
            at: now,
            value: None,
            labels: Default::default(),
            members: Vec::new(),
            more: 0,
            storm,
        })
    }

    /// What a channel is told instead of a page; `Some(None)`: nothing, but it knows of the incident; `None`: nothing, and it
    /// does not.
    pub(super) fn instead(
        &mut self,
        now: Timestamp,
        incident: &str,
        about: About,
        channel: &str,
    ) -> Option<Option<About>> {
        let case = self.cases.get(incident)?;
        if let Some(group) = case.storm.clone() {
            let first = self.storms.get_mut(&group).is_some_and(|storm| storm.inform(channel));
            if first && let Some(message) = self.storm_message(&group, About::Storm, now) {
                let channel = channel.to_owned();
                post(&mut self.outbox, &mut self.last_message, Message { channel, ..message });
            }
            return None;
        }
        let flap = self.flaps.get_mut(&lane(&case.device, &case.rule)).filter(|flap| flap.flaps());
        Some(match flap {
            None => Some(about),
            Some(flap) => flap.informed.insert(channel.to_owned()).then_some(About::Flapping),
        })
    }
}
