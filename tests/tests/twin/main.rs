//! Promise: a device that was away for a month ends where its twin does that was always there.
//!
//! Both have the same physical life (`life`): readings, wishes, changes on the device, a clock that is off, drifts and is set.
//! One is online throughout, the other away for 30 days, while 200 wishes come. When it is back and has told everything:
//!
//! - **Incidents are the same**: each transition by the same reading, at the same time of the event, of the same severity; where the
//!   clock is right also under the same id, else within what an estimate of 30 days can be off. That holds for rules without
//!   `no_data_after` whose times (`FOR`, `keep_firing_for`, `max_gap`) no clock error decides. Silence is a matter of the engine's time:
//!   only one of them was silent.
//! - **Nobody is paged for old trouble**: no page, *again*, *flapping* or *storm* about an incident that was over when it arrived;
//!   one that still goes on is told of.
//! - **Shadows are the same**, where the outcome does not depend on who was there when (`life::wishes` says where that is). Values
//!   whose time passed are gone and were never done; where both sides had changed a value there is one conflict, nowhere else.
//! - The device **applies final values only**, each version at most once.
//!
//! If it was switched off and on while away, its records are of two epochs, which are told side by side: incidents at the seam may be
//! cut in two (`Superseded`), those inside of each part are the same.
//!
//! `WEIR_CASES` says how many lives, `WEIR_SEED` repeats one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod edge_side;
mod life;
mod world;

use std::collections::BTreeSet;

use alerts::About;
use device::alert::{Event, State, Transition};
use device::shadow::shown;
use device::time::{SECOND, Timestamp};
use life::{HOUR, Life, MINUTE, What, value_at};
use serde_json::{Map, Value};
use world::{Said, World};

/// Rules that both twins have alike.
const ALIKE: [&str; 3] = ["hot", "long", "shaking"];

/// What of an incident changed by readings.
fn changes<'a>(world: &'a World, rule: &str) -> Vec<&'a Transition> {
    let by_reading = |event: Event| !matches!(event, Event::Told | Event::Surfaced);
    world.transitions.iter().filter(|t| &*t.rule == rule && by_reading(t.event)).collect()
}

fn same_incidents(here: &World, there: &World, life: &Life) {
    let is_right = life.clock.rate == 0;
    // What an estimate without a step can be off by in a month; with one, the rate of the clock is not told from one side to
    // the other.
    let most = if life.is_set { 2 * MINUTE } else { 3 * SECOND };
    let err = |world: &World, ts: Timestamp| world.errors.get(&ts.0).copied().unwrap();
    for rule in ALIKE {
        let (one, other) = (changes(here, rule), changes(there, rule));
        assert!(one.len() > 40, "{rule}: {} transitions", one.len());
        for (one, other) in one.iter().zip(&other) {
            let of = |t: &Transition| (t.event, t.from, t.to, t.severity.clone(), t.value, t.history);
            assert_eq!(of(one), of(other), "{rule}: {one:?} and {other:?}");
            for (one, other) in [(one.ts, other.ts), (one.since, other.since)] {
                let (apart, stated) = (one.since(other).abs(), err(here, one) + err(there, other));
                let close = if is_right { apart == 0 } else { apart <= stated.min(most) };
                assert!(close, "{rule}: {apart} ns apart, {stated} ns stated");
            }
            assert!(!is_right || one.incident == other.incident);
        }
        assert_eq!(one.len(), other.len(), "{rule}");
    }
}

