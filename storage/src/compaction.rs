//! Many small files of a partition to one that takes their place.
//!
//! The new file holds the rows of files that follow each other in one shard and partition, and its name covers theirs, so
//! the covering rule ([`layout::visible`]) shows one or the other and never both. Each step may be the last before a crash:
//!
//! 1. [`plan`] chooses the files, from values alone. Only files of cuts that are done are given to it: then the
//!    range of the new name lies behind what any later cut will write.
//! 2. [`TableStore::merge`] writes the covering file: inputs are read in step and merged in their order, so memory holds a
//!    batch and a row group of each and a row group of the output. What is written is held against what was read,
//!    and what can be read back against that, column by column.
//! 3. [`coverings`] finds what is covered, now or after a crash. When all readings have ended that began before the new
//!    file was there ([`TableStore::unread_since`]: their live rows may be older than a cut that it holds) and
//!    [`TableStore::same_rows`] has found that it holds what they hold, the covered files are hidden, and then erased, as
//!    retention does it ([`crate::retention`]).
//!
//! Deliberately absent: when a partition is cold, and the clock.

mod digest;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::{SortOptions, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, UnboundedMemoryPool};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet};
use datafusion::physical_plan::sorts::streaming_merge::StreamingMergeBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};
use object_store_14::ObjectStoreExt as _;
use object_store_14::buffered::BufWriter;
use parquet::arrow::AsyncArrowWriter;
use thiserror::Error;

use self::digest::Digest;
use crate::columns;
use crate::layout::{self, FileName, Partition};
use crate::parquet::{FileMeta, SAMPLE, options_of};
use crate::retention::Seen;
use crate::table::{Fact, TableError, TableFile, TableStore};

/// Files merged at a time. Each is open while it is read.
const MAX_FILES: usize = 64;

/// Bytes of row groups, compressed, that a merge reads at a time. Two files are merged whatever they take.
const MAX_GROUP_BYTES: u64 = 256 << 20;

/// Rows of a batch while files are merged: there is one of each file.
const BATCH_ROWS: usize = 2048;

/// Why files were not merged. Nothing is lost in any case: the old files are what counts until the new one is right.
#[derive(Debug, Error)]
pub enum MergeError {
    /// Reading, listing.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Merging or encoding.
    #[error("cannot merge files into {path}: {reason}")]
    Merge {
        /// The file that was to be.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// What was written is not what was read.
    #[error("{path} does not hold what the files hold that it covers: {difference}; they stay, it goes")]
    Differs {
        /// The file.
        path: String,
        /// What is different.
        difference: String,
    },
}

/// A file that may be merged with its neighbours.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name.
    pub name: FileName,
    /// Its columns.
    pub schema: SchemaRef,
    /// Bytes of its largest row group.
    pub group_bytes: u64,
}

/// The files to merge next, of the visible files of one shard and partition in the order of their ranges.
///
/// They follow each other, and columns of the same name have the same type in all of them: a column that changed its
/// type once would have to be cast, and no value may change here.
pub fn plan(files: &[Input]) -> Option<Range<usize>> {
    let mut start = 0;
    while start < files.len() {
        let mut types: BTreeMap<&str, &DataType> = BTreeMap::new();
        let (mut end, mut bytes) = (start, 0_u64);
        let mut full = false;
        while let Some(file) = files.get(end) {
            let fits = file
                .schema
                .fields()
                .iter()
                .all(|field| types.get(field.name().as_str()).is_none_or(|known| *known == field.data_type()));
            let apart = end == start || files.get(end - 1).is_some_and(|before| before.name.to <= file.name.from);
            if !fits || !apart {
                break;
            }
            bytes = bytes.saturating_add(file.group_bytes);
            full = end - start >= MAX_FILES || (end - start >= 2 && bytes > MAX_GROUP_BYTES);
            if full {
                break;
            }
            types.extend(file.schema.fields().iter().map(|field| (field.name().as_str(), field.data_type())));
            end += 1;
        }
        if end - start >= 2 {
            return Some(start..end);
        }
        // What could not go with its neighbour may go with the next one.
        start = if full { start + 1 } else { end.max(start + 1) };
    }
    None
}

