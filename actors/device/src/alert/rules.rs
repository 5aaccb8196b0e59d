//! All rules of one version of a project, and what they say about a payload.

use std::sync::Arc;

use super::condition::Scalar;
use super::lane::OLD;
use super::machine::Sample;
use super::rule::Rule;
use crate::clock::{Note, stamp_noted};
use crate::entry::{Records, Run};
use crate::payload::{self, Head, RecordSink};
use crate::schema::{Catalog, StreamIndex, Value};
use crate::time::Timestamp;

/// Flag of a frame or record: it was buffered, and is sent again or late.
const REPLAYED: u32 = 1;

/// Streams of a payload as bits; those from 63 on share one.
pub fn stream_bit(stream: StreamIndex) -> u64 {
    1 << stream.min(63)
}

/// A record as its table has it.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Its stream, in the catalog of the rules.
    pub stream: StreamIndex,
    /// Its time.
    pub ts: Timestamp,
    /// Its flags.
    pub flags: u32,
    /// Its values, by the index of their fields.
    pub values: &'a [(u16, Value<'a>)],
}

/// All rules of one version of a project.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    version: u64,
    /// The streams that they look at, as that version of the project has them.
    catalog: Arc<Catalog>,
    all: Vec<Rule>,
    streams: u64,
    /// By rule: the fields that it reads.
    fields: Vec<Vec<u16>>,
}

impl Rules {
    /// The rules of a project and its streams; `version` is another one where the rules differ.
    pub fn new(version: u64, all: Vec<Rule>, catalog: Arc<Catalog>) -> Self {
        let streams = all.iter().fold(0, |bits, rule| bits | stream_bit(rule.stream));
        let fields = all
            .iter()
            .map(|rule| {
                let mut fields = std::collections::BTreeSet::new();
                for level in &rule.levels {
                    let exprs = [Some(&level.raise), level.clear.as_ref(), level.subject.as_ref()];
                    exprs.into_iter().flatten().for_each(|expr| expr.fields(&mut fields));
                }
                fields.into_iter().collect()
            })
            .collect();
        Self { version, catalog, all, streams, fields }
    }

    /// Which version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The streams that they look at.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The rules; lanes know them by their index.
    pub fn all(&self) -> &[Rule] {
        &self.all
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a payload with records of these streams (see [`stream_bit`]) has to be looked at.
    pub fn look_at(&self, streams: u64) -> bool {
        self.streams & streams != 0
    }

    /// What the rules say about a record whose values are known.
    pub(super) fn row(&self, device: &str, received: Timestamp, row: &Row<'_>) -> Vec<(u16, Sample)> {
        let old = row.flags & REPLAYED != 0 || received.since(row.ts) > OLD;
        let mut reader = Reader {
            rules: self,
            device,
            received,
            runs: &[],
            measured: None,
            // The time of the row is known.
            note: None,
            head: Some((row.stream, row.ts, old)),
            cells: Vec::new(),
            out: Vec::new(),
        };
        row.values.iter().for_each(|(field, value)| reader.value(*field, *value));
        reader.end();
        reader.out
    }

    /// The fields of a stream that rules read, by index.
    pub fn fields(&self, stream: StreamIndex) -> std::collections::BTreeSet<u16> {
        let of = self.all.iter().zip(&self.fields).filter(|(rule, _)| rule.stream == stream);
        of.flat_map(|(_, fields)| fields.iter().copied()).collect()
    }

    /// What the rules say about the admitted records of a payload, in their order; nothing if it does not read.
    pub(super) fn samples(&self, device: &str, received: Timestamp, records: &Records) -> Vec<(u16, Sample)> {
        let mut reader = Reader {
            rules: self,
            device,
            received,
            runs: &records.runs,
            measured: None,
            note: records.clock.as_deref(),
            head: None,
            cells: Vec::new(),
            out: Vec::new(),
        };
        match payload::read(records.format, &records.payload, &self.catalog, &mut reader) {
            Ok(()) => reader.out,
            Err(_) => Vec::new(),
        }
    }
}

/// A value that outlives the reading of its record.
enum Cell {
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
}

struct Reader<'a> {
    rules: &'a Rules,
    device: &'a str,
    received: Timestamp,
    /// The runs that are still to come; the first may be under way.
    runs: &'a [Run],
    measured: Option<(i64, u64)>,
    note: Option<&'a Note>,
    head: Option<(StreamIndex, Timestamp, bool)>,
    cells: Vec<(u16, Cell)>,
    out: Vec<(u16, Sample)>,
}

