//! A join of two streams: by device, and within a bound on the time between two rows.
//!
//! Without the bound each row would have to be kept for ever. It is read from ON, however it is written there: each
//! comparison of both streams' `ts`, of their difference, or of either plus or minus intervals, says something about
//! `second.ts - first.ts`. What else stands in ON, and what stands in WHERE, is put where it is cheapest: what speaks
//! of rows of one stream before they are kept, the rest when two rows have met.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, GroupByExpr, Ident, Join as Written, JoinConstraint, JoinOperator, Query, Select, SelectItem,
    Spanned, UnaryOperator, Visit, VisitMut, Visitor,
};
use storage::schema::stream_schema;

use crate::diagnostic::{Span, code};
use crate::fingerprint::Fingerprint;
use crate::join::{Reader, and};
use crate::plan::Planner;
use crate::project::{StreamDecl, StreamJoin};
use crate::shape::Source;
use crate::{interval, name, window};

/// Rows are kept in memory for as long as others may match them; what is further apart is better joined in the files.
const MOST_NS: i64 = 24 * 3600 * 1_000_000_000;

/// The second stream of a query.
#[derive(Debug)]
pub(crate) struct Second {
    table: String,
    schema: SchemaRef,
    lower_ns: i64,
    upper_ns: i64,
    /// `LEFT JOIN`.
    pub(crate) outer: bool,
    /// What the stream itself has as its lateness.
    pub(crate) lateness_ns: i64,
    /// What ON says besides device and time, in names that the query may use.
    pub(crate) conditions: Vec<Expr>,
    /// The columns that the query uses: their names in the query, and in the stream.
    pub(crate) columns: Vec<(String, String)>,
    /// All names of columns that belong to its rows, those of what they are looked up in included.
    pub(crate) names: BTreeSet<String>,
    /// Which of the query's tables its rows are looked up in.
    pub(crate) lookups: Vec<usize>,
}

/// What a comparison says, with `d` for `second.ts - first.ts`.
#[derive(Debug, Clone, Copy)]
struct Bound {
    lower_ns: i64,
    upper_ns: i64,
}

/// A sum of `first.ts`, `second.ts` and nanoseconds, each so many times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    first: i64,
    second: i64,
    ns: i64,
}

impl Sum {
    fn plus(self, other: Self, times: i64) -> Option<Self> {
        let add = |a: i64, b: i64| a.checked_add(b.checked_mul(times)?);
        Some(Self {
            first: add(self.first, other.first)?,
            second: add(self.second, other.second)?,
            ns: add(self.ns, other.ns)?,
        })
    }
}

/// The names of both streams.
struct Names<'a> {
    first: &'a str,
    second: &'a str,
}

/// A length of time in ON that is none.
struct Wrong {
    span: Span,
    message: String,
    help: String,
}