/// A file that has taken the place of others, and those that are still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covering {
    /// Where all of them stand.
    pub partition: Partition,
    /// The file that counts.
    pub name: FileName,
    /// All it covers.
    pub covered: Vec<FileName>,
    /// Those of them that would count without it: together they hold its rows.
    pub parts: Vec<FileName>,
}

/// The files of a table that others cover, by those that cover them.
pub fn coverings(files: &[Seen]) -> Vec<Covering> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.visible) {
        let under = |other: &&Seen| !other.visible && other.partition == file.partition && file.name.covers(other.name);
        let covered: Vec<FileName> = files.iter().filter(under).map(|other| other.name).collect();
        if !covered.is_empty() {
            let parts = layout::visible(covered.iter().map(|name| (file.partition, *name)));
            let parts = parts.into_iter().map(|(_, name)| name).collect();
            found.push(Covering { partition: file.partition, name: file.name, covered, parts });
        }
    }
    found
}

/// The name that covers these files and no more.
pub fn cover(files: &[FileName]) -> Option<FileName> {
    let (first, last) = (files.first()?, files.last()?);
    Some(FileName { shard: first.shard, from: first.from, to: last.to })
}

/// A file that takes the place of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Its name.
    pub name: FileName,
    /// Its rows.
    pub rows: u64,
}

impl TableStore {
    /// The files of a shard and partition as [`plan`] wants them: `names` are visible, in order.
    pub async fn inputs(
        &self,
        table: &str,
        partition: Partition,
        names: &[FileName],
    ) -> Result<Vec<Input>, TableError> {
        let opened = self.look(table, partition, names).await?;
        Ok(opened
            .into_iter()
            .map(|(file, fact)| Input { name: file.name, schema: fact.schema.clone(), group_bytes: fact.group_bytes })
            .collect())
    }

    /// Writes the file that covers `names`, which are visible, settled and follow each other, and makes sure that it holds
    /// their rows. They are still there when this returns.
    pub async fn merge(&self, table: &str, partition: Partition, names: &[FileName]) -> Result<Merged, MergeError> {
        let found = self.look(table, partition, names).await?;
        let Some(name) = cover(names) else {
            return Err(MergeError::Merge { path: layout::table(table), reason: "there are no files".to_owned() });
        };
        let path = layout::table_file(table, partition, name);
        let failed = |reason: String| MergeError::Merge { path: path.clone(), reason };
        let facts: Vec<&Fact> = found.iter().map(|(_, fact)| fact.as_ref()).collect();
        let schema = union(&facts).ok_or_else(|| failed("there are no files".to_owned()))?;
        let newest = facts.last();
        let meta = FileMeta {
            table: table.to_owned(),
            version: newest.and_then(|fact| fact.version.clone()).unwrap_or_else(|| "1.0".to_owned()),
            time_column: newest.and_then(|fact| fact.time_column.clone()).unwrap_or_default(),
            file: name,
        };
        let total: u64 = facts.iter().map(|fact| fact.rows).sum();

        let mut survey = Survey::new(&schema, total);
        for file in names {
            let mut rows = self.rows(table, (partition, *file), &schema).await?;
            while let Some(batch) = rows.try_next().await.map_err(|error| failed(error.to_string()))? {
                survey.take(&batch).map_err(|error| failed(error.to_string()))?;
            }
        }
        let options = options_of(&meta, &schema, &survey.sample, survey.devices.len());
        let options = options.map_err(|error| failed(error.to_string()))?;

        let mut streams = Vec::with_capacity(names.len());
        for file in names {
            streams.push(self.rows(table, (partition, *file), &schema).await?);
        }
        let mut merged = in_order(streams, &schema, &meta.time_column).map_err(|error| failed(error.to_string()))?;
        let target = BufWriter::new(self.store().writing(), object_store_14::path::Path::from(path.as_str()));
        let mut writer = AsyncArrowWriter::try_new_with_options(target, schema.clone(), options)
            .map_err(|error| failed(error.to_string()))?;
        let mut written = Digest::new(&schema);
        while let Some(batch) = merged.try_next().await.map_err(|error| failed(error.to_string()))? {
            written.take(&batch).map_err(|error| failed(error.to_string()))?;
            writer.write(&batch).await.map_err(|error| failed(error.to_string()))?;
            // Others have their turn on this thread.
            tokio::task::yield_now().await;
        }
        // Before it is closed, it is nowhere.
        if let Some(difference) = survey.digest.differs(&written) {
            return Err(MergeError::Differs { path, difference });
        }
        writer.close().await.map_err(|error| failed(error.to_string()))?;

        let again = self.digest(table, partition, &[name], &schema).await?;
        if let Some(difference) = survey.digest.differs(&again) {
            self.take_back(&path).await?;
            return Err(MergeError::Differs { path, difference });
        }
        Ok(Merged { name, rows: written.rows() })
    }

