//! How long rows stay: which partitions are too old, and taking their files out of a table.
//!
//! [`expired`] decides, from values alone. The rest is done in steps, so that no reader ever sees half of a partition, also
//! not after a crash between any two:
//!
//! 1. the rows that go are counted by device and epoch ([`TableStore::count`]), because an audit will ask for them;
//! 2. [`TableStore::hide`] puts the new count down and then names the files in the table's list of what is on its way
//!    out (`table/removed.rs`), which takes all of them out of every listing in one step;
//! 3. when nobody can be reading them any more, [`TableStore::erase`] deletes them, then strikes them off the list.
//!
//! Compaction takes obsolete files out by the same steps. Deliberately absent: when to do this, and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt32Type, UInt64Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use device::id::ShardId;
use device::seq::Barrier;
use device::time::Timestamp;
use futures::TryStreamExt;
use object_store::ObjectStoreExt as _;
use object_store_14::{ObjectStoreExt as _, PutPayload};
use parquet::arrow::ProjectionMask;

use crate::layout::{self, FileName, Partition};
use crate::schema::DEAD_LETTERS;
use crate::table::{Moment, Removed, TableError, TableStore};

/// First and last nanosecond of a range of time, both of it.
pub type Range = (i64, i64);

/// Rows by device and epoch.
pub type Counts = BTreeMap<(String, i64), u64>;

/// A file of a table: where it stands, and its name.
pub type File = (Partition, FileName);

/// Everything before this time is older than `age_ns`, by the earlier of the engine's clock and the newest time in the
/// table: so neither a wrong clock of the engine nor one of a device can make anything old that is not. `None`: the
/// table has no rows, and so no age.
pub fn horizon(now: Timestamp, newest: Option<i64>, age_ns: i64) -> Option<i64> {
    newest.map(|newest| newest.min(now.0).saturating_sub(age_ns))
}

/// The partitions that lie wholly before `horizon`, oldest first.
///
/// A partition stays while somebody holds a time in it, and while it is not settled: a cut that is not done may still
/// write, or write once more, what belongs to it.
pub fn expired(
    partitions: impl IntoIterator<Item = (Partition, bool)>,
    horizon: i64,
    held: &[Range],
) -> Vec<Partition> {
    let mut all: BTreeMap<Partition, bool> = BTreeMap::new();
    for (partition, settled) in partitions {
        *all.entry(partition).or_insert(true) &= settled;
    }
    let free = |partition: Partition| held.iter().all(|range| !overlap(*range, partition.span()));
    let mut old: Vec<Partition> = all
        .into_iter()
        .filter(|(partition, settled)| *settled && partition.span().1 < horizon && free(*partition))
        .map(|(partition, _)| partition)
        .collect();
    old.sort_by_key(|partition| partition.span());
    old
}

/// Whether two ranges have a nanosecond in common.
pub fn overlap(one: Range, other: Range) -> bool {
    one.0 <= other.1 && other.0 <= one.1
}

/// The files of a table at one moment, without those on their way out.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// All files, also obsolete ones, by partition and name.
    pub files: Vec<Seen>,
    /// The newest time in the table's files, nanoseconds since the Unix epoch.
    pub newest: Option<i64>,
}

/// A file as retention and compaction look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Where it stands.
    pub partition: Partition,
    /// Its name.
    pub name: FileName,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub written: Timestamp,
    /// No other file covers it.
    pub visible: bool,
}

impl Seen {
    /// Whether the cut that this file is of is done; `done` has the last cut of each shard that is.
    pub fn settled(&self, done: &BTreeMap<ShardId, Barrier>) -> bool {
        done.get(&self.name.shard).is_some_and(|done| self.name.to <= *done)
    }
}

