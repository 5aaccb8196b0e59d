//! Tables as DataFusion sees them: the files that count, together with what is not in files yet.
//!
//! A provider is a snapshot: its files are listed when it is made, so one query sees one state, and later queries ask
//! for a new one. Files that are covered by others are left out, whole files are left out by their partition, and
//! within the rest DataFusion prunes by Parquet's own statistics, page index and bloom filters.

mod files;
mod live;
mod provider;
mod prune;
mod readers;
mod removed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{DefaultParquetFileReaderFactory, ParquetFileReaderFactory};
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use device::id::ShardId;
use device::seq::Barrier;
use object_store::ObjectStoreExt as _;
use parquet::arrow::ParquetRecordBatchStreamBuilder;
use parquet::arrow::async_reader::AsyncFileReader;
use thiserror::Error;

use self::files::Facts;
pub use self::files::is_gone;
pub(crate) use self::files::{Fact, TableFile};
pub use self::live::{LiveShard, LiveTable};
use self::provider::FilesAndLive;
use self::readers::Readers;
pub use self::readers::{Moment, Reading};
pub(crate) use self::removed::Removed;
use crate::columns;
use crate::layout::{self, FileName, Partition};
use crate::store::Store;

/// Why tables could not be read.
#[derive(Debug, Error)]
pub enum TableError {
    /// The store failed.
    #[error("cannot list the tables of {root}: {reason}")]
    List {
        /// Which store.
        root: String,
        /// What went wrong.
        reason: String,
    },
    /// A file is not what its name says.
    #[error("cannot read {path}: {reason}; move the file away to read the rest of the table")]
    File {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A file was removed between its listing and its reading. To list again is to find what took its place.
    #[error("{path} was removed while it was about to be read; ask again")]
    Gone {
        /// Which file.
        path: String,
    },
    /// Files could not be taken out of a table. It may be repeated.
    #[error("cannot write or delete {path}: {reason}")]
    Remove {
        /// Which object.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// Rows that are not in files yet do not fit the table: a bug.
    #[error("the newest rows of table {table} do not fit it: {reason}")]
    Live {
        /// Which table.
        table: String,
        /// What is wrong.
        reason: String,
    },
    /// DataFusion refused the table.
    #[error("cannot register table {table}: {reason}")]
    Register {
        /// Which table.
        table: String,
        /// Why.
        reason: String,
    },
}

/// Reads pieces of a file.
pub(crate) type FileReader = Box<dyn AsyncFileReader>;

/// How often a snapshot begins anew because a file was removed under it, before it fails.
const SNAPSHOTS: usize = 10;

/// The tables of a store.
#[derive(Debug)]
pub struct TableStore {
    store: Store,
    facts: Facts,
    readers: Readers,
}

impl TableStore {
    /// The tables below a store.
    pub fn open(store: Store) -> Self {
        let facts = Facts::new(&store);
        Self { store, facts, readers: Readers::default() }
    }

    /// Names of all tables that have a folder, in order.
    pub async fn tables(&self) -> Result<Vec<String>, TableError> {
        files::tables(&self.store).await
    }

    /// The files of a table that count now, by partition, shard and range.
    pub async fn files(&self, table: &str) -> Result<Vec<String>, TableError> {
        let files = files::list(&self.store, table, None, |_| true).await?;
        Ok(files.into_iter().map(|file| file.path(table)).collect())
    }

    /// Keeps every file that can be listed from now on from being deleted by this process, until it is dropped.
    /// Take it before live rows: files that reach beyond them do not count, and what those replaced must still be there.
    pub fn reading(&self) -> Reading {
        self.readers.begin()
    }

    /// Whether a text, for instance an error of a query, names a file of a table that is not there any more. Readers of
    /// Parquet tell what they could not find in words only.
    pub async fn names_gone(&self, text: &str) -> bool {
        let reading = self.store.reading();
        for word in text.split(|c: char| c.is_whitespace() || "\"'`,;:()".contains(c)) {
            let Some(path) = word.find("tables/").and_then(|at| word.get(at..)) else { continue };
            if layout::parse_table_file(path).is_some() {
                let found = reading.head(&object_store::path::Path::from(path)).await;
                if matches!(found, Err(object_store::Error::NotFound { .. })) {
                    return true;
                }
            }
        }
        false
    }

    /// A snapshot of a table to query: its files and `live` rows. `None` if nothing at all is known of it.
    ///
    /// Of a shard in `live`, only files up to its `files_upto` count; take the live rows first and then call this,
    /// so that a cut in between shows its rows once. Its files are not deleted by this process while it lives.
    pub async fn provider(
        &self,
        table: &str,
        live: Option<LiveTable>,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        let shards = live.iter().flat_map(|live| &live.shards);
        let upto: HashMap<ShardId, Barrier> = shards.map(|s| (s.shard, s.files_upto)).collect();
        let counts = |file: FileName| upto.get(&file.shard).is_none_or(|upto| file.to <= *upto);
        self.snapshot(table, None, counts, live).await
    }

    /// A table, or a partition of it, as some shards had written it at barriers: without anything newer. `None` if they
    /// had no file.
    pub async fn at_barriers(
        &self,
        table: &str,
        at: &[(ShardId, Barrier)],
        within: Option<Partition>,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        self.snapshot(table, within, |file| written(file, at), None).await
    }

    /// Partitions for which shards had files at barriers, each once.
    pub async fn partitions(&self, table: &str, at: &[(ShardId, Barrier)]) -> Result<BTreeSet<Partition>, TableError> {
        let files = files::list(&self.store, table, None, |file| written(file, at)).await?;
        Ok(files.into_iter().map(|file| file.partition).collect())
    }

    /// What the log of one shard has put into the files of a table, up to and including a barrier. `None`: no file.
    pub async fn of_shard(
        &self,
        table: &str,
        shard: ShardId,
        upto: Barrier,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        self.snapshot(table, None, |file: FileName| file.shard == shard && file.to <= upto, None).await
    }

    async fn snapshot(
        &self,
        table: &str,
        within: Option<Partition>,
        counts: impl Fn(FileName) -> bool,
        live: Option<LiveTable>,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        let reading = self.readers.begin();
        let mut tries = 0;
        let (files, facts) = loop {
            let files = files::list(&self.store, table, within, &counts).await?;
            tries += 1;
            match self.facts.of(table, &files).await {
                Ok(facts) => break (files, facts),
                // Another process has removed it.
                Err(TableError::Gone { .. }) if tries < SNAPSHOTS => {}
                Err(error) => return Err(error),
            }
        };

        // From old to new, so that the newest schema wins; live rows are newer than all files.
        let mut schema: Option<SchemaRef> = None;
        let mut add = |newer: SchemaRef| {
            schema = Some(match schema.take() {
                Some(older) => columns::union(&newer, &older),
                None => newer,
            });
        };
        let mut time_column = None;
        for fact in &facts {
            add(fact.schema.clone());
            time_column = fact.time_column.clone().or(time_column);
        }
        if let Some(live) = &live {
            for batch in live.shards.iter().flat_map(|shard| &shard.batches) {
                add(columns::stored_schema(batch.schema_ref()));
            }
            if let Some(declared) = &live.schema {
                add(columns::stored_schema(declared));
            }
            time_column = live.time_column.clone().or(time_column);
        }
        let Some(schema) = schema else { return Ok(None) };
        let provider = FilesAndLive::new(table, self.store.clone(), schema, time_column, files, live)?;
        Ok(Some(Arc::new(provider.holding(reading))))
    }

    /// Registers every table of the store and every table of `live` in a session, replacing what has its name.
    pub async fn register_all(
        &self,
        session: &SessionContext,
        mut live: HashMap<String, LiveTable>,
    ) -> Result<Vec<String>, TableError> {
        let mut names: BTreeSet<String> = self.tables().await?.into_iter().collect();
        names.extend(live.keys().cloned());
        let mut registered = Vec::new();
        for name in names {
            let Some(provider) = self.provider(&name, live.remove(&name)).await? else { continue };
            let failed = |error: datafusion::error::DataFusionError| TableError::Register {
                table: name.clone(),
                reason: error.to_string(),
            };
            let reference = datafusion::common::TableReference::bare(name.clone());
            session.deregister_table(reference.clone()).map_err(failed)?;
            session.register_table(reference, provider).map_err(failed)?;
            registered.push(name);
        }
        Ok(registered)
    }
}

/// What retention and compaction build on.
impl TableStore {
    /// Where they are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All files of a table or partition, obsolete ones too, without those on their way out.
    pub(crate) async fn all(&self, table: &str, within: Option<Partition>) -> Result<Vec<TableFile>, TableError> {
        Ok(files::all(&self.store, table, within).await?.0)
    }

    /// The facts of `files`, the newest file last.
    pub(crate) async fn facts(&self, table: &str, files: &[TableFile]) -> Result<Vec<Arc<Fact>>, TableError> {
        self.facts.of(table, files).await
    }

    /// A file, ready to be read.
    pub(crate) async fn open_file(
        &self,
        path: &str,
    ) -> Result<ParquetRecordBatchStreamBuilder<FileReader>, TableError> {
        let reading = self.store.reading();
        let failed = |error: &(dyn std::error::Error + 'static)| match is_gone(error) {
            true => TableError::Gone { path: path.to_owned() },
            false => TableError::File { path: path.to_owned(), reason: error.to_string() },
        };
        let meta = reading.head(&object_store::path::Path::from(path)).await.map_err(|error| failed(&error))?;
        let file = PartitionedFile::new_from_meta(meta);
        let reader: FileReader = DefaultParquetFileReaderFactory::new(reading)
            .create_reader(0, file, None, &ExecutionPlanMetricsSet::new())
            .map_err(|error| failed(&error))?;
        ParquetRecordBatchStreamBuilder::new(reader).await.map_err(|error| failed(&error))
    }

    /// Now, in the order of readings.
    pub fn moment(&self) -> Moment {
        self.readers.moment()
    }

    /// Whether nobody in this process reads any more who began before `moment`.
    pub fn unread_since(&self, moment: Moment) -> bool {
        self.readers.none_before(moment)
    }
}

/// Whether one of those shards had written a file at its barrier.
fn written(file: FileName, at: &[(ShardId, Barrier)]) -> bool {
    at.iter().any(|(shard, barrier)| file.shard == *shard && file.to <= *barrier)
}

impl TableFile {
    fn path(&self, table: &str) -> String {
        layout::table_file(table, self.partition, self.name)
    }
}
