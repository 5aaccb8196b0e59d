//! What must hold when the faults are over.
//!
//! Four witnesses that know nothing of each other: what the outboxes hold, what the agents report, what the devices'
//! own state says (the ledger), and what stands in the files. And the pipeline's files against a batch query.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::time::Duration;

use datafusion::prelude::SessionContext;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::DeviceAudit;
use crate::query::{self, Bounds, Format};

use super::{DRAIN, Torture, TortureError};

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// The seed of the faults.
    pub seed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Kinds of faults that were not possible here, and why.
    pub left_out: Vec<String>,
    /// Times that the engine was started, and how long it took to be ready: the median and the longest.
    pub engine_starts: u32,
    /// Milliseconds.
    pub ready_median_ms: u64,
    /// Milliseconds.
    pub ready_longest_ms: u64,
    /// Times that a fleet of agents was started.
    pub fleet_starts: u32,
    /// Connections that went through the proxy.
    pub connections: u64,
    /// Epochs of killed agents that their outboxes knew, and the numbers in them.
    pub witnessed_epochs: u64,
    /// See `witnessed_epochs`.
    pub witnessed: u64,
    /// Records that agents which lived until the end reported.
    pub reported: u64,
    /// Rows in the files.
    pub rows: u64,
    /// Repeats that the engine recognised.
    pub duplicate: u64,
    /// Numbers declared lost.
    pub declared_lost: u64,
    /// Numbers that were recorded and are neither in a row nor declared lost.
    pub missing: u64,
    /// Rows beyond the first of a number.
    pub double: u64,
    /// Windows in the pipeline's files.
    pub windows: u64,
    /// Windows that miss rows which came too late for them, declared in `_late`; their counts are compared all the same.
    pub windows_with_late_rows: u64,
    /// What does not hold.
    pub wrong: Vec<String>,
}

impl Verdict {
    /// Whether everything holds.
    pub fn passed(&self) -> bool {
        self.wrong.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed               {:>10}   {:.0} s", self.seed, self.seconds)?;
        for (name, count) in &self.faults {
            writeln!(f, "{name:<22} {count:>6}")?;
        }
        for what in &self.left_out {
            writeln!(f, "left out: {what}")?;
        }
        let (median, longest) = (self.ready_median_ms, self.ready_longest_ms);
        writeln!(
            f,
            "engine starts      {:>10}   ready after {median} ms (median), {longest} ms (longest)",
            self.engine_starts
        )?;
        writeln!(f, "fleet starts       {:>10}", self.fleet_starts)?;
        writeln!(f, "connections        {:>10}", self.connections)?;
        writeln!(f, "in outboxes        {:>10}   numbers of {} epochs", self.witnessed, self.witnessed_epochs)?;
        writeln!(f, "reported           {:>10}   by agents that lived until the end", self.reported)?;
        writeln!(f, "rows               {:>10}", self.rows)?;
        writeln!(f, "repeats recognised {:>10}", self.duplicate)?;
        writeln!(f, "declared lost      {:>10}", self.declared_lost)?;
        writeln!(f, "missing            {:>10}", self.missing)?;
        writeln!(f, "double             {:>10}", self.double)?;
        let late = self.windows_with_late_rows;
        writeln!(f, "windows            {:>10}   computed once more; {late} with declared late rows", self.windows)?;
        for what in &self.wrong {
            writeln!(f, "WRONG: {what}")?;
        }
        write!(f, "verdict: {}", if self.passed() { "passed" } else { "FAILED" })
    }
}

/// What `weir simulate` reports.
#[derive(Debug, Default, Deserialize)]
struct Report {
    recorded: u64,
    unacknowledged: u64,
    lost: u64,
}

/// A client for the engine's own HTTP.
pub(super) fn http(patience: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(patience)).build().into()
}

