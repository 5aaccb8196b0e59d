//! How long a query may be: expressions, set operations and joins become trees that are walked recursively, so more
//! of them in a row than this could end the stack of whoever walks them, and with it the process.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// Operators in a row, and joins and set operations in all.
const MOST: usize = 250;

/// What is too long about a query, if anything is.
pub(crate) struct TooLong<'a> {
    /// Where it became too long.
    pub(crate) token: &'a TokenWithSpan,
    pub(crate) message: String,
    pub(crate) help: &'static str,
}

/// Says what about a query would end the stack of whoever plans it. `None`: nothing, or it is no SQL at all, which
/// the parser will say better.
pub fn too_long(query: &str) -> Option<String> {
    let tokens = Tokenizer::new(&GenericDialect {}, query).tokenize_with_location().ok()?;
    let found = look(&tokens)?;
    let at = found.token.span.start;
    Some(format!("{} at line {}, column {}: {}", found.message, at.line, at.column, found.help))
}

/// How deep the trees between two parentheses are.
#[derive(Default, Clone, Copy)]
struct Level {
    /// Operators of the expression at hand.
    operators: usize,
    /// The deepest parentheses in it.
    inside: usize,
    /// The deepest expression before it.
    before: usize,
}

impl Level {
    fn deepest(self) -> usize {
        self.before.max(self.operators + self.inside)
    }
}

/// Looks through the tokens of one statement.
pub(crate) fn look(tokens: &[TokenWithSpan]) -> Option<TooLong<'_>> {
    let mut levels = vec![Level::default()];
    let mut relations = 0;
    for token in tokens {
        let depth = levels.len();
        let here = levels.last_mut()?;
        let next = |here: &mut Level| *here = Level { before: here.deepest(), ..Level::default() };
        match &token.token {
            Token::LParen => levels.push(Level::default()),
            Token::RParen if depth > 1 => {
                let inside = here.deepest();
                levels.pop();
                let outer = levels.last_mut()?;
                outer.inside = outer.inside.max(inside);
            }
            Token::Comma => next(here),
            Token::Word(w) if w.quote_style.is_none() => match w.value.to_ascii_uppercase().as_str() {
                "AND" | "OR" | "NOT" | "IS" | "LIKE" | "BETWEEN" | "IN" => here.operators += 1,
                "UNION" | "EXCEPT" | "INTERSECT" | "MINUS" | "JOIN" => relations += 1,
                "SELECT" | "FROM" | "WHERE" | "GROUP" | "HAVING" | "WHEN" | "THEN" | "ELSE" => next(here),
                _ => {}
            },
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Period | Token::Whitespace(_) => {}
            _ => here.operators += 1,
        }
        if levels.last()?.deepest() > MOST {
            let message = format!("an expression of more than {MOST} operators in a row");
            let help = "use IN (..) for a list of values, or put parts of it in parentheses";
            return Some(TooLong { token, message, help });
        }
        if relations > MOST {
            let message = format!("more than {MOST} joins and set operations in one query");
            return Some(TooLong { token, message, help: "make several queries of it" });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_in_itself_is_taken_and_what_is_deep_is_not() {
        let check = |query: String, expected: Option<&str>| {
            let found = too_long(&query);
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
        };
        check(format!("SELECT 1{}", " + 1".repeat(250)), None);
        check(format!("SELECT 1{}", " + 1".repeat(251)), Some("250 operators in a row at line 1, column "));
        check(format!("SELECT 1 WHERE true{}", " OR true".repeat(251)), Some("operators in a row"));
        check(format!("SELECT {}true", "NOT ".repeat(251)), Some("operators in a row"));
        check(format!("SELECT 1 WHERE 1 IN (1{})", ", 1".repeat(100_000)), None);
        check(format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(251)), Some("set operations"));
        check(format!("SELECT 1 FROM t{}", " JOIN t USING (a)".repeat(251)), Some("joins"));
        let group = format!("(a = 1{})", " AND b = 2".repeat(60));
        check(format!("SELECT 1 FROM t WHERE {group}{}", format!(" OR {group}").repeat(60)), None);
        check(format!("SELECT {}1{}", "(".repeat(9), " + 1 + 1 + 1)".repeat(9)), None);
        check(format!("SELECT {}1{}", "(".repeat(90), " + 1 + 1 + 1)".repeat(90)), Some("operators in a row"));
        check("'".to_owned(), None);
    }
}
