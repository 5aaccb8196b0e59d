//! Leaving out whole files by their partition, before any of them is opened.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Date32Array, Int32Array, TimestampNanosecondArray};
use arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::PhysicalExpr;

use super::files::TableFile;
use super::provider::{DATE, HOUR};

/// The files that may hold rows for which `predicate` is true.
pub(super) fn prune<'a>(
    files: &'a [TableFile],
    time_column: Option<&str>,
    predicate: Option<&Arc<dyn PhysicalExpr>>,
    schema: &SchemaRef,
) -> Vec<&'a TableFile> {
    let all = || files.iter().collect();
    let Some(predicate) = predicate else { return all() };
    // A filter that says nothing about partitions is no error; neither is one that cannot be turned into bounds.
    let builder = PruningPredicateBuilder::new().with_file_schema(schema.clone());
    let Ok(pruning) = builder.try_build(predicate.clone()) else { return all() };
    match pruning.prune(&Folders { files, time_column }) {
        Ok(keep) => files.iter().zip(keep).filter_map(|(file, keep)| keep.then_some(file)).collect(),
        Err(_) => all(),
    }
}

/// What the folder names say about the rows of each file.
struct Folders<'a> {
    files: &'a [TableFile],
    time_column: Option<&'a str>,
}

impl Folders<'_> {
    fn ends(&self, column: &Column, last: bool) -> Option<ArrayRef> {
        match column.name.as_str() {
            DATE => Some(Arc::new(Date32Array::from_iter_values(self.files.iter().map(|file| file.partition.date.0)))),
            HOUR => {
                Some(Arc::new(Int32Array::from_iter(self.files.iter().map(|file| file.partition.hour.map(i32::from)))))
            }
            name if Some(name) == self.time_column => {
                let ends = self.files.iter().map(|file| {
                    let (first, end) = file.partition.span();
                    if last { end } else { first }
                });
                Some(Arc::new(TimestampNanosecondArray::from_iter_values(ends).with_timezone("UTC")))
            }
            _ => None,
        }
    }
}

impl PruningStatistics for Folders<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.ends(column, false)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.ends(column, true)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
