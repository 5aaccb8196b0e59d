//! All incidents of a node, and the messages on their way: a pure machine.
//!
//! What happens goes in with its time, and the same history makes the same messages with the same numbers and keys. So a
//! desk that is made again from what was written down sends what was not accepted yet, and nothing else.

mod groups;
mod unrest;

use std::collections::{BTreeMap, BTreeSet};

use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};

use crate::case::{Case, Rung, Whom};
use crate::change::{Change, What};
use crate::flap::Flap;
use crate::gateways::Gateways;
use crate::group::{Group, News};
use crate::inhibit::Sources;
use crate::matcher::Facts;
use crate::message::{About, Message};
use crate::settings::Settings;
use crate::silence::{MutedBy, Silence, SilenceId};
use crate::storm::Storm;
use crate::time::nanos;

/// How often incidents that are over for long enough are forgotten.
const SWEEP: i64 = 300 * SECOND;

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// A record of a shard's log holds these changes.
    Heard {
        /// Which shard.
        shard: u16,
        /// Where in its log.
        position: u64,
        /// What changed.
        changes: Vec<Change>,
    },
    /// The engine itself has noticed these changes, in no log of a shard.
    Noticed {
        /// What changed.
        changes: Vec<Change>,
    },
    /// Time has passed.
    Tick,
    /// Who is reached how.
    Settings(Settings),
    /// A silence is wanted.
    Silence(Silence),
    /// A silence ends before its time.
    Unsilence(SilenceId),
    /// A gateway is away, and these devices cannot be heard without it; none: it is back.
    Gateway {
        /// Which.
        device: String,
        /// Those behind it.
        children: BTreeSet<String>,
    },
    /// A receiver has accepted a message.
    Accepted {
        /// By which channel.
        channel: String,
        /// Its number.
        number: u64,
    },
}

/// What somebody should hear of what happened. Messages are no effect: they stand in the outbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A ladder tells somebody who has no channel.
    Unreached {
        /// Who.
        to: String,
        /// The rule.
        rule: String,
        /// The device.
        device: String,
        /// The incident.
        incident: String,
    },
    /// A message was not accepted in time, or there were too many.
    GaveUp {
        /// The message.
        message: Box<Message>,
        /// Why.
        why: &'static str,
    },
    /// A silence is over.
    SilenceEnded(SilenceId, Silence),
}

/// An open incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Its id.
    pub incident: String,
    /// The device.
    pub device: String,
    /// Its severity.
    pub severity: String,
}

/// Messages of a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those on their way.
    pub waiting: usize,
    /// When the oldest of them was made.
    pub oldest: Option<Timestamp>,
}

/// The state of a node's desk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Desk {
    #[serde(with = "nanos")]
    now: Timestamp,
    /// By shard: up to where its log was heard.
    heard: BTreeMap<u16, u64>,
    /// When incidents that are over were last forgotten.
    #[serde(default, with = "nanos")]
    swept: Timestamp,
    settings: Settings,
    cases: BTreeMap<String, Case>,
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    sources: Sources,
    /// By device and rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    flaps: BTreeMap<String, Flap>,
    /// By what their incidents have in common.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, Group>,
    /// By [`storm_key`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    storms: BTreeMap<String, Storm>,
    #[serde(default, skip_serializing_if = "Gateways::is_empty")]
    gateways: Gateways,
    silences: BTreeMap<SilenceId, Silence>,
    last_silence: u64,
    /// By channel and number.
    outbox: BTreeMap<String, BTreeMap<u64, Message>>,
    last_message: u64,
}

