//! Reads the words of `CREATE ALERT`.

use datafusion::sql::sqlparser::ast::{Expr, Ident};

use crate::cursor::{Cursor, Read, is_word};
use crate::diagnostic::{Span, code};
use crate::name;
use crate::option::Setting;

/// `CREATE ALERT`, behind its name.
pub(crate) struct AlertHead {
    /// The stream, and where its name stands.
    pub(crate) source: Ident,
    pub(crate) whens: Vec<When>,
    pub(crate) comment: Option<String>,
    pub(crate) options: Vec<Setting>,
}

/// `WHEN condition [FOR INTERVAL '..'] [CLEAR WHEN condition] [SEVERITY '..']`
pub(crate) struct When {
    pub(crate) raise: Condition,
    pub(crate) clear: Option<Condition>,
    /// `for` and `severity`, as options of this `WHEN`.
    pub(crate) options: Vec<Setting>,
}

/// A condition and where it stands.
pub(crate) struct Condition {
    pub(crate) expr: Expr,
    pub(crate) span: Span,
}

const EXAMPLE: &str = "as in CREATE ALERT hot ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 75";

/// What may follow a `WHEN`.
const CLAUSES: [&str; 6] = ["when", "for", "clear", "severity", "comment", "with"];

/// Reads from behind the name to the end of the statement.
pub(crate) fn read(c: &mut Cursor<'_>) -> Read<AlertHead> {
    if !c.word("ON") {
        let message = format!("expected ON and the stream of the alert, found {}", c.shown(&c.peek()));
        return Err(c.fail(code::SYNTAX, message).help(EXAMPLE).into());
    }
    let mut head = AlertHead { source: c.name("stream")?, whens: Vec::new(), comment: None, options: Vec::new() };
    loop {
        if c.word("WHEN") {
            let when = When { raise: condition(c, "WHEN")?, clear: None, options: Vec::new() };
            head.whens.push(when);
        } else if c.is_any(&["COMMENT"]) && head.comment.is_none() {
            head.comment = Some(c.comment()?);
        } else if c.is_any(&["WITH"]) && head.options.is_empty() {
            c.next();
            head.options = c.settings()?;
        } else if c.is_any(&["FOR", "SEVERITY", "CLEAR"])
            && let Some(when) = head.whens.last_mut()
        {
            clause(c, when)?;
        } else {
            break;
        }
    }
    if head.whens.is_empty() {
        let message = format!("expected WHEN and a condition, found {}", c.shown(&c.peek()));
        let near = name::nearest(&c.peek().token.to_string(), ["when"]).map(|_| "did you mean `WHEN`?");
        return Err(c.fail(code::SYNTAX, message).help(near.unwrap_or(EXAMPLE)).into());
    }
    let next = c.peek();
    let near = name::nearest(&next.token.to_string(), CLAUSES);
    if let (Some(near), false) = (near, CLAUSES.iter().any(|clause| is_word(&next, clause))) {
        let message = format!("expected the end of the statement (`;`), found {}", c.shown(&next));
        let help = format!("did you mean `{}`?", near.to_uppercase());
        return Err(c.fail(code::SYNTAX, message).help(help).into());
    }
    c.end(&["COMMENT", "WITH"])?;
    Ok(head)
}

/// One of the clauses of a `WHEN`.
fn clause(c: &mut Cursor<'_>, when: &mut When) -> Read<()> {
    if c.word("CLEAR") {
        let span = c.before();
        if !c.word("WHEN") {
            let message = format!("expected WHEN after CLEAR, found {}", c.shown(&c.peek()));
            return Err(c.fail(code::SYNTAX, message).help("write CLEAR WHEN and a condition").into());
        }
        let clear = condition(c, "CLEAR WHEN")?;
        if when.clear.is_some() {
            let message = "a second CLEAR for one WHEN";
            let span = Span { end: clear.span.end, ..span };
            let help = "keep one of them; OR makes one condition of two";
            let diagnostic = crate::diagnostic::Diagnostic::error(code::SYNTAX, c.file, span, message);
            return Err(diagnostic.help(help).into());
        }
        when.clear = Some(clear);
        return Ok(());
    }
    let name = if c.word("FOR") { "for" } else { "severity" };
    if name == "severity" {
        c.next();
    }
    let name_span = c.before();
    let (value, span) = c.literal()?;
    when.options.push(Setting { name: name.to_owned(), name_span, value, span });
    Ok(())
}

fn condition(c: &mut Cursor<'_>, after: &str) -> Read<Condition> {
    let start = Span::from(c.peek().span).start;
    if c.is_any(&["FOR", "CLEAR", "SEVERITY", "COMMENT", "WITH", "WHEN"]) || c.rest().is_empty() {
        let message = format!("expected a condition after {after}, found {}", c.shown(&c.peek()));
        return Err(c.fail(code::SYNTAX, message).help(EXAMPLE).into());
    }
    let expr = c.expr()?;
    Ok(Condition { expr, span: Span { start, end: c.before().end } })
}
