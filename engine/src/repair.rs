//! Repairs and backfills of a running engine: one at a time, shard after shard, for whoever asked over HTTP.
//!
//! What is done to the files is in `pipelines/repair.rs`. Here is when: each shard makes a cut and says where the
//! pipeline stands there ([`Core::stands`]). Before the first file is written, a note in `registry/repairs/` names the
//! table; should the engine die before the files that were replaced are gone, its next start removes them
//! ([`sweep`]). Whoever reads by the rule of names does not need that, a glob does.
//!
//! A repair ends when the one who asked for it goes away, or the engine stops: between two partitions or within one, none
//! of them is left by half.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::execution::runtime_env::RuntimeEnv;
use device::time::Timestamp;
use pipelines::output::granularity;
use pipelines::repair::{Done, Totals, repair, shown, widen};
use pipelines::tap::{Tap, Tapped};
use serde::{Deserialize, Serialize};
use sql::{Kind, PipelinePlan};
use storage::layout;
use storage::store::Store;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::core::{Core, CoreError};
use crate::query;

/// Memory for sorting records; beyond it the query engine goes to disk.
const SORT_MEMORY: u64 = 256 << 20;

/// Partitions that a slow reader may be behind with; it does not hear of more.
const EVENTS: usize = 64;

/// What becomes of a repair, a line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It begins.
    Begin(Begin),
    /// A partition of a shard is done.
    Partition(Done),
    /// All is done.
    Done(Totals),
    /// It has ended early.
    Failed {
        /// Why.
        error: String,
    },
}

/// What is going to be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The pipeline.
    pub pipeline: String,
    /// Windows from this one on.
    pub from: String,
    /// Windows before this; none: up to those that are open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Whether that is more than was asked for, as partitions are written whole.
    pub widened: bool,
    /// How long a partition is.
    pub partition: String,
    /// Reference tables that it looks up in, as their rows are now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<String>,
}

/// The repairs of an engine.
#[derive(Debug)]
pub struct Repairs {
    one: Arc<Mutex<()>>,
    memory: Arc<RuntimeEnv>,
}

impl Repairs {
    /// None runs.
    pub fn new() -> Result<Self, CoreError> {
        let memory = query::runtime(SORT_MEMORY).map_err(|e| CoreError::Other(e.to_string()))?;
        Ok(Self { one: Arc::default(), memory })
    }

    /// Starts a repair of the windows that begin in `span`; without an end, up to those that are open. An error: another
    /// one runs.
    pub fn start(
        &self,
        core: Arc<Core>,
        plan: &PipelinePlan,
        span: (i64, Option<i64>),
        stop: CancellationToken,
    ) -> Result<mpsc::Receiver<Event>, String> {
        if let Some(join) = &plan.stream_join {
            let text = format!(
                "pipeline `{}` joins `{}` with `{}`; this version cannot repair a pipeline over two streams",
                plan.name, plan.source, join.source
            );
            return Err(text);
        }
        let Ok(only) = self.one.clone().try_lock_owned() else {
            return Err("another repair is running; try again when it is done".to_owned());
        };
        let asked = span.0..span.1.unwrap_or(i64::MAX);
        let span = widen(asked.clone(), granularity(plan.partition));
        let begin = Begin {
            pipeline: plan.name.clone(),
            from: shown(Timestamp(span.start)),
            to: (asked.end < i64::MAX).then(|| shown(Timestamp(span.end))),
            widened: span != asked,
            partition: plan.partition.as_str().to_owned(),
            joins: plan.joins.iter().map(|join| join.table.clone()).collect(),
        };
        let (events, receiver) = mpsc::channel(EVENTS);
        let window = plan.window.as_ref().map_or(0, |window| window.size_ns);
        let (source, whole) = (plan.source.clone(), (span.start, span.end));
        let around = match plan.window.as_ref().map(|window| window.kind) {
            // As long as they last: nobody knows.
            Some(Kind::Session) => (i64::MIN, i64::MAX),
            _ => (span.start, span.end.saturating_add(window)),
        };
        let (memory, runtime) = (self.memory.clone(), tokio::runtime::Handle::current());
        let work = async move {
            let _only = only;
            let _ = events.send(Event::Begin(begin.clone())).await;
            // Retention and compaction leave alone what is read and replaced. Before the barriers: then no merged file
            // reaches beyond them.
            let _leases = [core.holds.hold(&source, around).await, core.holds.hold(&begin.pipeline, whole).await];
            let done = tokio::select! {
                done = run(core, &begin.pipeline, span, &memory, &events) => done,
                () = stop.cancelled() => Err("the engine is stopping; what was done so far stands".to_owned()),
                () = events.closed() => Err("nobody waits for it any more".to_owned()),
            };
            let last = match done {
                Ok(totals) => {
                    tracing::info!(pipeline = begin.pipeline, from = begin.from, to = begin.to, ?totals, "repaired");
                    Event::Done(totals)
                }
                Err(error) => {
                    tracing::warn!(pipeline = begin.pipeline, from = begin.from, to = begin.to, error, "repair ended");
                    Event::Failed { error }
                }
            };
            let _ = events.send(last).await;
        };
        // It computes for long, and planning takes a large stack.
        std::thread::Builder::new()
            .name("repair".to_owned())
            .stack_size(query::STACK)
            .spawn(move || runtime.block_on(work))
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(receiver)
    }
}

