//! What must hold when the faults are over.
//!
//! Four witnesses that know nothing of each other: what the outboxes hold, what the agents report, what the devices'
//! own state says (the ledger), and what stands in the files. And the pipeline's files against a batch query.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::audit::DeviceAudit;
use crate::query;

use super::files::{Files, number};
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
                process.listens().await;
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
                if epoch.missing > 0 || epoch.double > 0 || !epoch.open.is_empty() {
                    let (device, name) = (&audit.device, epoch.epoch);
                    let text = format!(
                        "ledger: {device} epoch {name}: {} missing, {} double, waits for {:?}",
                        epoch.missing, epoch.double, epoch.open
                    );
                    verdict.wrong.push(text);
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
        let context = query::over_files(&store, None, runtime).await.map_err(|e| failed(&e))?;
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
