//! Which part of `GROUP BY` is the window, and the query in words that DataFusion knows.
//!
//! `tumble(ts, size)` becomes `date_bin(size, ts)`, `window_end()` becomes `date_bin(size, ts) + size`, and `now()`
//! becomes `ts_ingest`. All lengths are written in one way, so that equal windows are equal expressions wherever
//! they stand. `GROUP BY` is spelled out: no positions, no names of the output.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr,
    Ident, Interval, ObjectName, Select, SelectItem, Spanned, Value, Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer as sp;

use crate::diagnostic::{Diagnostic, Span, code};
use crate::expression::{self, Clause, Scope};
use crate::function::{self, Sort};
use crate::{interval, name};

const EXAMPLE: &str = "write tumble(ts, INTERVAL '1 minute')";

/// A call that names a window.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) size_ns: i64,
    /// The time column as it is written.
    time: Expr,
}

/// `GROUP BY`, spelled out.
pub(crate) struct Groups {
    pub(crate) exprs: Vec<Expr>,
    /// `None`: the query neither groups nor aggregates, or its window was complained about.
    pub(crate) window: Option<Call>,
    /// Whether the groups are right.
    pub(crate) sound: bool,
}

/// Spells out `GROUP BY` and finds the window in it. Complains if a query that aggregates has none.
pub(crate) fn groups(scope: &Scope<'_>, select: &Select, groups: &[Expr], found: &mut Vec<Diagnostic>) -> Groups {
    let before = found.len();
    let file = scope.file;
    let mut exprs = Vec::new();
    let mut window: Option<Call> = None;
    let (mut device, mut by_time, mut candidates) = (false, None, 0);
    for group in groups {
        let span = Span::from(group.span());
        let Some((expr, own)) = spelled_out(scope, select, group, found) else { continue };
        if own {
            expression::check(scope, Clause::GroupBy, &expr, found);
        } else if let Some(aggregate) = expression::aggregate_in(scope.state, &expr) {
            let message = "GROUP BY cannot use an aggregate";
            let help = "group by what the rows have before they are aggregated";
            found.push(
                Diagnostic::error(code::PLAN, file, span, message)
                    .help(help)
                    .note("the aggregate is here", Some((file.to_owned(), aggregate.start))),
            );
        }
        match column(scope, &expr) {
            Some(c) if c == "device" => device = true,
            Some(c) if c == "ts" => by_time = Some(span),
            _ => {}
        }
        if let Expr::Function(call) = &expr {
            let sort = function::sort(scope.state, &function::name_of(call));
            let bin = function::name_of(call) == "date_bin";
            if sort == Sort::Tumble || bin {
                candidates += 1;
                match read(scope, call, found) {
                    Some(_) if window.is_some() => {
                        let message = "a pipeline has one window, this is the second";
                        let help = "write a pipeline for each length";
                        found.push(Diagnostic::error(code::BAD_WINDOW, file, span, message).help(help));
                    }
                    Some(call) => window = Some(call),
                    None => {}
                }
            } else if sort == Sort::LaterWindow {
                candidates += 1;
            }
        }
        exprs.push(expr);
    }
    let at = || match (groups.first(), groups.last()) {
        (Some(first), Some(last)) => Span { start: Span::from(first.span()).start, end: Span::from(last.span()).end },
        _ => first_aggregate(scope, select).unwrap_or_else(|| select.select_token.0.span.into()),
    };
    // An item that could not be spelled out may have been the window.
    if scope.grouped && candidates == 0 && exprs.len() == groups.len() {
        let mut diagnostic =
            Diagnostic::error(code::NO_WINDOW, file, at(), "an aggregate over a stream needs a window");
        diagnostic = match by_time {
            Some(_) if scope.outputs.iter().any(|o| o == "ts") => diagnostic.help(
                "`ts` in GROUP BY is the column of the stream: give the window another name, such as window_start",
            ),
            Some(span) => diagnostic
                .help("group by device, tumble(ts, INTERVAL '1 minute') instead of by every single `ts`")
                .note("grouped by the time of each row here", Some((file.to_owned(), span.start))),
            None if groups.is_empty() => diagnostic.help("add GROUP BY device, tumble(ts, INTERVAL '1 minute')"),
            None => diagnostic.help("add tumble(ts, INTERVAL '1 minute') to GROUP BY"),
        };
        found.push(diagnostic);
    }
    if scope.grouped && !device && !groups.is_empty() {
        let message = "this version needs `device` among the groups";
        let help = "add device to GROUP BY; combine devices when you query the table";
        found.push(Diagnostic::error(code::NO_DEVICE, file, at(), message).help(help));
    }
    other_sizes(scope, select, window.as_ref(), found);
    Groups { exprs, window, sound: found.len() == before }
}

