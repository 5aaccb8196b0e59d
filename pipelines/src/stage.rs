//! Evaluates the filters and projections of a physical plan straight on batches.
//!
//! DataFusion plans; what it planned as `FilterExec` and `ProjectionExec` is run here by evaluating their expressions.
//! That needs no runtime, holds back no rows (a `FilterExec` gathers its output), tells which row an error came from,
//! and lets a further column ride along through the filters. Columns that nobody needs are left out on the way.
//!
//! Absent: joins and everything else that is not row by row. Such plans are refused.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::streaming::StreamingTableExec;

use crate::error::PipelineError;

type Expr = Arc<dyn PhysicalExpr>;
type Plan = Arc<dyn ExecutionPlan>;

/// Where a stage's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// The placeholder of the stream.
    Source,
    /// The aggregate, whose rows the window operator gives.
    Aggregate,
}

#[derive(Debug)]
enum Step {
    /// Rows for which the predicate is true, of them these columns.
    Filter { predicate: Expr, keep: Vec<usize>, schema: SchemaRef },
    /// New columns.
    Project { exprs: Vec<Expr>, schema: SchemaRef },
}

/// A chain of filters and projections.
#[derive(Debug)]
pub(crate) struct Stage {
    columns: Vec<usize>,
    steps: Vec<Step>,
    schema: SchemaRef,
}

impl Stage {
    /// The stage from `leaf` up to and including `plan`, for the output columns `needed` (ascending).
    pub(crate) fn compile(plan: &Plan, needed: &[usize], leaf: Leaf) -> Result<Self, PipelineError> {
        let mut steps = Vec::new();
        let columns = walk(plan, needed, leaf, &mut steps)?;
        let schema = pick(&plan.schema(), needed)?;
        Ok(Self { columns, steps, schema })
    }

    /// The columns of the leaf that it reads, in the order in which [`Stage::run`] expects them.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Columns of the result.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Runs the chain. `rider` is a column that goes through the same filters.
    pub(crate) fn run(
        &self,
        mut batch: RecordBatch,
        mut rider: Option<ArrayRef>,
    ) -> Result<(RecordBatch, Option<ArrayRef>), DataFusionError> {
        for step in &self.steps {
            let rows = batch.num_rows();
            let (columns, schema, rows) = match step {
                Step::Project { exprs, schema } => (evaluate(exprs, &batch)?, schema, rows),
                Step::Filter { predicate, keep, schema } => {
                    let mask = predicate.evaluate(&batch)?.into_array(rows)?;
                    let mask = mask.as_boolean_opt().ok_or_else(|| internal("a filter that is not boolean"))?;
                    let mask = if mask.null_count() > 0 { compute::prep_null_mask_filter(mask) } else { mask.clone() };
                    let left = mask.true_count();
                    let kept = batch.project(keep)?;
                    if left == rows {
                        (kept.columns().to_vec(), schema, rows)
                    } else {
                        let filter = compute::FilterBuilder::new(&mask).optimize().build();
                        rider = rider.map(|rider| filter.filter(&rider)).transpose()?;
                        let columns = kept.columns().iter().map(|c| filter.filter(c)).collect::<Result<_, _>>()?;
                        (columns, schema, left)
                    }
                }
            };
            // Counts the rows itself: a chain may need no column at all, as for `SELECT 1`.
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?;
        }
        Ok((batch, rider))
    }
}

/// Evaluates each expression to an array as long as the batch.
pub(crate) fn evaluate(exprs: &[Expr], batch: &RecordBatch) -> Result<Vec<ArrayRef>, DataFusionError> {
    exprs.iter().map(|expr| expr.evaluate(batch)?.into_array(batch.num_rows())).collect()
}

fn internal(what: &str) -> DataFusionError {
    DataFusionError::Internal(what.to_owned())
}

