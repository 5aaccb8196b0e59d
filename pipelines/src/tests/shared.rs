//! Random queries whose groups have rows of several shards, against plain DataFusion over the rows that count.
//!
//! Each shard has a pipeline of its own and its own barriers; what they contribute is delivered late, and some of it
//! twice, to the one that merges; all are restored at random places. Which rows count is said here once more, row by
//! row.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::*;
use arrow::compute;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use device::entry::Partial;
use device::id::ShardId;
use device::time::{SECOND, Timestamp};
use sql::PipelinePlan;

use super::differential::{Windowing, collect, groups, log, query};
use super::harness::*;
use crate::merge::Merge;
use crate::{HOLD, IDLE, LateRow, Pipeline, SLACK};

/// Seeds that every run of the tests takes.
const CASES: u64 = 150;

/// What a shard gave at a barrier.
#[derive(Debug, Clone)]
struct Letter {
    partial: Partial,
    /// The rows in it, and how far the shard was: slowest device, and time.
    rows: Vec<usize>,
    slowest: Option<i64>,
    now: i64,
}

/// A shard, and what is known of its devices: newest row, and when it was heard of.
struct Source {
    pipeline: Pipeline,
    rows: Vec<usize>,
    devices: HashMap<String, (i64, i64)>,
    said: Option<i64>,
    letters: VecDeque<Letter>,
    numbers: u64,
}

impl Source {
    /// The rule once more: the slowest of those heard of within a minute and no more than a minute behind the first.
    fn slowest(&mut self, now: i64) -> Option<i64> {
        let live = self.devices.values().filter(|(_, heard)| now - heard < IDLE);
        let marks: Vec<i64> = live.map(|(newest, _)| (newest - SLACK).min(now)).collect();
        let first = *marks.iter().max()?;
        let own = *marks.iter().filter(|mark| **mark >= first - IDLE).min()?;
        Some(self.said.map_or(own, |said| said.max(own)))
    }
}

/// The part that merges, and the same said plainly.
struct Owner {
    merge: Merge,
    heard: BTreeMap<u16, (Option<i64>, i64)>,
    shards: u16,
    frontier: i64,
    /// Rows that count, each with start and end of its window.
    kept: Vec<(usize, i64, i64)>,
    late: u64,
    open: BTreeMap<String, Vec<Session>>,
    rows: Vec<RecordBatch>,
    late_rows: Vec<LateRow>,
}

struct Session {
    first: i64,
    last: i64,
    rows: Vec<usize>,
}

struct Case {
    plan: PipelinePlan,
    schema: SchemaRef,
    windowing: Windowing,
    lateness: i64,
    /// Of the rows that pass the filter, the group.
    keys: HashMap<usize, String>,
    times: Vec<i64>,
}

impl Owner {
    fn take(&mut self, case: &Case, letter: &Letter, again: bool) {
        assert!(self.merge.take(&letter.partial).unwrap());
        if again {
            return;
        }
        self.heard.insert(letter.partial.shard.0, (letter.slowest, letter.now));
        let size = case.windowing.size();
        for row in &letter.rows {
            let (Some(key), ts) = (case.keys.get(row), case.times[*row]) else { continue };
            for start in case.windowing.starts(ts) {
                if self.frontier >= start + size + case.lateness {
                    self.late += 1;
                } else {
                    self.kept.push((*row, start, start + size));
                }
            }
            if let Windowing::Session(_) = case.windowing {
                let own = Session { first: ts, last: ts, rows: vec![*row] };
                self.open.entry(key.clone()).or_default().push(own);
            }
        }
    }

    fn barrier(&mut self, case: &Case, now: i64) {
        let closed = self.merge.barrier(Timestamp(now)).unwrap();
        self.rows.extend(closed.rows);
        self.late_rows.extend(closed.late);
        let before = self.frontier;
        if self.heard.len() == usize::from(self.shards) {
            let live: Vec<(i64, i64)> = self.heard.values().filter_map(|(at, now)| Some(((*at)?, *now))).collect();
            let least = live.iter().map(|(at, now)| now - at).min().unwrap_or(0);
            let slowest = live.iter().filter(|(at, now)| now - at <= least + IDLE).map(|(at, _)| *at).min();
            let reached = slowest.unwrap_or_else(|| self.heard.values().map(|(_, now)| *now).max().unwrap());
            self.frontier = self.frontier.max(reached.min(now));
        }
        let size = case.windowing.size();
        for sessions in self.open.values_mut() {
            sessions.sort_by_key(|s| s.first);
            let mut joined: Vec<Session> = Vec::new();
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
                let closes = session.last + size + case.lateness;
                if before >= closes {
                    self.late += session.rows.len() as u64;
                } else if self.frontier >= closes {
                    self.kept.extend(session.rows.iter().map(|r| (*r, session.first, session.last + size)));
                } else {
                    sessions.push(session);
                }
            }
        }
    }

    fn restore(&mut self, case: &Case) {
        let state = self.merge.checkpoint().unwrap();
        self.merge = Merge::restore(&case.plan, &case.schema, self.shards, &state).unwrap();
        assert_eq!(state, self.merge.checkpoint().unwrap(), "what is restored is what was saved");
    }
}

