//! The streams that inputs are read against: one field of each type, scaled ones, and a second stream.

use std::sync::{Arc, OnceLock};

use device::schema::{Catalog, Field, FieldType, SchemaVersion, Stream};

/// The catalog of all targets. Kept inputs refer to its names and numbers: add to it, do not change it.
pub(super) fn catalog() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| {
        let field = |name: &str, id: u32, kind, scale| Field {
            name: Arc::from(name),
            id,
            kind,
            unit: None,
            scale,
            comment: None,
        };
        let telemetry = Stream {
            name: Arc::from("telemetry"),
            schema_id: Some(1),
            version: SchemaVersion { major: 1, minor: 0 },
            fields: vec![
                field("on", 1, FieldType::Bool, 0),
                field("count", 2, FieldType::I64, 0),
                field("total", 3, FieldType::U64, 0),
                field("level", 4, FieldType::F32, 0),
                field("temperature", 5, FieldType::F64, 0),
                field("status", 6, FieldType::Text, 0),
                field("blob", 7, FieldType::Bytes, 0),
                field("wave", 8, FieldType::F64List, 0),
                field("steps", 9, FieldType::I64List, 0),
                field("centi", 10, FieldType::F64, -2),
                field("kilo", 11, FieldType::I64, 3),
                field("milli", 12, FieldType::U64, -3),
            ],
        };
        let other = Stream {
            name: Arc::from("other"),
            schema_id: Some(7),
            version: SchemaVersion { major: 2, minor: 3 },
            fields: vec![field("a.b", 300, FieldType::I64, 0), field("c", 70_000, FieldType::F64, 0)],
        };
        Catalog::new(vec![telemetry, other])
    })
}

/// Fields of `telemetry` whose integers in frames stand for something else than themselves.
pub(super) fn is_scaled(index: u16) -> bool {
    catalog().stream(0).and_then(|stream| stream.fields.get(usize::from(index))).is_some_and(|field| field.scale != 0)
}
