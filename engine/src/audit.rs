//! The ledger: what became of every sequence number of a device, by the device's own state and by the tables.
//!
//! Two sources that know nothing of each other are held together: the dedup state says which numbers are accounted
//! for, the tables say which rows there are. A number that the state calls stored and no table holds is missing; a
//! number that stands in two rows is double.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, Int64Array, StringArray};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use device::id::DeviceId;
use serde::{Deserialize, Serialize};
use storage::retention::Counts;
use storage::schema::DEAD_LETTERS;

use crate::core::Core;
use crate::query::{self, Bounds, QueryError};

/// How long the tables may take to catch up with the log before an audit gives up.
const CATCH_UP: Duration = Duration::from_secs(30);

/// What became of the numbers of one epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EpochAudit {
    /// The epoch.
    pub epoch: u64,
    /// Everything up to here is accounted for.
    pub cum: u64,
    /// Numbers stored, by the device's state; dead letters with numbers count as stored.
    pub stored: u64,
    /// Distinct numbers found in tables.
    pub rows: u64,
    /// Repeats that were recognised.
    pub duplicate: u64,
    /// Numbers declared as filtered on the device.
    pub filtered: u64,
    /// Numbers declared lost.
    pub lost: u64,
    /// Rows that retention has dropped.
    #[serde(default)]
    pub expired: u64,
    /// Numbers not accounted for, as `[from, to]`; more may still come from the device.
    pub open: Vec<(u64, u64)>,
    /// Numbers that the state calls stored, that stand in no table, and that retention did not drop.
    pub missing: u64,
    /// Rows beyond the first for the same number.
    pub double: u64,
    /// Whether the device has given up the epoch.
    pub closed: bool,
}

/// What became of the numbers of one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceAudit {
    /// Which device.
    pub device: String,
    /// Nothing missing, nothing double.
    pub ok: bool,
    /// Its epochs.
    pub epochs: Vec<EpochAudit>,
}

#[derive(Default, Clone, Copy)]
struct Counted {
    rows: u64,
    distinct: u64,
}

/// Audits some devices.
///
/// The states are asked first and the tables counted once they have caught up: what a device sends meanwhile can
/// only add rows, so nothing looks missing because it is new.
pub async fn audit(
    core: &Core,
    runtime: Arc<RuntimeEnv>,
    devices: &[DeviceId],
) -> Result<Vec<DeviceAudit>, QueryError> {
    let mut ledgers = Vec::with_capacity(devices.len());
    for device in devices {
        ledgers.push(core.node.ledger(device).await.map_err(|e| QueryError::Query(e.to_string()))?);
    }
    core.caught_up(CATCH_UP).await.map_err(|e| QueryError::Query(e.to_string()))?;
    let context = query::over_engine(core, runtime).await?;
    let counted = count(core, &context, devices).await?;
    let expired = expired(core).await?;
    let mut audits = Vec::with_capacity(devices.len());
    for (device, ledger) in devices.iter().zip(ledgers) {
        let mut found = counted.get(device.as_str()).cloned().unwrap_or_default();
        let mut epochs = Vec::new();
        for epoch in ledger {
            let rows = found.remove(&(epoch.epoch.0 as i64)).unwrap_or_default();
            let gone = expired.get(&(device.to_string(), epoch.epoch.0 as i64)).copied().unwrap_or(0);
            epochs.push(EpochAudit {
                epoch: epoch.epoch.0,
                cum: epoch.cum,
                stored: epoch.stored + epoch.dead,
                rows: rows.distinct,
                duplicate: epoch.duplicate,
                filtered: epoch.filtered,
                lost: epoch.lost,
                expired: gone,
                open: epoch.missing,
                missing: (epoch.stored + epoch.dead).saturating_sub(rows.distinct + gone),
                double: rows.rows - rows.distinct,
                closed: epoch.closed,
            });
        }
        // Rows of epochs that the state does not know: nothing is missing, but they may be double.
        for (epoch, rows) in found {
            epochs.push(EpochAudit {
                epoch: epoch as u64,
                cum: 0,
                stored: 0,
                rows: rows.distinct,
                duplicate: 0,
                filtered: 0,
                lost: 0,
                expired: 0,
                open: Vec::new(),
                missing: 0,
                double: rows.rows - rows.distinct,
                closed: true,
            });
        }
        let ok = epochs.iter().all(|epoch| epoch.missing == 0 && epoch.double == 0);
        audits.push(DeviceAudit { device: device.to_string(), ok, epochs });
    }
    Ok(audits)
}

/// Rows that retention has dropped, over all streams and the dead letters. Asked for after the tables were listed: what is
/// dropped in between is counted twice, rather than not at all.
async fn expired(core: &Core) -> Result<Counts, QueryError> {
    let mut all = Counts::new();
    // Also those that are no longer declared: what has gone of them was stored.
    let known = core.schemas().map_err(|e| QueryError::Query(e.to_string()))?;
    let mut tables: BTreeSet<String> = sql::tables_of(&known).into_iter().collect();
    tables.extend(core.catalog().streams().iter().map(|stream| stream.name.to_string()));
    for table in tables.into_iter().chain([DEAD_LETTERS.to_owned()]) {
        for (key, rows) in core.tables.expired(&table).await? {
            *all.entry(key).or_default() += rows;
        }
    }
    Ok(all)
}

