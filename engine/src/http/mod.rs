//! The HTTP API: health, metrics, queries, flush, audit, devices with their shadows and commands, alerts.
//!
//! Errors are problem details (RFC 9457). Everything is bounded: rows, time, page sizes, body sizes. Which role may ask for
//! what stands in `routes`, and is held against who asks in `guard`; `serve` has the connections.

mod alerts;
mod certificates;
mod commands;
mod groups;
mod guard;
mod messages;
mod metrics;
mod pipelines;
mod problem;
mod provision;
mod routes;
mod serve;
mod shadow;
mod silences;

use std::net::SocketAddr;
use std::sync::Arc;

use access::audit::Verdict;
use access::users::Role;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datafusion::execution::runtime_env::RuntimeEnv;
use device::id::DeviceId;
use device::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::clock::Clock;
use crate::config::{ChannelConfig, Writers};
use crate::core::Core;
use crate::expiring;
use crate::gateway::GatewayMetrics;
use crate::housekeeping::{self, Report};
use crate::ledger::Books;
use crate::notify;
use crate::query::{self, Bounds, Format, QueryError};
use crate::repair::Repairs;
use crate::trail::Trail;
use crate::watch::Deployments;
pub use alerts::{AckItem, AlertItem};
pub use certificates::certificates;
use guard::Who;
pub use guard::{Certificates, Guard, Peer};
pub use messages::{ChannelItem, ChannelsItem};
use problem::Problem;
pub use serve::Tls;
pub use silences::{SilenceItem, SilenceRequest, SilencesItem};

/// Most devices on one page.
const MAX_PAGE: usize = 1000;

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    /// The data plane.
    pub core: Arc<Core>,
    /// Memory of queries.
    pub runtime: Arc<RuntimeEnv>,
    /// Bounds of one query.
    pub bounds: Bounds,
    /// Counters of the MQTT side.
    pub gateway: Arc<GatewayMetrics>,
    /// Whether the counters add up.
    pub books: Arc<Books>,
    /// What became of versions of the project that were saved while the engine runs.
    pub deployments: Arc<Deployments>,
    /// What retention and compaction have done.
    pub housekeeping: Arc<Report>,
    /// Whose certificates end soon.
    pub expiring: Arc<expiring::Report>,
    /// What became of messages about incidents.
    pub told: Arc<notify::Report>,
    /// Where they go.
    pub channels: Vec<ChannelConfig>,
    /// Who may say what is wanted of devices.
    pub writers: Arc<Writers>,
    /// Time.
    pub clock: Clock,
    /// Repairs and backfills.
    pub repairs: Arc<Repairs>,
    /// Acts as rows.
    pub trail: Arc<Trail>,
    /// Who may ask for what.
    pub guard: Arc<Guard>,
    /// Who gives first certificates; none: this engine has no authority.
    pub entry: Option<Arc<crate::guard::Guard>>,
    /// Ends what lasts when the engine stops.
    pub stop: CancellationToken,
}

/// Binds the listener.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop`; requests under way are finished.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    tls: Option<Tls>,
    connections: usize,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let guard = api.guard.clone();
    serve::serve(listener, routes::router(api, &guard), tls, connections, stop).await
}

async fn ready(State(api): State<Api>) -> Response {
    if api.core.healthy() {
        return "ready\n".into_response();
    }
    let text = "the log or the store refuses writes; nothing is acknowledged until it takes them again";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Query string of `/v1/retention/{table}`.
#[derive(Debug, Deserialize)]
struct Retain {
    retain_ns: i64,
}

/// What of a table would be dropped if it were kept for so long; `null`: nothing.
async fn retention(
    State(api): State<Api>,
    Path(table): Path<String>,
    Query(retain): Query<Retain>,
) -> Result<Json<Option<housekeeping::Drops>>, Problem> {
    if retain.retain_ns <= 0 {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "retain_ns must be longer than nothing"));
    }
    let drops = housekeeping::would_drop(&api.core.tables, &table, retain.retain_ns, (api.clock)()).await;
    drops.map(Json).map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

async fn run_query(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    sql: String,
) -> Result<Response, Problem> {
    let running = api.guard.query(&who)?;
    let sql = sql.trim();
    if sql.is_empty() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the body must be one SQL statement"));
    }
    // A client that says it sends JSON means {"sql": "..."}.
    let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    let text = if is_json {
        #[derive(Deserialize)]
        struct Body {
            sql: String,
        }
        let body: Body = serde_json::from_str(sql).map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, format!("a JSON body must be {{\"sql\": \"...\"}}: {e}"))
        })?;
        body.sql
    } else {
        sql.to_owned()
    };
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()));
    let context = query::over_engine(&api.core, api.runtime.clone()).await?;
    if who.role == Role::Admin {
        query::with_trail(&context, &api.core.tables, &api.trail).await?;
    }
    let table = query::run_holding(&context, &text, api.bounds, running).await?;
    let body = tokio::task::spawn_blocking(move || {
        let mut body = Vec::new();
        query::write(&table, format, &mut body).map(|()| body)
    })
    .await
    .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))??;
    Ok(([(header::CONTENT_TYPE, format.media_type())], body).into_response())
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let status = match error {
            QueryError::Query(_) => StatusCode::BAD_REQUEST,
            QueryError::TooManyRows(_) => StatusCode::PAYLOAD_TOO_LARGE,
            QueryError::TooMuch(_) => StatusCode::INSUFFICIENT_STORAGE,
            QueryError::TooLong(_) => StatusCode::REQUEST_TIMEOUT,
            QueryError::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
            QueryError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

async fn flush(State(api): State<Api>) -> Result<Json<serde_json::Value>, Problem> {
    let barriers =
        api.core.flush().await.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let unwritten = |error: crate::trail::TrailError| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
    api.trail.cut().await.map_err(unwritten)?;
    let barriers: Vec<u64> = barriers.iter().map(|barrier| barrier.0).collect();
    Ok(Json(serde_json::json!({ "barriers": barriers })))
}

/// RFC 3339, in UTC.
fn time_text(time: Timestamp) -> String {
    let since = std::time::Duration::from_nanos(u64::try_from(time.0).unwrap_or(0));
    humantime::format_rfc3339_nanos(std::time::UNIX_EPOCH + since).to_string()
}

fn device_id(text: &str) -> Result<DeviceId, Problem> {
    DeviceId::new(text).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("device {text:?}: {error}")))
}

