//! Random queries over random logs and streams of random columns, with restores at random places, against plain DataFusion over the rows that
//! count.
//!
//! Which rows count, and for which window, is said here once more, row by row and without any state rows. Plain
//! DataFusion then groups those rows by that window. `WEIR_CASES=2000` runs so many seeds, `WEIR_SEED=17` one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::*;
use arrow::compute;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use device::time::SECOND;

use super::forms::FORMS;
use super::harness::*;
use crate::{HOLD, SLACK};

/// Seeds that every run of the tests takes.
const CASES: u64 = 200;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Windowing {
    Tumble(i64),
    Hop(i64, i64),
    Session(i64),
}

impl Windowing {
    pub(super) fn random(random: &mut Random) -> Self {
        let seconds = [1, 5, 10, 15, 20, 30, 60, 90, 300];
        let mut pick = || seconds[random.below(9) as usize] * SECOND;
        let (a, b, kind) = (pick(), pick(), random.below(3));
        match kind {
            0 => Self::Tumble(a),
            1 => Self::Hop(a.min(b), a.max(b)),
            _ => Self::Session(a),
        }
    }

    pub(super) fn written(self) -> String {
        let length = |ns: i64| format!("INTERVAL '{} seconds'", ns / SECOND);
        match self {
            Self::Tumble(size) => format!("tumble(ts, {})", length(size)),
            Self::Hop(slide, size) => format!("hop(ts, {}, {})", length(slide), length(size)),
            Self::Session(gap) => format!("session(ts, {})", length(gap)),
        }
    }

    pub(super) fn size(self) -> i64 {
        match self {
            Self::Tumble(size) | Self::Hop(_, size) | Self::Session(size) => size,
        }
    }

    pub(super) fn starts(self, ts: i64) -> Vec<i64> {
        let (slide, size) = match self {
            Self::Tumble(size) => (size, size),
            Self::Hop(slide, size) => (slide, size),
            Self::Session(_) => return Vec::new(),
        };
        let last = ts.div_euclid(slide) * slide;
        (0..).map(|n| last - n * slide).take_while(|start| ts < start + size).collect()
    }
}

/// A query with `{W}` and `{END}` in the place of the window.
pub(super) struct Query {
    pub(super) text: String,
    pub(super) keys: Vec<&'static str>,
    pub(super) filter: &'static str,
    pub(super) near: Vec<Near>,
}

