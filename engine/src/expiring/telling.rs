//! Certificates that end soon, as incidents of the desk: what it has to hear to know of each, at its step, and of no other.
//!
//! The desk itself remembers what it has heard, so a look after a crash repeats nothing and misses nothing.

use std::collections::{BTreeMap, BTreeSet};

use access::renew::{Last, TOLD_AT};
use alerts::{Change, Labels, Open, What};
use device::time::Timestamp;

/// The rule that these incidents are of.
pub(super) const RULE: &str = "certificate_expiring";

/// What their ids begin with: a project may have a rule of the same name.
const PREFIX: &str = "certificate-";

const WARNING: &str = "warning";
const CRITICAL: &str = "critical";

/// The last step before the end is the worst.
fn severity(step: u32) -> &'static str {
    if TOLD_AT.into_iter().min() == Some(step) { CRITICAL } else { WARNING }
}

/// The changes between what is open at the desk and the certificates that nobody has renewed, each with the step that it has come to.
pub(super) fn changes(open: &[Open], unrenewed: &[(Last, u32)], who: &str, now: Timestamp) -> Vec<Change> {
    let known: BTreeMap<&str, &str> = open.iter().map(|it| (it.incident.as_str(), it.severity.as_str())).collect();
    let mut still = BTreeSet::new();
    let mut changes = Vec::new();
    for (last, step) in unrenewed {
        let incident = format!("{PREFIX}{}", last.serial);
        let severity = severity(*step);
        let (what, number) = match known.get(incident.as_str()) {
            Some(&CRITICAL) => (None, 0),
            Some(_) if severity == CRITICAL => (Some(What::Escalated), 3),
            Some(_) => (None, 0),
            None if severity == CRITICAL => (Some(What::Fired), 3),
            None => (Some(What::Fired), 1),
        };
        if let Some(what) = what {
            let labels = [("until", alerts::shown(last.not_after)), ("serial", last.serial.clone())];
            let happened = Change {
                labels: Labels(labels.map(|(name, value)| (name.to_owned(), value)).into()),
                ..change(what, (&incident, last.device.as_str(), severity), number, now)
            };
            let told = Change { what: What::Told, number: number + 1, to: vec![who.to_owned()], ..happened.clone() };
            changes.extend([happened, told]);
        }
        still.insert(incident);
    }
    let own = open.iter().filter(|it| it.incident.starts_with(PREFIX));
    let over = own.filter(|it| !still.contains(&it.incident));
    changes.extend(over.map(|it| change(What::Over, (&it.incident, &it.device, &it.severity), 5, now)));
    changes
}

fn change(what: What, (incident, device, severity): (&str, &str, &str), number: u64, now: Timestamp) -> Change {
    Change {
        what,
        device: device.to_owned(),
        rule: RULE.to_owned(),
        incident: incident.to_owned(),
        number,
        severity: severity.to_owned(),
        since: now,
        ts: now,
        stale: false,
        value: None,
        to: Vec::new(),
        labels: Labels::default(),
        past: false,
        fleets: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use alerts::{About, Desk, Happening, Settings};
    use device::id::DeviceId;
    use device::time::SECOND;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn desk() -> Desk {
        let mut desk = Desk::default();
        let settings = Settings {
            channels: ["ops".to_owned()].into(),
            people: [("oncall".to_owned(), ["ops".to_owned()].into())].into(),
            ..Settings::default()
        };
        desk.step(NOW, &Happening::Settings(settings));
        desk
    }

    fn ends(serial: &str, step: u32) -> (Last, u32) {
        let device = DeviceId::new(&format!("of-{serial}")).unwrap();
        (Last { device, serial: serial.to_owned(), not_after: NOW.plus(i64::from(step) * 86_400 * SECOND) }, step)
    }

    /// Two looks at the same; what was said since the last message.
    fn look(desk: &mut Desk, at: i64, unrenewed: &[(Last, u32)]) -> Vec<(About, String, String)> {
        let before = desk.made();
        let now = NOW.plus(at * SECOND);
        for _ in 0..2 {
            let changes = changes(&desk.open_of(RULE), unrenewed, "oncall", now);
            if !changes.is_empty() {
                desk.step(now, &Happening::Noticed { changes });
            }
        }
        let said = |message: &alerts::Message| (message.about, message.device.clone(), message.severity.clone());
        desk.outbox("ops", before).map(said).collect()
    }

    #[test]
    fn each_is_told_at_each_step_and_when_it_is_renewed_and_never_twice() {
        let mut desk = desk();
        let said = |about, device: &str, severity: &str| (about, device.to_owned(), severity.to_owned());
        assert_eq!(look(&mut desk, 1, &[ends("1", 14)]), [said(About::Page, "of-1", "warning")]);
        let both = [ends("1", 14), ends("2", 3)];
        assert_eq!(look(&mut desk, 2, &both), [said(About::Page, "of-2", "critical")]);
        // What is written down and read again knows the same.
        let mut again: Desk = serde_json::from_str(&serde_json::to_string(&desk).unwrap()).unwrap();
        assert_eq!(look(&mut again, 3, &both), []);
        assert_eq!(look(&mut again, 4, &[ends("1", 3), ends("2", 3)]), [said(About::Page, "of-1", "critical")]);
        assert_eq!(look(&mut again, 5, &[ends("2", 3)]), [said(About::Resolved, "of-1", "critical")]);
        assert_eq!(look(&mut again, 6, &[]), [said(About::Resolved, "of-2", "critical")]);
        assert_eq!(look(&mut again, 7, &[]), []);
    }
}
