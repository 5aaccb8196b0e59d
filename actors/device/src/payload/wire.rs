//! CBOR, item by item, straight from the payload.
//!
//! Our own and not a library's because the limits are needed at every item: where an indefinite length stands,
//! how deep a value nests, where exactly the bytes are wrong. It borrows and never allocates. Building CBOR is
//! left to minicbor.

/// What stood in the way, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// One data item; of arrays and maps only the head (`None`: of indefinite length).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Item<'a> {
    Uint(u64),
    /// Stands for `-1 - n`.
    Nint(u64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Array(Option<u64>),
    Map(Option<u64>),
    Tag(u64),
    Bool(bool),
    /// `null` or `undefined`.
    Null,
    Float(f64),
    Break,
}

const ENDS: &str = "the payload ends inside a value";

/// Reads items one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wire<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[cold]
    pub(crate) fn fault<T>(at: usize, what: &'static str) -> Result<T, Fault> {
        Err(Fault { at, what })
    }

    /// The value of an item that is one byte long: `kind` are its three highest bits, and small numbers and lengths
    /// stand in the other five. Nearly every item of a frame but its readings is of this kind.
    #[inline(always)]
    fn short(&mut self, kind: u8) -> Option<u64> {
        let byte = self.peek()?;
        if byte >> 5 == kind && byte & 31 < 24 {
            self.at += 1;
            return Some(u64::from(byte & 31));
        }
        None
    }

    /// A double in eight bytes, if one stands here: the common reading.
    #[inline(always)]
    pub(crate) fn double(&mut self) -> Option<f64> {
        let rest = self.bytes.get(self.at..)?;
        let [0xfb, a, b, c, d, e, f, g, h, ..] = *rest else { return None };
        self.at += 9;
        Some(f64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let slice = usize::try_from(len)
            .ok()
            .and_then(|len| self.at.checked_add(len))
            .and_then(|end| self.bytes.get(self.at..end));
        match slice {
            Some(slice) => {
                self.at += slice.len();
                Ok(slice)
            }
            None => Self::fault(self.at, ENDS),
        }
    }

    /// The initial byte's major type and argument; `None` for an indefinite length.
    #[inline]
    fn head(&mut self) -> Result<(u8, u8, Option<u64>), Fault> {
        let at = self.at;
        let Some(initial) = self.peek() else {
            return Self::fault(at, ENDS);
        };
        self.at += 1;
        let (major, info) = (initial >> 5, initial & 31);
        let argument = match info {
            0..=23 => u64::from(info),
            24 => match self.take(1)? {
                [a] => u64::from(*a),
                _ => return Self::fault(at, ENDS),
            },
            25 => match *self.take(2)? {
                [a, b] => u64::from(u16::from_be_bytes([a, b])),
                _ => return Self::fault(at, ENDS),
            },
            26 => match *self.take(4)? {
                [a, b, c, d] => u64::from(u32::from_be_bytes([a, b, c, d])),
                _ => return Self::fault(at, ENDS),
            },
            27 => match *self.take(8)? {
                [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
                _ => return Self::fault(at, ENDS),
            },
            31 => return Ok((major, info, None)),
            _ => return Self::fault(at, "not CBOR: a reserved length"),
        };
        Ok((major, info, Some(argument)))
    }

    /// The next item.
    #[inline]
    pub(crate) fn item(&mut self) -> Result<Item<'a>, Fault> {
        let at = self.at;
        let (major, info, argument) = self.head()?;
        Ok(match (major, argument) {
            (0, Some(value)) => Item::Uint(value),
            (1, Some(value)) => Item::Nint(value),
            (2, Some(len)) => Item::Bytes(self.take(len)?),
            (3, Some(len)) => match std::str::from_utf8(self.take(len)?) {
                Ok(text) => Item::Text(text),
                Err(_) => return Self::fault(at, "the text is not UTF-8"),
            },
            (4, len) => Item::Array(self.fits(at, len, 1)?),
            (5, len) => Item::Map(self.fits(at, len, 2)?),
            (6, Some(tag)) => Item::Tag(tag),
            (7, None) => Item::Break,
            (7, Some(bits)) => match info {
                20 => Item::Bool(false),
                21 => Item::Bool(true),
                22 | 23 => Item::Null,
                25 => Item::Float(half(bits as u16)),
                26 => Item::Float(f64::from(f32::from_bits(bits as u32))),
                27 => Item::Float(f64::from_bits(bits)),
                _ => return Self::fault(at, "a simple value that has no meaning here"),
            },
            (2 | 3, None) => return Self::fault(at, "a string in pieces (indefinite length) is not taken"),
            _ => return Self::fault(at, "not CBOR: an integer or tag without a value"),
        })
    }

    /// Refuses lengths that cannot follow before anybody counts on them.
    #[inline]
    fn fits(&self, at: usize, len: Option<u64>, least: u64) -> Result<Option<u64>, Fault> {
        match len {
            Some(len) if len > self.left() as u64 / least => Self::fault(at, ENDS),
            len => Ok(len),
        }
    }

    /// An array of definite length.
    #[inline]
    pub(crate) fn array(&mut self, what: &'static str) -> Result<u64, Fault> {
        let at = self.at;
        if let Some(len) = self.short(4) {
            return self.fits(at, Some(len), 1).map(|_| len);
        }
        match self.item()? {
            Item::Array(Some(len)) => Ok(len),
            Item::Array(None) => Self::fault(at, INDEFINITE),
            _ => Self::fault(at, what),
        }
    }

    /// A map of definite length.
    #[inline]
    pub(crate) fn map(&mut self, what: &'static str) -> Result<u64, Fault> {
        let at = self.at;
        if let Some(len) = self.short(5) {
            return self.fits(at, Some(len), 2).map(|_| len);
        }
        match self.item()? {
            Item::Map(Some(len)) => Ok(len),
            Item::Map(None) => Self::fault(at, INDEFINITE),
            _ => Self::fault(at, what),
        }
    }

    #[inline]
    pub(crate) fn uint(&mut self, what: &'static str) -> Result<u64, Fault> {
        let at = self.at;
        if let Some(value) = self.short(0) {
            return Ok(value);
        }
        match self.item()? {
            Item::Uint(value) => Ok(value),
            _ => Self::fault(at, what),
        }
    }

    #[inline]
    pub(crate) fn int(&mut self, what: &'static str) -> Result<i64, Fault> {
        let at = self.at;
        if let Some(value) = self.short(0) {
            return Ok(value as i64);
        }
        let value = match self.item()? {
            Item::Uint(value) => i64::try_from(value).ok(),
            Item::Nint(value) => i64::try_from(value).ok().map(|value| -1 - value),
            _ => None,
        };
        match value {
            Some(value) => Ok(value),
            None => Self::fault(at, what),
        }
    }

    /// Passes over one whole value that nests at most `depth` deep. `indefinite` says whether lengths may be open.
    pub(crate) fn skip(&mut self, depth: usize, indefinite: bool) -> Result<(), Fault> {
        if self.skip_flat() {
            return Ok(());
        }
        let at = self.at;
        let mut items = match self.item()? {
            Item::Array(Some(len)) => len,
            Item::Map(Some(len)) => len * 2,
            Item::Tag(_) => 1,
            Item::Array(None) | Item::Map(None) if !indefinite => return Self::fault(at, INDEFINITE),
            Item::Array(None) => return self.skip_open(at, depth, 1),
            Item::Map(None) => return self.skip_open(at, depth, 2),
            Item::Break => return Self::fault(at, "not CBOR: a break without a beginning"),
            _ => return Ok(()),
        };
        if depth == 0 {
            return Self::fault(at, DEPTH);
        }
        while items > 0 {
            items -= 1;
            self.skip(depth - 1, indefinite)?;
        }
        Ok(())
    }

    /// Passes over a number or a short text, if one stands here. False: look at it properly.
    #[inline]
    fn skip_flat(&mut self) -> bool {
        let Some(byte) = self.peek() else { return false };
        let len = match byte {
            0x00..=0x17 | 0x20..=0x37 | 0xf4..=0xf6 => 1,
            0x18 | 0x38 => 2,
            0x19 | 0x39 | 0xf9 => 3,
            0x1a | 0x3a | 0xfa => 5,
            0x1b | 0x3b | 0xfb => 9,
            0x60..=0x77 => {
                let len = 1 + usize::from(byte & 31);
                let text = self.bytes.get(self.at + 1..self.at + len);
                if !text.is_some_and(<[u8]>::is_ascii) {
                    return false;
                }
                len
            }
            _ => return false,
        };
        let fits = len <= self.left();
        self.at += if fits { len } else { 0 };
        fits
    }

    fn skip_open(&mut self, at: usize, depth: usize, group: u8) -> Result<(), Fault> {
        if depth == 0 {
            return Self::fault(at, DEPTH);
        }
        while self.peek() != Some(BREAK) {
            for _ in 0..group {
                self.skip(depth - 1, true)?;
            }
        }
        self.at += 1;
        Ok(())
    }

    /// Takes the end of an open array or map, if it stands here.
    #[inline]
    pub(crate) fn take_break(&mut self) -> bool {
        let found = self.peek() == Some(BREAK);
        self.at += usize::from(found);
        found
    }
}

