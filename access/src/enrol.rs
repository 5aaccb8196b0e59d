//! Who may have a first certificate: decisions over what the registry knows, denied unless a rule says yes.

use std::collections::BTreeMap;

use device::id::DeviceId;
use device::time::Timestamp;
use ring::digest::{SHA256, digest};
use thiserror::Error;

use crate::leaf::unhex;
use crate::origin::{self, Factory, Shown, Voucher, VoucherKey};
use crate::registry::{Enrolled, Expected, Origin, State};

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
    /// A certificate of a factory.
    Factory {
        /// Which factory.
        name: &'a str,
        /// The serial number in the certificate.
        device: &'a str,
    },
    /// A statement of somebody who vouches for it.
    Voucher(Shown<'a>),
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
    /// The factory is not registered (any more).
    #[error("devices of factory {0} cannot enrol")]
    NoFactory(String),
    /// The certificate names another device.
    #[error("the certificate that was shown is that of {0}")]
    OtherSerial(String),
    /// As many devices of the factory were let in as may be.
    #[error("factory {0} has as many devices as it may")]
    FactoryQuota(String),
    /// The voucher cannot be read, nobody who is known has signed it, or it is for another device.
    #[error("the voucher is not valid: {0}")]
    Voucher(&'static str),
    /// The voucher gives the device to somebody else.
    #[error("the voucher gives the device to another owner")]
    OtherOwner,
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
            Self::NoFactory(_) => "no_factory",
            Self::OtherSerial(_) => "other_serial",
            Self::FactoryQuota(_) => "quota",
            Self::Voucher(_) => "bad_voucher",
            Self::OtherOwner => "other_owner",
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
    let expected = state.expected(&name);
    // First whether what was shown lets it ask: what is known of a device is told to nobody else.
    let Pass { group, claim, origin, labels } = pass(state, ask, expected, now)?;
    if state.barred(&name).is_some() {
        return Err(Denied::Barred(name));
    }
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
    } else if let Some(Origin::Factory(factory)) = &origin
        && let Some(most) = state.factories().get(factory).and_then(|rule| rule.quota)
        && state.vouched(&Origin::Factory(factory.clone())) >= most
    {
        return Err(Denied::FactoryQuota(factory.clone()));
    }
    let mut all = labels;
    all.extend(expected.map(|expected| expected.labels.clone()).unwrap_or_default());
    let enrolled = Enrolled {
        device: name,
        key: ask.key.to_owned(),
        serial: String::new(),
        group,
        claim,
        origin,
        hw: if ask.hw.is_empty() { expected.map(|e| e.hw.clone()).unwrap_or_default() } else { ask.hw.to_owned() },
        labels: all,
    };
    Ok(Verdict::New(enrolled))
}

/// What somebody is let in as.
struct Pass {
    group: String,
    claim: Option<String>,
    origin: Option<Origin>,
    labels: BTreeMap<String, String>,
}

