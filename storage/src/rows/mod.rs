//! Entries of the log to rows of tables, as Arrow batches.
//!
//! The same code runs right after a commit and in replay. It cannot fail a shard: a payload that no longer reads
//! against the catalog becomes a dead letter, whole. Each admitted record becomes exactly one row or is accounted
//! for by one dead letter.

mod alerts;
mod aside;
mod clocks;
mod column;
mod keeping;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use device::clock::{Note, stamp_noted};
use device::entry::{Body, Entry, Reason, Records, Run};
use device::payload::{self, Head, RecordSink, Refusal};
use device::schema::{Catalog, StreamIndex, Value};
use device::time::Timestamp;

use self::alerts::Alerts;
use self::aside::{DeadLetters, Letter, Losses};
use self::clocks::ClockChanges;
use self::keeping::{Changes, Connections, Steps};
use self::stream::{RowHead, StreamRows};
use crate::schema::{ALERTS, CLOCK, COMMANDS, CONNECTIONS, DEAD_LETTERS, LOSSES, SHADOW_HISTORY};

/// Rows after which a batch is sealed.
const SEAL_ROWS: usize = 1 << 20;
/// Payload bytes after which batches are sealed: the offsets of a text column end at 2 GiB, and a payload's texts
/// can grow a few times over when they are written as JSON.
const SEAL_BYTES: usize = 64 << 20;

/// Most rows that room is made for before they come.
const MOST_ROOM: usize = 1 << 16;

/// Name of a table.
pub type TableName = Arc<str>;

/// Gathers entries into batches, one per table.
pub struct RowBuilder {
    catalog: Arc<Catalog>,
    streams: Vec<Option<StreamRows>>,
    /// How many rows the last batch of each stream had: as many will come again.
    sizes: Vec<usize>,
    dead_letters: DeadLetters,
    losses: Losses,
    alerts: Alerts,
    changes: Changes,
    steps: Steps,
    connections: Connections,
    clocks: ClockChanges,
    /// Batches that grew too large to go on with.
    sealed: Vec<(TableName, RecordBatch)>,
    rows: usize,
    bytes: usize,
    /// Length of each stream before the current entry, for those it touched.
    marks: Vec<(StreamIndex, usize)>,
}

