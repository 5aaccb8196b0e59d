//! `/v1/groups`: groups of devices, and what is wanted of all of them at once.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use device::command::{self, Order, draw_id};
use device::id::DeviceId;
use device::shadow::{Answer, Ask, DEFAULT};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::shadow::may_want;
use super::{Api, Who, commands, device_id};
use crate::fleets::{MembersError, named_by};
use crate::groups::{GroupError, Members};

/// Devices that are asked at the same time.
const AT_ONCE: usize = 64;
/// Most devices that are named in an answer.
const MAX_NAMED: usize = 100;

impl From<GroupError> for Problem {
    fn from(error: GroupError) -> Self {
        let status = match error {
            GroupError::Bad(_) => StatusCode::BAD_REQUEST,
            GroupError::File { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<MembersError> for Problem {
    fn from(error: MembersError) -> Self {
        match error {
            MembersError::Query(error) => error.into(),
            MembersError::Answer(text) => Self::new(StatusCode::BAD_REQUEST, text),
        }
    }
}

pub(super) async fn list(State(api): State<Api>) -> Json<Value> {
    let describe = |(name, members): (String, Members)| match members {
        Members::Devices(devices) => json!({ "name": name, "devices": devices.len() }),
        Members::Sql(sql) => json!({ "name": name, "sql": sql }),
    };
    let groups: Vec<Value> = api.core.groups.all().into_iter().map(describe).collect();
    Json(json!({ "groups": groups }))
}

fn unknown(name: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no group {name:?}; GET /v1/groups lists all"))
}

/// Who belongs to a group now.
async fn members(api: &Api, name: &str) -> Result<Vec<DeviceId>, Problem> {
    let sql = match api.core.groups.get(name).ok_or_else(|| unknown(name))? {
        Members::Devices(devices) => return devices.iter().map(|device| device_id(device)).collect(),
        Members::Sql(sql) => sql,
    };
    Ok(named_by(&api.core, api.runtime.clone(), api.bounds, &sql).await?)
}

pub(super) async fn show(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let members = members(&api, &name).await?;
    let devices: Vec<&str> = members.iter().map(DeviceId::as_str).collect();
    let sql = match api.core.groups.get(&name) {
        Some(Members::Sql(sql)) => Some(sql),
        _ => None,
    };
    Ok(Json(json!({ "name": name, "sql": sql, "members": devices.len(), "devices": devices })))
}

pub(super) async fn set(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: String,
) -> Result<Json<Value>, Problem> {
    let members: Members = serde_json::from_str(&body).map_err(|error| {
        let text = format!("the body must be {{\"devices\": [..]}} or {{\"sql\": \"SELECT device FROM ..\"}}: {error}");
        Problem::new(StatusCode::BAD_REQUEST, text)
    })?;
    if let Members::Sql(sql) = &members {
        // What cannot be asked is refused now rather than when it is needed.
        named_by(&api.core, api.runtime.clone(), api.bounds, sql).await?;
    }
    api.core.groups.set(&name, Some(members))?;
    show(State(api), Path(name)).await
}

pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    match api.core.groups.set(&name, None)? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unknown(&name)),
    }
}

/// Query string of a push.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Push {
    /// Which shadow.
    name: Option<String>,
    /// The id of the request: repeated, it counts once for each device.
    request_id: Option<String>,
    by: Option<String>,
    ttl: Option<String>,
}

/// How it went with each.
#[derive(Default)]
struct Tally {
    done: usize,
    unchanged: usize,
    failed: Vec<Value>,
}

impl Tally {
    fn fail(&mut self, device: &DeviceId, why: impl Into<String>) {
        self.failed.push(json!({ "device": device.as_str(), "why": why.into() }));
    }

    fn answer(self, mut about: Value, members: usize) -> Response {
        if let Some(about) = about.as_object_mut() {
            about.insert("members".to_owned(), members.into());
            about.insert("changed".to_owned(), self.done.into());
            about.insert("unchanged".to_owned(), self.unchanged.into());
            about.insert("failed".to_owned(), self.failed.len().into());
            about.insert("failures".to_owned(), self.failed.iter().take(MAX_NAMED).cloned().collect());
        }
        let status = if self.failed.is_empty() { StatusCode::OK } else { StatusCode::MULTI_STATUS };
        (status, Json(about)).into_response()
    }
}

