//! Joins of two streams, single cases: what is held and for how long, what is late, what fails, what a change leaves.

use super::*;

/// 2026-01-01 and so many seconds.
fn at(seconds: i64) -> i64 {
    START + seconds * SECOND
}

fn row(device: &str, seconds: i64, heard: i64, i: i64) -> Event {
    let device = device.to_owned();
    Event::Row(Row { device, ts: at(seconds), ingest: at(heard), v: Some(i as f64), i: Some(i), s: None, b: None })
}

const HOW: How = How { chop: 7, turned: false, gather: 100, restore_each: Some(1) };

const BOTH: [&str; 2] = ["t", "u"];

const NEAR: &str = "a.device = b.device AND b.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '5 seconds'";

#[test]
fn what_is_held_is_what_can_still_match() {
    let select = format!("SELECT a.ts, a.i, b.i AS j FROM t a JOIN u b ON {NEAR}");
    let plan = plan(&select, 10 * SECOND);
    // An hour of two devices, ten rows a second, beside one that stops after a minute.
    let mut steps = Vec::new();
    for second in 0..3600 {
        for (device, end) in [("a", 3600), ("b", 3600), ("c", 60)] {
            if second < end {
                steps.push(("t", row(device, second, second, 1)));
                (0..9).for_each(|i| steps.push(("u", row(device, second, second, i))));
            }
        }
        if second % 15 == 14 {
            steps.push(("", Event::Barrier(at(second))));
        }
    }
    let how = How { chop: 8192, gather: 65_536, restore_each: None, turned: false };
    let long = run(&plan, &steps, how);
    let short = run(&plan, &steps[..steps.len() / 6], how);
    let given: usize = long.closed[200].iter().map(RecordBatch::num_rows).sum();
    assert_eq!(given, 2 * 15 * 16 * 9, "two devices, fifteen seconds, sixteen seconds of the other stream");
    assert!(
        long.peak <= short.peak + short.peak / 4,
        "{} bytes after an hour, {} after ten minutes",
        long.peak,
        short.peak
    );
}

#[test]
fn a_row_without_a_match_comes_when_none_can_come_any_more() {
    let select = format!("SELECT a.ts, a.i, b.i AS j FROM t a LEFT JOIN u b ON {NEAR}");
    let plan = plan(&select, 3 * SECOND);
    let steps = [
        ("t", row("d", 100, 100, 1)),
        ("", Event::Barrier(at(101))),
        // The watermark is 108: what is up to 105 may still come for three seconds.
        ("u", row("d", 110, 110, 7)),
        ("", Event::Barrier(at(110))),
        ("u", row("d", 111, 111, 8)),
        ("", Event::Barrier(at(112))),
        // 109 - 3 is above 105.
        ("", Event::Barrier(at(113))),
    ];
    let outcome = run(&plan, &steps, HOW);
    let given: Vec<Vec<String>> = outcome.closed.iter().map(|rows| texts(rows)).collect();
    assert_eq!(given, [vec![], vec![], vec!["2026-01-01T00:01:40Z|1|".to_owned()], vec![]]);
    // Another device that is silent, until silence has lasted.
    let steps = [
        ("t", row("d", 100, 100, 1)),
        ("t", row("e", 200, 200, 2)),
        ("u", row("e", 200, 200, 3)),
        ("", Event::Barrier(at(300))),
        ("u", row("e", 400, 400, 4)),
        ("", Event::Barrier(at(400))),
        ("", Event::Barrier(at(100) + HOLD)),
        ("", Event::Barrier(at(101) + HOLD)),
    ];
    let outcome = run(&plan, &steps, HOW);
    let given: Vec<Vec<String>> = outcome.closed.iter().map(|rows| texts(rows)).collect();
    let (alone, pair) = ("2026-01-01T00:01:40Z|1|".to_owned(), "2026-01-01T00:03:20Z|2|3".to_owned());
    assert_eq!(given, [vec![pair], vec![], vec![alone], vec![]]);
}

#[test]
fn records_that_wait_are_needed() {
    let w = "tumble(a.ts, INTERVAL '1 minute')";
    let select = format!("SELECT a.device, {w} AS w, count(*) AS n FROM t a JOIN u b ON {NEAR} GROUP BY a.device, {w}");
    let plan = plan(&select, 10 * SECOND);
    let mut pipeline = Pipeline::new(&plan.plan, plan.schema.clone()).unwrap();
    let mut take = |stream: &str, seconds: i64, now: i64| {
        let Event::Row(row) = row("d", seconds, now, 1) else { return Vec::new() };
        pipeline.ingest_from(stream, &batch(&plan.schema, &[row])).unwrap();
        pipeline.barrier(Timestamp(at(now))).unwrap();
        pipeline
            .needed()
            .unwrap()
            .iter()
            .map(|(from, to)| ((from - START) / SECOND, (to + 1 - START) / SECOND))
            .collect()
    };
    assert_eq!(take("t", 10, 10), [(0, 3600)], "the hour of a row that may be joined");
    assert_eq!(take("u", 9, 11), [(-10, 3600)], "and what may be in the window of one that was");
    assert_eq!(take("t", 8000, 8000), [(7200, 10_800)]);
}