/// Reads the join of `decl` to the reader's stream.
pub(crate) fn read<'a>(reader: &mut Reader<'a, '_>, source: &Source, join: &Written, decl: &'a StreamDecl) {
    let first = reader.source.alias.clone();
    let names = Names { first: &first, second: &source.alias };
    if reader.second.is_some() {
        let message = "a pipeline joins two streams, this is the third";
        let help = "join two of them here, and the third when you query the tables";
        return reader.complain(code::SOURCES, source.span, message, help);
    }
    let (outer, constraint) = match &join.join_operator {
        JoinOperator::Join(on) | JoinOperator::Inner(on) => (false, on),
        JoinOperator::Left(on) | JoinOperator::LeftOuter(on) => (true, on),
        JoinOperator::Right(_) | JoinOperator::RightOuter(_) => {
            let message = "two streams are joined by JOIN or LEFT JOIN";
            let help = format!("let them change places: FROM {} LEFT JOIN {}", source.table, reader.source.table);
            return reader.complain(code::SOURCES, source.span, message, help);
        }
        _ => {
            let message = "two streams are joined by JOIN or LEFT JOIN";
            let help = names.example().replacen("write", &format!("write JOIN {} {}", source.table, source.alias), 1);
            return reader.complain(code::SOURCES, source.span, message, help);
        }
    };
    let JoinConstraint::On(on) = constraint else {
        let message = "two streams are joined by their device and a bound on time";
        return reader.complain(code::UNBOUNDED, source.span, message, names.example());
    };
    let schema = stream_schema(&decl.stream);
    reader.add_stream(&source.alias, &decl.stream.name, schema.clone(), outer);

    let before = reader.found.len();
    let mut parts = Vec::new();
    conjuncts(on.clone(), &mut parts);
    let (mut device, mut conditions) = (false, Vec::new());
    let mut bound = Bound { lower_ns: i64::MIN, upper_ns: i64::MAX };
    for part in parts {
        if names.devices(&part) {
            device = true;
            continue;
        }
        match names.bound(&part) {
            Ok(Some(own)) => {
                bound.lower_ns = bound.lower_ns.max(own.lower_ns);
                bound.upper_ns = bound.upper_ns.min(own.upper_ns);
            }
            Ok(None) => conditions.push(part),
            Err(wrong) => reader.complain(code::UNBOUNDED, wrong.span, wrong.message, wrong.help),
        }
    }
    for condition in &mut conditions {
        let _ = VisitMut::visit(condition, reader);
    }
    if reader.found.len() == before {
        let span = Span::from(on.span());
        if !device {
            let message = "two streams are joined by their device: the records of other devices are not at hand";
            reader.complain(code::SOURCES, span, message, names.example());
        } else if let Some((code, message, help)) = unfit(bound, &names) {
            reader.complain(code, span, message, help);
        }
    }
    if reader.found.len() == before {
        reader.second = Some(Second {
            table: decl.stream.name.to_string(),
            schema,
            lower_ns: bound.lower_ns,
            upper_ns: bound.upper_ns,
            outer,
            lateness_ns: decl.lateness_ns,
            conditions,
            columns: Vec::new(),
            names: BTreeSet::new(),
            lookups: Vec::new(),
        });
    }
}

/// Why rows cannot be joined within that bound: code, message and help.
fn unfit(bound: Bound, names: &Names<'_>) -> Option<(&'static str, String, String)> {
    let Bound { lower_ns, upper_ns } = bound;
    let missing = |what: &str| {
        let message = format!("`{}.ts` has no {what}: rows would be kept for ever", names.second);
        Some((code::UNBOUNDED, message, names.example()))
    };
    match (lower_ns, upper_ns) {
        (i64::MIN, i64::MAX) => missing("bound"),
        (i64::MIN, _) => missing("earliest time"),
        (_, i64::MAX) => missing("latest time"),
        _ if lower_ns > upper_ns => {
            let message = "no two rows can be joined: the latest time is before the earliest".to_owned();
            Some((code::EMPTY, message, "change the places of the two bounds".to_owned()))
        }
        _ => {
            let most = lower_ns.unsigned_abs().max(upper_ns.unsigned_abs());
            (most > MOST_NS.unsigned_abs()).then(|| {
                let (most, allowed) =
                    (interval::shown(most.min(i64::MAX.unsigned_abs()) as i64), interval::shown(MOST_NS));
                let message = format!("rows would be held in memory for {most}; {allowed} is the most");
                let help = "join what is further apart when you query the tables";
                (code::UNBOUNDED, message, help.to_owned())
            })
        }
    }
}

/// What AND joins, one by one.
fn conjuncts(expr: Expr, out: &mut Vec<Expr>) {
    match expr {
        Expr::Nested(inner) => match *inner {
            Expr::BinaryOp { op: BinaryOperator::And, .. } | Expr::Between { negated: false, .. } | Expr::Nested(_) => {
                conjuncts(*inner, out);
            }
            other => out.push(Expr::Nested(Box::new(other))),
        },
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjuncts(*left, out);
            conjuncts(*right, out);
        }
        // As two comparisons: one of them may be a bound, and the other not.
        Expr::Between { expr, negated: false, low, high } => {
            let compare = |op, right| Expr::BinaryOp { left: expr.clone(), op, right };
            out.push(compare(BinaryOperator::GtEq, low));
            out.push(compare(BinaryOperator::LtEq, high));
        }
        other => out.push(other),
    }
}

