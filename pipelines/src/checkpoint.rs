//! The bytes of a pipeline's state.
//!
//! ```text
//! 1 byte   format version
//! 4 bytes  length of the header, little endian
//! header   JSON: DataFusion version, fingerprint of the plan, shape of the states, times, length of each section
//! sections Arrow IPC streams: devices, then the segments of state rows, oldest first
//! ```
//!
//! A state is read back only by the same DataFusion version and the same plan: accumulator states are DataFusion's
//! private matter. There is no checksum here; the store that keeps the bytes has its own.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::PipelineError;
use crate::shared::Shared;
use crate::watermark::Entry;

const VERSION: u8 = 1;

/// What a state belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Version of the query engine.
    pub(crate) datafusion: String,
    /// Fingerprint of the checked pipeline.
    pub(crate) fingerprint: u64,
    /// Keys and states by type.
    pub(crate) shape: String,
}

/// A state in its parts.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) now: i64,
    pub(crate) floor: i64,
    pub(crate) devices: Vec<Option<Entry>>,
    pub(crate) segments: Vec<(RecordBatch, Bytes)>,
    pub(crate) shared: Option<Shared>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    identity: Identity,
    now: i64,
    floor: i64,
    sections: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shared: Option<Shared>,
}

/// One batch as an Arrow IPC stream, compressed with LZ4.
pub(crate) fn to_ipc(batch: &RecordBatch) -> Result<Bytes, PipelineError> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options)?;
    writer.write(batch)?;
    writer.finish()?;
    Ok(Bytes::from(writer.into_inner()?))
}

fn from_ipc(bytes: &[u8]) -> Result<RecordBatch, ArrowError> {
    let reader = StreamReader::try_new(Cursor::new(bytes), None)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    compute::concat_batches(&schema, &batches)
}

/// Writes a state.
pub(crate) fn encode(
    identity: &Identity,
    (now, floor): (i64, i64),
    devices: &[Option<Entry>],
    segments: Vec<Bytes>,
    shared: Option<Shared>,
) -> Result<Bytes, PipelineError> {
    let mut sections = vec![to_ipc(&device_batch(devices)?)?];
    sections.extend(segments);
    let lengths = sections.iter().map(|s| s.len() as u64).collect();
    let header = Header { identity: identity.clone(), now, floor, sections: lengths, shared };
    let header = serde_json::to_vec(&header).map_err(|e| PipelineError::state(e.to_string()))?;
    let length = u32::try_from(header.len()).map_err(|e| PipelineError::state(e.to_string()))?;
    let mut out = Vec::with_capacity(5 + header.len() + sections.iter().map(Bytes::len).sum::<usize>());
    out.push(VERSION);
    out.extend(length.to_le_bytes());
    out.extend(header);
    for section in sections {
        out.extend_from_slice(&section);
    }
    Ok(Bytes::from(out))
}

fn cut() -> PipelineError {
    PipelineError::state("it is cut short")
}

fn header(bytes: &[u8]) -> Result<(Header, &[u8]), PipelineError> {
    let (version, rest) = bytes.split_first().ok_or_else(cut)?;
    match *version {
        VERSION => {}
        found if found > VERSION => return Err(PipelineError::Newer { found, known: VERSION }),
        found => return Err(PipelineError::state(format!("there is no format {found}"))),
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let (header, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
    let header = serde_json::from_slice(header).map_err(|e| PipelineError::state(format!("header: {e}")))?;
    Ok((header, rest))
}

/// What a state was written for.
pub(crate) fn identity(bytes: &[u8]) -> Result<Identity, PipelineError> {
    Ok(header(bytes)?.0.identity)
}

/// Reads a state that was written for `expected`.
pub(crate) fn decode(bytes: &[u8], expected: &Identity) -> Result<Checkpoint, PipelineError> {
    let (mut header, rest) = header(bytes)?;
    check(&header.identity, expected)?;
    let (now, floor, shared) = (header.now, header.floor, header.shared.take());
    let (devices, segments) = sections(header, rest)?;
    let segments = segments
        .into_iter()
        .map(|section| Ok((read(section)?, Bytes::copy_from_slice(section))))
        .collect::<Result<Vec<_>, PipelineError>>()?;
    Ok(Checkpoint { now, floor, devices: read_devices(&read(devices)?)?, segments, shared })
}

/// How far devices had come by a state, whatever it was written for: without segments.
pub(crate) fn progress(bytes: &[u8]) -> Result<Checkpoint, PipelineError> {
    let (mut header, rest) = header(bytes)?;
    let (now, floor, shared) = (header.now, header.floor, header.shared.take());
    let (devices, _) = sections(header, rest)?;
    Ok(Checkpoint { now, floor, devices: read_devices(&read(devices)?)?, segments: Vec::new(), shared })
}

fn read(section: &[u8]) -> Result<RecordBatch, PipelineError> {
    from_ipc(section).map_err(|e| PipelineError::state(e.to_string()))
}

/// The bytes of the devices, and of each segment.
fn sections(header: Header, mut rest: &[u8]) -> Result<(&[u8], Vec<&[u8]>), PipelineError> {
    let mut sections = Vec::with_capacity(header.sections.len());
    for length in header.sections {
        let (section, after) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)).ok_or_else(cut)?;
        sections.push(section);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(PipelineError::state("it has bytes too many"));
    }
    let mut sections = sections.into_iter();
    Ok((sections.next().ok_or_else(cut)?, sections.collect()))
}

