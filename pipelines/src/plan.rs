//! Cuts a physical plan at its aggregate.
//!
//! What lies below the aggregate runs on rows as they come, the aggregate is our window operator, what lies above
//! runs on the rows of closed windows. A plan without a window is one stage.
//!
//! The plan's aggregate is only read, never executed, so what the optimizer did to it for one pass over a finite
//! table is undone or ignored: aggregates are told that their input has no useful order (the sort that a plan puts
//! under `array_agg(.. ORDER BY ..)` would sort within one batch only), and limits on groups are not looked at.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateInputMode, AggregateMode, aggregate_expressions};
use futures::executor::block_on;
use sql::{Kind, PipelinePlan};

use crate::aggregate::Aggregates;
use crate::error::PipelineError;
use crate::stage::{Leaf, Origin, Stage, columns_of, origin, passes, remap};
use crate::window::Windows;

type Plan = Arc<dyn ExecutionPlan>;

/// A plan in its parts.
#[derive(Debug)]
pub(crate) enum Cut {
    /// Row by row.
    Rows(Stage),
    /// Windowed.
    Windows(Box<Windowed>),
}

/// The parts of a windowed plan.
#[derive(Debug)]
pub(crate) struct Windowed {
    pub(crate) windows: Windows,
    /// Below the aggregate.
    pub(crate) before: Stage,
    pub(crate) aggregates: Arc<Aggregates>,
    /// Above it.
    pub(crate) after: Stage,
    /// The aggregate's own output.
    pub(crate) schema: SchemaRef,
    /// Where in it the window start stands, and the device.
    pub(crate) window_at: usize,
    pub(crate) device_at: Option<usize>,
}

/// Plans and cuts.
pub(crate) fn cut(plan: &PipelinePlan, source: &SchemaRef) -> Result<Cut, PipelineError> {
    let physical =
        block_on(sql::session_state_for(plan.window.as_ref().map(|w| w.kind)).create_physical_plan(&plan.logical))?;
    let output: Vec<usize> = (0..physical.schema().fields().len()).collect();
    let Some(window) = &plan.window else {
        return Ok(Cut::Rows(Stage::compile(&physical, &output, Leaf::Source)?));
    };
    // Joined rows have the time of the first stream's row, and may come with a row that is so much later.
    let after_ns = plan.stream_join.as_ref().map_or(0, sql::StreamJoin::after_ns);
    let windows = Windows::new(window, plan.lateness_ns.saturating_add(after_ns))
        .ok_or_else(|| PipelineError::unsupported("a window whose lengths are none"))?;
    let outer = outermost(&physical).ok_or_else(|| PipelineError::unsupported("a window without an aggregate"))?;
    let raw = raw(outer).ok_or_else(|| PipelineError::unsupported("an aggregate of an aggregate"))?;
    let group = raw.group_expr();
    if !group.is_single() || group.has_grouping_set() {
        return Err(PipelineError::unsupported("GROUPING SETS, ROLLUP or CUBE"));
    }
    let schema = outer.schema();
    let find = |name: &str| {
        let at = group.expr().iter().zip(schema.fields()).position(|(_, field)| field.name() == name);
        at.ok_or_else(|| PipelineError::unsupported(format!("GROUP BY without {name}")))
    };
    let (window_at, device_at) = (find(&window.group)?, window.device.as_deref().map(find).transpose()?);

    let mut window_expr = None;
    let mut others = Vec::new();
    let mut other_fields = Vec::new();
    for (at, ((expr, _), field)) in group.expr().iter().zip(schema.fields()).enumerate() {
        if at == window_at {
            if !is_window(expr, window.kind, raw.input(), source.index_of(&plan.reads.time).ok()) {
                return Err(PipelineError::unsupported("a window over another column than that of the time"));
            }
            window_expr = Some(Arc::clone(expr));
        } else if Some(at) == device_at {
            let device = plan.reads.device.as_deref().and_then(|device| source.index_of(device).ok());
            if device.is_none() || origin(expr, raw.input()) != device.map(Origin::Column) {
                return Err(PipelineError::unsupported("a device that is computed"));
            }
        } else {
            others.push(Arc::clone(expr));
            other_fields.push(Arc::clone(field));
        }
    }
    let window_expr = window_expr.ok_or_else(|| PipelineError::unsupported("GROUP BY without a window"))?;

    let functions = raw.aggr_expr().iter().map(unordered).collect::<Result<Vec<_>, _>>()?;
    let args = aggregate_expressions(&functions, &AggregateMode::Partial, group.num_group_exprs())?;
    let filters = raw.filter_expr().to_vec();
    let all = std::iter::once(&window_expr).chain(&others).chain(args.iter().flatten()).chain(filters.iter().flatten());
    let needed = columns_of(all);
    let before = Stage::compile(raw.input(), &needed, Leaf::Source)?;
    let remap = |expr| remap(expr, &needed);
    let aggregates = Aggregates {
        window: remap(window_expr)?,
        others: others.into_iter().map(remap).collect::<Result<_, _>>()?,
        other_fields,
        state_columns: functions.iter().map(|f| Ok(f.state_fields()?.len())).collect::<Result<_, PipelineError>>()?,
        functions,
        args: args.into_iter().map(|a| a.into_iter().map(remap).collect()).collect::<Result<_, _>>()?,
        filters: filters.into_iter().map(|f| f.map(remap).transpose()).collect::<Result<_, _>>()?,
    };
    let after = Stage::compile(&physical, &output, Leaf::Aggregate)?;
    let aggregates = Arc::new(aggregates);
    Ok(Cut::Windows(Box::new(Windowed { windows, before, aggregates, after, schema, window_at, device_at })))
}

/// The aggregate nearest to the result.
fn outermost(plan: &Plan) -> Option<&Plan> {
    if plan.downcast_ref::<AggregateExec>().is_some() {
        return Some(plan);
    }
    match plan.children().as_slice() {
        [input] => outermost(input),
        _ => None,
    }
}

/// The aggregate over rows: the plan itself, or what lies under it if it only finishes partial states.
fn raw(plan: &Plan) -> Option<&AggregateExec> {
    let aggregate = plan.downcast_ref::<AggregateExec>()?;
    if matches!(aggregate.mode().input_mode(), AggregateInputMode::Raw) {
        return Some(aggregate);
    }
    let mut input = aggregate.input();
    while let Some(below) = passes(input) {
        input = below;
    }
    let below = input.downcast_ref::<AggregateExec>()?;
    matches!(below.mode().input_mode(), AggregateInputMode::Raw).then_some(below)
}

fn is_window(expr: &Arc<dyn PhysicalExpr>, kind: Kind, input: &Plan, time: Option<usize>) -> bool {
    let name = match kind {
        Kind::Tumble => "date_bin",
        Kind::Hop { .. } => "hop",
        Kind::Session => "session",
    };
    match origin(expr, input) {
        Some(Origin::Computed(expr, column)) => {
            let function = expr.downcast_ref::<ScalarFunctionExpr>().map(|f| f.fun().name());
            function == Some(name) && time == Some(column)
        }
        _ => false,
    }
}

/// The same aggregate for input without a useful order.
fn unordered(function: &Arc<AggregateFunctionExpr>) -> Result<Arc<AggregateFunctionExpr>, PipelineError> {
    if function.fun().name() == "nth_value" {
        return Err(PipelineError::unsupported("nth_value(), whose state cannot be merged,"));
    }
    Ok(match Arc::clone(function).with_beneficial_ordering(false)? {
        Some(changed) => Arc::new(changed),
        None => Arc::clone(function),
    })
}
