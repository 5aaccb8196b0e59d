//! `weir query`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::runtime_env::RuntimeEnv;
use storage::table::TableStore;

use crate::query::{self, Bounds, Format, Table};

use super::Exit;
use super::remote::{check_url, request};

/// Where `weir query` and `weir sql` read.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub(super) struct Source {
    /// Read the files of this data directory; no engine is needed. Rows that are in no file yet are not seen.
    #[arg(long, env = "WEIR_DATA")]
    data: Option<PathBuf>,
    /// Read the files of the store at this place (a directory for now).
    #[arg(long)]
    store: Option<String>,
    /// Ask a running engine; rows newer than the last files are seen.
    #[arg(long)]
    url: Option<String>,
}

/// Arguments of `weir query`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weir query --data weir-data \"SELECT device, count(*) FROM telemetry GROUP BY device\"\n  weir query --url http://127.0.0.1:8080 -f csv \"SELECT * FROM telemetry ORDER BY ts DESC LIMIT 10\""
)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// One SELECT.
    sql: String,
}

/// Something that answers queries.
pub(super) enum Session {
    Files(Box<(TableStore, Option<sql::Project>)>, Arc<RuntimeEnv>),
    Engine(String),
}

impl Source {
    pub(super) fn open(&self) -> Result<Session, Exit> {
        if let Some(url) = &self.url {
            check_url(url)?;
            return Ok(Session::Engine(url.clone()));
        }
        let root = match (&self.data, &self.store) {
            (Some(data), _) => data.clone(),
            (None, Some(store)) => match store.strip_prefix("file://") {
                Some(path) => PathBuf::from(path),
                None if !store.contains("://") => PathBuf::from(store),
                None => return Err(Exit::Usage(format!("--store {store}: only directories and file:// work yet"))),
            },
            (None, None) => crate::config::StoreConfig::default().data,
        };
        if !root.is_dir() {
            return Err(Exit::Usage(format!(
                "{} is no directory; name one with --data, or a running engine with --url",
                root.display()
            )));
        }
        let store = storage::store::Store::existing(&root).map_err(Exit::failed)?;
        let runtime = query::runtime(crate::limits::QUERY_MEMORY).map_err(Exit::failed)?;
        let project = match crate::project::stored(&crate::core::project_file(&root)) {
            Ok(loaded) => loaded.map(|loaded| loaded.project),
            Err(error) => {
                // The files can be read all the same.
                tracing::warn!("reference tables are not shown: {error}");
                None
            }
        };
        Ok(Session::Files(Box::new((TableStore::open(store), project)), runtime))
    }
}

impl Session {
    pub(super) async fn run(&self, sql: &str) -> Result<Table, Exit> {
        match self {
            Self::Files(files, runtime) => {
                let (store, project) = files.as_ref();
                let bounds = Bounds { rows: usize::MAX, time: Duration::from_secs(24 * 3600) };
                query::run_over_files(store, project.as_ref(), runtime.clone(), sql, bounds).await.map_err(Exit::failed)
            }
            Self::Engine(url) => {
                let (url, sql) = (url.clone(), sql.to_owned());
                let media = Format::Arrow.media_type();
                let body = tokio::task::spawn_blocking(move || request("POST", &url, "/v1/query", media, Some(&sql)))
                    .await
                    .map_err(Exit::failed)??;
                query::read_arrow(&body).map_err(Exit::failed)
            }
        }
    }
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let session = args.source.open()?;
    let table = session.run(&args.sql).await?;
    let mut body = Vec::new();
    query::write(&table, args.format, &mut body).map_err(Exit::failed)?;
    write_out(&body)
}

/// Writes bytes to standard output. A reader that has gone away (`| head`) is no error.
pub(super) fn write_out(body: &[u8]) -> Result<(), Exit> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(body).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Exit::failed(error)),
        _ => Ok(()),
    }
}
