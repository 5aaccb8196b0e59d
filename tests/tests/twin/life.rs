//! The physical life that both twins have: what the sensor reads, what people and the engine want of the device, and what its
//! clock does. A function of the seed alone.

use device::time::SECOND;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// 2026-11-01T00:00:00Z
pub(crate) const START: i64 = 1_793_491_200 * SECOND;
pub(crate) const MINUTE: i64 = 60 * SECOND;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;

/// Edits of what is desired while the one twin is away.
pub(crate) const EDITS: usize = 200;

/// What happens at a time.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// A reading of temperature and vibration.
    Sample(f64, f64),
    /// Somebody wants something: shadow, path, how, for how long.
    Edit(&'static str, &'static str, Edit, Option<i64>),
    /// Somebody changes something on the device itself.
    Local(&'static str, &'static str, Edit),
    /// The wall clock is set by so much.
    Step(i64),
    /// The device starts again.
    Reboot,
    /// The connection breaks, and stands again at once.
    Cut,
    /// The one twin goes, and comes back.
    Away,
    Back,
}

/// A new value.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    Set(Value),
    /// One more element of a set.
    Add(u64),
}

impl Edit {
    /// The value, where there was another.
    pub(crate) fn value(&self, before: Option<&Value>) -> Value {
        match self {
            Self::Set(value) => value.clone(),
            Self::Add(element) => {
                let mut all = before.and_then(Value::as_array).cloned().unwrap_or_default();
                all.push(json!(element));
                Value::Array(all)
            }
        }
    }
}

/// The clock of the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Ahead of the truth at the begin.
    pub(crate) offset: i64,
    /// Parts per billion too fast.
    pub(crate) rate: i64,
}

#[derive(Debug)]
pub(crate) struct Life {
    /// Between two readings.
    pub(crate) every: i64,
    pub(crate) clock: Clock,
    /// Is set while it is away.
    pub(crate) is_set: bool,
    pub(crate) reboot: Option<i64>,
    pub(crate) away: i64,
    pub(crate) back: i64,
    /// In the order of time; no two but readings are closer than a minute.
    pub(crate) events: Vec<(i64, What)>,
}

/// Regimes of a reading: where the bands of the rules lie.
fn reading(random: &mut SmallRng, regime: u32, n: usize, (low, high): (f64, f64)) -> f64 {
    let within = |random: &mut SmallRng, from: f64, to: f64| from + (to - from) * random.random_range(0.0..1.0);
    // Below the dead-band, in it, above the first bound, above the second. The last digits name the reading.
    let value = match regime {
        0 => within(random, low * 0.4, low * 0.9),
        1 => within(random, low, low + (high - low) * 0.2),
        2 => within(random, low + (high - low) * 0.3, high * 0.99),
        _ => within(random, high * 1.01, high * 1.2),
    };
    (value * 1000.0).round() / 1000.0 + n as f64 * 1e-9
}

fn readings(random: &mut SmallRng, count: usize, bands: (f64, f64)) -> Vec<f64> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let regime = match random.random_range(0..10) {
            0..5 => 0,
            5..7 => 1,
            7..9 => 2,
            _ => 3,
        };
        let lasts = if regime == 0 { random.random_range(1..60) } else { random.random_range(1..14) };
        for _ in 0..lasts {
            all.push(reading(random, regime, all.len(), bands));
        }
    }
    all.truncate(count);
    all
}

impl Life {
    pub(crate) fn new(seed: u64, restarts: bool) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let random = &mut random;
        let every = [10, 12, 15][random.random_range(0..3)] * MINUTE;
        let away = START + 3 * DAY + random.random_range(0..24) * HOUR + 7 * MINUTE;
        let back = away + 30 * DAY + 3 * MINUTE;
        let end = back + 2 * DAY;
        let clock = match random.random_range(0..3) {
            // Whether a clock that is off went on alike through a restart cannot be told: its records say how far off they may be.
            _ if restarts => Clock { offset: 0, rate: 0 },
            0 => Clock { offset: 0, rate: 0 },
            _ => Clock {
                offset: [-3600, 5400, -86_400 * 200, 20][random.random_range(0..4)] * SECOND,
                rate: random.random_range(-60_000..60_000),
            },
        };
        let is_set = clock.rate != 0 && random.random_range(0..2) == 0;
        let mut events = Vec::new();
        let count = ((end - START) / every) as usize;
        let (hot, shaking) = (readings(random, count, (75.0, 95.0)), readings(random, count, (4.0, 6.0)));
        for (n, (hot, shaking)) in hot.into_iter().zip(shaking).enumerate() {
            events.push((START + HOUR + n as i64 * every, What::Sample(hot, shaking)));
        }
        // Everything else stands on minutes of its own, half a minute away from readings.
        let mut others = wishes(random, away, back);
        for _ in 0..10 {
            others.push((random.random_range(START + 2 * HOUR..back - HOUR), What::Cut));
        }
        if is_set {
            let by = [-2 * HOUR, 3 * HOUR, 40 * SECOND][random.random_range(0..3)];
            others.push((random.random_range(away + DAY..back - DAY), What::Step(by)));
        }
        let reboot = restarts.then(|| random.random_range(away + 12 * DAY..back - 12 * DAY));
        others.extend(reboot.map(|at| (at, What::Reboot)));
        others.sort_by_key(|(at, _)| *at);
        let mut last = 0;
        for (at, _) in &mut others {
            *at = (*at).max(last + MINUTE);
            *at = *at - at.rem_euclid(MINUTE) + MINUTE / 2;
            last = *at;
        }
        events.extend(others);
        events.extend([(away, What::Away), (back, What::Back)]);
        events.sort_by_key(|(at, _)| *at);
        Self { every, clock, is_set, reboot, away, back, events }
    }
}

