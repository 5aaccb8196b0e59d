//! Our percentiles against exact ones and against DataFusion's own.

use arrow::array::*;
use arrow::datatypes::Float64Type;

use super::harness::*;
use crate::HOLD;

const W: &str = "tumble(ts, INTERVAL '1 minute')";

/// Rows of two devices; `value` by running number.
fn events(rows: i64, value: impl Fn(i64) -> Option<f64>) -> Vec<Event> {
    let mut events = Vec::new();
    for k in 0..rows {
        let ts = START + k * MINUTE / rows;
        let device = format!("d{}", k % 2);
        events.push(Event::Row(Row {
            device,
            ts,
            ingest: ts,
            v: value(k),
            i: Some(k % 7),
            s: None,
            b: Some(k % 3 > 0),
        }));
        if k % (rows / 4) == rows / 8 {
            events.push(Event::Barrier(ts));
        }
    }
    events.push(Event::Barrier(START + HOLD + 2 * MINUTE));
    events
}

fn column(batches: &[RecordBatch], at: usize) -> Vec<Option<f64>> {
    batches.iter().flat_map(|b| b.column(at).as_primitive::<Float64Type>().iter()).collect()
}

#[test]
fn a_small_group_is_as_good_as_one_digest_over_all_its_values() {
    // 60 values each over four barriers: DataFusion, given all at once, builds one digest.
    let events = events(120, |k| Some(((k * 7919) % 997) as f64));
    let text = format!(
        "SELECT device, {W} AS w, approx_percentile_cont(v, 0.9) AS p, approx_median(v) AS m FROM t GROUP BY device, {W}"
    );
    let (plan, schema) = plan(&text);
    let outcome = run(&plan, &schema, &events, How { chop: 9, gather: 13, restore_each: Some(1) });
    let kept = reference(&events, MINUTE, LATENESS).kept;
    let want = sorted(&plain(&schema, &kept, &text), 2);
    for at in [2, 3] {
        assert_eq!(column(&outcome.batches(), at), column(std::slice::from_ref(&want), at));
    }
}

#[test]
fn a_large_group_stays_within_the_error_of_a_digest() {
    let events = events(40_000, |k| Some(((k * 7919) % 40_009) as f64));
    for q in [0.01, 0.25, 0.5, 0.95, 0.999] {
        let text = format!(
            "SELECT device, {W} AS w, approx_percentile_cont(v, {q}) AS p, percentile_cont(v, {q}) AS exact, \
             approx_percentile_cont(v, {q}, 400) AS finer FROM t GROUP BY device, {W}"
        );
        let (plan, schema) = plan(&text);
        let outcome = run(&plan, &schema, &events, How { chop: 4000, gather: 5000, restore_each: Some(1) });
        let (got, exact, finer) =
            (column(&outcome.batches(), 2), column(&outcome.batches(), 3), column(&outcome.batches(), 4));
        assert_eq!(got.len(), 2);
        for ((got, exact), finer) in got.iter().zip(&exact).zip(&finer) {
            let off = |v: &Option<f64>| (v.unwrap() - exact.unwrap()).abs() / 40_009.0;
            assert!(off(got) < 0.01, "{q}: {got:?} is not {exact:?}");
            assert!(off(finer) < 0.005, "{q}: {finer:?} is not {exact:?}");
        }
    }
}

#[test]
fn nothing_but_nulls_gives_null_and_filters_hold() {
    let events = events(400, |k| (k % 2 == 1 && k % 5 > 0).then_some(k as f64));
    let text = format!(
        "SELECT device, {W} AS w, approx_percentile_cont(v, 0.5) AS p, \
         approx_percentile_cont(v, 1.0) FILTER (WHERE i < 3 AND b) AS f FROM t GROUP BY device, {W}"
    );
    let (plan, schema) = plan(&text);
    let outcome = run(&plan, &schema, &events, How { chop: 30, gather: 31, restore_each: Some(2) });
    let largest = (0..400).rev().find(|k| k % 2 == 1 && k % 5 > 0 && k % 7 < 3 && k % 3 > 0).map(f64::from);
    assert_eq!(column(&outcome.batches(), 3), [None, largest]);
    let median = column(&outcome.batches(), 2);
    assert_eq!(median[0], None);
    assert!((median[1].unwrap() - 200.0).abs() < 5.0);
}
