//! Keys and values in the state database. The first byte of a key says what it is; the order of keys is used.
//!
//! | key | value |
//! |---|---|
//! | `m` name | format, checkpoint, cut |
//! | `d` device id | snapshot |
//! | `p` pipeline 0 part | chunked: state |
//! | `o` barrier, number | chunked: table 0 rows |
//! | `x` key, number | further chunks of a chunked value |
//! | `c` name | counter |
//!
//! A chunked value is `number of further chunks` (4 bytes) and the first chunk: a state of 100 MB in one value would
//! be one block for SlateDB, held in memory several times over.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use device::id::DeviceId;
use device::seq::Barrier;

use super::StateError;
use super::kv::Batch;

pub(super) const FORMAT: &[u8] = b"mformat";
pub(super) const CHECKPOINT: &[u8] = b"mcheckpoint";
pub(super) const CUT: &[u8] = b"mcut";
pub(super) const PIPELINE: u8 = b'p';
pub(super) const OUTBOX: u8 = b'o';
pub(super) const COUNTER: u8 = b'c';
const DEVICE: u8 = b'd';
const MORE: u8 = b'x';
/// Size of a chunk.
pub(super) const CHUNK: usize = 1 << 20;

fn damaged(what: &str) -> StateError {
    StateError::Damaged(format!("{what} cannot be read"))
}

fn named(kind: u8, name: &str) -> BytesMut {
    let mut key = BytesMut::with_capacity(name.len() + 16);
    key.put_u8(kind);
    key.put_slice(name.as_bytes());
    key
}

pub(super) fn device(id: &str) -> Bytes {
    named(DEVICE, id).freeze()
}

/// All keys of a kind.
pub(super) fn kind(kind: u8) -> (Bound<Bytes>, Bound<Bytes>) {
    (Bound::Included(Bytes::from(vec![kind])), Bound::Excluded(Bytes::from(vec![kind + 1])))
}

/// All devices, or those after one.
pub(super) fn devices_after(after: Option<&str>) -> (Bound<Bytes>, Bound<Bytes>) {
    let start = match after {
        Some(id) => Bound::Excluded(device(id)),
        None => Bound::Included(device("")),
    };
    (start, Bound::Excluded(Bytes::from_static(&[DEVICE + 1])))
}

pub(super) fn read_device(key: &[u8]) -> Result<DeviceId, StateError> {
    name(key).and_then(|text| DeviceId::new(text).ok()).ok_or_else(|| damaged("a device id"))
}

fn name(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(1..)?).ok()
}

pub(super) fn pipeline(pipeline: &str, part: i64) -> Bytes {
    let mut key = named(PIPELINE, pipeline);
    key.put_u8(0);
    // With the sign bit turned over, the order of bytes is the order of numbers.
    key.put_u64(part as u64 ^ (1 << 63));
    key.freeze()
}

pub(super) fn read_pipeline(key: &[u8]) -> Result<(String, i64), StateError> {
    let read = || {
        let (head, part) = key.split_last_chunk::<8>()?;
        let name = name(head.strip_suffix(&[0])?)?;
        Some((name.to_owned(), (u64::from_be_bytes(*part) ^ (1 << 63)) as i64))
    };
    read().ok_or_else(|| damaged("the name of a pipeline"))
}

pub(super) fn outbox(barrier: Barrier, number: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(13);
    key.put_u8(OUTBOX);
    key.put_u64(barrier.0);
    key.put_u32(number);
    key.freeze()
}

pub(super) fn outbox_upto(barrier: Barrier) -> (Bound<Bytes>, Bound<Bytes>) {
    let end = outbox(Barrier(barrier.0.saturating_add(1)), 0);
    (Bound::Included(outbox(Barrier(0), 0)), Bound::Excluded(end))
}

pub(super) fn read_outbox(key: &[u8]) -> Result<Barrier, StateError> {
    let barrier = key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    barrier.map(Barrier).ok_or_else(|| damaged("the barrier of stored rows"))
}