impl Torture {
    /// What is known so far, without a judgement.
    pub(super) fn figures(&self) -> Verdict {
        let mut ready = self.engine.ready.clone();
        ready.sort_unstable();
        let millis = |at: usize| ready.get(at).map_or(0, |time| time.as_millis() as u64);
        Verdict {
            seed: self.config.seed,
            faults: self.faults.clone(),
            left_out: self.left_out.clone(),
            engine_starts: self.engine.starts,
            ready_median_ms: millis(ready.len() / 2),
            ready_longest_ms: millis(ready.len().saturating_sub(1)),
            fleet_starts: self.fleets.iter().map(|fleet| fleet.starts).sum(),
            connections: self.proxy.connections(),
            witnessed_epochs: self.numbers.iter().count() as u64,
            witnessed: self.numbers.iter().map(|(_, _, last)| last).sum(),
            ..Verdict::default()
        }
    }

    /// Lets everything drain, stops it in order, and judges.
    pub(super) async fn settle(&mut self) -> Result<Verdict, TortureError> {
        self.ready_again(Duration::from_secs(60)).await?;
        tracing::info!("no more faults: everything may drain now");
        let mut wrong = Vec::new();
        let reports = self.stop_fleets(&mut wrong).await?;
        for fleet in &self.fleets {
            if let Some(outbox) = &fleet.outbox {
                self.numbers.look(outbox)?;
            }
        }
        let mut verdict = self.figures();
        verdict.wrong = wrong;
        self.weir(&["flush", "--url", &self.engine.url()], &mut verdict.wrong).await?;
        self.ledger(&mut verdict).await?;
        self.counters(&mut verdict).await?;
        self.engine.signal(Signal::SIGTERM);
        if let Some(process) = &mut self.engine.process {
            match process.wait(DRAIN).await {
                Some(status) if status.success() => {}
                Some(status) => verdict.wrong.push(format!("the engine ended with {status} after SIGTERM")),
                None => return Err(self.engine.broke("did not end after SIGTERM")),
            }
        }
        self.files(&mut verdict, &reports).await?;
        Ok(verdict)
    }

