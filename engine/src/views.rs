//! Views over each stream: the newest row of each device (`telemetry_last`), and rows whose time was not known when they were
//! stored, with the time that their clock was measured to have later (`telemetry_corrected`).

use arrow::datatypes::Schema;
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use sql::Project;
use storage::schema::CLOCK;

/// Makes the views of a project, each over a table that the session has. What the project itself calls so stays.
pub(crate) async fn register(context: &SessionContext, project: &Project) -> Result<(), DataFusionError> {
    let has_clocks = context.table_exist(CLOCK)?;
    for decl in &project.streams {
        let table: &str = &decl.stream.name;
        if !context.table_exist(table)? {
            continue;
        }
        make(context, &format!("{table}_last"), &last(table)).await?;
        if has_clocks {
            let schema = context.table(table).await?.schema().as_arrow().clone();
            make(context, &format!("{table}_corrected"), &corrected(table, &schema)).await?;
        }
    }
    Ok(())
}

async fn make(context: &SessionContext, name: &str, sql: &str) -> Result<(), DataFusionError> {
    if !context.table_exist(quoted(name))? {
        let view = context.sql(sql).await?.into_view();
        context.register_table(quoted(name), view)?;
    }
    Ok(())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Older rows than a week are not looked for: that is what keeps this from reading all that was ever stored.
fn last(table: &str) -> String {
    format!(
        "SELECT DISTINCT ON (device) * FROM {} WHERE ts >= now() - INTERVAL '7 days' ORDER BY device, ts DESC, epoch DESC, seq DESC",
        quoted(table)
    )
}

/// A row belongs to the clock that was measured first after it had come, if no other clock began in between. The offset
/// may have been another one earlier, by as much as an unmeasured clock may drift: 500 ppm.
fn corrected(table: &str, schema: &Schema) -> String {
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "ts" => "CASE WHEN fixed IS NULL THEN ts ELSE fixed END AS ts".to_owned(),
        "clock_err_ns" => "CASE WHEN fixed IS NULL THEN clock_err_ns ELSE fixed_err END AS clock_err_ns".to_owned(),
        "clock_q" => "CASE WHEN fixed IS NULL THEN clock_q ELSE arrow_cast(2, 'UInt8') END AS clock_q".to_owned(),
        name => quoted(name),
    });
    let columns: Vec<String> = columns.collect();
    let table = quoted(table);
    format!(
        "WITH clocks AS (
           SELECT device AS clock_device, ts AS measured, event AS clock_event, from_ts, to_ts, offset_ns, err_ns,
                  max(CASE WHEN event = 'ended' THEN ts END) OVER
                    (PARTITION BY device ORDER BY ts, clock_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS began
           FROM {CLOCK} WHERE event IN ('synced', 'ended')
         ), found AS (
           SELECT t.*, CASE WHEN t.ts_device + arrow_cast(c.offset_ns, 'Duration(Nanosecond)') <= t.ts_ingest + INTERVAL '5 seconds'
                       THEN t.ts_device + arrow_cast(c.offset_ns, 'Duration(Nanosecond)') END AS fixed,
                  c.err_ns + (arrow_cast(c.to_ts, 'Int64') - arrow_cast(t.ts_device, 'Int64')) / 2000 AS fixed_err
           FROM {table} t LEFT JOIN clocks c
             ON t.device = c.clock_device AND t.clock_q = 4 AND c.clock_event = 'synced'
            AND t.ts_device BETWEEN c.from_ts AND c.to_ts
            AND t.ts_ingest <= c.measured AND (c.began IS NULL OR t.ts_ingest >= c.began)
         )
         SELECT {} FROM found",
        columns.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray, UInt8Array, UInt64Array,
    };

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn times(seconds: &[i64]) -> ArrayRef {
        let all = TimestampNanosecondArray::from_iter_values(seconds.iter().map(|s| s * SECOND));
        Arc::new(all.with_timezone("UTC"))
    }

    fn texts(all: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(all.to_vec()))
    }

    fn rows(device: &[&str], seq: &[i64], ts: &[i64], own: &[i64], ingest: &[i64], q: &[u8]) -> RecordBatch {
        let none: ArrayRef = Arc::new(Int64Array::from(vec![None; seq.len()]));
        let all: Vec<(&str, ArrayRef)> = vec![
            ("device", texts(device)),
            ("epoch", Arc::new(Int64Array::from(vec![1; seq.len()]))),
            ("seq", Arc::new(Int64Array::from(seq.to_vec()))),
            ("ts", times(ts)),
            ("ts_device", times(own)),
            ("ts_ingest", times(ingest)),
            ("clock_err_ns", none),
            ("clock_q", Arc::new(UInt8Array::from(q.to_vec()))),
            ("value", Arc::new(Int64Array::from(seq.to_vec()))),
        ];
        RecordBatch::try_from_iter_with_nullable(all.into_iter().map(|(name, column)| (name, column, true))).unwrap()
    }

    async fn shown(context: &SessionContext, sql: &str) -> Vec<String> {
        let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
        let lines = text.lines().filter(|line| line.starts_with('|')).skip(1);
        lines.map(|line| line.replace(' ', "").trim_matches('|').to_owned()).collect()
    }

    fn project() -> Project {
        let text = "CREATE STREAM telemetry (value BIGINT);".to_owned();
        sql::check(&[sql::SourceFile { name: "p.sql".to_owned(), text }]).unwrap()
    }

    #[tokio::test]
    async fn the_newest_row_of_each_device() {
        let now = crate::clock::now().0 / SECOND;
        let context = SessionContext::new();
        let ts = [now - 30, now - 10, now - 20, now - 8 * 86_400, now - 10];
        let batch = rows(&["a", "a", "a", "old", "b"], &[1, 2, 3, 4, 5], &ts, &ts, &ts, &[0; 5]);
        context.register_batch("telemetry", batch).unwrap();
        register(&context, &project()).await.unwrap();
        let sql = "SELECT device, seq, value FROM telemetry_last ORDER BY device";
        assert_eq!(shown(&context, sql).await, ["a|2|2", "b|5|5"]);
        assert_eq!(shown(&context, "SELECT device FROM telemetry_last WHERE value > 3").await, ["b"]);
        assert!(!context.table_exist("telemetry_corrected").unwrap(), "there are no clocks");
    }

    #[tokio::test]
    async fn rows_of_unknown_time_get_that_of_the_clock_that_was_measured_next() {
        let context = SessionContext::new();
        // Two boots of a device whose clock begins at 1970, each measured at its end; the last is not measured yet.
        let device = ["d", "d", "d", "d", "d", "e", "d"];
        let ingest = [1000, 1001, 1010, 2005, 3000, 1000, 1009];
        let own = [5, 6, 15, 6, 6, 5, 900_000];
        let batch = rows(&device, &[1, 2, 3, 4, 5, 6, 7], &ingest, &own, &ingest, &[4, 4, 2, 4, 4, 4, 4]);
        context.register_batch("telemetry", batch).unwrap();
        let clocks: Vec<(&str, ArrayRef)> = vec![
            ("device", texts(&["d", "d", "d", "d"])),
            ("ts", times(&[1010, 2000, 2010, 2900])),
            ("event", texts(&["synced", "ended", "synced", "ended"])),
            ("clock_id", Arc::new(UInt64Array::from(vec![1, 1, 2, 2]))),
            ("from_ts", times(&[5, 5, 1, 1])),
            ("to_ts", times(&[15, 15, 11, 901])),
            ("offset_ns", Arc::new(Int64Array::from(vec![995 * SECOND, 995 * SECOND, 1999 * SECOND, 1999 * SECOND]))),
            ("err_ns", Arc::new(Int64Array::from(vec![1000; 4]))),
        ];
        context.register_batch(CLOCK, RecordBatch::try_from_iter(clocks).unwrap()).unwrap();
        register(&context, &project()).await.unwrap();
        let sql = "SELECT seq, arrow_cast(ts, 'Int64') / 1000000000 AS ts, clock_q, clock_err_ns, value \
                   FROM telemetry_corrected ORDER BY seq";
        let expected = [
            // Ten and nine seconds before the measurement, at 500 ppm.
            "1|1000|2|5001000|1",
            "2|1001|2|4501000|2",
            "3|1010|2||3",
            "4|2005|2|2501000|4",
            "5|3000|4||5",
            "6|1000|4||6",
            "7|1009|4||7",
        ];
        assert_eq!(shown(&context, sql).await, expected);
        let count = shown(&context, "SELECT count(*) FROM telemetry_corrected").await;
        assert_eq!(count, ["7"], "no row twice");
    }
}
