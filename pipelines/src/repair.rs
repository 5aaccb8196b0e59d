//! Repair and backfill: partitions of a pipeline computed once more from the files of its stream, and put in the place
//! of what stands there.
//!
//! Per shard, and as of a cut at barrier `b` ([`Stand`]): everything that the shard's log produced up to `b` is in files,
//! and nothing behind it is. The rows of the stream in files up to `b` are read in the order of their receipt and go
//! through a pipeline of their own (`pipeline/recompute.rs`, which says what may come out of it). For each partition one
//! file `<shard>-0-<b>` is written: the recomputed rows, and those that stay as they are. By the rule of names it
//! covers all files of the partition up to `b`, which are then removed; what the running engine emits meanwhile
//! is in files behind `b`, which it does not cover. A crash at any point leaves a partition as it was or as it should
//! be. Each repair has a cut of its own, so no name is given twice.
//!
//! What several shards share (`shared.rs`) is written by the one that merges: the rows of all are read, each up to a cut of
//! its own, and what is closed where that one stands is settled. A pipeline that reads another one is recomputed from the
//! table of that one, which is to be repaired before.
//!
//! History from before a pipeline began comes by the same way: for the windows of devices that were heard of before,
//! the pipeline began with frontiers as if it had always been there (`heard.rs`), so they are settled.
//!
//! Memory: of a partition at a time the states of its groups and the rows of its result, of sessions (which know no
//! partitions) those of the whole span; both are refused beyond [`MOST_BYTES`]. Records are sorted by the query
//! engine, which goes to disk where its memory ends.
//!
//! Deliberately absent: asking for the cut, and the running of several repairs at a time, which its caller prevents.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use datafusion::common::{Column, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::Expr;
use datafusion::prelude::{SessionConfig, SessionContext, lit};
use device::id::ShardId;
use device::seq::Barrier;
use device::time::Timestamp;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sql::{Kind, PipelinePlan};
use storage::columns;
use storage::layout::{Granularity, Partition};
use storage::parquet::{TableRows, WriteError, replace, split_by_partition};
use storage::table::{TableError, TableStore};
use thiserror::Error;

use crate::PipelineError;
use crate::output;
use crate::pipeline::{Judge, Recompute, Settled};
use crate::runner::Stand;

/// States and results of one partition beyond this are refused.
const MOST_BYTES: usize = 1 << 30;

/// How long readers of this process are waited for before files are removed that they may still read. A query that takes
/// longer may begin anew.
const READERS: Duration = Duration::from_secs(60);

/// Why a repair ended.
#[derive(Debug, Error)]
pub enum RepairError {
    /// There is no such pipeline.
    #[error("there is no pipeline `{name}` any more")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The pipeline cannot be made or fed.
    #[error("{0}")]
    Pipeline(#[from] PipelineError),
    /// Files cannot be listed or read.
    #[error("{0}")]
    Table(#[from] TableError),
    /// Files cannot be written.
    #[error("{0}")]
    Write(#[from] WriteError),
    /// The query engine refused.
    #[error("query engine: {0}")]
    Engine(#[from] DataFusionError),
    /// Rows do not form a batch: a bug.
    #[error("rows do not form a batch: {0}")]
    Rows(#[from] arrow::error::ArrowError),
    /// The stream has lost records that the table still has the results of.
    #[error(
        "{partition} of `{table}` cannot be recomputed: its row {row} was made from records that `{stream}` does not \
         hold any more. The partition is as it was; choose --from and --to so that it is left out"
    )]
    Gone {
        /// Which table.
        table: String,
        /// Which partition.
        partition: Partition,
        /// Device and time of the row.
        row: String,
        /// The stream.
        stream: String,
    },
    /// The table was partitioned otherwise.
    #[error(
        "{partition} of `{table}` was written while the table was partitioned otherwise than by {now}: move that folder \
         away, and what it holds is computed anew"
    )]
    OtherPartition {
        /// Which table.
        table: String,
        /// Which partition.
        partition: Partition,
        /// How it is partitioned now.
        now: &'static str,
    },
    /// The table had other columns.
    #[error(
        "{partition} of `{table}` has rows without `{column}`, written when the pipeline had other columns: move that \
         folder away, and what it holds is computed anew"
    )]
    OtherColumns {
        /// Which table.
        table: String,
        /// Which partition.
        partition: Partition,
        /// The column.
        column: String,
    },
    /// It takes more memory than a repair may take.
    #[error("{what} of `{table}` take more than 1 GiB of memory: {help}")]
    TooLarge {
        /// Which table.
        table: String,
        /// What of it.
        what: String,
        /// What to do.
        help: &'static str,
    },
    /// Nobody waits for it any more.
    #[error("stopped; what was done so far stands")]
    Stopped,
}

