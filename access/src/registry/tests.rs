//! What becomes of certificates, as rules over facts; and an authority whose certificates a verifier accepts.

use super::*;
use crate::authority::{self, AuthorityError, DAY, Key};
use crate::subject::Subject;

const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

fn certificate(serial: &str) -> Certificate {
    Certificate {
        serial: serial.to_owned(),
        subject: "urn:dev:main:a".to_owned(),
        key: "00".to_owned(),
        not_before: NOW.plus(-DAY),
        not_after: NOW.plus(DAY),
        pending: false,
        replaces: None,
        issuer: None,
    }
}

fn state(facts: &[(i64, Fact)]) -> State {
    let mut state = State::default();
    facts.iter().for_each(|(after, fact)| state.apply(NOW.plus(*after), fact));
    state
}

fn proven(serial: &str) -> Fact {
    Fact::Proven { serial: serial.to_owned() }
}

#[test]
fn a_certificate_counts_from_its_issue_to_its_revocation() {
    let issued = (0, Fact::Issued(certificate("1")));
    let state_of = |more: &[(i64, Fact)]| state(&[std::slice::from_ref(&issued), more].concat());
    assert_eq!(state(&[]).standing("1", Some("a"), NOW), Err(Refusal::Unknown));
    assert_eq!(state_of(&[]).standing("1", Some("a"), NOW), Ok(()));
    let facts = state_of(&[]).revoke("1", "urn:dev:main:1", "lost").unwrap();
    assert_eq!(facts, [Fact::Revoked { serial: "1".into(), reason: "lost".into() }]);
    let revoked = state_of(&[(5, facts[0].clone())]);
    assert_eq!(revoked.standing("1", Some("a"), NOW), Err(Refusal::Revoked("lost".into())));
    assert_eq!(revoked.revoked(NOW).collect::<Vec<_>>(), [("1".to_owned(), NOW.plus(5))]);
    assert_eq!(revoked.revoked(NOW.plus(2 * DAY)).count(), 0, "what has ended need not be listed");
    assert_eq!(revoked.revoke("1", "", "again").unwrap(), []);
    assert!(matches!(revoked.revoke("2", "urn:dev:main:2", "x"), Err(RegistryError::NoSuch(_))));
}

#[test]
fn a_revoked_device_is_barred_whatever_it_shows_until_it_is_admitted() {
    let mut known = state(&[(0, Fact::Issued(certificate("1"))), (0, Fact::Issued(certificate("2")))]);
    let facts = known.revoke("a", "urn:dev:main:a", "stolen").unwrap();
    assert_eq!(facts.len(), 3);
    facts.iter().for_each(|fact| known.apply(NOW, fact));
    known.apply(NOW, &Fact::Issued(certificate("3")));
    assert_eq!(known.standing("3", Some("a"), NOW), Err(Refusal::Barred("stolen".into())));
    known.apply(NOW, &Fact::Admitted { device: "a".into() });
    assert_eq!(known.standing("3", Some("a"), NOW), Ok(()));
    assert_eq!(
        known.standing("1", Some("a"), NOW),
        Err(Refusal::Revoked("stolen".into())),
        "the old ones stay revoked"
    );
}

#[test]
fn a_pending_certificate_lapses_unless_it_is_used() {
    let pending = Fact::Issued(Certificate { pending: true, ..certificate("1") });
    let known = state(&[(0, pending.clone())]);
    assert_eq!(known.standing("1", None, NOW.plus(PROVE_WITHIN)), Ok(()));
    assert_eq!(known.standing("1", None, NOW.plus(PROVE_WITHIN + 1)), Err(Refusal::Lapsed));
    let known = state(&[(0, pending), (PROVE_WITHIN, proven("1"))]);
    assert_eq!(known.standing("1", None, NOW.plus(DAY)), Ok(()));
}

#[test]
fn the_old_one_ends_a_day_after_the_new_one_was_used_and_not_before() {
    let new = Fact::Issued(Certificate { pending: true, replaces: Some("1".into()), ..certificate("2") });
    let mut known = state(&[(0, Fact::Issued(certificate("1"))), (0, new)]);
    assert_eq!(known.standing("1", None, NOW.plus(9 * OVERLAP)), Ok(()), "the new one was never used");
    known.apply(NOW.plus(7), &proven("2"));
    known.apply(NOW.plus(9), &proven("2"));
    assert_eq!(known.standing("1", None, NOW.plus(6 + OVERLAP)), Ok(()));
    assert_eq!(known.standing("1", None, NOW.plus(7 + OVERLAP)), Err(Refusal::Replaced));
    assert_eq!(known.standing("2", None, NOW.plus(9 * OVERLAP)), Ok(()));
}