impl RecordSink for Reader<'_> {
    fn clock(&mut self, measured: (i64, u64)) {
        self.measured = Some(measured);
    }

    fn start(&mut self, head: &Head) -> bool {
        self.head = None;
        self.cells.clear();
        while let Some((run, later)) = self.runs.split_first()
            && head.index >= run.index.saturating_add(run.len)
        {
            self.runs = later;
        }
        let admitted = self.runs.first().is_some_and(|run| head.index >= run.index);
        if !admitted || !self.rules.all.iter().any(|rule| rule.stream == head.stream) {
            return false;
        }
        let ts = stamp_noted(head.ts, self.received, self.measured, self.note).ts;
        let old = head.flags & REPLAYED != 0 || self.received.since(ts) > OLD;
        self.head = Some((head.stream, ts, old));
        true
    }

    fn value(&mut self, field: u16, value: Value<'_>) {
        let Some((stream, ..)) = self.head else { return };
        let read = |(rule, fields): (&Rule, &Vec<u16>)| rule.stream == stream && fields.contains(&field);
        if !self.rules.all.iter().zip(&self.rules.fields).any(read) {
            return;
        }
        let cell = match value {
            Value::Bool(value) => Cell::Bool(value),
            Value::I64(value) => Cell::Int(i128::from(value)),
            Value::U64(value) => Cell::Int(i128::from(value)),
            Value::F32(value) => Cell::Float(f64::from(value)),
            Value::F64(value) => Cell::Float(value),
            Value::Text(value) => Cell::Text(value.to_owned()),
            Value::Bytes(_) | Value::F64List(_) | Value::I64List(_) => return,
        };
        self.cells.push((field, cell));
    }

    fn extra(&mut self, _: &str) {}

    fn end(&mut self) {
        let Some((stream, ts, old)) = self.head.take() else { return };
        let (cells, device) = (&self.cells, self.device);
        let field = |wanted: u16| match cells.iter().find(|(field, _)| *field == wanted) {
            Some((_, Cell::Bool(value))) => Scalar::Bool(*value),
            Some((_, Cell::Int(value))) => Scalar::Int(*value),
            Some((_, Cell::Float(value))) => Scalar::float(*value),
            Some((_, Cell::Text(value))) => Scalar::Text(value),
            None => Scalar::Null,
        };
        for (at, rule) in (0u16..).zip(&self.rules.all).filter(|(_, rule)| rule.stream == stream) {
            let mut sample = Sample { ts, raise: 0, known: 0, clear: 0, old, value: None };
            for (level, bit) in rule.levels.iter().zip((0..8).map(|at| 1u8 << at)) {
                let raise = level.raise.holds(device, &field);
                let clear = match &level.clear {
                    Some(clear) => clear.holds(device, &field),
                    None => raise.map(|raise| !raise),
                };
                let set = |holds: bool| if holds { bit } else { 0 };
                sample.raise |= set(raise == Some(true));
                sample.known |= set(raise.is_some());
                sample.clear |= set(clear == Some(true));
            }
            // A reading of bad quality, or a record that is about something else.
            if sample.known != 0 || sample.clear != 0 {
                let subject = rule.levels.first().and_then(|level| level.subject.as_ref());
                sample.value = subject.and_then(|subject| subject.value(device, &field).as_f64());
                self.out.push((at, sample));
            }
        }
    }
}
