//! The clocks that fields are full of, one after the other: how many rows keep what is promised of them.

use super::world::{BEGIN, MS, World};
use super::*;

const MINUTE: i64 = 60 * SECOND;

/// One record a second, a frame every ten, for so many minutes.
fn run(world: &mut World, minutes: i64) {
    let end = world.now + minutes * MINUTE;
    while world.now < end {
        for _ in 0..10 {
            world.record();
            world.now += SECOND;
        }
        world.send();
        world.settle(1);
    }
}

/// Offline: one record a minute.
fn away(world: &mut World, minutes: i64) {
    for _ in 0..minutes {
        world.record();
        world.now += MINUTE;
    }
}

fn told(world: &mut World, name: &str) -> usize {
    world.rest();
    let (holds, unknown) = world.verdict();
    let mut qualities = [0; 5];
    world.rows.iter().for_each(|row| qualities[usize::from(row.stamp.quality)] += 1);
    let mut errs: Vec<i64> = world.rows.iter().filter_map(|row| row.stamp.clock_err_ns).collect();
    errs.sort_unstable();
    let of = |percent: usize| errs.get(errs.len() * percent / 100).map_or(0, |err| err / MS);
    let rows = world.rows.len();
    println!(
        "{name}: {rows} rows, {holds} ‰ within their error (half of these are up to {} ms, 99 % up to {} ms), {unknown} \
         unknown; by quality {qualities:?}",
        of(50),
        of(99)
    );
    assert!(holds >= 990, "{name}: {holds} ‰");
    unknown
}

fn kinds(world: &World) -> Vec<&'static str> {
    world.notes.iter().flat_map(|(note, _)| &note.changes).map(|change| change.kind.as_str()).collect()
}

#[test]
fn a_clock_that_starts_in_1970() {
    let mut world = World::new(1);
    world.set(0);
    run(&mut world, 30);
    let unknown = told(&mut world, "1970");
    // The first frame cannot tell what its answer will measure.
    assert!(unknown <= 10, "{unknown} rows of unknown time");
    assert_eq!(world.rows.iter().filter(|row| row.stamp.quality == ANCHORED).count() + unknown, world.rows.len());
    assert_eq!(kinds(&world)[..2], ["synced", "drift"]);
}

#[test]
fn a_clock_in_2100() {
    let mut world = World::new(2);
    world.set(4_102_444_800 * SECOND);
    run(&mut world, 30);
    assert!(told(&mut world, "2100") <= 10);
    assert!(world.rows.iter().all(|row| row.stamp.ts.0 <= row.received + AHEAD));
}

#[test]
fn a_clock_in_2100_that_measures_nothing() {
    let mut world = World::new(3);
    (world.measures, world.has_mono) = (false, false);
    world.set(4_102_444_800 * SECOND);
    run(&mut world, 30);
    // Until there are enough one-way times.
    assert!(told(&mut world, "2100, not measured") <= 60);
}

#[test]
fn a_clock_that_runs_300_ppm_too_fast() {
    let mut world = World::new(4);
    world.ppm = 300;
    run(&mut world, 60);
    // Two days away: 52 s.
    away(&mut world, 2 * 24 * 60);
    run(&mut world, 30);
    assert_eq!(told(&mut world, "300 ppm, two days away"), 0);
    assert!(kinds(&world).contains(&"drift"));
    let rate = world.known.as_ref().and_then(|clocks| clocks.list.last()?.rate).expect("a rate");
    assert!((rate.value + 300_000).abs() < 5_000, "{rate:?}");
    let between = world.rows.iter().filter(|row| row.stamp.quality == INTERPOLATED).count();
    assert!(between > 2800, "{between} rows are between two sync points");
}

#[test]
fn a_clock_that_is_set_back_by_an_hour() {
    let mut world = World::new(5);
    world.ppm = 30;
    run(&mut world, 20);
    // Some records under the old clock, sent when it is another one.
    away(&mut world, 5);
    world.set(world.wall() - 3600 * SECOND);
    away(&mut world, 5);
    run(&mut world, 20);
    assert_eq!(told(&mut world, "set back by an hour"), 0);
    assert!(kinds(&world).contains(&"ended"));
    assert_eq!(world.known.as_ref().map(|clocks| clocks.list.len()), Some(2));
}

#[test]
fn a_real_time_clock_without_a_battery() {
    let mut world = World::new(6);
    (world.dead_rtc, world.ppm) = (true, -40);
    let mut lost = 0;
    for boot in 0..4 {
        world.reboot();
        // It records before it is online; then somebody sets the clock, which is right from there on.
        away(&mut world, 60);
        if boot % 2 == 1 {
            world.set(world.now + 300 * MS);
            away(&mut world, 10);
        }
        run(&mut world, 10);
        // These are made and not sent before the device loses its power.
        away(&mut world, 3);
        lost += 3;
    }
    run(&mut world, 10);
    let unknown = told(&mut world, "no battery");
    assert!(unknown <= lost + 61 * 4, "{unknown} rows of unknown time");
}