const BREAK: u8 = 0xff;
pub(crate) const INDEFINITE: &str = "an indefinite length is not allowed in a frame";
pub(crate) const DEPTH: &str = "values nest more than 16 deep";

/// IEEE 754 half precision, widened exactly.
fn half(bits: u16) -> f64 {
    let exponent = i32::from(bits >> 10 & 0x1f);
    let mantissa = f64::from(bits & 0x3ff);
    let value = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 != 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Result<Item<'_>, &str>) {
        assert_eq!(Wire::new(bytes, 0).item().map_err(|fault| fault.what), expected, "{bytes:02x?}");
    }

    #[test]
    fn items() {
        check(&[0x17], Ok(Item::Uint(23)));
        check(&[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Ok(Item::Uint(u64::MAX)));
        check(&[0x38, 0x63], Ok(Item::Nint(99)));
        check(&[0x62, b'a', b'b'], Ok(Item::Text("ab")));
        check(&[0x62, 0xff, b'b'], Err("the text is not UTF-8"));
        check(&[0x43, 1, 2, 3], Ok(Item::Bytes(&[1, 2, 3])));
        check(&[0x43, 1, 2], Err(ENDS));
        check(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Err(ENDS));
        check(&[0x9f], Ok(Item::Array(None)));
        check(&[0x5f], Err("a string in pieces (indefinite length) is not taken"));
        check(&[0xf9, 0x3c, 0x00], Ok(Item::Float(1.0)));
        check(&[0xf9, 0x04, 0x00], Ok(Item::Float(0.000_061_035_156_25)));
        check(&[0xf9, 0x00, 0x01], Ok(Item::Float(5.960_464_477_539_063e-8)));
        check(&[0xf9, 0xfb, 0xff], Ok(Item::Float(-65504.0)));
        check(&[0xf9, 0xfc, 0x00], Ok(Item::Float(f64::NEG_INFINITY)));
        check(&[0xfa, 0x47, 0xc3, 0x50, 0x00], Ok(Item::Float(100_000.0)));
        check(&[0xf6], Ok(Item::Null));
        check(&[0xe0], Err("a simple value that has no meaning here"));
        check(&[0x1c], Err("not CBOR: a reserved length"));
        check(&[], Err(ENDS));
    }

    #[test]
    fn the_short_ways_agree_with_the_long_one() {
        for first in 0..=255u8 {
            for tail in [&[][..], &[1], b"abcdefghijklmnopqrstuvwxyz", &[0xff; 40], &[0; 40]] {
                let bytes = [&[first], tail].concat();
                let mut long = Wire::new(&bytes, 0);
                let item = long.item();
                let mut short = Wire::new(&bytes, 0);
                match short.double() {
                    Some(value) => assert_eq!(item.map(|_| value.to_bits()), Ok(f64::to_bits(value)), "{bytes:02x?}"),
                    None => assert_eq!(short.at, 0),
                }
                let mut short = Wire::new(&bytes, 0);
                if short.skip_flat() {
                    assert!(item.is_ok(), "{bytes:02x?}");
                    assert_eq!(short.at, long.at, "{bytes:02x?}");
                }
                for kind in [0, 4, 5] {
                    let mut short = Wire::new(&bytes, 0);
                    if let Some(value) = short.short(kind) {
                        let expected = match Wire::new(&bytes, 0).head() {
                            Ok((major, _, Some(value))) if major == kind => Some(value),
                            _ => None,
                        };
                        assert_eq!(Some(value), expected, "{bytes:02x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn skipping_is_bounded() {
        let deep = [[0x81; 16].as_slice(), &[1]].concat();
        assert_eq!(Wire::new(&deep, 0).skip(16, false), Ok(()));
        let deeper = [[0x81; 17].as_slice(), &[1]].concat();
        assert_eq!(Wire::new(&deeper, 0).skip(16, false), Err(Fault { at: 16, what: DEPTH }));
        let open = [0x9f, 0xbf, 0x01, 0x02, 0xff, 0xff];
        assert_eq!(Wire::new(&open, 0).skip(4, true), Ok(()));
        assert_eq!(Wire::new(&open, 0).skip(4, false), Err(Fault { at: 0, what: INDEFINITE }));
        assert!(Wire::new(&[0x9f; 10_000], 0).skip(16, true).is_err());
    }
}
