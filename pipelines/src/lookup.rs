//! Looks rows of a stream up in reference tables: further columns, before anything else is computed.
//!
//! Types of keys are equal or both whole numbers; then they are compared as the table's type, and a number that does
//! not fit it finds nothing. NULL finds nothing either.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::HashMap;
use sql::Join;

use crate::error::PipelineError;

/// A table, by key.
pub(crate) struct Lookup {
    join: Join,
    types: Vec<DataType>,
    keys: RowConverter,
    rows: HashMap<Box<[u8]>, u32>,
}

impl Lookup {
    /// Builds the index. Of equal keys the last row counts; who loads a table refuses them.
    pub(crate) fn new(join: &Join) -> Result<Self, PipelineError> {
        let columns = join.key.iter().map(|key| of(&join.rows, key).cloned()).collect::<Result<Vec<ArrayRef>, _>>()?;
        let types: Vec<DataType> = columns.iter().map(|c| c.data_type().clone()).collect();
        let keys = RowConverter::new(types.iter().map(|t| SortField::new(t.clone())).collect())?;
        let encoded = keys.convert_columns(&columns)?;
        let rows = (0..).zip(encoded.iter()).map(|(row, key)| (Box::from(key.data()), row)).collect();
        Ok(Self { join: join.clone(), types, keys, rows })
    }

    /// The columns that it looks up by.
    pub(crate) fn given(&self) -> impl Iterator<Item = &str> {
        self.join.on.iter().map(|(column, _)| column.as_str())
    }

    /// The fields it adds.
    fn fields(&self) -> Result<Vec<FieldRef>, PipelineError> {
        let schema = self.join.rows.schema();
        let mut fields = Vec::with_capacity(self.join.columns.len() + 1);
        for (name, column) in &self.join.columns {
            let field = schema.field_with_name(column)?;
            fields.push(Arc::new(field.clone().with_name(name)));
        }
        fields.extend(self.join.matched.as_ref().map(|name| Arc::new(Field::new(name, DataType::Boolean, false))));
        Ok(fields)
    }

    fn extend(&self, batch: &RecordBatch) -> Result<RecordBatch, PipelineError> {
        let mut given = Vec::with_capacity(self.types.len());
        for ((column, _), kind) in self.join.on.iter().zip(&self.types) {
            given.push(compute::cast(of(batch, column)?, kind)?);
        }
        let encoded = self.keys.convert_columns(&given)?;
        let found: UInt32Array = (0..)
            .zip(encoded.iter())
            .map(|(row, key)| {
                let whole = given.iter().all(|column| column.is_valid(row));
                whole.then(|| self.rows.get(key.data()).copied()).flatten()
            })
            .collect();
        let mut columns = batch.columns().to_vec();
        for (_, column) in &self.join.columns {
            columns.push(compute::take(of(&self.join.rows, column)?, &found, None)?);
        }
        if self.join.matched.is_some() {
            columns.push(Arc::new(compute::is_not_null(&found)?));
        }
        let mut fields = batch.schema().fields().to_vec();
        fields.extend(self.fields()?);
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

fn of<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef, PipelineError> {
    let wanted = || PipelineError::Source {
        column: column.to_owned(),
        found: "missing".to_owned(),
        expected: "a column of the stream or of a reference table".to_owned(),
    };
    batch.column_by_name(column).ok_or_else(wanted)
}

/// The columns of the source and those that lookups add.
pub(crate) fn schema(source: &SchemaRef, lookups: &[Lookup]) -> Result<SchemaRef, PipelineError> {
    let mut fields = source.fields().to_vec();
    for lookup in lookups {
        fields.extend(lookup.fields()?);
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// A batch of the source with what was found.
pub(crate) fn extend(batch: &RecordBatch, lookups: &[Lookup]) -> Result<RecordBatch, PipelineError> {
    let mut batch = batch.clone();
    for lookup in lookups {
        batch = lookup.extend(&batch)?;
    }
    Ok(batch)
}
