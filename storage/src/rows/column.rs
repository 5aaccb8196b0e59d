//! Column vectors that rows are written into, one value at a time.
//!
//! A value is set at a row; rows that were never set are null. So a record costs only the values it has, and there
//! is no cell type between decoding and Arrow.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, BooleanBufferBuilder, ListArray, PrimitiveArray,
    StringArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{Field, Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow::error::ArrowError;
use device::schema::{FieldType, Value};

/// Gives back room that was not needed: batches wait in memory until files are cut.
pub(super) fn trim<T>(mut values: Vec<T>) -> Vec<T> {
    if values.capacity() - values.len() > values.len() / 8 + 64 {
        values.shrink_to_fit();
    }
    values
}

/// Which rows have a value.
struct Valid(BooleanBufferBuilder);

impl Valid {
    fn new() -> Self {
        Self(BooleanBufferBuilder::new(0))
    }

    fn finish(mut self, rows: usize) -> Option<NullBuffer> {
        self.0.resize(rows);
        Some(NullBuffer::new(self.0.finish())).filter(|nulls| nulls.null_count() > 0)
    }
}

/// Numbers, null where not set.
pub(super) struct Numbers<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    valid: Valid,
}

impl<T: ArrowPrimitiveType> Numbers<T> {
    pub(super) fn new() -> Self {
        Self::with_capacity(0)
    }

    pub(super) fn with_capacity(rows: usize) -> Self {
        Self { values: Vec::with_capacity(rows), valid: Valid::new() }
    }

    pub(super) fn set(&mut self, row: usize, value: T::Native) {
        if self.values.len() != row {
            self.values.resize(row, T::Native::default());
            self.valid.0.resize(row);
        }
        self.values.push(value);
        self.valid.0.append(true);
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.values.truncate(rows);
        self.valid.0.truncate(rows.min(self.valid.0.len()));
    }

    pub(super) fn finish(mut self, rows: usize) -> PrimitiveArray<T> {
        self.values.resize(rows, T::Native::default());
        PrimitiveArray::new(ScalarBuffer::from(trim(self.values)), self.valid.finish(rows))
    }
}

/// Texts or byte strings, null where not set.
pub(super) struct Texts {
    offsets: Vec<i32>,
    data: Vec<u8>,
    valid: Valid,
}

impl Texts {
    pub(super) fn new() -> Self {
        Self::with_capacity(0)
    }

    /// With room for `rows` names of usual length.
    pub(super) fn with_capacity(rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, data: Vec::with_capacity(rows * 12), valid: Valid::new() }
    }

    fn end(&self) -> i32 {
        self.offsets.last().copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, row: usize, value: &[u8]) {
        if self.offsets.len() != row + 1 {
            self.resize(row);
        }
        self.data.extend_from_slice(value);
        // `RowBuilder` seals its rows long before 2 GiB.
        self.offsets.push(self.data.len() as i32);
        self.valid.0.append(true);
    }

    fn resize(&mut self, rows: usize) {
        if self.offsets.len() > rows + 1 {
            self.truncate(rows);
        } else {
            let end = self.end();
            self.offsets.resize(rows + 1, end);
            self.valid.0.resize(rows);
        }
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.data.truncate(self.end() as usize);
        self.valid.0.truncate(rows.min(self.valid.0.len()));
    }

    fn parts(mut self, rows: usize) -> (OffsetBuffer<i32>, Buffer, Option<NullBuffer>) {
        self.resize(rows);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(trim(self.offsets)));
        (offsets, Buffer::from(trim(self.data)), self.valid.finish(rows))
    }

    pub(super) fn finish_text(self, rows: usize) -> Result<StringArray, ArrowError> {
        let (offsets, data, valid) = self.parts(rows);
        StringArray::try_new(offsets, data, valid)
    }

    pub(super) fn finish_bytes(self, rows: usize) -> Result<BinaryArray, ArrowError> {
        let (offsets, data, valid) = self.parts(rows);
        BinaryArray::try_new(offsets, data, valid)
    }
}

/// Booleans, null where not set.
pub(super) struct Flags {
    values: BooleanBufferBuilder,
    valid: Valid,
}

impl Flags {
    pub(super) fn new() -> Self {
        Self { values: BooleanBufferBuilder::new(0), valid: Valid::new() }
    }

    pub(super) fn set(&mut self, row: usize, value: bool) {
        self.values.resize(row);
        self.valid.0.resize(row);
        self.values.append(value);
        self.valid.0.append(true);
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.values.truncate(rows.min(self.values.len()));
        self.valid.0.truncate(rows.min(self.valid.0.len()));
    }

    pub(super) fn finish(mut self, rows: usize) -> BooleanArray {
        self.values.resize(rows);
        BooleanArray::new(self.values.finish(), self.valid.finish(rows))
    }
}

/// Lists of numbers, null where not set.
pub(super) struct Lists<T: ArrowPrimitiveType> {
    offsets: Vec<i32>,
    values: Vec<T::Native>,
    valid: Valid,
}

impl<T: ArrowPrimitiveType> Lists<T> {
    fn new() -> Self {
        Self { offsets: vec![0], values: Vec::new(), valid: Valid::new() }
    }

    fn end(&self) -> i32 {
        self.offsets.last().copied().unwrap_or(0)
    }

    fn set(&mut self, row: usize, value: &[T::Native]) {
        self.resize(row);
        self.values.extend_from_slice(value);
        self.offsets.push(self.values.len() as i32);
        self.valid.0.append(true);
    }

