//! Cuts a byte stream into MQTT packets, and the few encodings that every packet shares.
//!
//! Absent: any meaning. This file knows lengths and flag bits only.

use bytes::BufMut;

use super::fault::{Fault, code};

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V3,
    V5,
}

/// Packet types, the high half of the first byte.
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
    pub(crate) const AUTH: u8 = 15;
}

/// One complete packet at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Bytes of the fixed header.
    pub(crate) head: usize,
    /// Bytes in all.
    pub(crate) len: usize,
}

/// Looks for a complete packet at the start of `buf`. A packet that can never be accepted is refused as soon as
/// its header says so, not when it has arrived.
pub(crate) fn next(buf: &[u8], limit: usize) -> Result<Option<Frame>, Fault> {
    let Some(&first) = buf.first() else { return Ok(None) };
    let kind = first >> 4;
    let flags = first & 0x0f;
    let expected = match kind {
        0 => return Err(Fault::malformed("packet type 0 does not exist")),
        kind::PUBLISH => flags,
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 2,
        _ => 0,
    };
    if flags != expected {
        return Err(Fault::malformed("reserved flag bits of the fixed header are set"));
    }
    let Some((length, width)) = varint(buf.get(1..).unwrap_or_default())? else { return Ok(None) };
    let head = 1 + width;
    let len = head + length as usize;
    if len > limit {
        return Err(Fault::new(code::TOO_LARGE, "the packet is larger than the maximum packet size"));
    }
    if buf.len() < len {
        return Ok(None);
    }
    Ok(Some(Frame { kind, flags, head, len }))
}

/// Reads a variable byte integer: value and width. `None`: more bytes are needed.
pub(crate) fn varint(buf: &[u8]) -> Result<Option<(u32, usize)>, Fault> {
    let mut value = 0u32;
    for (i, byte) in buf.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            if *byte == 0 && i > 0 {
                return Err(Fault::malformed("a length is not in its shortest form"));
            }
            return Ok(Some((value, i + 1)));
        }
    }
    if buf.len() >= 4 { Err(Fault::malformed("a length has more than four bytes")) } else { Ok(None) }
}

/// Writes a variable byte integer; values above the format's maximum are held to it.
pub(crate) fn put_varint(out: &mut impl BufMut, value: usize) {
    let mut rest = value.min(268_435_455);
    loop {
        let byte = (rest & 0x7f) as u8;
        rest >>= 7;
        out.put_u8(if rest > 0 { byte | 0x80 } else { byte });
        if rest == 0 {
            return;
        }
    }
}

/// How many bytes [`put_varint`] writes.
pub(crate) fn varint_len(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

/// Takes a length-prefixed field off the front.
pub(crate) fn take_field<'a>(buf: &mut &'a [u8]) -> Result<&'a [u8], Fault> {
    let len = usize::from(take_u16(buf)?);
    if buf.len() < len {
        return Err(Fault::malformed("a field is longer than its packet"));
    }
    let (field, rest) = buf.split_at(len);
    *buf = rest;
    Ok(field)
}

/// Takes a UTF-8 string off the front; U+0000 is refused as the standard demands.
pub(crate) fn take_text<'a>(buf: &mut &'a [u8]) -> Result<&'a str, Fault> {
    text(take_field(buf)?)
}

/// Takes a property section off the front.
pub(crate) fn take_properties<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Fault> {
    let Some((len, width)) = varint(rest)? else {
        return Err(Fault::malformed("the packet ends before its properties"));
    };
    match rest.get(width..width + len as usize) {
        Some(properties) => {
            *rest = rest.get(width + len as usize..).unwrap_or_default();
            Ok(properties)
        }
        None => Err(Fault::malformed("the properties are longer than their packet")),
    }
}

/// Takes two bytes off the front.
pub(crate) fn take_u16(buf: &mut &[u8]) -> Result<u16, Fault> {
    match buf.split_first_chunk::<2>() {
        Some((bytes, rest)) => {
            *buf = rest;
            Ok(u16::from_be_bytes(*bytes))
        }
        None => Err(Fault::malformed("the packet ends too early")),
    }
}

/// Takes four bytes off the front.
pub(crate) fn take_u32(buf: &mut &[u8]) -> Result<u32, Fault> {
    match buf.split_first_chunk::<4>() {
        Some((bytes, rest)) => {
            *buf = rest;
            Ok(u32::from_be_bytes(*bytes))
        }
        None => Err(Fault::malformed("the packet ends too early")),
    }
}

/// Takes one byte off the front.
pub(crate) fn take_u8(buf: &mut &[u8]) -> Result<u8, Fault> {
    match buf.split_first() {
        Some((byte, rest)) => {
            *buf = rest;
            Ok(*byte)
        }
        None => Err(Fault::malformed("the packet ends too early")),
    }
}

/// Checks a UTF-8 string of the wire.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Fault> {
    if bytes.contains(&0) {
        return Err(Fault::malformed("a string holds U+0000"));
    }
    std::str::from_utf8(bytes).map_err(|_| Fault::malformed("a string is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_width() {
        for value in [0usize, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(varint(&out), Ok(Some((value as u32, out.len()))));
            assert_eq!(varint(&out[..out.len() - 1]), Ok(None), "cut short: wait");
        }
        assert!(varint(&[0x80, 0x80, 0x80, 0x80]).is_err());
        assert!(varint(&[0x80, 0x00]).is_err(), "longer than needed");
    }

    #[test]
    fn frames_are_cut_and_bad_headers_refused_early() {
        assert_eq!(next(&[0xc0, 0], 100), Ok(Some(Frame { kind: kind::PINGREQ, flags: 0, head: 2, len: 2 })));
        assert_eq!(next(&[0x30, 5, 0], 100), Ok(None));
        assert_eq!(next(&[], 100), Ok(None));
        assert!(next(&[0x80, 0], 100).is_err(), "SUBSCRIBE without its flag");
        assert!(next(&[0x62, 0], 100).is_ok());
        assert!(next(&[0x00, 0], 100).is_err());
        let fault = next(&[0x30, 0xff, 0x7f], 100).unwrap_err();
        assert_eq!(fault.code, code::TOO_LARGE, "known from the header alone");
    }
}
