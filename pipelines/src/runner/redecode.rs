//! Frames whose schema was not declared when they came become rows when it is.
//!
//! Such a frame stands whole in `_dead_letters`, its numbers acknowledged. When a shard goes over to other streams, its
//! state says so ([`REDECODE`]), and from then on each cut takes the next part of the letters, in the order of
//! receipt, until all that were there have been looked at. What can be read now is handed to the pipelines and goes into the
//! outbox of the checkpoint that stands at this cut.
//!
//! **Why each row appears exactly once.**
//! - Letters are read from files of cuts before this one: they are a function of the log before the last cut, and
//!   so are the rows made of them. No other input is asked.
//! - The checkpoint writes rows, pipelines' states and the place up to which letters were looked at in one atomic batch. A
//!   crash before it repeats this part, of which nothing remains; a crash behind it finds the rows in the outbox, from where
//!   the cut writes them, and goes on behind them.
//! - A number that has a row already, in a file or in this part, gets none: so a stream that was declared, dropped and
//!   declared again, or a letter that overlaps another, makes no second row. Earlier parts are in files by then, since
//!   each part ends with a cut.
//! - A letter that still cannot be read stays what it is. A frame that comes when its schema is declared is never a letter of this
//!   kind, so a new pass is needed only when streams change; and they change only where the log is cut.
//!
//! A part that fails to be read (the store is away) is left for the next cut. Absent: letters of plain records (their
//! stream's name is wrong, not missing), and the removal of letters, whose files are never rewritten.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampNanosecondType, UInt32Type};
use bytes::Bytes;
use datafusion::catalog::MemTable;
use datafusion::common::{DataFusionError, JoinType, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{SessionConfig, SessionContext};
use device::entry::{Body, Entry, Reason, Records, Run, Runs, Stamps};
use device::id::DeviceId;
use device::payload::{PayloadFormat, read_frame_header};
use device::seq::Epoch;
use device::time::Timestamp;
use storage::rows::{RowBuilder, TableName};
use storage::schema::DEAD_LETTERS;
use storage::table::TableStore;

use super::{Runner, RunnerError};

/// The counter of a shard's state that says up to which time of receipt letters were looked at; [`DONE`]: all.
pub const REDECODE: &str = "redecode";

/// The value of [`REDECODE`] with which a shard begins to look at all its letters.
pub const FROM_THE_START: u64 = i64::MIN as u64;

const DONE: u64 = u64::MAX;

/// Letters looked at in one part: with frames of 64 KiB, 32 MiB.
const PART: usize = 512;

/// Memory for reading one part, and for finding what has a row already.
const MEMORY: usize = 512 << 20;

/// Where a shard is with its letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// Its state was written by a weir that did not look at letters again. It begins at the first cut, so that letters that
    /// are in no file yet are in one then.
    Never,
    /// Letters received after this time are still to be looked at.
    After(i64),
    /// All that could be there were looked at.
    Done,
}

impl Pass {
    /// From the counters of a shard's state.
    pub(super) fn stored(counters: &[(String, u64)]) -> Self {
        match counters.iter().find(|(name, _)| name == REDECODE) {
            None => Self::Never,
            Some((_, DONE)) => Self::Done,
            Some((_, after)) => Self::After(*after as i64),
        }
    }

    /// As a counter.
    pub(super) fn counter(self) -> Option<(String, u64)> {
        let value = match self {
            Self::Never => return None,
            Self::After(after) => after as u64,
            Self::Done => DONE,
        };
        Some((REDECODE.to_owned(), value))
    }
}

/// A letter that names its numbers.
struct Letter {
    device: DeviceId,
    received: Timestamp,
    payload: Bytes,
    run: Run,
}

/// What a part gave.
struct Part {
    rows: Vec<(TableName, RecordBatch)>,
    /// Where the next one goes on.
    then: Pass,
}