/// With `device` among its groups, or without.
pub(super) fn query(random: &mut Random, by_device: bool) -> Query {
    let all = ["s", "b", "i % 3", "upper(s)", "v > 0"];
    let mut keys: Vec<&str> = Vec::new();
    while random.below(3) == 0 && keys.len() < 2 {
        let key = all[random.below(5) as usize];
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut near = vec![Near::Equal; 1 + usize::from(by_device) + keys.len()];
    let device = if by_device { "device, " } else { "" };
    let mut items = vec![format!("{device}{{W}} AS w0")];
    items.extend(keys.iter().enumerate().map(|(at, key)| format!("{key} AS k{at}")));
    // DataFusion gives two aggregates that differ in a cast one name, and refuses them.
    let without_cast = |form: &str| form.replace("CAST(v AS DECIMAL(18, 3))", "v");
    let mut taken: Vec<String> = Vec::new();
    for at in 0..1 + random.below(4) {
        let (form, how) = FORMS[random.below(FORMS.len() as u64) as usize];
        // Without an order of its own, its result is that of the order in which states are merged.
        let usable = form != "first_value(i) IGNORE NULLS" && !taken.contains(&without_cast(form));
        let (form, how) = if usable { (form, how) } else { ("count(*)", Near::Equal) };
        taken.push(without_cast(form));
        items.push(format!("{form} AS a{at}"));
        near.push(how);
    }
    if random.below(3) == 0 {
        items.push("{END} AS w_end".to_owned());
        near.push(Near::Equal);
    }
    let filters = ["true", "v IS NOT NULL", "b", "i > -5 AND s <> 's1'", "abs(v) < 250 OR v IS NULL"];
    let filter = filters[random.below(5) as usize];
    let havings = ["true", "count(*) > 2", "{W} > TIMESTAMP '2026-01-01T00:02:00Z'", "max(i) > 0 OR device = 'd1'"];
    let having = havings[random.below(3 + u64::from(by_device)) as usize];
    let groups: String = keys.iter().map(|key| format!(", {key}")).collect();
    let text =
        format!("SELECT {} FROM t WHERE {filter} GROUP BY {device}{{W}}{groups} HAVING {having}", items.join(", "));
    Query { text, keys, filter, near }
}

pub(super) fn log(random: &mut Random) -> Vec<Event> {
    let rows = 1 + random.below(400);
    let every = 2 + random.below(40);
    let devices = 1 + random.below(5);
    let pause = 1 + random.below(8) as i64;
    let mut now = START;
    let mut events = Vec::new();
    for row in 0..rows as i64 {
        now += random.below(4 * pause as u64) as i64 * SECOND / 4;
        if random.below(60) == 0 {
            now += random.below(400) as i64 * SECOND;
        }
        let behind = match random.below(20) {
            0 => random.below(600) as i64 * SECOND,
            1..6 => random.below(40) as i64 * SECOND / 4,
            _ => 0,
        };
        let i = random.below(20) as i64;
        events.push(Event::Row(Row {
            device: format!("d{}", random.below(devices)),
            // No two alike: what is ordered by time has one order.
            ts: now - behind + row,
            ingest: now,
            v: (random.below(10) > 0).then(|| random.below(1_000_000) as f64 / 1000.0 - 300.0),
            i: (i > 0).then_some(i - 10),
            s: (random.below(9) > 0).then(|| format!("s{}", random.below(4))),
            b: (random.below(7) > 0).then(|| random.below(3) > 0),
        }));
        if random.below(every) == 0 {
            events.push(Event::Barrier(now));
        }
    }
    events.push(Event::Barrier(now));
    events.push(Event::Barrier(now + HOLD));
    events
}

/// A session while it is open.
struct Open {
    first: i64,
    last: i64,
    rows: Vec<usize>,
}

/// The rows that count, each with start and end of its window, and how often a row came too late for a window.
struct Counted {
    kept: Vec<(usize, i64, i64)>,
    late: u64,
}

/// `keys`: of the rows that pass the filter, the group.
fn counted(events: &[Event], windowing: Windowing, lateness: i64, keys: &HashMap<usize, String>) -> Counted {
    let size = windowing.size();
    let mut out = Counted { kept: Vec::new(), late: 0 };
    let mut newest: HashMap<&str, (i64, i64)> = HashMap::new();
    let mut frontiers: HashMap<&str, i64> = HashMap::new();
    let mut open: BTreeMap<(&str, &str), Vec<Open>> = BTreeMap::new();
    let mut row = 0;
    for event in events {
        match event {
            Event::Row(Row { device, ts, ingest, .. }) => {
                let at = newest.entry(device).or_insert((i64::MIN, i64::MIN));
                *at = (at.0.max(*ts), at.1.max(*ingest));
                if let Some(key) = keys.get(&row) {
                    let frontier = frontiers.get(&**device).copied().unwrap_or(i64::MIN);
                    for start in windowing.starts(*ts) {
                        if frontier >= start + size + lateness {
                            out.late += 1;
                        } else {
                            out.kept.push((row, start, start + size));
                        }
                    }
                    if let Windowing::Session(_) = windowing {
                        let own = Open { first: *ts, last: *ts, rows: vec![row] };
                        open.entry((device, key)).or_default().push(own);
                    }
                }
                row += 1;
            }
            Event::Barrier(now) => {
                let before = frontiers.clone();
                for (device, (ts, heard)) in &newest {
                    let mut reached = ts - SLACK;
                    if now - heard >= HOLD {
                        reached = reached.max(ts + size + lateness);
                    }
                    let at = frontiers.entry(device).or_insert(i64::MIN);
                    *at = (*at).max(reached.min(*now));
                }
                for ((device, _), sessions) in &mut open {
                    sessions.sort_by_key(|s| s.first);
                    let mut joined: Vec<Open> = Vec::new();
                    for session in sessions.drain(..) {
                        match joined.last_mut() {
                            Some(one) if session.first < one.last + size => {
                                one.last = one.last.max(session.last);
                                one.rows.extend(session.rows);
                            }
                            _ => joined.push(session),
                        }
                    }
                    for session in joined {
                        let closes = session.last + size + lateness;
                        if before.get(device).is_some_and(|f| *f >= closes) {
                            out.late += session.rows.len() as u64;
                        } else if frontiers[device] >= closes {
                            out.kept.extend(session.rows.iter().map(|r| (*r, session.first, session.last + size)));
                        } else {
                            sessions.push(session);
                        }
                    }
                }
            }
        }
    }
    assert!(open.values().all(Vec::is_empty), "silence closes every session");
    out
}

pub(super) fn collect(schema: &SchemaRef, rows: RecordBatch, select: &str) -> RecordBatch {
    let context = SessionContext::new();
    context.register_table("t", Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batches = runtime.block_on(async { context.sql(select).await.unwrap().collect().await.unwrap() });
    match batches.first() {
        Some(first) => compute::concat_batches(&first.schema(), &batches).unwrap(),
        None => RecordBatch::new_empty(schema.clone()),
    }
}

/// Of each row that passes the filter, its group.
pub(super) fn groups(schema: &SchemaRef, rows: &RecordBatch, query: &Query) -> HashMap<usize, String> {
    let keys: String = query.keys.iter().map(|k| format!(", {k}")).collect();
    let passed = collect(schema, rows.clone(), &format!("SELECT seq{keys} FROM t WHERE {}", query.filter));
    let seq = compute::cast(passed.column(0), &DataType::Int64).unwrap();
    let texts = |row| {
        let columns = passed.columns().iter().skip(1);
        columns.map(|c| arrow::util::display::array_value_to_string(c, row).unwrap() + "|").collect::<String>()
    };
    seq.as_primitive::<Int64Type>().values().iter().enumerate().map(|(row, seq)| (*seq as usize, texts(row))).collect()
}

fn case(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let windowing = Windowing::random(&mut random);
    let lateness = random.below(40) as i64 * SECOND;
    let query = query(&mut random, true);
    let events = log(&mut random);
    let how = How {
        chop: 1 + random.below(60) as usize,
        gather: 1 + random.below(80) as usize,
        restore_each: (random.below(4) > 0).then(|| 1 + random.below(5) as usize),
    };
    let columns = random_columns(&mut random);
    let what = format!("seed {seed}: {} of {columns}, {windowing:?}, lateness {} s", query.text, lateness / SECOND);

    let written = query.text.replace("{W}", &windowing.written()).replace("{END}", "window_end()");
    let (plan, schema) = plan_of(&columns, &written, lateness);
    let outcome = run(&plan, &schema, &events, how);
    let straight = run(&plan, &schema, &events, How { chop: 1000, restore_each: None, ..how });
    assert_eq!(outcome.closed, straight.closed, "{what}: restored and not");

    let rows: Vec<Row> =
        events.iter().filter_map(|e| if let Event::Row(r) = e { Some(r.clone()) } else { None }).collect();
    let all = batch(&schema, &rows);
    let expected = counted(&events, windowing, lateness, &groups(&schema, &all, &query));
    // A condition on the window may be moved to the rows, and then a row that it drops is not late.
    if !query.text.contains("HAVING {W}") {
        let late: u64 = outcome.late.iter().map(|l| l.records).sum();
        assert_eq!(late, expected.late, "{what}: late");
    }

    let taken = UInt32Array::from_iter_values(expected.kept.iter().map(|(row, ..)| *row as u32));
    let taken = compute::take_record_batch(&all, &taken).unwrap();
    let times = |of: fn(&(usize, i64, i64)) -> i64| -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from_iter_values(expected.kept.iter().map(of)).with_timezone("UTC"))
    };
    let (mut fields, mut columns) = (schema.fields().to_vec(), taken.columns().to_vec());
    for (name, column) in [("w", times(|k| k.1)), ("we", times(|k| k.2))] {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        columns.push(column);
    }
    let taken = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let batch_query = query.text.replace("{W}", "w").replace("{END}", "max(we)");
    let want = collect(&plan.output, taken, &batch_query);
    let got = compute::concat_batches(&plan.output, &outcome.batches()).unwrap();
    let keys = 2 + query.keys.len();
    let (got, want) = (sorted(&[got], keys), sorted(&[want], keys));
    let same = |name: &str, got: &RecordBatch, want: &RecordBatch| {
        for (at, near) in query.near.iter().enumerate() {
            // DataFusion's own precision of a decimal depends on how it came to plan the query.
            let want = match got.column(at).data_type() {
                kind @ DataType::Decimal128(..) => compute::cast(want.column(at), kind).unwrap(),
                _ => want.column(at).clone(),
            };
            compare(&format!("{what}: {name}, column {at}"), got.column(at), &want, *near);
        }
    };
    same("result", &got, &want);

    // Nothing comes between the last two barriers: what was open then is what the last one gives.
    let together = |rows: &[RecordBatch]| sorted(&[compute::concat_batches(&plan.output, rows).unwrap()], keys);
    let last = outcome.closed.last().map_or(&[][..], |(_, rows)| rows);
    same("provisional", &together(&outcome.provisional), &together(last));
}

#[test]
fn random_queries_equal_plain_datafusion() {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("WEIR_SEED") {
        return case(seed);
    }
    let cases = 0..number("WEIR_CASES").unwrap_or(CASES);
    let failed: Vec<u64> = cases.filter(|seed| std::panic::catch_unwind(|| case(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "WEIR_SEED={} repeats one of the seeds {failed:?}", failed[0]);
}