/// Whether what somebody shows lets it ask for this device.
fn pass(state: &State, ask: &Ask<'_>, expected: Option<&Expected>, now: Timestamp) -> Result<Pass, Denied> {
    let name = ask.device.to_owned();
    let of = |group: &str, origin: Option<Origin>| Pass {
        group: group.to_owned(),
        claim: None,
        origin,
        labels: BTreeMap::new(),
    };
    match ask.by {
        By::Claim(group) => {
            let rule = state.claim(group).ok_or_else(|| Denied::NoClaim(group.to_owned()))?;
            match expected {
                Some(expected) if expected.group != group => return Err(Denied::OtherGroup { device: name }),
                Some(_) => {}
                None if allows(&rule.allow, &name) => {}
                None => return Err(Denied::NotAllowed(name)),
            }
            Ok(Pass { claim: Some(group.to_owned()), labels: rule.labels.clone(), ..of(group, None) })
        }
        By::Token(token) => {
            // Also for a device that nobody knows, so that it takes as long.
            let hash = token_hash(token);
            let expected = expected.ok_or(Denied::Token)?;
            let used_by_this = state.enrolled(&name).is_some_and(|enrolled| {
                enrolled.key == ask.key && enrolled.claim.is_none() && enrolled.origin.is_none()
            });
            match &expected.token {
                Some((known, until)) if *known == hash && now.0 <= *until => {}
                None if used_by_this => {}
                _ => return Err(Denied::Token),
            }
            Ok(of(&expected.group, None))
        }
        By::Factory { name: factory, device } => {
            let rule = state.factories().get(factory).ok_or_else(|| Denied::NoFactory(factory.to_owned()))?;
            if device != name {
                return Err(Denied::OtherSerial(device.to_owned()));
            }
            match expected {
                Some(expected) if expected.group != rule.group => return Err(Denied::OtherGroup { device: name }),
                _ if lets(state, rule, &name) => {}
                _ => return Err(Denied::NotAllowed(name)),
            }
            Ok(of(&rule.group, Some(Origin::Factory(factory.to_owned()))))
        }
        By::Voucher(shown) => {
            let signer = signer(state, &shown).ok_or(Denied::Voucher("nobody who is registered has signed it"))?;
            let voucher: Voucher = serde_json::from_slice(shown.text)
                .map_err(|_| Denied::Voucher("it is no JSON object with serial, key and owner, and nothing else"))?;
            if voucher.owner != shown.tenant {
                return Err(Denied::OtherOwner);
            }
            if voucher.serial != name {
                return Err(Denied::Voucher("it is for another serial number"));
            }
            if !voucher.key.eq_ignore_ascii_case(ask.key) {
                return Err(Denied::OtherKey(name));
            }
            match expected {
                Some(expected) if expected.group != signer.group => Err(Denied::OtherGroup { device: name }),
                _ => Ok(of(&signer.group, Some(Origin::Voucher(signer.name.clone())))),
            }
        }
    }
}

/// Whether a factory's rule lets a device of it in.
pub fn lets(state: &State, factory: &Factory, device: &str) -> bool {
    match state.expected(device) {
        Some(expected) => expected.group == factory.group,
        None => allows(&factory.allow, device),
    }
}

fn allows(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| fits(pattern, name))
}

