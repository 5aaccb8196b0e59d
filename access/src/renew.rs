//! The next certificate of a device that has one: who may have it, and whose last one ends soon.
//!
//! A device asks over a connection that its present certificate has opened, with a signing request for a new key. The new
//! certificate counts once it has been used; only then does the old one end, a day later. So whatever is lost on the way, the
//! old one goes on working.

use device::id::DeviceId;
use device::time::{SECOND, Timestamp};
use thiserror::Error;

use crate::authority::DAY;
use crate::leaf::Serial;
use crate::registry::{Entry, Refusal, State};

/// Successors of a device's certificate that wait to be used at one time. A device that loses its new key before it has
/// used it asks with another; one that does so again and again waits until the first has lapsed, an hour.
pub const MOST_UNPROVEN: usize = 3;
/// Certificates of a device in [`WHILE`]: a device that is broken must not fill the registry.
pub const MOST_ISSUED: usize = 200;
/// See [`MOST_ISSUED`].
pub const WHILE: i64 = 3600 * SECOND;

/// For so long after its end a device's certificate may be needed still, where those that have expired are renewed.
pub(crate) const RECOVERY: i64 = 90 * DAY;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was asked for before: the certificate with this number again.
    Again(Serial),
    /// A new one in the place of this one.
    New {
        /// The number of the one that it replaces.
        replaces: Serial,
    },
}

/// Why a device gets no other certificate. [`NotRenewed::code`] stands in the answer and in the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotRenewed {
    /// What it has shown does not count (any more).
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The key is that of a certificate that it has or had.
    #[error("this key is or was the key of another certificate of this device; make a new one")]
    SameKey,
    /// Others wait to be used.
    #[error(
        "{MOST_UNPROVEN} certificates of this device wait to be used; use one of them, or ask again when they have lapsed, in an hour"
    )]
    TooMany,
    /// It asks all the time.
    #[error("this device was given {MOST_ISSUED} certificates within an hour; ask again later")]
    TooOften,
}

impl NotRenewed {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::SameKey => "same_key",
            Self::TooMany => "too_many",
            Self::TooOften => "too_often",
        }
    }
}

/// Whether a certificate opens something now, as far as the registry knows it. The connection that asks may have been opened
/// by one that has ended; others of the device must not have.
fn is_usable(state: &State, entry: &Entry, device: &DeviceId, now: Timestamp) -> bool {
    now <= entry.certificate.not_after && state.standing(&entry.certificate.serial, Some(device.as_str()), now).is_ok()
}

fn is_unproven(entry: &Entry) -> bool {
    entry.certificate.pending && entry.proven.is_none()
}

/// Decides about a request for a certificate with this key (its SHA-256), over a connection of the certificate with this
/// number. The same question about the same state has the same answer.
pub fn decide(
    state: &State,
    device: &DeviceId,
    serial: &str,
    key: &str,
    now: Timestamp,
) -> Result<Verdict, NotRenewed> {
    state.standing(serial, Some(device.as_str()), now)?;
    let shown = state.certificate(serial).ok_or(Refusal::Unknown)?;
    if shown.certificate.key == key {
        return Err(NotRenewed::SameKey);
    }
    let all: Vec<&Entry> = state.of(&shown.certificate.subject).collect();
    // The newest with this key counts: a lapsed one is followed by another of the same key.
    if let Some(known) = all.iter().rev().find(|entry| entry.certificate.key == key) {
        if is_usable(state, known, device, now) {
            return Ok(Verdict::Again(known.certificate.serial.clone()));
        }
        let lapsed = state.standing(&known.certificate.serial, Some(device.as_str()), now) == Err(Refusal::Lapsed);
        if !lapsed {
            return Err(NotRenewed::SameKey);
        }
    }
    let waiting = all.iter().filter(|entry| is_unproven(entry) && is_usable(state, entry, device, now)).count();
    if waiting >= MOST_UNPROVEN {
        return Err(NotRenewed::TooMany);
    }
    if all.iter().rev().take_while(|entry| now.since(entry.issued) < WHILE).count() >= MOST_ISSUED {
        return Err(NotRenewed::TooOften);
    }
    // A device that has gone back to an older one, in the day that it still counts: the newest ends with it.
    let mut replaces = serial;
    for entry in &all {
        let follows = entry.certificate.replaces.as_deref() == Some(replaces);
        if follows && entry.proven.is_some() && is_usable(state, entry, device, now) {
            replaces = &entry.certificate.serial;
        }
    }
    Ok(Verdict::New { replaces: replaces.to_owned() })
}

/// The last certificate of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Whose.
    pub device: DeviceId,
    /// Its number.
    pub serial: Serial,
    /// When it ends.
    pub not_after: Timestamp,
}

