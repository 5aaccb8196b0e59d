//! Plain records: a JSON or CBOR object with text keys, or an array of such objects.
//!
//! Each record is passed over once for the reserved keys, which say which stream and number it is, and to note where
//! its fields stand; then its values are read. The formats differ only in their [`Source`].

mod cbor;
mod json;

use std::borrow::Cow;

use super::detect::SELF_DESCRIBED;
use super::rfc3339::parse_rfc3339;
use super::row::Row;
use super::value::{Misfit, Raw};
use super::wire::Fault;
use super::{Head, MAX_DEPTH, MAX_PLAIN, MAX_RECORDS, RecordSink, Refusal};
use crate::entry::Reason;
use crate::schema::{Catalog, FieldType, StreamIndex, Value};
use crate::seq::MAX_SEQ;
use crate::time::Timestamp;
use cbor::CborSource;
use json::JsonSource;

/// A value, or the beginning of one that holds others.
enum Node<'a, I> {
    Scalar(Raw<'a>),
    Array(I),
    Map(I),
}

impl<I> Node<'_, I> {
    fn name(&self) -> &'static str {
        match self {
            Self::Scalar(raw) => raw.name(),
            Self::Array(_) => "an array",
            Self::Map(_) => "an object",
        }
    }
}

/// A payload as a walk over values. Copying a source is remembering a place.
trait Source<'a>: Copy {
    /// Where one is inside an array or object.
    type Items: Copy;
    fn at(&self) -> usize;
    /// The next value.
    fn node(&mut self) -> Result<Node<'a, Self::Items>, Fault>;
    /// Whether another element follows.
    fn element(&mut self, items: &mut Self::Items) -> Result<bool, Fault>;
    /// The key of the next pair, if another follows.
    fn key(&mut self, items: &mut Self::Items) -> Result<Option<Cow<'a, str>>, Fault>;
    /// Passes over a value.
    fn skip(&mut self, depth: usize) -> Result<(), Fault>;
    /// Passes over a value and appends it as JSON.
    fn copy(&mut self, depth: usize, out: &mut String) -> Result<(), Fault>;
    /// A double in binary, if one stands here; the common reading, without the way through a [`Node`].
    #[inline]
    fn double(&mut self) -> Option<f64> {
        None
    }
    /// Nothing follows.
    fn end(&mut self) -> Result<(), Fault>;
}

/// Reads JSON.
pub(crate) fn read_json(payload: &[u8], catalog: &Catalog, sink: &mut impl RecordSink) -> Result<(), Refusal> {
    limit(payload)?;
    match std::str::from_utf8(payload) {
        Ok(text) => read(JsonSource::new(text), catalog, sink),
        Err(error) => {
            let text = format!("the payload is not UTF-8 from byte {} on", error.valid_up_to());
            Err(Refusal::new(Reason::BadPayload, text))
        }
    }
}

/// Reads CBOR.
pub(crate) fn read_cbor(payload: &[u8], catalog: &Catalog, sink: &mut impl RecordSink) -> Result<(), Refusal> {
    limit(payload)?;
    let start = if payload.starts_with(&SELF_DESCRIBED) { SELF_DESCRIBED.len() } else { 0 };
    read(CborSource::new(payload, start), catalog, sink)
}

fn limit(payload: &[u8]) -> Result<(), Refusal> {
    if payload.len() > MAX_PLAIN {
        let text =
            format!("a payload has at most {MAX_PLAIN} bytes, this one has {}: send fewer records", payload.len());
        return Err(Refusal::new(Reason::TooLarge, text));
    }
    Ok(())
}

#[cold]
fn bad(fault: Fault) -> Refusal {
    Refusal::new(Reason::BadPayload, format!("bad payload at byte {}: {}", fault.at, fault.what))
}

fn read<'a, S: Source<'a>>(mut source: S, catalog: &Catalog, sink: &mut impl RecordSink) -> Result<(), Refusal> {
    let mut reader = Reader { catalog, row: Row::new(catalog) };
    let at = source.at();
    match source.node().map_err(bad)? {
        Node::Map(items) => reader.record(&mut source, items, 0, sink)?,
        Node::Array(mut items) => {
            let mut index = 0;
            while source.element(&mut items).map_err(bad)? {
                if index as usize == MAX_RECORDS {
                    let text = format!("a payload has at most {MAX_RECORDS} records: send several payloads");
                    return Err(Refusal::new(Reason::TooLarge, text));
                }
                let at = source.at();
                match source.node().map_err(bad)? {
                    Node::Map(items) => reader.record(&mut source, items, index, sink)?,
                    other => {
                        let text = format!("record {index}: expected an object, found {}, at byte {at}", other.name());
                        return Err(Refusal::new(Reason::BadPayload, text));
                    }
                }
                index += 1;
            }
            if index == 0 {
                return Err(Refusal::new(Reason::BadPayload, "the array is empty: send at least one record"));
            }
        }
        other => {
            let text = format!("expected an object or an array of objects, found {}, at byte {at}", other.name());
            return Err(Refusal::new(Reason::BadPayload, text));
        }
    }
    source.end().map_err(bad)
}