    /// Makes sure that a merged file holds the rows of the files whose place it took ([`Covering::parts`]): what a crash
    /// between writing and hiding leaves. If it does not, it is deleted, so that they count again. False for a file that
    /// was not merged: it covers others because it is to hold other rows, and that is not for compaction to judge.
    pub async fn same_rows(
        &self,
        table: &str,
        partition: Partition,
        name: FileName,
        parts: &[FileName],
    ) -> Result<bool, MergeError> {
        let all: Vec<FileName> = parts.iter().copied().chain([name]).collect();
        let found = self.look(table, partition, &all).await?;
        let facts: Vec<&Fact> = found.iter().map(|(_, fact)| fact.as_ref()).collect();
        let path = layout::table_file(table, partition, name);
        let Some(schema) = union(&facts).filter(|_| facts.last().is_some_and(|fact| fact.merged)) else {
            return Ok(false);
        };
        let old = self.digest(table, partition, parts, &schema).await?;
        let new = self.digest(table, partition, &[name], &schema).await?;
        match old.differs(&new) {
            None => Ok(true),
            Some(difference) => {
                self.take_back(&path).await?;
                Err(MergeError::Differs { path, difference })
            }
        }
    }

    async fn take_back(&self, path: &str) -> Result<(), TableError> {
        let gone = self.store().erasing().delete(&object_store_14::path::Path::from(path)).await;
        gone.map_err(|error| TableError::Remove { path: path.to_owned(), reason: error.to_string() })
    }

    /// Files with their facts, in the order of `names`.
    async fn look(
        &self,
        table: &str,
        partition: Partition,
        names: &[FileName],
    ) -> Result<Vec<(TableFile, Arc<Fact>)>, TableError> {
        let all = self.all(table, Some(partition)).await?;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let file = all.iter().find(|file| file.partition == partition && file.name == *name).cloned();
            let gone = || TableError::Gone { path: layout::table_file(table, partition, *name) };
            let file = file.ok_or_else(gone)?;
            let fact = self.facts(table, std::slice::from_ref(&file)).await?.pop().ok_or_else(gone)?;
            found.push((file, fact));
        }
        Ok(found)
    }

    async fn digest(
        &self,
        table: &str,
        partition: Partition,
        names: &[FileName],
        schema: &SchemaRef,
    ) -> Result<Digest, MergeError> {
        let mut digest = Digest::new(schema);
        for name in names {
            let path = layout::table_file(table, partition, *name);
            let failed = |error: DataFusionError| TableError::File { path: path.clone(), reason: error.to_string() };
            let mut rows = self.rows(table, (partition, *name), schema).await?;
            while let Some(batch) = rows.try_next().await.map_err(failed)? {
                digest.take(&batch).map_err(failed)?;
                tokio::task::yield_now().await;
            }
        }
        Ok(digest)
    }

    /// The rows of a file under `schema`.
    async fn rows(
        &self,
        table: &str,
        (partition, name): (Partition, FileName),
        schema: &SchemaRef,
    ) -> Result<SendableRecordBatchStream, TableError> {
        let path = layout::table_file(table, partition, name);
        let rows = self.open_file(&path).await?.with_batch_size(BATCH_ROWS).build();
        let rows = rows.map_err(|error| TableError::File { path, reason: error.to_string() })?;
        let wanted = schema.clone();
        let fitted = rows.map(move |batch| {
            let batch = batch.map_err(|error| DataFusionError::ParquetError(Box::new(error)))?;
            let stored = columns::fit(&batch, &columns::stored_schema(batch.schema_ref()))?;
            Ok(columns::fit(&stored, &wanted)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema.clone(), fitted)))
    }
}

