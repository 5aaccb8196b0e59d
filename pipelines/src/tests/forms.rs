//! Every form of aggregate against plain DataFusion, live and restored.

use std::collections::BTreeSet;

use super::harness::*;
use arrow::array::*;
use arrow::datatypes::TimestampNanosecondType;

pub(super) const FORMS: [(&str, Near); 54] = [
    ("count(*)", Near::Equal),
    ("count(v)", Near::Equal),
    ("sum(i)", Near::Equal),
    ("sum(v)", Near::Relative(1e-9)),
    ("sum(CAST(v AS DECIMAL(18, 3)))", Near::Equal),
    ("avg(v)", Near::Relative(1e-9)),
    ("avg(i)", Near::Relative(1e-9)),
    ("avg(CAST(v AS DECIMAL(18, 3)))", Near::Equal),
    ("min(v)", Near::Equal),
    ("max(v)", Near::Equal),
    ("max(i) - min(i)", Near::Equal),
    ("min(s)", Near::Equal),
    ("max(s)", Near::Equal),
    ("min(ts)", Near::Equal),
    ("max(b)", Near::Equal),
    ("stddev(v)", Near::Relative(1e-9)),
    ("stddev_pop(v)", Near::Relative(1e-9)),
    ("var(v)", Near::Relative(1e-9)),
    ("var_pop(v)", Near::Relative(1e-9)),
    ("covar_samp(v, CAST(i AS DOUBLE))", Near::Relative(1e-6)),
    ("corr(v, CAST(i AS DOUBLE))", Near::Relative(1e-6)),
    ("regr_slope(v, CAST(i AS DOUBLE))", Near::Relative(1e-6)),
    ("count(DISTINCT i)", Near::Equal),
    ("count(DISTINCT s)", Near::Equal),
    ("sum(DISTINCT i)", Near::Equal),
    ("avg(DISTINCT CAST(i AS DOUBLE))", Near::Relative(1e-9)),
    ("approx_distinct(i)", Near::Equal),
    ("approx_percentile_cont(v, 0.95)", Near::Absolute(10.0)),
    ("approx_percentile_cont(v, 0.5, 200)", Near::Absolute(10.0)),
    ("approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY v DESC)", Near::Absolute(10.0)),
    ("approx_percentile_cont_with_weight(v, abs(i) + 1, 0.5)", Near::Absolute(60.0)),
    ("approx_median(v)", Near::Absolute(10.0)),
    ("median(v)", Near::Equal),
    ("first_value(v ORDER BY ts)", Near::Equal),
    ("last_value(v ORDER BY ts)", Near::Equal),
    ("last_value(s ORDER BY ts DESC)", Near::Equal),
    ("first_value(i) IGNORE NULLS", Near::Equal),
    ("array_agg(i ORDER BY ts)", Near::Equal),
    ("array_agg(s ORDER BY ts DESC)", Near::Equal),
    ("array_agg(DISTINCT s)", Near::Set),
    ("string_agg(s, ',' ORDER BY ts)", Near::Equal),
    ("bool_and(b)", Near::Equal),
    ("bool_or(b)", Near::Equal),
    ("bit_and(i)", Near::Equal),
    ("bit_or(i)", Near::Equal),
    ("bit_xor(i)", Near::Equal),
    ("count(*) FILTER (WHERE v > 0)", Near::Equal),
    ("avg(v) FILTER (WHERE b)", Near::Relative(1e-9)),
    ("sum(CASE WHEN b THEN v ELSE 0 END) / count(*)", Near::Relative(1e-9)),
    ("avg(v * 1.8 + 32) + max(i)", Near::Relative(1e-9)),
    ("max(named_struct('ts', ts, 'v', v))['v']", Near::Equal),
    ("approx_percentile_cont(v, 0.95) FILTER (WHERE b)", Near::Absolute(30.0)),
    ("concat(min(s), '-', max(s))", Near::Equal),
    ("greatest(min(v), -5.0)", Near::Equal),
];

/// One query with everything a form needs around it.
fn select(form: &str) -> String {
    format!(
        "SELECT device, tumble(ts, INTERVAL '1 minute') AS w, {form} AS x, count(*) AS n FROM t \
         GROUP BY device, tumble(ts, INTERVAL '1 minute')"
    )
}

#[test]
fn every_form_equals_plain_datafusion_and_survives_restores() {
    let events = fleet(11);
    let expected = reference(&events, MINUTE, LATENESS);
    assert!(expected.late.len() > 20, "the log must have late rows, it has {}", expected.late.len());
    for (form, near) in FORMS {
        let text = select(form);
        let (plan, schema) = plan(&text);
        let live = run(&plan, &schema, &events, How { chop: 100, gather: 97, restore_each: None });
        let want = sorted(&plain(&schema, &expected.kept, &text), 2);
        let got = sorted(&live.batches(), 2);
        for (at, near) in [(0, Near::Equal), (1, Near::Equal), (2, near), (3, Near::Equal)] {
            compare(&format!("{form} column {at}"), got.column(at), want.column(at), near);
        }
        for (each, chop) in [(1, 33), (3, 1000)] {
            let how = How { chop, gather: 97, restore_each: Some(each) };
            let restored = run(&plan, &schema, &events, how);
            assert_eq!(restored.late, live.late, "{form}");
            for ((_, got), (now, want)) in restored.closed.iter().zip(&live.closed) {
                if near == Near::Set {
                    continue;
                }
                assert_eq!(got, want, "{form}: restored at each {each}. barrier, closed at {now}");
            }
        }
    }
}