#[test]
fn a_late_row_counts_for_nothing_and_is_told_of() {
    let select = format!("SELECT a.ts, a.i, b.i AS j FROM t a LEFT JOIN u b ON {NEAR} WHERE a.i > 0");
    let plan = plan(&select, 3 * SECOND);
    let steps = [
        ("t", row("d", 100, 100, 1)),
        ("t", row("d", 200, 200, 2)),
        ("", Event::Barrier(at(200))),
        // The watermark is 198.
        ("u", row("d", 195, 201, 3)),
        ("u", row("d", 194, 201, 4)),
        ("u", row("d", 102, 201, 5)),
        ("t", row("d", 103, 201, 6)),
        // The condition leaves it out before it could be late.
        ("t", row("d", 103, 201, -6)),
        ("u", row("e", 102, 201, 5)),
        ("", Event::Barrier(at(202))),
        ("", Event::Barrier(at(300) + HOLD)),
    ];
    let outcome = run(&plan, &steps, HOW);
    let given: Vec<String> = outcome.closed.iter().flat_map(|rows| texts(rows)).collect();
    assert_eq!(given, ["2026-01-01T00:01:40Z|1|", "2026-01-01T00:03:20Z|2|3"]);
    let late = |stream: &str, records, from, to| LateRow {
        device: "d".to_owned(),
        window_start: Timestamp(at(from)),
        window_end: Timestamp(at(to) + 1),
        records,
        reason: crate::stream_join::late_reason(stream),
    };
    assert_eq!(outcome.late, [late("u", 2, 102, 194), late("t", 1, 103, 103)]);
}

#[test]
fn a_window_waits_for_rows_that_come_after_its_own() {
    let w = "tumble(a.ts, INTERVAL '1 minute')";
    let select =
        format!("SELECT a.device, {w} AS w, count(b.i) AS n FROM t a LEFT JOIN u b ON {NEAR} GROUP BY a.device, {w}");
    let plan = plan(&select, 10 * SECOND);
    let steps = [
        ("t", row("d", 59, 59, 1)),
        ("u", row("d", 76, 76, 9)),
        ("", Event::Barrier(at(76))),
        // As late as it may be, and as far from the other as it may be.
        ("u", row("d", 64, 77, 2)),
        ("u", row("d", 77, 77, 9)),
        // The watermark is 75: the window's end, five seconds that joined rows may come after it, ten of lateness.
        ("", Event::Barrier(at(77))),
    ];
    let outcome = run(&plan, &steps, HOW);
    let given: Vec<Vec<String>> = outcome.closed.iter().map(|rows| texts(rows)).collect();
    assert_eq!(given, [vec![], vec!["d|2026-01-01T00:00:00Z|1".to_owned()]]);
    assert_eq!(outcome.late, []);
}

#[test]
fn a_pair_on_which_a_condition_fails_is_told_of() {
    let select = format!(
        "SELECT a.ts, a.i, b.i AS j FROM t a LEFT JOIN u b ON {NEAR} AND 6 / (a.i - b.i) > 0 WHERE 1 / a.i >= 0"
    );
    let plan = plan(&select, 3 * SECOND);
    let steps = [
        ("t", row("d", 100, 100, 2)),
        ("t", row("d", 101, 101, 0)),
        ("u", row("d", 100, 100, 2)),
        ("u", row("d", 100, 100, 1)),
        ("", Event::Barrier(at(102))),
        ("", Event::Barrier(at(102) + HOLD)),
    ];
    let outcome = run(&plan, &steps, HOW);
    let given: Vec<String> = outcome.closed.iter().flat_map(|rows| texts(rows)).collect();
    assert_eq!(given, ["2026-01-01T00:01:40Z|2|1"]);
    let failed: Vec<(i64, u64)> =
        outcome.late.iter().map(|row| ((row.window_start.0 - START) / SECOND, row.records)).collect();
    assert_eq!(failed, [(100, 1), (101, 1)]);
    assert!(outcome.late.iter().all(|row| row.reason.contains("evaluation failed: ")), "{:?}", outcome.late);
}