impl Desk {
    /// Takes what happened. Time does not go back: an earlier one counts as the last.
    pub fn step(&mut self, now: Timestamp, happening: &Happening) -> Vec<Effect> {
        let before = self.now;
        self.now = self.now.max(now);
        let now = self.now;
        let mut out = Vec::new();
        // Only those of which something may have changed.
        let mut touched = BTreeSet::new();
        let mut all = self.silences.values().any(|s| s.is_active(before) != s.is_active(now));
        match happening {
            Happening::Heard { shard, position, changes } => {
                let heard = self.heard.entry(*shard).or_default();
                if *position <= *heard {
                    return out;
                }
                *heard = *position;
                all |= self.changes(now, changes, &mut touched, &mut out);
            }
            Happening::Noticed { changes } => all |= self.changes(now, changes, &mut touched, &mut out),
            Happening::Tick => all = true,
            Happening::Settings(settings) => {
                self.settings = settings.clone();
                self.without_channel(&mut out);
                self.sources.reset(&self.settings.inhibit);
                let incidents: Vec<String> = self.cases.keys().cloned().collect();
                for incident in incidents {
                    self.note_source(&incident);
                }
                all = true;
            }
            Happening::Silence(silence) => {
                self.last_silence += 1;
                self.silences.insert(SilenceId(self.last_silence), silence.clone());
                all = true;
            }
            Happening::Unsilence(id) => {
                self.silences.remove(id);
                all = true;
            }
            Happening::Gateway { device, children } => {
                self.gateways.note(now, device, children);
                all = true;
            }
            Happening::Accepted { channel, number } => {
                if let Some(queue) = self.outbox.get_mut(channel) {
                    queue.remove(number);
                }
                return out;
            }
        }
        all |= self.gateways.settle(now);
        for (id, silence) in self.silences.extract_if(.., |_, silence| silence.end <= now) {
            out.push(Effect::SilenceEnded(id, silence));
        }
        if now.since(self.swept) >= SWEEP {
            self.swept = now;
            self.cases.retain(|_, case| !case.is_past(now));
        }
        self.settle(now, &mut out);
        self.calm(now, &mut out);
        self.flush(now, &mut out);
        if all {
            touched = self.cases.keys().cloned().collect();
        }
        for incident in touched {
            self.look_at(now, &incident, &mut out);
        }
        self.expire(now, &mut out);
        out
    }

    /// Takes changes. True: they may matter to all incidents.
    fn changes(
        &mut self,
        now: Timestamp,
        changes: &[Change],
        touched: &mut BTreeSet<String>,
        out: &mut Vec<Effect>,
    ) -> bool {
        let mut all = false;
        for change in changes {
            self.change(now, change, out);
            all |= self.note_source(&change.incident);
            touched.insert(change.incident.clone());
        }
        all
    }

    fn change(&mut self, now: Timestamp, change: &Change, out: &mut Vec<Effect>) {
        let begins = match change.what {
            What::Fired => !change.past || self.cases.contains_key(&change.incident),
            What::Told | What::Changed | What::Escalated => true,
            _ => false,
        };
        if !begins && !self.cases.contains_key(&change.incident) {
            return;
        }
        let is_new = !self.cases.contains_key(&change.incident);
        let case = self.cases.entry(change.incident.clone()).or_insert_with(|| Case::new(change));
        let turns = match change.what {
            What::Fired => is_new || !case.is_open(),
            What::Over => case.is_open(),
            _ => false,
        };
        let key = lane(&change.device, &change.rule);
        let mut begins = false;
        if turns && !change.past {
            begins = self.flaps.entry(key.clone()).or_default().note(now, &change.incident, change.number);
        }
        let flaps = self.flaps.get(&key).is_some_and(Flap::flaps);
        // One of the past begins here when it has reached the present.
        if is_new && change.begins() {
            let kind = group_of(&self.settings, case);
            let all = self.storms.entry(kind.clone()).or_insert_with(Storm::of_all);
            let mut storm = all.note(now, &kind, &change.device).then_some(kind.clone());
            for fleet in &change.fleets {
                let key = storm_key(&kind, Some(&fleet.name));
                let of = self.storms.remove(&key).map_or_else(|| Storm::of(fleet), |of| of.sized(fleet.devices));
                let of = self.storms.entry(key.clone()).or_insert(of);
                if of.note(now, &key, &change.device) {
                    storm.get_or_insert(key);
                }
            }
            case.storm = storm;
        }
        // Worse than the rest, or worse after the rest.
        if change.what == What::Escalated
            && case.storm.as_ref().is_some_and(|group| self.storms.get(group).is_none_or(|storm| storm.id().is_none()))
        {
            case.storm = None;
        }
        if change.what == What::Over {
            let channels = case.end(now, change);
            if !flaps {
                self.tell(now, (&change.incident, About::Resolved, change.number), channels, out);
            }
        } else {
            case.take(now, change, flaps);
        }
        if begins {
            self.begins_to_flap(now, &key, change, out);
        }
    }

