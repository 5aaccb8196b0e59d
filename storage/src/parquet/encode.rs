//! One partition's rows to the bytes of a file.

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{WriteError, encoding, sort};
use crate::columns;
use crate::layout::FileName;

/// Rows of a row group.
const ROW_GROUP: usize = 1_000_000;
/// Rows that are copied into their order at a time: the copy of a whole row group would be touched once and dropped.
const SORT_ROWS: usize = 32_768;
/// With this many devices a look-up by device is worth a bloom filter; below, the sort order finds it as well.
const BLOOM_DEVICES: usize = 1_000;

/// Version of what a file holds: its metadata, system columns and their meaning, and of the names of files. Readers
/// that are not ours need not look at it; the engine goes by the format of the data directory.
const FORMAT: u8 = 1;

/// Keys of the metadata that each file carries.
pub(crate) mod key {
    pub(crate) const FORMAT: &str = "weir.format";
    pub(crate) const TABLE: &str = "weir.table";
    pub(crate) const VERSION: &str = "weir.schema_version";
    pub(crate) const SHARD: &str = "weir.shard";
    pub(crate) const FROM: &str = "weir.barrier_from";
    pub(crate) const TO: &str = "weir.barrier_to";
    pub(crate) const WRITER: &str = "weir.writer";
    /// Stands in files that were merged of others whose rows they hold.
    pub(crate) const MERGED: &str = "weir.merged";
    pub(crate) const TIME_COLUMN: &str = "weir.time_column";
    pub(crate) const UNIT: &str = "weir.unit.";
    pub(crate) const DESCRIPTION: &str = "weir.description.";
}

/// What a file says of itself.
#[derive(Debug, Clone)]
pub struct FileMeta {
    /// Its table.
    pub table: String,
    /// `major.minor` of the table's schema.
    pub version: String,
    /// The column that its partition comes from.
    pub time_column: String,
    /// Its name: shard and barriers.
    pub file: FileName,
}

/// Sorts and encodes rows. The same rows in the same order give the same bytes, however they are split into batches.
pub fn encode(meta: &FileMeta, batches: &[RecordBatch]) -> Result<Bytes, WriteError> {
    let failed = |error: &dyn std::fmt::Display| WriteError::rows(&meta.table, error);
    let schema = batches
        .iter()
        .map(|batch| columns::stored_schema(batch.schema_ref()))
        .reduce(|older, newer| columns::union(&newer, &older))
        .ok_or_else(|| failed(&"there are none"))?;
    let batches: Vec<RecordBatch> = batches
        .iter()
        .map(|batch| columns::fit(batch, &schema))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))?;
    let order = sort::order(&batches, &meta.time_column);
    let options = options(meta, &schema, metadata(meta, &schema), &batches, &order.rows, order.devices)?;
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(|error| failed(&error))?;
    let sources: Vec<&RecordBatch> = batches.iter().collect();
    let mut places = Vec::with_capacity(SORT_ROWS.min(order.rows.len()));
    for group in order.rows.chunks(ROW_GROUP) {
        for rows in group.chunks(SORT_ROWS) {
            places.clear();
            places.extend(rows.iter().map(|row| row.place()));
            let sorted = interleave_record_batch(&sources, &places).map_err(|error| failed(&error))?;
            writer.write(&sorted).map_err(|error| failed(&error))?;
        }
        writer.flush().map_err(|error| failed(&error))?;
    }
    Ok(Bytes::from(writer.into_inner().map_err(|error| failed(&error))?))
}

/// How a merged file is written, which is not at hand as a whole: `sample` are some of its rows, from everywhere in it, at
/// most [`encoding::SAMPLE`]; `devices` is how many devices the whole of it has.
pub(crate) fn options_of(
    meta: &FileMeta,
    schema: &SchemaRef,
    sample: &[RecordBatch],
    devices: usize,
) -> Result<ArrowWriterOptions, WriteError> {
    let merged = KeyValue { key: key::MERGED.to_owned(), value: Some("1".to_owned()) };
    let entries = metadata(meta, schema).into_iter().chain([merged]).collect();
    options(meta, schema, entries, sample, &sort::order(sample, &meta.time_column).rows, devices)
}

/// Settings of the writer: a function of what is in the rows.
fn options(
    meta: &FileMeta,
    schema: &SchemaRef,
    entries: Vec<KeyValue>,
    batches: &[RecordBatch],
    rows: &[sort::RowRef],
    devices: usize,
) -> Result<ArrowWriterOptions, WriteError> {
    let failed = |error: &dyn std::fmt::Display| WriteError::rows(&meta.table, error);
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("weir version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).map_err(|error| failed(&error))?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_key_value_metadata(Some(entries));
    for (at, field) in schema.fields().iter().enumerate() {
        let path = ColumnPath::new(vec![field.name().clone()]);
        if let Some(encoding) = encoding::choose(field.name(), at, field.data_type(), batches, rows) {
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path.clone(), encoding);
        }
        if field.name() == "device" && devices > BLOOM_DEVICES {
            properties = properties
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_max_ndv(path, devices as u64);
        }
    }
    // The Arrow schema is not put in: Parquet's own types say it all, and its map of metadata has no fixed order.
    Ok(ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true))
}

fn metadata(meta: &FileMeta, schema: &arrow::datatypes::Schema) -> Vec<KeyValue> {
    let entry = |key: String, value: String| KeyValue { key, value: Some(value) };
    let mut entries = vec![
        entry(key::FORMAT.to_owned(), FORMAT.to_string()),
        entry(key::TABLE.to_owned(), meta.table.clone()),
        entry(key::VERSION.to_owned(), meta.version.clone()),
        entry(key::SHARD.to_owned(), meta.file.shard.0.to_string()),
        entry(key::FROM.to_owned(), meta.file.from.0.to_string()),
        entry(key::TO.to_owned(), meta.file.to.0.to_string()),
        entry(key::WRITER.to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        entry(key::TIME_COLUMN.to_owned(), meta.time_column.clone()),
    ];
    for field in schema.fields() {
        for (prefix, kind) in [(key::UNIT, "unit"), (key::DESCRIPTION, "description")] {
            if let Some(text) = field.metadata().get(kind) {
                entries.push(entry(format!("{prefix}{}", field.name()), text.clone()));
            }
        }
    }
    entries
}
