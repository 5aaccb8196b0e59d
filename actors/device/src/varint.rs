//! Integers in few bytes: LEB128, with zigzag for signed ones, and a reader that never goes past the end.
//!
//! Used by what the engine stores itself (log entries, snapshots), never by what a device sends.

use bytes::Bytes;

/// Appends an unsigned integer, 1 to 10 bytes.
#[inline]
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed integer.
#[inline]
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and that many bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What stood in the way of reading: where, and what was expected there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// Reads what the functions of this module wrote.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn broken<T>(&self, what: &'static str) -> Result<T, Broken> {
        Err(Broken { at: self.at, what })
    }

    #[inline]
    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8, Broken> {
        match self.bytes.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => self.broken(what),
        }
    }

    #[inline]
    pub(crate) fn unsigned(&mut self, what: &'static str) -> Result<u64, Broken> {
        let mut value = 0u64;
        let mut shift = 0;
        loop {
            let byte = self.byte(what)?;
            // The tenth byte has room for one bit only.
            if shift == 63 && byte > 1 {
                return self.broken(what);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
            shift += 7;
        }
    }

    #[inline]
    pub(crate) fn signed(&mut self, what: &'static str) -> Result<i64, Broken> {
        let value = self.unsigned(what)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(crate) fn unsigned32(&mut self, what: &'static str) -> Result<u32, Broken> {
        let value = self.unsigned(what)?;
        u32::try_from(value).or_else(|_| self.broken(what))
    }

    /// A count of things that take at least `least` bytes each: more than can follow is refused here, before
    /// anybody allocates for them.
    pub(crate) fn count(&mut self, least: usize, what: &'static str) -> Result<usize, Broken> {
        let value = self.unsigned(what)?;
        match usize::try_from(value) {
            Ok(count) if count <= self.left() / least.max(1) => Ok(count),
            _ => self.broken(what),
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Broken> {
        match self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end)) {
            Some(slice) => {
                self.at += len;
                Ok(slice)
            }
            None => self.broken(what),
        }
    }

    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Broken> {
        let len = self.count(1, what)?;
        self.take(len, what)
    }

    /// As [`Self::bytes`], but shares `whole`, which must be what this cursor reads.
    pub(crate) fn shared(&mut self, whole: &Bytes, what: &'static str) -> Result<Bytes, Broken> {
        let len = self.count(1, what)?;
        let from = self.at;
        self.take(len, what)?;
        Ok(whole.slice(from..from + len))
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, Broken> {
        let from = self.at;
        let bytes = self.bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| Broken { at: from, what })
    }

    pub(crate) fn end(&self, what: &'static str) -> Result<(), Broken> {
        if self.left() == 0 { Ok(()) } else { self.broken(what) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            put_signed(&mut out, value as i64);
            let mut cursor = Cursor::new(&out);
            assert_eq!(cursor.unsigned("u"), Ok(value));
            assert_eq!(cursor.signed("s"), Ok(value as i64));
            assert_eq!(cursor.end("end"), Ok(()));
        }
    }

    #[test]
    fn bad_bytes_are_refused_where_they_stand() {
        assert_eq!(Cursor::new(&[0x80]).unsigned("u"), Err(Broken { at: 1, what: "u" }));
        assert!(Cursor::new(&[0xff; 11]).unsigned("u").is_err());
        assert!(Cursor::new(&[5, 1, 2]).bytes("b").is_err());
        assert!(Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).count(1, "n").is_err());
    }
}
