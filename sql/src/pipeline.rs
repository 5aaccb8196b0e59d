//! From a pipeline's statement to its plan.
//!
//! Each step complains about all it can; a later step runs only if the earlier ones left something that it can
//! look at, so that one mistake is not reported twice.

use std::sync::Arc;

use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr as Logical, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::sql::sqlparser::ast::{GroupByExpr, Ident, Query, Select, Spanned};
use storage::schema::stream_schema;

use crate::check::{Meaning, Names};
use crate::complaint::Failure;
use crate::diagnostic::{Diagnostic, Span, code};
use crate::expression::{self, Clause, Scope};
use crate::fingerprint::Fingerprint;
use crate::marker::{HOP, SESSION, nanoseconds};
use crate::option::{Options, TableOptions};
use crate::output;
use crate::plan::Planner;
use crate::project::{Kind, PipelinePlan, Reads, Window};
use crate::session::session_state_for;
use crate::shape::{self, Source};
use crate::statement::PipelineHead;
use crate::window::{self, Call, item_expr};
use crate::{interval, join, name, rollup};

/// A pipeline's statement with its options read.
struct Statement<'a> {
    state: &'a SessionState,
    file: &'a str,
    ident: &'a Ident,
    head: &'a PipelineHead,
    names: &'a Names,
    table: TableOptions,
}

/// Checks and plans one pipeline, or with a rollup one for each length of window. What is missing was complained
/// about, here or where its stream is declared.
pub(crate) fn check(
    state: &SessionState,
    file: &str,
    ident: &Ident,
    head: &PipelineHead,
    names: &Names,
    found: &mut Vec<Diagnostic>,
) -> Vec<PipelinePlan> {
    let before = found.len();
    let mut options = Options::new(file, &head.options);
    let table = options.table();
    let rollup = options.text("rollup", rollup::read);
    let given = head.options.iter().find(|setting| setting.name == "rollup");
    found.extend(options.finish());
    let statement = Statement { state, file, ident, head, names, table };
    let name = name::normal(ident);

    let (_, used) = rollup::apply(&head.query, 1);
    let Some(sizes) = rollup else {
        if let (Some(span), None) = (used, given) {
            let message = "`rollup` stands for lengths that are given nowhere";
            let help = "add WITH (rollup = '1 minute, 1 hour, 1 day') before AS";
            found.push(Diagnostic::error(code::BAD_WINDOW, file, span, message).help(help));
            return Vec::new();
        }
        // A rollup that cannot be read has been complained about, and the query makes no sense without it.
        let alone = used.is_none().then(|| plan(&statement, &name, &head.query, before, found));
        return alone.flatten().into_iter().collect();
    };
    if let (None, Some(setting)) = (used, given) {
        let message = "`rollup` has no effect: the query has no tumble(ts, rollup)";
        let help = "write tumble(ts, rollup) in the place of the window";
        found.push(Diagnostic::error(code::BAD_WINDOW, file, setting.name_span, message).help(help));
        return Vec::new();
    }
    let mut plans = Vec::with_capacity(sizes.len());
    for size_ns in sizes {
        let (query, _) = rollup::apply(&head.query, size_ns);
        // What is wrong with one length is wrong with all.
        let Some(plan) = plan(&statement, &format!("{name}_{}", interval::short(size_ns)), &query, before, found)
        else {
            return Vec::new();
        };
        plans.push(plan);
    }
    plans
}