impl TableStore {
    /// The files of a table as they are now; or of one partition, whose newest time is then the newest of all.
    pub async fn census(&self, table: &str, within: Option<Partition>) -> Result<Census, TableError> {
        let all = self.all(table, within).await?;
        let visible = layout::visible(all.iter().map(|file| (file.partition, file.name)));
        let visible: BTreeSet<File> = visible.into_iter().collect();
        let last = visible.iter().map(|(partition, _)| *partition).max_by_key(|partition| partition.span().1);
        let mut newest = last.map(|partition| partition.span().0);
        let in_last = |file: &&_| last == Some(file_of(file).0) && visible.contains(&file_of(file));
        let in_last: Vec<_> = all.iter().filter(in_last).cloned().collect();
        for fact in self.facts(table, &in_last).await? {
            newest = newest.max(fact.newest);
        }
        let files = all
            .iter()
            .map(|file| Seen {
                partition: file.partition,
                name: file.name,
                bytes: file.meta.size,
                written: Timestamp(file.meta.last_modified.timestamp_nanos_opt().unwrap_or(i64::MAX)),
                visible: visible.contains(&file_of(file)),
            })
            .collect();
        Ok(Census { files, newest })
    }

    /// Rows of some files by device and epoch. Of dead letters, the records in them that have numbers.
    pub async fn count(&self, table: &str, files: &[File]) -> Result<Counts, TableError> {
        let mut counts = Counts::new();
        for (partition, name) in files {
            let path = layout::table_file(table, *partition, *name);
            let failed = |reason: String| TableError::File { path: path.clone(), reason };
            let builder = self.open_file(&path).await?;
            let wanted =
                ["device", "epoch", "records"].into_iter().filter(|name| *name != "records" || table == DEAD_LETTERS);
            let columns = ProjectionMask::columns(builder.parquet_schema(), wanted);
            let rows = builder.with_projection(columns).build().map_err(|error| failed(error.to_string()))?;
            let mut rows = rows.map_err(|error| failed(error.to_string()));
            while let Some(batch) = rows.try_next().await? {
                add(&mut counts, &batch, table == DEAD_LETTERS)
                    .ok_or_else(|| failed("it has other columns".to_owned()))?;
            }
        }
        Ok(counts)
    }

    /// Takes files out of all listings from now on, in one step; `counts` are added to what is known to have been
    /// removed. When readings that began before the returned moment have ended, nobody in this process needs them.
    pub async fn hide(&self, table: &str, files: &[File], counts: &Counts) -> Result<Moment, TableError> {
        let store = self.store();
        let mut removed = Removed::load(store, table).await?;
        let before = removed.ledger;
        if !counts.is_empty() {
            let mut all = self.load_counts(table, before).await?;
            for (key, rows) in counts {
                *all.entry(key.clone()).or_default() += rows;
            }
            // Under a name of its own: it counts from the moment on that the list names it.
            let version = removed.version + 1;
            let path = layout::expired(table, version);
            let failed = |reason: String| TableError::Remove { path: path.clone(), reason };
            let bytes = encode(&all).map_err(|error| failed(error.to_string()))?;
            let target = object_store_14::path::Path::from(path.as_str());
            let put = store.writing().put(&target, PutPayload::from(bytes)).await;
            put.map_err(|error| failed(error.to_string()))?;
            removed.ledger = Some(version);
        }
        removed.files.extend(files);
        let saved = removed.save(store, table).await?;
        if let Some(before) = before.filter(|before| saved.ledger != Some(*before)) {
            let path = layout::expired(table, before);
            if let Err(error) = store.writing().delete(&object_store_14::path::Path::from(path.as_str())).await {
                tracing::debug!(path, %error, "an old count of removed rows stays");
            }
        }
        Ok(self.moment())
    }

    /// Files that are on their way out of a table.
    pub async fn hidden(&self, table: &str) -> Result<Vec<File>, TableError> {
        Ok(Removed::load(self.store(), table).await?.files.into_iter().collect())
    }

    /// Deletes files that are hidden. To be called when nobody reads them; may be repeated.
    pub async fn erase(&self, table: &str, files: &[File]) -> Result<(), TableError> {
        let erasing = self.store().erasing();
        for (partition, name) in files {
            let path = layout::table_file(table, *partition, *name);
            match erasing.delete(&object_store_14::path::Path::from(path.as_str())).await {
                Ok(()) | Err(object_store_14::Error::NotFound { .. }) => {}
                Err(error) => return Err(TableError::Remove { path, reason: error.to_string() }),
            }
        }
        let mut removed = Removed::load(self.store(), table).await?;
        let before = removed.files.len();
        for file in files {
            removed.files.remove(file);
        }
        if removed.files.len() < before {
            removed.save(self.store(), table).await?;
        }
        Ok(())
    }