/// The keys of a record that are no fields.
fn reserved(key: &str) -> Option<u8> {
    match key {
        "ts" => Some(0),
        "seq" => Some(1),
        "epoch" => Some(2),
        "schema" => Some(3),
        _ => None,
    }
}

/// Where the fields of a record stand: their names, and the source at each value. The first few need no allocation.
struct Spots<'a, S> {
    first: [Option<(Cow<'a, str>, S)>; 8],
    more: Vec<(Cow<'a, str>, S)>,
    len: usize,
}

impl<'a, S> Spots<'a, S> {
    fn new() -> Self {
        Self { first: [const { None }; 8], more: Vec::new(), len: 0 }
    }

    #[inline]
    fn push(&mut self, name: Cow<'a, str>, at: S) {
        match self.first.get_mut(self.len) {
            Some(slot) => *slot = Some((name, at)),
            None => self.more.push((name, at)),
        }
        self.len += 1;
    }

    #[inline]
    fn iter_mut(&mut self) -> impl Iterator<Item = &mut (Cow<'a, str>, S)> {
        self.first.iter_mut().map_while(Option::as_mut).chain(&mut self.more)
    }
}

struct Reader<'c> {
    catalog: &'c Catalog,
    row: Row<'c>,
}

impl Reader<'_> {
    /// One record, from behind its opening on.
    #[inline]
    fn record<'a, S: Source<'a>>(
        &mut self,
        source: &mut S,
        items: S::Items,
        index: u32,
        sink: &mut impl RecordSink,
    ) -> Result<(), Refusal> {
        let mut spots = Spots::new();
        let head = self.head(source, items, index, &mut spots)?;
        if !sink.start(&head) {
            return Ok(());
        }
        self.row.start(&head);
        for (name, at) in spots.iter_mut() {
            self.field(at, name, MAX_DEPTH - 2, sink)?;
        }
        self.row.finish(sink);
        Ok(())
    }

    /// What the reserved keys say, and where the fields stand; leaves `source` behind the record.
    #[inline]
    fn head<'a, S: Source<'a>>(
        &self,
        source: &mut S,
        mut items: S::Items,
        index: u32,
        spots: &mut Spots<'a, S>,
    ) -> Result<Head, Refusal> {
        let (mut ts, mut seq, mut epoch, mut stream) = (None, None, None, 0);
        let mut minor = None;
        let mut seen = 0u8;
        while let Some(key) = source.key(&mut items).map_err(bad)? {
            let Some(number) = reserved(&key) else {
                spots.push(key, *source);
                source.skip(MAX_DEPTH - 2).map_err(bad)?;
                continue;
            };
            if seen & 1 << number != 0 {
                let text = format!("record {index}: key `{key}` stands twice, at byte {}", source.at());
                return Err(Refusal::new(Reason::BadPayload, text));
            }
            seen |= 1 << number;
            let at = source.at();
            let raw = match source.node().map_err(bad)? {
                Node::Scalar(Raw::Null) => continue,
                Node::Scalar(raw) => raw,
                other => return Err(field_error(index, &key, other.name(), at)),
            };
            match number {
                0 => ts = Some(time(&raw, index, at)?),
                1 => seq = Some(number_of(&raw).ok_or_else(|| field_error(index, &key, raw.name(), at))?),
                2 => epoch = Some(number_of(&raw).ok_or_else(|| field_error(index, &key, raw.name(), at))?),
                _ => {
                    let Raw::Text(name) = &raw else {
                        return Err(field_error(index, &key, raw.name(), at));
                    };
                    stream = self.stream(name, index, at)?;
                    minor = self.catalog.stream(stream).map(|stream| stream.version.minor);
                }
            }
        }
        let minor = minor.or_else(|| self.catalog.stream(stream).map(|stream| stream.version.minor));
        Ok(Head { index, stream, epoch, seq, ts, schema_minor: minor.unwrap_or_default(), flags: 0 })
    }

    fn stream(&self, name: &str, index: u32, at: usize) -> Result<StreamIndex, Refusal> {
        self.catalog.named(name).ok_or_else(|| {
            let text = format!(
                "record {index}: no stream `{name}` is declared, at byte {at}: declare it, or leave the key `schema` away"
            );
            Refusal::new(Reason::UnknownSchema, text)
        })
    }

    /// One field by its (flattened) name.
    fn field<'a, S: Source<'a>>(
        &mut self,
        source: &mut S,
        name: &str,
        depth: usize,
        sink: &mut impl RecordSink,
    ) -> Result<(), Refusal> {
        let at = source.at();
        let before = *source;
        if let Some(double) = source.double() {
            if let Some(column) = self.row.named(name)
                && column.field.kind == FieldType::F64
            {
                if !self.row.first(column) {
                    return Err(twice(name, at));
                }
                sink.value(column.index, Value::F64(double));
                return Ok(());
            }
            *source = before;
        }
        let node = source.node().map_err(bad)?;
        if let Node::Map(items) = node {
            return self.nested(source, before, items, name, depth, sink);
        }
        let Some(column) = self.row.named(name) else {
            if matches!(node, Node::Scalar(Raw::Null)) {
                return Ok(());
            }
            if !self.row.extra.key(name) {
                return Err(twice(name, at));
            }
            *source = before;
            return source.copy(depth, self.row.extra.value()).map_err(bad);
        };
        if !self.row.first(column) {
            return Err(twice(name, at));
        }
        match node {
            Node::Scalar(raw) => self.row.scalar(column, raw, false, at, sink),
            Node::Array(mut items) if column.is_list() => {
                self.row.list_start();
                while source.element(&mut items).map_err(bad)? {
                    let at = source.at();
                    match source.node().map_err(bad)? {
                        Node::Scalar(raw) => self.row.list_item(column, raw, false, at)?,
                        other => return Err(self.row.misfit(column, Misfit::Type, other.name(), at)),
                    }
                }
                self.row.list_end(column, sink);
                Ok(())
            }
            other => Err(self.row.misfit(column, Misfit::Type, other.name(), at)),
        }
    }

    /// An object inside a record: its fields are named `outer.inner`.
    fn nested<'a, S: Source<'a>>(
        &mut self,
        source: &mut S,
        before: S,
        mut items: S::Items,
        name: &str,
        depth: usize,
        sink: &mut impl RecordSink,
    ) -> Result<(), Refusal> {
        let at = before.at();
        if depth == 0 {
            return Err(bad(Fault { at, what: super::wire::DEPTH }));
        }
        let mut empty = true;
        while let Some(key) = source.key(&mut items).map_err(bad)? {
            empty = false;
            self.field(source, &format!("{name}.{key}"), depth - 1, sink)?;
        }
        if !empty {
            return Ok(());
        }
        if !self.row.extra.key(name) {
            return Err(twice(name, at));
        }
        self.row.extra.value().push_str("{}");
        Ok(())
    }
}

