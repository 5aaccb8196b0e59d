//! The order of things when nothing goes wrong, and what is tried when something does. What may be killed or lost in between is in
//! `tests/tests/rotation.rs`, against the engine's own rules.

use std::time::Duration;

use device::id::DeviceId;
use device::time::{SECOND, Timestamp};

use super::*;

const DAY: i64 = 86_400 * SECOND;
const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

fn held(days: i64) -> Held {
    Held { not_before: NOW.plus(-DAY), not_after: NOW.plus(days * DAY) }
}

fn identity(kept: Kept, claim: bool, recovery: bool) -> Identity {
    Identity::new(DeviceId::new("a").unwrap(), kept, Means { claim, recovery })
}

fn with(days: i64) -> Kept {
    Kept { current: Some(held(days)), new: None }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn given() -> Event {
    Event::Answer(Answer::Given { chain: "c".into(), bundle: "b".into() })
}

fn keep() -> Effect {
    Effect::Keep { chain: "c".into(), bundle: "b".into() }
}

fn ended(way: Way, reached: bool) -> Event {
    Event::Ended { way, reached, expired: false }
}

#[test]
fn a_certificate_is_renewed_in_this_order() {
    for begin in [Event::Rotate, Event::Greeted { renew: true }, Event::Tick] {
        // The last one is due by the device's own clock.
        let mut kept = with(365);
        if begin == Event::Tick {
            kept.current = Some(Held { not_before: NOW.plus(-345 * DAY), not_after: NOW.plus(20 * DAY) });
        }
        let mut identity = identity(kept, false, false);
        assert_eq!(identity.way(at(0), NOW), Some(Way::Current));
        assert_eq!(identity.step(Event::Connected(Way::Current), at(0), NOW), []);
        let first = identity.step(Event::Greeted { renew: false }, at(0), NOW);
        match begin {
            Event::Tick => assert_eq!(first, [Effect::MakeKey]),
            begin => {
                assert_eq!(first, []);
                assert_eq!(identity.step(begin, at(0), NOW), [Effect::MakeKey]);
            }
        }
        kept.new = Some(None);
        assert_eq!(identity.step(Event::Kept(kept), at(0), NOW), [Effect::AskNext]);
        assert_eq!(identity.step(Event::Tick, at(9), NOW), []);
        assert_eq!(identity.step(Event::Tick, at(10), NOW), [Effect::AskNext], "no answer: asked again");
        assert_eq!(identity.step(given(), at(10), NOW), [keep()]);
        assert_eq!(identity.step(given(), at(10), NOW), [], "twice");
        kept.new = Some(Some(held(365)));
        assert_eq!(identity.step(Event::Kept(kept), at(10), NOW), [Effect::Reconnect]);
        assert_eq!(identity.step(ended(Way::Current, true), at(10), NOW), []);
        assert_eq!(identity.way(at(10), NOW), Some(Way::New));
        assert_eq!(identity.step(Event::Connected(Way::New), at(10), NOW), []);
        assert_eq!(identity.step(Event::Greeted { renew: false }, at(11), NOW), [Effect::Promote]);
        assert_eq!(identity.step(Event::Kept(with(365)), at(11), NOW), []);
        assert_eq!((identity.session(), identity.counts().promoted), (Some(Way::Current), 1));
        assert_eq!(identity.step(Event::Tick, at(99), NOW), [], "and that was it");
    }
}

#[test]
fn a_new_one_that_does_not_work_leaves_the_old_one_in_place() {
    let kept = Kept { new: Some(Some(held(365))), ..with(365) };
    let mut identity = identity(kept, false, false);
    assert_eq!(identity.way(at(0), NOW), Some(Way::New), "a restart in the middle");
    identity.step(ended(Way::New, false), at(0), NOW);
    assert_eq!(identity.way(at(0), NOW), Some(Way::New), "nobody there: that says nothing");
    identity.step(ended(Way::New, true), at(0), NOW);
    assert_eq!(identity.way(at(1), NOW), Some(Way::Current));
    identity.step(Event::Connected(Way::Current), at(1), NOW);
    assert_eq!(identity.step(Event::Greeted { renew: false }, at(1), NOW), [], "later");
    assert_eq!(identity.deadline(), Some(at(5)));
    assert_eq!(identity.step(Event::Tick, at(5), NOW), [Effect::AskNext], "it may have lapsed: asked for again");
    let refused = Event::Answer(Answer::Refused("too_many".into()));
    assert_eq!(identity.step(refused, at(5), NOW), []);
    assert_eq!(identity.deadline(), Some(at(15)), "and later still");
    assert_eq!(identity.step(Event::Tick, at(15), NOW), [Effect::AskNext]);
    let refused = Event::Answer(Answer::Refused("same_key".into()));
    assert_eq!(identity.step(refused, at(15), NOW), [Effect::Forget], "the one in use works, this never will");
}

#[test]
fn a_first_certificate_comes_by_the_claim() {
    let mut identity = identity(Kept::default(), true, false);
    assert_eq!(identity.way(at(0), NOW), Some(Way::Claim));
    assert_eq!(identity.step(Event::Connected(Way::Claim), at(0), NOW), [Effect::MakeKey]);
    let kept = Kept { current: None, new: Some(None) };
    assert_eq!(identity.step(Event::Kept(kept), at(0), NOW), [Effect::AskNonce]);
    let nonce = Event::Answer(Answer::Nonce(vec![1]));
    assert_eq!(identity.step(nonce, at(0), NOW), [Effect::AskFirst(vec![1])]);
    assert_eq!(identity.step(given(), at(0), NOW), [keep()]);
    let kept = Kept { current: None, new: Some(Some(held(365))) };
    assert_eq!(identity.step(Event::Kept(kept), at(0), NOW), [Effect::Reconnect]);
    assert_eq!(identity.step(ended(Way::Claim, true), at(0), NOW), []);
    assert_eq!(identity.way(at(0), NOW), Some(Way::New));
    let mut refused = identity;
    refused.step(ended(Way::New, true), at(0), NOW);
    assert_eq!(refused.way(at(0), NOW), Some(Way::Claim), "it asks again: the same key has the same certificate");
    assert_eq!(identity_without_anything().way(at(0), NOW), None);
}

fn identity_without_anything() -> Identity {
    identity(Kept::default(), false, true)
}

#[test]
fn one_that_has_expired_is_renewed_where_that_is_done() {
    let mut old = identity(with(-1), false, true);
    assert_eq!(old.way(at(0), NOW), Some(Way::Recovery));
    old.step(ended(Way::Recovery, false), at(0), NOW);
    assert_eq!(old.way(at(0), NOW), Some(Way::Current), "the clock may be wrong");
    old.step(ended(Way::Current, true), at(0), NOW);
    assert_eq!(old.way(at(0), NOW), Some(Way::Recovery));
    assert_eq!(old.step(Event::Connected(Way::Recovery), at(0), NOW), [Effect::MakeKey]);
    // A clock that is behind learns it from the engine.
    let mut behind = identity(with(9), false, true);
    behind.step(Event::Ended { way: Way::Current, reached: true, expired: true }, at(0), NOW);
    assert_eq!(behind.way(at(0), NOW), Some(Way::Recovery));
    let mut alone = identity(with(-1), false, false);
    alone.step(ended(Way::Current, true), at(0), NOW);
    assert_eq!(alone.way(at(0), NOW), Some(Way::Current), "nowhere else to go");
    // Used, then killed, then away for a year: the new one is the one that counts.
    let mut unnoted = identity(Kept { current: Some(held(-300)), new: Some(Some(held(-1))) }, false, true);
    unnoted.step(Event::Ended { way: Way::New, reached: true, expired: true }, at(0), NOW);
    assert_eq!(unnoted.way(at(0), NOW), Some(Way::RecoveryNew));
    assert_eq!(unnoted.step(Event::Connected(Way::RecoveryNew), at(5), NOW), [Effect::Promote]);
    assert_eq!(unnoted.step(Event::Kept(with(-1)), at(5), NOW), [Effect::MakeKey]);
    assert_eq!(unnoted.session(), Some(Way::Recovery));
}

#[test]
fn what_the_engine_says_unasked_is_followed_and_disturbs_nothing() {
    let mut identity = identity(with(365), false, false);
    let trust = Trust { bundle: "b".into(), id: "1".into() };
    identity.step(Event::Connected(Way::Current), at(0), NOW);
    assert_eq!(identity.step(Event::Due, at(0), NOW), [], "first the hello");
    assert_eq!(identity.step(Event::Greeted { renew: false }, at(0), NOW), [Effect::MakeKey]);
    assert_eq!(identity.step(Event::Trust(trust.clone()), at(0), NOW), [Effect::Trust(trust)]);
    let mut kept = with(365);
    kept.new = Some(None);
    assert_eq!(identity.step(Event::Kept(kept), at(1), NOW), [Effect::AskNext], "what was under way goes on");
    kept.new = Some(Some(held(365)));
    identity.step(given(), at(1), NOW);
    identity.step(Event::Kept(kept), at(1), NOW);
    identity.step(ended(Way::Current, true), at(1), NOW);
    identity.step(Event::Connected(Way::New), at(1), NOW);
    assert_eq!(identity.step(Event::Due, at(1), NOW), [], "the new one is not the one that is due");
    assert_eq!(identity.step(Event::Greeted { renew: false }, at(2), NOW), [Effect::Promote]);
    assert_eq!(identity.step(Event::Kept(with(365)), at(2), NOW), []);
}
