//! `/v1/devices/{id}/shadow[/{name}]`: what a device is wanted to be, and what it says it is.

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use device::id::DeviceId;
use device::machine::Device;
use device::payload::parse_rfc3339;
use device::shadow::{Answer, Ask, DEFAULT, View, shown};
use device::time::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::{Api, Who, device_id, time_text};

/// Longest time that a value may be wanted for: ten years.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 86_400);

/// Query string of a read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    /// Only what was desired at this version.
    dv: Option<u64>,
    /// Only what was desired at this time.
    at: Option<String>,
}

/// Query string of a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// How long the values count.
    ttl: Option<String>,
    /// The id of the request.
    request_id: Option<String>,
    /// Who asks.
    by: Option<String>,
    /// Only if this is the version; the same as `If-Match`.
    if_dv: Option<u64>,
}

/// A shadow as JSON.
fn document(device: &DeviceId, name: &str, view: &View) -> Value {
    let meta = |values: Vec<(String, Value)>| Value::Object(values.into_iter().collect());
    let desired = view.desired_meta.iter().map(|(path, at, by, expires)| {
        let mut about = json!({ "ts": time_text(*at), "by": &**by });
        if let (Some(expires), Some(about)) = (expires, about.as_object_mut()) {
            about.insert("expires".to_owned(), time_text(*expires).into());
        }
        (shown(path), about)
    });
    let reported = view.reported_meta.iter().map(|(path, at)| (shown(path), json!({ "ts": time_text(*at) })));
    json!({
        "device": device.as_str(),
        "name": name,
        "desired": view.desired,
        "reported": view.reported,
        "delta": view.delta,
        "dv": view.dv,
        "rv": view.rv,
        "applied_dv": view.applied_dv,
        "in_sync": view.in_sync,
        "conflicts": view.open.iter().map(|path| shown(path)).collect::<Vec<_>>(),
        "changed": (view.dv + view.rv > 0).then(|| time_text(view.changed)),
        "metadata": { "desired": meta(desired.collect()), "reported": meta(reported.collect()) },
    })
}

/// An empty shadow, of a device that has none yet.
fn nothing() -> View {
    View {
        desired: Map::new(),
        reported: Map::new(),
        delta: Map::new(),
        dv: 0,
        rv: 0,
        applied_dv: 0,
        in_sync: true,
        open: Vec::new(),
        changed: Timestamp::default(),
        desired_meta: Vec::new(),
        reported_meta: Vec::new(),
    }
}

fn answer(status: StatusCode, device: &DeviceId, name: &str, view: &View) -> Response {
    let tag = format!("\"{}\"", view.dv);
    (status, [(header::ETAG, tag)], Json(document(device, name, view))).into_response()
}