    /// One message of an incident to several channels.
    fn tell(
        &mut self,
        now: Timestamp,
        (incident, about, step): (&str, About, u64),
        channels: BTreeSet<String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(case) = self.cases.get(incident) else { return };
        let together = about == About::Resolved && self.settings.groups.contains_key(&case.rule);
        for channel in channels.intersection(&self.settings.channels.clone()) {
            if together {
                self.together(now, incident, channel, News { about, step, to: None });
                continue;
            }
            let Some(case) = self.cases.get(incident) else { return };
            let message = case.message(incident, about, step, channel, now);
            post(&mut self.outbox, &mut self.last_message, message);
        }
        self.bound(out);
    }

    /// Tells those who are to be told of an incident now.
    fn look_at(&mut self, now: Timestamp, incident: &str, out: &mut Vec<Effect>) {
        let Some(case) = self.cases.get(incident) else { return };
        let held = case.is_open() && self.muted(now, &case.facts()).is_some();
        let Some(case) = self.cases.get_mut(incident) else { return };
        case.hold(now, held);
        for Rung { about, step, to, .. } in case.release(now) {
            let (to, channels) = match to {
                Whom::Channels(channels) => (None, channels),
                Whom::Name(name) => {
                    let channels: BTreeSet<String> = self.settings.reach(&name).cloned().collect();
                    (Some(name), channels)
                }
            };
            if let (Some(to), true, Some(case)) = (&to, channels.is_empty(), self.cases.get(incident)) {
                let (to, rule, device) = (to.clone(), case.rule.clone(), case.device.clone());
                out.push(Effect::Unreached { to, rule, device, incident: incident.to_owned() });
            }
            for channel in
                channels.into_iter().filter(|channel| self.settings.channels.contains(channel)).collect::<Vec<_>>()
            {
                let Some(about) = self.instead(now, incident, about, &channel) else { continue };
                let Some(case) = self.cases.get_mut(incident) else { return };
                case.paged.insert(channel.clone());
                if let Some(about) = about {
                    if about != About::Flapping && self.settings.groups.contains_key(&case.rule) {
                        self.together(now, incident, &channel, News { about, step, to: to.clone() });
                        continue;
                    }
                    let message = case.message(incident, about, step, &channel, now);
                    post(&mut self.outbox, &mut self.last_message, Message { to: to.clone(), ..message });
                }
            }
        }
        self.bound(out);
    }

    /// Gives up what is more than may wait, the oldest first.
    fn bound(&mut self, out: &mut Vec<Effect>) {
        for queue in self.outbox.values_mut() {
            while queue.len() > self.settings.max_waiting.max(1)
                && let Some((_, message)) = queue.pop_first()
            {
                out.push(Effect::GaveUp { message: message.into(), why: "too many messages wait for this channel" });
            }
        }
    }

    /// Gives up what is too old.
    fn expire(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        for queue in self.outbox.values_mut() {
            while let Some(first) = queue.first_entry()
                && now.since(first.get().at) >= self.settings.max_age_ns
            {
                let message = Box::new(first.remove());
                out.push(Effect::GaveUp { message, why: "it was not accepted in time" });
            }
        }
    }

    /// Channels that are no more take their messages with them.
    fn without_channel(&mut self, out: &mut Vec<Effect>) {
        let channels = &self.settings.channels;
        for (_, queue) in self.outbox.extract_if(.., |channel, _| !channels.contains(channel)) {
            for message in queue.into_values() {
                out.push(Effect::GaveUp { message: message.into(), why: "its channel is not configured any more" });
            }
        }
        for case in self.cases.values_mut() {
            case.paged.retain(|channel| channels.contains(channel));
            case.ended.retain(|channel| channels.contains(channel));
        }
        self.groups.values_mut().for_each(|group| group.keep(channels));
        self.flaps.values_mut().for_each(|flap| flap.informed.retain(|channel| channels.contains(channel)));
    }

    /// When time will do something next.
    pub fn due(&self) -> Option<Timestamp> {
        let cases = self.cases.values().filter_map(Case::due);
        let ages = self.outbox.values().filter_map(|queue| queue.values().next());
        let ages = ages.map(|message| message.at.plus(self.settings.max_age_ns));
        let ends = self.silences.values().map(|silence| silence.end);
        let starts = self.silences.values().map(|silence| silence.start).filter(|start| *start > self.now);
        let flaps = self.flaps.values().filter_map(Flap::due).chain(self.gateways.due());
        let storms = self.storms.values().filter_map(Storm::due);
        let groups = self.groups.values().filter_map(Group::due);
        let cases = cases.chain(groups);
        cases.chain(ages).chain(ends).chain(starts).chain(flaps).chain(storms).min()
    }

