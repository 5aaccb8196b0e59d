//! What should stand in the tables, computed from the logs alone, in the plainest way: every row is kept, windows are
//! lists of rows, nothing is ever restored.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use device::entry::LogBody;
use device::id::ShardId;
use device::seq::Position;
use pipelines::SLACK;
use storage::rows::RowBuilder;

use super::ledger::Ledger;
use super::live::Begun;
use super::project::{self, HOT, WINDOWED, Windowed, project};
use super::tables::{floats, integers, texts};

/// A row of `telemetry`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Who sent it.
    pub(super) device: String,
    /// Its time.
    pub(super) ts: i64,
    /// Its number.
    pub(super) n: i64,
    /// Its value.
    pub(super) temperature: Option<f64>,
    /// Another.
    pub(super) status: String,
}

/// The rows of a batch of `telemetry`.
pub(super) fn rows(batch: &RecordBatch) -> Vec<Row> {
    let (devices, times, numbers) = (texts(batch, "device"), integers(batch, "ts"), integers(batch, "n"));
    let (temperatures, statuses) = (floats(batch, "temperature"), texts(batch, "status"));
    (0..batch.num_rows())
        .map(|at| Row {
            device: devices[at].clone().unwrap_or_default(),
            ts: times[at].unwrap_or(i64::MIN),
            n: numbers[at].unwrap_or(-1),
            temperature: temperatures[at],
            status: statuses[at].clone().unwrap_or_default(),
        })
        .collect()
}

/// A window of one device.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Window {
    /// What came in time.
    pub(super) rows: Vec<Row>,
    /// How many came too late.
    pub(super) late: u64,
    /// Its result is out.
    pub(super) closed: bool,
}

/// Pipeline, device and start of a window.
pub(super) type Key = (&'static str, String, i64);

/// What should stand in the tables.
#[derive(Debug, Default)]
pub(super) struct Reference {
    /// Rows of streams and system tables.
    pub(super) tables: BTreeMap<String, Vec<RecordBatch>>,
    /// All windows, open ones too.
    pub(super) windows: BTreeMap<Key, Window>,
    /// Rows of the pipeline without windows: device, ts, n.
    pub(super) hot: Vec<(String, i64, i64)>,
    /// Rows of the pipeline that is not in every version of the project.
    pub(super) extra: Vec<(String, i64, i64)>,
}

impl Reference {
    /// From everything that is durable.
    pub(super) fn of(ledger: &Ledger, shards: u16, begun: &[Begun]) -> Result<Self, String> {
        let mut this = Self::default();
        for shard in (0..shards).map(ShardId) {
            let begun =
                begun.iter().filter(|(id, ..)| *id == shard).map(|(_, position, version)| (*position, *version));
            this.shard(ledger, shard, begun.collect())?;
        }
        Ok(this)
    }

    fn shard(&mut self, ledger: &Ledger, shard: ShardId, begun: Vec<(Position, u64)>) -> Result<(), String> {
        let mut builder = RowBuilder::new(Arc::new(project(0).catalog()));
        // Newest time and frontier of each device.
        let mut marks: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        let mut now = i64::MIN;
        let mut own: BTreeMap<Key, Window> = BTreeMap::new();
        // Since the last barrier: what the next one closes was read under the project that it names.
        let mut fresh: Vec<Row> = Vec::new();
        // The version that counts for what comes: that of the start, or of the last barrier since.
        let mut counts = None;
        let mut begun = begun.into_iter().peekable();
        for (position, record) in (1..).zip(ledger.log(shard)) {
            while let Some((_, version)) = begun.next_if(|(end, _)| end.0 < position) {
                counts = Some(version);
            }
            match &record.body {
                LogBody::Batch(entries) => {
                    for entry in entries {
                        builder.push(entry).map_err(|e| e.to_string())?;
                    }
                    for (table, batch) in builder.finish().map_err(|e| e.to_string())? {
                        if &*table == "telemetry" {
                            fresh.extend(rows(&batch));
                            self.telemetry(&batch, &mut marks, &mut own);
                        }
                        self.tables.entry(table.to_string()).or_default().push(batch);
                    }
                }
                // Not part of what is computed here: it follows from the rest.
                LogBody::Partial(_) => {}
                LogBody::Barrier { catalog, .. } => {
                    let version = project::version(*catalog);
                    let version = version.ok_or_else(|| format!("a barrier of an unknown project {catalog}"))?;
                    if let (false, Some(counts)) = (fresh.is_empty(), counts.filter(|counts| *counts != version)) {
                        return Err(format!(
                            "the barrier at {position} of shard {shard} names version {version} of the project, the \
                             records before it came under {counts}"
                        ));
                    }
                    counts = Some(version);
                    let of = project::extra(version);
                    let taken = fresh.drain(..).filter(|row| of.is_some_and(|of| row.n % of == 0));
                    self.extra.extend(taken.map(|row| (row.device, row.ts, row.n)));
                    now = now.max(record.time.0);
                    for (newest, frontier) in marks.values_mut() {
                        *frontier = (*frontier).max(newest.saturating_sub(SLACK).min(now));
                    }
                    for ((name, device, start), window) in &mut own {
                        let frontier = marks.get(device).map_or(i64::MIN, |(_, frontier)| *frontier);
                        window.closed |= frontier >= closes(name, *start);
                    }
                }
            }
        }
        self.windows.extend(own);
        Ok(())
    }

    fn telemetry(
        &mut self,
        batch: &RecordBatch,
        marks: &mut BTreeMap<String, (i64, i64)>,
        own: &mut BTreeMap<Key, Window>,
    ) {
        for row in rows(batch) {
            let (newest, frontier) = marks.entry(row.device.clone()).or_insert((i64::MIN, i64::MIN));
            *newest = (*newest).max(row.ts);
            if row.temperature.is_some_and(|t| t > HOT) {
                self.hot.push((row.device.clone(), row.ts, row.n));
            }
            for Windowed { name, size, measured, .. } in WINDOWED {
                if measured && row.temperature.is_none() {
                    continue;
                }
                let start = row.ts - row.ts.rem_euclid(size);
                let window = own.entry((name, row.device.clone(), start)).or_default();
                if *frontier >= closes(name, start) {
                    window.late += 1;
                } else {
                    window.rows.push(row.clone());
                }
            }
        }
    }
}

fn closes(name: &str, start: i64) -> i64 {
    WINDOWED.iter().find(|w| w.name == name).map_or(i64::MAX, |w| start + w.size + w.lateness)
}
