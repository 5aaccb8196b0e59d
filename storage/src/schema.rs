//! Which columns a table has: the system columns of every stream, its declared fields, the system tables.
//!
//! The only place that maps a declared stream to Arrow. Timestamps are nanoseconds, UTC.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use device::schema::{FieldType, Stream};

/// The system columns that stand before a stream's own fields, in this order.
pub const SYSTEM_COLUMNS: [&str; 12] = [
    "device",
    "epoch",
    "seq",
    "ts",
    "ts_device",
    "ts_ingest",
    "clock_err_ns",
    "clock_q",
    "schema_minor",
    "flags",
    "assured",
    "extra",
];

/// The table of payloads that could not become rows.
pub const DEAD_LETTERS: &str = "_dead_letters";
/// The table of declared losses.
pub const LOSSES: &str = "_losses";
/// The table of what came too late for a window.
pub const LATE: &str = "_late";

/// The table of every change of an alert.
pub const ALERTS: &str = "_alerts";

/// The table of every change of a shadow.
pub const SHADOW_HISTORY: &str = "_shadow_history";

/// The table of commands to devices, and of what became of them.
pub const COMMANDS: &str = "_commands";

/// The table of devices that come and go.
pub const CONNECTIONS: &str = "_connections";

/// The table of what happened to the clocks of devices, and what has to be added to them.
pub const CLOCK: &str = "_clock";

/// The table of who did what, and who was refused.
pub const AUDIT: &str = "_audit";

/// Every table of the engine's own.
pub const SYSTEM: [&str; 9] = [DEAD_LETTERS, LOSSES, LATE, ALERTS, SHADOW_HISTORY, COMMANDS, CONNECTIONS, CLOCK, AUDIT];

/// Whether a table is one of the engine's own; no stream may be named like one.
pub fn is_system(table: &str) -> bool {
    SYSTEM.contains(&table)
}

/// `TIMESTAMP(NANOS, UTC)`.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some(Arc::from("UTC")))
}

/// Arrow type of a declared field.
pub fn data_type(kind: FieldType) -> DataType {
    match kind {
        FieldType::Bool => DataType::Boolean,
        FieldType::I64 => DataType::Int64,
        FieldType::U64 => DataType::UInt64,
        FieldType::F32 => DataType::Float32,
        FieldType::F64 => DataType::Float64,
        FieldType::Text => DataType::Utf8,
        FieldType::Bytes => DataType::Binary,
        FieldType::F64List => DataType::new_list(DataType::Float64, true),
        FieldType::I64List => DataType::new_list(DataType::Int64, true),
    }
}

/// Columns of a stream's table: [`SYSTEM_COLUMNS`], then the declared fields (nullable). Units and comments are
/// field metadata under `unit` and `description`.
pub fn stream_schema(stream: &Stream) -> SchemaRef {
    let mut fields = vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("ts", timestamp(), false),
        Field::new("ts_device", timestamp(), true),
        Field::new("ts_ingest", timestamp(), false),
        Field::new("clock_err_ns", DataType::Int64, true),
        Field::new("clock_q", DataType::UInt8, false),
        Field::new("schema_minor", DataType::UInt16, false),
        Field::new("flags", DataType::UInt32, false),
        Field::new("assured", DataType::Boolean, false),
        Field::new("extra", DataType::Utf8, true),
    ];
    for field in &stream.fields {
        let mut metadata = HashMap::new();
        if let Some(unit) = &field.unit {
            metadata.insert("unit".to_owned(), unit.clone());
        }
        if let Some(comment) = &field.comment {
            metadata.insert("description".to_owned(), comment.clone());
        }
        fields.push(Field::new(&*field.name, data_type(field.kind), true).with_metadata(metadata));
    }
    Arc::new(Schema::new(fields))
}

/// Columns of [`DEAD_LETTERS`].
pub fn dead_letters_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("topic", DataType::Utf8, false),
        Field::new("ts_ingest", timestamp(), false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("payload", DataType::Binary, false),
        Field::new("epoch", DataType::Int64, true),
        Field::new("seq", DataType::Int64, true),
        Field::new("records", DataType::UInt32, true),
    ]))
}

/// Columns of [`LOSSES`]. `from_seq` and `to_seq` are inclusive.
pub fn losses_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("from_seq", DataType::Int64, false),
        Field::new("to_seq", DataType::Int64, false),
        Field::new("reason", DataType::UInt8, false),
        Field::new("reason_text", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
    ]))
}