impl Runner {
    /// Takes the next part of the letters, at a cut. The rows are in the pipelines already; they belong into the outbox of
    /// the checkpoint here.
    pub(super) async fn redecode(&mut self) -> Result<Vec<(String, RecordBatch)>, RunnerError> {
        let after = match self.pass {
            Pass::Done => return Ok(Vec::new()),
            Pass::Never => {
                self.pass = Pass::After(i64::MIN);
                return Ok(Vec::new());
            }
            Pass::After(after) => after,
        };
        let part = match self.part(after).await {
            Ok(part) => part,
            Err(error) => {
                tracing::warn!(shard = %self.parts.shard, %error, "frames of schemas that were unknown cannot be read again now; the next cut tries");
                self.parts.status.redecoding.store(false, Ordering::Release);
                return Ok(Vec::new());
            }
        };
        let mut outbox = Vec::new();
        for (table, batch) in part.rows {
            let rows = batch.num_rows() as u64;
            self.parts.status.redecoded.fetch_add(rows, Ordering::Relaxed);
            tracing::info!(shard = %self.parts.shard, table = &*table, rows, "frames whose schema was unknown have become rows");
            self.feed(&table, &batch)?;
            outbox.push((table.to_string(), batch));
        }
        self.pass = part.then;
        self.parts.status.redecoding.store(self.pass != Pass::Done, Ordering::Release);
        Ok(outbox)
    }

    async fn part(&self, after: i64) -> Result<Part, DataFusionError> {
        let tables = TableStore::open(self.parts.store.clone());
        let context = session()?;
        let Some(letters) = self.files(&tables, &context, DEAD_LETTERS).await? else {
            return Ok(Part { rows: Vec::new(), then: Pass::Done });
        };
        let unknown = col("reason").eq(lit(Reason::UnknownSchema.as_str()));
        let letters = letters.filter(unknown.and(col("epoch").is_not_null()).and(col("ts_ingest").gt(time(after))))?;
        // Their times first: only as many payloads are held as belong to the part. Letters of one time stay together.
        let times = letters.clone().select(vec![col("ts_ingest")])?;
        let times = times.sort(vec![col("ts_ingest").sort(true, false)])?.limit(0, Some(PART))?.collect().await?;
        let found: usize = times.iter().map(RecordBatch::num_rows).sum();
        let newest = |batch: &RecordBatch| {
            let times = batch.column(0).as_primitive_opt::<TimestampNanosecondType>()?;
            arrow::compute::max(times)
        };
        let Some(last) = times.iter().filter_map(newest).max() else {
            return Ok(Part { rows: Vec::new(), then: Pass::Done });
        };
        let order = ["ts_ingest", "device", "epoch", "seq"].map(|name| col(name).sort(true, false));
        let part = letters.filter(col("ts_ingest").lt_eq(time(last)))?.sort(order.to_vec())?.collect().await?;
        let mut rows = Vec::new();
        for (table, batch) in self.rows_of(&part)? {
            let batch = self.without_stored(&tables, &context, &table, batch).await?;
            if batch.num_rows() > 0 {
                rows.push((table, batch));
            }
        }
        Ok(Part { rows, then: if found < PART { Pass::Done } else { Pass::After(last) } })
    }

    /// A table as the files of this shard have it that were complete at the last cut.
    async fn files(
        &self,
        tables: &TableStore,
        context: &SessionContext,
        table: &str,
    ) -> Result<Option<DataFrame>, DataFusionError> {
        let provider = tables.of_shard(table, self.parts.shard, self.recovered.cut_barrier).await;
        let provider = provider.map_err(|error| DataFusionError::External(Box::new(error)))?;
        provider.map(|provider| context.read_table(provider)).transpose()
    }

    /// The rows of letters whose schema is declared now.
    fn rows_of(&self, letters: &[RecordBatch]) -> Result<Vec<(TableName, RecordBatch)>, DataFusionError> {
        let catalog = &self.parts.catalog;
        let mut builder = RowBuilder::new(catalog.clone());
        for batch in letters {
            for letter in (0..batch.num_rows()).filter_map(|row| letter(batch, row)) {
                let Ok(header) = read_frame_header(&letter.payload) else { continue };
                let Run { epoch, seq, len, .. } = letter.run;
                // The frame's own numbers, or a part of them.
                let index = seq.checked_sub(header.seq).and_then(|index| u32::try_from(index).ok());
                let Some(index) = index.filter(|index| index.checked_add(len).is_some_and(|end| end <= header.records))
                else {
                    continue;
                };
                if header.epoch != epoch.0 || catalog.declared(header.schema_id, header.schema_version).is_none() {
                    continue;
                }
                let mut runs = Runs::new();
                runs.push(Run { index, ..letter.run });
                let records = Records {
                    format: PayloadFormat::Frame,
                    payload: letter.payload,
                    runs,
                    stamps: Stamps::new(),
                    assured: true,
                };
                let entry = Entry { device: letter.device, received: letter.received, body: Body::Records(records) };
                builder.push(&entry)?;
            }
        }
        let mut rows = builder.finish()?;
        // A frame that does not fit what is declared: its letter stands there already.
        rows.retain(|(table, _)| &**table != DEAD_LETTERS);
        Ok(rows)
    }

