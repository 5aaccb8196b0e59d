//! Repairs where something is in their way: records that are gone, devices of which nothing is known, partitions of
//! another kind, sessions at an end of the span, groups of several shards, pipelines over pipelines.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{Int64Type, TimestampNanosecondType};
use datafusion::execution::runtime_env::RuntimeEnv;
use device::id::ShardId;
use device::seq::Barrier;
use device::time::SECOND;
use storage::layout::Granularity;

use super::harness::*;
use super::repairs::{ALL, SHARD, World, project, wait};
use crate::Passed;
use crate::repair::{RepairError, repair, widen};
use crate::runner::Stand;

const HOUR: i64 = 3600 * SECOND;
const COUNT: &str =
    "SELECT device, tumble(ts, INTERVAL '1 minute') AS w, count(*) AS n, sum(i) AS i FROM t GROUP BY device, w";

fn rows(world: &World, device: &str, seconds: impl IntoIterator<Item = i64>) -> RecordBatch {
    let row = |second: i64| Row {
        device: device.to_owned(),
        ts: START + second * SECOND,
        ingest: START + 10 * HOUR,
        v: Some(1.0),
        i: Some(second),
        s: None,
        b: None,
    };
    batch(&world.schema, &seconds.into_iter().map(row).collect::<Vec<_>>())
}

/// A world in which the first cut has passed, and the pipeline runs.
fn world(select: &str, more: &str) -> World {
    let project = project(select, more);
    let mut world = World::new(project.clone());
    world.barrier(START + 10 * HOUR);
    world.cut();
    world.begin(project);
    world
}

fn step(world: &mut World) {
    world.barrier(START + 10 * HOUR);
    world.cut();
}

/// Device, seconds from the start, and the count of each row.
fn found(world: &World) -> Vec<(String, i64, i64)> {
    let table = world.table();
    let (devices, starts) =
        (table.column(0).as_string::<i32>(), table.column(1).as_primitive::<TimestampNanosecondType>());
    let counts = table.column(2).as_primitive::<Int64Type>();
    let row = |at| (devices.value(at).to_owned(), (starts.value(at) - START) / SECOND, counts.value(at));
    let mut all: Vec<_> = (0..table.num_rows()).map(row).collect();
    all.sort();
    all
}

fn partition_of(world: &World, table: &str, hour: u32) -> PathBuf {
    world.folder.path().join(format!("tables/{table}/date=2026-01-01/hour={hour:02}"))
}

#[test]
fn a_result_is_not_dropped_because_its_records_are_gone() {
    let mut world = world(COUNT, "lateness = INTERVAL '0 seconds'");
    world.ingest(rows(&world, "a", 0..4000));
    step(&mut world);
    let before = found(&world);
    assert_eq!(before.len(), 66);
    std::fs::remove_dir_all(partition_of(&world, "t", 0)).unwrap();
    step(&mut world);
    let error = world.repair(ALL).unwrap_err();
    let RepairError::Gone { partition, .. } = &error else { panic!("{error}") };
    assert_eq!(partition.to_string(), "date=2026-01-01/hour=00");
    let text = error.to_string();
    assert!(text.contains("of a at 2026-01-01T00:00:00Z") && text.contains("`t` does not"), "{text}");
    assert_eq!(found(&world), before);
    // The rest can be had.
    step(&mut world);
    assert!(world.repair(START + HOUR..START + 2 * HOUR).is_ok());
    assert_eq!(found(&world), before);
}

#[test]
fn rows_without_windows_are_not_dropped_either() {
    let mut world = world("SELECT ts, device, i FROM t WHERE i % 2 = 0", "partition = 'hour'");
    world.ingest(rows(&world, "a", 0..4000));
    step(&mut world);
    let done = world.repair(ALL).unwrap();
    assert_eq!((done.rows, done.kept, done.open), (2000, 0, 0));
    assert_eq!(world.table().num_rows(), 2000);
    std::fs::remove_dir_all(partition_of(&world, "t", 0)).unwrap();
    step(&mut world);
    let error = world.repair(ALL).unwrap_err();
    assert!(matches!(error, RepairError::Gone { .. }), "{error}");
    assert_eq!(world.table().num_rows(), 2000);
}

#[test]
fn what_the_pipeline_may_still_write_is_left_to_it() {
    let mut world = world(COUNT, "lateness = INTERVAL '0 seconds'");
    world.ingest(rows(&world, "a", 0..200));
    step(&mut world);
    let mut stand = world.stand();
    // As if `b` had last been heard of by a weir that did not take note of it.
    world.ingest(rows(&world, "b", 0..200));
    step(&mut world);
    let known = stand.passed.take().unwrap();
    stand.barrier = world.cut;
    stand.passed = Some(known);
    let before = found(&world);
    assert_eq!(before.iter().filter(|(device, ..)| device == "b").count(), 3);
    let memory = Arc::new(RuntimeEnv::default());
    let span = widen(ALL, Granularity::Hour);
    let done = wait(repair(&world.tables, &[stand], "p", span, &memory, &mut |_| true)).unwrap();
    assert_eq!((done.unknown, done.kept, done.rows, done.open), (1, 3, 6, 5));
    assert_eq!(found(&world), before, "kept as they were");
}

#[test]
fn a_window_that_loses_its_last_row_leaves_no_file() {
    let mut world = world(&format!("{COUNT} HAVING count(*) < 3"), "lateness = INTERVAL '0 seconds'");
    world.ingest(rows(&world, "a", [0, 1, 300]));
    step(&mut world);
    assert_eq!(found(&world), [("a".to_owned(), 0, 2)]);
    // Late, and one too many.
    world.ingest(rows(&world, "a", [2]));
    step(&mut world);
    let done = world.repair(ALL).unwrap();
    assert_eq!((done.partitions, done.rows, done.open), (1, 0, 1));
    assert_eq!(found(&world), []);
    assert_eq!(std::fs::read_dir(partition_of(&world, "p", 0)).unwrap().count(), 0);
}

