//! Columns of one table over time: which types a table may have, the union of several schemas, batches made to fit.
//!
//! Tables gain columns and pipelines yield whatever types DataFusion likes best; files and readers want one type per
//! kind of value. A missing column is null.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::schema::timestamp;

/// The type that a column of `kind` has in a table: nanoseconds UTC for every time, plain strings and bytes for
/// their views, large variants and dictionaries.
pub fn stored_type(kind: &DataType) -> DataType {
    match kind {
        DataType::Timestamp(_, _) => timestamp(),
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => stored_type(value),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            DataType::List(Arc::new(Field::new("item", stored_type(item.data_type()), item.is_nullable())))
        }
        DataType::Null => DataType::Utf8,
        other => other.clone(),
    }
}

/// The schema that a table of rows of `schema` has.
pub fn stored_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_data_type(stored_type(field.data_type())))
        .collect();
    Arc::new(Schema::new(fields))
}

/// All columns of both, by name: those of `newer` first, as they are there; then what only `older` has.
///
/// A column that one of them lacks is nullable, as the other's rows do not have it.
pub fn union(newer: &Schema, older: &Schema) -> SchemaRef {
    if newer == older {
        return Arc::new(newer.clone());
    }
    let mut fields = Vec::with_capacity(newer.fields().len());
    for field in newer.fields() {
        let nullable = older.field_with_name(field.name()).map_or(true, Field::is_nullable);
        fields.push(field.as_ref().clone().with_nullable(field.is_nullable() || nullable));
    }
    for field in older.fields() {
        if newer.field_with_name(field.name()).is_err() {
            fields.push(field.as_ref().clone().with_nullable(true));
        }
    }
    Arc::new(Schema::new(fields))
}

/// The rows of `batch` under `schema`: columns by name, cast where the type differs, null where there is none.
pub fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        columns.push(match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => cast(column, field.data_type())?,
            None => new_null_array(field.data_type(), batch.num_rows()),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int64Array, StringArray, StringViewArray, TimestampMillisecondArray};
    use arrow::datatypes::{Int64Type, TimeUnit, TimestampNanosecondType};

    #[test]
    fn rows_of_several_versions_fit_the_union() {
        let old =
            Schema::new(vec![Field::new("device", DataType::Utf8, false), Field::new("gone", DataType::Int64, false)]);
        let new =
            Schema::new(vec![Field::new("device", DataType::Utf8, false), Field::new("added", DataType::Int64, false)]);
        let both = union(&new, &old);
        let names: Vec<_> = both.fields().iter().map(|f| (f.name().as_str(), f.is_nullable())).collect();
        assert_eq!(names, [("device", false), ("added", true), ("gone", true)]);
        let rows = RecordBatch::try_new(
            Arc::new(old),
            vec![Arc::new(StringArray::from(vec!["a"])), Arc::new(Int64Array::from(vec![5]))],
        )
        .unwrap();
        let fitted = fit(&rows, &both).unwrap();
        assert!(fitted.column(1).is_null(0));
        assert_eq!(fitted.column(2).as_primitive::<Int64Type>().value(0), 5);
    }

    #[test]
    fn types_of_the_query_engine_become_types_of_tables() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("device", DataType::Utf8View, false),
            Field::new("window_start", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        ]));
        let rows = RecordBatch::try_new(
            schema.clone(),
            vec![Arc::new(StringViewArray::from(vec!["a"])), Arc::new(TimestampMillisecondArray::from(vec![1_500]))],
        )
        .unwrap();
        let stored = fit(&rows, &stored_schema(&schema)).unwrap();
        assert_eq!(stored.column(0).as_string::<i32>().value(0), "a");
        assert_eq!(stored.column(1).data_type(), &timestamp());
        assert_eq!(stored.column(1).as_primitive::<TimestampNanosecondType>().value(0), 1_500_000_000);
    }
}
