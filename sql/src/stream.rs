//! A stream's declaration: which fields devices send, under which ids, and what they mean.

use datafusion::sql::sqlparser::ast::{ArrayElemTypeDef, DataType, EnumMember, Ident};
use device::schema::{Field, FieldType, SchemaVersion, Stream};
use storage::schema::SYSTEM_COLUMNS;

use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;
use crate::option::Options;
use crate::project::{DEFAULT_LATENESS_NS, FieldFacts, StreamDecl};
use crate::statement::{ColumnHead, StreamHead};

/// Folders between a table and its files are columns for every reader of the files.
pub const PARTITION_COLUMNS: [&str; 2] = ["date", "hour"];

const TYPES: &str = "the types are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT (also UNSIGNED), REAL, DOUBLE, TEXT, BYTEA, \
                     DOUBLE[], BIGINT[] and ENUM('a', 'b')";

const TYPE_NAMES: [&str; 22] = [
    "boolean", "bool", "tinyint", "smallint", "int", "integer", "bigint", "unsigned", "float", "real", "double",
    "text", "varchar", "string", "bytea", "blob", "enum", "float32", "float64", "int32", "int64", "uint64",
];

/// Scales beyond this leave no digit of a 64-bit number.
const MAX_SCALE: i64 = 18;
/// More columns than any table should have, and enough for their 16-bit index.
const MAX_FIELDS: usize = 4096;

/// Checks one declaration. Gives it back even if something is wrong with it, as long as its columns are known, so
/// that queries over it can be checked too.
pub(crate) fn check(file: &str, ident: &Ident, head: &StreamHead, found: &mut Vec<Diagnostic>) -> StreamDecl {
    let mut options = Options::new(file, &head.options);
    let version_at = head.options.iter().find(|o| o.name == "version").map(|o| o.span);
    let version = options.text("version", version).unwrap_or(SchemaVersion { major: 1, minor: 0 });
    let table = options.table();
    let schema = options.whole("schema", 0..=i64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok());
    found.extend(options.finish());

    let name = name::normal(ident);
    if let Some(extra) = head.columns.get(MAX_FIELDS) {
        let message = format!("a stream has up to {MAX_FIELDS} fields");
        let help = "split it into several streams";
        found.push(Diagnostic::error(code::TOO_LARGE, file, extra.name.span.into(), message).help(help));
    }
    let (fields, facts) = fields(file, &head.columns, Of::Stream, found).into_iter().unzip();
    StreamDecl {
        base: name.clone(),
        stream: Stream { name: name.into(), schema_id: schema, version, fields },
        facts,
        version_at,
        lateness_ns: table.lateness_ns.unwrap_or(DEFAULT_LATENESS_NS),
        retain_ns: table.retain_ns,
        compact_ns: table.compact_ns,
        partition: table.partition,
        comment: head.comment.clone(),
        at: Some((file.to_owned(), ident.span.into())),
    }
}

/// `major.minor`.
fn version(text: &str) -> Result<SchemaVersion, String> {
    let part = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u16>().ok() } else { None };
    text.split_once('.')
        .and_then(|(major, minor)| Some(SchemaVersion { major: part(major)?, minor: part(minor)? }))
        .filter(|v| v.major > 0)
        .ok_or_else(|| "write 'major.minor', as in '1.0'; major begins at 1, both end at 65535".to_owned())
}

/// What columns belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Stream,
    /// A reference table: its columns have no ids, and may be called as Weir's own columns of streams.
    Table,
}

