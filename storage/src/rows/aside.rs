//! What is stored beside the streams: payloads that could not become rows, and declared losses.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, UInt8Array};
use arrow::datatypes::{Int64Type, UInt32Type};
use arrow::error::ArrowError;
use device::entry::Loss;
use device::seq::Epoch;
use device::time::Timestamp;

use super::column::{Numbers, Texts};
use super::stream::times;
use crate::schema::{dead_letters_schema, losses_schema};

/// One dead letter, borrowed from its entry.
pub(super) struct Letter<'a> {
    pub(super) device: &'a str,
    pub(super) topic: &'a str,
    pub(super) received: Timestamp,
    pub(super) reason: &'a str,
    pub(super) text: &'a str,
    pub(super) payload: &'a [u8],
    /// Epoch, first number and count of what it accounts for.
    pub(super) accounted: Option<(Epoch, u64, u32)>,
}

/// Rows of `_dead_letters`.
pub(super) struct DeadLetters {
    device: Texts,
    topic: Texts,
    received: Vec<i64>,
    reason: Texts,
    text: Texts,
    payload: Texts,
    epoch: Numbers<Int64Type>,
    seq: Numbers<Int64Type>,
    records: Numbers<UInt32Type>,
}

impl DeadLetters {
    pub(super) fn new() -> Self {
        Self {
            device: Texts::new(),
            topic: Texts::new(),
            received: Vec::new(),
            reason: Texts::new(),
            text: Texts::new(),
            payload: Texts::new(),
            epoch: Numbers::new(),
            seq: Numbers::new(),
            records: Numbers::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.received.len()
    }

    pub(super) fn push(&mut self, letter: &Letter<'_>) {
        let row = self.len();
        self.device.set(row, letter.device.as_bytes());
        self.topic.set(row, letter.topic.as_bytes());
        self.received.push(letter.received.0);
        self.reason.set(row, letter.reason.as_bytes());
        self.text.set(row, letter.text.as_bytes());
        self.payload.set(row, letter.payload);
        if let Some((epoch, seq, records)) = letter.accounted {
            self.epoch.set(row, epoch.0 as i64);
            self.seq.set(row, seq as i64);
            self.records.set(row, records);
        }
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.device.finish_text(rows)?),
            Arc::new(self.topic.finish_text(rows)?),
            Arc::new(times(self.received)),
            Arc::new(self.reason.finish_text(rows)?),
            Arc::new(self.text.finish_text(rows)?),
            Arc::new(self.payload.finish_bytes(rows)?),
            Arc::new(self.epoch.finish(rows)),
            Arc::new(self.seq.finish(rows)),
            Arc::new(self.records.finish(rows)),
        ];
        RecordBatch::try_new(dead_letters_schema(), columns)
    }
}

/// Rows of `_losses`.
pub(super) struct Losses {
    device: Texts,
    epoch: Vec<i64>,
    from: Vec<i64>,
    to: Vec<i64>,
    reason: Vec<u8>,
    reason_text: Texts,
    received: Vec<i64>,
}

impl Losses {
    pub(super) fn new() -> Self {
        Self {
            device: Texts::new(),
            epoch: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
            reason: Vec::new(),
            reason_text: Texts::new(),
            received: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.received.len()
    }

    pub(super) fn push(&mut self, device: &str, loss: &Loss, received: Timestamp) {
        let row = self.len();
        self.device.set(row, device.as_bytes());
        self.epoch.push(loss.epoch.0 as i64);
        self.from.push(loss.from as i64);
        self.to.push(loss.to as i64);
        self.reason.push(loss.reason as u8);
        self.reason_text.set(row, loss.reason.as_str().as_bytes());
        self.received.push(received.0);
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.device.finish_text(rows)?),
            Arc::new(Int64Array::from(self.epoch)),
            Arc::new(Int64Array::from(self.from)),
            Arc::new(Int64Array::from(self.to)),
            Arc::new(UInt8Array::from(self.reason)),
            Arc::new(self.reason_text.finish_text(rows)?),
            Arc::new(times(self.received)),
        ];
        RecordBatch::try_new(losses_schema(), columns)
    }
}