impl RowBuilder {
    /// A builder without rows; payloads are read against `catalog`.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        let streams = catalog.streams().iter().map(|_| None).collect();
        let sizes = vec![0; catalog.streams().len()];
        Self {
            catalog,
            streams,
            sizes,
            dead_letters: DeadLetters::new(),
            losses: Losses::new(),
            alerts: Alerts::default(),
            changes: Changes::default(),
            steps: Steps::default(),
            connections: Connections::default(),
            clocks: ClockChanges::default(),
            sealed: Vec::new(),
            rows: 0,
            bytes: 0,
            marks: Vec::new(),
        }
    }

    /// The catalog that payloads are read against.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Rows gathered since the last [`RowBuilder::finish`].
    pub fn rows(&self) -> usize {
        self.sealed.iter().map(|(_, batch)| batch.num_rows()).sum::<usize>() + self.rows
    }

    /// Bytes of the payloads behind the rows that are not sealed yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds what an entry says. Fails only if a finished batch is not sound, which would be a bug.
    pub fn push(&mut self, entry: &Entry) -> Result<(), ArrowError> {
        match &entry.body {
            Body::Records(records) => {
                for change in records.clock.iter().flat_map(|note| &note.changes) {
                    self.clocks.push(entry.device.as_str(), entry.received, *change);
                    self.rows += 1;
                }
                self.push_records(entry, records);
            }
            Body::Loss(loss) => {
                self.losses.push(entry.device.as_str(), loss, entry.received);
                self.rows += 1;
            }
            Body::DeadLetter(letter) => {
                let device = if letter.sender.is_empty() { entry.device.as_str() } else { &letter.sender };
                self.dead_letters.push(&Letter {
                    device,
                    topic: &letter.topic,
                    received: entry.received,
                    reason: letter.reason.as_str(),
                    text: &letter.text,
                    payload: &letter.payload,
                    accounted: letter.accounted,
                });
                self.rows += 1;
                self.bytes += letter.payload.len() + letter.text.len();
            }
            Body::Transitions(transitions) => {
                for transition in transitions {
                    self.alerts.push(entry.device.as_str(), entry.received, transition);
                }
                self.rows += transitions.len();
            }
            Body::Shadow(change) => {
                self.changes.push(entry.device.as_str(), entry.received, change);
                self.rows += 1;
            }
            Body::Command(step) => {
                self.steps.push(entry.device.as_str(), entry.received, step);
                self.rows += 1;
            }
            Body::Status(status) => {
                self.connections.push(entry.device.as_str(), status);
                self.rows += 1;
            }
            Body::Closed { .. } | Body::Tick { .. } | Body::Acknowledge { .. } => {}
        }
        if self.rows >= SEAL_ROWS || self.bytes >= SEAL_BYTES {
            self.seal()?;
        }
        Ok(())
    }

    fn push_records(&mut self, entry: &Entry, records: &Records) {
        self.marks.clear();
        let mut filling = Filling {
            catalog: &self.catalog,
            streams: &mut self.streams,
            sizes: &self.sizes,
            marks: &mut self.marks,
            device: entry.device.as_str(),
            received: entry.received,
            assured: records.assured,
            runs: &records.runs,
            measured: None,
            note: records.clock.as_deref(),
            current: None,
            filled: 0,
        };
        let outcome = payload::read(records.format, &records.payload, &self.catalog, &mut filling);
        let filled = filling.filled;
        let admitted: u32 = records.runs.iter().map(|run| run.len).sum();
        let refusal = match outcome {
            Ok(()) if filled == admitted => {
                self.rows += filled as usize;
                self.bytes += records.payload.len();
                return;
            }
            Ok(()) => Refusal::new(
                Reason::Failed,
                format!("{admitted} records of this payload were admitted, but {filled} can be read now"),
            ),
            Err(refusal) => refusal,
        };
        for (stream, rows) in self.marks.drain(..) {
            if let Some(Some(stream)) = self.streams.get_mut(usize::from(stream)) {
                stream.truncate(rows);
            }
        }
        // One letter for each run: together they account for exactly what was admitted.
        let text = format!("admitted, but it no longer fits the declared streams: {}", refusal.text);
        let topic = format!("devices/{}/telemetry", entry.device);
        for run in &records.runs {
            self.dead_letters.push(&Letter {
                device: entry.device.as_str(),
                topic: &topic,
                received: entry.received,
                reason: refusal.reason.as_str(),
                text: &text,
                payload: &records.payload,
                accounted: Some((run.epoch, run.seq, run.len)),
            });
            self.rows += 1;
            self.bytes += records.payload.len();
        }
    }

    /// Gives out all rows gathered so far, in batches of one table each: streams in the order of the catalog, then
    /// `_dead_letters`, `_losses`, `_alerts`, `_shadow_history`, `_commands`, `_connections` and `_clock`; of a table that was
    /// sealed on the way, the older batch first.
    pub fn finish(&mut self) -> Result<Vec<(TableName, RecordBatch)>, ArrowError> {
        self.seal()?;
        Ok(std::mem::take(&mut self.sealed))
    }

    fn seal(&mut self) -> Result<(), ArrowError> {
        for ((slot, stream), size) in self.streams.iter_mut().zip(self.catalog.streams()).zip(&mut self.sizes) {
            if slot.as_ref().is_some_and(|rows| rows.len() > 0)
                && let Some(rows) = slot.take()
            {
                *size = rows.len();
                self.sealed.push((stream.name.clone(), rows.finish()?));
            }
        }
        if self.dead_letters.len() > 0 {
            let rows = std::mem::replace(&mut self.dead_letters, DeadLetters::new());
            self.sealed.push((TableName::from(DEAD_LETTERS), rows.finish()?));
        }
        if self.losses.len() > 0 {
            let rows = std::mem::replace(&mut self.losses, Losses::new());
            self.sealed.push((TableName::from(LOSSES), rows.finish()?));
        }
        if self.alerts.len() > 0 {
            let rows = std::mem::take(&mut self.alerts);
            self.sealed.push((TableName::from(ALERTS), rows.finish()?));
        }
        if self.changes.len() > 0 {
            let rows = std::mem::take(&mut self.changes);
            self.sealed.push((TableName::from(SHADOW_HISTORY), rows.finish()?));
        }
        if self.steps.len() > 0 {
            let rows = std::mem::take(&mut self.steps);
            self.sealed.push((TableName::from(COMMANDS), rows.finish()?));
        }
        if self.connections.len() > 0 {
            let rows = std::mem::take(&mut self.connections);
            self.sealed.push((TableName::from(CONNECTIONS), rows.finish()?));
        }
        if self.clocks.len() > 0 {
            let rows = std::mem::take(&mut self.clocks);
            self.sealed.push((TableName::from(CLOCK), rows.finish()?));
        }
        self.rows = 0;
        self.bytes = 0;
        Ok(())
    }
}