/// What was done to a partition of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Which shard.
    pub shard: u16,
    /// Folder of the partition.
    pub partition: String,
    /// Rows of it now.
    pub rows: usize,
    /// How many of them were left as they were.
    pub kept: usize,
    /// Files that were replaced.
    pub files: usize,
}

/// What a repair did, over all partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Partitions of shards that were written.
    pub partitions: usize,
    /// Rows in them now.
    pub rows: usize,
    /// How many of them were left as they were.
    pub kept: usize,
    /// Windows that the engine will write itself when they close.
    pub open: usize,
    /// Sessions left as they were since they reach over an end of the span.
    pub at_edges: usize,
    /// Devices left out because the pipeline does not know how far they are.
    pub unknown: usize,
    /// Records left out because an expression fails on them.
    pub failed: u64,
}

/// A span of time that consists of whole partitions.
pub fn widen(span: Range<i64>, granularity: Granularity) -> Range<i64> {
    let of = |ts: i64| Partition::of(ts, granularity).span();
    let end = of(span.end.saturating_sub(1)).1.saturating_add(1);
    of(span.start).0..end.max(span.end)
}

/// Repairs what shards have of a pipeline for the windows that begin in `span`, which consists of whole partitions.
/// `stands`: of all shards, made one after the other. `note` hears of each partition; `false` from it stops.
pub async fn repair(
    tables: &TableStore,
    stands: &[Stand],
    name: &str,
    span: Range<i64>,
    memory: &Arc<RuntimeEnv>,
    note: &mut (dyn FnMut(Done) -> bool + Send),
) -> Result<Totals, RepairError> {
    let mut totals = Totals::default();
    for stand in stands {
        let unknown = || RepairError::Unknown { name: name.to_owned() };
        let plan = stand.project.pipeline(name).ok_or_else(unknown)?;
        let sources = match plan.is_shared() {
            // Another shard merges, and writes.
            true if stand.passed.is_none() => continue,
            true => stands.iter().map(|stand| (stand.shard, stand.barrier)).collect(),
            false => vec![(stand.shard, stand.barrier)],
        };
        let mut work = Work { tables, stand, plan, sources, begins: None, memory };
        if retained(&stand.project, plan) {
            let first = tables.partitions(&plan.source, &work.sources).await?.first().map(|first| first.span().0);
            work.begins = first;
        }
        let mut unknown = 0;
        for partitions in work.units(&span).await? {
            // The same device may be in many partitions.
            unknown = unknown.max(work.unit(&partitions, &mut totals, note).await?);
        }
        totals.unknown += unknown;
    }
    Ok(totals)
}

/// Whether retention drops partitions of what a pipeline reads.
fn retained(project: &sql::Project, plan: &PipelinePlan) -> bool {
    let retain = match plan.reads.pipeline {
        true => project.pipeline(&plan.source).and_then(|read| read.retain_ns),
        false => project.stream(&plan.source).and_then(|read| read.retain_ns),
    };
    retain.is_some()
}

struct Work<'a> {
    tables: &'a TableStore,
    stand: &'a Stand,
    plan: &'a PipelinePlan,
    /// The shards whose rows are read, and up to where.
    sources: Vec<(ShardId, Barrier)>,
    /// Where what is read begins, if what was before may have been dropped.
    begins: Option<i64>,
    memory: &'a Arc<RuntimeEnv>,
}

/// The time that partitions cover together.
fn span_of(partitions: &BTreeSet<Partition>) -> Range<i64> {
    let start = partitions.first().map_or(0, |partition| partition.span().0);
    start..partitions.last().map_or(0, |partition| partition.span().1.saturating_add(1))
}