/// Whether a certificate, which its holder has used or was handed, opens something now, or did not longer ago than `late`
/// (nanoseconds). `device`: its holder, if that is a device.
pub(crate) fn is_in_use(state: &State, entry: &Entry, device: Option<&str>, late: i64, now: Timestamp) -> bool {
    let certificate = &entry.certificate;
    !is_unproven(entry)
        && now.since(certificate.not_after) <= late
        && state.standing(&certificate.serial, device, now).is_ok()
}

/// The last certificate of each device that has one, by name. What waits to be used is none yet; what ended longer ago than `late`
/// (nanoseconds) is none any more.
pub fn last(state: &State, tenant: &str, late: i64, now: Timestamp) -> Vec<Last> {
    let mut all = Vec::new();
    for subject in state.subjects() {
        let Some(crate::subject::Subject::Device(device)) = crate::subject::Subject::parse(subject, tenant) else {
            continue;
        };
        let usable = state.of(subject).filter(|entry| is_in_use(state, entry, Some(device.as_str()), late, now));
        // What ends because another has taken its place is not the last one.
        let last = usable.filter(|entry| entry.ends.is_none()).max_by_key(|entry| entry.certificate.not_after);
        if let Some(last) = last {
            let (serial, not_after) = (last.certificate.serial.clone(), last.certificate.not_after);
            all.push(Last { device, serial, not_after });
        }
    }
    all
}

/// Those of them that end within a time.
pub fn ending(state: &State, tenant: &str, within: i64, now: Timestamp) -> Vec<Last> {
    let all = last(state, tenant, 0, now).into_iter();
    all.filter(|last| last.not_after.since(now) <= within).collect()
}

/// Days before the end of a certificate at which it is told that it was not renewed.
pub const TOLD_AT: [u32; 2] = [14, 3];

/// What is to be told now: certificates that [`ending`] finds, and the step that each has come to and that was not told yet.
pub fn untold(state: &State, tenant: &str, now: Timestamp) -> Vec<(Last, u32)> {
    let most = TOLD_AT.into_iter().max().unwrap_or(0);
    let step = |ending: &Last| {
        let reached = reached(ending, now)?;
        let told = state.certificate(&ending.serial).and_then(|entry| entry.told);
        told.is_none_or(|told| told > reached).then_some(reached)
    };
    let all = ending(state, tenant, days(most), now).into_iter();
    all.filter_map(|ending| step(&ending).map(|step| (ending, step))).collect()
}

/// The step that a certificate has come to.
fn reached(last: &Last, now: Timestamp) -> Option<u32> {
    TOLD_AT.into_iter().filter(|step| last.not_after.since(now) <= days(*step)).min()
}

/// Certificates that have come to a step, or that have ended and can be renewed still, and that nobody has renewed.
pub fn unrenewed(state: &State, tenant: &str, now: Timestamp) -> Vec<(Last, u32)> {
    let all = last(state, tenant, RECOVERY, now).into_iter();
    all.filter_map(|last| reached(&last, now).map(|step| (last, step))).collect()
}