#[cold]
fn twice(name: &str, at: usize) -> Refusal {
    Refusal::new(Reason::BadPayload, format!("field `{name}` stands twice in one record, again at byte {at}"))
}

#[cold]
fn field_error(index: u32, key: &str, found: &str, at: usize) -> Refusal {
    let expected = match key {
        "ts" => "an RFC 3339 text or integer nanoseconds since 1970",
        "schema" => "the name of a stream",
        _ => "an integer from 0 to 2^63-1",
    };
    Refusal::new(Reason::BadField, format!("record {index}: `{key}` has to be {expected}, found {found}, at byte {at}"))
}

fn number_of(raw: &Raw<'_>) -> Option<u64> {
    let value = match raw {
        Raw::Int(value) => u64::try_from(*value).ok()?,
        Raw::Decimal(text) => text.parse::<u64>().ok()?,
        _ => return None,
    };
    (value <= MAX_SEQ).then_some(value)
}

fn time(raw: &Raw<'_>, index: u32, at: usize) -> Result<Timestamp, Refusal> {
    match raw {
        Raw::Int(value) => Ok(Timestamp(*value)),
        Raw::Decimal(text) => match text.parse::<i64>() {
            Ok(value) => Ok(Timestamp(value)),
            Err(_) => Err(field_error(index, "ts", "another number", at)),
        },
        Raw::Text(text) => parse_rfc3339(text).map_err(|error| {
            Refusal::new(Reason::BadField, format!("record {index}: `ts` {text:?}: {error}, at byte {at}"))
        }),
        Raw::Uint(_) | Raw::Huge(_) => Err(field_error(index, "ts", "an integer beyond 64 bits", at)),
        other => Err(field_error(index, "ts", other.name(), at)),
    }
}
