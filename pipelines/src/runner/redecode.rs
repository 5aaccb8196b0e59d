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
//!   kind: what is decided by the old streams stands before the change in the log, what is decided by the new ones
//!   behind it. So a new pass is needed only when streams change, and they change only behind a cut.
//!
//! A part that fails to be read (the store is away) is left for the next cut. Absent: letters of plain records (their
//! stream's name is wrong, not missing), and the removal of letters, whose files are never rewritten.

use std::collections::{BTreeMap, HashSet};
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
use device::schema::{Catalog, SchemaVersion};
use device::seq::Epoch;
use device::time::Timestamp;
use storage::rows::{RowBuilder, TableName};
use storage::schema::DEAD_LETTERS;
use storage::table::TableStore;

use super::{Runner, RunnerError};

/// Counters of a shard's state: for each declared schema and version up to which time of receipt letters were looked at.
const COUNTER: &str = "redecode";

/// Before every letter.
const FROM_THE_START: i64 = i64::MIN;

/// How much earlier than a change of streams a letter may have been received that was decided by the new ones: far longer than
/// a message is on its way to the log.
const UNDER_WAY: i64 = 3_600_000_000_000;

/// All that could be there were looked at.
const DONE: u64 = u64::MAX;

/// Letters looked at in one part: with frames of 64 KiB, 64 MiB.
const PART: usize = 1024;

/// Parts without anything to read that one cut may pass over.
const PARTS: usize = 64;

/// Memory for reading one part, and for finding what has a row already.
const MEMORY: usize = 512 << 20;

/// Schema id and version of a declared stream.
type Schema = (u32, SchemaVersion);

/// Where a shard is with the letters of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Nobody has looked at letters since it is declared. It begins at the next cut, so that letters that are in no
    /// file yet are in one then.
    Never,
    /// Letters received after this time are still to be looked at.
    After(i64),
    /// All were looked at.
    Done,
}

/// Where a shard is with its letters.
///
/// A version that is declared reads the lower ones, too; what was looked at for these stays so. So rows that
/// retention has dropped since do not come back with every new version.
#[derive(Debug, Clone, Default)]
pub(super) struct Letters {
    declared: BTreeMap<Schema, Pass>,
    /// Schemas that were declared once: letters up to this time were looked at.
    gone: BTreeMap<Schema, i64>,
}

fn schemas(catalog: &Catalog) -> impl Iterator<Item = Schema> {
    catalog.streams().iter().filter_map(|stream| Some((stream.schema_id?, stream.version)))
}

impl Letters {
    /// From the counters of a shard's state, of which the checkpoint was taken at a time.
    pub(super) fn stored(counters: &[(String, u64)], catalog: &Catalog, time: Timestamp) -> Self {
        let mut declared: BTreeMap<Schema, Pass> = BTreeMap::new();
        for (name, value) in counters {
            let schema = name.strip_prefix(COUNTER).and_then(|rest| {
                let (id, version) = rest.trim_start().split_once(' ')?;
                Some((id.parse().ok()?, SchemaVersion::from_number(version.parse().ok()?)))
            });
            let pass = if *value == DONE { Pass::Done } else { Pass::After(*value as i64) };
            declared.extend(schema.map(|schema| (schema, pass)));
        }
        let mut letters = Self { declared, gone: BTreeMap::new() };
        letters.change(catalog, time, Pass::Never);
        letters
    }

    /// Goes over to other streams at a time, behind a cut: all letters are in files.
    pub(super) fn declare(&mut self, catalog: &Catalog, time: Timestamp) {
        self.change(catalog, time, Pass::After(FROM_THE_START));
    }