#[test]
fn tables_are_looked_up_for_either_side() {
    let text = "
        CREATE STREAM t (v DOUBLE, i BIGINT, s TEXT, b BOOLEAN) WITH (schema = 2);
        CREATE STREAM u (v DOUBLE, i BIGINT, s TEXT, b BOOLEAN) WITH (schema = 3);
        CREATE TABLE sites (device TEXT, site TEXT) WITH (location = 'sites.csv', key = 'device');
        CREATE TABLE kinds (kind BIGINT, word TEXT) WITH (location = 'kinds.csv', key = 'kind');
        CREATE PIPELINE p AS SELECT a.ts, site, k.word, a.i, b.i AS j FROM t a
          JOIN sites ON a.device = sites.device
          LEFT JOIN u b ON a.device = b.device AND b.ts = a.ts AND b.s IS NULL
          LEFT JOIN kinds k ON k.kind = b.i WHERE k.word IS DISTINCT FROM 'none';";
    let mut project = sql::check(&[SourceFile { name: "p.sql".to_owned(), text: text.to_owned() }]).unwrap();
    let columns = |table: &str, first: ArrayRef, second: Vec<&str>| {
        let schema = project.tables.iter().find(|t| t.name == table).unwrap().schema.clone();
        RecordBatch::try_new(schema, vec![first, Arc::new(StringArray::from(second))]).unwrap()
    };
    let sites = columns("sites", Arc::new(StringArray::from(vec!["d", "f"])), vec!["north", "south"]);
    let kinds = columns("kinds", Arc::new(Int64Array::from(vec![1, 2])), vec!["one", "none"]);
    project.set_rows("sites", &sites);
    project.set_rows("kinds", &kinds);
    let plan = project.pipeline("p").unwrap().clone();
    let schema = storage::schema::stream_schema(&project.stream("t").unwrap().stream);
    let mut steps = Vec::new();
    for (device, i) in [("d", 1), ("d", 2), ("d", 3), ("e", 1), ("f", 4)] {
        steps.push(("t", row(device, 10 * i, 10 * i, i)));
        if device != "f" {
            steps.push(("u", row(device, 10 * i, 10 * i, i)));
        }
        steps.push(("", Event::Barrier(at(10 * i))));
    }
    steps.push(("", Event::Barrier(at(100) + HOLD)));
    let outcome = run(&Plan { plan, schema }, &steps, HOW);
    let given: Vec<String> = outcome.closed.iter().flat_map(|rows| texts(rows)).collect();
    let shown = ["10Z|north|one|1|1", "30Z|north||3|3", "40Z|south||4|"];
    assert_eq!(given, shown.map(|row| format!("2026-01-01T00:00:{row}")));
}

#[test]
fn a_changed_join_writes_no_window_twice_or_in_part() {
    let w = "tumble(a.ts, INTERVAL '1 minute')";
    let select = |more: &str| {
        format!("SELECT a.device, {w} AS w, count(*) AS n{more} FROM t a JOIN u b ON {NEAR} GROUP BY a.device, {w}")
    };
    let old = plan(&select(""), 0);
    let mut pipeline = Pipeline::new(&old.plan, old.schema.clone()).unwrap();
    let take = |pipeline: &mut Pipeline, streams: &[&str], seconds: std::ops::Range<i64>| {
        let mut rows: Vec<Row> = Vec::new();
        for second in seconds {
            let Event::Row(row) = row("d", second, second, 1) else { continue };
            rows.push(row);
        }
        for stream in streams {
            pipeline.ingest_from(stream, &batch(&old.schema, &rows)).unwrap();
        }
        texts(&pipeline.barrier(Timestamp(rows.last().unwrap().ingest)).unwrap().rows)
    };
    let early = take(&mut pipeline, &BOTH, 0..115);
    assert_eq!(early.len(), 1, "{early:?}");
    let state = pipeline.checkpoint().unwrap();
    let new = plan(&select(", sum(b.i) AS x"), 0);
    assert!(!Pipeline::matches(&new.plan, &state).unwrap());
    let mut pipeline = Pipeline::succeed(&new.plan, old.schema.clone(), &state, None).unwrap();
    // Rows up to ten seconds after 114 may miss rows from before: they are in the window of 120.
    let later = take(&mut pipeline, &BOTH, 115..400);
    assert_eq!(later.len(), 3, "{later:?}");
    assert!(
        later[0].starts_with("d|2026-01-01T00:03:00Z|") && later[0].ends_with(&format!("|{0}|{0}", 60 * 16)),
        "{later:?}"
    );
    // A query without a join goes on from one with a join, and the other way round.
    let single = format!("SELECT device, {} AS w, count(*) AS n FROM t GROUP BY device, w", w.replace("a.ts", "ts"));
    let single = plan(&single, 0);
    let mut pipeline = Pipeline::succeed(&single.plan, old.schema.clone(), &state, None).unwrap();
    assert_eq!(take(&mut pipeline, &["t"], 115..200), ["d|2026-01-01T00:02:00Z|60"]);
    let state = pipeline.checkpoint().unwrap();
    let mut pipeline = Pipeline::succeed(&old.plan, old.schema.clone(), &state, None).unwrap();
    assert_eq!(take(&mut pipeline, &BOTH, 200..310), [format!("d|2026-01-01T00:04:00Z|{}", 60 * 16)]);
}
