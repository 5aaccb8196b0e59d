//! The tables as a stopped engine left them: what must stand in them, by SQL over the files alone.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use datafusion::prelude::SessionContext;
use serde_json::Value;

use crate::query::{self, Bounds, Format};

use super::numbers::Numbers;
use super::{TortureError, Verdict};

pub(super) fn number(row: Option<&Value>, name: &str) -> u64 {
    row.and_then(|row| row.get(name)).and_then(Value::as_u64).unwrap_or_default()
}

/// The tables as a stopped engine left them.
pub(super) struct Files {
    pub(super) context: SessionContext,
}

impl Files {
    pub(super) async fn rows(&self, sql: &str) -> Result<Vec<Value>, TortureError> {
        let bounds = Bounds { rows: 1_000_000, time: Duration::from_secs(600) };
        let failed = |e: &dyn fmt::Display| TortureError::Failed(format!("{sql}: {e}"));
        let table = query::run(&self.context, sql, bounds).await.map_err(|e| failed(&e))?;
        let mut json = Vec::new();
        query::write(&table, Format::Json, &mut json).map_err(|e| failed(&e))?;
        serde_json::from_slice(&json).map_err(|e| failed(&e))
    }

    /// Whether a table has any file.
    fn has(&self, table: &str) -> bool {
        let schema = self.context.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
        schema.is_some_and(|schema| schema.table_exist(table))
    }

    /// Each number that was recorded is one row or a declared loss.
    pub(super) async fn numbers(&self, witnessed: &Numbers, verdict: &mut Verdict) -> Result<(), TortureError> {
        let mut epochs: BTreeMap<(String, u64), (u64, u64)> = BTreeMap::new();
        let sql = "SELECT device, epoch, count(*) AS n, count(DISTINCT seq) AS numbers, max(seq) AS last \
                   FROM telemetry GROUP BY device, epoch";
        for row in self.rows(sql).await? {
            let key = (row["device"].as_str().unwrap_or_default().to_owned(), number(Some(&row), "epoch"));
            let (n, numbers) = (number(Some(&row), "n"), number(Some(&row), "numbers"));
            verdict.double += n.saturating_sub(numbers);
            epochs.insert(key, (numbers, number(Some(&row), "last")));
        }
        let mut lost: BTreeMap<(String, u64), u64> = BTreeMap::new();
        if self.has("_losses") {
            // A number that is in a row is not lost as well, whatever was declared.
            let sql = "SELECT device, epoch, CAST(sum(to_seq - from_seq + 1) AS BIGINT) AS n FROM \
                       (SELECT DISTINCT device, epoch, from_seq, to_seq FROM \"_losses\") GROUP BY device, epoch";
            for row in self.rows(sql).await? {
                let key = (row["device"].as_str().unwrap_or_default().to_owned(), number(Some(&row), "epoch"));
                verdict.declared_lost += number(Some(&row), "n");
                lost.insert(key, number(Some(&row), "n"));
            }
        }
        for (device, epoch, last) in witnessed.iter() {
            let known = epochs.entry((device.to_owned(), epoch)).or_default();
            known.1 = known.1.max(last);
        }
        for ((device, epoch), (numbers, last)) in &epochs {
            let declared = lost.get(&(device.clone(), *epoch)).copied().unwrap_or_default();
            let missing = last.saturating_sub(numbers + declared);
            verdict.missing += missing;
            if missing > 0 {
                let text = format!("{device} epoch {epoch}: {last} recorded, {numbers} rows, {declared} declared lost");
                verdict.wrong.push(text);
            }
        }
        if verdict.double > 0 {
            verdict.wrong.push(format!("{} rows are double", verdict.double));
        }
        if self.has("_dead_letters") {
            let dead = number(self.rows("SELECT count(*) AS n FROM \"_dead_letters\"").await?.first(), "n");
            if dead > 0 {
                verdict.wrong.push(format!("{dead} dead letters, though nobody sent anything bad"));
            }
        }
        Ok(())
    }