/// The columns of a stream or reference table.
pub(crate) fn fields(
    file: &str,
    columns: &[ColumnHead],
    of: Of,
    found: &mut Vec<Diagnostic>,
) -> Vec<(Field, FieldFacts)> {
    let mut fields: Vec<(Field, FieldFacts)> = Vec::new();
    let mut ids: Vec<(u32, Span)> = Vec::new();
    let mut names: Vec<(String, Span)> = Vec::new();
    let numbered = columns.iter().filter(|c| c.options.iter().any(|o| o.name == "id")).count();
    for (index, column) in columns.iter().take(MAX_FIELDS).enumerate() {
        let span = Span::from(column.name.span);
        let name = name::normal(&column.name);
        let complain = |code, message: String| Diagnostic::error(code, file, span, message);
        let mut sound = true;
        if let Some((message, help)) = name::refuse_column(&name) {
            found.push(complain(code::BAD_NAME, message).help(help));
            sound = false;
        } else if of == Of::Stream && SYSTEM_COLUMNS.contains(&name.as_str()) {
            let message = format!("every stream already has a column `{name}`");
            found.push(complain(code::RESERVED_COLUMN, message).help("choose another name for the field"));
            sound = false;
        } else if PARTITION_COLUMNS.contains(&name.as_str()) {
            let message = format!("`{name}` is the name of a partition folder");
            found.push(complain(code::RESERVED_COLUMN, message).help("choose another name for the field"));
            sound = false;
        } else if let Some((_, first)) = names.iter().find(|(n, _)| *n == name) {
            let at = Some((file.to_owned(), first.start));
            let message = format!("column `{name}` is declared twice");
            found.push(complain(code::NAME_TAKEN, message).note("first declared here", at));
            sound = false;
        }
        names.push((name.clone(), span));
        if let Some((text, span)) = &column.constraint {
            let (message, help) = match of {
                Of::Stream => (
                    format!("a stream cannot keep {text}: devices may leave out any field"),
                    "leave it out; a pipeline can filter with WHERE",
                ),
                Of::Table => (
                    format!("a reference table does not keep {text}"),
                    "leave it out; each key is looked at: it is there, and there once",
                ),
            };
            found.push(Diagnostic::error(code::CONSTRAINT, file, *span, message).help(help));
        }

        let mut options = Options::new(file, &column.options);
        let id_span = options_span(column, "id").unwrap_or(span);
        let id = match of {
            Of::Stream => options.whole("id", 1..=i64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok()),
            Of::Table => None,
        };
        let unit = options.text("unit", |text| match text {
            _ if text.trim().is_empty() => Err("leave it out if there is no unit".to_owned()),
            _ if text.chars().count() > 64 => Err("a unit has up to 64 characters".to_owned()),
            _ => Ok(text.to_owned()),
        });
        let scale = match of {
            Of::Stream => options.whole("scale", -MAX_SCALE..=MAX_SCALE),
            Of::Table => None,
        };
        let range = match of {
            Of::Stream => options.text("range", range),
            Of::Table => None,
        };
        let kind = field_type(&column.kind);
        if let (Some(span), Some(FieldType::Bool | FieldType::Text | FieldType::Bytes)) =
            (options_span(column, "range"), kind)
        {
            let message = "only a number can have a range";
            found.push(Diagnostic::error(code::BAD_OPTION, file, span, message).help("leave it out"));
        }
        if let (Some(scale_span), Some(kind), Some(_)) = (options_span(column, "scale"), kind, scale)
            && matches!(kind, FieldType::Bool | FieldType::Text | FieldType::Bytes)
        {
            let message = "only a number can have a scale";
            found.push(Diagnostic::error(code::BAD_OPTION, file, scale_span, message).help("leave it out"));
        }
        found.extend(options.finish());

        let given = column.options.iter().any(|o| o.name == "id");
        if !given && numbered > 0 && of == Of::Stream {
            let message = format!("column `{name}` has no id, but others have");
            let help = "give every column an id or none: ids must not move when a column is added";
            found.push(complain(code::FIELD_ID, message).help(help));
        }
        let id = id.unwrap_or(index as u32 + 1);
        if let Some((_, first)) = ids.iter().find(|(other, _)| given && *other == id) {
            let at = Some((file.to_owned(), first.start));
            let message = format!("id {id} is used twice");
            let help = "ids name the fields in frames: each is used once, and never again for another field";
            found
                .push(Diagnostic::error(code::FIELD_ID, file, id_span, message).help(help).note("first used here", at));
        }
        if given {
            ids.push((id, id_span));
        }
        match kind {
            None => found.push(no_such_type(file, column)),
            Some(kind) if sound => {
                let scale = scale.and_then(|s| i32::try_from(s).ok()).unwrap_or(0);
                let field = Field { name: name.into(), id, kind, unit, scale, comment: column.comment.clone() };
                fields.push((field, FieldFacts { symbols: symbols(&column.kind), range, at: span }));
            }
            Some(_) => {}
        }
    }
    fields
}