    fn resize(&mut self, rows: usize) {
        if self.offsets.len() > rows + 1 {
            self.truncate(rows);
        } else {
            let end = self.end();
            self.offsets.resize(rows + 1, end);
            self.valid.0.resize(rows);
        }
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.values.truncate(self.end() as usize);
        self.valid.0.truncate(rows.min(self.valid.0.len()));
    }

    fn finish(mut self, rows: usize) -> Result<ListArray, ArrowError> {
        self.resize(rows);
        let item = Arc::new(Field::new_list_field(T::DATA_TYPE, true));
        let values = PrimitiveArray::<T>::new(ScalarBuffer::from(self.values), None);
        ListArray::try_new(
            item,
            OffsetBuffer::new(ScalarBuffer::from(self.offsets)),
            Arc::new(values),
            self.valid.finish(rows),
        )
    }
}

/// One declared field.
pub(super) enum Column {
    Bool(Flags),
    I64(Numbers<Int64Type>),
    U64(Numbers<UInt64Type>),
    F32(Numbers<Float32Type>),
    F64(Numbers<Float64Type>),
    Text(Texts),
    Bytes(Texts),
    F64List(Lists<Float64Type>),
    I64List(Lists<Int64Type>),
}

impl Column {
    pub(super) fn new(kind: FieldType) -> Self {
        match kind {
            FieldType::Bool => Self::Bool(Flags::new()),
            FieldType::I64 => Self::I64(Numbers::new()),
            FieldType::U64 => Self::U64(Numbers::new()),
            FieldType::F32 => Self::F32(Numbers::new()),
            FieldType::F64 => Self::F64(Numbers::new()),
            FieldType::Text => Self::Text(Texts::new()),
            FieldType::Bytes => Self::Bytes(Texts::new()),
            FieldType::F64List => Self::F64List(Lists::new()),
            FieldType::I64List => Self::I64List(Lists::new()),
        }
    }

    /// Sets a row, the last one or one after it. A value of another type than the field's sets nothing: the reader
    /// never gives one.
    #[inline]
    pub(super) fn set(&mut self, row: usize, value: Value<'_>) {
        match (self, value) {
            (Self::F64(column), Value::F64(value)) => column.set(row, value),
            (Self::F32(column), Value::F32(value)) => column.set(row, value),
            (Self::I64(column), Value::I64(value)) => column.set(row, value),
            (Self::U64(column), Value::U64(value)) => column.set(row, value),
            (Self::Bool(column), Value::Bool(value)) => column.set(row, value),
            (Self::Text(column), Value::Text(value)) => column.set(row, value.as_bytes()),
            (Self::Bytes(column), Value::Bytes(value)) => column.set(row, value),
            (Self::F64List(column), Value::F64List(value)) => column.set(row, value),
            (Self::I64List(column), Value::I64List(value)) => column.set(row, value),
            _ => debug_assert!(false, "a value that does not fit its field"),
        }
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        match self {
            Self::Bool(column) => column.truncate(rows),
            Self::I64(column) => column.truncate(rows),
            Self::U64(column) => column.truncate(rows),
            Self::F32(column) => column.truncate(rows),
            Self::F64(column) => column.truncate(rows),
            Self::Text(column) | Self::Bytes(column) => column.truncate(rows),
            Self::F64List(column) => column.truncate(rows),
            Self::I64List(column) => column.truncate(rows),
        }
    }

    pub(super) fn finish(self, rows: usize) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Bool(column) => Arc::new(column.finish(rows)),
            Self::I64(column) => Arc::new(column.finish(rows)),
            Self::U64(column) => Arc::new(column.finish(rows)),
            Self::F32(column) => Arc::new(column.finish(rows)),
            Self::F64(column) => Arc::new(column.finish(rows)),
            Self::Text(column) => Arc::new(column.finish_text(rows)?),
            Self::Bytes(column) => Arc::new(column.finish_bytes(rows)?),
            Self::F64List(column) => Arc::new(column.finish(rows)?),
            Self::I64List(column) => Arc::new(column.finish(rows)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::data_type;
    use arrow::array::{Array, AsArray};

    #[test]
    fn every_type_of_field_becomes_its_arrow_type() {
        let values = [
            (FieldType::Bool, Value::Bool(true)),
            (FieldType::I64, Value::I64(-1)),
            (FieldType::U64, Value::U64(u64::MAX)),
            (FieldType::F32, Value::F32(1.5)),
            (FieldType::F64, Value::F64(2.5)),
            (FieldType::Text, Value::Text("grün")),
            (FieldType::Bytes, Value::Bytes(&[0, 255])),
            (FieldType::F64List, Value::F64List(&[1.0, 2.0])),
            (FieldType::I64List, Value::I64List(&[])),
        ];
        for (kind, value) in values {
            let mut column = Column::new(kind);
            column.set(2, value);
            column.set(3, value);
            column.set(5, value);
            column.truncate(4);
            column.set(5, value);
            let array = column.finish(7).unwrap();
            assert_eq!(array.data_type(), &data_type(kind));
            let set: Vec<bool> = (0..7).map(|row| array.is_valid(row)).collect();
            assert_eq!(set, [false, false, true, true, false, true, false], "{kind:?}");
        }
    }

    #[test]
    fn a_value_that_comes_twice_is_replaced() {
        let mut column = Texts::new();
        column.set(0, b"first");
        column.set(1, b"second");
        column.set(1, b"again");
        let array = column.finish_text(2).unwrap();
        assert_eq!((array.value(0), array.value(1)), ("first", "again"));
        let mut column = Column::new(FieldType::I64);
        column.set(0, Value::I64(1));
        column.set(0, Value::I64(2));
        assert_eq!(column.finish(1).unwrap().as_primitive::<Int64Type>().value(0), 2);
    }
}
