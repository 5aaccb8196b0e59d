//! Plain records in JSON: a strict pull reader that keeps numbers as they were written.
//!
//! Our own because a number must reach `extra` with the very digits it was sent with and a `BIGINT` with all of
//! its 64 bits, and because errors name a byte. It takes exactly what RFC 8259 takes.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Node, Source};
use crate::payload::extra::put_text;
use crate::payload::value::Raw;
use crate::payload::wire::{DEPTH, Fault, Wire};

const VALUE: &str = "not JSON: expected a value";
const STRING: &str = "not JSON: a string is not closed";

/// A place in a JSON payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JsonSource<'a> {
    text: &'a str,
    at: usize,
}

/// Where one is inside an array or object.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Opened {
    inside: bool,
}

impl<'a> JsonSource<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn space(&mut self) -> Option<u8> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                other => return other,
            }
        }
    }

    fn fault<T>(&self, what: &'static str) -> Result<T, Fault> {
        Wire::fault(self.at, what)
    }

    fn word(&mut self, word: &'static str, raw: Raw<'a>) -> Result<Raw<'a>, Fault> {
        match self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            true => {
                self.at += word.len();
                Ok(raw)
            }
            false => self.fault(VALUE),
        }
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == from { self.fault("not JSON: expected a digit") } else { Ok(()) }
    }

    fn number(&mut self) -> Result<&'a str, Fault> {
        let from = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                return self.fault("not JSON: a number begins with a superfluous zero");
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(self.text.get(from..self.at).unwrap_or_default())
    }

    /// A string, from its opening quote on.
    #[inline]
    fn string(&mut self) -> Result<Cow<'a, str>, Fault> {
        self.at += 1;
        let from = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let text = self.text.get(from..self.at).unwrap_or_default();
                    self.at += 1;
                    return Ok(Cow::Borrowed(text));
                }
                Some(b'\\') => return self.escaped(from),
                Some(0..0x20) => return self.fault("not JSON: a control character in a string has to be escaped"),
                Some(_) => self.at += 1,
                None => return self.fault(STRING),
            }
        }
    }

    #[cold]
    fn escaped(&mut self, from: usize) -> Result<Cow<'a, str>, Fault> {
        let mut out = String::new();
        let mut from = from;
        loop {
            match self.peek() {
                Some(b'"') => {
                    out.push_str(self.text.get(from..self.at).unwrap_or_default());
                    self.at += 1;
                    return Ok(Cow::Owned(out));
                }
                Some(b'\\') => {
                    out.push_str(self.text.get(from..self.at).unwrap_or_default());
                    self.at += 1;
                    out.push(self.escape()?);
                    from = self.at;
                }
                Some(0..0x20) => return self.fault("not JSON: a control character in a string has to be escaped"),
                Some(_) => self.at += 1,
                None => return self.fault(STRING),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let Some(byte) = self.peek() else {
            return self.fault(STRING);
        };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let high = self.hex()?;
                let code = if (0xd800..0xdc00).contains(&high) {
                    if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with("\\u")) {
                        return self.fault("not JSON: half of a surrogate pair");
                    }
                    self.at += 2;
                    let low = self.hex()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return self.fault("not JSON: half of a surrogate pair");
                    }
                    0x10000 + ((high - 0xd800) << 10 | (low - 0xdc00))
                } else {
                    high
                };
                match char::from_u32(code) {
                    Some(symbol) => symbol,
                    None => return self.fault("not JSON: half of a surrogate pair"),
                }
            }
            _ => return self.fault("not JSON: an escape that does not exist"),
        })
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let mut value = 0;
        for byte in digits {
            match char::from(*byte).to_digit(16) {
                Some(digit) => value = value << 4 | digit,
                None => return self.fault("not JSON: \\u takes four hexadecimal digits"),
            }
        }
        if digits.len() < 4 {
            return self.fault("not JSON: \\u takes four hexadecimal digits");
        }
        self.at += 4;
        Ok(value)
    }

    /// Goes over the comma before the next element or pair; false at `end`.
    #[inline]
    fn more(&mut self, items: &mut Opened, end: u8) -> Result<bool, Fault> {
        let next = self.space();
        if next == Some(end) {
            self.at += 1;
            return Ok(false);
        }
        if !items.inside {
            items.inside = true;
            return Ok(true);
        }
        if next != Some(b',') {
            return self.fault("not JSON: expected a comma or the end of the array or object");
        }
        self.at += 1;
        match self.space() {
            Some(b']' | b'}') => self.fault("not JSON: a comma before the end"),
            _ => Ok(true),
        }
    }
}

