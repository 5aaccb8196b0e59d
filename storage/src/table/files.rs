//! Listing a table's files, and what their footers say.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::parquet::arrow::parquet_to_arrow_schema;
use datafusion::parquet::file::metadata::ParquetMetaData;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, path::Path};
use parking_lot::Mutex;

use super::TableError;
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
pub(super) struct TableFile {
    pub(super) partition: Partition,
    pub(super) name: FileName,
    pub(super) meta: ObjectMeta,
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

/// The visible files of a table, by partition, shard and range.
pub(super) async fn list(store: &Store, table: &str) -> Result<Vec<TableFile>, TableError> {
    let mut found: HashMap<(Partition, FileName), ObjectMeta> = HashMap::new();
    let folder = Path::from(layout::table(table));
    let reading = store.reading();
    let mut objects = reading.list(Some(&folder));
    while let Some(meta) = objects.try_next().await.map_err(|error| failed(store, &error))? {
        if let Some((owner, partition, name)) = layout::parse_table_file(meta.location.as_ref())
            && owner == table
        {
            found.insert((partition, name), meta);
        }
    }
    let visible = layout::visible(found.keys().copied());
    Ok(visible
        .into_iter()
        .filter_map(|(partition, name)| {
            found.remove(&(partition, name)).map(|meta| TableFile { partition, name, meta })
        })
        .collect())
}

/// What is known of a file without reading its rows.
#[derive(Debug, Clone)]
pub(super) struct Fact {
    /// Its columns, with units and descriptions.
    pub(super) schema: SchemaRef,
    /// The column that its partition comes from.
    pub(super) time_column: Option<String>,
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
        let metadata = footer.fetch_metadata().await.map_err(|error| failed(&error))?;
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
    Ok(Fact {
        schema: Arc::new(Schema::new(plain.fields().iter().map(described).collect::<Vec<_>>())),
        time_column: entries.get(key::TIME_COLUMN).map(|name| (*name).to_owned()),
    })
}
