//! `/v1/alerts/silences`: incidents of which nobody is told for a while.

use std::time::Duration;

use alerts::{Matcher, Silence, SilenceError, SilenceId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use device::payload::parse_rfc3339;
use device::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Api, Who};

/// A silence.
#[derive(Debug, Serialize, Deserialize)]
pub struct SilenceItem {
    /// Its id.
    pub id: String,
    /// What it is about.
    pub matchers: Vec<String>,
    /// From when on.
    pub start: String,
    /// Until when.
    pub end: String,
    /// Who wants it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// Whether it counts now; else it is still to come.
    pub active: bool,
}

impl SilenceItem {
    fn of(id: SilenceId, silence: &Silence, now: Timestamp) -> Self {
        Self {
            id: id.to_string(),
            matchers: silence.matchers.iter().map(ToString::to_string).collect(),
            start: alerts::shown(silence.start),
            end: alerts::shown(silence.end),
            author: silence.author.clone(),
            reason: silence.reason.clone(),
            active: silence.is_active(now),
        }
    }
}

/// A silence that is wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SilenceRequest {
    /// What it is about.
    pub matchers: Vec<String>,
    /// From when on; absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// For how long; instead of `end`.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<String>,
    /// Who wants it.
    pub author: String,
    /// Why.
    pub reason: String,
}

impl SilenceRequest {
    fn silence(&self, now: Timestamp) -> Result<Silence, String> {
        let time = |name: &str, text: &str| {
            let wrong = |error| format!("`{name}`: {text:?}: {error}; write 2026-11-23T10:00:00Z");
            parse_rfc3339(text).map_err(wrong)
        };
        let start = self.start.as_deref().map_or(Ok(now), |text| time("start", text))?;
        let end = match (&self.end, &self.lasts) {
            (Some(end), None) => time("end", end)?,
            (None, Some(lasts)) => {
                let wrong = |error| format!("`for`: {lasts:?} is not a length of time ({error}); write \"2h\"");
                let lasts: Duration = humantime::parse_duration(lasts).map_err(wrong)?;
                start.plus(i64::try_from(lasts.as_nanos()).unwrap_or(i64::MAX))
            }
            _ => return Err("a silence needs `end`, or `for` instead of it".to_owned()),
        };
        let matchers = self.matchers.iter().map(|text| Matcher::parse(text)).collect::<Result<_, _>>()?;
        Ok(Silence { matchers, start, end, author: self.author.clone(), reason: self.reason.clone() })
    }
}

/// All silences.
#[derive(Debug, Serialize, Deserialize)]
pub struct SilencesItem {
    /// By id.
    pub silences: Vec<SilenceItem>,
}

pub(super) async fn list(State(api): State<Api>) -> Json<SilencesItem> {
    let now = (api.clock)();
    let silences = api.core.desk.with(|desk| {
        let live = desk.silences().iter().filter(|(_, silence)| now < silence.end);
        live.map(|(id, silence)| SilenceItem::of(*id, silence, now)).collect()
    });
    Json(SilencesItem { silences })
}

pub(super) async fn create(
    State(api): State<Api>,
    Extension(who): Extension<Who>,
    body: String,
) -> Result<(StatusCode, Json<SilenceItem>), Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, text);
    let request: SilenceRequest = serde_json::from_str(&body).map_err(|error| {
        bad(format!(
            "the body must be {{\"matchers\": [\"rule=overheating\"], \"for\": \"2h\", \"author\": \"..\", \
             \"reason\": \"..\"}}: {error}"
        ))
    })?;
    let now = (api.clock)();
    let request = SilenceRequest { author: who.by(Some(request.author)), ..request };
    let silence = request.silence(now).map_err(bad)?;
    let id = api.core.desk.silence(now, silence.clone()).map_err(|error| match error {
        SilenceError::TooMany => Problem::new(StatusCode::CONFLICT, error.to_string()),
        error => bad(error.to_string()),
    })?;
    durable(&api).await?;
    tracing::info!(%id, author = silence.author, reason = silence.reason, "a silence is there");
    Ok((StatusCode::CREATED, Json(SilenceItem::of(id, &silence, now))))
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let found = SilenceId::parse(&id).is_some_and(|id| api.core.desk.unsilence((api.clock)(), id));
    if !found {
        let text = format!("there is no silence {id:?}; `weir alerts silences` lists them");
        return Err(Problem::new(StatusCode::NOT_FOUND, text));
    }
    durable(&api).await?;
    tracing::info!(id, "a silence was ended");
    Ok(StatusCode::NO_CONTENT)
}

/// Returns when what was asked for outlives the process.
async fn durable(api: &Api) -> Result<(), Problem> {
    let desk = api.core.desk.clone();
    let written = tokio::task::spawn_blocking(move || desk.write()).await;
    let failed = |error: String| {
        let text = format!("it counts, but is not written yet, and a crash would lose it: {error}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}
