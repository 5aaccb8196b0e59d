//! Says in our words and at the right place what DataFusion complains about.
//!
//! DataFusion reports the first mistake only, often without a place, and sometimes as a bug of its own. So when a
//! query cannot be planned its parts are planned one by one: each mistake is found, and is known to lie in its part.

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{Expr, Query, Select, SelectItem, Spanned};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::cursor::lower_first;
use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;
use crate::plan::Planner;
use crate::window::item_expr;

/// What is known about the query that failed.
pub(crate) struct Failure<'a> {
    pub(crate) file: &'a str,
    pub(crate) tokens: &'a [TokenWithSpan],
    pub(crate) planner: &'a Planner<'a>,
    pub(crate) query: &'a Query,
    /// The query as it was planned: window and groups spelled out.
    pub(crate) select: &'a Select,
    /// Whether it groups or aggregates.
    pub(crate) grouped: bool,
}

impl Failure<'_> {
    /// Complains about `error`, in as many places as there are mistakes. Parts that overlap with what is already in
    /// `found` are left out: one mistake, one complaint.
    pub(crate) fn explain(&self, error: &DataFusionError, found: &mut Vec<Diagnostic>) {
        let before = found.len();
        self.parts(found);
        if found.len() == before {
            let whole = Span::from(self.select.select_token.0.span);
            self.push(error, whole, found);
        }
    }

    /// Complains about a condition on rows that is no part of the query as it was planned.
    pub(crate) fn condition(&self, condition: &Expr, found: &mut Vec<Diagnostic>) {
        let one = Expr::Value(datafusion::sql::sqlparser::ast::Value::Number("1".into(), false).into());
        let mut select = self.select.clone();
        select.projection = vec![SelectItem::ExprWithAlias { expr: one, alias: "one".into() }];
        (select.selection, select.having) = (Some(condition.clone()), None);
        select.group_by = datafusion::sql::sqlparser::ast::GroupByExpr::Expressions(Vec::new(), Vec::new());
        let result = self.planner.logical(self.query, &select).and_then(|p| self.planner.optimized(&p));
        if let Err(error) = result.and_then(|p| self.planner.physical(&p)) {
            self.push(&error, condition.span().into(), found);
        }
    }

    /// Plans every part alone.
    pub(crate) fn parts(&self, found: &mut Vec<Diagnostic>) {
        let known = found.clone();
        let busy = |span: Span| known.iter().any(|d| d.file == self.file && span.holds(d.span()));
        let one = Expr::Value(datafusion::sql::sqlparser::ast::Value::Number("1".into(), false).into());
        let bare = |projection: Vec<SelectItem>, grouped: bool| {
            let mut select = self.select.clone();
            (select.projection, select.selection, select.having) = (projection, None, None);
            if !grouped {
                select.group_by = datafusion::sql::sqlparser::ast::GroupByExpr::Expressions(Vec::new(), Vec::new());
            }
            select
        };
        let constant = || vec![SelectItem::ExprWithAlias { expr: one.clone(), alias: "one".into() }];
        let mut attempt = |select: Select, span: Span| {
            if busy(span) {
                return;
            }
            let result = self.planner.logical(self.query, &select).and_then(|p| self.planner.optimized(&p));
            if let Err(error) = result.and_then(|p| self.planner.physical(&p)) {
                self.push(&error, span, found);
            }
        };
        if let Some(filter) = &self.select.selection {
            let mut select = bare(constant(), false);
            select.selection = Some(filter.clone());
            attempt(select, filter.span().into());
        }
        for item in &self.select.projection {
            let span = item_expr(item).map_or_else(|| item.span(), Spanned::span);
            attempt(bare(vec![item.clone()], self.grouped), span.into());
        }
        if let Some(having) = &self.select.having {
            let mut select = bare(self.select.projection.clone(), self.grouped);
            select.having = Some(having.clone());
            let sound = self.select.projection.iter().all(|i| !busy(i.span().into()));
            if sound {
                attempt(select, having.span().into());
            }
        }
    }

    fn push(&self, error: &DataFusionError, part: Span, found: &mut Vec<Diagnostic>) {
        for error in error.iter() {
            let diagnostic = self.one(error, part);
            let twice =
                found.iter().any(|d| d.file == self.file && d.span() == diagnostic.span() && d.code == diagnostic.code);
            if !twice {
                found.push(diagnostic);
            }
        }
    }

    fn one(&self, error: &DataFusionError, part: Span) -> Diagnostic {
        let text = clean(error);
        if let Some((_, rest)) = text.split_once("duplicate unqualified field name ") {
            let call = rest.split('"').nth(1).unwrap_or("an aggregate");
            let message = format!("{call} stands here twice, with casts that the planner cannot tell apart");
            let help = "let them differ in more than a cast, as in avg(x) and avg(CAST(x AS DECIMAL(18, 3)) * 1)";
            return Diagnostic::error(code::PLAN, self.file, part, message).help(help);
        }
        let Some(own) = error.diagnostic() else {
            let span = self.call_named_in(&text, part).unwrap_or(part);
            let (message, help) = split(&text);
            return Diagnostic::error(code_of(&text), self.file, span, message).maybe_help(help);
        };
        let written: Option<Span> = own.span.map(|s| {
            let at = |l: datafusion::common::Location| {
                datafusion::sql::sqlparser::tokenizer::Location::new(l.line, l.column)
            };
            Span::from(datafusion::sql::sqlparser::tokenizer::Span::new(at(s.start), at(s.end)))
        });
        // A rewritten expression has places that are not its own; they lie in the part all the same.
        let span = written.filter(|s| part.holds(*s)).or_else(|| self.call_named_in(&text, part)).unwrap_or(part);
        let message = strip(&own.message);
        let code = code_of(&message);
        let mut diagnostic = Diagnostic::error(code, self.file, span, lower_first(&message));
        if code == code::NOT_GROUPED {
            diagnostic.message = "this column is neither grouped nor aggregated".to_owned();
            return diagnostic
                .help("add it to GROUP BY, or aggregate it: last_value(.. ORDER BY ts), avg(..), max(..)");
        }
        let help: Vec<String> = own.helps.iter().map(|h| strip(&h.message)).collect();
        if !help.is_empty() {
            diagnostic = diagnostic.help(help.join("\n"));
        }
        for note in own.notes.iter().map(|note| strip(&note.message)).filter(|note| helps(note, &message)) {
            diagnostic = diagnostic.note(note, None);
        }
        diagnostic
    }

    /// The first call, inside of `part`, of a function that the text names.
    fn call_named_in(&self, text: &str, part: Span) -> Option<Span> {
        let text = text.to_lowercase();
        let words: Vec<&str> = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        let calls = self.tokens.windows(2).filter_map(|pair| match pair {
            [TokenWithSpan { token: Token::Word(w), span }, TokenWithSpan { token: Token::LParen, .. }] => {
                Some((w.value.to_lowercase(), Span::from(*span)))
            }
            _ => None,
        });
        calls.filter(|(name, span)| part.holds(*span) && words.contains(&name.as_str())).map(|(_, span)| span).next()
    }
}

