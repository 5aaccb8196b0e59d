//! Read-only SQL over all tables, and the formats that results are printed in.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use device::id::ShardId;
use device::schema::Catalog;
use futures::StreamExt;
use pipelines::runner::Status;
use sql::Project;
use storage::schema::AUDIT;
use storage::table::{LiveShard, LiveTable, TableError, TableStore};
use thiserror::Error;

use crate::core::Core;
use crate::fleet::{self, Fleet};
use crate::trail::Trail;

/// Why a query has no result.
#[derive(Debug, Error)]
pub enum QueryError {
    /// Parsing, planning or running failed; the text is DataFusion's, without its internals.
    #[error("{0}")]
    Query(String),
    /// More rows than may be returned.
    #[error("the result has more than {0} rows (limits.query_rows); add LIMIT or WHERE, or read the Parquet files")]
    TooManyRows(usize),
    /// It took too long.
    #[error("the query took longer than {0:?} (limits.query_time); narrow it by device or time")]
    TooLong(std::time::Duration),
    /// It needs more memory than there is for queries.
    #[error("there is not enough memory for the query now (limits.query_memory, for all queries together): {0}")]
    TooMuch(String),
    /// A file was removed while it was read, by another process; to ask again is to read what took its place.
    #[error("{0}; ask again")]
    Gone(String),
    /// A result could not be written.
    #[error("cannot write the result: {0}")]
    Write(String),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        let gone = storage::table::is_gone(&error);
        let much = matches!(error.find_root(), DataFusionError::ResourcesExhausted(_));
        let text = error.strip_backtrace();
        if much {
            return Self::TooMuch(text);
        }
        if gone { Self::Gone(text) } else { Self::Query(text) }
    }
}

impl From<TableError> for QueryError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Gone { path } => Self::Gone(format!("{path} was removed while it was about to be read")),
            error => Self::Query(error.to_string()),
        }
    }
}

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> Self {
        Self::Write(error.to_string())
    }
}

/// Bounds of one query.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows at most.
    pub rows: usize,
    /// Time at most.
    pub time: std::time::Duration,
}

/// A result: its columns, also when it has no rows.
#[derive(Debug, Clone)]
pub struct Table {
    /// Columns.
    pub schema: SchemaRef,
    /// Rows.
    pub batches: Vec<RecordBatch>,
}

/// The memory that all queries of a process share.
pub fn runtime(bytes: u64) -> Result<Arc<RuntimeEnv>, QueryError> {
    let pool = Arc::new(GreedyMemoryPool::new(usize::try_from(bytes).unwrap_or(usize::MAX)));
    Ok(RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?)
}

fn context(runtime: Arc<RuntimeEnv>) -> SessionContext {
    let config = SessionConfig::new().with_information_schema(true).with_target_partitions(2);
    SessionContext::new_with_config_rt(config, runtime)
}

/// All tables of a store, files only; with the project that the data directory knows also its reference tables.
pub async fn over_files(
    store: &TableStore,
    project: Option<&Project>,
    runtime: Arc<RuntimeEnv>,
) -> Result<SessionContext, QueryError> {
    let context = context(runtime);
    store.register_all(&context, HashMap::new()).await?;
    if let Some(project) = project {
        of_project(&context, project).await?;
    }
    Ok(context)
}

/// How often a query over files begins anew because another process removed a file under it.
const TRIES: usize = 10;

/// Runs one read-only statement over the files of a store that an engine may be working on: when a file is gone, it lists
/// once more and begins anew.
pub async fn run_over_files(
    store: &TableStore,
    project: Option<&Project>,
    runtime: Arc<RuntimeEnv>,
    sql: &str,
    bounds: Bounds,
) -> Result<Table, QueryError> {
    let mut tries = 1;
    loop {
        let result = match over_files(store, project, runtime.clone()).await {
            Ok(context) => run(&context, sql, bounds).await,
            Err(error) => Err(error),
        };
        let gone = match &result {
            Err(QueryError::Gone(_)) => true,
            Err(QueryError::Query(text)) => store.names_gone(text).await,
            _ => false,
        };
        if !gone || tries == TRIES {
            return result;
        }
        tries += 1;
    }
}

/// What a project has to query besides the tables that shards write.
async fn of_project(context: &SessionContext, project: &Project) -> Result<(), QueryError> {
    for decl in &project.tables {
        // A table of results that once had this name stays in its files; what the project says now is what counts.
        context.deregister_table(decl.name.as_str())?;
        context.register_batch(&decl.name, decl.rows.clone())?;
    }
    crate::majors::register(context, project).await?;
    crate::views::register(context, project).await?;
    Ok(())
}

