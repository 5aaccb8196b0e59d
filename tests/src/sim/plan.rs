//! When what goes wrong: all of it is decided before a world begins.

use device::time::SECOND;

use super::params::{Fault, Params};
use super::random::Random;
use super::world::Event;

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;

/// Events and how long after a moment they happen, in milliseconds.
type Timed = Vec<(i64, Event)>;

/// The events of a world, with their times in milliseconds.
pub(super) fn events(params: &Params) -> Vec<(i64, Event)> {
    let end = params.seconds as i64 * 1000;
    let mut events = vec![(end, Event::Calm)];
    let devices = params.devices;
    for at in 0..devices as usize {
        let mut random = Random::named(params.seed, &format!("records {at}"));
        events.push((random.below(500) as i64, Event::Boot(at)));
        // Some devices record evenly, some in bursts.
        let bursts = random.chance(400);
        let mut when = 0;
        for number in 0..params.records {
            if !bursts || number % 20 == 0 {
                when = random.below(end as u64) as i64;
            }
            events.push((when, Event::Record(at)));
        }
    }
    // A long world has as much trouble on each of its days as a short one in all, and is looked at once a day.
    let days = (end / DAY).max(1) as u64;
    events.extend((1..=end / DAY).map(|day| (day * DAY - 1, Event::Look)));
    let mut some = |fault: Fault, most: u64, make: &mut dyn FnMut(&mut Random, usize) -> Timed| {
        let mut random = Random::named(params.seed, &format!("{fault:?}"));
        let count = random.between(1, most) * days;
        let has = params.has(fault);
        for _ in 0..count {
            let when = random.below(end as u64) as i64;
            let device = random.below(devices) as usize;
            let made = make(&mut random, device);
            if has && devices > 0 {
                events.extend(made.into_iter().map(|(after, event)| (when + after, event)));
            }
        }
    };
    some(Fault::Cut, 12, &mut |_, at| vec![(0, Event::Cut(at))]);
    some(Fault::HalfOpen, 5, &mut |random, at| vec![(0, Event::HalfOpen(at, random.between(500, 12_000) as i64))]);
    some(Fault::Partition, 2, &mut |random, _| {
        vec![(0, Event::Partition(true)), (random.between(500, 20_000) as i64, Event::Partition(false))]
    });
    some(Fault::Full, 2, &mut |random, _| {
        vec![(0, Event::Full(true)), (random.between(100, 8_000) as i64, Event::Full(false))]
    });
    some(Fault::Kill, 5, &mut |_, _| vec![(0, Event::Kill)]);
    some(Fault::Device, 6, &mut |_, at| vec![(0, Event::Crash(at))]);
    some(Fault::Media, 4, &mut |random, at| {
        let rate = random.between(20, 400);
        vec![(0, Event::Media(at, rate)), (random.between(100, 8_000) as i64, Event::Media(at, 0))]
    });
    some(Fault::Clock, 6, &mut |random, at| {
        let skew = (random.between(0, 8_000) as i64 - 4_000) * SECOND / 1000;
        if random.chance(500) { vec![(0, Event::Clock(at))] } else { vec![(0, Event::Skew(skew))] }
    });
    some(Fault::Garbage, 4, &mut |_, at| vec![(0, Event::Garbage(at))]);
    // Nothing wrong with these, so every world has them.
    let mut random = Random::named(params.seed, "barriers asked for");
    for _ in 0..random.below(6) {
        events.push((random.below(end as u64) as i64, Event::Barrier(random.chance(500))));
    }
    events
}