/// Rows and distinct numbers by device and epoch, over all streams and the dead letters that carry numbers.
async fn count(
    core: &Core,
    context: &SessionContext,
    devices: &[DeviceId],
) -> Result<BTreeMap<String, BTreeMap<i64, Counted>>, QueryError> {
    let mut filter = String::new();
    if devices.len() <= 100 {
        // Device ids hold no quote, so they can stand in SQL as they are.
        let names: Vec<String> = devices.iter().map(|device| format!("'{device}'")).collect();
        filter =
            if names.is_empty() { "WHERE false".into() } else { format!("WHERE device IN ({})", names.join(", ")) };
    }
    // Also those that are no longer declared: their rows are there.
    let known = core.schemas().map_err(|e| QueryError::Query(e.to_string()))?;
    let mut tables: BTreeSet<String> = core.catalog().streams().iter().map(|stream| stream.name.to_string()).collect();
    for table in sql::tables_of(&known) {
        if context.table_exist(table.as_str())? {
            tables.insert(table);
        }
    }
    let sources: Vec<String> = tables
        .iter()
        .map(|table| format!("SELECT device, epoch, seq, CAST(1 AS BIGINT) AS n FROM \"{table}\" {filter}"))
        .collect();
    let streams = sources.join(" UNION ALL ");
    let with = if filter.is_empty() { "WHERE".to_owned() } else { format!("{filter} AND") };
    // A letter whose frame has become rows counts as these.
    let letters = format!(
        "SELECT device, epoch, seq, CAST(records AS BIGINT) AS n FROM \"_dead_letters\" l {with} epoch IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM ({streams}) s WHERE s.device = l.device AND s.epoch = l.epoch AND s.seq = l.seq)"
    );
    let sql = format!(
        "SELECT device, epoch, CAST(sum(k * n) AS BIGINT) AS rows, CAST(sum(n) AS BIGINT) AS distinct_rows \
         FROM (SELECT device, epoch, seq, max(n) AS n, count(*) AS k FROM ({streams} UNION ALL {letters}) \
         GROUP BY device, epoch, seq) GROUP BY device, epoch"
    );
    let bounds = Bounds { rows: usize::MAX, time: Duration::from_secs(600) };
    let table = query::run(context, &sql, bounds).await?;
    let mut counted: BTreeMap<String, BTreeMap<i64, Counted>> = BTreeMap::new();
    for batch in &table.batches {
        let devices = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8)?;
        let columns = (
            devices.as_any().downcast_ref::<StringArray>(),
            batch.column(1).as_any().downcast_ref::<Int64Array>(),
            batch.column(2).as_any().downcast_ref::<Int64Array>(),
            batch.column(3).as_any().downcast_ref::<Int64Array>(),
        );
        let (Some(devices), Some(epochs), Some(rows), Some(distinct)) = columns else {
            return Err(QueryError::Query("the audit query gave columns of unexpected types".to_owned()));
        };
        for row in 0..batch.num_rows() {
            let entry = Counted { rows: rows.value(row) as u64, distinct: distinct.value(row) as u64 };
            counted.entry(devices.value(row).to_owned()).or_default().insert(epochs.value(row), entry);
        }
    }
    Ok(counted)
}

/// All devices that the engine knows, by name, behind `after`.
pub async fn known_devices(core: &Core, after: Option<&str>, limit: usize) -> Result<Vec<DeviceId>, QueryError> {
    let mut ids = core.stored_devices(after, limit).await.map_err(|e| QueryError::Query(e.to_string()))?;
    for shard in core.node.shards() {
        ids.extend(shard.known());
    }
    ids.retain(|id| after.is_none_or(|after| id.as_str() > after) && *id != DeviceId::nobody());
    ids.sort();
    ids.dedup();
    ids.truncate(limit);
    Ok(ids)
}

/// The ledger as text.
pub fn render(audits: &[DeviceAudit]) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<24} {:>20} {:>10} {:>10} {:>9} {:>8} {:>6} {:>8} {:>6} {:>7} {:>6}",
        "device", "epoch", "stored", "rows", "duplicate", "filtered", "lost", "expired", "open", "missing", "double"
    );
    for audit in audits {
        for epoch in &audit.epochs {
            let open: u64 = epoch.open.iter().map(|(from, to)| to - from + 1).sum();
            let _ = writeln!(
                out,
                "{:<24} {:>20} {:>10} {:>10} {:>9} {:>8} {:>6} {:>8} {:>6} {:>7} {:>6}",
                audit.device,
                epoch.epoch,
                epoch.stored,
                epoch.rows,
                epoch.duplicate,
                epoch.filtered,
                epoch.lost,
                epoch.expired,
                open,
                epoch.missing,
                epoch.double
            );
        }
    }
    let sum = |of: fn(&EpochAudit) -> u64| audits.iter().flat_map(|a| &a.epochs).map(of).sum::<u64>();
    let _ = writeln!(
        out,
        "{} devices, {} stored, {} duplicate, {} declared lost, {} expired, {} missing, {} double",
        audits.len(),
        sum(|e| e.stored),
        sum(|e| e.duplicate),
        sum(|e| e.lost),
        sum(|e| e.expired),
        sum(|e| e.missing),
        sum(|e| e.double)
    );
    out
}
