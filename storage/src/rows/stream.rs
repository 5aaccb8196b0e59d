//! The rows of one stream: system columns, then the declared fields.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, Int64Array, PrimitiveArray, RecordBatch, TimestampNanosecondArray, UInt8Array,
    UInt16Array, UInt32Array,
};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampNanosecondType};
use arrow::error::ArrowError;
use device::clock::Stamp;
use device::payload::Head;
use device::schema::{Stream, Value};
use device::seq::Epoch;
use device::time::Timestamp;

use super::column::{Column, Flags, Numbers, Texts, trim};
use crate::schema::stream_schema;

/// A time column, from numbers.
pub(super) fn times(values: Vec<i64>) -> TimestampNanosecondArray {
    TimestampNanosecondArray::from(values).with_timezone("UTC")
}

/// What a row has besides its values.
pub(super) struct RowHead<'a> {
    pub(super) device: &'a str,
    pub(super) epoch: Epoch,
    pub(super) seq: u64,
    pub(super) stamp: Stamp,
    pub(super) received: Timestamp,
    pub(super) assured: bool,
    pub(super) head: &'a Head,
}

pub(super) struct StreamRows {
    schema: SchemaRef,
    device: Texts,
    epoch: Vec<i64>,
    seq: Vec<i64>,
    ts: Vec<i64>,
    ts_device: Numbers<TimestampNanosecondType>,
    ts_ingest: Vec<i64>,
    clock_err: Numbers<Int64Type>,
    clock_q: Vec<u8>,
    schema_minor: Vec<u16>,
    flags: Vec<u32>,
    assured: Flags,
    extra: Texts,
    fields: Vec<Column>,
}

impl StreamRows {
    /// With room for `rows` rows in the columns that every row has.
    pub(super) fn new(stream: &Stream, rows: usize) -> Self {
        Self {
            schema: stream_schema(stream),
            device: Texts::with_capacity(rows),
            epoch: Vec::with_capacity(rows),
            seq: Vec::with_capacity(rows),
            ts: Vec::with_capacity(rows),
            ts_device: Numbers::with_capacity(rows),
            ts_ingest: Vec::with_capacity(rows),
            clock_err: Numbers::with_capacity(rows),
            clock_q: Vec::with_capacity(rows),
            schema_minor: Vec::with_capacity(rows),
            flags: Vec::with_capacity(rows),
            assured: Flags::new(),
            extra: Texts::new(),
            fields: stream.fields.iter().map(|field| Column::new(field.kind)).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ts.len()
    }

    pub(super) fn begin(&mut self, row: &RowHead<'_>) {
        let at = self.len();
        self.device.set(at, row.device.as_bytes());
        // Both are at most 2^63-1; admission sees to it.
        self.epoch.push(row.epoch.0 as i64);
        self.seq.push(row.seq as i64);
        self.ts.push(row.stamp.ts.0);
        if let Some(ts) = row.head.ts {
            self.ts_device.set(at, ts.0);
        }
        self.ts_ingest.push(row.received.0);
        if let Some(err) = row.stamp.clock_err_ns {
            self.clock_err.set(at, err);
        }
        self.clock_q.push(row.stamp.quality);
        self.schema_minor.push(row.head.schema_minor);
        self.flags.push(row.head.flags);
        self.assured.set(at, row.assured);
    }

    #[inline]
    pub(super) fn value(&mut self, field: u16, value: Value<'_>) {
        let Some(row) = self.ts.len().checked_sub(1) else { return };
        if let Some(column) = self.fields.get_mut(usize::from(field)) {
            column.set(row, value);
        }
    }

    pub(super) fn extra(&mut self, json: &str) {
        if let Some(row) = self.ts.len().checked_sub(1) {
            self.extra.set(row, json.as_bytes());
        }
    }

    /// Forgets all rows from `rows` on.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.device.truncate(rows);
        self.epoch.truncate(rows);
        self.seq.truncate(rows);
        self.ts.truncate(rows);
        self.ts_device.truncate(rows);
        self.ts_ingest.truncate(rows);
        self.clock_err.truncate(rows);
        self.clock_q.truncate(rows);
        self.schema_minor.truncate(rows);
        self.flags.truncate(rows);
        self.assured.truncate(rows);
        self.extra.truncate(rows);
        for field in &mut self.fields {
            field.truncate(rows);
        }
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.len();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.device.finish_text(rows)?),
            Arc::new(Int64Array::from(trim(self.epoch))),
            Arc::new(Int64Array::from(trim(self.seq))),
            Arc::new(times(trim(self.ts))),
            Arc::new(in_utc(self.ts_device.finish(rows))),
            Arc::new(times(trim(self.ts_ingest))),
            Arc::new(self.clock_err.finish(rows)),
            Arc::new(UInt8Array::from(trim(self.clock_q))),
            Arc::new(UInt16Array::from(trim(self.schema_minor))),
            Arc::new(UInt32Array::from(trim(self.flags))),
            Arc::new(self.assured.finish(rows)),
            Arc::new(self.extra.finish_text(rows)?),
        ];
        for field in self.fields {
            columns.push(field.finish(rows)?);
        }
        RecordBatch::try_new(self.schema, columns)
    }
}

fn in_utc<T>(array: PrimitiveArray<T>) -> PrimitiveArray<T>
where
    T: ArrowPrimitiveType + arrow::datatypes::ArrowTimestampType,
{
    array.with_timezone("UTC")
}