/// Checks and plans a query. `before`: so many complaints were there before those about this statement.
fn plan(
    statement: &Statement<'_>,
    name: &str,
    query: &Query,
    before: usize,
    found: &mut Vec<Diagnostic>,
) -> Option<PipelinePlan> {
    let Statement { state, file, ident, head, names, table } = *statement;
    let TableOptions { lateness_ns: lateness, retain_ns, compact_ns, partition } = table;
    let parts = shape::take_apart(file, query, &head.tokens, found)?;
    let source = resolve(file, &parts.source, names, found)?;
    let schema = source.reads.columns.clone();
    let joined = join::resolve(file, (&parts.source, &parts.joins), parts.select, &schema, names, found)?;
    let join::Joined { select, joins, schema, columns, found_rows, mut second } = joined;
    if second.is_some() && source.reads.pipeline {
        let message = format!("this version joins two streams, and `{}` is a pipeline", parts.source.table);
        let help = "join the streams that it reads, or the results when you query the tables";
        found.push(Diagnostic::error(code::NOT_YET, file, parts.source.span, message).help(help));
        return None;
    }
    let select = &select;
    let group_by = match &select.group_by {
        GroupByExpr::Expressions(exprs, _) => exprs.as_slice(),
        GroupByExpr::All(_) => &[],
    };
    let aggregates = select.projection.iter().filter_map(item_expr).chain(select.having.iter());
    let grouped = !group_by.is_empty()
        || select.having.is_some()
        || aggregates.into_iter().any(|e| expression::aggregate_in(state, e).is_some());
    let outputs = output::aliases(select);
    let scope = Scope {
        file,
        state,
        table: &parts.source.table,
        pipeline: source.reads.pipeline,
        time: &source.reads.time,
        device: source.reads.device.as_deref(),
        alias: &parts.source.alias,
        columns: &columns,
        outputs: &outputs,
        grouped,
    };
    let clauses = [(Clause::Where, &select.selection), (Clause::Having, &select.having)];
    let items = select.projection.iter().filter_map(item_expr).map(|e| (Clause::Select, e));
    for (clause, expr) in items.chain(clauses.into_iter().filter_map(|(c, e)| Some((c, e.as_ref()?)))) {
        expression::check(&scope, clause, expr, found);
    }
    for condition in second.iter_mut().flat_map(|second| &mut second.conditions) {
        expression::check(&scope, Clause::On, condition, found);
        window::rewrite_condition(condition);
    }
    let groups = window::groups(&scope, select, group_by, found);
    output::check_items(&scope, select, &groups, found);

    // From here on DataFusion speaks.
    let mut rewritten = window::rewrite(select, &groups);
    if let Some(rows) = found_rows {
        rewritten.selection = Some(match rewritten.selection.take() {
            Some(condition) => join::and(condition, rows),
            None => rows,
        });
    }
    let state = &session_state_for(groups.window.as_ref().map(|w| w.kind));
    let planner = Planner::new(state, &parts.source.table, schema.clone()).ok()?;
    let failure = Failure { file, tokens: &head.tokens, planner: &planner, query, select: &rewritten, grouped };
    if found.len() > before {
        if groups.sound {
            failure.parts(found);
        }
        return None;
    }
    for condition in second.iter().flat_map(|second| &second.conditions) {
        failure.condition(condition, found);
    }
    if found.len() > before {
        return None;
    }
    let plan = |select: &Select| {
        let logical = planner.logical(query, select)?;
        let optimized = planner.optimized(&logical)?;
        let physical = planner.physical(&optimized)?;
        Ok((logical, optimized, physical))
    };
    let planned = plan(&rewritten).and_then(|whole| {
        let Some(second) = &second else { return Ok((whole, None)) };
        // As it was written the query is only checked.
        let mut body = rewritten.clone();
        let placed = second.place(&mut body, &columns);
        Ok((plan(&body)?, Some(second.plan(placed, &planner, query, &body)?)))
    });
    let ((logical, optimized, physical), stream_join) = match planned {
        Ok(plans) => plans,
        Err(error) => {
            failure.explain(&error, found);
            return None;
        }
    };
    let Some(scan) = scan_of(&optimized) else {
        let span = select.selection.as_ref().map_or(ident.span, Spanned::span);
        let message = "this query can never give a row: its condition is always false";
        found.push(Diagnostic::error(code::EMPTY, file, span.into(), message).help("correct the condition"));
        return None;
    };
    let window = match &groups.window {
        None => None,
        Some(call) => Some(find_window(&logical, &physical, call, &scope, groups.by_device).or_else(|| {
            let message = "the window of this query is lost in planning";
            let help = "write the window as tumble(ts, ..) AS window_start and GROUP BY device, window_start";
            let span = Span::from(select.select_token.0.span);
            found.push(Diagnostic::error(code::BAD_WINDOW, file, span, message).help(help));
            None
        })?),
    };
    let group = window.as_ref().map(|w| w.group.as_str());
    let output = output::read(&scope, select, &logical, &physical.schema(), &schema, group, found)?;
    no_effect(file, head, window.is_some() || second.is_some(), found);

    let of_stream = second.as_ref().map_or(0, |second| second.lateness_ns).max(source.lateness_ns);
    let lateness_ns = lateness.unwrap_or(of_stream);
    let mut print = Fingerprint::new();
    print.text(&parts.source.table).text(&rewritten.to_string());
    // What a window is besides its length stands in the text.
    print.optional(window.as_ref().map(|w| w.size_ns)).number(if window.is_some() { lateness_ns } else { 0 });
    print.text(partition.as_str());
    if let Some(fingerprint) = source.fingerprint {
        print.text("reads").number(fingerprint as i64);
    }
    for join in &joins {
        print.text("join").text(&join.table).text(&format!("{:?}{:?}{:?}", join.on, join.columns, join.matched));
    }
    if let Some(second) = &second {
        second.print(&mut print);
        print.number(lateness_ns);
    }
    let conditions = stream_join.iter().flat_map(|join| join.conditions());
    let conditions = conditions.filter_map(|plan| scan_of(&planner.optimized(plan).ok()?));
    let scans: Vec<Arc<arrow::datatypes::Schema>> = conditions.chain([scan]).collect();
    for field in scans.iter().flat_map(|scan| scan.fields()) {
        print.text(field.name()).text(&field.data_type().to_string());
        print.text(field.metadata().get("unit").map_or("", String::as_str));
    }
    Some(PipelinePlan {
        name: name.to_owned(),
        source: parts.source.table.clone(),
        reads: source.reads,
        lateness_ns,
        retain_ns,
        compact_ns,
        partition,
        comment: head.comment.clone(),
        query: query.to_string(),
        fingerprint: print.end(),
        joins,
        stream_join,
        logical,
        window,
        output: output.schema,
        time_column: output.time_column,
        device_column: output.device_column,
        at: (file.to_owned(), ident.span.into()),
    })
}