    /// The pipeline's files against the same computed from the raw rows in one batch.
    pub(super) async fn windows(&self, verdict: &mut Verdict) -> Result<(), TortureError> {
        if !self.has("torture_10s") {
            // A very short run closes no window.
            return Ok(());
        }
        let late = match self.has("_late") {
            true => {
                "SELECT device, window_start, CAST(sum(records) AS BIGINT) AS late FROM \"_late\" \
                 WHERE pipeline = 'torture_10s' GROUP BY device, window_start"
            }
            false => {
                "SELECT '' AS device, to_timestamp_nanos(0) AS window_start, CAST(0 AS BIGINT) AS late WHERE false"
            }
        };
        // A window is closed when the device's newest time less 2 s has passed its end plus lateness; the last
        // barrier stands behind every row.
        let compared = format!(
            "WITH raw AS (SELECT device, CAST(date_bin(INTERVAL '10 seconds', ts) AS BIGINT) AS start, \
                   CAST(max(ts) OVER (PARTITION BY device) AS BIGINT) AS newest, temperature, status FROM telemetry), \
             expected AS (SELECT device, start, count(*) AS n, avg(temperature) AS mean, min(temperature) AS low, \
                   max(temperature) AS high, stddev(temperature) AS spread, count(DISTINCT status) AS states, \
                   count(*) FILTER (WHERE status = 'fault') AS faults FROM raw \
                   WHERE start + 32000000000 <= newest GROUP BY device, start), \
             stored AS (SELECT *, CAST(window_start AS BIGINT) AS start FROM torture_10s), \
             late AS (SELECT device, CAST(window_start AS BIGINT) AS start, late FROM ({late})) \
             SELECT coalesce(e.device, s.device) AS device, coalesce(e.start, s.start) AS start, \
                    e.n AS expected, s.n AS stored, coalesce(l.late, 0) AS late, \
                    coalesce(abs(s.mean - e.mean) <= 1e-9 * abs(e.mean) + 1e-12, s.mean IS NULL AND e.mean IS NULL) AND \
                    coalesce(abs(s.spread - e.spread) <= 1e-6 * abs(e.spread) + 1e-9, \
                             s.spread IS NULL AND e.spread IS NULL) AND \
                    (s.low IS NOT DISTINCT FROM e.low) AND (s.high IS NOT DISTINCT FROM e.high) AND \
                    s.states = e.states AND s.faults = e.faults AS same \
             FROM expected e FULL OUTER JOIN stored s ON e.device = s.device AND e.start = s.start \
             LEFT JOIN late l ON l.device = e.device AND l.start = e.start"
        );
        let totals = format!(
            "SELECT count(stored) AS windows, count(*) FILTER (WHERE late > 0) AS late, \
             count(*) FILTER (WHERE expected IS NULL) AS unexpected, \
             count(*) FILTER (WHERE coalesce(stored, 0) + late <> expected) AS counts, \
             count(*) FILTER (WHERE late = 0 AND expected IS NOT NULL AND same IS NOT TRUE) AS differ FROM ({compared})"
        );
        let totals = self.rows(&totals).await?;
        let of = |name| number(totals.first(), name);
        (verdict.windows, verdict.windows_with_late_rows) = (of("windows"), of("late"));
        for (what, text) in [
            ("unexpected", "windows were written that must still be open"),
            ("counts", "windows have another number of rows"),
            ("differ", "windows have other values than a batch query over the raw rows"),
        ] {
            if of(what) > 0 {
                let condition = match what {
                    "unexpected" => "expected IS NULL",
                    "counts" => "coalesce(stored, 0) + late <> expected",
                    _ => "late = 0 AND expected IS NOT NULL AND same IS NOT TRUE",
                };
                let some = self.rows(&format!("SELECT * FROM ({compared}) WHERE {condition} LIMIT 3")).await?;
                verdict.wrong.push(format!("{} {text}, such as {some:?}", of(what)));
            }
        }
        let twice = "SELECT count(*) AS n FROM (SELECT device, window_start FROM torture_10s \
                     GROUP BY device, window_start HAVING count(*) > 1)";
        let twice = number(self.rows(twice).await?.first(), "n");
        if twice > 0 {
            verdict.wrong.push(format!("{twice} windows were written twice"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables as a run of one device leaves them: 60 s of one record a second, so that the windows from 0 s to 20 s are
    /// closed. What is `planted` is done to them afterwards.
    async fn judge(planted: &[&str]) -> Verdict {
        let context = SessionContext::new();
        let do_it = async |sql: &str| {
            context.sql(sql).await.unwrap().collect().await.unwrap();
        };
        do_it(
            "CREATE TABLE telemetry AS SELECT arrow_cast('a', 'Utf8') AS device, CAST(7 AS BIGINT) AS epoch, \
             CAST(value AS BIGINT) AS seq, \
             arrow_cast(CAST(value AS BIGINT) * 1000000000, 'Timestamp(Nanosecond, Some(\"UTC\"))') AS ts, \
             CAST(value % 7 AS DOUBLE) + 0.1 AS temperature, \
             CASE WHEN value % 5 = 0 THEN 'fault' ELSE 'ok' END AS status FROM generate_series(1, 60) AS t(value)",
        )
        .await;
        do_it(
            "CREATE TABLE torture_10s AS SELECT device, date_bin(INTERVAL '10 seconds', ts) AS window_start, \
             count(*) AS n, avg(temperature) AS mean, min(temperature) AS low, max(temperature) AS high, \
             stddev(temperature) AS spread, count(DISTINCT status) AS states, \
             count(*) FILTER (WHERE status = 'fault') AS faults FROM telemetry WHERE seq < 30 \
             GROUP BY device, date_bin(INTERVAL '10 seconds', ts)",
        )
        .await;
        for sql in planted {
            do_it(sql).await;
        }
        let mut witnessed = Numbers::default();
        witnessed.saw("a", 7, 60);
        let mut verdict = Verdict::default();
        let files = Files { context };
        files.numbers(&witnessed, &mut verdict).await.unwrap();
        files.windows(&mut verdict).await.unwrap();
        verdict
    }

    #[tokio::test]
    async fn a_clean_run_passes() {
        let verdict = judge(&[]).await;
        assert!(verdict.passed(), "{verdict}");
        assert_eq!((verdict.windows, verdict.missing, verdict.double), (3, 0, 0));
    }

    #[tokio::test]
    async fn what_was_planted_is_found() {
        let without = |table: &str, condition: &str| {
            [
                format!("CREATE TABLE less AS SELECT * FROM {table} WHERE NOT ({condition})"),
                format!("DROP TABLE {table}"),
                format!("CREATE TABLE {table} AS SELECT * FROM less"),
            ]
        };
        let twice = |table: &str, condition: &str| {
            [
                format!("INSERT INTO {table} SELECT * FROM {table} WHERE {condition}"),
                String::from("SELECT 1"),
                String::from("SELECT 1"),
            ]
        };
        let other = |column: &str, value: &str| {
            let columns = ["n", "mean", "low", "high", "spread", "states", "faults"]
                .map(|name| if name == column { format!("{value} AS {name}") } else { name.to_owned() });
            [
                format!("CREATE TABLE changed AS SELECT device, window_start, {} FROM torture_10s", columns.join(", ")),
                "DROP TABLE torture_10s".to_owned(),
                "CREATE TABLE torture_10s AS SELECT * FROM changed".to_owned(),
            ]
        };
        for (planted, found) in [
            (without("telemetry", "seq = 60"), "60 recorded, 59 rows"),
            (without("telemetry", "seq = 45"), "60 recorded, 59 rows"),
            (twice("telemetry", "seq = 50"), "1 rows are double"),
            (without("torture_10s", "n = 9"), "1 windows have another number of rows"),
            (twice("torture_10s", "n = 9"), "1 windows were written twice"),
            (other("n", "n + 1"), "3 windows have another number of rows"),
            (other("mean", "mean + 0.000001"), "3 windows have other values"),
            (other("low", "low - 1"), "3 windows have other values"),
            (other("high", "high + 1"), "3 windows have other values"),
            (other("spread", "spread * 2"), "3 windows have other values"),
            (other("states", "states + 1"), "3 windows have other values"),
            (other("faults", "faults - 1"), "3 windows have other values"),
            (twice("torture_10s", "false"), ""),
        ] {
            let planted: Vec<&str> = planted.iter().map(String::as_str).collect();
            let verdict = judge(&planted).await;
            let said = verdict.wrong.iter().any(|wrong| wrong.contains(found));
            assert_eq!(said, !found.is_empty(), "{planted:?}: {verdict}");
        }
    }

    #[tokio::test]
    async fn declared_losses_and_late_rows_are_taken_into_account() {
        let lost = [
            "CREATE TABLE less AS SELECT * FROM telemetry WHERE seq NOT IN (44, 45)",
            "DROP TABLE telemetry",
            "CREATE TABLE telemetry AS SELECT * FROM less",
            "CREATE TABLE \"_losses\" AS SELECT arrow_cast('a', 'Utf8') AS device, CAST(7 AS BIGINT) AS epoch, \
             CAST(44 AS BIGINT) AS from_seq, CAST(45 AS BIGINT) AS to_seq",
        ];
        let verdict = judge(&lost).await;
        assert!(verdict.passed() && verdict.declared_lost == 2, "{verdict}");
        let late = [
            "CREATE TABLE changed AS SELECT device, window_start, n - 1 AS n, mean + 1 AS mean, low, high, spread, \
             states, faults FROM torture_10s",
            "DROP TABLE torture_10s",
            "CREATE TABLE torture_10s AS SELECT * FROM changed",
            "CREATE TABLE \"_late\" AS SELECT 'torture_10s' AS pipeline, device, window_start, \
             CAST(1 AS BIGINT UNSIGNED) AS records FROM torture_10s",
        ];
        let verdict = judge(&late).await;
        assert!(verdict.passed() && verdict.windows_with_late_rows == 3, "{verdict}");
    }
}
