//! `weir record`: telemetry from tables as lines of JSON that `COPY .. FROM` in a test reads.

use std::path::PathBuf;

use arrow::datatypes::DataType;
use serde_json::{Map, Value};
use storage::schema::SYSTEM_COLUMNS;

use super::Exit;
use super::query::{Source, write_out};
use crate::query::Table;

/// Arguments of `weir record`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir record telemetry --data weir-data --device pump-7 -o pipelines/tests/pump.ndjson
  weir record telemetry --url http://127.0.0.1:8080 --from 2026-11-23T10:00:00Z --to 2026-11-23T10:05:00Z")]
pub(super) struct Args {
    /// The stream.
    stream: String,
    #[command(flatten)]
    source: Source,
    /// Only this device; may be given several times.
    #[arg(long)]
    device: Vec<String>,
    /// Only records of this time or later, RFC 3339.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only records before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// At most so many records, the first to arrive.
    #[arg(long, default_value_t = 100_000)]
    limit: usize,
    /// The file; without it, standard output.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let sql = select(&args)?;
    let table = args.source.open()?.run(&sql).await?;
    let text = lines(&table, &args.stream)?;
    let Some(path) = &args.output else { return write_out(text.as_bytes()) };
    std::fs::write(path, &text).map_err(|e| Exit::Failed(format!("{}: {e}", path.display())))?;
    let rows: usize = table.batches.iter().map(|batch| batch.num_rows()).sum();
    let more = if rows == args.limit { "; there may be more, see --limit" } else { "" };
    eprintln!("{}: {rows} records{more}", path.display());
    Ok(())
}

/// The records in the order in which the engine received them.
fn select(args: &Args) -> Result<String, Exit> {
    let quoted = |text: &str, quote: char| format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")));
    let mut conditions = Vec::new();
    if !args.device.is_empty() {
        let devices: Vec<String> = args.device.iter().map(|device| quoted(device, '\'')).collect();
        conditions.push(format!("device IN ({})", devices.join(", ")));
    }
    for (flag, time, sign) in [("--from", &args.from, ">="), ("--to", &args.to, "<")] {
        let Some(time) = time else { continue };
        let parsed = device::payload::parse_rfc3339(time)
            .map_err(|e| Exit::Usage(format!("{flag} {time}: {e}; write 2026-11-23T10:00:00Z")))?;
        conditions.push(format!("ts {sign} to_timestamp_nanos({})", parsed.0));
    }
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let table = quoted(&args.stream, '"');
    Ok(format!("SELECT * FROM {table}{filter} ORDER BY ts_ingest, device, epoch, seq LIMIT {}", args.limit))
}

/// A line for each row: what the device would publish, and which device it was.
fn lines(table: &Table, stream: &str) -> Result<String, Exit> {
    for column in SYSTEM_COLUMNS {
        if table.schema.field_with_name(column).is_err() {
            return Err(Exit::Failed(format!("`{stream}` is no stream: it has no column `{column}`")));
        }
    }
    if let Some(field) = table.schema.fields().iter().find(|field| *field.data_type() == DataType::Binary) {
        return Err(Exit::Failed(format!("column `{}` holds bytes, which a line of JSON cannot carry", field.name())));
    }
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    for batch in &table.batches {
        writer.write(batch).map_err(Exit::failed)?;
    }
    writer.finish().map_err(Exit::failed)?;
    let rows = String::from_utf8(writer.into_inner()).map_err(Exit::failed)?;
    let mut text = String::new();
    for row in rows.lines() {
        let row: Map<String, Value> = serde_json::from_str(row).map_err(Exit::failed)?;
        text.push_str(&Value::Object(published(row)?).to_string());
        text.push('\n');
    }
    Ok(text)
}

fn published(mut row: Map<String, Value>) -> Result<Map<String, Value>, Exit> {
    // Numbers that the engine drew itself are not the device's.
    let numbered = row.get("assured") == Some(&Value::Bool(true));
    let extra = row.remove("extra");
    for column in SYSTEM_COLUMNS.into_iter().chain(sql::PARTITION_COLUMNS) {
        let keep = ["device", "ts"].contains(&column) || (numbered && ["epoch", "seq"].contains(&column));
        if !keep {
            row.remove(column);
        }
    }
    if let Some(Value::String(extra)) = extra {
        let extra: Map<String, Value> = serde_json::from_str(&extra).map_err(Exit::failed)?;
        row.extend(extra);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_becomes_what_was_published() {
        let row = r#"{"device":"a","epoch":7,"seq":1,"ts":"2026-01-01T00:00:10Z","ts_ingest":"2026-01-01T00:00:11Z",
            "date":"2026-01-01","hour":0,"clock_q":0,"schema_minor":0,"flags":0,"assured":true,"extra":"{\"x\":[1]}","t":20.5}"#;
        let row: Map<String, Value> = serde_json::from_str(row).unwrap();
        let whole = published(row.clone()).unwrap();
        let wanted = r#"{"device":"a","epoch":7,"seq":1,"ts":"2026-01-01T00:00:10Z","t":20.5,"x":[1]}"#;
        assert_eq!(Value::Object(whole), serde_json::from_str::<Value>(wanted).unwrap());
        let mut drawn = row;
        drawn.insert("assured".to_owned(), false.into());
        let drawn = published(drawn).unwrap();
        assert!(!drawn.contains_key("epoch") && !drawn.contains_key("seq") && drawn.contains_key("t"));
    }

    #[test]
    fn names_and_times_are_quoted_and_checked() {
        let args = |from: &str| Args {
            stream: "odd\"name".to_owned(),
            source: Source::default(),
            device: vec!["it's".to_owned()],
            from: Some(from.to_owned()),
            to: None,
            limit: 5,
            output: None,
        };
        let Ok(sql) = select(&args("1970-01-01T00:00:01Z")) else { panic!("a good time") };
        let wanted = "SELECT * FROM \"odd\"\"name\" WHERE device IN ('it''s') AND ts >= to_timestamp_nanos(1000000000) \
                      ORDER BY ts_ingest, device, epoch, seq LIMIT 5";
        assert_eq!(sql, wanted);
        let Err(Exit::Usage(error)) = select(&args("yesterday")) else { panic!("a bad time") };
        assert!(error.contains("--from yesterday"), "{error}");
    }
}
