//! The text of the column `extra`: one JSON object with every field that the stream does not declare.

use std::collections::HashSet;
use std::fmt::Write;

use super::base64;
use super::value::Raw;
use super::wire::{DEPTH, Fault, Item, Wire};

/// Collects undeclared fields; keeps its buffers from record to record.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    text: String,
    keys: HashSet<String>,
}

impl Extra {
    /// Forgets the fields of the record before.
    pub(crate) fn clear(&mut self) {
        if !self.text.is_empty() {
            self.text.clear();
            self.keys.clear();
        }
    }

    /// Begins a field; false if there was one of that name already. Its value has to follow.
    pub(crate) fn key(&mut self, name: &str) -> bool {
        if !self.keys.insert(name.to_owned()) {
            return false;
        }
        self.text.push(if self.text.is_empty() { '{' } else { ',' });
        put_text(name, &mut self.text);
        self.text.push(':');
        true
    }

    /// The text to write the value to.
    pub(crate) fn value(&mut self) -> &mut String {
        &mut self.text
    }

    /// The finished object, if there are any fields.
    pub(crate) fn finish(&mut self) -> Option<&str> {
        if self.text.is_empty() {
            return None;
        }
        self.text.push('}');
        Some(&self.text)
    }
}

/// Appends a JSON string.
pub(crate) fn put_text(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(text.get(plain..at).unwrap_or_default());
        plain = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "\\u{byte:04x}")),
        }
    }
    out.push_str(text.get(plain..).unwrap_or_default());
    out.push('"');
}

/// Appends a scalar. What JSON has no number for (NaN, infinities) is written as text, bytes as Base64.
pub(crate) fn put_raw(raw: &Raw<'_>, out: &mut String) {
    match raw {
        Raw::Null => out.push_str("null"),
        Raw::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Raw::Int(value) => drop(write!(out, "{value}")),
        Raw::Uint(value) => drop(write!(out, "{value}")),
        Raw::Huge(value) | Raw::Float(value) if value.is_finite() => drop(write!(out, "{value:?}")),
        Raw::Huge(value) | Raw::Float(value) => drop(write!(out, "\"{value}\"")),
        Raw::Decimal(text) => out.push_str(text),
        Raw::Text(text) => put_text(text, out),
        Raw::Bytes(bytes) => {
            out.push('"');
            base64::encode(bytes, out);
            out.push('"');
        }
    }
}

/// Appends a CBOR value of any kind as JSON. `open` says whether indefinite lengths are taken.
pub(crate) fn put_cbor(wire: &mut Wire<'_>, depth: usize, open: bool, out: &mut String) -> Result<(), Fault> {
    let at = wire.at();
    let item = wire.item()?;
    if depth == 0 && matches!(item, Item::Array(_) | Item::Map(_) | Item::Tag(_)) {
        return Wire::fault(at, DEPTH);
    }
    match item {
        Item::Array(None) | Item::Map(None) if !open => Wire::fault(at, super::wire::INDEFINITE),
        Item::Array(len) => {
            out.push('[');
            let mut items = Items::new(len);
            while items.next(wire) {
                if !items.first() {
                    out.push(',');
                }
                put_cbor(wire, depth - 1, open, out)?;
            }
            out.push(']');
            Ok(())
        }
        Item::Map(len) => {
            out.push('{');
            let mut items = Items::new(len);
            let mut keys = HashSet::new();
            while items.next(wire) {
                if !items.first() {
                    out.push(',');
                }
                let at = wire.at();
                let key = match wire.item()? {
                    Item::Text(text) => text.to_owned(),
                    Item::Uint(value) => value.to_string(),
                    Item::Nint(value) => (-1 - i128::from(value)).to_string(),
                    _ => return Wire::fault(at, "a key must be text or an integer"),
                };
                put_text(&key, out);
                if !keys.insert(key) {
                    return Wire::fault(at, "a key stands twice in one map");
                }
                out.push(':');
                put_cbor(wire, depth - 1, open, out)?;
            }
            out.push('}');
            Ok(())
        }
        Item::Tag(_) => put_cbor(wire, depth - 1, open, out),
        Item::Break => Wire::fault(at, "not CBOR: a break without a beginning"),
        item => {
            // `scalar` has an answer for everything that is left.
            put_raw(&scalar(item).unwrap_or(Raw::Null), out);
            Ok(())
        }
    }
}

/// A scalar item as a raw value.
#[inline]
pub(crate) fn scalar(item: Item<'_>) -> Option<Raw<'_>> {
    Some(match item {
        Item::Float(value) => Raw::Float(value),
        Item::Uint(value) => i64::try_from(value).map_or(Raw::Uint(value), Raw::Int),
        Item::Nint(value) => match i64::try_from(value) {
            Ok(value) => Raw::Int(-1 - value),
            Err(_) => Raw::Huge(-1.0 - value as f64),
        },
        Item::Text(text) => Raw::Text(text.into()),
        Item::Bytes(bytes) => Raw::Bytes(bytes),
        Item::Bool(value) => Raw::Bool(value),
        Item::Null => Raw::Null,
        Item::Array(_) | Item::Map(_) | Item::Tag(_) | Item::Break => return None,
    })
}

/// Walks the items of an array, or the pairs of a map, of definite or open length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Items {
    left: Option<u64>,
    taken: u64,
}

impl Items {
    pub(crate) fn new(len: Option<u64>) -> Self {
        Self { left: len, taken: 0 }
    }

    /// Whether another one follows; takes the end of an open one.
    #[inline]
    pub(crate) fn next(&mut self, wire: &mut Wire<'_>) -> bool {
        let more = match &mut self.left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => !wire.take_break(),
        };
        self.taken += u64::from(more);
        more
    }

    /// Whether the one that [`Self::next`] announced is the first.
    pub(crate) fn first(&self) -> bool {
        self.taken == 1
    }
}
