//! A log record in the clothes that raft-engine wants: a protobuf 2 message.
//!
//! Written by hand, since the bytes need no second encoding: position (8 bytes), shard (2), length (4), all little
//! endian, then the record. Position and shard are there to notice a block that belongs elsewhere.

use std::any::Any;
use std::sync::OnceLock;

use bytes::Bytes;
use protobuf::well_known_types::BytesValue;
use protobuf::{
    Clear, CodedInputStream, CodedOutputStream, Message, ProtobufError, ProtobufResult, UnknownFields,
    reflect::MessageDescriptor,
};
use raft_engine::MessageExt;

/// Bytes ahead of the record.
const HEADER: usize = 14;

/// One record with its place.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Carrier {
    pub(super) position: u64,
    pub(super) shard: u16,
    pub(super) record: Bytes,
    unknown: UnknownFields,
}

impl Carrier {
    pub(super) fn new(position: u64, shard: u16, record: Bytes) -> Self {
        Self { position, shard, record, unknown: UnknownFields::default() }
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let (position, rest) = header.split_at_mut(8);
        let (shard, len) = rest.split_at_mut(2);
        position.copy_from_slice(&self.position.to_le_bytes());
        shard.copy_from_slice(&self.shard.to_le_bytes());
        // raft-engine refuses batches of 2 GiB and more long before this could wrap.
        len.copy_from_slice(&(self.record.len() as u32).to_le_bytes());
        header
    }
}

/// Tells raft-engine where the index of a [`Carrier`] is.
pub(super) struct Carriers;

impl MessageExt for Carriers {
    type Entry = Carrier;

    fn index(entry: &Carrier) -> u64 {
        entry.position
    }
}

impl Clear for Carrier {
    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Message for Carrier {
    fn descriptor(&self) -> &'static MessageDescriptor {
        // Only reflection asks for it, which nobody does here; a stand-in is better than a panic.
        BytesValue::descriptor_static()
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn merge_from(&mut self, stream: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
        self.position = stream.read_raw_little_endian64()?;
        let shard_and_len = stream.read_raw_bytes(6)?;
        let [s0, s1, l0, l1, l2, l3] = *shard_and_len.as_slice() else {
            return Err(ProtobufError::WireError(protobuf::error::WireError::UnexpectedEof));
        };
        self.shard = u16::from_le_bytes([s0, s1]);
        let mut record = Vec::new();
        stream.read_raw_bytes_into(u32::from_le_bytes([l0, l1, l2, l3]), &mut record)?;
        self.record = Bytes::from(record);
        stream.check_eof()
    }

    fn write_to_with_cached_sizes(&self, stream: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
        stream.write_raw_bytes(&self.header())?;
        stream.write_raw_bytes(&self.record)
    }

    fn write_to_vec(&self, bytes: &mut Vec<u8>) -> ProtobufResult<()> {
        bytes.reserve(HEADER + self.record.len());
        bytes.extend_from_slice(&self.header());
        bytes.extend_from_slice(&self.record);
        Ok(())
    }

    fn compute_size(&self) -> u32 {
        (HEADER + self.record.len()) as u32
    }

    fn get_cached_size(&self) -> u32 {
        self.compute_size()
    }

    fn get_unknown_fields(&self) -> &UnknownFields {
        &self.unknown
    }

    fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
        &mut self.unknown
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn new() -> Self {
        Self::default()
    }

    fn default_instance() -> &'static Self {
        static EMPTY: OnceLock<Carrier> = OnceLock::new();
        EMPTY.get_or_init(Self::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden. It has no version of its own: the record inside has one, and so has the data directory.
    #[test]
    fn the_bytes_stay_as_they_are() {
        let bytes = Carrier::new(0x0102, 3, Bytes::from_static(b"abc")).write_to_bytes().unwrap();
        assert_eq!(bytes, b"\x02\x01\0\0\0\0\0\0\x03\0\x03\0\0\0abc");
    }

    #[test]
    fn reads_back_what_it_wrote_and_nothing_else() {
        let carrier = Carrier::new(1 << 40, 7, Bytes::from_static(b"a record"));
        let mut bytes = Vec::new();
        carrier.write_to_vec(&mut bytes).unwrap();
        assert_eq!(bytes, carrier.write_to_bytes().unwrap());
        assert_eq!(Carrier::parse_from_bytes(&bytes).unwrap(), carrier);
        assert!(Carrier::parse_from_bytes(&bytes[..bytes.len() - 1]).is_err());
        bytes.push(0);
        assert!(Carrier::parse_from_bytes(&bytes).is_err());
    }
}
