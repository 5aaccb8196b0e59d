//! Random logs: what comes out in the end is what plain DataFusion makes of the rows that were not late.

use std::collections::BTreeSet;

use arrow::array::*;
use arrow::datatypes::TimestampNanosecondType;
use device::time::SECOND;
use proptest::prelude::*;

use super::harness::*;

/// Seconds between arrivals, device, how far behind, value, whether a barrier follows.
type Step = (u8, u8, u16, i16, bool);

fn log(steps: &[Step], origin: i64) -> Vec<Event> {
    let mut now = origin;
    let mut events = Vec::new();
    for (wait, device, behind, value, barrier) in steps {
        now += i64::from(*wait) * SECOND / 4;
        // Mostly a little disorder, now and then hours.
        let behind = match *behind {
            b @ 0..=900 => i64::from(b % 30) * SECOND / 4,
            b @ 901..=990 => i64::from(b) * SECOND / 10,
            b => i64::from(b) * 7 * SECOND,
        };
        events.push(Event::Row(Row {
            device: format!("d{device}"),
            ts: now - behind,
            ingest: now,
            v: (value % 11 != 0).then(|| f64::from(*value) / 8.0),
            i: Some(i64::from(*value)),
            s: (value % 3 != 0).then(|| format!("{}", value % 5)),
            b: Some(value % 2 == 0),
        }));
        if *barrier {
            events.push(Event::Barrier(now));
        }
    }
    events.push(Event::Barrier(now));
    events.push(Event::Barrier(now + crate::HOLD));
    events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_window_once_and_equal_to_plain_datafusion(
        steps in prop::collection::vec((0u8..12, 0u8..6, 0u16..1000, any::<i16>(), prop::bool::weighted(0.1)), 1..250),
        origin in prop::sample::select(vec![START, 0, -100 * MINUTE]),
        chop in 1usize..60,
        gather in 1usize..80,
        each in 1usize..6,
        by_s in any::<bool>(),
    ) {
        let events = log(&steps, origin);
        let expected = reference(&events, MINUTE, LATENESS);
        let keys = if by_s { 3 } else { 2 };
        let (s, and_s) = if by_s { ("s AS s,", ", s") } else { ("", "") };
        let text = format!(
            "SELECT device, tumble(ts, INTERVAL '1 minute') AS w, {s} count(*) AS n, sum(v) AS a, min(i) AS b, \
             count(DISTINCT i) AS c, array_agg(i ORDER BY ts, i) AS e FROM t \
             GROUP BY device, tumble(ts, INTERVAL '1 minute') {and_s}"
        );
        let (plan, schema) = plan(&text);
        let live = run(&plan, &schema, &events, How { chop: 1000, gather, restore_each: None });
        let outcome = run(&plan, &schema, &events, How { chop, gather, restore_each: Some(each) });
        for ((_, got), (_, want)) in outcome.closed.iter().zip(&live.closed) {
            prop_assert_eq!(got, want);
        }

        let mut seen = BTreeSet::new();
        for (now, batches) in &outcome.closed {
            let mut here = BTreeSet::new();
            for batch in batches {
                let starts = batch.column(1).as_primitive::<TimestampNanosecondType>();
                for i in 0..batch.num_rows() {
                    here.insert((batch.column(0).as_string::<i32>().value(i).to_owned(), starts.value(i)));
                }
            }
            for key in here {
                prop_assert_eq!(expected.closed_at.get(&key), Some(now), "{:?}", key);
                prop_assert!(seen.insert(key));
            }
        }
        prop_assert_eq!(seen.len(), expected.closed_at.len());

        let late: u64 = outcome.late.iter().map(|l| l.records).sum();
        prop_assert_eq!(late, expected.late.len() as u64);

        let want = sorted(&plain(&schema, &expected.kept, &text), keys);
        let got = sorted(&outcome.batches(), keys);
        for at in 0..got.num_columns() {
            compare(&format!("column {at}"), got.column(at), want.column(at), Near::Relative(1e-9));
        }
    }
}
