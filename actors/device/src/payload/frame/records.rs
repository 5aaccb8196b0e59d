//! The records of a frame, in either layout, read straight into a sink.

use super::{FrameHeader, Layout, bad, parse};
use crate::entry::Reason;
use crate::payload::extra::{put_cbor, put_raw, scalar};
use crate::payload::row::{Column, Row};
use crate::payload::value::{Misfit, Raw};
use crate::payload::wire::{Fault, Item, Wire};
use crate::payload::{Head, MAX_DEPTH, RecordSink, Refusal};
use crate::schema::{Catalog, FieldType, StreamIndex, Value};
use crate::time::Timestamp;

/// How deep a value inside a record may nest: it stands inside body, record and map.
const VALUE_DEPTH: usize = MAX_DEPTH - 3;

const TWICE: &str = "a field id stands twice";
const ID: &str = "a field id is an unsigned integer";
const SHAPE: &str = "a record is [time, {field id: value}] or [time, {field id: value}, flags]";

/// Reads the records of a frame into `sink`.
pub(crate) fn read(payload: &[u8], catalog: &Catalog, sink: &mut impl RecordSink) -> Result<(), Refusal> {
    let (header, body) = parse(payload)?;
    read_body(payload, &header, body, catalog, sink)
}

/// As [`read`], where the header has been read before.
pub(crate) fn read_body(
    payload: &[u8],
    header: &FrameHeader,
    body: usize,
    catalog: &Catalog,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    let stream = stream(header, catalog)?;
    if let Some(measured) = header.clock {
        sink.clock(measured);
    }
    let mut row = Row::new(catalog);
    match header.layout {
        Layout::Rows => rows(payload, body, header, stream, &mut row, sink),
        Layout::Columns => columns(payload, body, header, stream, &mut row, sink),
    }
}

/// The stream of a frame: known number and major version. Whether the minor version is declared, too, is asked when a frame
/// is admitted ([`known`]): logs hold frames of newer ones, whose further fields go to `extra`.
fn stream(header: &FrameHeader, catalog: &Catalog) -> Result<StreamIndex, Refusal> {
    catalog.numbered(header.schema_id, header.schema_version.major).ok_or_else(|| unknown_schema(header, catalog))
}

/// Refuses a frame whose schema, in this version, is not declared.
pub(crate) fn known(header: &FrameHeader, catalog: &Catalog) -> Result<(), Refusal> {
    match catalog.declared(header.schema_id, header.schema_version) {
        Some(_) => Ok(()),
        None => Err(unknown_schema(header, catalog)),
    }
}

#[cold]
fn unknown_schema(header: &FrameHeader, catalog: &Catalog) -> Refusal {
    let (id, version) = (header.schema_id, header.schema_version);
    let declared: Vec<String> = catalog
        .streams()
        .iter()
        .filter(|stream| stream.schema_id == Some(id))
        .map(|stream| format!("`{}` {}.{}", stream.name, stream.version.major, stream.version.minor))
        .collect();
    let text = match declared.is_empty() {
        true => format!("no stream is declared with schema id {id}: declare it, or correct the device's key 3"),
        false => format!(
            "the frame has version {}.{} of schema id {id}, declared is {}: declare that version, and the frame becomes rows",
            version.major,
            version.minor,
            declared.join(", ")
        ),
    };
    Refusal::new(Reason::UnknownSchema, text)
}

fn head(header: &FrameHeader, stream: StreamIndex, index: u32, dt: i64, flags: u32, at: usize) -> Result<Head, Fault> {
    let Some(ts) = header.base_time.0.checked_add(dt) else {
        return Wire::fault(at, "base time and time difference leave the range of 64 bits");
    };
    Ok(Head {
        index,
        stream,
        epoch: Some(header.epoch),
        // The header was checked: its last number is in range.
        seq: Some(header.seq.saturating_add(u64::from(index))),
        ts: Some(Timestamp(ts)),
        schema_minor: header.schema_version.minor,
        flags: header.flags | flags,
    })
}

fn rows(
    payload: &[u8],
    body: usize,
    header: &FrameHeader,
    stream: StreamIndex,
    row: &mut Row<'_>,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    let mut wire = Wire::new(payload, body);
    wire.array(SHAPE).map_err(bad)?;
    for index in 0..header.records {
        let at = wire.at();
        let len = wire.array(SHAPE).map_err(bad)?;
        let dt = wire.int("a record's time is an integer of 64 bits").map_err(bad)?;
        let mut flags = 0;
        match len {
            2 => {}
            // The flags stand behind the values, but the sink is told first.
            3 => {
                let mut ahead = wire;
                ahead.skip(MAX_DEPTH, false).map_err(bad)?;
                let at = ahead.at();
                let value = ahead.uint("a record's flags are an unsigned integer").map_err(bad)?;
                flags = match u32::try_from(value) {
                    Ok(flags) => flags,
                    Err(_) => return Err(bad(Fault { at, what: "a record's flags have 32 bits" })),
                };
            }
            _ => return Err(bad(Fault { at, what: SHAPE })),
        }
        let head = head(header, stream, index, dt, flags, at).map_err(bad)?;
        if sink.start(&head) {
            row.start(&head);
            let pairs = wire.map(SHAPE).map_err(bad)?;
            for _ in 0..pairs {
                let at = wire.at();
                let id = wire.uint(ID).map_err(bad)?;
                field(&mut wire, id, at, row, sink)?;
            }
            row.finish(sink);
        } else {
            wire.skip(MAX_DEPTH, false).map_err(bad)?;
        }
        if len == 3 {
            wire.skip(0, false).map_err(bad)?;
        }
    }
    Ok(())
}