/// Values that are wanted and that are set on the device. What makes the outcome the same for both twins, whoever was there:
///
/// - `server`, `lww`: nothing; the last wish, or the last change of all, counts.
/// - `device`, `manual`: the last change is one on the device. (A wish that comes after a change on the device is obeyed by a
///   device that is there; one that is away has its own change win, or keeps it in dispute.)
/// - `max`, `min`, `union`: values only rise, fall, grow. (Of several changes while it is away only the last is told.)
/// - with a TTL: where it passes while the one is away, the other did it in time; what was reported of it differs.
fn wishes(random: &mut SmallRng, away: i64, back: i64) -> Vec<(i64, What)> {
    const SERVER: [(&str, &str); 3] = [("main", "interval"), ("main", "mode.name"), ("net", "host.port")];
    const LATER: [(&str, &str); 2] = [("main", "limits.high"), ("net", "mtu")];
    let mut all = Vec::new();
    let set = |value: i64| Edit::Set(json!(value));
    // All is wanted once before, and each value is another.
    let first = START + 3 * HOUR;
    let singles = [("main", "knob"), ("main", "gain"), ("main", "peak"), ("main", "floor"), ("main", "valve")];
    for (n, (shadow, path)) in SERVER.iter().chain(&LATER).chain(&singles).enumerate() {
        let value = if *path == "floor" { 1_000_000 } else { n as i64 };
        all.push((first + n as i64 * 2 * MINUTE, What::Edit(shadow, path, set(value), None)));
    }
    all.push((first + 40 * MINUTE, What::Edit("main", "tags", Edit::Add(1), None)));
    // The last of each kind comes in the last days, apart from each other.
    let (from, until) = (away + HOUR, back - 4 * DAY);
    let edits = EDITS - SERVER.len();
    let mut times: Vec<i64> = (0..edits + 60).map(|_| random.random_range(from..until)).collect();
    times.sort_unstable();
    for (n, at) in times.into_iter().enumerate() {
        let value = 1000 + n as i64;
        // Sixty of them on the device.
        let local = n * 60 / (edits + 60) != (n + 1) * 60 / (edits + 60);
        let of = |all: &[(&'static str, &'static str)], random: &mut SmallRng| all[random.random_range(0..all.len())];
        let ttl = (random.random_range(0..4) == 0).then(|| random.random_range(1..72) * HOUR);
        let what = match (random.random_range(0..8), local) {
            (0..3, false) => {
                let (shadow, path) = of(&SERVER, random);
                What::Edit(shadow, path, set(value), ttl)
            }
            (3, false) => What::Edit("main", "valve", set(value), Some(random.random_range(1..72) * HOUR)),
            (4, false) => {
                let (shadow, path) = of(&LATER, random);
                What::Edit(shadow, path, set(value), None)
            }
            (5, false) => What::Edit("main", ["knob", "gain"][random.random_range(0..2)], set(value), None),
            (6, false) if value % 2 == 0 => What::Edit("main", "peak", set(value), None),
            (6, false) => What::Edit("main", "floor", set(1_000_000 - value), None),
            (_, false) => What::Edit("main", "tags", Edit::Add(value as u64), None),
            (0..2, true) => {
                let (shadow, path) = of(&SERVER, random);
                What::Local(shadow, path, set(value))
            }
            (2..4, true) => {
                let (shadow, path) = of(&LATER, random);
                What::Local(shadow, path, set(value))
            }
            (4, true) => What::Local("main", ["knob", "gain"][random.random_range(0..2)], set(value)),
            (5, true) => What::Local("main", "peak", set(value)),
            (6, true) => What::Local("main", "floor", set(1_000_000 - value)),
            (_, true) => What::Local("main", "tags", Edit::Add(value as u64)),
        };
        all.push((at, what));
    }
    let mut last = until + 6 * HOUR;
    for (n, (shadow, path)) in SERVER.iter().enumerate() {
        all.push((last + n as i64 * HOUR, What::Edit(shadow, path, set(5000 + n as i64), None)));
    }
    last += 12 * HOUR;
    all.push((last, What::Local("main", "knob", set(6000))));
    all.push((last + HOUR, What::Local("main", "gain", set(6001))));
    // Whichever side comes last, by hours.
    for (n, (shadow, path)) in LATER.iter().enumerate() {
        let at = last + (2 + n as i64) * 6 * HOUR;
        all.push(match random.random_range(0..2) {
            0 => (at, What::Local(shadow, path, set(7000 + n as i64))),
            _ => (at, What::Edit(shadow, path, set(7000 + n as i64), None)),
        });
    }
    all
}

/// A merge patch that sets one value.
pub(crate) fn patch(path: &str, value: Value) -> Map<String, Value> {
    let value = path.rsplit('.').fold(value, |value, name| json!({ name: value }));
    value.as_object().cloned().unwrap_or_default()
}

/// The value at a path.
pub(crate) fn value_at<'a>(object: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let value = object.get(first)?;
    match rest {
        None => Some(value),
        Some(rest) => value_at(value.as_object()?, rest),
    }
}