/// The columns of all files, the newest last.
fn union(facts: &[&Fact]) -> Option<SchemaRef> {
    let schemas = facts.iter().map(|fact| fact.schema.clone());
    schemas.reduce(|older, newer| columns::union(&newer, &older))
}

/// What has to be known of all rows before the first is written.
struct Survey {
    digest: Digest,
    /// Rows from everywhere.
    sample: Vec<RecordBatch>,
    devices: HashSet<String>,
    /// One row in so many is in the sample.
    step: u64,
    seen: u64,
}

impl Survey {
    fn new(schema: &SchemaRef, total: u64) -> Self {
        let step = total.div_ceil(SAMPLE as u64).max(1);
        Self { digest: Digest::new(schema), sample: Vec::new(), devices: HashSet::new(), step, seen: 0 }
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), DataFusionError> {
        self.digest.take(batch)?;
        let rows = batch.num_rows() as u64;
        let first = (self.step - self.seen % self.step) % self.step;
        let chosen: Vec<u32> = (first..rows).step_by(self.step as usize).map(|row| row as u32).collect();
        self.seen += rows;
        if !chosen.is_empty() {
            self.sample.push(take_record_batch(batch, &UInt32Array::from(chosen))?);
        }
        let devices = batch.column_by_name("device").and_then(|column| column.as_string_opt::<i32>());
        let mut last = None;
        for device in devices.into_iter().flatten().flatten() {
            if last != Some(device) && !self.devices.contains(device) {
                self.devices.insert(device.to_owned());
            }
            last = Some(device);
        }
        Ok(())
    }
}

/// Sorted streams to one, in the order of files: device, time, epoch, seq.
fn in_order(
    streams: Vec<SendableRecordBatchStream>,
    schema: &SchemaRef,
    time_column: &str,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let options = SortOptions { descending: false, nulls_first: true };
    let keys = ["device", time_column, "epoch", "seq"].into_iter().filter(|name| schema.field_with_name(name).is_ok());
    let keys: Vec<PhysicalSortExpr> = keys
        .map(|name| Ok(PhysicalSortExpr { expr: col(name, schema)?, options }))
        .collect::<Result<_, DataFusionError>>()?;
    let order = LexOrdering::new(keys)
        .ok_or_else(|| DataFusionError::Internal("the table has none of the columns it is sorted by".to_owned()))?;
    let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    StreamingMergeBuilder::new()
        .with_streams(streams)
        .with_schema(schema.clone())
        .with_expressions(&order)
        .with_metrics(BaselineMetrics::new(&ExecutionPlanMetricsSet::new(), 0))
        .with_batch_size(BATCH_ROWS)
        .with_reservation(MemoryConsumer::new("compaction").register(&pool))
        // Equal rows in the order of the log, each time.
        .with_round_robin_tie_breaker(false)
        .build()
}

#[cfg(test)]
mod tests;
