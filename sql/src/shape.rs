//! What a query over an endless stream may look like: one SELECT from one stream, perhaps joined, without order or
//! limit.
//!
//! Everything is refused with its reason and a way out, at the word that asks for it. What stands inside the
//! expressions is not looked at here.

use datafusion::sql::sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Join, ObjectNamePart, Query, Select, SetExpr, Spanned, TableFactor, TableWithJoins,
};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::cursor::is_word;
use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;

/// The stream of a query.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Name of the stream.
    pub(crate) table: String,
    /// The name its columns may be qualified with.
    pub(crate) alias: String,
    /// Where the name stands.
    pub(crate) span: Span,
}

/// What is left of a query once everything refused is gone.
pub(crate) struct Parts<'a> {
    pub(crate) select: &'a Select,
    pub(crate) source: Source,
    /// What it is joined with.
    pub(crate) joins: Vec<(Source, &'a Join)>,
}

struct Refusals<'a> {
    file: &'a str,
    tokens: &'a [TokenWithSpan],
    found: &'a mut Vec<Diagnostic>,
}

impl Refusals<'_> {
    /// The word, outside of parentheses; else the whole query.
    fn at(&self, words: &[&str]) -> Span {
        let mut depth = 0_i32;
        for (index, token) in self.tokens.iter().enumerate() {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            if depth == 0 && words.first().is_some_and(|w| is_word(token, w)) {
                let last = self.tokens.get(index + words.len() - 1).unwrap_or(token);
                let whole = words.iter().zip(self.tokens.iter().skip(index)).all(|(w, t)| is_word(t, w));
                if whole {
                    return Span { start: Span::from(token.span).start, end: Span::from(last.span).end };
                }
            }
        }
        self.whole()
    }

    fn whole(&self) -> Span {
        let ends = self.tokens.first().zip(self.tokens.last());
        ends.map_or(Span::from(datafusion::sql::sqlparser::tokenizer::Span::empty()), |(a, b)| Span {
            start: Span::from(a.span).start,
            end: Span::from(b.span).end,
        })
    }

    fn refuse(&mut self, code: &'static str, words: &[&str], message: &str, help: &str) {
        let span = self.at(words);
        self.refuse_at(code, span, message, help);
    }

    fn refuse_at(&mut self, code: &'static str, span: Span, message: &str, help: &str) {
        self.found.push(Diagnostic::error(code, self.file, span, message).help(help));
    }
}

/// Takes a query apart. `None` if what is left cannot be looked at any further.
pub(crate) fn take_apart<'a>(
    file: &str,
    query: &'a Query,
    tokens: &[TokenWithSpan],
    found: &mut Vec<Diagnostic>,
) -> Option<Parts<'a>> {
    let mut r = Refusals { file, tokens, found };
    if query.with.is_some() {
        let help = "write the query over the stream itself";
        r.refuse(code::SUBQUERY, &["WITH"], "a pipeline is one SELECT, without WITH queries", help);
    }
    ending(&mut r, query);
    let select = match query.body.as_ref() {
        SetExpr::Select(select) => select.as_ref(),
        SetExpr::Query(inner) => return take_apart(file, inner, tokens, r.found),
        SetExpr::SetOperation { op, .. } => {
            let word = op.to_string();
            let message = format!("a pipeline is one SELECT, without {word}");
            r.refuse(
                code::SOURCES,
                &[&word],
                &message,
                "write a pipeline for each SELECT; query their tables together",
            );
            return None;
        }
        _ => {
            let span = r.whole();
            r.refuse_at(code::STATEMENT, span, "a pipeline is a SELECT", "write CREATE PIPELINE name AS SELECT ...");
            return None;
        }
    };
    clauses(&mut r, select);
    groups(&mut r, select);
    let (source, joins) = sources(&mut r, select)?;
    Some(Parts { select, source, joins })
}

fn ending(r: &mut Refusals<'_>, query: &Query) {
    let unbounded = |what: &str| format!("{what} has no meaning over a stream: it never ends");
    if query.order_by.is_some() {
        let help = "leave it out: files are sorted by device and time; order when you query the table";
        r.refuse(code::UNBOUNDED, &["ORDER", "BY"], &unbounded("ORDER BY"), help);
    }
    for (word, given) in [("LIMIT", query.limit_clause.is_some()), ("FETCH", query.fetch.is_some())] {
        let word = if word == "LIMIT" && r.at(&[word]) == r.whole() { "OFFSET" } else { word };
        if given {
            let help = "leave it out; filter with WHERE or HAVING, or limit when you query the table";
            r.refuse(code::UNBOUNDED, &[word], &unbounded(word), help);
        }
    }
    let more = !query.locks.is_empty()
        || query.for_clause.is_some()
        || query.settings.is_some()
        || query.format_clause.is_some()
        || !query.pipe_operators.is_empty();
    if more {
        let span = r.tokens.last().map_or(r.whole(), |t| t.span.into());
        r.refuse_at(code::STATEMENT, span, "this clause has no meaning in a pipeline", "leave it out");
    }
}