/// Days as a length of time.
pub fn days(days: u32) -> i64 {
    i64::from(days) * DAY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Certificate, Fact, OVERLAP, PROVE_WITHIN};

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn device() -> DeviceId {
        DeviceId::new("a").unwrap()
    }

    fn issued(serial: &str, key: &str, replaces: Option<&str>) -> Fact {
        Fact::Issued(Certificate {
            serial: serial.to_owned(),
            subject: "urn:dev:main:a".to_owned(),
            key: key.to_owned(),
            not_before: NOW.plus(-DAY),
            not_after: NOW.plus(365 * DAY),
            pending: replaces.is_some(),
            replaces: replaces.map(str::to_owned),
            issuer: None,
        })
    }

    fn proven(serial: &str) -> Fact {
        Fact::Proven { serial: serial.to_owned() }
    }

    fn state(facts: &[(i64, Fact)]) -> State {
        let mut state = State::default();
        facts.iter().for_each(|(after, fact)| state.apply(NOW.plus(*after), fact));
        state
    }

    fn ask(state: &State, serial: &str, key: &str, after: i64) -> Result<Verdict, NotRenewed> {
        decide(state, &device(), serial, key, NOW.plus(after))
    }

    fn new(replaces: &str) -> Result<Verdict, NotRenewed> {
        Ok(Verdict::New { replaces: replaces.to_owned() })
    }

    #[test]
    fn the_same_key_has_the_same_certificate_until_it_lapses() {
        let first = (0, issued("1", "k1", None));
        let known = state(std::slice::from_ref(&first));
        assert_eq!(ask(&known, "1", "k2", 0), new("1"));
        assert_eq!(ask(&known, "1", "k1", 0), Err(NotRenewed::SameKey));
        assert_eq!(ask(&known, "9", "k2", 0), Err(NotRenewed::Refused(Refusal::Unknown)));
        let second = (0, issued("2", "k2", Some("1")));
        let known = state(&[first.clone(), second.clone()]);
        assert_eq!(ask(&known, "1", "k2", PROVE_WITHIN), Ok(Verdict::Again("2".into())));
        assert_eq!(ask(&known, "1", "k2", PROVE_WITHIN + 1), new("1"), "it has lapsed: another for the same key");
        let again = (PROVE_WITHIN + 1, issued("3", "k2", Some("1")));
        let known = state(&[first, second, again]);
        assert_eq!(ask(&known, "1", "k2", PROVE_WITHIN + 2), Ok(Verdict::Again("3".into())));
    }

    #[test]
    fn a_key_that_was_revoked_or_replaced_does_not_come_back() {
        let facts = [(0, issued("1", "k1", None)), (0, issued("2", "k2", Some("1"))), (1, proven("2"))];
        let known = state(&facts);
        assert_eq!(ask(&known, "2", "k1", OVERLAP), Ok(Verdict::Again("1".into())), "still good, for a day");
        assert_eq!(ask(&known, "2", "k1", OVERLAP + 1), Err(NotRenewed::SameKey));
        assert_eq!(ask(&known, "1", "k3", OVERLAP + 1), Err(NotRenewed::Refused(Refusal::Replaced)));
        let mut known = state(&facts);
        known.apply(NOW, &Fact::Revoked { serial: "1".into(), reason: "lost".into() });
        assert_eq!(ask(&known, "2", "k1", 2), Err(NotRenewed::SameKey));
        known.apply(NOW, &Fact::Barred { device: "a".into(), reason: "stolen".into() });
        assert_eq!(ask(&known, "2", "k3", 2), Err(NotRenewed::Refused(Refusal::Barred("stolen".into()))));
    }

    #[test]
    fn a_device_that_went_back_replaces_the_newest() {
        let known = state(&[(0, issued("1", "k1", None)), (0, issued("2", "k2", Some("1"))), (1, proven("2"))]);
        assert_eq!(ask(&known, "1", "k3", 5), new("2"));
        assert_eq!(ask(&known, "2", "k3", 5), new("2"));
    }

    #[test]
    fn what_waits_and_what_was_given_is_bounded() {
        let mut facts = vec![(0, issued("1", "k1", None))];
        for i in 2..=4 {
            assert_eq!(ask(&state(&facts), "1", "x", 0), new("1"));
            facts.push((0, issued(&i.to_string(), &format!("k{i}"), Some("1"))));
        }
        assert_eq!(ask(&state(&facts), "1", "x", 0), Err(NotRenewed::TooMany));
        assert_eq!(ask(&state(&facts), "1", "k3", 0), Ok(Verdict::Again("3".into())), "what was asked for is given");
        assert_eq!(ask(&state(&facts), "1", "x", PROVE_WITHIN + 1), new("1"));
        for i in 5..=MOST_ISSUED {
            facts.push((i as i64, issued(&i.to_string(), &format!("k{i}"), Some("1"))));
            facts.push((i as i64, proven(&i.to_string())));
        }
        let last = MOST_ISSUED.to_string();
        facts.extend([2, 3, 4].map(|serial| (0, proven(&serial.to_string()))));
        assert_eq!(ask(&state(&facts), &last, "x", 300), Err(NotRenewed::TooOften));
        assert!(matches!(ask(&state(&facts), &last, "x", WHILE + 300), Ok(Verdict::New { .. })));
    }

    #[test]
    fn whose_last_certificate_ends_is_told_and_nobody_else() {
        let near = |serial: &str, days| match issued(serial, "k", None) {
            Fact::Issued(certificate) => Fact::Issued(Certificate { not_after: NOW.plus(days * DAY), ..certificate }),
            other => other,
        };
        let ends = |facts: &[(i64, Fact)], within| {
            ending(&state(facts), "main", days(within), NOW).into_iter().map(|e| e.serial).collect::<Vec<_>>()
        };
        assert_eq!(ends(&[(0, near("1", 13))], 14), ["1"]);
        assert_eq!(ends(&[(0, near("1", 13))], 3), [] as [&str; 0]);
        assert_eq!(ends(&[(0, near("1", 13)), (0, near("2", 2))], 14), ["1"], "the last one counts");
        assert_eq!(ends(&[(0, near("1", -1))], 14), [] as [&str; 0]);
        let step = |of: i64| unrenewed(&state(&[(0, near("1", of))]), "main", NOW).first().map(|(_, step)| *step);
        assert_eq!([15, 14, 3, -1, -90, -91].map(step), [None, Some(14), Some(3), Some(3), Some(3), None]);
        let renewed = [(0, near("1", 2)), (0, issued("2", "k2", Some("1")))];
        assert_eq!(ends(&renewed, 14), ["1"], "what waits to be used is none");
        assert_eq!(ends(&[renewed.to_vec(), vec![(0, proven("2"))]].concat(), 14), [] as [&str; 0]);
    }
}
