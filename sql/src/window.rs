//! Which part of `GROUP BY` is the window, and the query in words that DataFusion knows.
//!
//! `tumble(ts, size)` becomes `date_bin(size, ts)`, `hop` and `session` stay calls of the functions in `marker.rs`,
//! `window_end()` becomes the window plus its length (of a session: `max(ts)` plus the gap), and `now()` becomes
//! `ts_ingest`. All lengths are written in one way, so that equal windows are equal expressions wherever
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
use crate::marker::{HOP, SESSION};
use crate::project::Kind;
use crate::{interval, name};

const EXAMPLE: &str = "write tumble(ts, INTERVAL '1 minute')";
const HOP_EXAMPLE: &str = "write hop(ts, INTERVAL '1 minute', INTERVAL '5 minutes')";
const SESSION_EXAMPLE: &str = "write session(ts, INTERVAL '5 minutes')";

/// A record is in no more windows than this: each has its own state.
const MOST_WINDOWS: i64 = 1000;

/// A window consists of no more panes than this.
const MOST_PANES: i64 = 10_000;

/// A call that names a window.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    /// Length, of sessions the gap.
    pub(crate) size_ns: i64,
    /// The time column as it is written.
    time: Expr,
}

impl Call {
    fn same(&self, other: &Self) -> bool {
        (self.kind, self.size_ns) == (other.kind, other.size_ns)
    }

    /// The function that names it.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Tumble => "tumble",
            Kind::Hop { .. } => HOP,
            Kind::Session => SESSION,
        }
    }

    /// For messages.
    fn shown(&self) -> String {
        let size = interval::shown(self.size_ns);
        match self.kind {
            Kind::Tumble => size,
            Kind::Hop { slide_ns } => format!("{size} every {}", interval::shown(slide_ns)),
            Kind::Session => format!("sessions with a gap of {size}"),
        }
    }

    /// As plans have it.
    fn start(&self, span: sp::Span) -> Expr {
        let (time, size) = (self.time.clone(), length_literal(self.size_ns, span));
        match self.kind {
            Kind::Tumble => function_call("date_bin", vec![size, time], span),
            Kind::Hop { slide_ns } => function_call(HOP, vec![time, length_literal(slide_ns, span), size], span),
            Kind::Session => function_call(SESSION, vec![time, size], span),
        }
    }

    fn end(&self, span: sp::Span) -> Expr {
        let before = match self.kind {
            Kind::Tumble | Kind::Hop { .. } => self.start(span),
            Kind::Session => function_call("max", vec![self.time.clone()], span),
        };
        Expr::Nested(Box::new(Expr::BinaryOp {
            left: Box::new(before),
            op: BinaryOperator::Plus,
            right: Box::new(length_literal(self.size_ns, span)),
        }))
    }
}

/// `GROUP BY`, spelled out.
pub(crate) struct Groups {
    pub(crate) exprs: Vec<Expr>,
    /// `None`: the query neither groups nor aggregates, or its window was complained about.
    pub(crate) window: Option<Call>,
    /// Whether the device is one of them.
    pub(crate) by_device: bool,
    /// Whether the groups are right.
    pub(crate) sound: bool,
}