/// What a query reads, and what follows from that.
struct Readable {
    reads: Reads,
    /// The lateness of a query that gives none.
    lateness_ns: i64,
    /// That of the pipeline, if it is one.
    fingerprint: Option<u64>,
}

/// The stream or pipeline of that name.
fn resolve(file: &str, source: &Source, names: &Names, found: &mut Vec<Diagnostic>) -> Option<Readable> {
    let complain = |code, message: String| Diagnostic::error(code, file, source.span, message);
    match names.meanings.get(&source.table) {
        Some(Meaning::Stream(index)) => {
            let stream = names.streams.get(*index)?;
            let reads = Reads {
                pipeline: false,
                columns: stream_schema(&stream.stream),
                time: "ts".to_owned(),
                device: Some("device".to_owned()),
            };
            return Some(Readable { reads, lateness_ns: stream.lateness_ns, fingerprint: None });
        }
        Some(Meaning::Pipeline(Some(index))) => {
            let plan = names.pipelines.get(*index)?;
            let reads = Reads {
                pipeline: true,
                columns: plan.output.clone(),
                time: plan.time_column.clone(),
                device: plan.device_column.clone(),
            };
            return Some(Readable { reads, lateness_ns: plan.lateness_ns, fingerprint: Some(plan.fingerprint) });
        }
        // Complained about, or a rollup, whose tables have names of their own.
        Some(Meaning::Pipeline(None)) => {
            if let Some(tables) = names.of_rollup(&source.table) {
                let message = format!("`{}` is a rollup: its tables have names of their own", source.table);
                found.push(complain(code::UNKNOWN_TABLE, message).help(format!("read {}", name::list(tables))));
            }
        }
        Some(Meaning::Unreadable) => {}
        Some(Meaning::Table(_)) => {
            let message = format!("`{}` is a reference table, in which nothing happens by itself", source.table);
            let help = format!("read a stream and join it: FROM telemetry t JOIN {} ON ..", source.table);
            found.push(complain(code::SOURCES, message).help(help));
        }
        Some(Meaning::Majors) => {
            let message =
                format!("`{}` is a view over several versions, and a pipeline reads one of them", source.table);
            let base = source.table.strip_suffix("_all").unwrap_or(&source.table);
            let tables = names.streams.iter().filter(|s| s.base == base).map(|s| &*s.stream.name);
            found.push(complain(code::SOURCES, message).help(format!("read one of {}", name::list(tables))));
        }
        Some(Meaning::Alert) => {
            let message = format!("`{}` is an alert: what it found stands in `_alerts`", source.table);
            found.push(complain(code::SOURCES, message).help("write the query over the stream that it looks at"));
        }
        None if source.table.starts_with('_') => {
            let message = format!("`{}` is a table of Weir's own, which a pipeline cannot read", source.table);
            found.push(complain(code::UNKNOWN_TABLE, message).help("query it with `weir query`"));
        }
        None => {
            let mut streams: Vec<&str> = names.streams.iter().map(|s| &*s.stream.name).collect();
            streams.sort_unstable();
            let all = names.meanings.keys().map(String::as_str).chain(names.pipelines.iter().map(|plan| &*plan.name));
            let help = name::did_you_mean(&source.table, all).unwrap_or_else(|| {
                let declare = format!("declare it with CREATE STREAM {} (..)", source.table);
                format!("{declare}; the streams are {}", name::list(streams))
            });
            found.push(complain(code::UNKNOWN_TABLE, format!("there is no stream `{}`", source.table)).help(help));
        }
    }
    None
}

