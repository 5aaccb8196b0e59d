//! `WITH (rollup = '1 minute, 1 hour, 1 day')`: one query, a table for each length of window.
//!
//! `tumble(ts, rollup)` stands for the window of each length in turn, and each is a pipeline of its own over the
//! stream. So a coarse window has exactly the rows of its own time and lateness, whatever its aggregates: nothing is
//! averaged twice, and a row that is late for its minute still counts in its day.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Query, VisitMut, VisitorMut,
};

use crate::diagnostic::Span;
use crate::window::length_literal;
use crate::{function, interval, name};

const EXAMPLE: &str = "write lengths and commas, as in rollup = '1 minute, 1 hour, 1 day'";

/// More tables than anybody reads.
const MOST: usize = 16;

/// Reads the lengths, in nanoseconds.
pub(crate) fn read(text: &str) -> Result<Vec<i64>, String> {
    let mut sizes = Vec::new();
    for part in text.split(',') {
        let size = interval::parse(part, None).map_err(|wrong| {
            let (message, help) = wrong.explain(part.trim());
            format!("{message}: {help}")
        })?;
        if size <= 0 || sizes.contains(&size) {
            return Err(format!("each length is positive and stands there once: {EXAMPLE}"));
        }
        sizes.push(size);
    }
    if sizes.len() > MOST { Err(format!("{MOST} lengths are the most")) } else { Ok(sizes) }
}

/// The query with the window of that length in the place of `rollup`, and where `rollup` stood first.
pub(crate) fn apply(query: &Query, size_ns: i64) -> (Query, Option<Span>) {
    let mut query = query.clone();
    let mut replace = Replace { size_ns, first: None };
    let _ = VisitMut::visit(&mut query, &mut replace);
    (query, replace.first)
}

/// Whether a table of that name may be one of the rollup `name`.
pub(crate) fn is_table_of(table: &str, name: &str) -> bool {
    let length = table.strip_prefix(name).and_then(|rest| rest.strip_prefix('_'));
    length.is_some_and(|length| length.starts_with(|c: char| c.is_ascii_digit()))
}

struct Replace {
    size_ns: i64,
    first: Option<Span>,
}

impl VisitorMut for Replace {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(call) = expr
            && function::name_of(call) == "tumble"
            && let FunctionArguments::List(list) = &mut call.args
            && let [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(length))] = list.args.as_mut_slice()
            && let Expr::Identifier(ident) = length
            && name::normal(ident) == "rollup"
        {
            self.first.get_or_insert(ident.span.into());
            *length = length_literal(self.size_ns, ident.span);
        }
        ControlFlow::Continue(())
    }
}
