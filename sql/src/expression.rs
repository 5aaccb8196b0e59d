//! Walks the expressions of a query: do their columns and functions exist, and may they stand where they stand?

use std::ops::ControlFlow;

use datafusion::execution::session_state::SessionState;
use datafusion::sql::sqlparser::ast::{Expr, Function, Ident, Query, Spanned, Visit, Visitor};

use crate::diagnostic::{Diagnostic, Span, code};
use crate::function::{self, Sort};
use crate::name;

/// The part of a query that an expression stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clause {
    Select,
    On,
    Where,
    GroupBy,
    Having,
    /// Of an alert: one record at a time.
    When,
    /// Of an alert: one record at a time.
    Clear,
}

impl Clause {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Select => "SELECT",
            Self::On => "ON",
            Self::Where => "WHERE",
            Self::GroupBy => "GROUP BY",
            Self::Having => "HAVING",
            Self::When => "WHEN",
            Self::Clear => "CLEAR WHEN",
        }
    }
}

/// What expressions may name.
pub(crate) struct Scope<'a> {
    pub(crate) file: &'a str,
    pub(crate) state: &'a SessionState,
    /// Name of the stream, or of the pipeline in its place.
    pub(crate) table: &'a str,
    /// Whether it is a pipeline.
    pub(crate) pipeline: bool,
    /// Its column with the time of a row.
    pub(crate) time: &'a str,
    /// Its column with the device.
    pub(crate) device: Option<&'a str>,
    /// The name its columns may be qualified with.
    pub(crate) alias: &'a str,
    pub(crate) columns: &'a [String],
    /// Names of the output.
    pub(crate) outputs: &'a [String],
    /// Whether the query groups or aggregates.
    pub(crate) grouped: bool,
}

impl Scope<'_> {
    /// A unit of time in which windows over the source make sense, for examples.
    pub(crate) fn longer(&self) -> &'static str {
        if self.pipeline { "hour" } else { "minute" }
    }

    /// What the source consists of.
    pub(crate) fn row(&self) -> &'static str {
        if self.pipeline { "the row" } else { "the record" }
    }

    /// A column of the stream, as it is written in this query: by its alias where a second source has one of the name.
    pub(crate) fn written(&self, column: &str) -> String {
        let other = |name: &String| name.rsplit_once('.').is_some_and(|(_, own)| own == column);
        match self.columns.iter().any(other) {
            true => format!("{}.{column}", self.alias),
            false => column.to_owned(),
        }
    }
}

/// Complains about everything in `expr` that cannot be.
pub(crate) fn check(scope: &Scope<'_>, clause: Clause, expr: &Expr, found: &mut Vec<Diagnostic>) {
    let mut walk = Walk { scope, clause, aggregates: 0, queries: 0, lambdas: Vec::new(), found };
    let _: ControlFlow<()> = expr.visit(&mut walk);
}