/// Columns of [`LATE`]: one row per pipeline, device and window at each barrier that found late rows.
pub fn late_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pipeline", DataType::Utf8, false),
        Field::new("device", DataType::Utf8, false),
        Field::new("window_start", timestamp(), false),
        Field::new("window_end", timestamp(), false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("records", DataType::UInt64, false),
        Field::new("ts", timestamp(), false),
    ]))
}

/// Columns of [`SHADOW_HISTORY`]: one row per change. `version` is that of the side that changed (`dv` or `rv`),
/// `patch` the JSON merge patch that was made, `detail` what else there is to say, in JSON.
pub fn shadow_history_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("shadow", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
        Field::new("event", DataType::Utf8, false),
        Field::new("version", DataType::UInt64, true),
        Field::new("patch", DataType::Utf8, true),
        Field::new("by", DataType::Utf8, false),
        Field::new("request_id", DataType::Utf8, true),
        Field::new("detail", DataType::Utf8, true),
    ]))
}

/// Columns of [`CONNECTIONS`]: one row whenever a device comes or goes, by its own word or its last will.
pub fn connections_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
        Field::new("online", DataType::Boolean, false),
        Field::new("session", DataType::UInt64, true),
        Field::new("boot_no", DataType::UInt64, true),
        Field::new("fw", DataType::Utf8, true),
    ]))
}

/// Columns of [`COMMANDS`]: one row when a command is asked for, and one for each change of where it stands. `args` and
/// `out` are JSON.
pub fn commands_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("cmd_id", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
        Field::new("state", DataType::Utf8, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("args", DataType::Utf8, true),
        Field::new("deadline", timestamp(), true),
        Field::new("by", DataType::Utf8, true),
        Field::new("out", DataType::Utf8, true),
    ]))
}

/// Columns of [`ALERTS`]: one row per transition. `number` counts those of a device.
pub fn alerts_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("rule", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
        Field::new("event", DataType::Utf8, false),
        Field::new("state", DataType::Utf8, false),
        Field::new("before", DataType::Utf8, false),
        Field::new("severity", DataType::Utf8, false),
        Field::new("incident", DataType::Utf8, false),
        Field::new("since", timestamp(), false),
        Field::new("value", DataType::Float64, true),
        Field::new("backfilled", DataType::Boolean, false),
        Field::new("history", DataType::Boolean, false),
        Field::new("stale", DataType::Boolean, false),
        Field::new("ack_by", DataType::Utf8, true),
        Field::new("ack_until", timestamp(), true),
        Field::new("told", DataType::Utf8, true),
        Field::new("labels", DataType::Utf8, true),
        Field::new("rule_version", DataType::Utf8, false),
        Field::new("number", DataType::UInt64, false),
        Field::new("ts_ingest", timestamp(), false),
    ]))
}

/// Columns of [`CLOCK`]: one row for each change. `from_ts` and `to_ts` are device times, `offset_ns` is what has to be added
/// to them at `to_ts`; `rate_ppb` is by how much that grows, in ns per second.
pub fn clock_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("ts", timestamp(), false),
        Field::new("event", DataType::Utf8, false),
        Field::new("clock_id", DataType::UInt64, false),
        Field::new("from_ts", timestamp(), false),
        Field::new("to_ts", timestamp(), false),
        Field::new("offset_ns", DataType::Int64, false),
        Field::new("err_ns", DataType::Int64, false),
        Field::new("rate_ppb", DataType::Int64, true),
    ]))
}

/// Columns of [`AUDIT`]: one row per line of the trail. `n` is the number of the line, `hash` that of the chain up to it;
/// `detail` is JSON, `origin` the address of the other side or `command line`.
pub fn audit_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("n", DataType::UInt64, false),
        Field::new("ts", timestamp(), false),
        Field::new("who", DataType::Utf8, false),
        Field::new("role", DataType::Utf8, true),
        Field::new("action", DataType::Utf8, false),
        Field::new("subject", DataType::Utf8, true),
        Field::new("outcome", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, true),
        Field::new("detail", DataType::Utf8, true),
        Field::new("origin", DataType::Utf8, true),
        Field::new("hash", DataType::Utf8, false),
    ]))
}
