//! Promise: no bytes from outside harm the engine. The kept inputs of the fuzz targets (`tests/fuzz/corpus`) and
//! seeded mutations of them go through the targets' bodies, without libFuzzer and without instrumented code.
//!
//! One test, alone in its process: allocations are counted for all threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::fuzz::mutate::{Noise, mutate};
use tests::fuzz::{TARGETS, measure_with};

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// Most time for one input: more is a hang.
const HANG: Duration = Duration::from_secs(20);

/// How many mutations a target is given: fewer where one takes long.
fn rounds(target: &str) -> usize {
    match target {
        "project" | "query" | "pem" => 60,
        "connection" => 1000,
        _ => 4000,
    }
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<(String, Vec<u8>)> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{target} has kept inputs");
    inputs
}

#[test]
fn kept_inputs_and_their_mutations_break_no_promise() {
    measure_with(|| ALLOCATOR.total_allocated());
    // What is made once, by the first input, belongs to nobody's measure.
    for (target, body) in TARGETS {
        let begun = Instant::now();
        let inputs = corpus(target);
        let run = |bytes: &[u8], name: &str| {
            let start = Instant::now();
            let result = std::panic::catch_unwind(|| body(bytes));
            assert!(result.is_ok(), "{target}, {name}: {} bytes broke a promise: {:?}", bytes.len(), Dump(bytes));
            assert!(start.elapsed() < HANG, "{target}, {name}: took {:?}: {:?}", start.elapsed(), Dump(bytes));
        };
        for (name, bytes) in &inputs {
            run(bytes, name);
        }
        let mut noise = Noise::new(target.len() as u64 + 1);
        for round in 0..rounds(target) {
            let (name, input) = &inputs[noise.below(inputs.len())];
            let (_, other) = &inputs[noise.below(inputs.len())];
            run(&mutate(input, other, &mut noise), &format!("mutation {round} of {name}"));
        }
        println!("{target}: {} inputs, {} mutations, {:?}", inputs.len(), rounds(target), begun.elapsed());
    }
}

/// Bytes as one can paste them into a test.
struct Dump<'a>(&'a [u8]);

impl std::fmt::Debug for Dump<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}
