//! Which times open windows still need.

use device::time::{SECOND, Timestamp};

use super::harness::{MINUTE, Row, START, batch, plan};
use crate::Pipeline;

fn row(device: &str, ts: i64, ingest: i64) -> Row {
    Row { device: device.to_owned(), ts, ingest, v: Some(1.0), i: None, s: None, b: None }
}

/// What a pipeline needs after a barrier: `away` sent at minutes 0 and 3 and then no more, `here` sends on until minute 60.
fn needed(window: &str) -> Vec<(i64, i64)> {
    let (plan, schema) =
        plan(&format!("SELECT device, {window} AS window_start, count(*) AS n FROM t GROUP BY device, window_start"));
    let mut pipeline = Pipeline::new(&plan, schema.clone()).unwrap();
    assert!(pipeline.needed().unwrap().is_empty());
    let mut rows = vec![row("away", START + 5 * SECOND, START + 5 * SECOND)];
    rows.push(row("away", START + 3 * MINUTE + 5 * SECOND, START + 3 * MINUTE + 5 * SECOND));
    rows.extend((0..=60).map(|minute| row("here", START + minute * MINUTE, START + minute * MINUTE)));
    rows.sort_by_key(|row| row.ingest);
    pipeline.ingest(&batch(&schema, &rows)).unwrap();
    pipeline.barrier(Timestamp(START + 60 * MINUTE)).unwrap();
    let needed = pipeline.needed().unwrap();
    let state = pipeline.checkpoint().unwrap();
    let again = Pipeline::restore(&plan, schema, &state).unwrap();
    assert_eq!(again.needed().unwrap(), needed, "also after a restart");
    needed.into_iter().map(|(from, to)| (from - START, to - START)).collect()
}

#[test]
fn open_windows_need_the_times_they_are_made_of() {
    // `away` has passed minute 0 with its record of minute 3; that minute is open, and of `here` the last two.
    let minute = |number: i64| (number * MINUTE, (number + 1) * MINUTE - 1);
    let last = (59 * MINUTE, 61 * MINUTE - 1);
    assert_eq!(needed("tumble(ts, INTERVAL '1 minute')"), [minute(3), last]);
    // Where windows overlap, panes stay until the last window that they are part of is closed.
    assert_eq!(
        needed("hop(ts, INTERVAL '1 minute', INTERVAL '3 minutes')"),
        [minute(0), minute(3), (57 * MINUTE, 61 * MINUTE - 1)]
    );
    // Of a session, from its first record to its last so far. The one of minute 59 could still be late by 2 seconds.
    let one = |at: i64| (at, at);
    let last = [59, 60].map(|minute| one(minute * MINUTE));
    let away = one(3 * MINUTE + 5 * SECOND);
    assert_eq!(needed("session(ts, INTERVAL '50 seconds')"), [away, last[0], last[1]]);
}

#[test]
fn what_has_no_windows_needs_nothing() {
    let (plan, schema) = plan("SELECT ts, device, v FROM t WHERE v > 0");
    let mut pipeline = Pipeline::new(&plan, schema.clone()).unwrap();
    pipeline.ingest(&batch(&schema, &[row("a", START, START)])).unwrap();
    pipeline.barrier(Timestamp(START)).unwrap();
    assert!(pipeline.needed().unwrap().is_empty());
}
