//! What a test may say beside queries: `INSERT`, `COPY .. FROM`, `FLUSH`.

use datafusion::sql::sqlparser::ast::{CopySource, CopyTarget, Insert, ObjectName, Statement as Ast, TableObject};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::Failure;

/// A statement of a test.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// Devices publish the rows of a query.
    Insert { stream: String, columns: Vec<String>, rows: String },
    /// Devices publish what stands in a file.
    Copy { stream: String, file: String },
    /// All windows close.
    Flush,
    /// Anything else is a query, or none: the query engine will say so.
    Query,
}

/// Reads a statement.
pub(super) fn read(text: &str) -> Result<Statement, Failure> {
    let bare = text.trim().trim_end_matches(';').trim();
    if bare.eq_ignore_ascii_case("flush") {
        return Ok(Statement::Flush);
    }
    let first = bare.split_whitespace().next().unwrap_or_default().to_lowercase();
    if !["insert", "copy"].contains(&first.as_str()) {
        return Ok(Statement::Query);
    }
    if let Some(reason) = sql::too_long(text) {
        return Err(Failure::new(reason));
    }
    let mut parsed = Parser::parse_sql(&PostgreSqlDialect {}, text).map_err(Failure::new)?;
    match (parsed.pop(), parsed.is_empty()) {
        (Some(Ast::Insert(insert)), true) => of_insert(insert),
        (Some(Ast::Copy { source, to: false, target: CopyTarget::File { filename }, .. }), true) => match source {
            CopySource::Table { table_name, columns } if columns.is_empty() => {
                Ok(Statement::Copy { stream: name(&table_name)?, file: filename })
            }
            _ => Err(Failure::new("COPY takes the name of a stream, without columns: each line names its own")),
        },
        (_, false) => Err(Failure::new("one statement at a time: start a new `statement ok` for the next")),
        _ => {
            Err(Failure::new("write INSERT INTO stream (device, ts, ..) VALUES .., or COPY stream FROM 'file.ndjson'"))
        }
    }
}

fn of_insert(insert: Insert) -> Result<Statement, Failure> {
    let TableObject::TableName(table) = &insert.table else {
        return Err(Failure::new("INSERT INTO takes the name of a stream"));
    };
    let stream = name(table)?;
    if insert.columns.is_empty() {
        return Err(Failure::new(format!("name the columns: INSERT INTO {stream} (device, ts, ..) VALUES ..")));
    }
    let columns = insert.columns.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) = columns.iter().enumerate().find(|(at, column)| columns[..*at].contains(column)) {
        return Err(Failure::new(format!("column `{}` is named twice", twice.1)));
    }
    let Some(rows) = insert.source else {
        return Err(Failure::new("INSERT has no rows: add VALUES (..) or a SELECT"));
    };
    Ok(Statement::Insert { stream, columns, rows: rows.to_string() })
}

/// A name as DataFusion takes it: lower case unless it is quoted.
fn name(of: &ObjectName) -> Result<String, Failure> {
    match of.0.as_slice() {
        [part] => match part.as_ident() {
            Some(ident) if ident.quote_style.is_some() => Ok(ident.value.clone()),
            Some(ident) => Ok(ident.value.to_lowercase()),
            None => Err(Failure::new(format!("`{of}` is no plain name"))),
        },
        _ => Err(Failure::new(format!("`{of}` has several parts, a plain name is wanted"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_from_queries() {
        let insert = read("INSERT INTO Telemetry (device, \"Ts\") VALUES ('a', 1), ('b', 2)").unwrap();
        let columns = vec!["device".to_owned(), "Ts".to_owned()];
        let rows = "VALUES ('a', 1), ('b', 2)".to_owned();
        assert_eq!(insert, Statement::Insert { stream: "telemetry".to_owned(), columns, rows });
        let copy = Statement::Copy { stream: "telemetry".to_owned(), file: "a b.ndjson".to_owned() };
        assert_eq!(read("copy telemetry from 'a b.ndjson';").unwrap(), copy);
        assert_eq!(read(" Flush ; ").unwrap(), Statement::Flush);
        assert_eq!(read("SELECT 1").unwrap(), Statement::Query);
        for (text, says) in [
            ("INSERT INTO telemetry VALUES (1)", "name the columns"),
            ("INSERT INTO a.b (device) VALUES (1)", "several parts"),
            ("INSERT INTO t (device, device) VALUES (1, 2)", "named twice"),
            ("INSERT INTO t (device) VALUES (1); SELECT 1", "one statement at a time"),
            ("COPY t TO 'x'", "write INSERT INTO"),
            ("COPY t (a) FROM 'x'", "without columns"),
            ("INSERT banana", "Expected: SELECT, VALUES"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