#[test]
fn a_table_that_was_partitioned_otherwise_is_refused() {
    let mut world = world(COUNT, "lateness = INTERVAL '0 seconds', partition = 'hour'");
    world.ingest(rows(&world, "a", 0..400));
    step(&mut world);
    let day = project(COUNT, "lateness = INTERVAL '0 seconds', partition = 'day'");
    world.begin(day);
    step(&mut world);
    let error = world.repair(ALL).unwrap_err().to_string();
    assert!(error.contains("date=2026-01-01/hour=00 of `p` was written while") && error.contains("by day"), "{error}");
    std::fs::remove_dir_all(partition_of(&world, "p", 0)).unwrap();
    step(&mut world);
    world.repair(ALL).unwrap();
    assert_eq!(found(&world).len(), 6);
}

#[test]
fn a_stop_leaves_whole_partitions() {
    let mut world = world(COUNT, "lateness = INTERVAL '0 seconds'");
    world.ingest(rows(&world, "a", (0..4 * 3600).step_by(10)));
    step(&mut world);
    world.ingest(rows(&world, "a", [7, 3607, 7207]));
    step(&mut world);
    let memory = Arc::new(RuntimeEnv::default());
    let mut left = 2;
    let mut note = |_| {
        left -= 1;
        left > 0
    };
    let span = widen(ALL, Granularity::Hour);
    let stopped = wait(repair(&world.tables, &[world.stand()], "p", span, &memory, &mut note));
    assert!(matches!(stopped, Err(RepairError::Stopped)), "{stopped:?}");
    let counts =
        |found: &[(String, i64, i64)]| found.iter().filter(|(.., n)| *n == 7).map(|(_, w, _)| *w).collect::<Vec<_>>();
    assert_eq!(counts(&found(&world)), [0, 3600]);
    step(&mut world);
    world.repair(ALL).unwrap();
    assert_eq!(counts(&found(&world)), [0, 3600, 7200]);
}

#[test]
fn a_session_at_an_end_of_the_span_stays_with_what_overlaps_it() {
    let select = "SELECT device, session(ts, INTERVAL '1 minute') AS w, count(*) AS n FROM t GROUP BY device, w";
    let mut world = world(select, "lateness = INTERVAL '0 seconds'");
    // One ends at the hour, one begins behind it; a late row joins them.
    world.ingest(rows(&world, "a", [0, 30, 3540, 3570]));
    world.ingest(rows(&world, "a", [3640, 3650, 7000]));
    step(&mut world);
    let apart = [("a".to_owned(), 0, 2), ("a".to_owned(), 3540, 2), ("a".to_owned(), 3640, 2)];
    assert_eq!(found(&world), apart);
    world.ingest(rows(&world, "a", [10, 3610]));
    step(&mut world);
    let done = world.repair(START..START + HOUR).unwrap();
    assert_eq!((done.rows, done.kept, done.at_edges), (2, 1, 1));
    let first = |mut rows: [(String, i64, i64); 3]| {
        rows[0].2 = 3;
        rows
    };
    assert_eq!(found(&world), first(apart.clone()), "the first is whole, the others are as they were");
    step(&mut world);
    let done = world.repair(START..START + 2 * HOUR).unwrap();
    assert_eq!((done.rows, done.kept, done.at_edges, done.open), (2, 0, 0, 1));
    assert_eq!(found(&world), [("a".to_owned(), 0, 3), ("a".to_owned(), 3540, 5)]);
}

#[test]
fn what_shards_share_is_read_of_all_and_written_by_one() {
    let select = "SELECT tumble(ts, INTERVAL '1 minute') AS w, min(device) AS device, count(*) AS n FROM t GROUP BY w";
    let mut world = World::new(project(select, "lateness = INTERVAL '0 seconds'"));
    world.ingest(rows(&world, "a", 0..300));
    step(&mut world);
    // What another shard has of the stream, up to a barrier of its own, and behind it.
    let other = |world: &World, from: u64, seconds: std::ops::Range<i64>| {
        let rows = storage::parquet::TableRows {
            table: "t".to_owned(),
            version: "1".to_owned(),
            time_column: "ts".to_owned(),
            granularity: Granularity::Hour,
            batches: vec![rows(world, "b", seconds)],
        };
        wait(storage::parquet::write_cut(
            world.tables.store(),
            ShardId(1),
            Barrier(from),
            Barrier(from + 1),
            vec![rows],
        ))
        .unwrap();
    };
    other(&world, 6, 30..90);
    other(&world, 7, 90..95);
    step(&mut world);
    let own = Stand { passed: Some(Arc::new(Passed::of_all(START + 180 * SECOND))), ..world.stand() };
    let others = Stand { shard: ShardId(1), barrier: Barrier(7), passed: None, ..world.stand() };
    let memory = Arc::new(RuntimeEnv::default());
    let span = widen(ALL, Granularity::Hour);
    let mut shards = Vec::new();
    let mut note = |done: crate::repair::Done| {
        shards.push(done.shard);
        true
    };
    let done = wait(repair(&world.tables, &[others, own], "p", span, &memory, &mut note)).unwrap();
    assert_eq!((done.rows, done.open, done.unknown), (3, 2, 0));
    assert_eq!(shards, [SHARD.0]);
    let table = world.table();
    let counts = table.column(2).as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(counts, [90, 90, 60]);
}