/// Incidents that lie well inside of one of the two epochs, by the readings that open and close them.
fn same_incidents_inside(here: &World, there: &World, life: &Life) {
    let reboot = life.reboot.unwrap();
    // Where the first records of the two epochs cross over: some frames each.
    let margin = 64 * 8 * life.every;
    let spans = [(life.away + margin, reboot - HOUR), (reboot + margin, life.back - HOUR)];
    let mut compared = 0;
    for rule in ALIKE {
        let inside = |world: &World| -> BTreeSet<(i64, u64, u64, i64)> {
            let all = changes(world, rule);
            let mut found = BTreeSet::new();
            for fired in all.iter().filter(|t| t.event == Event::Fired) {
                let resolved = all.iter().filter(|t| t.event == Event::Resolved && t.incident == fired.incident);
                let Some(resolved) = resolved.filter(|t| t.ts >= fired.ts).min_by_key(|t| t.ts) else { continue };
                let within = |(from, to): &(i64, i64)| fired.since.0 > *from && resolved.ts.0 < *to;
                if spans.iter().any(within) {
                    let value = |t: &Transition| t.value.unwrap().to_bits();
                    let rounded = |at: i64| (at + 30 * SECOND).div_euclid(MINUTE);
                    found.insert((rounded(resolved.ts.0), value(fired), value(resolved), rounded(fired.ts.0)));
                }
            }
            found
        };
        let (one, other) = (inside(here), inside(there));
        let values = |all: &BTreeSet<(i64, u64, u64, i64)>| all.iter().map(|of| (of.1, of.2)).collect::<BTreeSet<_>>();
        assert_eq!(values(&one), values(&other), "{rule}");
        compared += one.len();
    }
    assert!(compared > 20, "{compared} incidents inside");
}

/// When an incident ended, by the time of the event; `None`: it goes on.
fn ended(world: &World, incident: &str) -> Option<i64> {
    let mut all = world.transitions.iter().filter(|t| t.incident.to_string() == incident);
    let last = all.rfind(|t| t.event == Event::Fired || t.to == State::Ok)?;
    (last.to == State::Ok).then_some(last.ts.0)
}

fn pages(said: &Said) -> bool {
    matches!(said.about, About::Page | About::Again | About::Flapping | About::Storm)
}

fn no_page_for_old_trouble(world: &World, life: &Life) {
    // Within the error of its clock.
    let before = life.back - MINUTE;
    for said in world.said.iter().filter(|said| said.at >= life.back && pages(said)) {
        let over = ended(world, &said.incident);
        assert!(over.is_none_or(|over| over > before), "{said:?} was over {:?} ns before", over.map(|o| life.back - o));
    }
    // While it was away there was one thing to tell: that it is silent.
    let away = |said: &&Said| (life.away + 2 * HOUR..life.back).contains(&said.at);
    let told: Vec<&Said> = world.said.iter().filter(away).collect();
    assert!(told.is_empty(), "{told:?}");
}

/// What goes on when it is back, people know of.
fn told_of_what_goes_on(world: &World) {
    let open: BTreeSet<String> = world
        .transitions
        .iter()
        .filter(|t| ALIKE.contains(&&*t.rule) && t.event == Event::Fired && !t.history)
        .map(|t| t.incident.to_string())
        .filter(|incident| ended(world, incident).is_none())
        .collect();
    for incident in open {
        let last = world.said.iter().rfind(|said| said.incident == incident && said.about != About::Flapping);
        assert!(last.is_some_and(|last| last.about != About::Resolved), "{incident} goes on, and was told {last:?}");
    }
}

fn sorted(mut object: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Array(tags)) = object.get_mut("tags") {
        tags.sort_by_key(Value::as_u64);
    }
    object
}

fn same_shadows(here: &World, there: &World) {
    for shadow in ["main", "net"] {
        let (one, other) = (here.view(shadow).unwrap(), there.view(shadow).unwrap());
        assert_eq!(sorted(one.desired.clone()), sorted(other.desired), "{shadow}: desired");
        assert!(!one.desired.contains_key("valve"), "its time is over");
        // A valve that was there did what it was told in time.
        let without = |mut reported: Map<String, Value>| {
            reported.remove("valve");
            sorted(reported)
        };
        assert_eq!(without(one.reported), without(other.reported.clone()), "{shadow}: reported");
        assert_eq!(one.open, other.open, "{shadow}: in dispute");
        assert_eq!((one.delta.len(), other.delta.len()), (0, 0), "{shadow}");
        for world in [here, there] {
            let view = world.view(shadow).unwrap();
            assert_eq!(Value::Object(world.edge.values(shadow)), Value::Object(view.reported), "{shadow}: the device");
            assert_eq!(view.applied_dv, view.dv, "{shadow}");
        }
    }
}