/// One field of a record.
#[inline]
fn field(
    wire: &mut Wire<'_>,
    id: u64,
    at: usize,
    row: &mut Row<'_>,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    match row.numbered(id) {
        Some(column) if row.first(column) => value(wire, column, row, sink),
        Some(_) => Err(bad(Fault { at, what: TWICE })),
        None => unknown(wire, id, at, row),
    }
}

/// The value of a declared field.
#[inline]
fn value<'c>(
    wire: &mut Wire<'_>,
    column: Column<'c>,
    row: &mut Row<'c>,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    if column.field.kind == FieldType::F64
        && let Some(double) = wire.double()
    {
        sink.value(column.index, Value::F64(double));
        return Ok(());
    }
    let at = wire.at();
    let item = wire.item().map_err(bad)?;
    match (item, scalar(item)) {
        (_, Some(raw)) => row.scalar(column, raw, true, at, sink),
        (Item::Array(Some(len)), _) if column.is_list() => {
            row.list_start();
            for _ in 0..len {
                let at = wire.at();
                match scalar(wire.item().map_err(bad)?) {
                    Some(raw) => row.list_item(column, raw, true, at)?,
                    None => return Err(row.misfit(column, Misfit::Type, "an array in the array", at)),
                }
            }
            row.list_end(column, sink);
            Ok(())
        }
        (Item::Array(_), _) => Err(row.misfit(column, Misfit::Type, "an array", at)),
        (Item::Map(_), _) => Err(row.misfit(column, Misfit::Type, "a map", at)),
        _ => Err(row.misfit(column, Misfit::Type, "a tagged value", at)),
    }
}

/// A field that the stream does not declare: kept as JSON under its id.
fn unknown(wire: &mut Wire<'_>, id: u64, at: usize, row: &mut Row<'_>) -> Result<(), Refusal> {
    if !row.extra.key(&id.to_string()) {
        return Err(bad(Fault { at, what: TWICE }));
    }
    put_cbor(wire, VALUE_DEPTH, false, row.extra.value()).map_err(bad)
}

/// A field of a body of columns, and where its next value stands.
struct Series<'c, 'p> {
    id: u64,
    column: Option<Column<'c>>,
    wire: Wire<'p>,
    sum: i128,
}

fn columns(
    payload: &[u8],
    body: usize,
    header: &FrameHeader,
    stream: StreamIndex,
    row: &mut Row<'_>,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    let mut wire = Wire::new(payload, body);
    let fields = wire.array("key 6 (body) is an array").map_err(bad)? / 2;
    let mut times = wire;
    times.array("a body of columns begins with the array of times").map_err(bad)?;
    wire.skip(MAX_DEPTH, false).map_err(bad)?;
    row.start(&head(header, stream, 0, 0, 0, body).map_err(bad)?);
    let mut all: Vec<Series<'_, '_>> = Vec::with_capacity(fields.min(64) as usize);
    let mut unknown_ids: Vec<u64> = Vec::new();
    for _ in 0..fields {
        let at = wire.at();
        let id = wire.uint(ID).map_err(bad)?;
        let column = row.numbered(id);
        let new = match column {
            Some(column) => row.first(column),
            None => match unknown_ids.binary_search(&id) {
                Ok(_) => false,
                Err(at) => {
                    unknown_ids.insert(at, id);
                    true
                }
            },
        };
        if !new {
            return Err(bad(Fault { at, what: TWICE }));
        }
        let mut values = wire;
        let at = wire.at();
        if values.array("a field id is followed by the array of its values").map_err(bad)? != u64::from(header.records)
        {
            return Err(bad(Fault {
                at,
                what: "every field of a body of columns has as many values as there are times",
            }));
        }
        wire.skip(MAX_DEPTH, false).map_err(bad)?;
        all.push(Series { id, column, wire: values, sum: 0 });
    }
    let mut dt = 0i64;
    for index in 0..header.records {
        let at = times.at();
        let delta = times.int("a time difference is an integer of 64 bits").map_err(bad)?;
        dt = match dt.checked_add(delta) {
            Some(dt) => dt,
            None => return Err(bad(Fault { at, what: "time differences leave the range of 64 bits" })),
        };
        let head = head(header, stream, index, dt, 0, at).map_err(bad)?;
        let wanted = sink.start(&head);
        if wanted {
            row.start(&head);
        }
        for series in &mut all {
            next(series, wanted, row, sink)?;
        }
        if wanted {
            row.finish(sink);
        }
    }
    Ok(())
}

/// The next value of a column: integers are differences to the integer before, everything else stands for itself.
fn next<'c>(
    series: &mut Series<'c, '_>,
    wanted: bool,
    row: &mut Row<'c>,
    sink: &mut impl RecordSink,
) -> Result<(), Refusal> {
    let at = series.wire.at();
    let before = series.wire;
    let delta = match series.wire.item().map_err(bad)? {
        Item::Uint(delta) => i128::from(delta),
        Item::Nint(delta) => -1 - i128::from(delta),
        Item::Null => return Ok(()),
        _ => {
            series.wire = before;
            if !wanted {
                return series.wire.skip(MAX_DEPTH, false).map_err(bad);
            }
            return match series.column {
                Some(column) => value(&mut series.wire, column, row, sink),
                None => unknown(&mut series.wire, series.id, at, row),
            };
        }
    };
    series.sum += delta;
    if !wanted {
        return Ok(());
    }
    let raw = Raw::integer(series.sum);
    match series.column {
        Some(column) => row.scalar(column, raw, true, at, sink),
        None => {
            if row.extra.key(&series.id.to_string()) {
                put_raw(&raw, row.extra.value());
            }
            Ok(())
        }
    }
}
