//! Streams, their fields, and the values a record may carry.

use std::collections::HashMap;
use std::sync::Arc;

/// The stream that records without a schema name belong to; it exists even if no file declares it.
pub const DEFAULT_STREAM: &str = "telemetry";

/// `major.minor` of a stream's schema. On the wire: `major << 16 | minor`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaVersion {
    /// Changes when a field is removed, renamed, retyped or changes its unit: a new table.
    pub major: u16,
    /// Changes when fields are added or types widened: the same table.
    pub minor: u16,
}

impl SchemaVersion {
    /// The version as it stands in frames.
    pub fn number(self) -> u32 {
        u32::from(self.major) << 16 | u32::from(self.minor)
    }

    /// The version that a frame names.
    pub fn from_number(number: u32) -> Self {
        Self { major: (number >> 16) as u16, minor: number as u16 }
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// `BOOLEAN`
    Bool,
    /// `BIGINT` and the narrower signed integers
    I64,
    /// `BIGINT UNSIGNED` and the narrower unsigned integers
    U64,
    /// `FLOAT` / `REAL`
    F32,
    /// `DOUBLE`
    F64,
    /// `TEXT` / `VARCHAR`
    Text,
    /// `BYTEA` / `BLOB`
    Bytes,
    /// `DOUBLE[]`
    F64List,
    /// `BIGINT[]`
    I64List,
}

impl FieldType {
    /// Its name in SQL, for messages.
    pub fn sql_name(self) -> &'static str {
        match self {
            Self::Bool => "BOOLEAN",
            Self::I64 => "BIGINT",
            Self::U64 => "BIGINT UNSIGNED",
            Self::F32 => "FLOAT",
            Self::F64 => "DOUBLE",
            Self::Text => "TEXT",
            Self::Bytes => "BYTEA",
            Self::F64List => "DOUBLE[]",
            Self::I64List => "BIGINT[]",
        }
    }
}

/// One declared field of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Column name and key in plain records.
    pub name: Arc<str>,
    /// Stable id, the key in frames.
    pub id: u32,
    /// Type of the stored value.
    pub kind: FieldType,
    /// UCUM code of the unit.
    pub unit: Option<String>,
    /// In frames an integer `raw` stands for `raw * 10^scale`. Plain records carry the value itself.
    pub scale: i32,
    /// Text for people.
    pub comment: Option<String>,
}

/// One declared stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Table name.
    pub name: Arc<str>,
    /// The number that frames name this stream by; `None`: only plain records can reach it.
    pub schema_id: Option<u32>,
    /// Version of the field list.
    pub version: SchemaVersion,
    /// Declared fields, in column order.
    pub fields: Vec<Field>,
}

/// Index of a stream in its [`Catalog`].
pub type StreamIndex = u16;

/// All declared streams. Index 0 is always [`DEFAULT_STREAM`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    streams: Vec<Arc<Stream>>,
    by_name: HashMap<Arc<str>, StreamIndex>,
    /// Schema id and major version.
    by_schema_id: HashMap<(u32, u16), StreamIndex>,
    field_by_name: Vec<HashMap<Arc<str>, u16>>,
    field_by_id: Vec<HashMap<u32, u16>>,
}

