//! Listing a table's files, and what their footers say.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::parquet::arrow::parquet_to_arrow_schema;
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::parquet::file::statistics::Statistics;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, path::Path};
use parking_lot::Mutex;

use super::TableError;
use super::removed::Removed;
use crate::columns;
use crate::layout::{self, FileName, Partition};
use crate::parquet::key;
use crate::store::Store;

/// Footers read at the same time.
const READERS: usize = 16;
/// Footers remembered. They are a few kilobytes each, and a file never changes.
const REMEMBERED: usize = 20_000;

/// One file that counts.
#[derive(Debug, Clone)]
pub(crate) struct TableFile {
    pub(crate) partition: Partition,
    pub(crate) name: FileName,
    pub(crate) meta: ObjectMeta,
}

fn failed(store: &Store, error: &object_store::Error) -> TableError {
    TableError::List { root: store.root().display().to_string(), reason: error.to_string() }
}

pub(super) async fn tables(store: &Store) -> Result<Vec<String>, TableError> {
    let above = Path::from(layout::tables());
    let listed = store.reading().list_with_delimiter(Some(&above)).await.map_err(|error| failed(store, &error))?;
    let mut names: Vec<String> =
        listed.common_prefixes.iter().filter_map(|folder| folder.filename().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

/// How often a listing begins anew because files were taken out meanwhile, before it fails.
const LISTINGS: usize = 100;

/// All files of a table, or of one of its partitions, at one moment, also those that are obsolete; without those on their way out, which are
/// given apart.
pub(super) async fn all(
    store: &Store,
    table: &str,
    within: Option<Partition>,
) -> Result<(Vec<TableFile>, Removed), TableError> {
    let folder = Path::from(match within {
        Some(partition) => layout::partition(table, partition),
        None => layout::table(table),
    });
    let reading = store.reading();
    let mut before = Removed::load(store, table).await?;
    for _ in 0..LISTINGS {
        let mut found: HashMap<(Partition, FileName), ObjectMeta> = HashMap::new();
        let mut objects = reading.list(Some(&folder));
        while let Some(meta) = objects.try_next().await.map_err(|error| failed(store, &error))? {
            if let Some((owner, partition, name)) = layout::parse_table_file(meta.location.as_ref())
                && owner == table
                && within.is_none_or(|within| within == partition)
                && !before.files.contains(&(partition, name))
            {
                found.insert((partition, name), meta);
            }
        }
        let after = Removed::load(store, table).await?;
        if after.version == before.version {
            let file = |((partition, name), meta)| TableFile { partition, name, meta };
            let mut files: Vec<TableFile> = found.into_iter().map(file).collect();
            files.sort_by_key(|file| (file.partition, file.name));
            return Ok((files, after));
        }
        before = after;
    }
    let reason = format!("files are taken out of table {table} faster than it can be listed; try again later");
    Err(TableError::List { root: store.root().display().to_string(), reason })
}

/// The visible files of a table or of one of its partitions, by partition, shard and range, if there were only those
/// that `counts` takes.
///
/// What does not count covers nothing either: a file that was merged of one that counts and one that does not yet
/// must not hide the first.
pub(super) async fn list(
    store: &Store,
    table: &str,
    within: Option<Partition>,
    counts: impl Fn(FileName) -> bool,
) -> Result<Vec<TableFile>, TableError> {
    let (files, _) = all(store, table, within).await?;
    Ok(visible(files.into_iter().filter(|file| counts(file.name)).collect()))
}

/// Those of `files` that no other covers, by partition, shard and range.
pub(super) fn visible(files: Vec<TableFile>) -> Vec<TableFile> {
    let mut found: HashMap<(Partition, FileName), TableFile> =
        files.into_iter().map(|file| ((file.partition, file.name), file)).collect();
    let visible = layout::visible(found.keys().copied().collect::<Vec<_>>());
    visible.into_iter().filter_map(|key| found.remove(&key)).collect()
}

/// Whether a store said that an object is not there, somewhere below this error.
pub fn is_gone(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<object_store::Error>() {
            Some(object_store::Error::NotFound { .. }) => return true,
            _ => next = error.source(),
        }
    }
    false
}

/// What is known of a file without reading its rows.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    /// Its columns, with units and descriptions.
    pub(crate) schema: SchemaRef,
    /// The column that its partition comes from.
    pub(crate) time_column: Option<String>,
    /// `major.minor` of the schema it was written under.
    pub(crate) version: Option<String>,
    /// The latest time in it, nanoseconds since the Unix epoch.
    pub(crate) newest: Option<i64>,
    /// It was merged of files whose rows it holds.
    pub(crate) merged: bool,
    /// Rows.
    pub(crate) rows: u64,
    /// Bytes of its largest row group, compressed.
    pub(crate) group_bytes: u64,
}

