//! `/v1/devices/{id}/commands`: what a device is told to do, and what became of it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use device::command::{Answer, Command, Order, draw_id};
use device::id::DeviceId;
use device::machine::Device;
use device::payload::parse_rfc3339;
use device::time::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use super::{Api, Who, device_id, time_text};

/// How long a device has for a command unless the request says otherwise.
const DEADLINE: Duration = Duration::from_secs(3600);
/// Longest time that a request waits for a result.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How often is looked whether there is a result.
const LOOK: Duration = Duration::from_millis(25);

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    name: String,
    #[serde(default)]
    args: Value,
    cmd_id: Option<String>,
    /// RFC 3339, or nanoseconds since the Unix epoch.
    deadline: Option<Value>,
    /// Instead of a deadline: how long from now.
    ttl: Option<String>,
    by: Option<String>,
}

/// Query string of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// How long to wait for the end.
    timeout: Option<String>,
}

fn described(device: &DeviceId, command: &Command) -> Value {
    let Command { order, queued, state, out, changed } = command;
    json!({
        "device": device.as_str(),
        "cmd_id": &*order.id,
        "name": &*order.name,
        "args": order.args,
        "deadline": time_text(order.deadline),
        "by": &*order.by,
        "queued": time_text(*queued),
        "state": state.as_str(),
        "out": out,
        "changed": time_text(*changed),
    })
}

async fn look<T>(api: &Api, device: &DeviceId, look: impl FnOnce(&Device) -> T) -> Result<T, Problem> {
    let looked = api.core.node.look(device, look).await;
    looked.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

pub(super) fn duration(name: &str, text: &str) -> Result<Duration, Problem> {
    // A plain number is seconds.
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    parsed.map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, format!("`{name}` is a length of time such as \"10s\", not {text:?}"))
    })
}

/// Reads the body of a request.
pub(super) fn read(body: &str, who: &Who) -> Result<Request, Problem> {
    let request: Request = serde_json::from_str(body).map_err(|error| {
        let text = format!(
            "the body must be {{\"name\": \"..\", \"args\": .., \"cmd_id\"?, \"deadline\"? or \"ttl\"?}}: {error}"
        );
        Problem::new(StatusCode::BAD_REQUEST, text)
    })?;
    Ok(Request { by: Some(who.by(request.by)), ..request })
}

impl Request {
    /// What it orders at `now`; `draw` gives an id if it has none.
    pub(super) fn order(self, now: Timestamp, draw: impl FnOnce() -> Arc<str>) -> Result<Order, Problem> {
        let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
        let deadline = match (&self.deadline, &self.ttl) {
            (Some(_), Some(_)) => return Err(bad("give `deadline` or `ttl`, not both".to_owned())),
            (Some(Value::String(text)), None) => {
                parse_rfc3339(text).map_err(|error| bad(format!("`deadline` {text:?}: {error}")))?
            }
            (Some(value), None) => value.as_i64().map(Timestamp).ok_or_else(|| {
                bad("`deadline` is a time such as 2026-11-28T12:00:00Z, or nanoseconds since the Unix epoch".to_owned())
            })?,
            (None, ttl) => {
                let ttl = ttl.as_deref().map(|text| duration("ttl", text)).transpose()?.unwrap_or(DEADLINE);
                now.plus(i64::try_from(ttl.as_nanos()).unwrap_or(i64::MAX))
            }
        };
        Ok(Order {
            id: self.cmd_id.map_or_else(draw, Into::into),
            name: self.name.into(),
            args: self.args,
            deadline,
            by: self.by.unwrap_or_else(|| "operator".to_owned()).into(),
        })
    }
}

pub(super) async fn send(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
    body: String,
) -> Result<Response, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
    let device = device_id(&id)?;
    let request = read(&body, &who)?;
    let patience = wait.timeout.as_deref().map(|text| duration("timeout", text)).transpose()?.unwrap_or_default();
    if patience > LONGEST_WAIT {
        return Err(bad(format!("`timeout` is at most {}", humantime::format_duration(LONGEST_WAIT))));
    }
    let now = api.core.node.now(&device);
    let order = request.order(now, || draw_id(now, [rand::random(), rand::random()]))?;
    let id = order.id.clone();
    let answered = api.core.node.request(&device, |device, now| device.order(order.clone(), now)).await;
    match answered {
        Some(Answer::Queued | Answer::Known) => {}
        Some(Answer::Conflict) => {
            let text = format!("there is another command {id:?} for {device}: take another cmd_id");
            return Err(Problem::new(StatusCode::CONFLICT, text));
        }
        Some(Answer::Refused(text)) => return Err(bad(text)),
        None => {
            let text = format!("device {device} cannot be reached now; ask again with the same cmd_id, it counts once");
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, text));
        }
    }
    let until = tokio::time::Instant::now() + patience;
    loop {
        let command = look(&api, &device, |device| device.commands().and_then(|all| all.find(&id).cloned())).await?;
        let Some(command) = command else { return Err(unknown(&device, &id)) };
        let ended = command.state.is_end();
        if ended || tokio::time::Instant::now() >= until || api.stop.is_cancelled() {
            let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
            return Ok((status, Json(described(&device, &command))).into_response());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn unknown(device: &DeviceId, id: &str) -> Problem {
    let text = format!("no command {id:?} for {device} is remembered; SELECT * FROM _commands has all");
    Problem::new(StatusCode::NOT_FOUND, text)
}

pub(super) async fn list(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let device = device_id(&id)?;
    let all = look(&api, &device, |of| {
        let all =
            of.commands().map(|all| all.all().rev().map(|command| described(&device, command)).collect::<Vec<_>>());
        all.unwrap_or_default()
    });
    Ok(Json(json!({ "commands": all.await? })))
}

pub(super) async fn show(
    State(api): State<Api>,
    Path((id, command)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let device = device_id(&id)?;
    let found = look(&api, &device, |of| of.commands().and_then(|all| all.find(&command).cloned())).await?;
    match found {
        Some(found) => Ok(Json(described(&device, &found))),
        None => Err(unknown(&device, &command)),
    }
}
