//! One record on its way into a sink: which column a name or id is, whether it fits, what goes to `extra`.
//!
//! Shared by all formats, so that a value means the same however it was sent. Its buffers serve all records of a
//! payload and stay empty for plain scalars.

use super::RecordSink;
use super::extra::Extra;
use super::seen::Seen;
use super::value::{Misfit, Raw};
use super::{Head, Refusal};
use crate::entry::Reason;
use crate::schema::{Catalog, Field, FieldType, Stream, StreamIndex, Value};

/// A declared field, found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column<'c> {
    pub(crate) index: u16,
    pub(crate) field: &'c Field,
}

impl Column<'_> {
    /// Whether it takes arrays.
    #[inline]
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.field.kind, FieldType::F64List | FieldType::I64List)
    }

    #[inline]
    fn integral(&self) -> bool {
        matches!(self.field.kind, FieldType::I64 | FieldType::U64 | FieldType::I64List)
    }
}

/// Takes the values of one record after the other.
#[derive(Debug)]
pub(crate) struct Row<'c> {
    catalog: &'c Catalog,
    stream: Option<&'c Stream>,
    stream_index: StreamIndex,
    /// Where the next field probably is: senders keep to one order, and comparing is cheaper than hashing.
    guess: u16,
    record: u32,
    seen: Seen,
    pub(crate) extra: Extra,
    bytes: Vec<u8>,
    doubles: Vec<f64>,
    integers: Vec<i64>,
}

impl<'c> Row<'c> {
    pub(crate) fn new(catalog: &'c Catalog) -> Self {
        Self {
            catalog,
            stream: None,
            stream_index: 0,
            guess: 0,
            record: 0,
            seen: Seen::default(),
            extra: Extra::default(),
            bytes: Vec::new(),
            doubles: Vec::new(),
            integers: Vec::new(),
        }
    }

    /// Begins the record of this head.
    #[inline]
    pub(crate) fn start(&mut self, head: &Head) {
        self.stream_index = head.stream;
        self.stream = self.catalog.stream(head.stream).map(|stream| &**stream);
        self.record = head.index;
        self.guess = 0;
        self.seen.clear();
        self.extra.clear();
    }

    /// Ends it.
    #[inline]
    pub(crate) fn finish(&mut self, sink: &mut impl RecordSink) {
        if let Some(json) = self.extra.finish() {
            sink.extra(json);
        }
        sink.end();
    }

    #[inline]
    pub(crate) fn named(&mut self, name: &str) -> Option<Column<'c>> {
        let stream = self.stream?;
        let index = match stream.fields.get(usize::from(self.guess)) {
            Some(field) if &*field.name == name => self.guess,
            _ => self.catalog.field_named(self.stream_index, name)?,
        };
        self.column(stream, index)
    }

    #[inline]
    pub(crate) fn numbered(&mut self, id: u64) -> Option<Column<'c>> {
        let stream = self.stream?;
        let index = match stream.fields.get(usize::from(self.guess)) {
            Some(field) if u64::from(field.id) == id => self.guess,
            _ => self.catalog.field_numbered(self.stream_index, u32::try_from(id).ok()?)?,
        };
        self.column(stream, index)
    }

    #[inline]
    fn column(&mut self, stream: &'c Stream, index: u16) -> Option<Column<'c>> {
        let field = stream.fields.get(usize::from(index))?;
        self.guess = index.saturating_add(1);
        Some(Column { index, field })
    }

    /// Notes that a column has its value; false if it had one before.
    #[inline]
    pub(crate) fn first(&mut self, column: Column<'_>) -> bool {
        self.seen.insert(column.index)
    }

    /// Hands a scalar to the sink. `scaled`: integers stand for `raw * 10^scale`.
    #[inline]
    pub(crate) fn scalar(
        &mut self,
        column: Column<'c>,
        raw: Raw<'_>,
        scaled: bool,
        at: usize,
        sink: &mut impl RecordSink,
    ) -> Result<(), Refusal> {
        if raw == Raw::Null {
            return Ok(());
        }
        let name = raw.name();
        let scale = if scaled { column.field.scale } else { 0 };
        let raw = match raw.scaled(scale, column.integral()) {
            Ok(raw) => raw,
            Err(misfit) => return Err(self.misfit(column, misfit, name, at)),
        };
        match raw.fit(column.field.kind, &mut self.bytes) {
            Ok(value) => sink.value(column.index, value),
            Err(misfit) => return Err(self.misfit(column, misfit, name, at)),
        }
        Ok(())
    }

    /// Begins an array for a list column.
    pub(crate) fn list_start(&mut self) {
        self.doubles.clear();
        self.integers.clear();
    }

    /// Takes one element of the array.
    #[inline]
    pub(crate) fn list_item(
        &mut self,
        column: Column<'c>,
        raw: Raw<'_>,
        scaled: bool,
        at: usize,
    ) -> Result<(), Refusal> {
        let name = raw.name();
        let scale = if scaled { column.field.scale } else { 0 };
        let number = raw.scaled(scale, column.integral()).and_then(|raw| {
            if column.field.kind == FieldType::I64List {
                self.integers.push(raw.i64()?);
            } else {
                self.doubles.push(raw.f64()?);
            }
            Ok(())
        });
        number.map_err(|misfit| self.misfit(column, misfit, name, at))
    }

    /// Hands the array to the sink.
    pub(crate) fn list_end(&mut self, column: Column<'c>, sink: &mut impl RecordSink) {
        match column.field.kind {
            FieldType::I64List => sink.value(column.index, Value::I64List(&self.integers)),
            _ => sink.value(column.index, Value::F64List(&self.doubles)),
        }
    }

    /// The refusal of a value that a field cannot hold.
    #[cold]
    pub(crate) fn misfit(&self, column: Column<'_>, misfit: Misfit, found: &str, at: usize) -> Refusal {
        let kind = column.field.kind.sql_name();
        let what = match misfit {
            Misfit::Type => format!("found {found}"),
            Misfit::Range => "the number is out of its range".to_owned(),
            Misfit::Fraction => "the number has a fraction".to_owned(),
            Misfit::Base64 => "the text is not Base64".to_owned(),
        };
        let text = format!("record {}: field `{}` holds {kind}, {what}, at byte {at}", self.record, column.field.name);
        Refusal::new(Reason::SchemaMismatch, text)
    }
}