/// Paths where both sides have changed a value that the device still had when it left.
fn disputed(world: &World, life: &Life) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for (at, what) in &life.events {
        let What::Local(shadow, path, _) = what else { continue };
        if *at < life.away || *at > life.back {
            continue;
        }
        let applied = world.edge.twin.shadows().get(*shadow).map_or(0, |held| held.applied_dv);
        let base = world.desired_at(shadow, applied);
        let theirs = world.view(shadow).unwrap().desired;
        let ours = world.edge.values(shadow);
        let at = |object: &Map<String, Value>| value_at(object, path).cloned();
        if at(&base) != at(&theirs) && at(&theirs) != at(&ours) && at(&theirs).or(at(&base)).is_some() {
            paths.insert((*path).to_owned());
        }
    }
    paths
}

fn live(seed: u64, restarts: bool) {
    let life = Life::new(seed, restarts);
    let (mut here, mut there) = (World::new(&life, seed, false), World::new(&life, seed, true));
    let (wakes, settled) = (life.back - 1, life.back + 3 * HOUR);
    here.run(&life, settled);
    there.run(&life, wakes);
    let (conflicts, disputed) = (there.conflicts.len(), disputed(&there, &life));
    there.edge.applied.clear();
    there.run(&life, settled);

    for world in [&here, &there] {
        assert!(world.edge.is_drained());
    }
    assert_eq!(here.records, there.records);
    if restarts {
        same_incidents_inside(&here, &there, &life);
    } else {
        same_incidents(&here, &there, &life);
    }
    no_page_for_old_trouble(&there, &life);
    told_of_what_goes_on(&there);
    same_shadows(&here, &there);
    let reported: Vec<String> = there.conflicts[conflicts..].iter().map(|conflict| shown(&conflict.path)).collect();
    assert_eq!(reported.iter().cloned().collect::<BTreeSet<_>>(), disputed, "conflicts");
    assert_eq!(reported.len(), disputed.len(), "each once");
    assert!(there.expired > 0 && here.expired > 0);
    let mut versions = BTreeSet::new();
    for (shadow, dv, delta) in &there.edge.applied {
        assert!(versions.insert((shadow.clone(), *dv)), "{shadow} {dv} is applied twice");
        let last = there.view(shadow).unwrap().desired;
        let (mut one, other) = (last.clone(), &last);
        device::shadow::merge_plain(&mut one, delta);
        assert_eq!(sorted(one), sorted(other.clone()), "{shadow} {dv}: not the last of it: {delta:?}");
    }
    assert!(!versions.is_empty());

    // And they go on as one.
    let end = life.events.last().unwrap().0;
    here.run(&life, end);
    there.run(&life, end);
    same_shadows(&here, &there);
    if !restarts {
        same_incidents(&here, &there, &life);
    }
    told_of_what_goes_on(&there);
}

fn all(cases: u64, restarts: bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (from, cases) = match number("WEIR_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("WEIR_CASES").unwrap_or(cases)),
    };
    for seed in from..from + cases {
        let run = std::panic::catch_unwind(|| live(seed, restarts));
        assert!(run.is_ok(), "seed {seed}: WEIR_SEED={seed} repeats it");
    }
}

#[test]
fn a_device_that_was_away_ends_where_its_twin_does() {
    all(4, false);
}

#[test]
fn also_when_it_was_switched_off_and_on_meanwhile() {
    all(2, true);
}