impl<'a> Source<'a> for JsonSource<'a> {
    type Items = Opened;

    fn at(&self) -> usize {
        self.at
    }

    #[inline]
    fn node(&mut self) -> Result<Node<'a, Opened>, Fault> {
        Ok(Node::Scalar(match self.space() {
            Some(b'"') => Raw::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Raw::Decimal(self.number()?),
            Some(b'{') => {
                self.at += 1;
                return Ok(Node::Map(Opened::default()));
            }
            Some(b'[') => {
                self.at += 1;
                return Ok(Node::Array(Opened::default()));
            }
            Some(b't') => self.word("true", Raw::Bool(true))?,
            Some(b'f') => self.word("false", Raw::Bool(false))?,
            Some(b'n') => self.word("null", Raw::Null)?,
            _ => return self.fault(VALUE),
        }))
    }

    #[inline]
    fn element(&mut self, items: &mut Opened) -> Result<bool, Fault> {
        self.more(items, b']')
    }

    #[inline]
    fn key(&mut self, items: &mut Opened) -> Result<Option<Cow<'a, str>>, Fault> {
        if !self.more(items, b'}')? {
            return Ok(None);
        }
        if self.space() != Some(b'"') {
            return self.fault("not JSON: expected a key in quotes");
        }
        let key = self.string()?;
        if self.space() != Some(b':') {
            return self.fault("not JSON: expected a colon");
        }
        self.at += 1;
        // The place of the value, not of the space before it, is what errors name.
        self.space();
        Ok(Some(key))
    }

    fn skip(&mut self, depth: usize) -> Result<(), Fault> {
        let at = self.at;
        match self.node()? {
            Node::Scalar(_) => return Ok(()),
            _ if depth == 0 => return Wire::fault(at, DEPTH),
            Node::Array(mut items) => {
                while self.element(&mut items)? {
                    self.skip(depth - 1)?;
                }
            }
            Node::Map(mut items) => {
                while self.key(&mut items)?.is_some() {
                    self.skip(depth - 1)?;
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, depth: usize, out: &mut String) -> Result<(), Fault> {
        let at = self.at;
        let node = self.node()?;
        if depth == 0 && !matches!(node, Node::Scalar(_)) {
            return Wire::fault(at, DEPTH);
        }
        match node {
            Node::Scalar(raw) => crate::payload::extra::put_raw(&raw, out),
            Node::Array(mut items) => {
                out.push('[');
                let mut first = true;
                while self.element(&mut items)? {
                    if !std::mem::take(&mut first) {
                        out.push(',');
                    }
                    self.copy(depth - 1, out)?;
                }
                out.push(']');
            }
            Node::Map(mut items) => {
                out.push('{');
                let mut keys = HashSet::new();
                while let Some(key) = self.key(&mut items)? {
                    if !keys.is_empty() {
                        out.push(',');
                    }
                    put_text(&key, out);
                    if !keys.insert(key.into_owned()) {
                        return self.fault("a key stands twice in one object");
                    }
                    out.push(':');
                    self.copy(depth - 1, out)?;
                }
                out.push('}');
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.space() {
            None => Ok(()),
            Some(_) => self.fault("bytes after the end of the value"),
        }
    }
}