/// The facts of all files seen so far.
#[derive(Debug)]
pub(super) struct Facts {
    reading: Arc<dyn ObjectStore>,
    known: Mutex<HashMap<Path, Arc<Fact>>>,
}

impl Facts {
    pub(super) fn new(store: &Store) -> Self {
        Self { reading: store.reading(), known: Mutex::new(HashMap::new()) }
    }

    /// The facts of `files`, the newest file last.
    pub(super) async fn of(&self, table: &str, files: &[TableFile]) -> Result<Vec<Arc<Fact>>, TableError> {
        let mut order = files.to_vec();
        order.sort_by_key(|file| (file.partition, file.name.to, file.name.shard));
        futures::stream::iter(order).map(|file| self.one(table, file)).buffered(READERS).try_collect().await
    }

    async fn one(&self, table: &str, file: TableFile) -> Result<Arc<Fact>, TableError> {
        if let Some(known) = self.known.lock().get(&file.meta.location) {
            return Ok(known.clone());
        }
        let failed =
            |error: &dyn std::fmt::Display| TableError::File { path: file.path(table), reason: error.to_string() };
        let footer = DFParquetMetadata::new(&*self.reading, &file.meta).with_metadata_size_hint(Some(64 << 10));
        let metadata = footer.fetch_metadata().await.map_err(|error| match is_gone(&error) {
            true => TableError::Gone { path: file.path(table) },
            false => failed(&error),
        })?;
        let fact = Arc::new(fact(&metadata).map_err(|error| failed(&error))?);
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(file.meta.location.clone(), fact.clone());
        Ok(fact)
    }
}

fn fact(metadata: &ParquetMetaData) -> datafusion::parquet::errors::Result<Fact> {
    let groups = metadata.row_groups();
    let metadata = metadata.file_metadata();
    let plain = columns::stored_schema(&parquet_to_arrow_schema(metadata.schema_descr(), None)?);
    let entries: HashMap<&str, &str> = metadata
        .key_value_metadata()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry.key.as_str(), entry.value.as_deref()?)))
        .collect();
    let described = |field: &Arc<Field>| {
        let mut about = HashMap::new();
        for (prefix, kind) in [(key::UNIT, "unit"), (key::DESCRIPTION, "description")] {
            if let Some(text) = entries.get(format!("{prefix}{}", field.name()).as_str()) {
                about.insert(kind.to_owned(), (*text).to_owned());
            }
        }
        field.as_ref().clone().with_metadata(about)
    };
    let text = |key| entries.get(key).map(|text: &&str| (*text).to_owned());
    let time_column = text(key::TIME_COLUMN);
    let times = groups.iter().flat_map(|group| group.columns());
    let times = times.filter(|column| Some(column.column_path().string()) == time_column);
    let newest = times.filter_map(|column| match column.statistics() {
        Some(Statistics::Int64(values)) => values.max_opt().copied(),
        _ => None,
    });
    Ok(Fact {
        schema: Arc::new(Schema::new(plain.fields().iter().map(described).collect::<Vec<_>>())),
        version: text(key::VERSION),
        newest: newest.max(),
        merged: entries.contains_key(key::MERGED),
        rows: groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum(),
        group_bytes: groups.iter().filter_map(|group| u64::try_from(group.compressed_size()).ok()).max().unwrap_or(0),
        time_column,
    })
}