/// The columns that the query reads.
fn scan_of(plan: &LogicalPlan) -> Option<Arc<arrow::datatypes::Schema>> {
    if let LogicalPlan::TableScan(scan) = plan {
        return Some(Arc::new(scan.projected_schema.as_arrow().clone()));
    }
    plan.inputs().into_iter().find_map(scan_of)
}

/// How the physical aggregate calls the window and the device.
fn find_window(
    logical: &LogicalPlan,
    physical: &Arc<dyn ExecutionPlan>,
    call: &Call,
    scope: &Scope<'_>,
    by_device: bool,
) -> Option<Window> {
    let group = group_name(logical, call, scope.time)?;
    let aggregate = raw_aggregate(physical)?;
    let keys: Vec<&str> = aggregate.group_expr().expr().iter().map(|(_, name)| name.as_str()).collect();
    let device = scope.device.filter(|_| by_device).map(str::to_owned);
    let all = device.as_ref().is_none_or(|device| keys.contains(&device.as_str()));
    (keys.contains(&group.as_str()) && all).then_some(Window { size_ns: call.size_ns, kind: call.kind, group, device })
}

fn group_name(plan: &LogicalPlan, window: &Call, time: &str) -> Option<String> {
    let LogicalPlan::Aggregate(aggregate) = plan else {
        return plan.inputs().into_iter().find_map(|p| group_name(p, window, time));
    };
    let literal = |expr: &Logical, ns: i64| matches!(expr, Logical::Literal(v, _) if nanoseconds(v) == Some(ns));
    let time = |expr: &Logical| matches!(expr, Logical::Column(column) if column.name == time);
    let found = aggregate.group_expr.iter().find(|e| {
        let Logical::ScalarFunction(call) = e else { return false };
        match (window.kind, call.func.name(), call.args.as_slice()) {
            (Kind::Tumble, "date_bin", [size, ts]) => time(ts) && literal(size, window.size_ns),
            (Kind::Hop { slide_ns }, HOP, [ts, slide, size]) => {
                time(ts) && literal(slide, slide_ns) && literal(size, window.size_ns)
            }
            (Kind::Session, SESSION, [ts, gap]) => time(ts) && literal(gap, window.size_ns),
            _ => false,
        }
    })?;
    Some(found.schema_name().to_string())
}

/// The aggregate next to the source.
fn raw_aggregate(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    let below = plan.children().into_iter().find_map(raw_aggregate);
    below.or_else(|| plan.downcast_ref::<AggregateExec>())
}

/// Warns of options that do nothing.
fn no_effect(file: &str, head: &PipelineHead, windowed: bool, found: &mut Vec<Diagnostic>) {
    if windowed {
        return;
    }
    for setting in head.options.iter().filter(|s| s.name == "lateness") {
        let message = format!("`{}` has no effect: this pipeline has no window", setting.name);
        let diagnostic = Diagnostic::warning(code::NO_EFFECT, file, setting.name_span, message);
        found.push(diagnostic.help("leave it out"));
    }
}