#[test]
fn windows_come_out_once_at_the_first_barrier_that_closes_them() {
    let events = fleet(5);
    let expected = reference(&events, MINUTE, LATENESS);
    let (plan, schema) = plan(&select("sum(v)"));
    let outcome = run(&plan, &schema, &events, How { chop: 64, gather: 500, restore_each: Some(2) });
    let mut seen = BTreeSet::new();
    for (now, batches) in &outcome.closed {
        assert!(batches.len() <= 1);
        for batch in batches {
            let devices = batch.column(0).as_string::<i32>();
            let starts = batch.column(1).as_primitive::<TimestampNanosecondType>();
            let keys: Vec<(String, i64)> =
                (0..batch.num_rows()).map(|i| (devices.value(i).to_owned(), starts.value(i))).collect();
            assert!(keys.is_sorted(), "sorted by device and window");
            for key in keys {
                assert_eq!(expected.closed_at.get(&key), Some(now), "{key:?}");
                assert!(seen.insert(key.clone()), "{key:?} came out twice");
            }
        }
    }
    assert_eq!(seen.len(), expected.closed_at.len(), "every window came out");
    let late: u64 = outcome.late.iter().map(|l| l.records).sum();
    assert_eq!(late, expected.late.len() as u64);
    for row in &outcome.late {
        let rows = expected
            .late
            .iter()
            .filter(|r| r.device == row.device && r.ts >= row.window_start.0 && r.ts < row.window_end.0);
        assert!(rows.count() as u64 >= row.records, "{row:?}");
        assert_eq!(row.window_end.0 - row.window_start.0, MINUTE);
    }
}

#[test]
fn other_keys_having_where_and_expressions() {
    let events = fleet(7);
    let expected = reference(&events, MINUTE, LATENESS);
    let w = "tumble(ts, INTERVAL '1 minute')";
    let queries = [
        // Other keys, with NULLs among them.
        (format!("SELECT device, {w} AS w, s, b, count(*) AS n, sum(v) AS x FROM t GROUP BY device, {w}, s, b"), 4),
        (format!("SELECT {w} AS w, i, device, max(v) AS x FROM t GROUP BY i, {w}, device"), 3),
        (format!("SELECT device, {w} AS w, upper(s) AS u, count(*) AS n FROM t GROUP BY device, {w}, upper(s)"), 3),
        // Only keys.
        (format!("SELECT device, {w} AS w FROM t GROUP BY device, {w}"), 2),
        // WHERE on columns that are otherwise not read.
        (format!("SELECT device, {w} AS w, count(*) AS n FROM t WHERE v > 100 AND s <> 's1' GROUP BY device, {w}"), 2),
        (format!("SELECT device, {w} AS w, min(i) AS x FROM t WHERE device LIKE '%3' OR b GROUP BY device, {w}"), 2),
        // HAVING, also on what is not selected, and on a key.
        (
            format!(
                "SELECT device, {w} AS w, avg(v) AS x FROM t GROUP BY device, {w} HAVING count(*) > 30 AND max(i) > 8"
            ),
            2,
        ),
        (format!("SELECT device, {w} AS w, max(v) AS x FROM t GROUP BY device, {w} HAVING device > 'd05'"), 2),
        // Expressions over aggregates and keys.
        (
            format!(
                "SELECT device, {w} AS w, concat('x-', device) AS label, round(sum(v) / count(v), 2) AS x, count(*) * 2 AS n \
                 FROM t GROUP BY device, {w}"
            ),
            2,
        ),
    ];
    for (text, keys) in queries {
        let (plan, schema) = plan(&text);
        let outcome = run(&plan, &schema, &events, How { chop: 50, gather: 128, restore_each: Some(4) });
        let want = sorted(&plain(&schema, &expected.kept, &text), keys);
        let got = sorted(&outcome.batches(), keys);
        assert_eq!(got.schema(), plan.output, "{text}");
        for at in 0..got.num_columns() {
            compare(&format!("{text} column {at}"), got.column(at), want.column(at), Near::Relative(1e-9));
        }
    }
}

#[test]
fn late_rows_are_counted_after_where() {
    let events = fleet(3);
    let expected = reference(&events, MINUTE, LATENESS);
    let text = select("sum(v)").replace("FROM t", "FROM t WHERE b");
    let (plan, schema) = plan(&text);
    let outcome = run(&plan, &schema, &events, How { chop: 50, gather: 128, restore_each: None });
    let late: u64 = outcome.late.iter().map(|l| l.records).sum();
    assert_eq!(late, expected.late.iter().filter(|r| r.b == Some(true)).count() as u64);
    assert!(outcome.late.iter().all(|l| l.reason == crate::LATE));
}

#[test]
fn rows_without_a_window_pass_in_the_order_of_the_log() {
    let events = fleet(9);
    let text = "SELECT device, ts, v * 2 AS x, s FROM t WHERE v > 0 AND b";
    let (plan, schema) = plan(text);
    let rows: Vec<Row> =
        events.iter().filter_map(|e| if let Event::Row(r) = e { Some(r.clone()) } else { None }).collect();
    let want = plain(&schema, &rows, text);
    let want = arrow::compute::concat_batches(&want[0].schema(), &want).unwrap();
    for restore_each in [None, Some(3)] {
        let outcome = run(&plan, &schema, &events, How { chop: 70, gather: 64, restore_each });
        let got = outcome.batches();
        let got = arrow::compute::concat_batches(&got[0].schema(), &got).unwrap();
        assert_eq!(got.columns(), want.columns());
        assert_eq!(got.schema(), plan.output);
    }
    let n = want.num_rows() as i64;
    assert!(n > 1000);
}