pub(super) fn outbox_value(table: &str, ipc: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(table.len() + 1 + ipc.len());
    value.put_slice(table.as_bytes());
    value.put_u8(0);
    value.put_slice(ipc);
    value.freeze()
}

pub(super) fn read_outbox_value(value: Bytes) -> Result<(String, Bytes), StateError> {
    let end = value.iter().position(|byte| *byte == 0).ok_or_else(|| damaged("the table of stored rows"))?;
    let table = std::str::from_utf8(value.get(..end).unwrap_or_default())
        .map_err(|_| damaged("the table of stored rows"))?
        .to_owned();
    Ok((table, value.slice(end + 1..)))
}

pub(super) fn counter(name: &str) -> Bytes {
    named(COUNTER, name).freeze()
}

pub(super) fn read_counter(key: &[u8]) -> Result<String, StateError> {
    name(key).map(str::to_owned).ok_or_else(|| damaged("the name of a counter"))
}

pub(super) fn chunk(key: &[u8], number: u32) -> Bytes {
    let mut longer = BytesMut::with_capacity(key.len() + 5);
    longer.put_u8(MORE);
    longer.put_slice(key);
    longer.put_u32(number);
    longer.freeze()
}

pub(super) fn u64s(values: &[u64]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into()
}

pub(super) fn read_u64s<const N: usize>(bytes: &[u8]) -> Result<[u64; N], StateError> {
    let (words, rest) = bytes.as_chunks::<8>();
    let values: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    match (values.try_into(), rest.is_empty()) {
        (Ok(values), true) => Ok(values),
        _ => Err(damaged("a number")),
    }
}

pub(super) fn read_u32(bytes: &[u8]) -> Result<u32, StateError> {
    bytes.try_into().map(u32::from_le_bytes).map_err(|_| damaged("the format"))
}

/// Number of further chunks and the first chunk of a chunked value.
pub(super) fn read_head(value: &Bytes) -> Result<(u32, Bytes), StateError> {
    let (more, _) = value.split_first_chunk::<4>().ok_or_else(|| damaged("a stored value"))?;
    Ok((u32::from_le_bytes(*more), value.slice(4..)))
}

/// The chunked values that are stored: a value that shrinks must not leave chunks behind.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    more: BTreeMap<Bytes, u32>,
}

impl Parts {
    pub(super) fn note(&mut self, key: Bytes, more: u32) {
        self.more.insert(key, more);
    }

    pub(super) fn put(&mut self, batch: &mut Batch, key: Bytes, value: Bytes) {
        let first = value.slice(..value.len().min(CHUNK));
        let rest = value.slice(first.len()..);
        let more = rest.len().div_ceil(CHUNK) as u32;
        let mut head = BytesMut::with_capacity(4 + first.len());
        head.put_u32_le(more);
        head.put_slice(&first);
        batch.put(key.clone(), head.freeze());
        for number in 0..more {
            let start = number as usize * CHUNK;
            let end = rest.len().min(start + CHUNK);
            batch.put(chunk(&key, number), rest.slice(start..end));
        }
        let before = self.more.insert(key.clone(), more).unwrap_or(0);
        for number in more..before {
            batch.delete(chunk(&key, number));
        }
    }

    pub(super) fn remove(&mut self, batch: &mut Batch, key: &Bytes) {
        if let Some(more) = self.more.remove(key) {
            batch.delete(key.clone());
            for number in 0..more {
                batch.delete(chunk(key, number));
            }
        }
    }

    pub(super) fn remove_pipeline(&mut self, batch: &mut Batch, name: &str) {
        self.remove_range(batch, pipeline(name, i64::MIN), pipeline(name, i64::MAX));
    }

    pub(super) fn remove_outbox(&mut self, batch: &mut Batch, from: Barrier, upto: Barrier) {
        self.remove_range(batch, outbox(from, 0), outbox(upto, u32::MAX));
    }

    fn remove_range(&mut self, batch: &mut Batch, from: Bytes, to: Bytes) {
        let keys: Vec<Bytes> = self.more.range(from..=to).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.remove(batch, &key);
        }
    }
}