    /// The gateways that are away, with those behind each.
    pub fn gateways(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.gateways.away()
    }

    /// Why nobody is told of such an incident at a time.
    pub fn muted(&self, now: Timestamp, facts: &Facts<'_>) -> Option<MutedBy> {
        let holds = |silence: &Silence| silence.is_active(now) && silence.holds(facts);
        if let Some((id, _)) = self.silences.iter().find(|(_, silence)| holds(silence)) {
            return Some(MutedBy::Silence(*id));
        }
        if let Some(gateway) = self.gateways.of(facts.device) {
            return Some(MutedBy::Gateway(gateway.to_owned()));
        }
        let source = self.sources.inhibits(&self.settings.inhibit, facts);
        source.map(|incident| MutedBy::Incident(incident.to_owned()))
    }

    /// Whether an incident makes others not worth telling. True: that has changed.
    fn note_source(&mut self, incident: &str) -> bool {
        let facts = self.cases.get(incident).filter(|case| case.is_open()).map(Case::facts);
        self.sources.note(&self.settings.inhibit, incident, facts)
    }

    /// Whether an alert of a device comes and goes.
    pub fn flaps(&self, device: &str, rule: &str) -> bool {
        self.flaps.get(&lane(device, rule)).is_some_and(Flap::flaps)
    }

    /// The silences that are not over.
    pub fn silences(&self) -> &BTreeMap<SilenceId, Silence> {
        &self.silences
    }

    /// The id that the next silence will have.
    pub fn next_silence(&self) -> SilenceId {
        SilenceId(self.last_silence + 1)
    }

    /// Who is reached how.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The open incidents of a rule.
    pub fn open_of(&self, rule: &str) -> Vec<Open> {
        let of = self.cases.iter().filter(|(_, case)| case.is_open() && case.rule == rule);
        let open = of.map(|(incident, case)| Open {
            incident: incident.clone(),
            device: case.device.clone(),
            severity: case.severity.clone(),
        });
        open.collect()
    }

    /// Up to where the log of a shard was heard.
    pub fn heard(&self, shard: u16) -> u64 {
        self.heard.get(&shard).copied().unwrap_or(0)
    }

    /// The messages of a channel that are on their way, behind a number.
    pub fn outbox(&self, channel: &str, behind: u64) -> impl Iterator<Item = &Message> {
        self.outbox
            .get(channel)
            .into_iter()
            .flat_map(move |queue| queue.range(behind + 1..))
            .map(|(_, message)| message)
    }

    /// How many messages were made so far.
    pub fn made(&self) -> u64 {
        self.last_message
    }

    /// A message that is on its way.
    pub fn message(&self, channel: &str, number: u64) -> Option<&Message> {
        self.outbox.get(channel)?.get(&number)
    }

    /// The time of what happened last.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Messages by channel.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        let of = |queue: &BTreeMap<u64, Message>| Counts {
            waiting: queue.len(),
            oldest: queue.values().next().map(|message| message.at),
        };
        let empty = self.settings.channels.iter().map(|channel| (channel.clone(), Counts::default()));
        empty.chain(self.outbox.iter().map(|(channel, queue)| (channel.clone(), of(queue)))).collect()
    }
}

/// What an incident has in common with those that it is told of together with.
fn group_of(settings: &Settings, case: &Case) -> String {
    let Some(names) = settings.groups.get(&case.rule) else { return case.rule.clone() };
    let facts = case.facts();
    names.iter().map(|name| format!("{name}={}", facts.get(name))).collect::<Vec<_>>().join(",")
}

/// What a storm is known by: what its incidents have in common, and the group of devices, if it is in one.
fn storm_key(kind: &str, fleet: Option<&str>) -> String {
    fleet.map_or_else(|| kind.to_owned(), |fleet| format!("{kind}\u{1f}{fleet}"))
}

fn lane(device: &str, rule: &str) -> String {
    format!("{device}/{rule}")
}

fn post(outbox: &mut BTreeMap<String, BTreeMap<u64, Message>>, last: &mut u64, message: Message) {
    *last += 1;
    outbox.entry(message.channel.clone()).or_default().insert(*last, Message { number: *last, ..message });
}