    fn change(&mut self, catalog: &Catalog, time: Timestamp, new: Pass) {
        let before = std::mem::take(&mut self.declared);
        for (schema, pass) in before {
            if catalog.declared(schema.0, schema.1).is_some() {
                self.declared.insert(schema, pass);
                continue;
            }
            let upto = match pass {
                Pass::Done => time.0.saturating_sub(UNDER_WAY),
                Pass::After(after) => after,
                Pass::Never => FROM_THE_START,
            };
            self.gone.insert(schema, upto);
        }
        for (schema, upto) in std::mem::take(&mut self.gone) {
            match catalog.declared(schema.0, schema.1) {
                Some(_) => drop(self.declared.insert(schema, Pass::After(upto))),
                None => drop(self.gone.insert(schema, upto)),
            }
        }
        for schema in schemas(catalog) {
            self.declared.entry(schema).or_insert(new);
        }
    }

    /// As counters.
    pub(super) fn counters(&self) -> Vec<(String, u64)> {
        let name = |(id, version): &Schema| format!("{COUNTER} {id} {}", version.number());
        let value = |pass: Pass| match pass {
            Pass::Never => None,
            Pass::After(after) => Some(after as u64),
            Pass::Done => Some(DONE),
        };
        let declared = self.declared.iter().filter_map(|(schema, pass)| Some((name(schema), value(*pass)?)));
        let gone = self.gone.iter().map(|(schema, upto)| (name(schema), *upto as u64));
        declared.chain(gone).collect()
    }

    /// The earliest time behind which letters are still to be looked at.
    fn after(&self) -> Option<i64> {
        let times = self.declared.values().filter_map(|pass| match pass {
            Pass::After(after) => Some(*after),
            Pass::Never | Pass::Done => None,
        });
        times.min()
    }

    /// Whether letters are to be looked at, now or from the next cut on.
    pub(super) fn waiting(&self) -> bool {
        self.declared.values().any(|pass| *pass != Pass::Done)
    }

    /// Whether a letter of that time, with this schema, is still to be looked at: by the lowest version that reads it.
    fn wants(&self, (id, version): Schema, received: i64) -> bool {
        let highest = SchemaVersion { major: version.major, minor: u16::MAX };
        let lowest = self.declared.range((id, version)..=(id, highest)).next();
        matches!(lowest, Some((_, Pass::After(after))) if received > *after)
    }

    /// Letters up to a time were looked at; `None`: all.
    fn looked(&mut self, upto: Option<i64>) {
        for pass in self.declared.values_mut() {
            if let Pass::After(after) = *pass {
                *pass = upto.map_or(Pass::Done, |upto| Pass::After(after.max(upto)));
            }
        }
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
    /// Up to which time letters were looked at; `None`: all.
    upto: Option<i64>,
}

impl Runner {
    /// Takes the next part of the letters, at a cut. The rows are in the pipelines already; they belong into the outbox of
    /// the checkpoint here.
    pub(super) async fn redecode(&mut self) -> Result<Vec<(String, RecordBatch)>, RunnerError> {
        let mut rows = Vec::new();
        for _ in 0..PARTS {
            let Some(after) = self.letters.after() else { break };
            let part = match self.part(after).await {
                Ok(part) => part,
                Err(error) => {
                    tracing::warn!(shard = %self.parts.shard, %error, "frames of schemas that were unknown cannot be read again now; the next cut tries");
                    self.parts.status.redecoding.store(false, Ordering::Release);
                    break;
                }
            };
            self.letters.looked(part.upto);
            rows = part.rows;
            if !rows.is_empty() {
                break;
            }
        }
        let mut outbox = Vec::new();
        for (table, batch) in rows {
            let rows = batch.num_rows() as u64;
            self.parts.status.redecoded.fetch_add(rows, Ordering::Relaxed);
            tracing::info!(shard = %self.parts.shard, table = &*table, rows, "frames whose schema was unknown have become rows");
            self.feed(&table, &batch)?;
            outbox.push((table.to_string(), batch));
        }
        for pass in self.letters.declared.values_mut().filter(|pass| **pass == Pass::Never) {
            *pass = Pass::After(FROM_THE_START);
        }
        if !self.letters.waiting() {
            self.parts.status.redecoding.store(false, Ordering::Release);
        }
        Ok(outbox)
    }