/// Spells out `GROUP BY` and finds the window in it. Complains if a query that aggregates has none.
pub(crate) fn groups(scope: &Scope<'_>, select: &Select, groups: &[Expr], found: &mut Vec<Diagnostic>) -> Groups {
    let before = found.len();
    let file = scope.file;
    let mut exprs = Vec::new();
    let mut window: Option<Call> = None;
    let (mut by_device, mut by_time, mut candidates) = (false, None, 0);
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
            Some(c) if c == scope.time => by_time = Some(span),
            Some(c) if Some(&*c) == scope.device => by_device = true,
            _ => {}
        }
        if let Expr::Function(call) = &expr {
            let sort = function::sort(scope.state, &function::name_of(call));
            let bin = function::name_of(call) == "date_bin";
            if sort == Sort::Window || bin {
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
        let (time, window) = (scope.time, format!("tumble({}, INTERVAL '1 {}')", scope.time, scope.longer()));
        let device = scope.device.map_or_else(String::new, |device| format!("{device}, "));
        let other = if time == "window_start" { "longer_start" } else { "window_start" };
        let mut diagnostic =
            Diagnostic::error(code::NO_WINDOW, file, at(), "an aggregate over a stream needs a window");
        diagnostic = match by_time {
            Some(_) if scope.outputs.iter().any(|o| o == time) => diagnostic.help(format!(
                "`{time}` in GROUP BY is the column of the source: give the window another name, such as {other}",
            )),
            Some(span) => diagnostic
                .help(format!("group by {device}{window} instead of by every single `{time}`"))
                .note("grouped by the time of each row here", Some((file.to_owned(), span.start))),
            None if groups.is_empty() => diagnostic.help(format!("add GROUP BY {device}{window}")),
            None => diagnostic.help(format!("add {window} to GROUP BY")),
        };
        found.push(diagnostic);
    }
    other_sizes(scope, select, window.as_ref(), found);
    // A window whose column is unknown was complained about before.
    let sound = found.len() == before && (candidates == 0 || window.is_some());
    Groups { exprs, window, by_device, sound }
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

/// Whether `expr` is a call of that window.
pub(crate) fn is_window(scope: &Scope<'_>, expr: &Expr, window: &Call) -> bool {
    let Expr::Function(call) = unwrapped(expr) else { return false };
    names_window(call) && read(scope, call, &mut Vec::new()).is_some_and(|c| c.same(window))
}

/// Whether the function can be a window: `date_bin` is one only in `GROUP BY`.
fn names_window(call: &Function) -> bool {
    matches!(function::name_of(call).as_str(), "tumble" | "date_bin" | HOP | SESSION)
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

/// Reads `tumble(ts, size)`, `date_bin(size, ts)`, `hop(ts, slide, size)` or `session(ts, gap)`.
fn read(scope: &Scope<'_>, call: &Function, found: &mut Vec<Diagnostic>) -> Option<Call> {
    let name = function::name_of(call);
    let span = Span::from(call.span());
    let (takes, example) = match name.as_str() {
        HOP => ("the time column, the time from one start to the next, and the length of the windows", HOP_EXAMPLE),
        SESSION => ("the time column and the gap that ends a session", SESSION_EXAMPLE),
        "date_bin" => ("the length of the window and the time column", "write date_bin(INTERVAL '1 minute', ts)"),
        _ => ("the time column and the length of the window", EXAMPLE),
    };
    let mut complain = |span: Span, message: String, help: &str| {
        found.push(Diagnostic::error(code::BAD_WINDOW, scope.file, span, message).help(help));
    };
    let args = arguments(call).unwrap_or_default();
    let (time, lengths): (&Expr, &[&Expr]) = match (name.as_str(), args.as_slice()) {
        ("tumble" | SESSION, [time, lengths @ ..]) if lengths.len() == 1 => (time, lengths),
        (HOP, [time, lengths @ ..]) if lengths.len() == 2 => (time, lengths),
        ("date_bin", [lengths @ .., time]) if lengths.len() == 1 => (time, lengths),
        ("date_bin", [_, _, origin]) => {
            let message = "windows are aligned to 1970-01-01T00:00:00Z".to_owned();
            complain(origin.span().into(), message, "leave out the origin");
            return None;
        }
        _ => {
            complain(span, format!("{name}() takes {takes}"), example);
            return None;
        }
    };
    if matches!(time, Expr::Interval(_)) {
        complain(span, format!("the arguments of {name}() are in the wrong order"), example);
        return None;
    }
    match column(scope, time) {
        Some(column) if column == scope.time => {}
        // An unknown column has been complained about.
        None if matches!(time, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => return None,
        other => {
            let what = other.map_or("another expression".to_owned(), |c| format!("`{c}`"));
            let message = format!("a window follows `{}`, the time of {}, not {what}", scope.time, scope.row());
            let example = example
                .replace("ts,", &format!("{},", scope.written(scope.time)))
                .replace("1 minute", &format!("1 {}", scope.longer()));
            complain(time.span().into(), message, &example);
            return None;
        }
    }
    let mut read = Vec::with_capacity(lengths.len());
    for size in lengths {
        let size_span = Span::from(size.span());
        let Some((text, unit)) = literal(size) else {
            let message = "the length of a window is a literal".to_owned();
            let help = match size {
                Expr::Value(v) => match &v.value {
                    Value::SingleQuotedString(text) => format!("write INTERVAL '{text}'"),
                    _ => example.to_owned(),
                },
                _ => example.to_owned(),
            };
            complain(size_span, message, &help);
            continue;
        };
        match interval::parse(&text, unit.as_deref()) {
            Ok(size_ns) if size_ns > 0 => read.push(size_ns),
            Ok(_) => complain(size_span, "a window must be longer than nothing".to_owned(), example),
            Err(wrong) => {
                let (message, help) = wrong.explain(&text);
                complain(size_span, message, &help);
            }
        }
    }
    let time = time.clone();
    let (kind, size_ns) = match (name.as_str(), read.as_slice()) {
        (HOP, [slide_ns, size_ns]) => {
            let kind = Kind::Hop { slide_ns: *slide_ns };
            if let Some((message, help)) = unfit(*slide_ns, *size_ns) {
                complain(span, message, &help);
                return None;
            }
            // Windows that follow each other without overlap are those of tumble().
            (if slide_ns == size_ns { Kind::Tumble } else { kind }, *size_ns)
        }
        (SESSION, [gap_ns]) => (Kind::Session, *gap_ns),
        (_, [size_ns]) => (Kind::Tumble, *size_ns),
        _ => return None,
    };
    Some(Call { kind, size_ns, time })
}

/// Why windows that begin every `slide` and last `size` cannot be.
fn unfit(slide_ns: i64, size_ns: i64) -> Option<(String, String)> {
    let (slide, size) = (interval::shown(slide_ns), interval::shown(size_ns));
    if slide_ns > size_ns {
        let message = format!("windows of {size} that begin every {slide} leave out the records between them");
        return Some((
            message,
            format!("the time from start to start comes first: hop(ts, INTERVAL '{size}', INTERVAL '{slide}')"),
        ));
    }
    let windows = size_ns / slide_ns;
    if windows > MOST_WINDOWS {
        let message = format!("each record would be in {windows} windows; {MOST_WINDOWS} are the most");
        return Some((message, "let the windows begin less often, or make them shorter".to_owned()));
    }
    let pane_ns = Kind::Hop { slide_ns }.pane_ns(size_ns);
    if size_ns / pane_ns > MOST_PANES {
        let pane = interval::shown(pane_ns);
        let message = format!("{slide} and {size} have only {pane} in common, and would be computed in parts of that");
        return Some((message, "choose a length that is a multiple of the time from start to start".to_owned()));
    }
    None
}

/// Text and unit of `INTERVAL 'text' unit`.
pub(crate) fn literal(expr: &Expr) -> Option<(String, Option<String>)> {
    let Expr::Interval(Interval { value, leading_field, last_field: None, .. }) = expr else { return None };
    let Expr::Value(value) = value.as_ref() else { return None };
    let text = match &value.value {
        Value::SingleQuotedString(text) | Value::Number(text, _) => text.clone(),
        _ => return None,
    };
    Some((text, leading_field.as_ref().map(ToString::to_string)))
}

/// Every window in the query must be that of `GROUP BY`.
fn other_sizes(scope: &Scope<'_>, select: &Select, window: Option<&Call>, found: &mut Vec<Diagnostic>) {
    struct Find<'a, 'b>(&'a Scope<'a>, &'a Call, &'b mut Vec<Diagnostic>);
    impl Visitor for Find<'_, '_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::Function(call) = expr
                && names_window(call)
                && function::name_of(call) != "date_bin"
                && let Some(own) = read(self.0, call, self.2)
                && !own.same(self.1)
            {
                let message = format!("this window is not the one of GROUP BY ({})", self.1.shown());
                let diagnostic = Diagnostic::error(code::BAD_WINDOW, self.0.file, call.span().into(), message);
                self.2.push(diagnostic.help("a pipeline has one window: write the same length, or use date_bin"));
            }
            ControlFlow::Continue(())
        }
    }
    let Some(window) = window else { return };
    let exprs = select.projection.iter().filter_map(item_expr).chain(select.having.iter());
    for expr in exprs {
        let _ = expr.visit(&mut Find(scope, window, found));
    }
}

/// The query for DataFusion.
pub(crate) fn rewrite(select: &Select, groups: &Groups) -> Select {
    let mut select = select.clone();
    select.group_by = GroupByExpr::Expressions(groups.exprs.clone(), Vec::new());
    let _ = VisitMut::visit(&mut select, &mut Rewrite { window: groups.window.as_ref() });
    select
}

/// The same for a condition on rows, before any window.
pub(crate) fn rewrite_condition(expr: &mut Expr) {
    let _ = VisitMut::visit(expr, &mut Rewrite { window: None });
}

struct Rewrite<'a> {
    window: Option<&'a Call>,
}