/// Whether an aggregate is called anywhere in `expr`; where.
pub(crate) fn aggregate_in(state: &SessionState, expr: &Expr) -> Option<Span> {
    struct Find<'a>(&'a SessionState);
    impl Visitor for Find<'_> {
        type Break = Span;
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Span> {
            match expr {
                Expr::Function(call) if is_aggregate(self.0, call) => ControlFlow::Break(call.name.span().into()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    match expr.visit(&mut Find(state)) {
        ControlFlow::Break(span) => Some(span),
        ControlFlow::Continue(()) => None,
    }
}

fn is_aggregate(state: &SessionState, call: &Function) -> bool {
    call.over.is_none()
        && matches!(function::sort(state, &function::name_of(call)), Sort::Aggregate | Sort::OrderDependent)
}

struct Walk<'a, 'b> {
    scope: &'a Scope<'a>,
    clause: Clause,
    aggregates: usize,
    queries: usize,
    lambdas: Vec<String>,
    found: &'b mut Vec<Diagnostic>,
}

impl Visitor for Walk<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.queries == 0 {
            let message = "a query inside a query would read the whole stream for every row";
            let help = "compute it in a pipeline of its own, or when you query the tables";
            self.complain(code::SUBQUERY, query.body.span().into(), message.to_owned(), Some(help.to_owned()));
        }
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.queries > 0 {
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Identifier(ident) => self.column(ident),
            Expr::CompoundIdentifier(parts) => self.qualified(parts),
            Expr::Lambda(lambda) => self.lambdas.extend(lambda.params.iter().map(|p| name::normal(&p.name))),
            Expr::Function(call) => {
                self.function(call);
                self.aggregates += usize::from(is_aggregate(self.scope.state, call));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(call) if self.queries == 0 && is_aggregate(self.scope.state, call) => self.aggregates -= 1,
            Expr::Lambda(lambda) if self.queries == 0 => {
                let keep = self.lambdas.len().saturating_sub(lambda.params.iter().count());
                self.lambdas.truncate(keep);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Walk<'_, '_> {
    fn alert(&self) -> bool {
        matches!(self.clause, Clause::When | Clause::Clear)
    }

    fn complain(&mut self, code: &'static str, span: Span, message: String, help: Option<String>) {
        self.found.push(Diagnostic::error(code, self.scope.file, span, message).maybe_help(help));
    }

    fn column(&mut self, ident: &Ident) {
        let scope = self.scope;
        let column = name::normal(ident);
        let output = scope.outputs.contains(&column);
        let known = scope.columns.contains(&column) || self.lambdas.contains(&column);
        if known || (output && self.clause == Clause::Having) {
            return;
        }
        let clause = self.clause.as_str();
        if output {
            let message = format!("`{column}` is a column of the result, which {clause} cannot see");
            let help = if self.clause == Clause::Where {
                "repeat its expression here, or use HAVING for what is known at the end of the window"
            } else {
                "repeat its expression here"
            };
            return self.complain(code::UNKNOWN_COLUMN, ident.span.into(), message, Some(help.to_owned()));
        }
        let message = format!("there is no column `{column}` in `{}`", scope.table);
        let mut known: Vec<&str> = scope.columns.iter().map(String::as_str).collect();
        if self.clause == Clause::Having {
            known.extend(scope.outputs.iter().map(String::as_str));
        }
        let help = match column.as_str() {
            "ts" => format!("the time of its rows is `{}`", scope.time),
            "window_start" if scope.time == "ts" => {
                "write tumble(ts, INTERVAL '1 minute') AS window_start in SELECT".to_owned()
            }
            "window_end" => "write window_end()".to_owned(),
            _ => name::did_you_mean(&column, known).unwrap_or_else(|| match ident.quote_style {
                Some('"') => format!("if it is a text, write it in single quotes: '{column}'"),
                _ => self.known_columns(),
            }),
        };
        self.complain(code::UNKNOWN_COLUMN, ident.span.into(), message, Some(help));
    }

    fn known_columns(&self) -> String {
        // The result of a pipeline has none but its own.
        let system = if self.scope.pipeline { 0 } else { storage::schema::SYSTEM_COLUMNS.len() };
        let fields: Vec<&str> = self.scope.columns.iter().skip(system).map(String::as_str).collect();
        match fields.as_slice() {
            [] => format!("declare it: CREATE STREAM {} (.. DOUBLE)", self.scope.table),
            few if few.len() <= 20 => format!("its fields are {}", name::list(few.iter().copied())),
            many => format!("it has {} fields, none of a similar name", many.len()),
        }
    }

    fn qualified(&mut self, parts: &[Ident]) {
        let scope = self.scope;
        match parts {
            [table, column] if name::normal(table) == scope.alias => {
                let column_name = name::normal(column);
                if !scope.columns.contains(&column_name) {
                    let message = format!("there is no column `{column_name}` in `{}`", scope.table);
                    let near = name::did_you_mean(&column_name, scope.columns.iter().map(String::as_str));
                    let help = near.unwrap_or_else(|| self.known_columns());
                    self.complain(code::UNKNOWN_COLUMN, column.span.into(), message, Some(help));
                }
            }
            [first, ..] => {
                let table = name::normal(first);
                let message = format!("`{table}` is not what this query reads");
                let help = if table == scope.table {
                    format!("`{table}` is called `{}` here", scope.alias)
                } else {
                    format!(
                        "it reads `{}`: write `{}.{}`",
                        scope.table,
                        scope.alias,
                        parts.last().map_or("", |p| &p.value)
                    )
                };
                self.complain(code::UNKNOWN_COLUMN, first.span.into(), message, Some(help));
            }
            [] => {}
        }
    }

    fn function(&mut self, call: &Function) {
        let name = function::name_of(call);
        let span = Span::from(call.name.span());
        if call.over.is_some() {
            let message = format!("{name}(..) OVER looks at rows around a row, and a stream has no last row");
            let help = "group by device and tumble(ts, INTERVAL '1 minute') instead";
            return self.complain(code::UNBOUNDED, span, message, Some(help.to_owned()));
        }
        let clause = self.clause.as_str();
        let after_window = self.scope.grouped
            && self.aggregates == 0
            && matches!(self.clause, Clause::Select | Clause::Having | Clause::GroupBy);
        let (code, message, help) = match function::sort(self.scope.state, &name) {
            Sort::Scalar => return,
            sort if self.alert() && matches!(sort, Sort::Aggregate | Sort::OrderDependent | Sort::Ranking) => {
                let message = format!("{clause} looks at one record, and {name}() at many");
                (code::CONDITION, message, "compare the reading itself; FOR INTERVAL '..' asks for time".to_owned())
            }
            Sort::Window | Sort::WindowEnd if self.alert() => {
                let message = format!("{clause} looks at one record, and {name}() at a window of many");
                (code::CONDITION, message, "compare the reading itself; FOR INTERVAL '..' asks for time".to_owned())
            }
            Sort::Now if self.alert() => {
                let message = format!("{clause} looks at what a record holds, not at the time it was received");
                (code::CONDITION, message, "no_data_after = INTERVAL '..' notices silence".to_owned())
            }
            Sort::Aggregate if self.aggregates > 0 => (
                code::PLAN,
                format!("{name}() inside another aggregate"),
                "aggregate once: the inner one alone".to_owned(),
            ),
            Sort::Aggregate if matches!(self.clause, Clause::On | Clause::Where | Clause::GroupBy) => {
                let help = match self.clause {
                    Clause::On | Clause::Where => "use HAVING, which sees the rows of a closed window",
                    _ => "group by what the rows have before they are aggregated",
                };
                (code::PLAN, format!("{clause} cannot use the aggregate {name}()"), help.to_owned())
            }
            Sort::Aggregate => return,
            Sort::Window if matches!(self.clause, Clause::On | Clause::Where) || self.aggregates > 0 => {
                let message = format!("{name}() names the window, which is known only after GROUP BY");
                (code::BAD_WINDOW, message, "here, write date_bin(INTERVAL '1 minute', ts)".to_owned())
            }
            Sort::Window | Sort::WindowEnd if !self.scope.grouped => {
                let message = format!("{name}() without GROUP BY");
                (code::BAD_WINDOW, message, "add GROUP BY device, tumble(ts, INTERVAL '1 minute')".to_owned())
            }
            Sort::WindowEnd if !matches!(self.clause, Clause::Select | Clause::Having) || self.aggregates > 0 => {
                let message = format!("window_end() cannot stand in {clause}, before the window");
                (code::BAD_WINDOW, message, "use it in SELECT or HAVING, outside of aggregates".to_owned())
            }
            Sort::Window | Sort::WindowEnd => return,
            Sort::Now if !self.scope.columns.iter().any(|c| c == "ts_ingest") => {
                let message =
                    format!("{name}() is the time a record was received, which rows of a pipeline do not have");
                let help = format!("use `{}`, or add max(ts_ingest) to the pipeline that is read", self.scope.time);
                (code::VOLATILE, message, help)
            }
            Sort::Now if after_window => {
                let message = format!("{name}() is the time a record was received; a group has no such time");
                (code::VOLATILE, message, "use max(ts_ingest), or window_end()".to_owned())
            }
            Sort::Now => return,
            Sort::Volatile => {
                let message = format!("{name}() gives another result each time, but a replay must repeat every row");
                let help = match name.as_str() {
                    "current_date" | "today" => "write CAST(now() AS DATE): now() is the time a record was received",
                    "current_time" => "write CAST(now() AS TIME): now() is the time a record was received",
                    "random" | "rand" => "to sample, compare a column that varies, such as `seq % 10 = 0`",
                    _ => "leave it out: device, epoch and seq together name every record",
                };
                (code::VOLATILE, message, help.to_owned())
            }
            Sort::Ranking => {
                let message = format!("{name}() looks at rows around a row, and a stream has no last row");
                (code::UNBOUNDED, message, "group by device and tumble(ts, INTERVAL '1 minute') instead".to_owned())
            }
            Sort::OrderDependent => {
                let message = format!("{name}() depends on the order of the rows and cannot be kept as a state");
                (
                    code::ORDER_DEPENDENT,
                    message,
                    "use first_value(.. ORDER BY ts) or last_value(.. ORDER BY ts)".to_owned(),
                )
            }
            Sort::Unfit => match name.as_str() {
                "grouping" => (
                    code::GROUPING,
                    "grouping() is for grouping sets".to_owned(),
                    "a pipeline has one set of groups".to_owned(),
                ),
                _ => {
                    let message = format!("{name}() makes several rows of one, which this version cannot do yet");
                    (code::NOT_YET, message, "keep the list, and unnest it when you query the table".to_owned())
                }
            },
            Sort::Unknown => {
                let near = function::nearest(self.scope.state, &name).map(|n| format!("did you mean `{n}`?"));
                let help =
                    near.unwrap_or_else(|| "any scalar or aggregate function of DataFusion can be used".to_owned());
                (code::UNKNOWN_FUNCTION, format!("there is no function `{name}`"), help)
            }
        };
        self.complain(code, span, message, Some(help));
    }
}
