//! `approx_percentile_cont` for many groups: a buffer of values in front of DataFusion's t-digest.
//!
//! DataFusion keeps one accumulator per group and rebuilds its digest with every batch that has rows for it, which
//! with many groups is almost with every row. Here a group's values wait in a buffer and go into the digest
//! [`BUFFER`] at a time. Estimates are at least as good, as fewer merges lose less; states have DataFusion's own
//! columns, and a state that is still only values is carried as such (each a centroid of weight one), so a window
//! with few rows stays exact however many barriers it lives through.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, ListArray, RecordBatch, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion_functions_aggregate_common::tdigest::{Centroid, TDigest};

/// Values that wait: sorting more costs more than the merges that it saves.
const BUFFER: usize = 128;

/// DataFusion's own number of centroids.
const CENTROIDS: usize = 100;

/// A percentile of each group.
pub(crate) struct Percentiles {
    percentile: f64,
    centroids: usize,
    groups: Vec<Group>,
}

struct Group {
    digest: TDigest,
    values: Vec<f64>,
}

impl Group {
    fn push(&mut self, value: f64) {
        if self.values.len() == BUFFER {
            self.settle();
        }
        self.values.push(value);
    }

    /// Moves the waiting values into the digest.
    fn settle(&mut self) {
        if self.values.is_empty() {
            return;
        }
        self.values.sort_unstable_by(f64::total_cmp);
        self.digest = self.digest.merge_sorted_f64(&self.values);
        self.values.clear();
    }
}

impl Percentiles {
    /// The accumulator for `function`, if it is a percentile that this can do.
    pub(crate) fn of(function: &AggregateFunctionExpr) -> Option<Self> {
        let args = function.expressions();
        // Both functions return the type of their argument.
        if function.is_distinct() || function.field().data_type() != &DataType::Float64 {
            return None;
        }
        let number = |at: usize| -> Option<ScalarValue> {
            let empty = RecordBatch::new_empty(Arc::new(Schema::empty()));
            match args.get(at)?.evaluate(&empty).ok()? {
                ColumnarValue::Scalar(value) => Some(value),
                ColumnarValue::Array(_) => None,
            }
        };
        let (percentile, centroids) = match (function.fun().name(), args.len()) {
            ("approx_median", 1) => (0.5, CENTROIDS),
            ("approx_percentile_cont", 2 | 3) => {
                let Some(ScalarValue::Float64(Some(percentile))) = number(1) else { return None };
                let centroids = match args.len() {
                    2 => CENTROIDS,
                    _ => match number(2)? {
                        ScalarValue::Int64(Some(n)) => usize::try_from(n).ok().filter(|n| *n > 0)?,
                        _ => return None,
                    },
                };
                let descending = function.order_bys().first().is_some_and(|o| o.options.descending);
                (if descending { 1.0 - percentile } else { percentile }, centroids)
            }
            _ => return None,
        };
        (0.0..=1.0).contains(&percentile).then_some(Self { percentile, centroids, groups: Vec::new() })
    }

    fn grow(&mut self, total: usize) {
        let centroids = self.centroids;
        if total > self.groups.len() {
            self.groups.resize_with(total, || Group { digest: TDigest::new(centroids), values: Vec::new() });
        }
    }
}

