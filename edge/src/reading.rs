//! One record as the application gives it: a time, a schema and the values by field id.
//!
//! The values are encoded once, on the caller's side, as the CBOR map that frames carry, so the outbox and the
//! sender move bytes and never look inside.

use device::schema::Value;
use device::time::Timestamp;
use minicbor::Encoder;

/// Which schema a record is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SchemaRef {
    /// The number the stream goes by in frames.
    pub id: u32,
    /// `major << 16 | minor`.
    pub version: u32,
}

impl SchemaRef {
    /// The schema `id` in version `major.minor`.
    pub fn new(id: u32, major: u16, minor: u16) -> Self {
        Self { id, version: u32::from(major) << 16 | u32::from(minor) }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The device's own time of it.
    pub ts: Timestamp,
    /// What its field ids mean.
    pub schema: SchemaRef,
    /// Flags of the record, as in frames.
    pub flags: u32,
    /// CBOR map from field id to value.
    pub(crate) fields: Vec<u8>,
}

impl Reading {
    /// A record with these values. A field id that stands twice makes a frame that the engine refuses.
    pub fn new(ts: Timestamp, schema: SchemaRef, values: &[(u32, Value<'_>)]) -> Self {
        let mut fields = Vec::with_capacity(8 + 10 * values.len());
        let mut e = Encoder::new(&mut fields);
        // Writing to a Vec cannot fail.
        let _ = (|| {
            e.map(values.len() as u64)?;
            for (id, value) in values {
                put(e.u32(*id)?, value)?;
            }
            Ok::<(), minicbor::encode::Error<std::convert::Infallible>>(())
        })();
        Self { ts, schema, flags: 0, fields }
    }

    /// The values as they stand in a frame: a CBOR map from field id to value.
    pub fn fields(&self) -> &[u8] {
        &self.fields
    }
}

type Put<'a> = Encoder<&'a mut Vec<u8>>;

fn put(e: &mut Put<'_>, value: &Value<'_>) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    match value {
        Value::Bool(v) => e.bool(*v)?,
        Value::I64(v) => e.i64(*v)?,
        Value::U64(v) => e.u64(*v)?,
        Value::F32(v) => e.f32(*v)?,
        Value::F64(v) => e.f64(*v)?,
        Value::Text(v) => e.str(v)?,
        Value::Bytes(v) => e.bytes(v)?,
        Value::F64List(list) => {
            e.array(list.len() as u64)?;
            for v in *list {
                e.f64(*v)?;
            }
            e
        }
        Value::I64List(list) => {
            e.array(list.len() as u64)?;
            for v in *list {
                e.i64(*v)?;
            }
            e
        }
    };
    Ok(())
}
