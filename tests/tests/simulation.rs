//! A few worlds, and every world that once found something: all promises hold, and the same seed gives the same trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tests::sim::{Params, run};

/// Worlds that are run each time.
const SEEDS: u64 = 24;

/// One line each: the world as arguments of `sim`, then what it once found.
const FOUND: &str = include_str!("../seeds.txt");

fn holds(params: &Params) {
    let report = run(params, false);
    assert!(report.wrong.is_empty(), "{:#?}\nagain: cargo sim {params}", report.wrong);
}

#[test]
fn all_promises_hold_in_a_few_worlds() {
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || (0..SEEDS).filter(|seed| seed % 2 == half).for_each(|seed| holds(&Params::of(seed))));
        }
    });
}

#[test]
fn what_was_once_found_stays_mended() {
    for line in FOUND.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let world = line.split_once(':').map_or(line, |(world, _)| world);
        holds(&world.parse().unwrap());
    }
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in [3, 7, 11] {
        let params = Params::of(seed);
        let (first, second) = (run(&params, true), run(&params, true));
        let differs = first.trace.iter().zip(&second.trace).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((first.hash, first.lines), (second.hash, second.lines), "seed {seed}");
        assert!(first.lines > 50, "seed {seed}: nothing happens");
    }
    assert_ne!(run(&Params::of(3), false).hash, run(&Params::of(7), false).hash);
}
