//! A new root in the place of the old one, without locking anybody out: how far that is, and who is ready for the next step.
//!
//! 1. Begun: a new root and a new issuing authority are made and kept beside the old ones. Everybody is told to trust both roots;
//!    the old one signs.
//! 2. Switched: the new one signs. Everybody still trusts both, so a certificate of either opens the door, and devices renew
//!    theirs. The engine goes on showing a certificate of the old one: whoever has missed the first step comes in and catches up.
//! 3. Finished: only the new root is trusted.
//!
//! Until the switch it can be called off. The files are those of an [authority](crate::authority); that everybody has followed is
//! known from the [registry](crate::registry).

use std::collections::HashMap;

use device::id::DeviceId;
use device::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::registry::{Entry, State};
use crate::renew;
use crate::subject::Subject;

/// Of a hundred devices, so many must trust the new root before it signs.
pub const MOST: usize = 99;

/// How far a roll is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Both roots are to be trusted; the old one signs.
    Begun,
    /// Both are to be trusted; the new one signs.
    Switched,
    /// One root is to be trusted: the new one, or the old one if the roll was called off.
    Finished,
}

/// A step of a roll, as it stands in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roll {
    /// How far it is from now on.
    pub stage: Stage,
    /// Whom to trust from now on: SHA-256 of the file, hexadecimal.
    pub bundle: String,
    /// After a switch: devices renew their certificates over so many nanoseconds, each at its own time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over: i64,
    /// After a switch: the name of the authority that signs. What another has signed goes, whenever that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// What is known of the last roll.
#[derive(Debug, Default)]
pub struct Rolling {
    last: Option<(Roll, Timestamp)>,
    /// Which bundle each device has said that it trusts.
    trusts: HashMap<String, String>,
}

impl Rolling {
    pub(crate) fn step(&mut self, roll: &Roll, at: Timestamp) {
        self.last = Some((roll.clone(), at));
    }

    pub(crate) fn trusts(&mut self, device: &str, bundle: &str) {
        self.trusts.insert(device.to_owned(), bundle.to_owned());
    }

    /// The last step and when it was; none: there was never a roll.
    pub fn last(&self) -> Option<&(Roll, Timestamp)> {
        self.last.as_ref()
    }

    /// How far the present roll is; none: there is none.
    pub fn stage(&self) -> Option<Stage> {
        self.last.as_ref().map(|(roll, _)| roll.stage).filter(|stage| *stage != Stage::Finished)
    }

    /// Whom this device is to be told to trust, as it has not said yet that it does.
    pub fn untold(&self, device: &str) -> Option<&str> {
        let (roll, _) = self.last.as_ref()?;
        (self.trusts.get(device) != Some(&roll.bundle)).then_some(roll.bundle.as_str())
    }

    /// The last step, if the new authority signs since.
    fn switched(&self) -> Option<&(Roll, Timestamp)> {
        self.last.as_ref().filter(|(roll, _)| roll.stage == Stage::Switched)
    }

    /// Whether a certificate was signed by the authority that goes.
    fn is_of_the_old(&self, entry: &Entry) -> bool {
        let issuer = entry.certificate.issuer.as_ref();
        self.switched().is_some_and(|(roll, _)| issuer.is_none() || issuer != roll.issuer.as_ref())
    }
}

/// From when on a device's certificate is to be renewed: as by its dates, or sooner because the authority that signed it goes.
pub fn renewal_due(state: &State, entry: &Entry, device: &DeviceId) -> Timestamp {
    let certificate = &entry.certificate;
    let due = device::renewal::renewal_due(certificate.not_before, certificate.not_after, device);
    match state.roll().switched() {
        Some((roll, at)) if state.roll().is_of_the_old(entry) => {
            due.min(at.plus(device::renewal::spread(device, roll.over)))
        }
        _ => due,
    }
}

/// Devices that have a certificate, and those of them that have not said that they trust the new root.
pub fn missing(state: &State, tenant: &str, now: Timestamp) -> (usize, Vec<DeviceId>) {
    let all = renew::last(state, tenant, 0, now);
    let count = all.len();
    let missing = all.into_iter().map(|last| last.device).filter(|id| state.roll().untold(id.as_str()).is_some());
    (count, missing.collect())
}

/// Whether so many of all are enough for the new root to sign.
pub fn is_enough(missing: usize, all: usize) -> bool {
    (all - missing.min(all)) * 100 >= all * MOST
}

