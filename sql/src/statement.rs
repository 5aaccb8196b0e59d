//! Cuts a file into statements and reads their heads.
//!
//! The heads are ours; column types and queries are read by sqlparser from the same tokens, so every position is
//! one in the file. A statement that cannot be read costs only itself: reading goes on behind its `;`, or at the
//! next line that begins with `CREATE` when the `;` is missing.

use datafusion::sql::sqlparser::ast::{DataType, Ident, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{self as sp, Token, TokenWithSpan, Tokenizer};

use crate::cursor::Cursor;
use crate::diagnostic::{Diagnostic, Position, Span, code};
use crate::option::Setting;
use crate::source::SourceFile;
use crate::{alert, bounds, cursor, name};

/// One statement of a file.
pub(crate) struct Statement {
    /// Its name, if it was read that far.
    pub(crate) name: Option<Ident>,
    /// What it says. `Unreadable` has been complained about.
    pub(crate) head: Head,
}

/// What a statement says.
pub(crate) enum Head {
    Stream(StreamHead),
    Table(StreamHead),
    Pipeline(Box<PipelineHead>),
    Alert(Box<alert::AlertHead>),
    Unreadable,
}

/// `CREATE STREAM` and `CREATE TABLE`.
pub(crate) struct StreamHead {
    pub(crate) columns: Vec<ColumnHead>,
    pub(crate) comment: Option<String>,
    pub(crate) options: Vec<Setting>,
}

/// One column of a stream or table.
pub(crate) struct ColumnHead {
    pub(crate) name: Ident,
    pub(crate) kind: DataType,
    pub(crate) kind_span: Span,
    pub(crate) options: Vec<Setting>,
    pub(crate) comment: Option<String>,
    /// `NOT NULL` and its like.
    pub(crate) constraint: Option<(String, Span)>,
}

/// `CREATE PIPELINE`.
pub(crate) struct PipelineHead {
    pub(crate) comment: Option<String>,
    pub(crate) options: Vec<Setting>,
    pub(crate) query: Box<Query>,
    /// The tokens of the query.
    pub(crate) tokens: Vec<TokenWithSpan>,
}

/// All statements of a file; what cannot be read goes to `found`.
pub(crate) fn read(file: &SourceFile, found: &mut Vec<Diagnostic>) -> Vec<Statement> {
    let text = file.text.strip_prefix('\u{feff}').unwrap_or(&file.text);
    let mut tokens = Vec::new();
    let ended = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location_into_buf(&mut tokens);
    tokens.retain(|t| !matches!(t.token, Token::Whitespace(_)));
    if let Err(error) = &ended {
        found.push(cannot_cut(&file.name, text, error));
        // What stands before the last `;` is sound; the statement with the mistake is not.
        let keep = tokens.iter().rposition(|t| t.token == Token::SemiColon).map_or(0, |at| at + 1);
        tokens.truncate(keep);
    }
    let mut statements = Vec::new();
    for chunk in tokens.split(|t| t.token == Token::SemiColon) {
        for (index, part) in cut_at_create(chunk).into_iter().enumerate() {
            if let (true, Some(first)) = (index > 0, part.first()) {
                let message = "the statement before this one has no end";
                found.push(
                    Diagnostic::error(code::SYNTAX, &file.name, first.span.into(), message)
                        .help("put `;` between two statements"),
                );
            }
            if !part.is_empty() {
                statements.push(statement(&file.name, part, found));
            }
        }
    }
    statements
}

/// Cuts before each `CREATE` that begins a line and is followed by a kind of statement.
fn cut_at_create(chunk: &[TokenWithSpan]) -> Vec<&[TokenWithSpan]> {
    let starts = |at: usize| match (at.checked_sub(1).and_then(|b| chunk.get(b)), chunk.get(at), chunk.get(at + 1)) {
        (Some(before), Some(create), Some(kind)) => {
            cursor::is_word(create, "CREATE")
                && before.span.end.line < create.span.start.line
                && cursor::KINDS.iter().any(|k| cursor::is_word(kind, k))
        }
        _ => false,
    };
    let cuts: Vec<usize> = (0..chunk.len()).filter(|at| starts(*at)).collect();
    let mut parts = Vec::new();
    let mut from = 0;
    for cut in cuts.into_iter().chain([chunk.len()]) {
        parts.push(chunk.get(from..cut).unwrap_or_default());
        from = cut;
    }
    parts
}

fn statement(file: &str, tokens: &[TokenWithSpan], found: &mut Vec<Diagnostic>) -> Statement {
    let mut statement = Statement { name: None, head: Head::Unreadable };
    if let Some(diagnostic) = too_long(file, tokens) {
        statement.name = tokens.get(2).and_then(cursor::ident);
        found.push(diagnostic);
        return statement;
    }
    let mut cursor = Cursor::new(file, tokens);
    match head(&mut cursor, &mut statement.name) {
        Ok(head) => statement.head = head,
        Err(diagnostic) => found.push(*diagnostic),
    }
    statement
}

fn head(c: &mut Cursor<'_>, name: &mut Option<Ident>) -> cursor::Read<Head> {
    if !c.word("CREATE") {
        return Err(not_a_create(c));
    }
    let kind = c.peek();
    if c.is_any(&["OR", "IF"]) {
        let message = "a pipeline file says what there is, not what to change";
        return Err(c.fail(code::STATEMENT, message).help("write CREATE STREAM or CREATE PIPELINE").into());
    }
    let known = cursor::KINDS.iter().find(|k| cursor::is_word(&kind, k));
    let Some(known) = known else {
        let message = format!("expected STREAM, TABLE, PIPELINE or ALERT, found {}", c.shown(&kind));
        let near =
            name::nearest(&kind.token.to_string(), ["stream", "table", "pipeline", "alert"]).map(|n| n.to_uppercase());
        let help = near.map_or("a pipeline file holds CREATE STREAM and CREATE PIPELINE".to_owned(), |n| {
            format!("did you mean `{n}`?")
        });
        return Err(c.fail(code::SYNTAX, message).help(help).into());
    };
    c.next();
    let span = Span { start: c.first().start, end: Span::from(kind.span).end };
    if c.is_any(&["IF"]) && matches!(*known, "STREAM" | "TABLE" | "PIPELINE" | "ALERT") {
        let message = "a pipeline file says what there is: every statement creates";
        return Err(c.fail(code::STATEMENT, message).help("leave out IF NOT EXISTS").into());
    }
    *name = Some(c.name(known)?);
    let instead = match *known {
        "STREAM" => return stream(c).map(Head::Stream),
        "TABLE" => return stream(c).map(Head::Table),
        "PIPELINE" => return pipeline(c).map(|p| Head::Pipeline(Box::new(p))),
        "ALERT" => return alert::read(c).map(|a| Head::Alert(Box::new(a))),
        _ => "write a pipeline instead, which is a table of its own",
    };
    let message = format!("this version cannot run CREATE {known} yet");
    Err(Diagnostic::error(code::NOT_YET, c.file, span, message).help(instead).into())
}

fn not_a_create(c: &Cursor<'_>) -> Box<Diagnostic> {
    let first = c.peek();
    let message = format!("expected CREATE, found {}", c.shown(&first));
    if name::nearest(&first.token.to_string(), ["create"]).is_some() {
        return c.fail(code::SYNTAX, message).help("did you mean `CREATE`?").into();
    }
    let help = if cursor::is_word(&first, "SELECT") || cursor::is_word(&first, "WITH") {
        "write CREATE PIPELINE name AS before the query"
    } else {
        "a pipeline file holds CREATE STREAM and CREATE PIPELINE"
    };
    c.fail(code::STATEMENT, message).help(help).into()
}

fn stream(c: &mut Cursor<'_>) -> cursor::Read<StreamHead> {
    let mut head = StreamHead { columns: Vec::new(), comment: None, options: Vec::new() };
    if c.token(&Token::LParen) && !c.token(&Token::RParen) {
        loop {
            head.columns.push(column(c)?);
            if c.token(&Token::RParen) {
                break;
            }
            c.need(&Token::Comma, "`,` or `)` after a column")?;
            // A comma behind the last column is a slip that hurts nobody.
            if c.token(&Token::RParen) {
                break;
            }
        }
    }
    loop {
        if c.is_any(&["COMMENT"]) && head.comment.is_none() {
            head.comment = Some(c.comment()?);
        } else if c.is_any(&["WITH"]) && head.options.is_empty() {
            c.next();
            head.options = c.settings()?;
        } else {
            break;
        }
    }
    c.end(&["COMMENT", "WITH"])?;
    Ok(head)
}

fn column(c: &mut Cursor<'_>) -> cursor::Read<ColumnHead> {
    let name = c.name("column")?;
    let (kind, kind_span) = c.data_type()?;
    let mut column = ColumnHead { name, kind, kind_span, options: Vec::new(), comment: None, constraint: None };
    loop {
        let start = c.peek();
        if c.is_any(&["OPTIONS"]) && column.options.is_empty() {
            c.next();
            column.options = c.settings()?;
        } else if c.is_any(&["COMMENT"]) && column.comment.is_none() {
            column.comment = Some(c.comment()?);
        } else if c.is_any(&["NOT", "NULL", "PRIMARY", "UNIQUE", "DEFAULT", "CHECK", "REFERENCES"]) {
            let text = c.skip_constraint();
            column.constraint = Some((text, Span { start: Span::from(start.span).start, end: c.before().end }));
        } else {
            break;
        }
    }
    let next = c.peek();
    if matches!(next.token, Token::Word(_)) {
        let message = format!(
            "expected `,`, `)`, OPTIONS or COMMENT after column `{}`, found {}",
            column.name.value,
            c.shown(&next)
        );
        let known = ["options", "comment"];
        let near =
            name::nearest(&next.token.to_string(), known).map(|n| format!("did you mean `{}`?", n.to_uppercase()));
        return Err(c.fail(code::SYNTAX, message).maybe_help(near).into());
    }
    Ok(column)
}

fn pipeline(c: &mut Cursor<'_>) -> cursor::Read<PipelineHead> {
    let (mut comment, mut options) = (None, Vec::new());
    loop {
        if c.word("AS") {
            break;
        } else if c.is_any(&["COMMENT"]) && comment.is_none() {
            comment = Some(c.comment()?);
        } else if c.is_any(&["WITH"]) && options.is_empty() {
            c.next();
            options = c.settings()?;
        } else {
            let next = c.peek();
            let message = format!("expected COMMENT, WITH or AS, found {}", c.shown(&next));
            let help = if cursor::is_word(&next, "SELECT") {
                Some("write AS before SELECT".to_owned())
            } else {
                name::nearest(&next.token.to_string(), ["comment", "with"])
                    .map(|n| format!("did you mean `{}`?", n.to_uppercase()))
            };
            return Err(c.fail(code::SYNTAX, message).maybe_help(help).into());
        }
    }
    let tokens = c.rest().to_vec();
    let query = c.query()?;
    c.end(&["WHERE", "GROUP", "HAVING"])?;
    Ok(PipelineHead { comment, options, query, tokens })
}

/// Refuses what would end the stack of whoever walks the expressions.
fn too_long(file: &str, tokens: &[TokenWithSpan]) -> Option<Diagnostic> {
    let found = bounds::look(tokens)?;
    Some(Diagnostic::error(code::TOO_LARGE, file, found.token.span.into(), found.message).help(found.help))
}

fn cannot_cut(file: &str, text: &str, error: &sp::TokenizerError) -> Diagnostic {
    let at = Position { line: error.location.line.max(1) as usize, column: error.location.column.max(1) as usize };
    let span = Span { start: at, end: Position { column: at.column + 1, ..at } };
    let message = error.message.trim().trim_end_matches('.');
    let mut letters = message.chars();
    let message = letters.next().map_or(String::new(), |c| c.to_lowercase().chain(letters).collect());
    let quote = text.lines().nth(at.line - 1).and_then(|l| l.chars().nth(at.column - 1));
    let help = match quote {
        Some('\'') => Some("end the text with `'`; a quote inside a text is written twice: ''"),
        Some('"') => Some("end the name with `\"`"),
        Some('/') => Some("end the comment with `*/`"),
        _ => None,
    };
    Diagnostic::error(code::TOKEN, file, span, message).maybe_help(help.map(str::to_owned))
}