impl Names<'_> {
    fn example(&self) -> String {
        let Self { first, second } = self;
        format!(
            "write ON {first}.device = {second}.device AND {second}.ts BETWEEN {first}.ts - INTERVAL '10 seconds' AND \
             {first}.ts + INTERVAL '10 seconds'"
        )
    }

    /// Whether `expr` is that column of one of the streams; of the second: `true`.
    fn is(&self, expr: &Expr, wanted: &str) -> Option<bool> {
        match expr {
            Expr::Nested(inner) => self.is(inner, wanted),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [of, column] if name::normal(column) == wanted => match name::normal(of) {
                    of if of == self.first => Some(false),
                    of if of == self.second => Some(true),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether `expr` says that the devices are the same.
    fn devices(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Nested(inner) => self.devices(inner),
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                let of = |expr| self.is(expr, "device");
                of(left).zip(of(right)).is_some_and(|(a, b)| a != b)
            }
            _ => false,
        }
    }

    /// What `expr` says about the time between the two rows, if nothing else.
    fn bound(&self, expr: &Expr) -> Result<Option<Bound>, Wrong> {
        let (left, op, right) = match expr {
            Expr::Nested(inner) => return self.bound(inner),
            Expr::BinaryOp { left, op, right } => (left, op, right),
            _ => return Ok(None),
        };
        let mut wrong = None;
        let sides = self.sum(left, &mut wrong).zip(self.sum(right, &mut wrong));
        let Some(difference) = sides.and_then(|(left, right)| left.plus(right, -1)) else { return Ok(None) };
        // The comparison is `difference op 0`: of d itself, or turned round.
        let (op, limit) = match (difference.first, difference.second) {
            (-1, 1) => (op.clone(), difference.ns.checked_neg()),
            (1, -1) => (turned(op), Some(difference.ns)),
            _ => return Ok(None),
        };
        let Some(limit) = limit else { return Ok(None) };
        let open = Bound { lower_ns: i64::MIN, upper_ns: i64::MAX };
        let bound = match op {
            BinaryOperator::GtEq => Bound { lower_ns: limit, ..open },
            BinaryOperator::Gt => Bound { lower_ns: limit.saturating_add(1), ..open },
            BinaryOperator::LtEq => Bound { upper_ns: limit, ..open },
            BinaryOperator::Lt => Bound { upper_ns: limit.saturating_sub(1), ..open },
            BinaryOperator::Eq => Bound { lower_ns: limit, upper_ns: limit },
            _ => return Ok(None),
        };
        match wrong {
            Some(wrong) => Err(wrong),
            None => Ok(Some(bound)),
        }
    }

    fn sum(&self, expr: &Expr, wrong: &mut Option<Wrong>) -> Option<Sum> {
        match expr {
            Expr::Nested(inner) => self.sum(inner, wrong),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Sum::default().plus(self.sum(expr, wrong)?, -1),
            Expr::UnaryOp { op: UnaryOperator::Plus, expr } => self.sum(expr, wrong),
            Expr::BinaryOp { left, op: BinaryOperator::Plus, right } => {
                self.sum(left, wrong)?.plus(self.sum(right, wrong)?, 1)
            }
            Expr::BinaryOp { left, op: BinaryOperator::Minus, right } => {
                self.sum(left, wrong)?.plus(self.sum(right, wrong)?, -1)
            }
            Expr::Interval(_) => {
                let (text, unit) = window::literal(expr)?;
                let ns = interval::parse(&text, unit.as_deref()).unwrap_or_else(|error| {
                    let (message, help) = error.explain(&text);
                    *wrong = Some(Wrong { span: expr.span().into(), message, help });
                    0
                });
                Some(Sum { ns, ..Sum::default() })
            }
            _ => match self.is(expr, "ts")? {
                false => Some(Sum { first: 1, ..Sum::default() }),
                true => Some(Sum { second: 1, ..Sum::default() }),
            },
        }
    }
}

fn turned(op: &BinaryOperator) -> BinaryOperator {
    match op {
        BinaryOperator::GtEq => BinaryOperator::LtEq,
        BinaryOperator::Gt => BinaryOperator::Lt,
        BinaryOperator::LtEq => BinaryOperator::GtEq,
        BinaryOperator::Lt => BinaryOperator::Gt,
        other => other.clone(),
    }
}

/// Conditions, by where they are looked at.
#[derive(Default)]
pub(crate) struct Placed {
    first: Option<Expr>,
    second: Option<Expr>,
    both: Option<Expr>,
}

