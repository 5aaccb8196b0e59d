//! From the rows of a query, or the lines of a file, to the payloads that devices would have published.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type, TimestampNanosecondType, UInt64Type};
use arrow::util::display::FormatOptions;
use ciborium::Value;
use device::id::DeviceId;
use device::payload::{PayloadFormat, parse_rfc3339};
use device::schema::DEFAULT_STREAM;
use sql::StreamDecl;
use storage::schema::{data_type, timestamp};

use super::Failure;

/// A value that does not fit its column is an error, not NULL.
const STRICT: CastOptions<'static> = CastOptions { safe: false, format_options: FormatOptions::new() };

/// What a device publishes.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) device: DeviceId,
    pub(super) payload: Vec<u8>,
    pub(super) format: PayloadFormat,
    /// Time of the record, in nanoseconds; `None`: that of its receipt.
    pub(super) time: Option<i64>,
}

/// Each row of `batch` as a record of `stream`; its columns go by the names `columns`.
pub(super) fn of_batch(stream: &StreamDecl, columns: &[String], batch: &RecordBatch) -> Result<Vec<Publish>, Failure> {
    let (given, named) = (batch.num_columns(), columns.len());
    if given != named {
        return Err(Failure::new(format!("{named} columns are named, and each row has {given} values")));
    }
    let typed = |(name, array): (&String, &ArrayRef)| -> Result<ArrayRef, Failure> {
        let kind = kind_of(stream, name, array.data_type())?;
        cast_with_options(array, &kind, &STRICT).map_err(|e| Failure::new(format!("column `{name}`: {e}")))
    };
    let arrays = columns.iter().zip(batch.columns()).map(typed).collect::<Result<Vec<_>, _>>()?;
    let at = |wanted: &str| columns.iter().position(|name| name == wanted).and_then(|at| arrays.get(at));
    let devices = at("device").ok_or_else(|| Failure::new("`device` is missing among the columns"))?;
    let times = at("ts");
    (0..batch.num_rows())
        .map(|row| {
            let devices = devices.as_string::<i32>();
            let device = device(if devices.is_null(row) { "" } else { devices.value(row) })?;
            let mut fields: Vec<(Value, Value)> = Vec::new();
            for (name, array) in
                columns.iter().zip(&arrays).filter(|(name, array)| *name != "device" && array.is_valid(row))
            {
                fields.push((Value::Text(name.clone()), value(array, row)?));
            }
            if &*stream.stream.name != DEFAULT_STREAM {
                fields.push((Value::Text("schema".to_owned()), Value::Text(stream.stream.name.to_string())));
            }
            let mut payload = Vec::new();
            ciborium::into_writer(&Value::Map(fields), &mut payload).map_err(Failure::new)?;
            let time = times.filter(|array| array.is_valid(row));
            let time = time.map(|array| array.as_primitive::<TimestampNanosecondType>().value(row));
            Ok(Publish { device, payload, format: PayloadFormat::Cbor, time })
        })
        .collect()
}

fn device(name: &str) -> Result<DeviceId, Failure> {
    DeviceId::new(name).map_err(|e| Failure::new(format!("device {name:?}: {e}")))
}

/// The type that a column travels as.
fn kind_of(stream: &StreamDecl, name: &str, found: &DataType) -> Result<DataType, Failure> {
    match name {
        "device" => return Ok(DataType::Utf8),
        "ts" => return Ok(timestamp()),
        "epoch" | "seq" => return Ok(DataType::UInt64),
        _ => {}
    }
    if let Some(field) = stream.stream.fields.iter().find(|field| &*field.name == name) {
        return Ok(data_type(field.kind));
    }
    if stream.at.is_some() {
        let fields: Vec<&str> = stream.stream.fields.iter().map(|field| &*field.name).collect();
        let (of, fields) = (&stream.stream.name, fields.join(", "));
        return Err(Failure::new(format!(
            "stream `{of}` has no field `{name}`; it has device, ts, epoch, seq, {fields}"
        )));
    }
    // No file declares the stream: whatever a device may send.
    Ok(match found {
        DataType::Boolean => DataType::Boolean,
        DataType::Null | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        kind if kind.is_unsigned_integer() => DataType::UInt64,
        kind if kind.is_signed_integer() => DataType::Int64,
        kind if kind.is_numeric() => DataType::Float64,
        kind => {
            return Err(Failure::new(format!("column `{name}` is {kind}: declare the stream to say how it travels")));
        }
    })
}

/// A value as it travels.
fn value(array: &ArrayRef, row: usize) -> Result<Value, Failure> {
    Ok(match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => Value::Float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::Timestamp(..) => array.as_primitive::<TimestampNanosecondType>().value(row).into(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            let item = |at| if items.is_null(at) { Ok(Value::Null) } else { value(&items, at) };
            Value::Array((0..items.len()).map(item).collect::<Result<_, _>>()?)
        }
        kind => return Err(Failure::new(format!("a value of type {kind} cannot travel"))),
    })
}

/// A line of newline-delimited JSON: what a device would publish, and the key `device` that says which.
pub(super) fn of_line(stream: &StreamDecl, line: &str) -> Result<Publish, Failure> {
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).map_err(|e| Failure::new(format!("is no JSON object: {e}")))?;
    let device = match object.remove("device") {
        Some(serde_json::Value::String(name)) => device(&name)?,
        Some(other) => return Err(Failure::new(format!("`device` is {other}, a text is wanted"))),
        None => return Err(Failure::new("`device` is missing: each line says which device published it")),
    };
    let time = match object.get("ts") {
        None | Some(serde_json::Value::Null) => None,
        Some(serde_json::Value::String(text)) => parse_rfc3339(text).ok().map(|time| time.0),
        Some(other) => other.as_i64(),
    };
    if &*stream.stream.name != DEFAULT_STREAM {
        object.entry("schema").or_insert_with(|| stream.stream.name.to_string().into());
    }
    let payload = serde_json::to_vec(&object).map_err(Failure::new)?;
    Ok(Publish { device, payload, format: PayloadFormat::Json, time })
}