impl GroupsAccumulator for Percentiles {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<(), DataFusionError> {
        self.grow(total_num_groups);
        let values = values.first().and_then(|v| v.as_primitive_opt::<Float64Type>()).ok_or_else(malformed)?;
        if values.null_count() == 0 && opt_filter.is_none() {
            for (group, value) in group_indices.iter().zip(values.values()) {
                self.groups.get_mut(*group).ok_or_else(malformed)?.push(*value);
            }
            return Ok(());
        }
        for (row, (group, value)) in group_indices.iter().zip(values).enumerate() {
            let Some(value) = value else { continue };
            if opt_filter.is_none_or(|f| f.is_valid(row) && f.value(row)) {
                self.groups.get_mut(*group).ok_or_else(malformed)?.push(value);
            }
        }
        Ok(())
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<(), DataFusionError> {
        self.grow(total_num_groups);
        #[cfg(feature = "planted")]
        if device::planted::is("percentile-not-merged") {
            return Ok(());
        }
        let [sizes, numbers @ .., lists] = values else { return Err(malformed()) };
        let sizes = sizes.as_primitive_opt::<UInt64Type>().ok_or_else(malformed)?;
        let lists = lists.as_list_opt::<i32>().ok_or_else(malformed)?;
        let numbers = numbers
            .iter()
            .map(|n| n.as_primitive_opt::<Float64Type>().ok_or_else(malformed))
            .collect::<Result<Vec<_>, _>>()?;
        let [sums, counts, maxima, minima] = numbers.as_slice() else { return Err(malformed()) };
        let pairs = lists.values().as_primitive_opt::<Float64Type>().ok_or_else(malformed)?.values();
        let rows = group_indices.iter().zip(lists.value_offsets().windows(2)).enumerate();
        for (row, (group, ends)) in rows {
            let [start, end] = ends else { return Err(malformed()) };
            let own = pairs.get(*start as usize..*end as usize).ok_or_else(malformed)?;
            let (own, rest) = own.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(malformed());
            }
            let group = self.groups.get_mut(*group).ok_or_else(malformed)?;
            if own.iter().all(|[_, weight]| *weight == 1.0) {
                own.iter().for_each(|[mean, _]| group.push(*mean));
                continue;
            }
            let centroids = own.iter().map(|[mean, weight]| Centroid::new(*mean, *weight)).collect();
            let other = TDigest::try_from_parts(
                sizes.value(row) as usize,
                sums.value(row),
                counts.value(row),
                maxima.value(row),
                minima.value(row),
                centroids,
            )?;
            group.digest = TDigest::merge_digests([&group.digest, &other]);
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef, DataFusionError> {
        let percentile = self.percentile;
        let groups = emit_to.take_needed(&mut self.groups);
        let estimates: Float64Array = groups
            .into_iter()
            .map(|mut group| {
                group.settle();
                (group.digest.count() > 0.0).then(|| group.digest.estimate_quantile(percentile))
            })
            .collect();
        Ok(Arc::new(estimates))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>, DataFusionError> {
        let groups = emit_to.take_needed(&mut self.groups);
        let count = groups.len();
        let mut sizes = Vec::with_capacity(count);
        let mut numbers: [Vec<f64>; 4] = std::array::from_fn(|_| Vec::with_capacity(count));
        let mut lengths = Vec::with_capacity(count);
        let mut pairs = Vec::new();
        for mut group in groups {
            let before = pairs.len();
            let plain = group.digest.count() == 0.0;
            if plain {
                group.values.sort_unstable_by(f64::total_cmp);
                pairs.extend(group.values.iter().flat_map(|v| [*v, 1.0]));
            } else {
                group.settle();
                pairs.extend(group.digest.centroids().iter().flat_map(|c| [c.mean(), c.weight()]));
            }
            lengths.push(pairs.len() - before);
            sizes.push(self.centroids as u64);
            let ends = |v: Option<&f64>| v.copied().unwrap_or(f64::NAN);
            let row = if plain {
                let (sum, count) = (group.values.iter().sum(), group.values.len() as f64);
                [sum, count, ends(group.values.last()), ends(group.values.first())]
            } else {
                let d = &group.digest;
                [d.sum(), d.count(), d.max(), d.min()]
            };
            for (column, number) in numbers.iter_mut().zip(row) {
                column.push(number);
            }
        }
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(sizes))];
        columns.extend(numbers.map(|n| Arc::new(Float64Array::from(n)) as ArrayRef));
        let field = Arc::new(Field::new_list_field(DataType::Float64, true));
        let offsets = OffsetBuffer::from_lengths(lengths);
        columns.push(Arc::new(ListArray::try_new(field, offsets, Arc::new(Float64Array::from(pairs)), None)?));
        Ok(columns)
    }

    fn convert_to_state(
        &self,
        _values: &[ArrayRef],
        _opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>, DataFusionError> {
        Err(DataFusionError::NotImplemented("percentiles pass no rows through as states".to_owned()))
    }

    fn size(&self) -> usize {
        let group = |g: &Group| size_of::<Group>() - size_of::<TDigest>() + g.digest.size() + g.values.capacity() * 8;
        self.groups.iter().map(group).sum()
    }
}

fn malformed() -> DataFusionError {
    DataFusionError::Execution("a percentile's state or input is malformed".to_owned())
}
