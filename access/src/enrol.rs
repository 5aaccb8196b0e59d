//! Who may have a first certificate: decisions over what the registry knows, denied unless a rule says yes.

use device::id::DeviceId;
use device::time::Timestamp;
use ring::digest::{SHA256, digest};
use thiserror::Error;

use crate::registry::{Enrolled, State};

/// Somebody asks for a device's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<'a> {
    /// The serial number that the device says it has.
    pub device: &'a str,
    /// SHA-256 of the public key that it has proved to hold, hexadecimal.
    pub key: &'a str,
    /// Its hardware, as it says.
    pub hw: &'a str,
    /// What it shows.
    pub by: By<'a>,
}

/// What lets somebody ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    /// The claim certificate of a group.
    Claim(&'a str),
    /// A token of its own.
    Token(&'a str),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has a certificate for this key: the same again. Holds its number.
    Again(Enrolled),
    /// A new one. `serial` is not filled in.
    New(Enrolled),
}

/// Why somebody gets none. [`Denied::code`] stands in the answer and in the audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denied {
    /// The serial number cannot be a device's name.
    #[error("{0}")]
    BadSerial(String),
    /// The group has no claim (any more).
    #[error("devices of group {0} cannot enrol")]
    NoClaim(String),
    /// Nobody expects the device.
    #[error("no rule lets {0} enrol; an operator can allow or register it")]
    NotAllowed(String),
    /// It belongs to another group.
    #[error("{device} is expected in another group")]
    OtherGroup {
        /// Which device.
        device: String,
    },
    /// It is known to have another key.
    #[error("{0} is registered with another key")]
    OtherKey(String),
    /// The claim has let in as many as it may.
    #[error("the claim of group {0} has let in as many devices as it may")]
    Quota(String),
    /// It has a certificate for another key.
    #[error("{0} is enrolled with another key; an operator must let it enrol again")]
    AlreadyProvisioned(String),
    /// It is barred.
    #[error("{0} is barred")]
    Barred(String),
    /// The token is wrong, used or too old.
    #[error("the token is not valid")]
    Token,
}

impl Denied {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadSerial(_) => "bad_serial",
            Self::NoClaim(_) => "no_claim",
            Self::NotAllowed(_) => "not_allowed",
            Self::OtherGroup { .. } => "other_group",
            Self::OtherKey(_) => "other_key",
            Self::Quota(_) => "quota",
            Self::AlreadyProvisioned(_) => "already_provisioned",
            Self::Barred(_) => "barred",
            Self::Token => "bad_token",
        }
    }
}

/// Decides. The same question about the same state has the same answer.
pub fn decide(state: &State, ask: &Ask<'_>, now: Timestamp) -> Result<Verdict, Denied> {
    let name = ask.device.to_owned();
    DeviceId::new(&name).map_err(|e| Denied::BadSerial(e.to_string()))?;
    if DeviceId::nobody().as_str() == name {
        return Err(Denied::BadSerial("the device id ~ is reserved".to_owned()));
    }
    if state.barred(&name).is_some() {
        return Err(Denied::Barred(name));
    }
    let expected = state.expected(&name);
    let (group, claim, labels) = match ask.by {
        By::Claim(group) => {
            let rule = state.claim(group).ok_or_else(|| Denied::NoClaim(group.to_owned()))?;
            match expected {
                Some(expected) if expected.group != group => return Err(Denied::OtherGroup { device: name }),
                Some(_) => {}
                None if rule.allow.iter().any(|pattern| fits(pattern, &name)) => {}
                None => return Err(Denied::NotAllowed(name)),
            }
            (group.to_owned(), Some(group.to_owned()), rule.labels.clone())
        }
        // Whether the device exists is told to those with its token only.
        By::Token(token) => {
            let expected = expected.ok_or(Denied::Token)?;
            let used_by_this =
                state.enrolled(&name).is_some_and(|enrolled| enrolled.key == ask.key && enrolled.claim.is_none());
            match &expected.token {
                Some((hash, until)) if *hash == token_hash(token) && now.0 <= *until => {}
                None if used_by_this => {}
                _ => return Err(Denied::Token),
            }
            (expected.group.clone(), None, Default::default())
        }
    };
    if expected.and_then(|expected| expected.key.as_deref()).is_some_and(|key| key != ask.key) {
        return Err(Denied::OtherKey(name));
    }
    if let Some(enrolled) = state.enrolled(&name) {
        let usable = state.standing(&enrolled.serial, Some(&name), now).is_ok();
        if enrolled.key == ask.key && usable {
            return Ok(Verdict::Again(enrolled.clone()));
        }
        // One that lapsed was never used, so nobody loses anything; one that was revoked needs an operator's word.
        let lapsed = state.standing(&enrolled.serial, None, now) == Err(crate::registry::Refusal::Lapsed);
        let open = state.reopened(&name).is_some_and(|until| now <= until);
        if !lapsed && !open {
            return Err(Denied::AlreadyProvisioned(name));
        }
    } else if let Some(group) = &claim
        && state.claim(group).is_some_and(|rule| state.used(group) >= rule.quota)
    {
        return Err(Denied::Quota(group.clone()));
    }
    let mut all = labels;
    all.extend(expected.map(|expected| expected.labels.clone()).unwrap_or_default());
    let enrolled = Enrolled {
        device: name,
        key: ask.key.to_owned(),
        serial: String::new(),
        group,
        claim,
        hw: ask.hw.to_owned(),
        labels: all,
    };
    Ok(Verdict::New(enrolled))
}