/// Takes the records of one payload: those that were admitted become rows.
struct Filling<'a> {
    catalog: &'a Catalog,
    streams: &'a mut [Option<StreamRows>],
    sizes: &'a [usize],
    marks: &'a mut Vec<(StreamIndex, usize)>,
    device: &'a str,
    received: Timestamp,
    assured: bool,
    /// The runs that are still to come; the first may be under way.
    runs: &'a [Run],
    measured: Option<(i64, u64)>,
    note: Option<&'a Note>,
    current: Option<StreamIndex>,
    filled: u32,
}

impl Filling<'_> {
    fn rows(&mut self) -> Option<&mut StreamRows> {
        self.streams.get_mut(usize::from(self.current?))?.as_mut()
    }
}

impl RecordSink for Filling<'_> {
    fn clock(&mut self, measured: (i64, u64)) {
        self.measured = Some(measured);
    }

    fn start(&mut self, head: &Head) -> bool {
        self.current = None;
        while let Some((run, later)) = self.runs.split_first()
            && head.index >= run.index.saturating_add(run.len)
        {
            self.runs = later;
        }
        let Some(run) = self.runs.first().filter(|run| head.index >= run.index) else { return false };
        let (Some(stream), Some(slot)) =
            (self.catalog.stream(head.stream), self.streams.get_mut(usize::from(head.stream)))
        else {
            return false;
        };
        let rows = slot.get_or_insert_with(|| {
            let usual = self.sizes.get(usize::from(head.stream)).copied().unwrap_or(0);
            StreamRows::new(stream, (usual + usual / 16).min(MOST_ROOM))
        });
        if !self.marks.iter().any(|(marked, _)| *marked == head.stream) {
            self.marks.push((head.stream, rows.len()));
        }
        rows.begin(&RowHead {
            device: self.device,
            epoch: run.epoch,
            seq: run.seq + u64::from(head.index - run.index),
            stamp: stamp_noted(head.ts, self.received, self.measured, self.note),
            received: self.received,
            assured: self.assured,
            head,
        });
        self.current = Some(head.stream);
        self.filled += 1;
        true
    }

    #[inline]
    fn value(&mut self, field: u16, value: Value<'_>) {
        if let Some(rows) = self.rows() {
            rows.value(field, value);
        }
    }

    fn extra(&mut self, json: &str) {
        if let Some(rows) = self.rows() {
            rows.extra(json);
        }
    }

    fn end(&mut self) {
        self.current = None;
    }
}