impl Second {
    /// Takes from WHERE and ON what can be looked at earlier. `columns`: all names that the query may use.
    pub(crate) fn place(&self, select: &mut Select, columns: &[String]) -> Placed {
        let mut placed = Placed::default();
        let mut parts = Vec::new();
        if let Some(condition) = select.selection.take() {
            conjuncts(condition, &mut parts);
        }
        let add = |to: &mut Option<Expr>, part| *to = both(to.take(), part);
        for part in parts {
            match self.sides(&part, columns) {
                (true, false) => add(&mut placed.first, part),
                // A row without a match is one, too: it has yet to be seen whether there is one.
                (false, true) if !self.outer => add(&mut placed.second, part),
                _ => add(&mut select.selection, part),
            }
        }
        for part in self.conditions.iter().cloned() {
            match (self.sides(&part, columns), self.outer) {
                ((false, true), _) => add(&mut placed.second, part),
                ((true, false), false) => add(&mut placed.first, part),
                (_, false) => add(&mut select.selection, part),
                (_, true) => add(&mut placed.both, part),
            }
        }
        placed
    }

    /// Whether `expr` reads columns of the first stream's rows, and of the second's.
    fn sides(&self, expr: &Expr, columns: &[String]) -> (bool, bool) {
        struct Find<'a>(&'a Second, &'a [String], bool, bool);
        impl Visitor for Find<'_> {
            type Break = ();
            fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
                match expr {
                    Expr::Identifier(ident) if self.0.names.contains(&name::normal(ident)) => self.3 = true,
                    Expr::Identifier(ident) => {
                        let column = name::normal(ident);
                        // Of a table that the first stream's rows are looked up in, or of these themselves; else the
                        // argument of a function that stands in the expression.
                        self.2 |= self.1.contains(&column) || column.contains('.');
                    }
                    Expr::CompoundIdentifier(_) => self.2 = true,
                    _ => {}
                }
                ControlFlow::Continue(())
            }
        }
        let mut find = Find(self, columns, false, false);
        let _: ControlFlow<()> = expr.visit(&mut find);
        (find.2, find.3)
    }

    /// Plans what was placed.
    pub(crate) fn plan(
        &self,
        placed: Placed,
        planner: &Planner<'_>,
        query: &Query,
        select: &Select,
    ) -> Result<StreamJoin, DataFusionError> {
        let plan = |condition: Option<Expr>| -> Result<Option<LogicalPlan>, DataFusionError> {
            let Some(expr) = condition else { return Ok(None) };
            let mut select = select.clone();
            select.projection = vec![SelectItem::ExprWithAlias { expr, alias: Ident::new("holds") }];
            (select.selection, select.having) = (None, None);
            select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
            let logical = planner.logical(query, &select)?;
            planner.physical(&planner.optimized(&logical)?)?;
            Ok(Some(logical))
        };
        Ok(StreamJoin {
            source: self.table.clone(),
            schema: self.schema.clone(),
            lower_ns: self.lower_ns,
            upper_ns: self.upper_ns,
            outer: self.outer,
            columns: self.columns.clone(),
            lookups: self.lookups.clone(),
            first_filter: plan(placed.first)?,
            second_filter: plan(placed.second)?,
            condition: plan(placed.both)?,
        })
    }

    /// Everything about it that its results depend on.
    pub(crate) fn print(&self, print: &mut Fingerprint) {
        print.text("streams").text(&self.table).text(if self.outer { "left" } else { "inner" });
        print.number(self.lower_ns).number(self.upper_ns);
        for condition in &self.conditions {
            print.text(&condition.to_string());
        }
        for (name, column) in &self.columns {
            print.text(name);
            if let Ok(field) = self.schema.field_with_name(column) {
                print.text(&field.data_type().to_string());
                print.text(field.metadata().get("unit").map_or("", String::as_str));
            }
        }
    }
}

fn both(one: Option<Expr>, other: Expr) -> Option<Expr> {
    Some(match one {
        Some(one) => and(one, Expr::Nested(Box::new(other))),
        None => other,
    })
}

impl StreamJoin {
    /// How much later than a row of the first stream a row may come that is joined to it, in nanoseconds of the
    /// device's time.
    pub fn after_ns(&self) -> i64 {
        self.upper_ns.max(0)
    }

    /// How far apart in time two joined rows may be, in nanoseconds.
    pub fn span_ns(&self) -> i64 {
        self.upper_ns.max(self.lower_ns.saturating_neg()).max(0)
    }

    /// All plans of conditions.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = &LogicalPlan> {
        [&self.first_filter, &self.second_filter, &self.condition].into_iter().flatten()
    }
}