/// Query string of paged lists.
#[derive(Debug, Deserialize)]
struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

impl Page {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(100).clamp(1, MAX_PAGE)
    }
}

#[derive(Serialize)]
struct Paged<T> {
    #[serde(flatten)]
    items: T,
    /// Give it as `after` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

async fn audit_all(State(api): State<Api>, Query(page): Query<Page>) -> Result<impl IntoResponse, Problem> {
    #[derive(Serialize)]
    struct Items {
        audits: Vec<audit::DeviceAudit>,
    }
    let limit = page.limit();
    let ids = audit::known_devices(&api.core, page.after.as_deref(), limit).await?;
    let audits = audit::audit(&api.core, api.runtime.clone(), &ids).await?;
    let next = (ids.len() == limit).then(|| ids.last().map(ToString::to_string)).flatten();
    Ok(Json(Paged { items: Items { audits }, next }))
}

async fn audit_one(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<audit::DeviceAudit>, Problem> {
    let id = device_id(&id)?;
    let mut audits = audit::audit(&api.core, api.runtime.clone(), std::slice::from_ref(&id)).await?;
    match audits.pop() {
        Some(audit) if !audit.epochs.is_empty() => Ok(Json(audit)),
        _ => Err(Problem::new(StatusCode::NOT_FOUND, format!("device {id} has never been heard of"))),
    }
}

/// Verifies the audit trail.
async fn trail(State(api): State<Api>) -> Result<Json<Verdict>, Problem> {
    let path = api.guard.audit().path().to_owned();
    let verified = tokio::task::spawn_blocking(move || access::audit::verify(&path)).await;
    let verdict = verified.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    verdict.map(Json).map_err(|error| Problem::new(StatusCode::CONFLICT, error.to_string()))
}

#[derive(Serialize)]
struct DeviceItem {
    device: String,
    /// Whether its actor runs.
    awake: bool,
    shard: u16,
}

fn describe(api: &Api, id: &DeviceId) -> DeviceItem {
    let shard = api.core.node.shard(id);
    DeviceItem { device: id.to_string(), awake: shard.is_awake(id), shard: shard.id.0 }
}

async fn devices(State(api): State<Api>, Query(page): Query<Page>) -> Result<impl IntoResponse, Problem> {
    #[derive(Serialize)]
    struct Items {
        devices: Vec<DeviceItem>,
    }
    let limit = page.limit();
    let ids = audit::known_devices(&api.core, page.after.as_deref(), limit).await?;
    let next = (ids.len() == limit).then(|| ids.last().map(ToString::to_string)).flatten();
    let devices = ids.iter().map(|id| describe(&api, id)).collect();
    Ok(Json(Paged { items: Items { devices }, next }))
}

async fn device(State(api): State<Api>, Path(id): Path<String>) -> Result<impl IntoResponse, Problem> {
    let id = device_id(&id)?;
    let ledger = api
        .core
        .node
        .ledger(&id)
        .await
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let item = describe(&api, &id);
    let look = |device: &device::machine::Device| (device.is_known(), device.status().cloned(), device.clock());
    let (known, status, clock) = api
        .core
        .node
        .look(&id, look)
        .await
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    if !known && !item.awake {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("device {id} has never been heard of")));
    }
    // What it said to an earlier life of the engine says nothing about now.
    let floor = api.core.node.shard(&id).floor;
    let status = status.map(|status| {
        serde_json::json!({
            "online": status.online && status.since >= floor, "since": time_text(status.since),
            "session": status.session.map(|session| session.to_string()), "boot_no": status.boot_no, "fw": status.fw.as_deref(),
        })
    });
    let clock = clock.map(|clock| {
        serde_json::json!({
            "offset_ns": clock.offset, "err_ns": clock.err, "rate_ppb": clock.rate, "drifting": clock.drifting,
            "clock_id": clock.clock,
        })
    });
    let groups = api.core.groups.listing(&id);
    let enrolled = api.core.enrolled.get().and_then(|registry| {
        registry.look(|state| {
            let at = state.enrolled_at(id.as_str()).map(time_text);
            let enrolled = state.enrolled(id.as_str())?;
            let (group, labels, hw) = (&enrolled.group, &enrolled.labels, &enrolled.hw);
            Some(serde_json::json!({ "at": at, "group": group, "labels": labels, "hw": hw, "serial": enrolled.serial }))
        })
    });
    let epochs: Vec<serde_json::Value> = ledger
        .iter()
        .map(|epoch| serde_json::json!({ "epoch": epoch.epoch.0, "cum": epoch.cum, "stored": epoch.stored, "closed": epoch.closed }))
        .collect();
    Ok(Json(
        serde_json::json!({ "device": item.device, "awake": item.awake, "shard": item.shard, "epochs": epochs, "status": status, "clock": clock, "groups": groups, "enrolled": enrolled }),
    ))
}

#[cfg(test)]
mod tests;