async fn look<T>(api: &Api, device: &DeviceId, look: impl FnOnce(&Device) -> T) -> Result<T, Problem> {
    let looked = api.core.node.look(device, look).await;
    looked.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

pub(super) async fn default_get(
    state: State<Api>,
    Path(id): Path<String>,
    when: Query<When>,
) -> Result<Response, Problem> {
    get(state, Path((id, DEFAULT.to_owned())), when).await
}

pub(super) async fn get(
    State(api): State<Api>,
    Path((id, name)): Path<(String, String)>,
    Query(when): Query<When>,
) -> Result<Response, Problem> {
    let device = device_id(&id)?;
    if when.dv.is_some() || when.at.is_some() {
        return past(&api, &device, &name, &when).await;
    }
    let now = api.core.node.now(&device);
    let (view, known) = look(&api, &device, |device| (device.shadow(&name, now), device.is_known())).await?;
    match view {
        Some(view) => Ok(answer(StatusCode::OK, &device, &name, &view)),
        None if name == DEFAULT && known => Ok(answer(StatusCode::OK, &device, &name, &nothing())),
        None => {
            let text = if known {
                format!("device {device} has no shadow {name:?}")
            } else {
                format!("device {device} has never been heard of, and nothing is desired of it")
            };
            Err(Problem::new(StatusCode::NOT_FOUND, text))
        }
    }
}

/// What was desired once.
async fn past(api: &Api, device: &DeviceId, name: &str, when: &When) -> Result<Response, Problem> {
    let bad = |text: &str| Problem::new(StatusCode::BAD_REQUEST, text);
    let at = match &when.at {
        Some(text) => Some(parse_rfc3339(text).map_err(|_| bad("`at` is a time such as 2026-11-28T12:00:00Z"))?),
        None => None,
    };
    if at.is_some() && when.dv.is_some() {
        return Err(bad("give `dv` or `at`, not both"));
    }
    let found = look(api, device, |device| {
        let shadows = device.shadows()?;
        let dv = match at {
            Some(at) => shadows.version_at(name, at)?,
            None => when.dv?,
        };
        Some((dv, shadows.desired_at(name, dv)?))
    });
    match found.await? {
        Some((dv, desired)) => {
            Ok(Json(json!({ "device": device.as_str(), "name": name, "desired": desired, "dv": dv })).into_response())
        }
        None => {
            let text = format!(
                "what was desired of {device} ({name}) then is not kept; SELECT * FROM _shadow_history has every change"
            );
            Err(Problem::new(StatusCode::NOT_FOUND, text))
        }
    }
}

pub(super) async fn default_patch(
    state: State<Api>,
    who: Extension<Who>,
    Path(id): Path<String>,
    how: Query<How>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, Problem> {
    patch(state, who, Path((id, DEFAULT.to_owned())), how, headers, body).await
}

pub(super) async fn patch(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path((id, name)): Path<(String, String)>,
    Query(how): Query<How>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, Problem> {
    let patch: Map<String, Value> = serde_json::from_str(&body).map_err(|error| {
        let text = format!("the body must be a JSON object, a merge patch of what is desired: {error}");
        Problem::new(StatusCode::BAD_REQUEST, text)
    })?;
    change((&api, &who), (&id, &name), &how, &headers, Some(patch)).await
}

pub(super) async fn default_delete(
    state: State<Api>,
    who: Extension<Who>,
    Path(id): Path<String>,
    how: Query<How>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    delete(state, who, Path((id, DEFAULT.to_owned())), how, headers).await
}

pub(super) async fn delete(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path((id, name)): Path<(String, String)>,
    Query(how): Query<How>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    change((&api, &who), (&id, &name), &how, &headers, None).await
}

/// Refuses what whoever asks may not want of a device.
pub(super) fn may_want(
    (api, who): (&Api, &Who),
    shadow: &str,
    patch: Option<&Map<String, Value>>,
) -> Result<(), Problem> {
    match api.writers.refuse(shadow, patch, who.role) {
        None => Ok(()),
        Some((path, role)) => {
            let text = format!(
                "what is wanted at {path} of the shadow {shadow:?} can be changed by the role {role}, and this is the role {}; \
                 nothing was changed",
                who.role
            );
            Err(Problem::new(StatusCode::FORBIDDEN, text))
        }
    }
}

async fn change(
    (api, who): (&Api, &Who),
    (id, name): (&str, &str),
    how: &How,
    headers: &HeaderMap,
    patch: Option<Map<String, Value>>,
) -> Result<Response, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
    let device = device_id(id)?;
    may_want((api, who), name, patch.as_ref())?;
    let if_dv = match headers.get(header::IF_MATCH) {
        None => how.if_dv,
        Some(value) => {
            let text = value.to_str().unwrap_or_default().trim().trim_start_matches("W/").trim_matches('"');
            Some(text.parse().map_err(|_| bad(format!("If-Match is a version (dv) of the shadow, not {text:?}")))?)
        }
    };
    let ttl = match &how.ttl {
        None => None,
        Some(text) => match humantime::parse_duration(text) {
            Ok(ttl) if !ttl.is_zero() && ttl <= LONGEST => Some(i64::try_from(ttl.as_nanos()).unwrap_or(i64::MAX)),
            _ => return Err(bad(format!("`ttl` is a length of time such as \"15m\", up to ten years, not {text:?}"))),
        },
    };
    let ask = Ask {
        shadow: name.into(),
        patch,
        by: who.by(how.by.clone()).into(),
        request: how.request_id.as_deref().map(Into::into),
        if_dv,
        ttl,
    };
    let answered = api.core.node.request(&device, |device, now| device.ask(ask.clone(), now)).await;
    let unreachable = || {
        let text = format!("device {device} does not answer now; ask again with the same request_id, it counts once");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    let status = match answered.ok_or_else(unreachable)? {
        Answer::Changed(_) | Answer::Unchanged(_) => StatusCode::OK,
        Answer::Mismatch(_) => StatusCode::CONFLICT,
        Answer::Refused(text) => return Err(bad(text)),
        // No report asks here.
        Answer::Old => return Err(unreachable()),
    };
    let now = api.core.node.now(&device);
    let view = look(api, &device, |device| device.shadow(name, now)).await?.unwrap_or_else(nothing);
    Ok(answer(status, &device, name, &view))
}

/// Names of the shadows of a device.
pub(super) async fn names(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let device = device_id(&id)?;
    let names = look(&api, &device, |device| {
        device.shadows().map(|shadows| shadows.names().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default()
    });
    Ok(Json(json!({ "device": device.as_str(), "shadows": names.await? })))
}