/// Whether a note is worth reading. DataFusion names the nearest function however far it is, and of several that are
/// as far any one: a name that nobody would take for a slip of the other is no help.
fn helps(note: &str, message: &str) -> bool {
    let quoted = |text: &str| text.split('\'').nth(1).map(str::to_owned);
    match (note.starts_with("Possible function"), quoted(note), quoted(message)) {
        (true, Some(possible), Some(written)) => name::nearest(&written, [possible.as_str()]).is_some(),
        _ => true,
    }
}

/// The message without what DataFusion adds for its own makers.
fn clean(error: &DataFusionError) -> String {
    let mut root = error;
    while let DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) = root {
        root = inner;
    }
    strip(&root.message())
}

fn strip(text: &str) -> String {
    let mut text = text.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default();
    for bug in [".\nThis issue was likely caused", "\nThis issue was likely caused"] {
        text = text.split(bug).next().unwrap_or_default();
    }
    let mut text = text.trim();
    for prefix in ["Error during planning: ", "Internal error: ", "Execution error: ", "Schema error: "] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    text.trim_end_matches('.').to_owned()
}

/// The first sentence is the message; what candidates there are is help.
fn split(text: &str) -> (String, Option<String>) {
    let (message, rest) = match text.split_once("No function matches") {
        Some((message, rest)) => (message, rest.split_once("Candidate functions:").map(|(_, c)| c)),
        None => match text.split_once('\n') {
            Some((message, rest)) => (message, Some(rest)),
            None => (text, None),
        },
    };
    let message = lower_first(message.trim().trim_end_matches('.'));
    let rest = rest.map(|r| r.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n"));
    (message, rest.filter(|r| !r.is_empty()))
}

fn code_of(text: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|p| text.contains(p));
    if has(&["must appear in", "must be part of an aggregate"]) {
        code::NOT_GROUPED
    } else if has(&["signature", "coerc", "cast", "Cast", "type", "arguments", "Cannot infer", "Cannot convert"]) {
        code::TYPE
    } else {
        code::PLAN
    }
}
