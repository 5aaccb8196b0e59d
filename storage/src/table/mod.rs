//! Tables as DataFusion sees them: the files that count, together with what is not in files yet.
//!
//! A provider is a snapshot: its files are listed when it is made, so one query sees one state, and later queries ask
//! for a new one. Files that are covered by others are left out, whole files are left out by their partition, and
//! within the rest DataFusion prunes by Parquet's own statistics, page index and bloom filters.

mod files;
mod live;
mod provider;
mod prune;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::context::SessionContext;
use device::id::ShardId;
use device::seq::Barrier;
use thiserror::Error;

use self::files::{Facts, TableFile};
pub use self::live::{LiveShard, LiveTable};
use self::provider::FilesAndLive;
use crate::columns;
use crate::layout::{self, FileName};
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

/// The tables of a store.
#[derive(Debug)]
pub struct TableStore {
    store: Store,
    facts: Facts,
}

impl TableStore {
    /// The tables below a store.
    pub fn open(store: Store) -> Self {
        let facts = Facts::new(&store);
        Self { store, facts }
    }

    /// Names of all tables that have a folder, in order.
    pub async fn tables(&self) -> Result<Vec<String>, TableError> {
        files::tables(&self.store).await
    }

    /// The files of a table that count now, by partition, shard and range.
    pub async fn files(&self, table: &str) -> Result<Vec<String>, TableError> {
        let files = files::list(&self.store, table).await?;
        Ok(files.into_iter().map(|file| file.path(table)).collect())
    }

    /// A snapshot of a table to query: its files and `live` rows. `None` if nothing at all is known of it.
    ///
    /// Of a shard in `live`, only files up to its `files_upto` count; take the live rows first and then call this,
    /// so that a cut in between shows its rows once.
    pub async fn provider(
        &self,
        table: &str,
        live: Option<LiveTable>,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        let mut files = files::list(&self.store, table).await?;
        if let Some(live) = &live {
            let upto: HashMap<ShardId, Barrier> = live.shards.iter().map(|s| (s.shard, s.files_upto)).collect();
            let counts = |file: FileName| upto.get(&file.shard).is_none_or(|upto| file.to <= *upto);
            files.retain(|file| counts(file.name));
        }
        self.over(table, files, live).await
    }

    /// What the log of one shard has put into the files of a table, up to and including a barrier. `None`: no file.
    pub async fn of_shard(
        &self,
        table: &str,
        shard: ShardId,
        upto: Barrier,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        let mut files = files::list(&self.store, table).await?;
        files.retain(|file| file.name.shard == shard && file.name.to <= upto);
        self.over(table, files, None).await
    }

    async fn over(
        &self,
        table: &str,
        files: Vec<TableFile>,
        live: Option<LiveTable>,
    ) -> Result<Option<Arc<dyn TableProvider>>, TableError> {
        let facts = self.facts.of(table, &files).await?;

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
        Ok(Some(Arc::new(provider)))
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

impl TableFile {
    fn path(&self, table: &str) -> String {
        layout::table_file(table, self.partition, self.name)
    }
}