    /// Asks the fleets to end: each waits until everything is acknowledged. Gives what they report.
    async fn stop_fleets(&mut self, wrong: &mut Vec<String>) -> Result<Vec<Report>, TortureError> {
        for fleet in &self.fleets {
            if let Some(process) = &fleet.process {
                process.signal(Signal::SIGINT);
            }
        }
        let mut reports = Vec::new();
        for fleet in &mut self.fleets {
            let Some(process) = &mut fleet.process else { continue };
            let name = fleet.name;
            let ended = process.wait(DRAIN).await;
            let path = fleet.report(&self.config.folder);
            let report: Report = match std::fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
                Ok(Ok(report)) => report,
                _ => {
                    wrong.push(format!("fleet {name} gave no report ({ended:?}); see {}", path.display()));
                    reports.push(Report::default());
                    continue;
                }
            };
            if report.unacknowledged > 0 {
                wrong.push(format!("fleet {name}: {} records were never acknowledged", report.unacknowledged));
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// Runs another command of this program, and gives what it printed.
    async fn weir(&self, arguments: &[&str], wrong: &mut Vec<String>) -> Result<Vec<u8>, TortureError> {
        let mut command = Command::new(&self.config.program);
        command.args(arguments);
        let done = tokio::task::spawn_blocking(move || command.output()).await;
        let done = done
            .map_err(|e| e.to_string())
            .and_then(|done| done.map_err(|e| e.to_string()))
            .map_err(|e| TortureError::Failed(format!("weir {}: {e}", arguments.join(" "))))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            wrong.push(format!("weir {} ended with {}: {}", arguments.join(" "), done.status, said.trim()));
        }
        Ok(done.stdout)
    }

    /// The devices' own state: nothing missing, nothing double, nothing open.
    async fn ledger(&self, verdict: &mut Verdict) -> Result<(), TortureError> {
        let arguments = ["audit", "--url", &self.engine.url(), "--format", "json"];
        let out = self.weir(&arguments, &mut verdict.wrong).await?;
        let audits: Vec<DeviceAudit> = match serde_json::from_slice(&out) {
            Ok(audits) => audits,
            Err(error) => {
                verdict.wrong.push(format!("weir audit printed something else: {error}"));
                return Ok(());
            }
        };
        for audit in &audits {
            for epoch in &audit.epochs {
                verdict.duplicate += epoch.duplicate;
                if !epoch.open.is_empty() {
                    let (device, epoch, open) = (&audit.device, epoch.epoch, &epoch.open);
                    verdict.wrong.push(format!("ledger: {device} epoch {epoch} waits for {open:?}"));
                }
            }
        }
        Ok(())
    }

    /// What the running engine has counted since its start adds up.
    async fn counters(&self, verdict: &mut Verdict) -> Result<(), TortureError> {
        let url = format!("{}/metrics", self.engine.url());
        let text = tokio::task::spawn_blocking(move || {
            http(Duration::from_secs(10)).get(&url).call().and_then(|mut answer| answer.body_mut().read_to_string())
        })
        .await;
        let text = match text {
            Ok(Ok(text)) => text,
            failed => {
                verdict.wrong.push(format!("/metrics: {failed:?}"));
                return Ok(());
            }
        };
        let value = |name: &str| -> u64 {
            let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
            text.lines().find_map(of).unwrap_or_default()
        };
        let parts = ["stored", "duplicate", "nacked", "dead_lettered"];
        let sum: u64 = parts.iter().map(|part| value(&format!("weir_records_{part}_total"))).sum();
        let received = value("weir_records_received_total");
        if received != sum {
            verdict.wrong.push(format!("counters: {received} received, but {sum} stored, duplicate, refused or dead"));
        }
        for name in ["weir_in_flight_bytes", "weir_mqtt_lost_outcomes_total"] {
            if value(name) != 0 {
                verdict.wrong.push(format!("counters: {name} is {} and must be 0 at rest", value(name)));
            }
        }
        Ok(())
    }

    async fn files(&self, verdict: &mut Verdict, reports: &[Report]) -> Result<(), TortureError> {
        let failed = |e: &dyn fmt::Display| TortureError::Failed(format!("the files cannot be read: {e}"));
        let store = storage::store::Store::existing(&self.engine.data).map_err(|e| failed(&e))?;
        let store = storage::table::TableStore::open(store);
        let runtime = query::runtime(crate::limits::QUERY_MEMORY).map_err(|e| failed(&e))?;
        let context = query::over_files(&store, runtime).await.map_err(|e| failed(&e))?;
        let files = Files { context };
        let count = files.rows("SELECT count(*) AS n FROM telemetry").await?;
        verdict.rows = number(count.first(), "n");
        files.numbers(&self.numbers, verdict).await?;
        for (fleet, report) in self.fleets.iter().zip(reports).filter(|(fleet, _)| fleet.outbox.is_none()) {
            verdict.reported += report.recorded;
            let prefix = fleet.prefix();
            let sql = format!("SELECT count(*) AS n FROM telemetry WHERE starts_with(device, '{prefix}')");
            let rows = number(files.rows(&sql).await?.first(), "n");
            if rows + report.lost != report.recorded {
                let recorded = report.recorded;
                verdict.wrong.push(format!("fleet {}: {recorded} records, {rows} rows", fleet.name));
            }
        }
        files.windows(verdict).await
    }
}

fn number(row: Option<&Value>, name: &str) -> u64 {
    row.and_then(|row| row.get(name)).and_then(Value::as_u64).unwrap_or_default()
}

/// The tables as a stopped engine left them.
struct Files {
    context: SessionContext,
}

impl Files {
    async fn rows(&self, sql: &str) -> Result<Vec<Value>, TortureError> {
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
    async fn numbers(&self, witnessed: &super::Numbers, verdict: &mut Verdict) -> Result<(), TortureError> {
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
    async fn windows(&self, verdict: &mut Verdict) -> Result<(), TortureError> {
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
                    s.low IS NOT DISTINCT FROM e.low AND s.high IS NOT DISTINCT FROM e.high AND \
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
