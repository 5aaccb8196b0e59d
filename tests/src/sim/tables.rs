//! What stands in the visible files, read by nobody's code but the Parquet reader's.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType};
use arrow::row::{RowConverter, SortField};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use storage::layout;

/// The rows of all tables, from the files that count.
pub(super) fn read(objects: &BTreeMap<String, Bytes>) -> Result<BTreeMap<String, Vec<RecordBatch>>, String> {
    let mut files: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for path in objects.keys() {
        if let Some((table, partition, name)) = layout::parse_table_file(path) {
            files.entry(table.to_owned()).or_default().push((partition, name));
        }
    }
    let mut tables: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    for (table, files) in files {
        for (partition, name) in layout::visible(files) {
            let path = layout::table_file(&table, partition, name);
            let bytes = objects.get(&path).cloned().unwrap_or_default();
            let failed = |error: &dyn std::fmt::Display| format!("{path} cannot be read: {error}");
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| failed(&e))?;
            for batch in reader.build().map_err(|e| failed(&e))? {
                tables.entry(table.clone()).or_default().push(batch.map_err(|e| failed(&e))?);
            }
        }
    }
    Ok(tables)
}

/// Each row as bytes that can be compared, sorted. Columns are told by their names.
pub(super) fn sorted(batches: &[RecordBatch]) -> Result<Vec<Vec<u8>>, String> {
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let mut names: Vec<String> = first.schema().fields().iter().map(|field| field.name().clone()).collect();
    names.sort();
    let types: Vec<DataType> = names
        .iter()
        .map(|name| first.column_by_name(name).map_or(DataType::Null, |column| column.data_type().clone()))
        .collect();
    let converter =
        RowConverter::new(types.iter().cloned().map(SortField::new).collect()).map_err(|e| e.to_string())?;
    let mut rows = Vec::new();
    for batch in batches {
        let columns = names
            .iter()
            .zip(&types)
            .map(|(name, kind)| {
                let column = batch.column_by_name(name).ok_or_else(|| format!("a batch without {name}"))?;
                cast(column, kind).map_err(|e| e.to_string())
            })
            .collect::<Result<Vec<_>, String>>()?;
        let converted = converter.convert_columns(&columns).map_err(|e| e.to_string())?;
        rows.extend(converted.iter().map(|row| row.as_ref().to_vec()));
    }
    rows.sort();
    Ok(rows)
}

/// A column of texts.
pub(super) fn texts(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
    let Some(column) = batch.column_by_name(name) else { return vec![None; batch.num_rows()] };
    let column = cast(column, &DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

/// A column of whole numbers.
pub(super) fn integers(batch: &RecordBatch, name: &str) -> Vec<Option<i64>> {
    let Some(column) = batch.column_by_name(name) else { return vec![None; batch.num_rows()] };
    if let DataType::Timestamp(..) = column.data_type() {
        return column.as_primitive::<TimestampNanosecondType>().iter().collect();
    }
    let column = cast(column, &DataType::Int64).unwrap();
    column.as_primitive::<Int64Type>().iter().collect()
}

/// A column of numbers.
pub(super) fn floats(batch: &RecordBatch, name: &str) -> Vec<Option<f64>> {
    let Some(column) = batch.column_by_name(name) else { return vec![None; batch.num_rows()] };
    let column = cast(column, &DataType::Float64).unwrap();
    let column = column.as_primitive::<Float64Type>();
    (0..column.len()).map(|at| column.is_valid(at).then(|| column.value(at))).collect()
}