impl Catalog {
    /// Builds the catalog. Names, schema ids within a major version, and field ids must be unique (`sql::check` sees to it); of two
    /// equal ones the first counts. Adds an empty [`DEFAULT_STREAM`] (schema id 1) if it is not among `streams`.
    pub fn new(mut streams: Vec<Stream>) -> Self {
        match streams.iter().position(|s| &*s.name == DEFAULT_STREAM) {
            Some(at) => streams.swap(0, at),
            None => streams.insert(
                0,
                Stream {
                    name: Arc::from(DEFAULT_STREAM),
                    schema_id: (!streams.iter().any(|s| s.schema_id == Some(1))).then_some(1),
                    version: SchemaVersion { major: 1, minor: 0 },
                    fields: Vec::new(),
                },
            ),
        }
        let mut catalog = Self::default();
        for (index, stream) in streams.into_iter().enumerate() {
            let index = index as StreamIndex;
            catalog.by_name.entry(stream.name.clone()).or_insert(index);
            if let Some(id) = stream.schema_id {
                catalog.by_schema_id.entry((id, stream.version.major)).or_insert(index);
            }
            let mut by_name = HashMap::new();
            let mut by_id = HashMap::new();
            for (at, field) in stream.fields.iter().enumerate() {
                by_name.entry(field.name.clone()).or_insert(at as u16);
                by_id.entry(field.id).or_insert(at as u16);
            }
            catalog.field_by_name.push(by_name);
            catalog.field_by_id.push(by_id);
            catalog.streams.push(Arc::new(stream));
        }
        catalog
    }

    /// All streams, in index order.
    pub fn streams(&self) -> &[Arc<Stream>] {
        &self.streams
    }

    /// The stream at `index`.
    pub fn stream(&self, index: StreamIndex) -> Option<&Arc<Stream>> {
        self.streams.get(usize::from(index))
    }

    /// The stream of that name.
    pub fn named(&self, name: &str) -> Option<StreamIndex> {
        self.by_name.get(name).copied()
    }

    /// The stream that frames call `schema_id`, in a major version.
    pub fn numbered(&self, schema_id: u32, major: u16) -> Option<StreamIndex> {
        self.by_schema_id.get(&(schema_id, major)).copied()
    }

    /// The stream of frames with this schema id and version, if it is declared: its major version, and a minor version at
    /// least as high. A lower one has fewer fields; a higher one may have what nobody here knows how to read.
    pub fn declared(&self, schema_id: u32, version: SchemaVersion) -> Option<StreamIndex> {
        let index = self.numbered(schema_id, version.major)?;
        (self.stream(index)?.version.minor >= version.minor).then_some(index)
    }

    /// Column index of a field by its name.
    pub fn field_named(&self, stream: StreamIndex, name: &str) -> Option<u16> {
        self.field_by_name.get(usize::from(stream))?.get(name).copied()
    }

    /// Column index of a field by its id.
    pub fn field_numbered(&self, stream: StreamIndex, id: u32) -> Option<u16> {
        self.field_by_id.get(usize::from(stream))?.get(&id).copied()
    }
}

/// One value, borrowed from the payload where it can be. It always fits the type of its field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// For [`FieldType::Bool`].
    Bool(bool),
    /// For [`FieldType::I64`].
    I64(i64),
    /// For [`FieldType::U64`].
    U64(u64),
    /// For [`FieldType::F32`].
    F32(f32),
    /// For [`FieldType::F64`].
    F64(f64),
    /// For [`FieldType::Text`].
    Text(&'a str),
    /// For [`FieldType::Bytes`].
    Bytes(&'a [u8]),
    /// For [`FieldType::F64List`].
    F64List(&'a [f64]),
    /// For [`FieldType::I64List`].
    I64List(&'a [i64]),
}

/// One value that owns what it holds: for writers of payloads.
#[derive(Debug, Clone, PartialEq)]
pub enum OwnedValue {
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    I64(i64),
    /// An unsigned integer.
    U64(u64),
    /// A single-precision number.
    F32(f32),
    /// A double-precision number.
    F64(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Numbers.
    F64List(Vec<f64>),
    /// Integers.
    I64List(Vec<i64>),
}

impl From<Value<'_>> for OwnedValue {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Bool(value) => Self::Bool(value),
            Value::I64(value) => Self::I64(value),
            Value::U64(value) => Self::U64(value),
            Value::F32(value) => Self::F32(value),
            Value::F64(value) => Self::F64(value),
            Value::Text(value) => Self::Text(value.to_owned()),
            Value::Bytes(value) => Self::Bytes(value.to_vec()),
            Value::F64List(value) => Self::F64List(value.to_vec()),
            Value::I64List(value) => Self::I64List(value.to_vec()),
        }
    }
}
