//! The view over all major versions of a stream: `telemetry_all` over `telemetry`, `telemetry_v2` and so on.
//!
//! Columns of one name are one column, as in `UNION ALL BY NAME`; one that a version does not have is null there, and
//! one whose types have nothing in common is text. `schema_major` tells whose row it is: units may differ.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{cast, col, lit};
use datafusion::prelude::{Expr, SessionContext, ident};
use sql::Project;

/// The column that tells a row's major version.
const MAJOR: &str = "schema_major";

/// Makes the views of a project, each over those of its tables that the session has.
pub(crate) async fn register(context: &SessionContext, project: &Project) -> Result<(), DataFusionError> {
    for (base, tables) in project.majors() {
        let mut frames = Vec::new();
        for (major, table) in tables {
            if context.table_exist(table)? {
                let frame = context.table(table).await?;
                let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
                frames.push((major, frame, schema));
            }
        }
        let Some(all) = union(frames)? else { continue };
        let name = format!("{base}_all");
        context.deregister_table(name.as_str())?;
        context.register_table(name.as_str(), all.into_view())?;
    }
    Ok(())
}

fn union(frames: Vec<(u16, DataFrame, SchemaRef)>) -> Result<Option<DataFrame>, DataFusionError> {
    // The newest version's columns first, as its readers expect them.
    let mut columns: Vec<(String, DataType)> = Vec::new();
    for (_, _, schema) in frames.iter().rev() {
        for field in schema.fields() {
            match columns.iter_mut().find(|(name, _)| name == field.name()) {
                Some((_, kind)) => *kind = common(kind, field.data_type()),
                None => columns.push((field.name().clone(), field.data_type().clone())),
            }
        }
    }
    let mut all: Option<DataFrame> = None;
    for (major, frame, schema) in frames {
        let mut items: Vec<Expr> = vec![lit(major).alias(MAJOR)];
        for (name, kind) in &columns {
            let item = match schema.field_with_name(name) {
                Ok(field) if field.data_type() == kind => ident(name),
                Ok(_) => cast(ident(name), kind.clone()).alias(name),
                Err(_) => lit(ScalarValue::try_from(kind)?).alias(name),
            };
            items.push(item);
        }
        let frame = frame.select(items)?;
        all = Some(match all {
            Some(all) => all.union(frame)?,
            None => frame,
        });
    }
    // The plan of a union would call a column by the table of its first input.
    let Some(all) = all else { return Ok(None) };
    let names: Vec<Expr> = all.schema().fields().iter().map(|field| col(ident_of(field.name()))).collect();
    all.select(names).map(Some)
}

fn ident_of(name: &str) -> datafusion::common::Column {
    datafusion::common::Column::from_name(name)
}

/// The type that holds the values of both.
fn common(a: &DataType, b: &DataType) -> DataType {
    match a {
        _ if a == b => a.clone(),
        _ if a.is_integer() && b.is_integer() => DataType::Int64,
        _ if a.is_numeric() && b.is_numeric() => DataType::Float64,
        _ => DataType::Utf8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
    use sql::SourceFile;

    #[tokio::test]
    async fn rows_of_all_versions_stand_in_one_view() {
        let text = "CREATE STREAM telemetry (t DOUBLE, a DOUBLE, s TEXT);
            CREATE STREAM telemetry (t BIGINT, b TEXT, s DOUBLE) WITH (version = '2.3');
            CREATE STREAM telemetry (t DOUBLE) WITH (version = '5.0');";
        let project = sql::check(&[SourceFile { name: "p.sql".to_owned(), text: text.to_owned() }]).unwrap();
        let context = SessionContext::new();
        let one: Vec<(&str, ArrayRef)> = vec![
            ("t", Arc::new(Float64Array::from(vec![1.5]))),
            ("a", Arc::new(Float64Array::from(vec![2.5]))),
            ("s", Arc::new(StringArray::from(vec!["on"]))),
        ];
        let two: Vec<(&str, ArrayRef)> = vec![
            ("t", Arc::new(Int64Array::from(vec![7]))),
            ("b", Arc::new(StringArray::from(vec!["x"]))),
            ("s", Arc::new(Float64Array::from(vec![0.25]))),
        ];
        context.register_batch("telemetry", RecordBatch::try_from_iter(one).unwrap()).unwrap();
        context.register_batch("telemetry_v2", RecordBatch::try_from_iter(two).unwrap()).unwrap();
        register(&context, &project).await.unwrap();
        let sql = "SELECT * FROM telemetry_all ORDER BY schema_major";
        let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
        let shown = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
        let lines: Vec<String> = shown.lines().map(|line| line.replace(' ', "")).collect();
        assert_eq!(lines[1], "|schema_major|t|b|s|a|", "{shown}");
        assert_eq!(lines[3..5], ["|1|1.5||on|2.5|", "|2|7.0|x|0.25||"], "{shown}");
        let filtered = "SELECT count(*) FROM telemetry_all WHERE t > 2 AND schema_major = 2";
        assert_eq!(context.sql(filtered).await.unwrap().count().await.unwrap(), 1);
    }
}