fn first_aggregate(scope: &Scope<'_>, select: &Select) -> Option<Span> {
    let items = select.projection.iter().filter_map(item_expr).chain(select.having.iter());
    items.filter_map(|e| expression::aggregate_in(scope.state, e)).next()
}

/// The expression of an output column, unless it is a wildcard.
pub(crate) fn item_expr(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

/// What an item of `GROUP BY` stands for; `true`: itself.
fn spelled_out(scope: &Scope<'_>, select: &Select, group: &Expr, found: &mut Vec<Diagnostic>) -> Option<(Expr, bool)> {
    match group {
        Expr::Nested(inner) => spelled_out(scope, select, inner, found),
        Expr::Value(value) => {
            let Value::Number(number, _) = &value.value else { return Some((group.clone(), true)) };
            let item =
                number.parse::<usize>().ok().and_then(|n| n.checked_sub(1)).and_then(|n| select.projection.get(n));
            if let Some(expr) = item.and_then(item_expr) {
                return Some((unwrapped(expr).clone(), false));
            }
            let message = format!("there is no output column {number}");
            let help = format!("SELECT has {}: name the group instead", select.projection.len());
            found.push(Diagnostic::error(code::PLAN, scope.file, group.span().into(), message).help(help));
            None
        }
        Expr::Identifier(ident) if !scope.columns.contains(&name::normal(ident)) => {
            let named = select.projection.iter().find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if name::normal(alias) == name::normal(ident) => Some(expr),
                _ => None,
            });
            Some(named.map_or_else(|| (group.clone(), true), |expr| (unwrapped(expr).clone(), false)))
        }
        _ => Some((group.clone(), true)),
    }
}

fn unwrapped(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => unwrapped(inner),
        _ => expr,
    }
}

