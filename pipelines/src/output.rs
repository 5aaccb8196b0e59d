//! What tables look like from the outside: how each is sorted, partitioned and described, and the encoding of
//! rows that wait in the outbox.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{StringArray, TimestampNanosecondArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use device::schema::Catalog;
use device::time::Timestamp;
use storage::layout::Granularity;
use storage::parquet::TableRows;
use storage::schema::{ALERTS, CLOCK, COMMANDS, CONNECTIONS, DEAD_LETTERS, LATE, LOSSES, SHADOW_HISTORY};

use crate::LateRow;

/// How a table is written.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Its columns.
    pub schema: SchemaRef,
    /// `major.minor` of a stream's schema; the fingerprint of a pipeline.
    pub version: String,
    /// The column that partitions come from.
    pub time_column: String,
    /// How finely it is split.
    pub granularity: Granularity,
}

impl TableSpec {
    /// The rows of a cut.
    pub(crate) fn rows(&self, table: &str, batches: Vec<RecordBatch>) -> TableRows {
        TableRows {
            table: table.to_owned(),
            version: self.version.clone(),
            time_column: self.time_column.clone(),
            granularity: self.granularity,
            batches,
        }
    }
}

/// How every table of a project is written, by table name.
pub fn table_specs(project: &sql::Project, catalog: &Catalog) -> BTreeMap<String, TableSpec> {
    let mut specs = BTreeMap::new();
    for stream in catalog.streams() {
        let declared = project.streams.iter().find(|declared| declared.stream.name == stream.name);
        let name = stream.name.to_string();
        let spec = TableSpec {
            schema: storage::schema::stream_schema(stream),
            time_column: "ts".to_owned(),
            granularity: declared.map_or(Granularity::Hour, |declared| granularity(declared.partition)),
            version: format!("{}.{}", stream.version.major, stream.version.minor),
        };
        specs.insert(name, spec);
    }
    for plan in &project.pipelines {
        let spec = TableSpec {
            schema: plan.output.clone(),
            time_column: plan.time_column.clone(),
            granularity: granularity(plan.partition),
            version: format!("{:016x}", plan.fingerprint),
        };
        specs.insert(plan.name.clone(), spec);
    }
    let system = [
        (DEAD_LETTERS, storage::schema::dead_letters_schema(), "ts_ingest"),
        (LOSSES, storage::schema::losses_schema(), "ts"),
        (LATE, storage::schema::late_schema(), "ts"),
        (ALERTS, storage::schema::alerts_schema(), "ts"),
        (SHADOW_HISTORY, storage::schema::shadow_history_schema(), "ts"),
        (COMMANDS, storage::schema::commands_schema(), "ts"),
        (CONNECTIONS, storage::schema::connections_schema(), "ts"),
        (CLOCK, storage::schema::clock_schema(), "ts"),
    ];
    for (table, schema, time) in system {
        specs.insert(table.to_owned(), system_spec(schema, time));
    }
    specs
}

fn system_spec(schema: SchemaRef, time: &str) -> TableSpec {
    TableSpec { schema, version: "1.0".to_owned(), time_column: time.to_owned(), granularity: Granularity::Day }
}

/// How finely the files of a table are split.
pub fn granularity(partition: sql::Granularity) -> Granularity {
    match partition {
        sql::Granularity::Hour => Granularity::Hour,
        sql::Granularity::Day => Granularity::Day,
    }
}

/// How rows of `table` are written. A table that the project no longer has (rows of a dropped pipeline that were
/// closed before) is written as its rows say.
pub(crate) fn spec_of(specs: &BTreeMap<String, TableSpec>, table: &str, batches: &[RecordBatch]) -> TableSpec {
    let schema = batches.first().map(RecordBatch::schema);
    if let Some(spec) = specs.get(table)
        && schema.as_ref().is_none_or(|schema| same_columns(schema, &spec.schema))
    {
        return spec.clone();
    }
    let schema = schema.unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()));
    let time = schema
        .fields()
        .iter()
        .find(|field| matches!(field.data_type(), arrow::datatypes::DataType::Timestamp(_, _)))
        .map_or_else(String::new, |field| field.name().clone());
    TableSpec { granularity: Granularity::Hour, ..system_spec(schema, &time) }
}

fn same_columns(a: &SchemaRef, b: &SchemaRef) -> bool {
    a.fields().len() == b.fields().len()
        && a.fields().iter().zip(b.fields()).all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type())
}

/// Rows of `_late`.
pub(crate) fn late_batch(rows: &[(String, LateRow)], now: Timestamp) -> Result<RecordBatch, ArrowError> {
    let times = |of: fn(&LateRow) -> Timestamp| {
        TimestampNanosecondArray::from_iter_values(rows.iter().map(|(_, row)| of(row).0)).with_timezone("UTC")
    };
    RecordBatch::try_new(
        storage::schema::late_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(pipeline, _)| pipeline))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, row)| &row.device))),
            Arc::new(times(|row| row.window_start)),
            Arc::new(times(|row| row.window_end)),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, row)| &row.reason))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, row)| row.records))),
            Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|_| now.0)).with_timezone("UTC")),
        ],
    )
}

/// One batch as an Arrow IPC stream.
pub fn to_ipc(batch: &RecordBatch) -> Result<Bytes, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.finish()?;
    Ok(Bytes::from(writer.into_inner()?))
}

/// The batches of an Arrow IPC stream.
pub fn from_ipc(ipc: &Bytes) -> Result<Vec<RecordBatch>, ArrowError> {
    StreamReader::try_new(Cursor::new(ipc), None)?.collect()
}
