//! Clocks against worlds in which the true time is known.

use super::*;

mod scenarios;
mod world;

use world::{BEGIN, MS, Row, World};

const NOW: Timestamp = Timestamp(1_750_000_000 * SECOND);

fn check(ts: Option<i64>, measured: Option<(i64, u64)>, expected: (i64, Option<i64>, u8)) {
    let got = stamp(ts.map(|ts| NOW.plus(ts)), NOW, measured);
    assert_eq!((got.ts.since(NOW), got.clock_err_ns, got.quality), expected, "{ts:?} {measured:?}");
}

#[test]
fn the_device_is_believed_within_reason() {
    check(None, None, (0, None, UNKNOWN));
    check(Some(-7 * 86_400 * SECOND), None, (-7 * 86_400 * SECOND, Some(UNKNOWN_ERROR), SYNCED));
    check(Some(5 * SECOND), None, (5 * SECOND, Some(UNKNOWN_ERROR), SYNCED));
    check(Some(5 * SECOND + 1), None, (0, None, UNKNOWN));
    check(Some(-NOW.0), None, (0, None, UNKNOWN));
    check(Some(EARLIEST.0 - NOW.0), None, (EARLIEST.0 - NOW.0, Some(UNKNOWN_ERROR), SYNCED));
    check(Some(EARLIEST.0 - NOW.0 - 1), None, (0, None, UNKNOWN));
    check(Some(i64::MAX - NOW.0), Some((i64::MAX, 0)), (0, None, UNKNOWN));
}

#[test]
fn a_measured_offset_is_applied_where_it_says_more_than_its_error() {
    check(Some(-SECOND), Some((50 * MS, 0)), (-SECOND, Some(0), SYNCED));
    check(Some(-SECOND), Some((51 * MS, 20 * MS as u64)), (-949 * MS, Some(10 * MS), SYNCED));
    check(Some(-SECOND), Some((-51 * MS, 20 * MS as u64)), (-1051 * MS, Some(10 * MS), SYNCED));
    check(Some(-SECOND), Some((90 * MS, 60 * MS as u64)), (-SECOND, Some(30 * MS), SYNCED));
    check(Some(-SECOND), Some((7 * SECOND, 0)), (0, None, UNKNOWN));
    check(Some(-SECOND), Some((i64::MIN, u64::MAX)), (-SECOND, Some(i64::MAX), SYNCED));
}

/// A history at random: time passes, records are made and sent, the clock is set, the device starts again.
fn history(seed: u64) -> World {
    let mut world = World::new(seed);
    let random = &mut world.random;
    world.ppm = random.between(-400, 400);
    (world.dead_rtc, world.has_mono, world.measures) = (random.chance(30), random.chance(80), random.chance(85));
    world.longest = random.spread(2 * MS, 2 * SECOND);
    let begin = BEGIN + random.between(-20, 20) * random.spread(MS, 3600 * SECOND);
    world.set(begin);
    if world.dead_rtc {
        world.reboot();
    }
    for _ in 0..world.random.between(3, 24) {
        let pause = world.random.spread(100 * MS, 7200 * SECOND);
        world.now += if world.random.chance(1) { pause * 20 } else { pause };
        for _ in 0..world.random.between(0, 3) {
            world.record();
            world.now += world.random.between(0, SECOND);
        }
        match world.random.between(0, 99) {
            0..60 => world.send(),
            60..64 => {
                let by = world.random.spread(600 * MS, 3600 * SECOND);
                let by = if world.random.chance(50) { by } else { -by };
                world.set(world.wall() + by);
            }
            // Somebody sets it right, if it is off by what counts as a step.
            64..67 if (world.wall() - world.now).abs() >= 600 * MS => world.set(world.now),
            67..71 => world.reboot(),
            _ => {}
        }
        let settled = world.random.between(0, 3) as usize;
        world.settle(settled);
    }
    world.send();
    world.rest();
    world
}

/// What has to be true of every row, whatever the device is.
fn lawful(world: &World, seed: u64) {
    for row in &world.rows {
        let Stamp { ts, clock_err_ns, quality } = row.stamp;
        assert!(ts >= EARLIEST && ts.0 <= row.received + AHEAD, "seed {seed}: {row:?}");
        assert_eq!(clock_err_ns.is_none(), quality == UNKNOWN, "seed {seed}: {row:?}");
        assert!(quality != UNKNOWN || ts.0 == row.received, "seed {seed}: {row:?}");
        // What a device with both clocks measures is good for all records of the same boot.
        if let (true, true, Some(roundtrip)) = (world.has_mono, row.same_boot, row.roundtrip) {
            let age = row.received - row.oldest;
            // Where the offset is not applied, it is a part of the error: up to three times what it was.
            let room = 4 * (roundtrip / 2 + age / 1000 + 500 * MS);
            let err = clock_err_ns.unwrap_or(i64::MAX);
            if err > room {
                tell(world, row);
            }
            assert!(err <= room, "seed {seed}: known within {room}: {row:?}");
        }
    }
}

/// What led to a row.
fn tell(world: &World, row: &Row) {
    for (note, at) in world.notes.iter().filter(|(_, at)| *at <= row.received) {
        println!("{at} {note:?}");
    }
    println!("{} ppm, without battery: {}", world.ppm, world.dead_rtc);
}

/// `WEIR_CASES` histories, from the seed `WEIR_SEED` on.
#[test]
fn the_true_time_lies_within_the_stated_error() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (first, cases) = (number("WEIR_SEED", 1), number("WEIR_CASES", 20_000));
    // By whether the device has a monotonic clock and measures: rows, those that hold, those of unknown time.
    let mut counts = [[0usize; 3]; 4];
    let (mut sure, mut unsure) = (0, 0);
    for seed in first..first + cases {
        let world = std::panic::catch_unwind(|| history(seed)).unwrap_or_else(|_| panic!("seed {seed} fails"));
        lawful(&world, seed);
        let of = &mut counts[usize::from(world.has_mono) * 2 + usize::from(world.measures)];
        of[0] += world.rows.len();
        of[1] += world.rows.iter().filter(|row| row.holds()).count();
        of[2] += world.rows.iter().filter(|row| row.stamp.quality == UNKNOWN).count();
        // Steps that cancel each other out between two messages are not seen.
        if world.has_mono && world.measures {
            let told = |row: &&Row| row.roundtrip.is_some() && row.same_boot;
            sure += world.rows.iter().filter(told).count();
            let bad: Vec<&Row> = world.rows.iter().filter(told).filter(|row| !row.holds()).collect();
            if let Some(first) = bad.first().filter(|_| cases == 1) {
                tell(&world, first);
            }
            if let Some(first) = bad.first() {
                println!("seed {seed}: {} of {} rows are further off: {first:?}", bad.len(), world.rows.len());
            }
            unsure += bad.len();
        }
    }
    println!("measured, by both clocks, in one boot: {sure} rows, {unsure} further off than stated");
    assert!(unsure * 1000 <= sure, "{unsure} of {sure}");
    for ((kind, least), [rows, holds, unknown]) in
        [("neither", 90), ("measures", 97), ("monotonic", 90), ("both", 99)].into_iter().zip(counts)
    {
        println!("{kind}: {rows} rows, {holds} within their error, {unknown} of unknown time");
        assert!(holds * 100 >= rows * least, "{kind}: {holds} of {rows}");
    }
}
