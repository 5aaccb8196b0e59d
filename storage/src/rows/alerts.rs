//! Rows of `_alerts`: the transitions that devices have written into the log.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;
use device::alert::Transition;
use device::time::Timestamp;

use super::column::Numbers;
use super::stream::times;
use crate::schema::alerts_schema;

/// Transitions, with their device and the time of their entry. They are few: kept as they are until a batch is made.
#[derive(Default)]
pub(super) struct Alerts(Vec<(String, Timestamp, Transition)>);

impl Alerts {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, device: &str, received: Timestamp, transition: &Transition) {
        self.0.push((device.to_owned(), received, transition.clone()));
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.0;
        let text = |of: fn(&Transition) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, _, row)| of(row))))
        };
        let maybe = |of: fn(&Transition) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(rows.iter().map(|(_, _, row)| of(row))))
        };
        let time = |of: fn(&Transition) -> Timestamp| -> ArrayRef {
            Arc::new(times(rows.iter().map(|(_, _, row)| of(row).0).collect()))
        };
        let flag = |of: fn(&Transition) -> bool| -> ArrayRef {
            Arc::new(BooleanArray::from_iter(rows.iter().map(|(_, _, row)| Some(of(row)))))
        };
        let mut until = Numbers::<TimestampNanosecondType>::new();
        for (at, (_, _, row)) in rows.iter().enumerate() {
            if let Some(ack) = &row.ack {
                until.set(at, ack.until.0);
            }
        }
        let some = |text: String| (!text.is_empty()).then_some(text);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(device, _, _)| device))),
            text(|row| row.rule.to_string()),
            time(|row| row.ts),
            text(|row| row.event.as_str().to_owned()),
            text(|row| row.to.as_str().to_owned()),
            text(|row| row.from.as_str().to_owned()),
            text(|row| row.severity.to_string()),
            text(|row| row.incident.to_string()),
            time(|row| row.since),
            Arc::new(Float64Array::from_iter(rows.iter().map(|(_, _, row)| row.value))),
            flag(|row| row.backfilled),
            flag(|row| row.history),
            flag(|row| row.stale),
            maybe(|row| row.ack.as_ref().map(|ack| ack.by.to_string())),
            Arc::new(until.finish(rows.len()).with_timezone("UTC")),
            Arc::new(StringArray::from_iter(rows.iter().map(|(_, _, row)| some(row.told.join(", "))))),
            Arc::new(StringArray::from_iter(rows.iter().map(|(_, _, row)| some(row.labels.to_string())))),
            text(|row| format!("{:016x}", row.version)),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, _, row)| row.number))),
            Arc::new(times(rows.iter().map(|(_, received, _)| received.0).collect())),
        ];
        RecordBatch::try_new(alerts_schema(), columns)
    }
}