    /// Rows that retention has removed, by device and epoch.
    pub async fn expired(&self, table: &str) -> Result<Counts, TableError> {
        let mut ledger = Removed::load(self.store(), table).await?.ledger;
        for _ in 0..10 {
            match self.load_counts(table, ledger).await {
                Err(TableError::Gone { .. }) => ledger = Removed::load(self.store(), table).await?.ledger,
                done => return done,
            }
        }
        self.load_counts(table, ledger).await
    }

    async fn load_counts(&self, table: &str, version: Option<u64>) -> Result<Counts, TableError> {
        let Some(version) = version else { return Ok(Counts::new()) };
        let path = layout::expired(table, version);
        let failed = |reason: String| TableError::File { path: path.clone(), reason };
        let bytes = match self.store().reading().get(&object_store::path::Path::from(path.as_str())).await {
            Ok(found) => found.bytes().await.map_err(|error| failed(error.to_string()))?,
            Err(object_store::Error::NotFound { .. }) => return Err(TableError::Gone { path }),
            Err(error) => return Err(failed(error.to_string())),
        };
        decode(bytes).map_err(failed)
    }
}

fn file_of(file: &crate::table::TableFile) -> File {
    (file.partition, file.name)
}

/// Adds the rows of a batch; `None` if it lacks the columns.
fn add(counts: &mut Counts, batch: &RecordBatch, dead: bool) -> Option<()> {
    let devices = batch.column_by_name("device")?.as_string_opt::<i32>()?;
    let epochs = batch.column_by_name("epoch")?.as_primitive_opt::<Int64Type>()?;
    let records = match dead {
        true => Some(batch.column_by_name("records")?.as_primitive_opt::<UInt32Type>()?),
        false => None,
    };
    // Files are sorted by device, so a key stays the same for long.
    let mut run: Option<((&str, i64), u64)> = None;
    let mut close = |run: Option<((&str, i64), u64)>| {
        if let Some(((device, epoch), rows)) = run.filter(|(_, rows)| *rows > 0) {
            *counts.entry((device.to_owned(), epoch)).or_default() += rows;
        }
    };
    for row in (0..batch.num_rows()).filter(|row| epochs.is_valid(*row)) {
        let key = (devices.value(row), epochs.value(row));
        let rows = match records {
            Some(records) if records.is_valid(row) => u64::from(records.value(row)),
            Some(_) => 0,
            None => 1,
        };
        match &mut run {
            Some((same, count)) if *same == key => *count += rows,
            _ => close(run.replace((key, rows))),
        }
    }
    close(run);
    Some(())
}

fn encode(counts: &Counts) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("rows", DataType::UInt64, false),
    ]));
    let batch = RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(StringArray::from_iter_values(counts.keys().map(|(device, _)| device))),
            Arc::new(Int64Array::from_iter_values(counts.keys().map(|(_, epoch)| *epoch))),
            Arc::new(UInt64Array::from_iter_values(counts.values().copied())),
        ],
    )?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    writer.finish()?;
    writer.into_inner()
}

fn decode(bytes: Bytes) -> Result<Counts, String> {
    let reader = StreamReader::try_new(std::io::Cursor::new(bytes), None).map_err(|error| error.to_string())?;
    let mut counts = Counts::new();
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        let columns = (
            batch.column_by_name("device").and_then(|column| column.as_string_opt::<i32>()),
            batch.column_by_name("epoch").and_then(|column| column.as_primitive_opt::<Int64Type>()),
            batch.column_by_name("rows").and_then(|column| column.as_primitive_opt::<UInt64Type>()),
        );
        let (Some(devices), Some(epochs), Some(rows)) = columns else { return Err("it has other columns".to_owned()) };
        for row in 0..batch.num_rows() {
            counts.insert((devices.value(row).to_owned(), epochs.value(row)), rows.value(row));
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests;
