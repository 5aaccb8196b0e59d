//! A place in the tokens of one statement: sqlparser's parser, with errors that carry the place and a way out.

use datafusion::sql::sqlparser::ast::{DataType, Expr, Ident, Query};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::diagnostic::{Diagnostic, Span, code};
use crate::name;
use crate::option::{Literal, Setting};

/// What may follow `CREATE`, now or in a later version.
pub(crate) const KINDS: [&str; 5] = ["STREAM", "PIPELINE", "TABLE", "ALERT", "ROLLUP"];

/// Words that slips of the pen are compared with.
const CLAUSES: [&str; 22] = [
    "select", "from", "where", "group", "having", "comment", "options", "interval", "filter", "distinct", "case",
    "when", "then", "else", "between", "like", "with", "null", "cast", "within", "clear", "severity",
];

/// Words that may follow a length of time.
const FOLLOWS: [&str; 7] = ["when", "for", "clear", "severity", "comment", "with", "interval"];

static DIALECT: GenericDialect = GenericDialect {};

/// Boxed, because a diagnostic is large and success is common.
pub(crate) type Read<T> = Result<T, Box<Diagnostic>>;

/// Whether `token` is that word, unquoted, in any case.
pub(crate) fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// The token as a name.
pub(crate) fn ident(token: &TokenWithSpan) -> Option<Ident> {
    match &token.token {
        Token::Word(w) => Some(w.clone().into_ident(token.span)),
        _ => None,
    }
}

/// Reads the tokens of one statement.
pub(crate) struct Cursor<'a> {
    pub(crate) file: &'a str,
    tokens: &'a [TokenWithSpan],
    parser: Parser<'a>,
    end: Span,
}

impl<'a> Cursor<'a> {
    /// `tokens` without white space.
    pub(crate) fn new(file: &'a str, tokens: &'a [TokenWithSpan]) -> Self {
        let last = tokens.last().map_or_else(|| TokenWithSpan::new_eof().span, |t| t.span);
        let mut own: Vec<TokenWithSpan> = tokens.to_vec();
        for token in &mut own {
            // Names are lower case from here on, so that one query has one text.
            if let Token::Word(w) = &mut token.token
                && w.quote_style.is_none()
            {
                w.value = w.value.to_lowercase();
            }
        }
        own.push(TokenWithSpan::new(Token::EOF, last.end.span_to(last.end)));
        let end = Span::from(last.end.span_to(last.end));
        Self { file, tokens, parser: Parser::new(&DIALECT).with_tokens_with_locations(own), end }
    }

    /// The next token, as it is written.
    pub(crate) fn peek(&self) -> TokenWithSpan {
        self.parser.peek_token()
    }

    pub(crate) fn next(&mut self) {
        self.parser.next_token();
    }