async fn run(
    core: Arc<Core>,
    name: &str,
    span: Range<i64>,
    memory: &Arc<RuntimeEnv>,
    events: &mpsc::Sender<Event>,
) -> Result<Totals, String> {
    let stands = core.stands(name).await.map_err(|e| e.to_string())?;
    let tables = core.tables.clone();
    // An engine that stops waits for everybody who holds on to it.
    drop(core);
    let root = tables.store().root().to_owned();
    note(&root, name).map_err(|e| format!("cannot note that `{name}` is being repaired: {e}"))?;
    let mut hear = |done: Done| match events.try_send(Event::Partition(done)) {
        Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
        Err(mpsc::error::TrySendError::Closed(_)) => false,
    };
    let totals = repair(&tables, &stands, name, span, memory, &mut hear).await.map_err(|error| error.to_string())?;
    // If the note stays, the next start looks once more.
    let _ = std::fs::remove_file(root.join(layout::registry(NOTES, name)));
    Ok(totals)
}

/// The folder of notes, one for each table that is being repaired.
const NOTES: &str = "repairs";

fn note(root: &Path, table: &str) -> std::io::Result<()> {
    let path = root.join(layout::registry(NOTES, table));
    let folder = path.parent().unwrap_or(root);
    std::fs::create_dir_all(folder)?;
    std::fs::File::create(&path)?.sync_all()?;
    std::fs::File::open(folder)?.sync_all()
}

/// At a start: removes what repairs that did not come to their end have replaced.
pub(crate) async fn sweep(store: &Store) -> Result<(), CoreError> {
    let failed = |error: &dyn std::fmt::Display| CoreError::Other(format!("after a repair: {error}"));
    let folder = store.root().join(layout::registry(NOTES, ""));
    for entry in std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
        let table = entry.file_name().to_string_lossy().into_owned();
        let removed = storage::parquet::sweep(store, &table).await.map_err(|error| failed(&error))?;
        tracing::info!(
            table,
            files = removed,
            "a repair had not come to its end; the files that it had replaced are gone"
        );
        std::fs::remove_file(entry.path()).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Opens a tap of a table in all shards.
pub fn tap(core: &Core, table: &str) -> Arc<Tap> {
    let tap = Tap::new(table);
    for status in &core.statuses {
        status.live.taps.open(&tap);
    }
    tap
}

/// Lines of JSON of what comes next from a tap: at most `limit` rows. Also says how many rows those are.
pub async fn lines(tap: &Tap, limit: u64) -> Result<(Vec<u8>, u64), arrow::error::ArrowError> {
    match tap.next().await {
        Tapped::Skipped(count) => Ok((format!("{{\"_skipped\":{count}}}\n").into_bytes(), 0)),
        Tapped::Rows(batch) => {
            let rows = usize::try_from(limit).unwrap_or(usize::MAX).min(batch.num_rows());
            Ok((json(&batch.slice(0, rows))?, rows as u64))
        }
    }
}

fn json(batch: &RecordBatch) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let builder = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, arrow::json::writer::LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}