/// Who would be locked out if the old root were not trusted any more: whoever has no certificate of the new one, in use. That of a
/// device counts for a while after its end, too: it can still be renewed. The engines' own are made anew by the engines.
pub fn left_behind(state: &State, tenant: &str, now: Timestamp) -> Vec<Subject> {
    let mut left = Vec::new();
    for uri in state.subjects() {
        let subject = match Subject::parse(uri, tenant) {
            Some(Subject::Server) | None => continue,
            Some(subject) => subject,
        };
        let device = matches!(subject, Subject::Device(_)).then(|| subject.name());
        let late = if device.is_some() { renew::RECOVERY } else { 0 };
        let mut usable = state.of(uri).filter(|entry| renew::is_in_use(state, entry, device, late, now)).peekable();
        if usable.peek().is_some() && usable.all(|entry| state.roll().is_of_the_old(entry)) {
            left.push(subject);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use device::time::SECOND;

    use super::*;
    use crate::authority::DAY;
    use crate::registry::{Certificate, Fact};

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn issued(name: &str, serial: &str, replaces: Option<&str>, issuer: &str) -> Fact {
        Fact::Issued(Certificate {
            serial: serial.to_owned(),
            subject: format!("urn:{name}"),
            key: format!("key of {serial}"),
            not_before: NOW.plus(-DAY),
            not_after: NOW.plus(365 * DAY),
            pending: replaces.is_some(),
            replaces: replaces.map(str::to_owned),
            issuer: Some(issuer.to_owned()),
        })
    }

    fn step(stage: Stage, bundle: &str) -> Fact {
        let switched = stage == Stage::Switched;
        let issuer = switched.then(|| "new".to_owned());
        Fact::Roll(Roll { stage, bundle: bundle.to_owned(), over: if switched { DAY } else { 0 }, issuer })
    }

    fn trusts(device: &str, bundle: &str) -> Fact {
        Fact::Trusts { device: device.to_owned(), bundle: bundle.to_owned() }
    }

    fn names(state: &State) -> Vec<String> {
        left_behind(state, "main", NOW.plus(10)).iter().map(|subject| subject.name().to_owned()).collect()
    }

    #[test]
    fn who_is_ready_for_the_next_step_follows_from_what_was_said() {
        let mut state = State::default();
        let mut at = NOW;
        let mut apply = |state: &mut State, fact: Fact| {
            at = at.plus(1);
            state.apply(at, &fact);
        };
        let first = [
            issued("dev:main:a", "1", None, "old"),
            issued("dev:main:b", "2", None, "old"),
            issued("user:main:ada", "3", None, "old"),
            issued("server:main", "4", None, "old"),
        ];
        first.into_iter().for_each(|fact| apply(&mut state, fact));
        let a = DeviceId::new("a").unwrap();
        let due = |state: &State, serial: &str| renewal_due(state, state.certificate(serial).unwrap(), &a);
        let by_dates = due(&state, "1");
        assert_eq!((state.roll().stage(), state.roll().untold("a")), (None, None));

        apply(&mut state, step(Stage::Begun, "both"));
        let missing = |state: &State| {
            let (all, missing) = missing(state, "main", NOW);
            (all, missing.iter().map(|id| id.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(missing(&state), (2, vec!["a".to_owned(), "b".to_owned()]));
        apply(&mut state, trusts("a", "both"));
        apply(&mut state, trusts("b", "another"));
        assert_eq!(missing(&state), (2, vec!["b".to_owned()]));
        assert_eq!((state.roll().untold("a"), state.roll().untold("b")), (None, Some("both")));
        assert_eq!(names(&state), [] as [&str; 0], "the old one signs still");
        assert_eq!(due(&state, "1"), by_dates);

        apply(&mut state, step(Stage::Switched, "both"));
        assert_eq!(missing(&state), (2, vec!["b".to_owned()]), "what was said holds: it is the same bundle");
        assert_eq!(names(&state), ["a", "b", "ada"]);
        assert!((NOW.0..NOW.plus(DAY + 10).0).contains(&due(&state, "1").0), "within what the operator has said");
        // One that the old one was about to sign when the other began to.
        apply(&mut state, issued("dev:main:a", "6", Some("1"), "old"));
        apply(&mut state, Fact::Proven { serial: "6".into() });
        assert_eq!(names(&state), ["a", "b", "ada"]);
        apply(&mut state, issued("dev:main:a", "5", Some("6"), "new"));
        assert_eq!(names(&state), ["a", "b", "ada"], "not before it is used");
        apply(&mut state, Fact::Proven { serial: "5".into() });
        assert_eq!(names(&state), ["b", "ada"]);
        assert_eq!(due(&state, "5"), by_dates);
        let late = |days| left_behind(&state, "main", NOW.plus(days * DAY)).len();
        assert_eq!(
            (late(366), late(365 + 90), late(365 + 91)),
            (1, 1, 0),
            "a device's may be renewed when it has expired"
        );
        apply(&mut state, Fact::Barred { device: "b".into(), reason: "stolen".into() });
        assert_eq!(names(&state), ["ada"]);

        apply(&mut state, step(Stage::Finished, "new"));
        assert_eq!((state.roll().stage(), state.roll().untold("a")), (None, Some("new")));
        assert_eq!(names(&state), [] as [&str; 0]);
    }

    #[test]
    fn ninety_nine_of_a_hundred_are_enough() {
        for (missing, all, enough) in [(0, 0, true), (1, 1, false), (1, 99, false), (1, 100, true), (2, 100, false)] {
            assert_eq!(is_enough(missing, all), enough, "{missing} of {all}");
        }
    }
}
