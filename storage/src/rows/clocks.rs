//! Rows of `_clock`: what entries say of the clocks of their devices.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow::error::ArrowError;
use device::clock::Change;
use device::time::Timestamp;

use super::stream::times;
use crate::schema::clock_schema;

/// Changes, with their device and the time of their entry. They are few: kept as they are until a batch is made.
#[derive(Default)]
pub(super) struct ClockChanges(Vec<(String, Timestamp, Change)>);

impl ClockChanges {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, device: &str, received: Timestamp, change: Change) {
        self.0.push((device.to_owned(), received, change));
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.0;
        let time = |of: fn(&(String, Timestamp, Change)) -> Timestamp| -> ArrayRef {
            Arc::new(times(rows.iter().map(|row| of(row).0).collect()))
        };
        let number = |of: fn(&Change) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| of(&row.2))))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(device, ..)| device))),
            time(|(_, received, _)| *received),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(.., change)| change.kind.as_str()))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(.., change)| change.clock))),
            time(|(.., change)| change.span.0),
            time(|(.., change)| change.span.1),
            number(|change| change.offset),
            number(|change| change.err),
            Arc::new(Int64Array::from_iter(rows.iter().map(|(.., change)| change.rate))),
        ];
        RecordBatch::try_new(clock_schema(), columns)
    }
}
