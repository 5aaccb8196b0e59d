//! `/v1/alerts`: which alerts are not `ok`, and who takes care of them.

use std::sync::Arc;
use std::time::Duration;

use alerts::{Facts, Labels};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use device::alert::{IncidentId, State as Stand, Transition};
use device::id::DeviceId;
use pipelines::alerts::AlertKey;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Api, MAX_PAGE, Paged, Who, time_text};

/// How long an acknowledgement lasts unless the request says otherwise.
const ACK: Duration = Duration::from_secs(4 * 3600);

/// Longest time that an incident may be taken care of: a week.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Longest name of somebody.
const MAX_NAME: usize = 200;

/// An alert of a device that is not `ok`.
#[derive(Debug, Serialize, Deserialize)]
pub struct AlertItem {
    /// The incident, or what it would be called.
    pub id: String,
    /// Name of the rule.
    pub rule: String,
    /// Name of the device.
    pub device: String,
    /// `pending`, `firing`, `recovering` or `no_data`.
    pub state: String,
    /// Severity, or what it would be.
    pub severity: String,
    /// When it began.
    pub since: String,
    /// When it last changed.
    pub changed: String,
    /// What happened then.
    pub event: String,
    /// The reading that did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The incident is open, but nothing is heard.
    pub stale: bool,
    /// Who takes care of it.
    pub ack: Option<AckItem>,
    /// Nobody is told of it now.
    #[serde(default)]
    pub muted: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muted_by: Option<String>,
    /// It comes and goes: nobody is told of more until it has settled.
    #[serde(default)]
    pub flapping: bool,
    /// `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Who takes care of an incident.
#[derive(Debug, Serialize, Deserialize)]
pub struct AckItem {
    /// Who.
    pub by: String,
    /// Until when.
    pub until: String,
}

impl AlertItem {
    fn of((device, rule): &AlertKey, last: &Transition, muted_by: Option<String>, flapping: bool) -> Self {
        Self {
            id: last.incident.to_string(),
            rule: rule.to_string(),
            device: device.to_string(),
            state: last.to.as_str().to_owned(),
            severity: last.severity.to_string(),
            since: time_text(last.since),
            changed: time_text(last.ts),
            event: last.event.as_str().to_owned(),
            value: last.value,
            stale: last.stale,
            ack: last.ack.as_ref().map(|ack| AckItem { by: ack.by.to_string(), until: time_text(ack.until) }),
            muted: muted_by.is_some(),
            muted_by,
            flapping,
            labels: last.labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect(),
        }
    }
}

/// Query string of the list.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    state: Option<String>,
    rule: Option<String>,
    device: Option<String>,
    severity: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Items {
    alerts: Vec<AlertItem>,
}

pub(super) async fn list(State(api): State<Api>, Query(wanted): Query<Wanted>) -> Result<Json<Paged<Items>>, Problem> {
    let limit = wanted.limit.unwrap_or(100).clamp(1, MAX_PAGE);
    let after: Option<AlertKey> = match &wanted.after {
        Some(after) => match after.rsplit_once('/') {
            Some((device, rule)) => Some((Arc::from(device), Arc::from(rule))),
            None => return Err(Problem::new(StatusCode::BAD_REQUEST, "`after` is the `next` of the page before")),
        },
        None => None,
    };
    let fits = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
    let mut all: Vec<(AlertKey, Transition)> = Vec::new();
    for status in &api.core.statuses {
        all.extend(status.alerts.list(after.as_ref(), limit, |(device, rule), last| {
            fits(&wanted.state, last.to.as_str())
                && fits(&wanted.rule, rule)
                && fits(&wanted.device, device)
                && fits(&wanted.severity, &last.severity)
        }));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.truncate(limit);
    let next = all.last().filter(|_| all.len() == limit).map(|((device, rule), _)| format!("{device}/{rule}"));
    let alerts = all.iter().map(|(key, last)| item(&api, key, last)).collect();
    Ok(Json(Paged { items: Items { alerts }, next }))
}

fn item(api: &Api, key: &AlertKey, last: &Transition) -> AlertItem {
    let (device, rule) = key;
    let labels = Labels::parse(&last.labels);
    let facts = Facts { rule, device, severity: &last.severity, labels: &labels.0 };
    let now = (api.clock)();
    let (muted, flapping) = api.core.desk.with(|desk| (desk.muted(now, &facts), desk.flaps(device, rule)));
    AlertItem::of(key, last, muted.map(|by| by.to_string()), flapping)
}

fn find(api: &Api, id: &str) -> Result<(AlertKey, Transition), Problem> {
    let incident = IncidentId::parse(id).ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, format!("{id:?} is not the id of an incident: it has 16 hex digits"))
    })?;
    let found = api
        .core
        .statuses
        .iter()
        .find_map(|status| status.alerts.list(None, 1, |_, last| last.incident == incident).pop());
    found.ok_or_else(|| {
        let text = format!("no open incident {id}; its past: SELECT * FROM _alerts WHERE incident = '{id}'");
        Problem::new(StatusCode::NOT_FOUND, text)
    })
}

pub(super) async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<AlertItem>, Problem> {
    let (key, last) = find(&api, &id)?;
    Ok(Json(item(&api, &key, &last)))
}

/// Who takes care, and for how long.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    by: Option<String>,
    #[serde(rename = "for")]
    lasts: Option<String>,
}

pub(super) async fn acknowledge(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    body: String,
) -> Result<Json<AlertItem>, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
    let request: Request = match body.trim() {
        "" => Request::default(),
        body => serde_json::from_str(body)
            .map_err(|error| bad(format!("the body must be {{\"by\": \"..\", \"for\": \"4h\"}}: {error}")))?,
    };
    let by = who.by(request.by);
    if by.trim().is_empty() || by.len() > MAX_NAME {
        return Err(bad(format!("`by` is a name of up to {MAX_NAME} bytes")));
    }
    let lasts = match request.lasts {
        None => ACK,
        Some(text) => match humantime::parse_duration(&text) {
            Ok(lasts) if !lasts.is_zero() && lasts <= LONGEST => lasts,
            _ => return Err(bad(format!("`for` is a length of time up to 7 days, such as \"4h\", not {text:?}"))),
        },
    };
    change(&api, &id, Some((by, lasts))).await
}

pub(super) async fn release(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<AlertItem>, Problem> {
    change(&api, &id, None).await
}

async fn change(api: &Api, id: &str, ack: Option<(String, Duration)>) -> Result<Json<AlertItem>, Problem> {
    let (key, last) = find(api, id)?;
    if last.to == Stand::Pending {
        let text = format!("{id} is pending: there is no incident to take care of yet");
        return Err(Problem::new(StatusCode::CONFLICT, text));
    }
    let device = DeviceId::new(&key.0).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let ack = api.core.node.acknowledge(&device, last.incident, ack).await;
    let Some(ack) = ack else {
        let text = format!("the incident {id} is over, or its device cannot be reached now");
        return Err(Problem::new(StatusCode::CONFLICT, text));
    };
    // Durable; the view follows when the device has written what became of it.
    Ok(Json(item(api, &key, &Transition { ack, ..last })))
}