/// Whose key has signed a voucher.
fn signer<'s>(state: &'s State, shown: &Shown<'_>) -> Option<&'s VoucherKey> {
    state
        .voucher_keys()
        .values()
        .find(|known| unhex(&known.key).is_some_and(|key| origin::signed(&key, shown.text, shown.signature)))
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
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::origin::IdFrom;
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
            issuer: None,
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
    fn what_is_known_of_a_device_is_told_to_nobody_without_its_token() {
        let barred = Fact::Barred { device: "p-1".into(), reason: "stolen".into() };
        let known = state(&[expected("g", Some("x"), Some(("secret", 10))), barred]);
        assert_eq!(code(&known, "k", By::Token("wrong")), "bad_token");
        assert_eq!(code(&known, "k", By::Token("secret")), "barred");
    }

    #[test]
    fn what_devices_of_a_group_are_told_first_outlives_the_claim() {
        let Fact::Claim(claim) = rule(&["*"], 1) else { panic!() };
        let claim = |config: Option<&str>| {
            Fact::Claim(ClaimRule { config: config.map(serde_json::Value::from), ..claim.clone() })
        };
        let mut known = state(&[claim(Some("a")), Fact::Unclaimed { group: "g".into() }]);
        assert_eq!(known.config("g"), Some(&"a".into()));
        known.apply(NOW, &Fact::Config { group: "g".into(), config: Some("b".into()) });
        known.apply(NOW, &claim(Some("c")));
        assert_eq!(known.config("g"), Some(&"b".into()), "said for the group");
        known.apply(NOW, &Fact::Config { group: "g".into(), config: None });
        assert_eq!(known.config("g"), Some(&"c".into()));
        known.apply(NOW, &claim(None));
        assert_eq!((known.config("g"), known.config("h")), (None, None));
    }

    fn factory(allow: &[&str], quota: Option<u64>) -> Fact {
        let allow = allow.iter().map(|text| (*text).to_owned()).collect();
        let (name, ca, group, id_from) = ("f".into(), String::new(), "g".into(), IdFrom::Cn);
        Fact::Factory(Factory { name, ca, group, id_from, allow, quota })
    }

    #[test]
    fn a_device_of_a_factory_asks_for_itself_and_if_a_rule_lets_it() {
        let by = By::Factory { name: "f", device: "p-1" };
        assert_eq!(code(&state(&[]), "k", by), "no_factory");
        assert_eq!(code(&state(&[factory(&[], None)]), "k", by), "not_allowed");
        assert_eq!(code(&state(&[factory(&["p-*"], None)]), "k", by), "new");
        assert_eq!(code(&state(&[factory(&[], None), expected("g", None, None)]), "k", by), "new");
        assert_eq!(code(&state(&[factory(&["*"], None), expected("h", None, None)]), "k", by), "other_group");
        assert_eq!(code(&state(&[factory(&["*"], Some(0))]), "k", by), "quota");
        let other = By::Factory { name: "f", device: "p-2" };
        assert_eq!(code(&state(&[factory(&["*"], None)]), "k", other), "other_serial");
        assert_eq!(
            code(&state(&[factory(&["*"], None), Fact::FactoryGone { name: "f".into() }]), "k", by),
            "no_factory"
        );
        let mut known = state(&[factory(&["*"], Some(1))]);
        enrol(&mut known, "k", by, "1");
        assert_eq!(known.vouched(&Origin::Factory("f".into())), 1);
        assert_eq!(code(&known, "k", by), "again");
        assert_eq!(code(&known, "other", by), "already_provisioned");
        assert_eq!(code(&known, "k", By::Token("any")), "bad_token", "it had none");
    }

    #[test]
    fn a_voucher_counts_for_its_device_its_key_and_its_owner() {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        // RFC 8410: the key behind a fixed head.
        let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let info = [&head[..], pair.public_key().as_ref()].concat();
        assert!(origin::can_sign(&info) && !origin::can_sign(&info[1..]) && !origin::can_sign(b""));
        let key = VoucherKey { name: "v".into(), key: crate::leaf::hex(&info), group: "g".into() };
        let known = state(&[Fact::VoucherKey(key)]);
        let ask = |known: &State, text: &str, signed: &str, key: &str| {
            let signature = pair.sign(signed.as_bytes());
            let shown = Shown { text: text.as_bytes(), signature: signature.as_ref(), tenant: "main" };
            code(known, key, By::Voucher(shown))
        };
        let good = r#"{"serial":"p-1","key":"AB","owner":"main"}"#;
        assert_eq!(ask(&known, good, good, "ab"), "new");
        assert_eq!(ask(&known, good, "", "ab"), "bad_voucher");
        assert_eq!(ask(&state(&[]), good, good, "ab"), "bad_voucher");
        assert_eq!(ask(&known, good, good, "cd"), "other_key");
        for (text, expected) in [
            (r#"{"serial":"p-1","key":"ab","owner":"other"}"#, "other_owner"),
            (r#"{"serial":"p-2","key":"ab","owner":"main"}"#, "bad_voucher"),
            (r#"{"serial":"p-1","key":"ab","owner":"main","until":5}"#, "bad_voucher"),
            ("hello", "bad_voucher"),
        ] {
            assert_eq!(ask(&known, text, text, "ab"), expected, "{text}");
        }
        let gone = state(&[Fact::VoucherKeyGone { name: "v".into() }]);
        assert_eq!(ask(&gone, good, good, "ab"), "bad_voucher");
        let mut elsewhere = state(&[expected("h", None, None)]);
        elsewhere.apply(NOW, &Fact::VoucherKey(known.voucher_keys()["v"].clone()));
        assert_eq!(ask(&elsewhere, good, good, "ab"), "other_group");
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