/// Functions that make values as long as a number says, in one step, past every count of memory: not in an engine that others
/// need, too. (The table functions `generate_series` and `range` give their rows one batch after the other.)
const GREEDY: [&str; 7] = ["repeat", "lpad", "rpad", "array_repeat", "array_resize", "generate_series", "range"];

/// All tables of a running engine: files and the rows that are newer than the last of them.
pub async fn over_engine(core: &Core, runtime: Arc<RuntimeEnv>) -> Result<SessionContext, QueryError> {
    let context = over_live(&core.tables, &core.project(), &core.catalog(), &core.statuses, runtime).await?;
    for kind in fleet::Kind::ALL {
        // A stream or pipeline of that name is what its project means by it.
        if !context.table_exist(kind.name())? {
            let known = (core.groups.clone(), core.enrolled.get().cloned());
            context.register_table(kind.name(), Arc::new(Fleet::new(kind, core.node.clone(), known)))?;
        }
    }
    // Who did what is for those who answer for it: see `with_trail`.
    without_trail(&context)?;
    for function in GREEDY {
        context.deregister_udf(function);
    }
    Ok(context)
}

/// Adds the table of acts.
pub async fn with_trail(context: &SessionContext, tables: &TableStore, trail: &Trail) -> Result<(), QueryError> {
    without_trail(context)?;
    // Before the rows: what a merge has replaced since then must still be there to be listed.
    let _reading = tables.reading();
    let live = trail.live().map_err(|error| QueryError::Query(error.to_string()))?;
    if let Some(table) = tables.provider(AUDIT, Some(live)).await? {
        context.register_table(AUDIT, table)?;
    }
    Ok(())
}

/// Takes the table of acts away.
fn without_trail(context: &SessionContext) -> Result<(), QueryError> {
    context.deregister_table(AUDIT)?;
    Ok(())
}

/// All tables of a project: files, and the rows of its shards that are newer than the last of them; reference tables
/// as they are looked up in.
pub(crate) async fn over_live(
    tables: &TableStore,
    project: &Project,
    catalog: &Catalog,
    statuses: &[Arc<Status>],
    runtime: Arc<RuntimeEnv>,
) -> Result<SessionContext, QueryError> {
    let context = context(runtime);
    // Before the rows: what a merge has replaced since then must still be there to be listed.
    let _reading = tables.reading();
    // The rows first, then the files: a cut in between shows its rows once.
    let views: Vec<_> = statuses.iter().map(|status| status.live.view()).collect();
    let specs = pipelines::output::table_specs(project, catalog);
    let names: BTreeSet<&String> = specs.keys().chain(views.iter().flat_map(|view| view.tables.keys())).collect();
    let mut live = HashMap::new();
    for table in names {
        let shards = views
            .iter()
            .enumerate()
            .map(|(shard, view)| LiveShard {
                shard: ShardId(shard as u16),
                files_upto: view.files_upto,
                batches: view.tables.get(table).cloned().unwrap_or_default(),
            })
            .collect();
        let spec = specs.get(table);
        let rows = LiveTable {
            schema: spec.map(|spec| spec.schema.clone()),
            time_column: spec.map(|spec| spec.time_column.clone()),
            shards,
        };
        live.insert(table.clone(), rows);
    }
    tables.register_all(&context, live).await?;
    of_project(&context, project).await?;
    Ok(context)
}

/// Stack for planning and running a query: DataFusion walks expressions by recursion, and the longest that
/// [`sql::too_long`] lets pass needs far more than the two megabytes that threads have by default.
pub const STACK: usize = 64 << 20;

/// How long after its time a query may still end by itself.
const OVERTIME: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs one read-only statement, on a thread of its own: planning may take long without ever waiting, and it
/// needs a large stack.
pub async fn run(context: &SessionContext, sql: &str, bounds: Bounds) -> Result<Table, QueryError> {
    run_holding(context, sql, bounds, ()).await
}

/// The same; `hold` is dropped when the work has really ended. A join without equality may compute for long without
/// looking at its time: then the answer is there before the thread has ended.
pub async fn run_holding(
    context: &SessionContext,
    sql: &str,
    bounds: Bounds,
    hold: impl Send + 'static,
) -> Result<Table, QueryError> {
    if let Some(text) = sql::too_long(sql) {
        return Err(QueryError::Query(text));
    }
    let (context, sql, runtime) = (context.clone(), sql.to_owned(), tokio::runtime::Handle::current());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("query".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let result = runtime.block_on(run_here(&context, &sql, bounds));
            // First, so that whoever has the answer may ask again.
            drop(hold);
            drop(sender.send(result));
        })
        .map_err(|e| QueryError::Query(format!("no thread for the query: {e}; try again later")))?;
    match tokio::time::timeout(bounds.time.saturating_add(OVERTIME), receiver).await {
        Ok(Ok(result)) => result,
        Err(_) => Err(QueryError::TooLong(bounds.time)),
        Ok(Err(_)) => Err(QueryError::Query("the query failed inside the query engine; rewrite it".to_owned())),
    }
}

