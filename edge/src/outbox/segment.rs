//! The bytes of a segment: a header that names the epoch, then records, each with its own checksum.
//!
//! ```text
//! header  "WEIRBOX1" | epoch u64 | crc32 of both
//! record  length of body u32 | crc32 of epoch, length and body | body
//! body    seq u64 | ts i64 | schema id u32 | schema version u32 | flags u32 | fields (CBOR map)
//! ```
//!
//! The digit is the version of the format; a header of any version has this shape.
//! All integers are little-endian. The checksum covers the epoch too, so bytes of another segment never pass
//! for records of this one. Pure; reading never fails, it finds what is whole.

use device::seq::Epoch;
use device::time::Timestamp;

use crate::reading::{Reading, SchemaRef};

/// Size of the segment header.
pub(super) const HEADER: usize = 20;
const MAGIC: &[u8; 7] = b"WEIRBOX";
/// Stands behind [`MAGIC`], as a digit.
pub(super) const VERSION: u8 = 1;
/// Length and checksum before each body.
const PREFIX: usize = 8;
/// The fixed part of a body.
const FIXED: usize = 28;
/// Largest field map of one record: a frame has at most 64 KiB and must still hold its own head.
pub const MAX_FIELDS: usize = 60 << 10;

/// One record as it was found in a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Its number.
    pub seq: u64,
    /// The record.
    pub reading: Reading,
}

/// Where a record lies in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// The first bytes of a segment of this epoch.
pub(super) fn header(epoch: Epoch) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(MAGIC);
    bytes.push(b'0' + VERSION);
    bytes.extend_from_slice(&epoch.0.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The version and epoch that a segment's header names, if the header is whole.
pub(super) fn read_header(bytes: &[u8]) -> Option<(u8, Epoch)> {
    let (checked, crc) = bytes.get(..HEADER)?.split_at(HEADER - 4);
    let version = checked.strip_prefix(MAGIC)?.first()?.checked_sub(b'0')?;
    if version == 0 || crc32fast::hash(checked) != u32_at(crc, 0)? {
        return None;
    }
    Some((version, Epoch(u64_at(checked, 8)?)))
}

/// Bytes that a record takes in a segment.
pub(super) fn size(reading: &Reading) -> usize {
    PREFIX + FIXED + reading.fields.len()
}

/// Appends a record.
pub(super) fn put(epoch: Epoch, seq: u64, reading: &Reading, out: &mut Vec<u8>) {
    let len = ((FIXED + reading.fields.len()) as u32).to_le_bytes();
    let begin = out.len();
    out.extend_from_slice(&len);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&reading.ts.0.to_le_bytes());
    out.extend_from_slice(&reading.schema.id.to_le_bytes());
    out.extend_from_slice(&reading.schema.version.to_le_bytes());
    out.extend_from_slice(&reading.flags.to_le_bytes());
    out.extend_from_slice(&reading.fields);
    let crc = checksum(epoch, len, out.get(begin + PREFIX..).unwrap_or_default());
    if let Some(slot) = out.get_mut(begin + 4..begin + PREFIX) {
        slot.copy_from_slice(&crc.to_le_bytes());
    }
}

/// The record at the start of `bytes` and its size, if it is whole.
pub(super) fn take(epoch: Epoch, bytes: &[u8]) -> Option<(Stored, usize)> {
    let (body, size) = whole(epoch, bytes)?;
    let reading = Reading {
        ts: Timestamp(u64_at(body, 8)? as i64),
        schema: SchemaRef { id: u32_at(body, 16)?, version: u32_at(body, 20)? },
        flags: u32_at(body, 24)?,
        fields: body.get(FIXED..)?.to_vec(),
    };
    Some((Stored { seq: u64_at(body, 0)?, reading }, size))
}

/// All whole records of a segment, in order, and where the last of them ends. Bytes that are no record are
/// skipped until one follows.
pub(super) fn scan(epoch: Epoch, bytes: &[u8]) -> (Vec<Place>, usize) {
    let mut places: Vec<Place> = Vec::new();
    let (mut at, mut end) = (HEADER, HEADER);
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= PREFIX + FIXED) {
        let found = whole(epoch, rest).and_then(|(body, size)| Some((u64_at(body, 0)?, size)));
        match found {
            Some((seq, size)) if places.last().is_none_or(|last| last.seq < seq) => {
                places.push(Place { seq, offset: at as u32, len: size as u32 });
                at += size;
                end = at;
            }
            // Not a record: damage, or the torn end. A checksum tells where the next one begins.
            _ => at += 1,
        }
    }
    (places, end)
}

fn whole(epoch: Epoch, bytes: &[u8]) -> Option<(&[u8], usize)> {
    let len = u32_at(bytes, 0)? as usize;
    if !(FIXED..=FIXED + MAX_FIELDS).contains(&len) {
        return None;
    }
    let body = bytes.get(PREFIX..PREFIX + len)?;
    (checksum(epoch, (len as u32).to_le_bytes(), body) == u32_at(bytes, 4)?).then_some((body, PREFIX + len))
}

fn checksum(epoch: Epoch, len: [u8; 4], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&epoch.0.to_le_bytes());
    hasher.update(&len);
    hasher.update(body);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(n: u8) -> Reading {
        Reading {
            ts: Timestamp(i64::from(n)),
            schema: SchemaRef { id: 1, version: 1 << 16 },
            flags: 0,
            fields: vec![0xa1, 1, n],
        }
    }

    fn segment(count: u8) -> Vec<u8> {
        let mut bytes = header(Epoch(7));
        for n in 1..=count {
            put(Epoch(7), u64::from(n), &reading(n), &mut bytes);
        }
        bytes
    }

    #[test]
    fn what_is_put_is_found() {
        let bytes = segment(3);
        assert_eq!(read_header(&bytes), Some((VERSION, Epoch(7))));
        let (places, end) = scan(Epoch(7), &bytes);
        assert_eq!(places.iter().map(|p| p.seq).collect::<Vec<_>>(), vec![1, 2, 3]);
        assert_eq!(end, bytes.len());
        let (stored, _) = take(Epoch(7), &bytes[places[1].offset as usize..]).unwrap();
        assert_eq!(stored, Stored { seq: 2, reading: reading(2) });
        assert!(scan(Epoch(8), &bytes).0.is_empty(), "records of another epoch must not pass");
    }

    /// Golden: what clients out there have on their disks.
    #[test]
    fn the_bytes_are_those_of_format_1() {
        let hex: String = segment(1).iter().map(|byte| format!("{byte:02x}")).collect();
        let header = "57454952424f583107000000000000004bebfaa6";
        let record = "1f0000004a1ec7fd01000000000000000100000000000000010000000000010000000000a10101";
        assert_eq!(hex, format!("{header}{record}"));
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_next() {
        for at in HEADER..segment(3).len() {
            let mut bytes = segment(3);
            bytes[at] ^= 0x40;
            let (places, _) = scan(Epoch(7), &bytes);
            let each = (bytes.len() - HEADER) / 3;
            let hit = (at - HEADER) / each + 1;
            let expected: Vec<u64> = (1..=3).filter(|n| *n != hit as u64).collect();
            assert_eq!(places.iter().map(|p| p.seq).collect::<Vec<_>>(), expected, "byte {at}");
        }
    }
}