/// A merge patch of what is desired of each.
pub(super) async fn push(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path(group): Path<String>,
    Query(push): Query<Push>,
    body: String,
) -> Result<Response, Problem> {
    let patch: Map<String, Value> = serde_json::from_str(&body).map_err(|error| {
        let text = format!("the body must be a JSON object, a merge patch of what is desired: {error}");
        Problem::new(StatusCode::BAD_REQUEST, text)
    })?;
    let ttl = match &push.ttl {
        Some(text) => Some(i64::try_from(commands::duration("ttl", text)?.as_nanos()).unwrap_or(i64::MAX)),
        None => None,
    };
    let shadow = push.name.as_deref().unwrap_or(DEFAULT);
    may_want((&api, &who), shadow, Some(&patch))?;
    let ask = Ask {
        shadow: shadow.into(),
        patch: Some(patch),
        by: who.by(push.by.clone()).into(),
        request: push.request_id.as_deref().map(Into::into),
        if_dv: None,
        ttl,
    };
    let members = members(&api, &group).await?;
    let count = members.len();
    let asked = futures::stream::iter(members).map(|device| {
        let (node, ask) = (api.core.node.clone(), ask.clone());
        async move {
            let answer = node.request(&device, |device, now| device.ask(ask.clone(), now)).await;
            (device, answer)
        }
    });
    let mut asked = asked.buffer_unordered(AT_ONCE);
    let mut tally = Tally::default();
    while let Some((device, answer)) = asked.next().await {
        match answer {
            Some(Answer::Changed(_)) => tally.done += 1,
            Some(Answer::Unchanged(_)) => tally.unchanged += 1,
            Some(Answer::Refused(why)) => tally.fail(&device, why),
            Some(Answer::Mismatch(_) | Answer::Old) | None => tally.fail(&device, "it does not answer now"),
        }
    }
    Ok(tally.answer(json!({ "group": group, "shadow": shadow }), count))
}

/// How far the members are with what is desired of them.
pub(super) async fn progress(
    State(api): State<Api>,
    Path(group): Path<String>,
    Query(push): Query<Push>,
) -> Result<Json<Value>, Problem> {
    let shadow = push.name.as_deref().unwrap_or(DEFAULT);
    let members = members(&api, &group).await?;
    let (mut in_sync, mut never, mut behind) = (0, 0, Vec::new());
    for device in &members {
        let now = api.core.node.now(device);
        let view = api.core.node.look(device, |device| device.shadow(shadow, now)).await;
        let view = view.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
        match view {
            // A plain client does not say what it has applied: nothing left to do is what counts.
            Some(view) if view.delta.is_empty() && view.open.is_empty() => in_sync += 1,
            Some(view) => {
                never += usize::from(view.rv == 0);
                behind.push(json!({ "device": device.as_str(), "dv": view.dv, "applied_dv": view.applied_dv }));
            }
            None => in_sync += 1,
        }
    }
    let pending = behind.len();
    behind.truncate(MAX_NAMED);
    Ok(Json(json!({
        "group": group, "shadow": shadow, "members": members.len(), "in_sync": in_sync, "pending": pending,
        "never_reported": never, "behind": behind,
    })))
}

/// A command to each, under one id.
pub(super) async fn command(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path(group): Path<String>,
    body: String,
) -> Result<Response, Problem> {
    let request = commands::read(&body, &who)?;
    let members = members(&api, &group).await?;
    let Some(first) = members.first() else {
        return Ok(Tally::default().answer(json!({ "group": group }), 0));
    };
    let now = api.core.node.now(first);
    let order: Order = request.order(now, || draw_id(now, [rand::random(), rand::random()]))?;
    let count = members.len();
    let asked = futures::stream::iter(members).map(|device| {
        let (node, order) = (api.core.node.clone(), order.clone());
        async move {
            let answer = node.request(&device, |device, now| device.order(order.clone(), now)).await;
            (device, answer)
        }
    });
    let mut asked = asked.buffer_unordered(AT_ONCE);
    let mut tally = Tally::default();
    while let Some((device, answer)) = asked.next().await {
        match answer {
            Some(command::Answer::Queued) => tally.done += 1,
            Some(command::Answer::Known) => tally.unchanged += 1,
            Some(command::Answer::Conflict) => tally.fail(&device, "there is another command of this id"),
            Some(command::Answer::Refused(why)) => tally.fail(&device, why),
            None => tally.fail(&device, "it does not answer now"),
        }
    }
    Ok(tally.answer(json!({ "group": group, "cmd_id": &*order.id, "name": &*order.name }), count))
}
