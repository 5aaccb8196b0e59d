//! A hash table of groups over DataFusion's own accumulators.
//!
//! `GroupValues` numbers the groups, one `GroupsAccumulator` per aggregate keeps their states. Rows are *updated* into
//! it, states of other tables are *merged* into it, and it is emptied either to final values or to states. Neither
//! can be done for one group alone (`EmitTo` knows only all or the first n), so a table is always emptied whole.
//!
//! State rows have this layout everywhere: window start (`Int64`), device number (`UInt32`), the other group keys, the
//! states of each aggregate in turn. They are matched by position; names differ between equal plans.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use crate::digest::Percentiles;

type Expr = Arc<dyn PhysicalExpr>;

/// Position of the window start in a state row.
pub(crate) const WINDOW: usize = 0;
/// Position of the device number in a state row.
pub(crate) const DEVICE: usize = 1;

/// What is grouped by and what is aggregated, over the columns that the stage below gives.
#[derive(Debug)]
pub(crate) struct Aggregates {
    /// Computes what [`Input::windows`] holds, in nanoseconds.
    pub(crate) window: Expr,
    /// The group keys besides device and window.
    pub(crate) others: Vec<Expr>,
    /// Their fields.
    pub(crate) other_fields: Vec<FieldRef>,
    /// The aggregates.
    pub(crate) functions: Vec<Arc<AggregateFunctionExpr>>,
    /// Arguments of each, with what it is ordered by.
    pub(crate) args: Vec<Vec<Expr>>,
    /// `FILTER` of each.
    pub(crate) filters: Vec<Option<Expr>>,
    /// Columns that the state of each has.
    pub(crate) state_columns: Vec<usize>,
}

impl Aggregates {
    fn key_schema(&self, with_window: bool) -> SchemaRef {
        let mut fields: Vec<FieldRef> = Vec::with_capacity(self.other_fields.len() + 2);
        if with_window {
            fields.push(Arc::new(Field::new("window", DataType::Int64, false)));
        }
        fields.push(Arc::new(Field::new("device", DataType::UInt32, false)));
        fields.extend(self.other_fields.iter().cloned());
        Arc::new(Schema::new(fields))
    }

    /// Key columns of a state row.
    pub(crate) fn keys(&self) -> usize {
        self.other_fields.len() + 2
    }

    /// Says which states fit: key types, functions, state types.
    pub(crate) fn shape(&self) -> Result<String, DataFusionError> {
        let mut shape = String::new();
        for field in &self.other_fields {
            shape.push_str(&format!("{};", field.data_type()));
        }
        for function in &self.functions {
            shape.push_str(function.fun().name());
            for field in function.state_fields()? {
                shape.push_str(&format!(",{}", field.data_type()));
            }
            shape.push(';');
        }
        Ok(shape)
    }
}

/// Rows ready to be aggregated: everything evaluated.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Start of each row's window, or of its pane; for sessions the time of the row.
    pub(crate) windows: Int64Array,
    /// Device number and other keys.
    pub(crate) keys: Vec<ArrayRef>,
    pub(crate) args: Vec<Vec<ArrayRef>>,
    pub(crate) filters: Vec<Option<BooleanArray>>,
}