impl VisitorMut for Rewrite<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        let span = call.name.span();
        match (function::name_of(call).as_str(), arguments(call).as_deref()) {
            // Also `date_bin` outside of GROUP BY, so that it equals the group it may be meant to equal.
            ("tumble", Some([time, size])) | ("date_bin", Some([size, time])) => {
                if let Some(size_ns) = length(size) {
                    *expr = Call { kind: Kind::Tumble, size_ns, time: (*time).clone() }.start(span);
                }
            }
            (HOP, Some([time, slide, size])) => {
                if let (Some(slide_ns), Some(size_ns)) = (length(slide), length(size)) {
                    let kind = if slide_ns == size_ns { Kind::Tumble } else { Kind::Hop { slide_ns } };
                    *expr = Call { kind, size_ns, time: (*time).clone() }.start(span);
                }
            }
            (SESSION, Some([time, gap])) => {
                if let Some(size_ns) = length(gap) {
                    *expr = Call { kind: Kind::Session, size_ns, time: (*time).clone() }.start(span);
                }
            }
            ("window_end", _) => {
                if let Some(window) = self.window {
                    *expr = window.end(span);
                }
            }
            ("now" | "current_timestamp", _) => *expr = Expr::Identifier(Ident::with_span(span, "ts_ingest")),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn length(expr: &Expr) -> Option<i64> {
    let (text, unit) = literal(expr)?;
    interval::parse(&text, unit.as_deref()).ok()
}

/// `INTERVAL` of that length.
pub(crate) fn length_literal(ns: i64, span: sp::Span) -> Expr {
    Expr::Interval(Interval {
        value: Box::new(Expr::Value(Value::SingleQuotedString(interval::literal(ns)).with_span(span))),
        leading_field: None,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    })
}

fn function_call(name: &str, args: Vec<Expr>, span: sp::Span) -> Expr {
    let argument = |expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::with_span(span, name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(argument).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