fn clauses(r: &mut Refusals<'_>, select: &Select) {
    match &select.distinct {
        Some(Distinct::Distinct | Distinct::On(_)) => {
            let help =
                "leave it out: the rows of a window are already one for each group; without a window, add GROUP BY";
            r.refuse(code::UNBOUNDED, &["DISTINCT"], "DISTINCT would have to remember every row of the stream", help);
        }
        Some(Distinct::All) | None => {}
    }
    let odd = [
        ("TOP", select.top.is_some()),
        ("INTO", select.into.is_some()),
        ("LATERAL", !select.lateral_views.is_empty()),
        ("PREWHERE", select.prewhere.is_some()),
        ("CONNECT", !select.connect_by.is_empty()),
        ("CLUSTER", !select.cluster_by.is_empty()),
        ("DISTRIBUTE", !select.distribute_by.is_empty()),
        ("SORT", !select.sort_by.is_empty()),
        ("AS", select.value_table_mode.is_some()),
        ("EXCLUDE", select.exclude.is_some()),
    ];
    for (word, given) in odd {
        if given {
            r.refuse(code::STATEMENT, &[word], &format!("{word} has no meaning in a pipeline"), "leave it out");
        }
    }
    for (word, given) in [("QUALIFY", select.qualify.is_some()), ("WINDOW", !select.named_window.is_empty())] {
        if given {
            let help = "group by device and tumble(ts, INTERVAL '1 minute') instead";
            r.refuse(
                code::UNBOUNDED,
                &[word],
                &format!("{word} needs window functions, which streams do not have"),
                help,
            );
        }
    }
}

fn groups(r: &mut Refusals<'_>, select: &Select) {
    let (exprs, modifiers): (&[Expr], _) = match &select.group_by {
        GroupByExpr::Expressions(exprs, modifiers) => (exprs, modifiers),
        GroupByExpr::All(modifiers) => {
            let help = "name the groups, as in GROUP BY device, window_start";
            r.refuse(code::GROUPING, &["GROUP", "BY", "ALL"], "GROUP BY ALL leaves the groups unsaid", help);
            (&[], modifiers)
        }
    };
    let sets = exprs.iter().find(|e| matches!(e, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_)));
    if sets.is_some() || !modifiers.is_empty() {
        let span = sets.map_or_else(|| r.at(&["GROUP", "BY"]), |e| word_of(r, e));
        let help = "write one pipeline for each set of groups";
        r.refuse_at(code::GROUPING, span, "a pipeline has one set of groups", help);
    }
}

/// Grouping sets have no span of their own.
fn word_of(r: &Refusals<'_>, expr: &Expr) -> Span {
    match expr {
        Expr::Rollup(_) => r.at(&["ROLLUP"]),
        Expr::Cube(_) => r.at(&["CUBE"]),
        _ => r.at(&["GROUPING", "SETS"]),
    }
}

fn sources<'a>(r: &mut Refusals<'_>, select: &'a Select) -> Option<(Source, Vec<(Source, &'a Join)>)> {
    let first = match select.from.as_slice() {
        [] => {
            let span = r.at(&["SELECT"]);
            r.refuse_at(code::SOURCES, span, "this query reads nothing", "add FROM and the name of a stream");
            return None;
        }
        [one] => one,
        [one, second, ..] => {
            let help = "read one stream; join with other data when you query the tables";
            r.refuse_at(code::SOURCES, second.relation.span().into(), "a pipeline reads one stream", help);
            one
        }
    };
    let TableWithJoins { relation, joins } = first;
    let source = source(r, relation)?;
    let joins = joins.iter().map(|join| Some((self::source(r, &join.relation)?, join))).collect::<Option<Vec<_>>>()?;
    // Listed sources are refused already; looking for their columns would only add noise.
    (select.from.len() == 1).then_some((source, joins))
}

fn source(r: &mut Refusals<'_>, relation: &TableFactor) -> Option<Source> {
    let TableFactor::Table {
        name,
        alias,
        args,
        with_hints,
        version,
        with_ordinality,
        partitions,
        json_path,
        sample,
        index_hints,
    } = relation
    else {
        let span = relation.span().into();
        r.refuse_at(code::SUBQUERY, span, "a pipeline reads a stream, not a query", "name the stream after FROM");
        return None;
    };
    let span = Span::from(name.span());
    let odd = args.is_some()
        || !with_hints.is_empty()
        || version.is_some()
        || *with_ordinality
        || !partitions.is_empty()
        || json_path.is_some()
        || sample.is_some()
        || !index_hints.is_empty()
        || alias.as_ref().is_some_and(|a| !a.columns.is_empty());
    let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else {
        let message = format!("there is no stream `{name}`");
        r.refuse_at(code::UNKNOWN_TABLE, span, &message, "a stream has a name without dots");
        return None;
    };
    if odd {
        let help = "write FROM and the name of the stream, nothing else";
        r.refuse_at(code::STATEMENT, span, "a stream has neither arguments, samples, versions nor column names", help);
        return None;
    }
    let table = name::normal(ident);
    let alias = alias.as_ref().map_or_else(|| table.clone(), |a| name::normal(&a.name));
    Some(Source { table, alias, span })
}