/// `low..high`, both ends inclusive.
fn range(text: &str) -> Result<(f64, f64), String> {
    let number = |part: &str| part.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    text.split_once("..")
        .and_then(|(from, to)| Some((number(from)?, number(to)?)))
        .filter(|(from, to)| from <= to)
        .ok_or_else(|| "write the lowest and the highest value, as in range = '-40..125'".to_owned())
}

/// What an enum may be.
fn symbols(kind: &DataType) -> Vec<String> {
    let DataType::Enum(members, _) = kind else { return Vec::new() };
    let symbol = |member: &EnumMember| match member {
        EnumMember::Name(name) | EnumMember::NamedValue(name, _) => name.clone(),
    };
    members.iter().map(symbol).collect()
}

fn options_span(column: &ColumnHead, name: &str) -> Option<Span> {
    column.options.iter().find(|o| o.name == name).map(|o| o.span)
}

fn no_such_type(file: &str, column: &ColumnHead) -> Diagnostic {
    let text = column.kind.to_string();
    let near = match &column.kind {
        DataType::Custom(..) => {
            name::nearest(&text, TYPE_NAMES).map(|n| format!("did you mean `{}`?", n.to_uppercase()))
        }
        DataType::Timestamp(..) | DataType::Datetime(_) | DataType::Date | DataType::Time(..) => {
            Some("every row has its time in `ts`; send a further time as BIGINT nanoseconds".to_owned())
        }
        DataType::Decimal(_) | DataType::Numeric(_) | DataType::Dec(_) => {
            Some("use DOUBLE, or BIGINT with OPTIONS (scale = -3) for thousandths".to_owned())
        }
        DataType::JSON | DataType::JSONB => Some("use TEXT".to_owned()),
        _ => None,
    };
    let message = format!("a stream cannot hold the type {}", text.to_uppercase());
    Diagnostic::error(code::BAD_TYPE, file, column.kind_span, message).help(near.unwrap_or_else(|| TYPES.to_owned()))
}

/// The field type that a SQL type stands for.
fn field_type(kind: &DataType) -> Option<FieldType> {
    use DataType as T;
    Some(match kind {
        T::Bool | T::Boolean => FieldType::Bool,
        T::TinyInt(_) | T::SmallInt(_) | T::Int2(_) | T::MediumInt(_) | T::Int(_) | T::Int4(_) | T::Integer(_) => {
            FieldType::I64
        }
        T::BigInt(_) | T::Int8(_) | T::Int16 | T::Int32 | T::Int64 => FieldType::I64,
        T::TinyIntUnsigned(_) | T::SmallIntUnsigned(_) | T::Int2Unsigned(_) | T::MediumIntUnsigned(_) => FieldType::U64,
        T::IntUnsigned(_) | T::Int4Unsigned(_) | T::IntegerUnsigned(_) | T::BigIntUnsigned(_) => FieldType::U64,
        T::Int8Unsigned(_) | T::UTinyInt | T::USmallInt | T::UBigInt => FieldType::U64,
        T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => FieldType::U64,
        T::Float(_) | T::Float4 | T::Float32 | T::Real => FieldType::F32,
        T::Double(_) | T::DoublePrecision | T::Float8 | T::Float64 => FieldType::F64,
        T::Text | T::String(_) | T::Varchar(_) | T::CharVarying(_) | T::CharacterVarying(_) => FieldType::Text,
        T::Char(_) | T::Character(_) | T::Nvarchar(_) | T::TinyText | T::MediumText | T::LongText => FieldType::Text,
        T::Enum(..) => FieldType::Text,
        T::Bytea | T::Blob(_) | T::Bytes(_) | T::Binary(_) | T::Varbinary(_) => FieldType::Bytes,
        T::Array(ArrayElemTypeDef::SquareBracket(of, None) | ArrayElemTypeDef::AngleBracket(of)) => {
            match field_type(of)? {
                FieldType::F64 | FieldType::F32 => FieldType::F64List,
                FieldType::I64 => FieldType::I64List,
                _ => return None,
            }
        }
        _ => return None,
    })
}