/// The column of the stream that `expr` is, if it is one.
pub(crate) fn column(scope: &Scope<'_>, expr: &Expr) -> Option<String> {
    match unwrapped(expr) {
        Expr::Identifier(ident) => Some(name::normal(ident)).filter(|c| scope.columns.contains(c)),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [table, column] if name::normal(table) == scope.alias => {
                Some(name::normal(column)).filter(|c| scope.columns.contains(c))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Whether `expr` is a call of a window of that size.
pub(crate) fn is_window(scope: &Scope<'_>, expr: &Expr, size_ns: i64) -> bool {
    let Expr::Function(call) = unwrapped(expr) else { return false };
    let named = matches!(function::name_of(call).as_str(), "tumble" | "date_bin");
    named && read(scope, call, &mut Vec::new()).is_some_and(|c| c.size_ns == size_ns)
}

fn arguments(call: &Function) -> Option<Vec<&Expr>> {
    let FunctionArguments::List(list) = &call.args else { return None };
    list.args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(unwrapped(expr)),
            _ => None,
        })
        .collect()
}

/// Reads `tumble(ts, size)` or `date_bin(size, ts)`.
fn read(scope: &Scope<'_>, call: &Function, found: &mut Vec<Diagnostic>) -> Option<Call> {
    let name = function::name_of(call);
    let span = Span::from(call.span());
    let mut complain = |span: Span, message: String, help: &str| {
        found.push(Diagnostic::error(code::BAD_WINDOW, scope.file, span, message).help(help));
    };
    let args = arguments(call).unwrap_or_default();
    let (time, size) = match (name.as_str(), args.as_slice()) {
        ("tumble", [time, size]) => (*time, *size),
        ("date_bin", [size, time]) => (*time, *size),
        ("date_bin", [_, _, origin]) => {
            let message = "windows are aligned to 1970-01-01T00:00:00Z".to_owned();
            complain(origin.span().into(), message, "leave out the origin");
            return None;
        }
        _ => {
            complain(span, format!("{name}() takes the time column and the length of the window"), EXAMPLE);
            return None;
        }
    };
    if matches!(time, Expr::Interval(_)) {
        let order = if name == "tumble" { EXAMPLE } else { "write date_bin(INTERVAL '1 minute', ts)" };
        complain(span, format!("the arguments of {name}() are in the wrong order"), order);
        return None;
    }
    match column(scope, time) {
        Some(column) if column == "ts" => {}
        // An unknown column has been complained about.
        None if matches!(time, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => return None,
        other => {
            let what = other.map_or("another expression".to_owned(), |c| format!("`{c}`"));
            let message = format!("a window follows `ts`, the time of the record, not {what}");
            complain(time.span().into(), message, EXAMPLE);
            return None;
        }
    }
    let size_span = Span::from(size.span());
    let (text, unit) = match literal(size) {
        Some(parts) => parts,
        None => {
            let message = "the length of a window is a literal".to_owned();
            let help = match size {
                Expr::Value(v) => match &v.value {
                    Value::SingleQuotedString(text) => format!("write INTERVAL '{text}'"),
                    _ => EXAMPLE.to_owned(),
                },
                _ => EXAMPLE.to_owned(),
            };
            complain(size_span, message, &help);
            return None;
        }
    };
    match interval::parse(&text, unit.as_deref()) {
        Ok(size_ns) if size_ns > 0 => Some(Call { size_ns, time: time.clone() }),
        Ok(_) => {
            complain(size_span, "a window must be longer than nothing".to_owned(), EXAMPLE);
            None
        }
        Err(wrong) => {
            let (message, help) = wrong.explain(&text);
            complain(size_span, message, &help);
            None
        }
    }
}

/// Text and unit of `INTERVAL 'text' unit`.
fn literal(expr: &Expr) -> Option<(String, Option<String>)> {
    let Expr::Interval(Interval { value, leading_field, last_field: None, .. }) = expr else { return None };
    let Expr::Value(value) = value.as_ref() else { return None };
    let text = match &value.value {
        Value::SingleQuotedString(text) | Value::Number(text, _) => text.clone(),
        _ => return None,
    };
    Some((text, leading_field.as_ref().map(ToString::to_string)))
}

/// Every `tumble` in the query must be the window of `GROUP BY`.
fn other_sizes(scope: &Scope<'_>, select: &Select, window: Option<&Call>, found: &mut Vec<Diagnostic>) {
    struct Find<'a, 'b>(&'a Scope<'a>, i64, &'b mut Vec<Diagnostic>);
    impl Visitor for Find<'_, '_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::Function(call) = expr
                && function::name_of(call) == "tumble"
                && let Some(own) = read(self.0, call, self.2)
                && own.size_ns != self.1
            {
                let message = format!("this window is not the one of GROUP BY ({})", interval::shown(self.1));
                let diagnostic = Diagnostic::error(code::BAD_WINDOW, self.0.file, call.span().into(), message);
                self.2.push(diagnostic.help("a pipeline has one window: write the same length, or use date_bin"));
            }
            ControlFlow::Continue(())
        }
    }
    let Some(window) = window else { return };
    let exprs = select.projection.iter().filter_map(item_expr).chain(select.having.iter());
    for expr in exprs {
        let _ = expr.visit(&mut Find(scope, window.size_ns, found));
    }
}

/// The query for DataFusion.
pub(crate) fn rewrite(select: &Select, groups: &Groups) -> Select {
    let mut select = select.clone();
    select.group_by = GroupByExpr::Expressions(groups.exprs.clone(), Vec::new());
    let _ = VisitMut::visit(&mut select, &mut Rewrite { window: groups.window.as_ref() });
    select
}

struct Rewrite<'a> {
    window: Option<&'a Call>,
}

impl VisitorMut for Rewrite<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        let span = call.name.span();
        match function::name_of(call).as_str() {
            "tumble" => {
                if let Some([time, size]) = arguments(call).as_deref()
                    && let Some(ns) = length(size)
                {
                    *expr = date_bin(ns, (*time).clone(), span);
                }
            }
            "date_bin" => {
                // Also outside of GROUP BY, so that it equals the group it may be meant to equal.
                if let Some([size, time]) = arguments(call).as_deref()
                    && let Some(ns) = length(size)
                {
                    *expr = date_bin(ns, (*time).clone(), span);
                }
            }
            "window_end" => {
                if let Some(window) = self.window {
                    let end = Expr::BinaryOp {
                        left: Box::new(date_bin(window.size_ns, window.time.clone(), span)),
                        op: BinaryOperator::Plus,
                        right: Box::new(length_literal(window.size_ns, span)),
                    };
                    *expr = Expr::Nested(Box::new(end));
                }
            }
            "now" | "current_timestamp" => *expr = Expr::Identifier(Ident::with_span(span, "ts_ingest")),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn length(expr: &Expr) -> Option<i64> {
    let (text, unit) = literal(expr)?;
    interval::parse(&text, unit.as_deref()).ok()
}

fn length_literal(ns: i64, span: sp::Span) -> Expr {
    Expr::Interval(Interval {
        value: Box::new(Expr::Value(Value::SingleQuotedString(interval::literal(ns)).with_span(span))),
        leading_field: None,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    })
}

fn date_bin(ns: i64, time: Expr, span: sp::Span) -> Expr {
    let argument = |expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::with_span(span, "date_bin")]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![argument(length_literal(ns, span)), argument(time)],
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