/// Pushes the steps of `plan`, innermost first, and returns the columns needed of the leaf.
fn walk(plan: &Plan, needed: &[usize], leaf: Leaf, steps: &mut Vec<Step>) -> Result<Vec<usize>, PipelineError> {
    if let Some(project) = plan.downcast_ref::<ProjectionExec>() {
        let exprs: Vec<Expr> = needed
            .iter()
            .map(|i| project.expr().get(*i).map(|e| Arc::clone(&e.expr)).ok_or_else(|| internal("a column too many")))
            .collect::<Result<_, _>>()?;
        let below = columns_of(exprs.iter());
        let source = walk(project.input(), &below, leaf, steps)?;
        let exprs = exprs.into_iter().map(|e| remap(e, &below)).collect::<Result<_, _>>()?;
        steps.push(Step::Project { exprs, schema: pick(&plan.schema(), needed)? });
        return Ok(source);
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        if filter.fetch().is_some() {
            return Err(PipelineError::unsupported("LIMIT"));
        }
        let wanted: Vec<usize> = match filter.projection() {
            None => needed.to_vec(),
            Some(p) => needed
                .iter()
                .map(|i| p.get(*i).copied().ok_or_else(|| internal("a column too many")))
                .collect::<Result<_, _>>()?,
        };
        let mut below = columns_of(std::iter::once(filter.predicate()));
        below.extend(&wanted);
        below.sort_unstable();
        below.dedup();
        let source = walk(filter.input(), &below, leaf, steps)?;
        let keep = wanted.iter().map(|i| position(&below, *i)).collect::<Result<_, _>>()?;
        let predicate = remap(Arc::clone(filter.predicate()), &below)?;
        steps.push(Step::Filter { predicate, keep, schema: pick(&plan.schema(), needed)? });
        return Ok(source);
    }
    if leaf == Leaf::Aggregate && plan.downcast_ref::<AggregateExec>().is_some() {
        return Ok(needed.to_vec());
    }
    if let Some(source) = plan.downcast_ref::<StreamingTableExec>() {
        if leaf == Leaf::Source && source.limit().is_none() {
            return needed.iter().map(|i| Ok(source_column(source, *i)?)).collect();
        }
        return Err(PipelineError::unsupported("LIMIT"));
    }
    if let Some(input) = passes(plan) {
        return walk(input, needed, leaf, steps);
    }
    Err(PipelineError::unsupported(plan.name()))
}

/// The input of a plan that changes neither rows nor columns. A sort is one of them: rows come as the log has them,
/// and aggregates that depend on an order keep it themselves.
pub(crate) fn passes(plan: &Plan) -> Option<&Plan> {
    if let Some(sort) = plan.downcast_ref::<SortExec>() {
        return sort.fetch().is_none().then_some(sort.input());
    }
    if let Some(coalesce) = plan.downcast_ref::<CoalescePartitionsExec>() {
        return coalesce.fetch().is_none().then_some(coalesce.input());
    }
    plan.downcast_ref::<CooperativeExec>().map(CooperativeExec::input)
}

fn source_column(source: &StreamingTableExec, index: usize) -> Result<usize, DataFusionError> {
    match source.projection() {
        None => Ok(index),
        Some(p) => p.get(index).copied().ok_or_else(|| internal("a column too many")),
    }
}

/// What a column is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This column of the source, as it is.
    Column(usize),
    /// Something computed.
    Computed(Expr, usize),
}

/// Follows `expr` over the columns of `plan` down to the source. A computed origin also names the column of the source
/// that is its only input, if there is exactly one.
pub(crate) fn origin(expr: &Expr, plan: &Plan) -> Option<Origin> {
    let Some(column) = expr.downcast_ref::<Column>() else {
        let inputs = columns_of(std::iter::once(expr));
        let [input] = inputs.as_slice() else { return None };
        let below: Expr = Arc::new(Column::new("", *input));
        return match origin(&below, plan)? {
            Origin::Column(source) => Some(Origin::Computed(Arc::clone(expr), source)),
            Origin::Computed(..) => None,
        };
    };
    if let Some(project) = plan.downcast_ref::<ProjectionExec>() {
        return origin(&project.expr().get(column.index())?.expr, project.input());
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        let index = match filter.projection() {
            None => column.index(),
            Some(p) => *p.get(column.index())?,
        };
        let below: Expr = Arc::new(Column::new("", index));
        return origin(&below, filter.input());
    }
    if let Some(source) = plan.downcast_ref::<StreamingTableExec>() {
        return source_column(source, column.index()).ok().map(Origin::Column);
    }
    origin(expr, passes(plan)?)
}

/// The columns that expressions read, ascending.
pub(crate) fn columns_of<'a>(exprs: impl Iterator<Item = &'a Expr>) -> Vec<usize> {
    let mut columns: Vec<usize> =
        exprs.flat_map(|e| collect_columns(e).into_iter().map(|c| c.index()).collect::<Vec<_>>()).collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn position(columns: &[usize], index: usize) -> Result<usize, DataFusionError> {
    columns.binary_search(&index).map_err(|_| internal("a column that was left out"))
}

/// The same expression over a batch that holds only `columns` (ascending).
pub(crate) fn remap(expr: Expr, columns: &[usize]) -> Result<Expr, DataFusionError> {
    let expr = expr.transform_up(|e| {
        let Some(column) = e.downcast_ref::<Column>() else { return Ok(Transformed::no(e)) };
        let moved = Column::new(column.name(), position(columns, column.index())?);
        Ok(Transformed::yes(Arc::new(moved) as Expr))
    })?;
    Ok(expr.data)
}

fn pick(schema: &Schema, columns: &[usize]) -> Result<SchemaRef, PipelineError> {
    // Nullable throughout: an expression may be less sure than the planner was.
    let fields: Vec<FieldRef> = columns
        .iter()
        .map(|i| {
            let field = schema.fields().get(*i).ok_or_else(|| internal("a column too many"))?;
            Ok(Arc::new(field.as_ref().clone().with_nullable(true)))
        })
        .collect::<Result<_, DataFusionError>>()?;
    Ok(Arc::new(Schema::new(fields)))
}