    /// Leaves out rows whose number has a row in a file, or before in the same batch.
    async fn without_stored(
        &self,
        tables: &TableStore,
        context: &SessionContext,
        table: &str,
        batch: RecordBatch,
    ) -> Result<RecordBatch, DataFusionError> {
        let keys = ["device", "epoch", "seq"];
        let mut stored: HashSet<(String, i64, i64)> = HashSet::new();
        if let Some(files) = self.files(tables, context, table).await? {
            let new = MemTable::try_new(batch.schema(), vec![vec![batch.clone()]])?;
            let new = context
                .read_table(Arc::new(new))?
                .select(keys.map(|key| col(key).alias(format!("new_{key}"))).to_vec())?;
            // One number has one record, and that one time: files of other times need not be opened.
            let times =
                batch.column_by_name("ts").and_then(|times| times.as_primitive_opt::<TimestampNanosecondType>());
            let (from, to) = times.map_or((None, None), |t| (arrow::compute::min(t), arrow::compute::max(t)));
            let (from, to) = (from.unwrap_or(i64::MIN), to.unwrap_or(i64::MAX));
            let files = files.filter(col("ts").gt_eq(time(from)).and(col("ts").lt_eq(time(to))))?;
            let files = files.select(keys.map(col).to_vec())?;
            let both = new.join(files, JoinType::Inner, &["new_device", "new_epoch", "new_seq"], &keys, None)?;
            for batch in both.select(keys.map(col).to_vec())?.collect().await? {
                stored.extend((0..batch.num_rows()).filter_map(|row| number(&batch, row)));
            }
        }
        let keep: BooleanArray =
            (0..batch.num_rows()).map(|row| number(&batch, row).map(|number| stored.insert(number))).collect();
        Ok(filter_record_batch(&batch, &keep)?)
    }
}

fn session() -> Result<SessionContext, DataFusionError> {
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY, 1.0).build_arc()?;
    Ok(SessionContext::new_with_config_rt(SessionConfig::new().with_target_partitions(1), runtime))
}

fn time(nanos: i64) -> Expr {
    lit(ScalarValue::TimestampNanosecond(Some(nanos), Some(Arc::from("UTC"))))
}

fn text(batch: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(name)?;
    match column.as_string_opt::<i32>() {
        Some(texts) => texts.is_valid(row).then(|| texts.value(row).to_owned()),
        None => {
            column.as_string_view_opt().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
        }
    }
}

fn integer(batch: &RecordBatch, name: &str, row: usize) -> Option<i64> {
    let column = batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
    column.is_valid(row).then(|| column.value(row))
}

/// Device, epoch and sequence number of a row.
fn number(batch: &RecordBatch, row: usize) -> Option<(String, i64, i64)> {
    Some((text(batch, "device", row)?, integer(batch, "epoch", row)?, integer(batch, "seq", row)?))
}

fn letter(batch: &RecordBatch, row: usize) -> Option<Letter> {
    let (device, epoch, seq) = number(batch, row)?;
    let received = batch.column_by_name("ts_ingest")?.as_primitive_opt::<TimestampNanosecondType>()?.value(row);
    let len = batch.column_by_name("records")?.as_primitive_opt::<UInt32Type>()?.value(row);
    let payload = batch.column_by_name("payload")?;
    let payload = match payload.as_binary_opt::<i32>() {
        Some(bytes) => Bytes::copy_from_slice(bytes.value(row)),
        None => Bytes::copy_from_slice(payload.as_binary_view_opt()?.value(row)),
    };
    let run = Run { index: 0, len, epoch: Epoch(epoch as u64), seq: seq as u64 };
    Some(Letter { device: DeviceId::new(&device).ok()?, received: Timestamp(received), payload, run })
}
