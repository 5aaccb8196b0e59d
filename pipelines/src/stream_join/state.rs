//! The bytes of what a join holds, beside the state of what comes after it.
//!
//! ```text
//! 1 byte   'J'
//! 8 bytes  length of the next part, little endian
//! part     the state of the pipeline behind the join, as without one (checkpoint.rs)
//! part     the same format: devices of the join, then the rows that are held of the first stream and of the second
//! ```

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

use super::StreamJoin;
use crate::checkpoint::{self, Checkpoint, Identity};
use crate::error::PipelineError;
use crate::watermark::{Entry, Watermarks};

/// No version of a plain state: a weir that knows no joins says that it is newer.
const MARK: u8 = b'J';

/// The two parts as one.
pub(crate) fn join(rest: &[u8], join: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(9 + rest.len() + join.len());
    out.push(MARK);
    out.extend((rest.len() as u64).to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(join);
    Bytes::from(out)
}

/// The state of what is behind the join, and that of the join if there is one.
pub(crate) fn parts(state: &[u8]) -> Result<(&[u8], Option<&[u8]>), PipelineError> {
    let Some(rest) = state.strip_prefix(&[MARK]) else { return Ok((state, None)) };
    let cut = || PipelineError::state("it is cut short");
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut())?;
    let (rest, join) = rest.split_at_checked(length).ok_or_else(cut)?;
    Ok((rest, Some(join)))
}

impl StreamJoin {
    /// What it is written for and by.
    fn identity(&self, of: &Identity) -> Identity {
        let columns = |schema: SchemaRef| {
            let column = |field: &Arc<Field>| format!("{} {}", field.name(), field.data_type());
            schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
        };
        let shape = format!("{}; {}", columns(self.first_schema()), columns(self.second.schema()));
        Identity { shape, ..of.clone() }
    }

    /// Held rows of the first stream; for LEFT JOIN with whether they have had a match.
    fn first_schema(&self) -> SchemaRef {
        let schema = self.first.schema();
        if !self.outer {
            return schema;
        }
        let mut fields = schema.fields().to_vec();
        fields.push(Arc::new(Field::new("(matched)", DataType::Boolean, false)));
        Arc::new(Schema::new(fields))
    }

    /// The state, right after a barrier.
    pub(crate) fn encode(&self, of: &Identity) -> Result<Bytes, PipelineError> {
        let mut columns = self.first.held().columns().to_vec();
        if self.outer {
            columns.push(Arc::new(BooleanArray::from(self.matched.clone())));
        }
        let first = RecordBatch::try_new(self.first_schema(), columns)?;
        let segments = vec![checkpoint::to_ipc(&first)?, checkpoint::to_ipc(self.second.held())?];
        let times = (self.marks.now(), self.marks.floor());
        checkpoint::encode(&self.identity(of), times, self.marks.entries(), segments, None)
    }

    /// Goes back to a state that was written for the same.
    pub(crate) fn restore(&mut self, of: &Identity, state: &[u8]) -> Result<(), PipelineError> {
        let Checkpoint { now, floor, devices, segments, .. } = checkpoint::decode(state, &self.identity(of))?;
        let mut segments = segments.into_iter().map(|(rows, _)| rows);
        let (Some(first), Some(second), None) = (segments.next(), segments.next(), segments.next()) else {
            return Err(PipelineError::state("it has not the rows of two streams"));
        };
        let mut columns = first.columns().to_vec();
        self.matched = match columns.pop_if(|_| self.outer) {
            Some(matched) => match matched.as_boolean_opt() {
                Some(matched) => matched.values().iter().collect(),
                None => return Err(PipelineError::state("it does not say which rows have had a match")),
            },
            None => Vec::new(),
        };
        self.first.hold(RecordBatch::try_new(self.first.schema(), columns)?);
        self.second.hold(RecordBatch::try_new(self.second.schema(), second.columns().to_vec())?);
        self.marks = Watermarks::restore(devices, floor, now);
        Ok(())
    }

    /// Begins where another pipeline has come to, without rows.
    pub(crate) fn succeed(&mut self, devices: Vec<Option<Entry>>, floor: i64, now: i64) {
        self.marks = Watermarks::restore(devices, floor, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> String {
        checkpoint::identity(bytes).unwrap_err().to_string()
    }

    /// Golden: the frame around two states. These have files of their own (`checkpoint.rs`).
    #[test]
    fn both_parts_are_found_again() {
        let both = join(b"rest", b"join");
        assert_eq!(&both[..], b"J\x04\0\0\0\0\0\0\0restjoin");
        assert_eq!(parts(&both).unwrap(), (&b"rest"[..], Some(&b"join"[..])));
        assert_eq!(parts(b"\x01plain").unwrap(), (&b"\x01plain"[..], None), "as a weir without joins wrote it");
        for end in 1..13 {
            assert!(parts(&both[..end]).is_err(), "{end}");
        }
        assert!(of(&both).contains("run the weir that wrote it"), "{}", of(&both));
    }
}
