//! The DataFusion side: one scan over a table's files and one over its live rows.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use super::files::TableFile;
use super::live::{self, LiveTable};
use super::readers::Reading;
use super::{TableError, prune};
use crate::layout::Granularity;
use crate::store::Store;

/// The partition columns, as other readers of the same files see them.
pub(super) const DATE: &str = "date";
pub(super) const HOUR: &str = "hour";

/// A snapshot of a table.
#[derive(Debug)]
pub(super) struct FilesAndLive {
    store: Store,
    /// Columns of the files.
    file_columns: SchemaRef,
    /// Those columns, then the partition columns.
    schema: SchemaRef,
    partition_columns: Vec<FieldRef>,
    time_column: Option<String>,
    files: Vec<TableFile>,
    /// Live rows under `schema`.
    live: Vec<RecordBatch>,
    /// Keeps the files from being deleted.
    _reading: Option<Reading>,
}

impl FilesAndLive {
    pub(super) fn new(
        table: &str,
        store: Store,
        file_columns: SchemaRef,
        time_column: Option<String>,
        files: Vec<TableFile>,
        live: Option<LiveTable>,
    ) -> std::result::Result<Self, TableError> {
        let by_hour = files.is_empty() || files.iter().any(|file| file.partition.hour.is_some());
        let mut partition_columns: Vec<FieldRef> = vec![Arc::new(Field::new(DATE, DataType::Date32, true))];
        if by_hour {
            partition_columns.push(Arc::new(Field::new(HOUR, DataType::Int32, true)));
        }
        // A column of the table's own goes before one that only repeats the folder.
        partition_columns.retain(|field| file_columns.field_with_name(field.name()).is_err());
        let fields: Vec<FieldRef> = file_columns.fields().iter().cloned().chain(partition_columns.clone()).collect();
        let schema = Arc::new(Schema::new(fields));

        let granularity = if by_hour { Granularity::Hour } else { Granularity::Day };
        let rows = live.iter().flat_map(|live| &live.shards).flat_map(|shard| &shard.batches);
        let live = rows
            .filter(|batch| batch.num_rows() > 0)
            .map(|batch| live::complete(batch, &schema, &file_columns, time_column.as_deref(), granularity))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| TableError::Live { table: table.to_owned(), reason: error.to_string() })?;
        Ok(Self { store, file_columns, schema, partition_columns, time_column, files, live, _reading: None })
    }

    /// Keeps a reading open as long as the snapshot lives.
    pub(super) fn holding(self, reading: Reading) -> Self {
        Self { _reading: Some(reading), ..self }
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        files: Vec<&TableFile>,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
        predicate: Option<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let url = self.store.url();
        state.runtime_env().register_object_store(url.as_ref(), self.store.reading());
        let options =
            TableParquetOptions { global: state.config_options().execution.parquet.clone(), ..Default::default() };
        let columns = TableSchema::builder(self.file_columns.clone())
            .with_table_partition_cols(self.partition_columns.clone())
            .build();
        let mut source = ParquetSource::new(columns).with_table_parquet_options(options);
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate);
        }
        let files: Vec<PartitionedFile> = files.into_iter().map(|file| self.partitioned(file)).collect();
        let groups = FileGroup::new(files).split_files(state.config().target_partitions().max(1));
        let config = FileScanConfigBuilder::new(url.clone(), Arc::new(source))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_file_groups(groups)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn partitioned(&self, file: &TableFile) -> PartitionedFile {
        let values = self.partition_columns.iter().map(|field| match field.name().as_str() {
            DATE => ScalarValue::Date32(Some(file.partition.date.0)),
            _ => ScalarValue::Int32(file.partition.hour.map(i32::from)),
        });
        PartitionedFile::new_from_meta(file.meta.clone()).with_partition_values(values.collect())
    }
}

#[async_trait]
impl TableProvider for FilesAndLive {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Files and row groups are left out by bounds, rows are not: the filter itself stays above.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = DFSchema::try_from(self.schema.clone())?;
        let predicate = conjunction(filters.iter().cloned());
        let predicate = predicate.map(|filter| state.create_physical_expr(filter, &columns)).transpose()?;
        let files = prune::prune(&self.files, self.time_column.as_deref(), predicate.as_ref(), &self.schema);

        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !files.is_empty() {
            plans.push(self.scan_files(state, files, projection, limit, predicate)?);
        }
        if !self.live.is_empty() {
            let rows = std::slice::from_ref(&self.live);
            plans.push(MemorySourceConfig::try_new_exec(rows, self.schema.clone(), projection.cloned())?);
        }
        match (plans.pop(), plans.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                plans.push(last);
                UnionExec::try_new(plans)
            }
            (None, _) => {
                let schema = match projection {
                    Some(columns) => Arc::new(self.schema.project(columns)?),
                    None => self.schema.clone(),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
        }
    }
}