/// What is kept of a token: SHA-256, hexadecimal. A token has 256 random bits, so nothing slower is needed.
pub fn token_hash(token: &str) -> String {
    crate::leaf::hex(digest(&SHA256, token.as_bytes()).as_ref())
}

/// Whether a text fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use device::time::SECOND;

    use super::*;
    use crate::registry::{Certificate, ClaimRule, Expected, Fact, PROVE_WITHIN};

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn rule(allow: &[&str], quota: u64) -> Fact {
        let allow = allow.iter().map(|text| (*text).to_owned()).collect();
        Fact::Claim(ClaimRule { group: "g".into(), allow, quota, config: None, labels: Default::default() })
    }

    fn expected(group: &str, key: Option<&str>, token: Option<(&str, i64)>) -> Fact {
        Fact::Expected(Expected {
            device: "p-1".into(),
            group: group.into(),
            hw: String::new(),
            labels: [("site".to_owned(), "north".to_owned())].into(),
            key: key.map(str::to_owned),
            token: token.map(|(token, until)| (token_hash(token), NOW.plus(until).0)),
        })
    }

    fn state(facts: &[Fact]) -> State {
        let mut state = State::default();
        facts.iter().for_each(|fact| state.apply(NOW, fact));
        state
    }

    fn ask<'a>(key: &'a str, by: By<'a>) -> Ask<'a> {
        Ask { device: "p-1", key, hw: "rev2", by }
    }

    fn code(state: &State, key: &str, by: By<'_>) -> &'static str {
        match decide(state, &ask(key, by), NOW) {
            Ok(Verdict::New(_)) => "new",
            Ok(Verdict::Again(_)) => "again",
            Err(denied) => denied.code(),
        }
    }

    /// What follows from `New`: the certificate is pending.
    fn enrol(state: &mut State, key: &str, by: By<'_>, serial: &str) {
        let Ok(Verdict::New(enrolled)) = decide(state, &ask(key, by), NOW) else { panic!("not new") };
        let certificate = Certificate {
            serial: serial.into(),
            subject: "urn:dev:main:p-1".into(),
            key: key.into(),
            not_before: NOW,
            not_after: NOW.plus(i64::MAX / 4),
            pending: true,
            replaces: None,
        };
        state.apply(NOW, &Fact::Issued(certificate));
        state.apply(NOW, &Fact::Enrolled(Enrolled { serial: serial.into(), ..enrolled }));
    }

    #[test]
    fn nobody_enrols_unless_a_rule_says_so() {
        let claim = By::Claim("g");
        assert_eq!(code(&state(&[]), "k", claim), "no_claim");
        assert_eq!(code(&state(&[rule(&[], 9)]), "k", claim), "not_allowed");
        assert_eq!(code(&state(&[rule(&["q-*"], 9)]), "k", claim), "not_allowed");
        assert_eq!(code(&state(&[rule(&["p-*"], 9)]), "k", claim), "new");
        assert_eq!(code(&state(&[rule(&[], 9), expected("g", None, None)]), "k", claim), "new");
        assert_eq!(code(&state(&[rule(&["*"], 9), expected("h", None, None)]), "k", claim), "other_group");
        assert_eq!(code(&state(&[rule(&["*"], 9), expected("g", Some("x"), None)]), "k", claim), "other_key");
        assert_eq!(code(&state(&[rule(&["*"], 0)]), "k", claim), "quota");
        let barred = Fact::Barred { device: "p-1".into(), reason: "stolen".into() };
        assert_eq!(code(&state(&[rule(&["*"], 9), barred]), "k", claim), "barred");
        assert_eq!(code(&state(&[rule(&["*"], 9), Fact::Unclaimed { group: "g".into() }]), "k", claim), "no_claim");
        for bad in ["", "a/b", "~", "a b"] {
            let ask = Ask { device: bad, ..ask("k", claim) };
            assert_eq!(decide(&state(&[rule(&["*"], 9)]), &ask, NOW).unwrap_err().code(), "bad_serial", "{bad:?}");
        }
    }

    #[test]
    fn the_same_key_gets_the_same_certificate_and_another_key_none() {
        let claim = By::Claim("g");
        let mut known = state(&[rule(&["*"], 1)]);
        enrol(&mut known, "k", claim, "1");
        assert_eq!(code(&known, "k", claim), "again", "also when the quota is used up");
        assert_eq!(code(&known, "other", claim), "already_provisioned");
        known.apply(NOW, &Fact::Reopened { device: "p-1".into(), until: NOW.plus(5) });
        assert_eq!(code(&known, "other", claim), "new");
        enrol(&mut known, "other", claim, "2");
        assert_eq!(code(&known, "third", claim), "already_provisioned", "the window lets one in");
        known.apply(NOW, &Fact::Revoked { serial: "2".into(), reason: "x".into() });
        assert_eq!(code(&known, "other", claim), "already_provisioned", "what was revoked is not given out again");
    }

    #[test]
    fn a_certificate_that_was_never_used_keeps_nobody_out() {
        let claim = By::Claim("g");
        let mut known = state(&[rule(&["*"], 1)]);
        enrol(&mut known, "k", claim, "1");
        let late = NOW.plus(PROVE_WITHIN + 1);
        assert!(matches!(decide(&known, &ask("other", claim), late), Ok(Verdict::New(_))));
        known.apply(NOW, &Fact::Proven { serial: "1".into() });
        assert_eq!(decide(&known, &ask("other", claim), late).unwrap_err().code(), "already_provisioned");
    }

    #[test]
    fn a_token_works_once_in_its_time_and_again_for_a_lost_answer() {
        let mut known = state(&[expected("g", None, Some(("secret", 10)))]);
        assert_eq!(code(&known, "k", By::Token("wrong")), "bad_token");
        assert_eq!(code(&state(&[]), "k", By::Token("secret")), "bad_token", "whether it exists is not told");
        assert_eq!(code(&state(&[expected("g", None, Some(("secret", -1)))]), "k", By::Token("secret")), "bad_token");
        let Ok(Verdict::New(enrolled)) = decide(&known, &ask("k", By::Token("secret")), NOW) else { panic!() };
        assert_eq!((enrolled.group.as_str(), enrolled.labels.get("site").map(String::as_str)), ("g", Some("north")));
        enrol(&mut known, "k", By::Token("secret"), "1");
        assert_eq!(code(&known, "k", By::Token("secret")), "again");
        assert_eq!(code(&known, "other", By::Token("secret")), "bad_token");
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, text, fit) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "abcd", false),
            ("*b*", "abc", true),
            ("ab*bc", "abc", false),
            ("*", "", true),
            ("", "a", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
    }
}