async fn run_here(context: &SessionContext, sql: &str, bounds: Bounds) -> Result<Table, QueryError> {
    let work = async {
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = context.sql_with_options(sql, options).await?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let mut stream = frame.execute_stream().await?;
        let mut batches = Vec::new();
        let mut rows = 0;
        let held = MemoryConsumer::new("the result").register(&context.runtime_env().memory_pool);
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            rows += batch.num_rows();
            if bounds.rows != usize::MAX {
                held.try_grow(batch.get_array_memory_size())?;
            }
            if rows > bounds.rows {
                return Err(QueryError::TooManyRows(bounds.rows));
            }
            batches.push(batch);
        }
        Ok(Table { schema, batches })
    };
    match tokio::time::timeout(bounds.time, work).await {
        Ok(result) => result,
        Err(_) => Err(QueryError::TooLong(bounds.time)),
    }
}

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines and columns for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects.
    Json,
    /// A Parquet file.
    Parquet,
    /// An Arrow IPC stream.
    #[value(skip)]
    Arrow,
}

impl Format {
    /// The media type of the format.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Table => "text/plain; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Json => "application/json",
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// The format that an `Accept` header asks for; JSON if it names none of ours.
    pub fn accepted(header: Option<&str>) -> Self {
        let header = header.unwrap_or_default();
        let known = [
            ("application/vnd.apache.arrow.stream", Self::Arrow),
            ("text/csv", Self::Csv),
            ("application/vnd.apache.parquet", Self::Parquet),
            ("text/plain", Self::Table),
        ];
        known.iter().find(|(media, _)| header.contains(media)).map_or(Self::Json, |(_, format)| *format)
    }
}

/// Writes a result.
pub fn write(table: &Table, format: Format, out: &mut (impl Write + Send)) -> Result<(), QueryError> {
    let io = |e: std::io::Error| QueryError::Write(e.to_string());
    match format {
        Format::Table => {
            let text = if table.batches.iter().all(|batch| batch.num_rows() == 0) {
                let empty = RecordBatch::new_empty(table.schema.clone());
                arrow::util::pretty::pretty_format_batches(&[empty])?.to_string()
            } else {
                arrow::util::pretty::pretty_format_batches(&table.batches)?.to_string()
            };
            writeln!(out, "{text}").map_err(io)
        }
        Format::Csv => {
            if let Some(field) = table.schema.fields().iter().find(|field| field.data_type().is_nested()) {
                let name = field.name();
                return Err(QueryError::Query(format!(
                    "CSV cannot hold the lists of column {name}: leave it away, or take the result as JSON or Parquet"
                )));
            }
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut *out);
            if table.batches.is_empty() {
                writer.write(&RecordBatch::new_empty(table.schema.clone()))?;
            }
            for batch in &table.batches {
                writer.write(batch)?;
            }
            Ok(())
        }
        Format::Json => {
            let mut writer = arrow::json::WriterBuilder::new()
                .with_explicit_nulls(true)
                .build::<_, arrow::json::writer::JsonArray>(&mut *out);
            for batch in &table.batches {
                writer.write(batch)?;
            }
            writer.finish()?;
            drop(writer);
            writeln!(out).map_err(io)
        }
        Format::Parquet => {
            let parquet = |e: parquet::errors::ParquetError| QueryError::Write(e.to_string());
            let mut writer =
                parquet::arrow::ArrowWriter::try_new(&mut *out, table.schema.clone(), None).map_err(parquet)?;
            for batch in &table.batches {
                writer.write(batch).map_err(parquet)?;
            }
            writer.close().map_err(parquet)?;
            Ok(())
        }
        Format::Arrow => {
            let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut *out, &table.schema)?;
            for batch in &table.batches {
                writer.write(batch)?;
            }
            writer.finish()?;
            Ok(())
        }
    }
}

/// Reads an Arrow IPC stream back.
pub fn read_arrow(bytes: &[u8]) -> Result<Table, QueryError> {
    let reader = arrow::ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes), None)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    Ok(Table { schema, batches })
}