    /// The tokens that are not read yet.
    pub(crate) fn rest(&self) -> &'a [TokenWithSpan] {
        self.tokens.get(self.parser.index()..).unwrap_or_default()
    }

    /// Where the statement begins.
    pub(crate) fn first(&self) -> Span {
        self.tokens.first().map_or(self.end, |t| t.span.into())
    }

    /// Where the last token that was read stands.
    pub(crate) fn before(&self) -> Span {
        let before = self.parser.index().checked_sub(1).and_then(|at| self.tokens.get(at));
        before.map_or(self.end, |t| t.span.into())
    }

    pub(crate) fn is_any(&self, words: &[&str]) -> bool {
        let next = self.peek();
        words.iter().any(|w| is_word(&next, w))
    }

    pub(crate) fn word(&mut self, word: &str) -> bool {
        let found = self.is_any(&[word]);
        if found {
            self.next();
        }
        found
    }

    pub(crate) fn token(&mut self, token: &Token) -> bool {
        self.parser.consume_token(token)
    }

    pub(crate) fn need(&mut self, token: &Token, what: &str) -> Read<()> {
        if self.token(token) {
            return Ok(());
        }
        let next = self.peek();
        Err(self.fail(code::SYNTAX, format!("expected {what}, found {}", self.shown(&next))).into())
    }

    /// A diagnostic at the next token.
    pub(crate) fn fail(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, self.file, self.peek().span.into(), message)
    }

    /// The token as the file writes it.
    pub(crate) fn shown(&self, token: &TokenWithSpan) -> String {
        match &token.token {
            Token::EOF => "the end of the statement".to_owned(),
            _ => {
                let written = self.tokens.iter().find(|t| t.span == token.span).unwrap_or(token);
                format!("`{}`", written.token)
            }
        }
    }

    /// A name for a `what`.
    pub(crate) fn name(&mut self, what: &str) -> Read<Ident> {
        let next = self.peek();
        let Some(ident) = ident(&next) else {
            let message = format!("expected a name for the {}, found {}", what.to_lowercase(), self.shown(&next));
            return Err(self.fail(code::SYNTAX, message).into());
        };
        self.next();
        Ok(ident)
    }

    /// The end of the statement; `clauses` could have followed.
    pub(crate) fn end(&mut self, clauses: &[&str]) -> Read<()> {
        let next = self.peek();
        if next.token == Token::EOF {
            return Ok(());
        }
        let message = format!("expected the end of the statement (`;`), found {}", self.shown(&next));
        let mut diagnostic = self.fail(code::SYNTAX, message);
        if clauses.iter().any(|c| is_word(&next, c)) {
            diagnostic = diagnostic.help(format!("{} has a place further up, and only once", self.shown(&next)));
        }
        Err(self.slip(diagnostic).into())
    }

    /// `COMMENT 'text'`.
    pub(crate) fn comment(&mut self) -> Read<String> {
        self.next();
        match self.literal()? {
            (Literal::Text(text), _) => Ok(text),
            (_, span) => {
                let message = "a comment is a text";
                Err(Diagnostic::error(code::SYNTAX, self.file, span, message).help("write COMMENT 'text'").into())
            }
        }
    }

    /// `( name = value, .. )`.
    pub(crate) fn settings(&mut self) -> Read<Vec<Setting>> {
        let mut settings = Vec::new();
        self.need(&Token::LParen, "`(`")?;
        loop {
            let ident = self.name("option")?;
            let name_span = self.before();
            self.need(&Token::Eq, "`=` after the name of an option")?;
            let (value, span) = self.literal()?;
            settings.push(Setting { name: name::normal(&ident), name_span, value, span });
            if self.token(&Token::RParen) {
                return Ok(settings);
            }
            self.need(&Token::Comma, "`,` or `)` after an option")?;
        }
    }

    /// A literal value, and where it stands.
    pub(crate) fn literal(&mut self) -> Read<(Literal, Span)> {
        let start = self.peek();
        let minus = self.token(&Token::Minus);
        let next = self.peek();
        let value = match &next.token {
            Token::Number(digits, _) => Literal::Number(if minus { format!("-{digits}") } else { digits.clone() }),
            Token::SingleQuotedString(text) if !minus => Literal::Text(text.clone()),
            Token::Word(w) if !minus && w.keyword == Keyword::INTERVAL => {
                self.next();
                self.interval()?
            }
            Token::Word(w) if !minus && w.quote_style.is_none() => Literal::Word(w.value.clone()),
            Token::Word(w) if !minus => {
                let message = format!("expected a value, found {}", self.shown(&next));
                let help = format!("text is written in single quotes: '{}'", w.value);
                return Err(self.fail(code::SYNTAX, message).help(help).into());
            }
            _ => {
                let message = format!("expected a value, found {}", self.shown(&next));
                let help = "a value is a number, a 'text' or INTERVAL '30 seconds'";
                return Err(self.fail(code::SYNTAX, message).help(help).into());
            }
        };
        if !matches!(value, Literal::Interval(..)) {
            self.next();
        }
        Ok((value, Span { start: Span::from(start.span).start, end: self.before().end }))
    }

    /// What follows `INTERVAL`: only a literal, because sqlparser's own grammar takes more than ours.
    fn interval(&mut self) -> Read<Literal> {
        let next = self.peek();
        let text = match &next.token {
            Token::SingleQuotedString(text) | Token::Number(text, _) => text.clone(),
            _ => {
                let message = format!("expected a length of time, found {}", self.shown(&next));
                return Err(self.fail(code::SYNTAX, message).help("write INTERVAL '30 seconds'").into());
            }
        };
        self.next();
        let unit = match self.peek().token {
            // What may follow a length in an alert is no unit.
            Token::Word(w) if w.quote_style.is_none() && !self.is_any(&FOLLOWS) => {
                self.next();
                Some(w.value)
            }
            _ => None,
        };
        Ok(Literal::Interval(text, unit))
    }

    /// A column type, and where it stands.
    pub(crate) fn data_type(&mut self) -> Read<(DataType, Span)> {
        let start = Span::from(self.peek().span).start;
        if matches!(self.peek().token, Token::Comma | Token::RParen | Token::EOF) {
            let message = format!("expected the type of the column, found {}", self.shown(&self.peek()));
            return Err(self.fail(code::SYNTAX, message).help("as in `temperature DOUBLE`").into());
        }
        let kind = self.parse(Parser::parse_data_type)?;
        Ok((kind, Span { start, end: self.before().end }))
    }

    /// A query.
    pub(crate) fn query(&mut self) -> Read<Box<Query>> {
        self.parse(Parser::parse_query)
    }

    /// An expression.
    pub(crate) fn expr(&mut self) -> Read<Expr> {
        self.parse(Parser::parse_expr)
    }

    /// Reads over `NOT NULL` and its like, up to what may follow a column; gives its text.
    pub(crate) fn skip_constraint(&mut self) -> String {
        let mut text = Vec::new();
        let mut depth = 0_usize;
        loop {
            let next = self.peek();
            match next.token {
                Token::EOF => break,
                Token::Comma | Token::RParen if depth == 0 => break,
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ if depth == 0 && self.is_any(&["OPTIONS", "COMMENT"]) => break,
                _ => {}
            }
            text.push(next.token.to_string().to_uppercase());
            self.next();
        }
        text.join(" ")
    }

    fn parse<T>(&mut self, read: impl FnOnce(&mut Parser<'a>) -> Result<T, ParserError>) -> Read<T> {
        read(&mut self.parser).map_err(|error| self.cannot_read(error).into())
    }

    fn cannot_read(&self, error: ParserError) -> Diagnostic {
        let text = match error {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
            ParserError::RecursionLimitExceeded => {
                return self.fail(code::TOO_LARGE, "nested too deeply").help("use fewer parentheses inside each other");
            }
        };
        // sqlparser ends its messages with the place, where it knows it.
        let (text, at) = match text.rsplit_once(" at Line: ") {
            Some((text, place)) => {
                let numbers: Vec<u64> = place.split(", Column: ").filter_map(|n| n.trim().parse().ok()).collect();
                (text.to_owned(), <[u64; 2]>::try_from(numbers).ok())
            }
            None => (text, None),
        };
        let found = at.and_then(|[line, column]| {
            self.tokens.iter().find(|t| t.span.start.line == line && t.span.start.column == column)
        });
        let span = match (found, at) {
            (Some(token), _) => token.span.into(),
            (None, Some(_)) => self.end,
            (None, None) => self.before(),
        };
        let message = match text.split_once(", found: ") {
            Some((expected, _)) => {
                let expected = expected.trim_start_matches("Expected: ");
                format!(
                    "expected {expected}, found {}",
                    found.map_or("the end of the statement".into(), |t| self.shown(t))
                )
            }
            None => lower_first(text.trim()),
        };
        self.slip(Diagnostic::error(code::SYNTAX, self.file, span, message))
    }

    /// If a word at or just before the mistake looks like a slip of a keyword, points there.
    fn slip(&self, mut diagnostic: Diagnostic) -> Diagnostic {
        let at = self.tokens.iter().position(|t| Span::from(t.span).start >= diagnostic.span().start);
        let at = at.unwrap_or(self.tokens.len());
        for index in (at.saturating_sub(2)..=at).rev() {
            let Some(token) = self.tokens.get(index) else { continue };
            let Token::Word(w) = &token.token else { continue };
            let call = matches!(
                self.tokens.get(index + 1).map(|t| &t.token),
                Some(Token::LParen | Token::Period | Token::Comma)
            );
            if w.quote_style.is_some() || w.keyword != Keyword::NoKeyword || w.value.len() < 3 || call {
                continue;
            }
            if let Some(near) = name::nearest(&w.value, CLAUSES) {
                let span = Span::from(token.span);
                (diagnostic.line, diagnostic.column, diagnostic.end) = (span.start.line, span.start.column, span.end);
                return diagnostic.help(format!("did you mean `{}`?", near.to_uppercase()));
            }
        }
        diagnostic
    }
}

/// Messages begin with a lower-case letter, unless their first word is all capitals.
pub(crate) fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    match (letters.next(), text.chars().nth(1)) {
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}