impl Input {
    /// Evaluates keys, arguments and filters over the rows of a batch.
    pub(crate) fn evaluate(
        aggregates: &Aggregates,
        batch: &RecordBatch,
        devices: ArrayRef,
    ) -> Result<Self, DataFusionError> {
        let rows = batch.num_rows();
        let array = |expr: &Expr| expr.evaluate(batch)?.into_array(rows);
        let windows = arrow::compute::cast(&array(&aggregates.window)?, &DataType::Int64)?;
        let windows = windows
            .as_primitive_opt()
            .filter(|w: &&Int64Array| w.null_count() == 0)
            .ok_or_else(|| DataFusionError::Execution("a row without a window".to_owned()))?
            .clone();
        let mut keys = vec![devices];
        for expr in &aggregates.others {
            keys.push(array(expr)?);
        }
        let args = aggregates.args.iter().map(|args| args.iter().map(array).collect()).collect::<Result<_, _>>()?;
        let filters = aggregates
            .filters
            .iter()
            .map(|filter| {
                let Some(filter) = filter else { return Ok(None) };
                let mask = array(filter)?;
                let mask = mask.as_boolean_opt().cloned();
                mask.map(Some).ok_or_else(|| DataFusionError::Execution("a FILTER that is not boolean".to_owned()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { windows, keys, args, filters })
    }

    /// These rows of it.
    pub(crate) fn take(&self, rows: &arrow::array::UInt32Array) -> Result<Self, DataFusionError> {
        let take = |a: &ArrayRef| arrow::compute::take(a, rows, None);
        Ok(Self {
            windows: arrow::compute::take(&self.windows, rows, None)?.as_primitive().clone(),
            keys: self.keys.iter().map(take).collect::<Result<_, _>>()?,
            args: self.args.iter().map(|a| a.iter().map(take).collect()).collect::<Result<_, _>>()?,
            filters: self
                .filters
                .iter()
                .map(|f| {
                    let Some(f) = f else { return Ok(None) };
                    Ok(Some(arrow::compute::take(f, rows, None)?.as_boolean().clone()))
                })
                .collect::<Result<_, DataFusionError>>()?,
        })
    }
}

/// Groups with their accumulators.
pub(crate) struct Table {
    groups: Box<dyn GroupValues>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// Whether the window start is among the keys, or one window is all there is.
    with_window: bool,
    /// Group of each row that was last added.
    numbers: Vec<usize>,
}

impl Table {
    /// For one window: keyed by device and other keys.
    pub(crate) fn of_window(aggregates: &Aggregates) -> Result<Self, DataFusionError> {
        Self::new(aggregates, false)
    }

    /// For any windows: keyed by window, device and other keys.
    pub(crate) fn of_windows(aggregates: &Aggregates) -> Result<Self, DataFusionError> {
        Self::new(aggregates, true)
    }

    fn new(aggregates: &Aggregates, with_window: bool) -> Result<Self, DataFusionError> {
        Ok(Self {
            groups: new_group_values(aggregates.key_schema(with_window), &GroupOrdering::None)?,
            accumulators: aggregates.functions.iter().map(accumulator).collect::<Result<_, _>>()?,
            with_window,
            numbers: Vec::new(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The group of each row that was last added.
    pub(crate) fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        self.groups.size() + self.accumulators.iter().map(|a| a.size()).sum::<usize>()
    }

    /// Adds rows.
    pub(crate) fn update(&mut self, input: &Input) -> Result<(), DataFusionError> {
        if self.with_window {
            let mut keys: Vec<ArrayRef> = vec![Arc::new(input.windows.clone())];
            keys.extend(input.keys.iter().cloned());
            self.groups.intern(&keys, &mut self.numbers)?;
        } else {
            self.groups.intern(&input.keys, &mut self.numbers)?;
        }
        let total = self.groups.len();
        for ((accumulator, args), filter) in self.accumulators.iter_mut().zip(&input.args).zip(&input.filters) {
            accumulator.update_batch(args, &self.numbers, filter.as_ref(), total)?;
        }
        Ok(())
    }

    /// Adds the states of other tables; needs [`Table::of_windows`].
    pub(crate) fn merge(&mut self, aggregates: &Aggregates, states: &RecordBatch) -> Result<(), DataFusionError> {
        let (keys, mut rest) = split(states.columns(), aggregates.keys())?;
        self.groups.intern(keys, &mut self.numbers)?;
        let total = self.groups.len();
        for (accumulator, count) in self.accumulators.iter_mut().zip(&aggregates.state_columns) {
            let (own, others) = split(rest, *count)?;
            accumulator.merge_batch(own, &self.numbers, total)?;
            rest = others;
        }
        Ok(())
    }

    /// Takes the keys out, as in a state row. The accumulators must be emptied next.
    pub(crate) fn take_keys(&mut self, window: Option<i64>) -> Result<Vec<ArrayRef>, DataFusionError> {
        let mut keys = self.groups.emit(EmitTo::All)?;
        if let Some(window) = window {
            let rows = keys.first().map_or(0, |k| k.len());
            keys.insert(WINDOW, Arc::new(Int64Array::from_value(window, rows)));
        }
        Ok(keys)
    }

    /// Empties the accumulators to states.
    pub(crate) fn into_states(mut self, keys: Vec<ArrayRef>) -> Result<RecordBatch, DataFusionError> {
        let mut columns = keys;
        for accumulator in &mut self.accumulators {
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        batch(columns)
    }

    /// Empties the accumulators to final values: keys as in a state row, then one column per aggregate.
    pub(crate) fn into_values(mut self, keys: Vec<ArrayRef>) -> Result<RecordBatch, DataFusionError> {
        let mut columns = keys;
        for accumulator in &mut self.accumulators {
            columns.push(accumulator.evaluate(EmitTo::All)?);
        }
        batch(columns)
    }
}

/// Merges state rows, in this order, and gives the final values of each group.
pub(crate) fn evaluate<'a>(
    aggregates: &Aggregates,
    states: impl IntoIterator<Item = &'a RecordBatch>,
) -> Result<RecordBatch, DataFusionError> {
    let mut table = Table::of_windows(aggregates)?;
    for batch in states {
        table.merge(aggregates, batch)?;
    }
    let keys = table.take_keys(None)?;
    table.into_values(keys)
}

fn accumulator(function: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
    if let Some(percentiles) = Percentiles::of(function) {
        return Ok(Box::new(percentiles));
    }
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = Arc::clone(function);
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
}

fn split(columns: &[ArrayRef], at: usize) -> Result<(&[ArrayRef], &[ArrayRef]), DataFusionError> {
    columns.split_at_checked(at).ok_or_else(|| DataFusionError::Internal("a state with too few columns".to_owned()))
}

/// A batch whose columns are named by position.
pub(crate) fn batch(columns: Vec<ArrayRef>) -> Result<RecordBatch, DataFusionError> {
    let fields: Vec<Field> =
        columns.iter().enumerate().map(|(i, c)| Field::new(format!("c{i}"), c.data_type().clone(), true)).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The window starts of state rows.
pub(crate) fn windows(batch: &RecordBatch) -> Result<&Int64Array, DataFusionError> {
    batch
        .columns()
        .get(WINDOW)
        .and_then(|c| c.as_primitive_opt())
        .ok_or_else(|| DataFusionError::Internal("a state without windows".to_owned()))
}

/// The device numbers of state rows.
pub(crate) fn devices(batch: &RecordBatch) -> Result<&arrow::array::UInt32Array, DataFusionError> {
    batch
        .columns()
        .get(DEVICE)
        .and_then(|c| c.as_primitive_opt())
        .ok_or_else(|| DataFusionError::Internal("a state without devices".to_owned()))
}
