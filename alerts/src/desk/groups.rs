//! What is told together: the news of a group, as one message.

use std::collections::BTreeMap;

use device::alert::IncidentId;
use device::time::Timestamp;

use super::{Desk, Effect, group_of, post};
use crate::case::Case;
use crate::group::{Group, News};
use crate::matcher::Labels;
use crate::message::{About, Member, Message};
use crate::time::shown;

/// Most incidents of one message.
const MEMBERS: usize = 100;

impl Desk {
    pub(super) fn group_of(&self, case: &Case) -> String {
        group_of(&self.settings, case)
    }

    /// A channel is to hear of an incident together with others.
    pub(super) fn together(&mut self, now: Timestamp, incident: &str, channel: &str, news: News) {
        let Some(case) = self.cases.get(incident) else { return };
        let group = self.groups.entry(group_of(&self.settings, case)).or_insert_with(|| Group::new(now));
        group.add(now, &self.settings, channel, incident, news);
    }

    /// Tells of groups what is due.
    pub(super) fn flush(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let due = self.groups.iter().filter(|(_, group)| group.due().is_some_and(|due| due <= now));
        let due: Vec<String> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            let cases = &self.cases;
            let quiet = |incident: &str| {
                cases.get(incident).is_none_or(|case| case.acked || case.held.is_some() || !case.is_open())
            };
            let batches = group.flush(now, &self.settings, quiet);
            let (since, step) = (group.since, group.step);
            for (channel, members) in batches {
                if let Some(message) = self.group_message((&key, since, step), channel, members, now) {
                    post(&mut self.outbox, &mut self.last_message, message);
                }
            }
        }
        self.groups.retain(|_, group| !group.is_past());
        self.bound(out);
    }

    fn group_message(
        &self,
        (key, since, step): (&str, Timestamp, u64),
        channel: String,
        all: BTreeMap<String, News>,
        now: Timestamp,
    ) -> Option<Message> {
        let count = all.len();
        let known = all.into_iter().filter_map(|(incident, news)| {
            let case = self.cases.get(&incident)?;
            Some((case.message(&incident, news.about, news.step, &channel, now), news.to))
        });
        let mut members: Vec<Member> = known
            .map(|(message, to)| Member {
                about: message.about,
                incident: message.incident,
                rule: message.rule,
                device: message.device,
                state: message.state,
                severity: message.severity,
                since: shown(message.since),
                value: message.value,
                to,
            })
            .collect();
        // What fires first.
        members.sort_by_key(|member| member.state == "ok");
        members.truncate(MEMBERS);
        let first = members.first()?;
        let same = |of: fn(&Member) -> &String| {
            let value = of(first);
            if members.iter().all(|member| of(member) == value) { value.clone() } else { String::new() }
        };
        let about = if first.state == "ok" { About::Resolved } else { About::Page };
        Some(Message {
            number: 0,
            about,
            channel,
            incident: IncidentId::of(key, 0, "group", since).to_string(),
            step,
            to: None,
            rule: same(|member| &member.rule),
            device: same(|member| &member.device),
            state: first.state.clone(),
            severity: same(|member| &member.severity),
            since,
            at: now,
            value: None,
            labels: Labels::parse(key),
            more: count.saturating_sub(members.len()),
            members,
            storm: None,
        })
    }
}