impl Work<'_> {
    fn granularity(&self) -> Granularity {
        output::granularity(self.plan.partition)
    }

    /// Partitions that may have rows, in groups that are computed together.
    async fn units(&self, span: &Range<i64>) -> Result<Vec<BTreeSet<Partition>>, RepairError> {
        let Stand { shard, barrier, .. } = *self.stand;
        let granularity = self.granularity();
        let mut all = self.tables.partitions(&self.plan.name, &[(shard, barrier)]).await?;
        all.retain(|partition| {
            let (first, last) = partition.span();
            first < span.end && span.start <= last
        });
        let fits = |partition: &&Partition| partition.hour.is_some() == (granularity == Granularity::Hour);
        if let Some(other) = all.iter().find(|partition| !fits(partition)) {
            let now = self.plan.partition.as_str();
            return Err(RepairError::OtherPartition { table: self.plan.name.clone(), partition: *other, now });
        }
        // A record is in windows that begin as much earlier as they are long.
        let reach = match &self.plan.window {
            Some(window) if window.kind != Kind::Session => window.size_ns.saturating_sub(1),
            _ => 0,
        };
        let mut next = span.start;
        for source in self.tables.partitions(&self.plan.source, &self.sources).await? {
            let (first, last) = source.span();
            next = next.max(first.saturating_sub(reach));
            while next <= last && next < span.end {
                let partition = Partition::of(next, granularity);
                all.insert(partition);
                next = partition.span().1.saturating_add(1);
            }
        }
        let together = self.plan.window.as_ref().is_some_and(|window| window.kind == Kind::Session);
        Ok(match together {
            true if all.is_empty() => Vec::new(),
            true => vec![all],
            false => all.into_iter().map(|partition| BTreeSet::from([partition])).collect(),
        })
    }

    /// Gives how many devices were left out.
    async fn unit(
        &self,
        partitions: &BTreeSet<Partition>,
        totals: &mut Totals,
        note: &mut (dyn FnMut(Done) -> bool + Send),
    ) -> Result<usize, RepairError> {
        let (columns, passed) = (self.plan.reads.columns.clone(), self.stand.passed.as_ref());
        let mut recompute = Recompute::new(self.plan, columns, passed, span_of(partitions))?;
        let mut had = BTreeMap::new();
        for partition in partitions {
            if let Some(rows) = self.existing(*partition).await? {
                had.insert(*partition, rows);
            }
        }
        if had.is_empty() && !recompute.has_windows() {
            return Ok(0);
        }
        self.feed(&mut recompute).await?;
        let Settled { rows, open, at_edges, unknown, failed, mut judge } = recompute.settle(self.begins)?;
        totals.open += open;
        totals.at_edges += at_edges;
        totals.failed += failed;
        let mut new = self.split(rows)?;
        if new.values().flatten().map(RecordBatch::get_array_memory_size).sum::<usize>() > MOST_BYTES {
            return Err(self.too_large("rows of one partition"));
        }
        // All is looked at before anything is written: of sessions, too.
        let mut kept = BTreeMap::new();
        for (partition, rows) in &mut had {
            kept.insert(*partition, self.kept(*partition, rows, &mut judge).await?);
        }
        // What is read no longer keeps files from being removed.
        let had: BTreeSet<Partition> = had.into_keys().collect();
        for partition in partitions {
            let (new, kept) = (new.remove(partition).unwrap_or_default(), kept.remove(partition).unwrap_or_default());
            if !had.contains(partition) && new.is_empty() {
                continue;
            }
            let count = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
            let (rows, stay) = (count(&new) + count(&kept), count(&kept));
            let replaced = self.replace(*partition, new.into_iter().chain(kept).collect()).await?;
            totals.partitions += 1;
            totals.rows += rows;
            totals.kept += stay;
            let (shard, partition) = (self.stand.shard.0, partition.to_string());
            if !note(Done { shard, partition, rows, kept: stay, files: replaced }) {
                return Err(RepairError::Stopped);
            }
        }
        Ok(unknown)
    }

    fn too_large(&self, what: &str) -> RepairError {
        let help = match &self.plan.window {
            Some(window) if window.kind == Kind::Session => "do it in several steps, with --from and --to",
            _ => "give the pipeline shorter partitions, or longer windows",
        };
        RepairError::TooLarge { table: self.plan.name.clone(), what: what.to_owned(), help }
    }

    /// The records, in the order of the log as far as their rows tell it.
    async fn feed(&self, recompute: &mut Recompute) -> Result<(), RepairError> {
        let Some(records) = self.tables.at_barriers(&self.plan.source, &self.sources, None).await? else {
            return Ok(());
        };
        let reads = &self.plan.reads;
        let names = recompute.columns(&reads.columns);
        let wanted = names.iter().map(|name| Ok(reads.columns.field_with_name(name)?.clone()));
        let wanted = Arc::new(Schema::new(wanted.collect::<Result<Vec<_>, arrow::error::ArrowError>>()?));
        // A column that was declared a moment ago is in no file.
        let stored = records.schema();
        let there: Vec<Expr> =
            names.iter().filter(|name| stored.field_with_name(name).is_ok()).map(|name| named(name)).collect();
        let Range { start, end } = recompute.reads();
        let order = match reads.pipeline {
            false => vec!["ts_ingest", "device", "epoch", "seq"],
            true => [Some(&reads.time), reads.device.as_ref()].into_iter().flatten().map(String::as_str).collect(),
        };
        let order = order.into_iter().map(|name| named(name).sort(true, true)).collect();
        let frame = session(self.memory).read_table(records)?;
        let within = named(&reads.time).gt_eq(time(start)).and(named(&reads.time).lt(time(end)));
        let mut stream = frame.filter(within)?.sort(order)?.select(there)?.execute_stream().await?;
        while let Some(batch) = stream.next().await {
            recompute.ingest(&columns::fit(&batch?, &wanted)?)?;
            if recompute.size() > MOST_BYTES {
                return Err(self.too_large("groups of one partition"));
            }
        }
        Ok(())
    }

    /// The rows that a partition has.
    async fn existing(
        &self,
        partition: Partition,
    ) -> Result<Option<datafusion::execution::SendableRecordBatchStream>, RepairError> {
        let Stand { shard, barrier, .. } = *self.stand;
        let table = &self.plan.name;
        let Some(rows) = self.tables.at_barriers(table, &[(shard, barrier)], Some(partition)).await? else {
            return Ok(None);
        };
        let needed = [Some(&self.plan.time_column), self.plan.device_column.as_ref()];
        if let Some(column) = needed.into_iter().flatten().find(|name| rows.schema().field_with_name(name).is_err()) {
            return Err(self.other_columns(partition, column));
        }
        let fields = rows.schema();
        let own = fields.fields().iter().filter(|field| !sql::PARTITION_COLUMNS.contains(&field.name().as_str()));
        let own: Vec<Expr> = own.map(|field| named(field.name())).collect();
        Ok(Some(session(self.memory).read_table(rows)?.select(own)?.execute_stream().await?))
    }

    fn other_columns(&self, partition: Partition, column: &str) -> RepairError {
        RepairError::OtherColumns { table: self.plan.name.clone(), partition, column: column.to_owned() }
    }

    /// Those of them that stay.
    async fn kept(
        &self,
        partition: Partition,
        rows: &mut datafusion::execution::SendableRecordBatchStream,
        judge: &mut Judge,
    ) -> Result<Vec<RecordBatch>, RepairError> {
        let (device, time) = (self.plan.device_column.as_deref(), &self.plan.time_column);
        let device = device.filter(|_| self.plan.window.as_ref().is_some_and(|window| window.device.is_some()));
        let mut kept = Vec::new();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            for name in device.into_iter().chain([time.as_str()]) {
                if batch.column_by_name(name).is_none_or(|column| column.null_count() > 0) {
                    return Err(self.other_columns(partition, name));
                }
            }
            let (stay, gone) = judge.keep(&batch, device, time)?;
            if let Some(gone) = gone {
                let device = gone.device.map(|device| format!("of {device} ")).unwrap_or_default();
                return Err(RepairError::Gone {
                    table: self.plan.name.clone(),
                    partition,
                    row: format!("{device}at {}", shown(gone.start)),
                    stream: self.plan.source.clone(),
                });
            }
            if stay.num_rows() > 0 {
                kept.push(stay);
            }
        }
        Ok(kept)
    }

    /// Rows by the partition they belong to.
    fn split(&self, rows: Vec<RecordBatch>) -> Result<BTreeMap<Partition, Vec<RecordBatch>>, RepairError> {
        let mut split: BTreeMap<Partition, Vec<RecordBatch>> = BTreeMap::new();
        for batch in rows {
            let batch = columns::fit(&batch, &columns::stored_schema(batch.schema_ref()))?;
            for (partition, part) in split_by_partition(&batch, &self.plan.time_column, self.granularity())? {
                split.entry(partition).or_default().push(part);
            }
        }
        Ok(split)
    }

    async fn replace(&self, partition: Partition, mut batches: Vec<RecordBatch>) -> Result<usize, RepairError> {
        if batches.is_empty() {
            batches.push(RecordBatch::new_empty(self.plan.output.clone()));
        }
        let rows = TableRows {
            table: self.plan.name.clone(),
            version: format!("{:016x}", self.plan.fingerprint),
            time_column: self.plan.time_column.clone(),
            granularity: self.granularity(),
            batches,
        };
        let Stand { shard, barrier, .. } = *self.stand;
        let unread = async || {
            // A query may have taken its live rows before the cut, so that it does not see the new file.
            let (moment, since) = (self.tables.moment(), Instant::now());
            while !self.tables.unread_since(moment) && since.elapsed() < READERS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        Ok(replace(self.tables.store(), shard, barrier, partition, rows, unread).await?.removed)
    }
}

fn session(memory: &Arc<RuntimeEnv>) -> SessionContext {
    // One after the other: the engine beside it has work to do.
    SessionContext::new_with_config_rt(SessionConfig::new().with_target_partitions(1), memory.clone())
}

fn named(column: &str) -> Expr {
    Expr::Column(Column::from_name(column))
}

fn time(nanos: i64) -> Expr {
    lit(ScalarValue::TimestampNanosecond(Some(nanos), Some(Arc::from("UTC"))))
}

/// A time for people.
pub fn shown(time: Timestamp) -> String {
    let value = arrow::array::TimestampNanosecondArray::from(vec![time.0]).with_timezone("UTC");
    arrow::util::display::array_value_to_string(&value, 0).unwrap_or_else(|_| time.0.to_string())
}