    async fn part(&self, after: i64) -> Result<Part, DataFusionError> {
        let tables = TableStore::open(self.parts.store.clone());
        let context = session()?;
        let all = || Ok(Part { rows: Vec::new(), upto: None });
        let Some(letters) = self.files(&tables, &context, DEAD_LETTERS).await? else { return all() };
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
        let Some(last) = times.iter().filter_map(newest).max() else { return all() };
        let order = ["ts_ingest", "device", "epoch", "seq"].map(|name| col(name).sort(true, false));
        let part = letters.filter(col("ts_ingest").lt_eq(time(last)))?.sort(order.to_vec())?.collect().await?;
        let mut rows = Vec::new();
        for (table, batch) in self.rows_of(&part)? {
            let batch = self.without_stored(&tables, &context, &table, batch).await?;
            if batch.num_rows() > 0 {
                rows.push((table, batch));
            }
        }
        Ok(Part { rows, upto: (found == PART).then_some(last) })
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
                let schema = (header.schema_id, header.schema_version);
                if header.epoch != epoch.0 || !self.letters.wants(schema, letter.received.0) {
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
                    clock: None,
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
    let mut config = SessionConfig::new().with_target_partitions(1);
    // Payloads of other times than the part's need not be decoded.
    config.options_mut().execution.parquet.pushdown_filters = true;
    Ok(SessionContext::new_with_config_rt(config, runtime))
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

#[cfg(test)]
mod tests {
    use super::*;
    use device::schema::Stream;

    fn catalog(streams: &[(u32, u16, u16)]) -> Catalog {
        let stream = |&(id, major, minor): &(u32, u16, u16)| Stream {
            name: format!("s{id}_{major}").into(),
            schema_id: Some(id),
            version: SchemaVersion { major, minor },
            fields: Vec::new(),
        };
        Catalog::new(streams.iter().map(stream).collect())
    }

    fn version(major: u16, minor: u16) -> SchemaVersion {
        SchemaVersion { major, minor }
    }

    #[test]
    fn what_was_looked_at_stays_so_over_versions_and_absence() {
        let hour = UNDER_WAY;
        let mut letters = Letters::stored(&[], &catalog(&[(7, 1, 1)]), Timestamp(0));
        assert!(letters.waiting() && letters.after().is_none(), "it begins at the next cut");
        letters.declare(&catalog(&[(7, 1, 1), (8, 1, 0)]), Timestamp(hour));
        assert!(letters.wants((8, version(1, 0)), 5) && !letters.wants((7, version(1, 0)), 5));
        letters.looked(Some(4));
        assert!(letters.wants((8, version(1, 0)), 5) && !letters.wants((8, version(1, 0)), 4));
        letters.looked(None);
        // A higher version looks at what is new in it.
        letters.declare(&catalog(&[(8, 1, 2), (8, 2, 0)]), Timestamp(2 * hour));
        let wanted = |letters: &Letters| {
            [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)].map(|(major, minor)| letters.wants((8, version(major, minor)), 5))
        };
        assert_eq!(wanted(&letters), [false, true, true, false, true]);
        let again = Letters::stored(&letters.counters(), &catalog(&[(8, 1, 2), (8, 2, 0)]), Timestamp(2 * hour));
        assert_eq!((wanted(&again), again.counters()), (wanted(&letters), letters.counters()));
        letters.looked(None);
        // No longer declared: what comes meanwhile waits, what was there before is done with.
        letters.declare(&catalog(&[]), Timestamp(9 * hour));
        assert_eq!(letters.after(), None);
        let mut back = Letters::stored(&letters.counters(), &catalog(&[(8, 1, 2)]), Timestamp(20 * hour));
        assert!(!back.wants((8, version(1, 2)), 8 * hour) && back.wants((8, version(1, 2)), 8 * hour + 1));
        back.looked(None);
        assert!(!back.wants((8, version(1, 2)), 30 * hour));
    }
}
