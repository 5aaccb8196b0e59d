//! From the groups of closed windows to rows of the result.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute;
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::error::DataFusionError;

use crate::aggregate;
use crate::error::PipelineError;
use crate::plan::Windowed;
use crate::watermark::Watermarks;

/// From groups (keys as in a state row, then values) to rows of the result, sorted by device and window.
pub(crate) fn finish(
    cut: &Windowed,
    marks: &Watermarks,
    groups: Vec<RecordBatch>,
    output: &SchemaRef,
) -> Result<Option<RecordBatch>, PipelineError> {
    let Some(first) = groups.first() else { return Ok(None) };
    let groups = compute::concat_batches(&first.schema(), &groups)?;
    let ids = aggregate::devices(&groups)?.values();
    let starts = aggregate::windows(&groups)?.values();
    let mut named: Vec<(u32, &str)> = ids.iter().map(|id| (*id, marks.name(*id).unwrap_or_default())).collect();
    named.sort_unstable();
    named.dedup();
    named.sort_unstable_by_key(|(_, name)| *name);
    let ranks: datafusion::common::HashMap<u32, u32> = (0..).zip(&named).map(|(rank, (id, _))| (*id, rank)).collect();
    let mut order: Vec<(u32, i64, u32)> = (0..)
        .zip(ids.iter().zip(starts))
        .map(|(row, (id, s))| (ranks.get(id).copied().unwrap_or(0), *s, row))
        .collect();
    order.sort_unstable();
    let groups = compute::take_record_batch(&groups, &UInt32Array::from_iter_values(order.iter().map(|o| o.2)))?;

    let mut rest = groups.columns().iter().skip(2).cloned();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(cut.schema.fields().len());
    for (at, field) in cut.schema.fields().iter().enumerate() {
        let array: ArrayRef = if at == cut.window_at {
            let starts: &Int64Array = aggregate::windows(&groups)?;
            compute::cast(starts, field.data_type())?
        } else if Some(at) == cut.device_at {
            let ids = aggregate::devices(&groups)?.values().iter();
            let names = StringArray::from_iter_values(ids.map(|id| marks.name(*id).unwrap_or_default()));
            compute::cast(&names, field.data_type())?
        } else {
            rest.next().ok_or_else(|| DataFusionError::Internal("a group with too few columns".to_owned()))?
        };
        columns.push(array);
    }
    let fields: Vec<Field> = cut.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let groups = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?.project(cut.after.columns())?;
    let (rows, _) = cut.after.run(groups, None)?;
    Ok((rows.num_rows() > 0).then(|| RecordBatch::try_new(Arc::clone(output), rows.columns().to_vec())).transpose()?)
}