#[test]
fn what_one_process_adds_another_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Registry::open(dir.path()).unwrap(), Registry::open(dir.path()).unwrap());
    a.change::<RegistryError>(NOW, |_| Ok(vec![Fact::Issued(certificate("1"))])).unwrap();
    let refused: Result<_, RegistryError> = b.change(NOW, |state| {
        assert!(state.certificate("1").is_some(), "what others have added is there before the decision");
        Err(RegistryError::Refused("no".into()))
    });
    assert!(refused.is_err());
    assert!(b.look(|state| state.certificate("1").is_some()));
    assert_eq!(b.look(State::facts), (1, 0), "counted, although it came with a refusal");
    let new = b.change(NOW, |state| state.revoke("1", "", "lost")).unwrap();
    assert_eq!(new.len(), 1);
    assert_eq!(b.look(State::facts), (2, 1));
    assert_eq!(a.read_on().unwrap().len(), 1);
    assert!(a.look(|state| state.standing("1", None, NOW).is_err()));
    assert!(Registry::open(dir.path()).unwrap().look(|state| state.standing("1", None, NOW).is_err()));
}

#[test]
fn an_authority_is_made_once_and_signs_what_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let draw = || [7; 16];
    assert!(matches!(authority::open(dir.path()), Err(AuthorityError::Absent(_))));
    authority::init(dir.path(), "main", NOW, draw).unwrap();
    assert!(matches!(authority::init(dir.path(), "main", NOW, draw), Err(AuthorityError::Present(_))));
    let made = authority::open(dir.path()).unwrap();
    let device = Subject::Device(DeviceId::new("a").unwrap());
    for days in [0, 366] {
        let error = made.issue(&device, &[], &Key::New, days, (NOW, [1; 16])).unwrap_err();
        assert!(matches!(error, AuthorityError::Days { most: 365, .. }), "{error}");
    }
    let error = made.issue(&Subject::Claim("g".into()), &[], &Key::New, 91, (NOW, [1; 16])).unwrap_err();
    assert!(matches!(error, AuthorityError::Days { most: 90, .. }), "{error}");
    let issued = made.issue(&device, &[], &Key::New, 365, (NOW, [0xab; 16])).unwrap();
    assert_eq!(issued.leaf.serial, format!("1{}", "ab".repeat(16)));
    assert_eq!(issued.leaf.uris, ["urn:dev:main:a"]);
    assert_eq!(issued.leaf.not_before, NOW.plus(-DAY));
    assert_eq!(issued.leaf.not_after, NOW.plus(365 * DAY));
    assert_eq!(issued.chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(!format!("{issued:?}").contains("PRIVATE"), "{issued:?}");
    use std::os::unix::fs::PermissionsExt;
    for (name, mode) in [("root.key", 0o600), ("issuing.key", 0o600), ("ca.crt", 0o644)] {
        assert_eq!(std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    // Without the root key everything but a new issuing authority goes on.
    std::fs::remove_file(dir.path().join("root.key")).unwrap();
    authority::open(dir.path()).unwrap().issue(&device, &[], &Key::New, 1, (NOW, [1; 16])).unwrap();
    let error = authority::renew_issuing(dir.path(), NOW, draw).unwrap_err();
    assert!(error.to_string().contains("root.key"), "{error}");
    // No certificate outlives the issuing authority.
    let late = NOW.plus(5 * 365 * DAY - DAY);
    let last = made.issue(&device, &[], &Key::New, 365, (late, [1; 16])).unwrap();
    assert_eq!(last.leaf.not_after, made.not_after());
    assert!(matches!(made.issue(&device, &[], &Key::New, 1, (made.not_after(), [1; 16])), Err(AuthorityError::Ended)));
}

#[test]
fn only_the_key_of_a_request_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let made = authority::init(dir.path(), "main", NOW, || [7; 16]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key).unwrap();
    let device = Subject::Device(DeviceId::new("a").unwrap());
    let issued = made.issue(&device, &[], &Key::Request(request.der()), 1, (NOW, [1; 16])).unwrap();
    assert_eq!(issued.leaf.uris, ["urn:dev:main:a"]);
    assert_eq!(issued.leaf.key, authority::request_key(request.der()).unwrap());
    assert!(issued.key.is_none());
    let weak = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&weak).unwrap();
    let error = made.issue(&device, &[], &Key::Request(request.der()), 1, (NOW, [1; 16])).unwrap_err();
    assert!(error.to_string().contains("P-256"), "{error}");
    let mut broken = params.serialize_request(&key).unwrap().der().to_vec();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert!(authority::request_key(&broken).is_err());
}

#[test]
fn facts_are_read_as_they_were_first_written() {
    for text in [
        r#"{"enrolled":{"device":"a","key":"00","serial":"1","group":"g","claim":"g","hw":"r1","labels":{"x":"y"}}}"#,
        r#"{"claim":{"group":"g","allow":["a-*"],"quota":5,"config":{"interval":5}}}"#,
        r#"{"expected":{"device":"a","group":"g","token":["00",5]}}"#,
        r#"{"enrolled":{"device":"a","key":"00","serial":"1","group":"g","origin":{"factory":"f"}}}"#,
        r#"{"factory":{"name":"f","ca":"","group":"g","id_from":"serialNumber","allow":["*"],"quota":5}}"#,
        r#"{"factory_gone":{"name":"f"}}"#,
        r#"{"voucher_key":{"name":"v","key":"00","group":"g"}}"#,
        r#"{"voucher_key_gone":{"name":"v"}}"#,
        r#"{"config":{"group":"g","config":{"interval":5}}}"#,
    ] {
        let fact: Fact = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(serde_json::to_string(&fact).unwrap(), text);
    }
}