#[test]
fn plain_clients_are_corrected_only_where_they_are_ahead() {
    let mut known: Option<Clocks> = None;
    let mut told = Vec::new();
    for n in 0..60 {
        let received = Timestamp(BEGIN + n * 5 * SECOND);
        // An hour ahead, and 10 to 90 ms on the way.
        let ts = received.plus(3600 * SECOND - (10 + n * 37 % 80) * MS);
        let (note, next) = Clocks::plain(known.as_ref(), ts, received).expect("a note");
        known = next.or(known);
        told.push((note.stamp(Some(ts), received), received));
    }
    let (early, late) = told.split_at(10);
    assert!(early.iter().take(6).all(|(stamp, received)| (stamp.ts, stamp.quality) == (*received, UNKNOWN)));
    assert!(late.iter().all(|(stamp, received)| {
        stamp.quality != UNKNOWN && (stamp.ts.0 - received.0).abs() < 200 * MS && stamp.clock_err_ns >= Some(500 * MS)
    }));
    // It is set right: nothing is added any more, at once.
    let received = Timestamp(BEGIN + 400 * SECOND);
    let ts = received.plus(-20 * MS);
    let (note, next) = Clocks::plain(known.as_ref(), ts, received).expect("a note");
    assert_eq!((note.stamp(Some(ts), received).ts, next), (ts, None));
    // One that is behind may be late as well: it is left alone.
    assert_eq!(Clocks::plain(None, received.plus(-3600 * SECOND), received), None);
}

#[test]
fn a_device_that_says_it_does_not_know_the_time_is_believed() {
    let frame = Frame {
        wall: Timestamp(BEGIN),
        base: Timestamp(BEGIN - SECOND),
        span: (Timestamp(BEGIN - SECOND), Timestamp(BEGIN)),
        flags: 2,
        ..Frame::default()
    };
    let received = Timestamp(BEGIN + MS);
    let (note, _) = Clocks::frame(None, &frame, received).expect("a note");
    assert_eq!(note.stamp(Some(frame.base), received), Stamp { ts: received, clock_err_ns: None, quality: UNKNOWN });
    // Measured, its clock is as good as another.
    let frame = Frame { sample: Some((5 * SECOND, 2 * MS as u64)), ..frame };
    let (note, _) = Clocks::frame(None, &frame, received.plus(5 * SECOND)).expect("a note");
    assert_eq!(note.stamp(Some(frame.base), received.plus(5 * SECOND)).ts, Timestamp(BEGIN + 4 * SECOND));
}

#[test]
fn a_rate_that_no_clock_has_is_rejected() {
    let mut world = World::new(7);
    world.ppm = 2_000;
    run(&mut world, 20);
    world.rest();
    assert!(kinds(&world).contains(&"rate_rejected"), "{:?}", kinds(&world));
    assert!(world.known.is_some_and(|clocks| clocks.list.iter().all(|clock| clock.rate.is_none())));
}

#[test]
fn drift_is_raised_once_and_cleared_below_half() {
    let mut world = World::new(8);
    world.set(world.now - 6 * SECOND);
    run(&mut world, 2);
    // Between half and whole: neither raised nor cleared.
    world.set(world.now - 4 * SECOND);
    run(&mut world, 2);
    world.set(world.now - 2 * SECOND);
    run(&mut world, 2);
    world.set(world.now - 4 * SECOND);
    run(&mut world, 2);
    let drift: Vec<_> = kinds(&world).into_iter().filter(|kind| kind.starts_with("drift")).collect();
    assert_eq!(drift, ["drift", "drift_cleared"]);
}

#[test]
fn times_at_the_ends_of_their_range_break_nothing() {
    let ends = [i64::MIN, i64::MIN + 1, -1, 0, 1, BEGIN, i64::MAX - 1, i64::MAX];
    let mut known: Option<Clocks> = None;
    let mut random = super::world::Random(9);
    for _ in 0..20_000 {
        let mut end = || ends[(random.next() % 8) as usize];
        let (wall, base, received) = (Timestamp(end()), Timestamp(end()), Timestamp(end()));
        let frame = Frame {
            wall,
            base,
            mono: (end() > 0).then_some(end() as u64),
            mono_base: (end() > 0).then_some(end() as u64),
            flags: end() as u32 & 3,
            sample: (end() > 0).then_some((end(), end() as u64)),
            span: (base.min(wall), base.max(wall)),
        };
        if let Some((note, next)) = Clocks::frame(known.as_ref(), &frame, received) {
            for ts in ends {
                let stamp = note.stamp(Some(Timestamp(ts)), received);
                assert!(stamp.quality == UNKNOWN || stamp.ts >= EARLIEST);
            }
            known = next.or(known);
        }
        if let Some((_, next)) = Clocks::plain(known.as_ref(), wall, received) {
            known = next.or(known);
        }
    }
}