impl Source {
    fn barrier(&mut self, case: &Case, shard: u16, now: i64, restore: bool) {
        let closed = self.pipeline.barrier(Timestamp(now)).unwrap();
        assert!(closed.rows.is_empty() && closed.late.is_empty(), "a shard alone closes nothing");
        let slowest = self.slowest(now);
        if let Some(state) = self.pipeline.contribution() {
            self.said = slowest;
            self.numbers += 1 + now as u64 % 3;
            let partial = Partial { pipeline: "p".to_owned(), shard: ShardId(shard), number: self.numbers, state };
            let rows = std::mem::take(&mut self.rows);
            self.letters.push_back(Letter { partial, rows, slowest, now });
        }
        if restore {
            let state = self.pipeline.checkpoint().unwrap();
            self.pipeline = Pipeline::restore(&case.plan, case.schema.clone(), &state).unwrap();
            assert_eq!(state, self.pipeline.checkpoint().unwrap(), "what is restored is what was saved");
        }
    }
}

fn case(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let windowing = Windowing::random(&mut random);
    let lateness = random.below(40) as i64 * SECOND;
    let query = query(&mut random, false);
    let events = log(&mut random);
    let shards = 1 + random.below(3) as u16;
    let columns = random_columns(&mut random);
    let what = format!("seed {seed}: {} of {columns}, {windowing:?}, lateness {} s", query.text, lateness / SECOND);

    let written = query.text.replace("{W}", &windowing.written()).replace("{END}", "window_end()");
    let (plan, schema) = plan_of(&columns, &written, lateness);
    let rows: Vec<Row> =
        events.iter().filter_map(|e| if let Event::Row(r) = e { Some(r.clone()) } else { None }).collect();
    let all = batch(&schema, &rows);
    let keys = groups(&schema, &all, &query);
    let times = rows.iter().map(|row| row.ts).collect();
    let case = Case { plan, schema, windowing, lateness, keys, times };

    let mut sources: Vec<Source> = (0..shards)
        .map(|_| Source {
            pipeline: Pipeline::new(&case.plan, case.schema.clone()).unwrap(),
            rows: Vec::new(),
            devices: HashMap::new(),
            said: None,
            letters: VecDeque::new(),
            numbers: 0,
        })
        .collect();
    let mut owner = Owner {
        merge: Merge::new(&case.plan, &case.schema, shards, i64::MIN).unwrap(),
        heard: BTreeMap::new(),
        shards,
        frontier: i64::MIN,
        kept: Vec::new(),
        late: 0,
        open: BTreeMap::new(),
        rows: Vec::new(),
        late_rows: Vec::new(),
    };
    let mut at = 0;
    let mut end = START;
    for event in &events {
        match event {
            Event::Row(row) => {
                let digit = row.device.as_bytes()[1] - b'0';
                let source = &mut sources[usize::from(u16::from(digit) % shards)];
                source.pipeline.ingest(&batch(&case.schema, std::slice::from_ref(row))).unwrap();
                source.rows.push(at);
                let known = source.devices.entry(row.device.clone()).or_insert((i64::MIN, i64::MIN));
                *known = (known.0.max(row.ts), known.1.max(row.ingest));
                at += 1;
            }
            Event::Barrier(now) => {
                end = *now;
                for shard in 0..shards {
                    if random.below(2) == 0 {
                        sources[usize::from(shard)].barrier(&case, shard, *now, random.below(4) == 0);
                    }
                }
                for source in &mut sources {
                    while random.below(3) > 0 {
                        let Some(letter) = source.letters.pop_front() else { break };
                        owner.take(&case, &letter, false);
                        if random.below(5) == 0 {
                            owner.take(&case, &letter, true);
                        }
                    }
                }
                if random.below(2) == 0 {
                    owner.barrier(&case, *now);
                    if random.below(3) == 0 {
                        owner.restore(&case);
                    }
                }
            }
        }
    }
    for now in [end, end + 2 * IDLE, end + HOLD] {
        for (shard, source) in (0..).zip(&mut sources) {
            source.barrier(&case, shard, now, false);
            for letter in std::mem::take(&mut source.letters) {
                owner.take(&case, &letter, false);
            }
        }
        owner.barrier(&case, now);
    }
    assert!(owner.open.values().all(Vec::is_empty), "{what}: silence closes every session");
    if !query.text.contains("HAVING {W}") {
        let late: u64 = owner.late_rows.iter().map(|l| l.records).sum();
        assert_eq!(late, owner.late, "{what}: late");
    }

    let taken = UInt32Array::from_iter_values(owner.kept.iter().map(|(row, ..)| *row as u32));
    let taken = compute::take_record_batch(&all, &taken).unwrap();
    let times = |of: fn(&(usize, i64, i64)) -> i64| -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from_iter_values(owner.kept.iter().map(of)).with_timezone("UTC"))
    };
    let (mut fields, mut columns) = (case.schema.fields().to_vec(), taken.columns().to_vec());
    for (name, column) in [("w", times(|k| k.1)), ("we", times(|k| k.2))] {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        columns.push(column);
    }
    let taken = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let output = &case.plan.output;
    let want = collect(output, taken, &query.text.replace("{W}", "w").replace("{END}", "max(we)"));
    let got = compute::concat_batches(output, &owner.rows).unwrap();
    let keys = 1 + query.keys.len();
    let (got, want) = (sorted(&[got], keys), sorted(&[want], keys));
    for (at, near) in query.near.iter().enumerate() {
        let want = match got.column(at).data_type() {
            kind @ DataType::Decimal128(..) => compute::cast(want.column(at), kind).unwrap(),
            _ => want.column(at).clone(),
        };
        compare(&format!("{what}: column {at}"), got.column(at), &want, *near);
    }
}

#[test]
fn groups_of_several_shards_equal_plain_datafusion() {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("WEIR_SEED") {
        return case(seed);
    }
    let cases = 0..number("WEIR_CASES").unwrap_or(CASES);
    let failed: Vec<u64> = cases.filter(|seed| std::panic::catch_unwind(|| case(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "WEIR_SEED={} repeats one of the seeds {failed:?}", failed[0]);
}