fn check(found: &Identity, expected: &Identity) -> Result<(), PipelineError> {
    if found.datafusion != expected.datafusion {
        let (found, own) = (&found.datafusion, &expected.datafusion);
        return Err(PipelineError::state(format!("it was written with DataFusion {found}, this build has {own}")));
    }
    if found.fingerprint != expected.fingerprint {
        return Err(PipelineError::state("it was written by another version of this pipeline"));
    }
    if found.shape != expected.shape {
        let (found, own) = (&found.shape, &expected.shape);
        return Err(PipelineError::state(format!("its states are {found}, the plan has {own}")));
    }
    Ok(())
}

fn device_batch(devices: &[Option<Entry>]) -> Result<RecordBatch, ArrowError> {
    let number = |get: fn(&Entry) -> i64| -> Int64Array { devices.iter().map(|e| e.as_ref().map(get)).collect() };
    let names: StringArray = devices.iter().map(|e| e.as_ref().map(|e| &*e.name)).collect();
    let field = |name: &str| Field::new(name, DataType::Int64, true);
    let fields = vec![Field::new("name", DataType::Utf8, true), field("newest"), field("heard"), field("frontier")];
    RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        vec![
            Arc::new(names),
            Arc::new(number(|e| e.newest)),
            Arc::new(number(|e| e.heard)),
            Arc::new(number(|e| e.frontier)),
        ],
    )
}

fn read_devices(batch: &RecordBatch) -> Result<Vec<Option<Entry>>, PipelineError> {
    let bad = || PipelineError::state("its table of devices is malformed");
    let [names, newest, heard, frontier] = batch.columns() else { return Err(bad()) };
    let names = names.as_string_opt::<i32>().ok_or_else(bad)?;
    let number = |a: &arrow::array::ArrayRef| a.as_primitive_opt::<Int64Type>().cloned().ok_or_else(bad);
    let (newest, heard, frontier) = (number(newest)?, number(heard)?, number(frontier)?);
    let numbers = newest.values().iter().zip(heard.values()).zip(frontier.values());
    Ok(names
        .iter()
        .zip(numbers)
        .map(|(name, ((newest, heard), frontier))| {
            Some(Entry { name: name?.into(), newest: *newest, heard: *heard, frontier: *frontier })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { datafusion: "1.2.3".to_owned(), fingerprint: 7, shape: "sum,Float64;".to_owned() }
    }

    fn sample() -> Bytes {
        let entry = |name: &str| Some(Entry { name: name.into(), newest: i64::MAX, heard: -1, frontier: i64::MIN });
        let rows = Int64Array::from(vec![1, 2, 3]);
        let rows = RecordBatch::try_from_iter([("c0", Arc::new(rows) as arrow::array::ArrayRef)]).unwrap();
        let segment = to_ipc(&rows).unwrap();
        encode(&identity(), (5, i64::MIN), &[entry("a"), None, entry("ü")], vec![segment], None).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let state = decode(&sample(), &identity()).unwrap();
        assert_eq!((state.now, state.floor), (5, i64::MIN));
        assert_eq!(super::identity(&sample()).unwrap(), identity());
        let names: Vec<_> = state.devices.iter().map(|d| d.as_ref().map(|d| d.name.to_string())).collect();
        assert_eq!(names, [Some("a".to_owned()), None, Some("ü".to_owned())]);
        assert_eq!(state.devices[0].as_ref().unwrap().newest, i64::MAX);
        assert_eq!(state.segments[0].0.num_rows(), 3);
    }

    /// Golden: a state as format 1 has it. `WEIR_GOLDEN=write` writes the file if it is not there.
    #[test]
    fn the_bytes_are_those_of_format_1() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/state_v1.bin");
        if std::env::var("WEIR_GOLDEN").is_ok_and(|value| value == "write") && !std::path::Path::new(path).exists() {
            std::fs::write(path, sample()).unwrap();
        }
        let stored = std::fs::read(path).unwrap();
        let state = decode(&stored, &identity()).unwrap();
        assert_eq!((state.now, state.floor, state.devices.len()), (5, i64::MIN, 3));
        assert_eq!(state.devices[2].as_ref().map(|entry| (&*entry.name, entry.heard)), Some(("ü", -1)));
        let rows = state.segments[0].0.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(rows, [1, 2, 3]);
        // The sections are Arrow's: a new version of it may write them otherwise, and has to read these.
        assert_eq!(
            sample(),
            stored,
            "today's bytes are others than format 1's: if Arrow changed them, keep both files"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let refused = |bytes: &[u8], own: Identity| decode(bytes, &own).unwrap_err().to_string();
        let bytes = sample();
        assert!(refused(&bytes, Identity { datafusion: "9".to_owned(), ..identity() }).contains("DataFusion 1.2.3"));
        assert!(refused(&bytes, Identity { fingerprint: 8, ..identity() }).contains("another version"));
        assert!(refused(&bytes, Identity { shape: "x".to_owned(), ..identity() }).contains("states are"));
        let mut other = bytes.to_vec();
        other[0] = 99;
        let newer = refused(&other, identity());
        assert!(newer.contains("format 99") && newer.contains("run the weir that wrote it"), "{newer}");
        other[0] = 0;
        assert!(refused(&other, identity()).contains("no format 0"));
    }

    #[test]
    fn no_prefix_of_a_state_is_taken_for_one() {
        let bytes = sample();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], &identity()).is_err(), "{end}");
        }
    }
}
