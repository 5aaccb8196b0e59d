//! `/v1/pipelines`: what runs, repairs, taps.
//!
//! Repairs and taps answer with a line of JSON for each thing that happens, for as long as it lasts.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use device::payload::parse_rfc3339;
use futures::stream;
use pipelines::output::table_specs;
use serde::Deserialize;

use super::Api;
use super::problem::Problem;
use crate::overview::Overview;
use crate::repair;

pub(super) async fn list(State(api): State<Api>) -> Json<Overview> {
    // Without it a plan says less; everything else is there.
    let known = api.core.schemas().unwrap_or_default();
    Json(Overview::of(&api.core.project()).knowing(known))
}

/// What is to be repaired.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    from: String,
    to: Option<String>,
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let parsed = parse_rfc3339(text);
    parsed.map(|time| time.0).map_err(|e| bad(format!("{name} {text}: {e}; write 2026-11-23T10:00:00Z")))
}

pub(super) async fn repair(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: String,
) -> Result<Response, Problem> {
    let order: Order = serde_json::from_str(&body)
        .map_err(|e| bad(format!("the body must be {{\"from\": TIME, \"to\": TIME}}, `to` may be absent: {e}")))?;
    let from = time("from", &order.from)?;
    let to = order.to.as_deref().map(|to| time("to", to)).transpose()?;
    if to.is_some_and(|to| to <= from) {
        return Err(bad(format!("to {} is not after from {}", order.to.unwrap_or_default(), order.from)));
    }
    let project = api.core.project();
    let Some(plan) = project.pipeline(&name) else {
        return Err(unknown("pipeline", &name, project.pipelines.iter().map(|plan| plan.name.as_str())));
    };
    let started = api.repairs.start(api.core.clone(), plan, (from, to), api.stop.clone());
    let events = started.map_err(|text| Problem::new(StatusCode::CONFLICT, text))?;
    let lines = stream::unfold(events, async |mut events| {
        let event = events.recv().await?;
        let line = serde_json::to_string(&event).map(|text| Bytes::from(text + "\n"));
        Some((line, events))
    });
    Ok(ndjson(Body::from_stream(lines)))
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Problem::new(StatusCode::NOT_FOUND, format!("there is no {what} `{name}`; there are: {there}"))
}

fn ndjson(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Query string of a tap.
#[derive(Debug, Deserialize)]
pub(super) struct Limit {
    limit: Option<u64>,
}

pub(super) async fn tap(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(Limit { limit }): Query<Limit>,
) -> Result<Response, Problem> {
    let specs = table_specs(&api.core.project(), &api.core.catalog());
    if !specs.contains_key(&name) {
        return Err(unknown("pipeline or stream", &name, specs.keys().map(String::as_str)));
    }
    let tap = repair::tap(&api.core, &name);
    let start = (Arc::clone(&tap), limit.unwrap_or(u64::MAX), api.stop.clone());
    let lines = stream::unfold(start, async |(tap, left, stop)| {
        if left == 0 {
            return None;
        }
        let next = stop.run_until_cancelled(repair::lines(&tap, left)).await?;
        match next {
            Ok((bytes, rows)) => Some((Ok(Bytes::from(bytes)), (tap, left - rows, stop))),
            Err(error) => Some((Err(error), (tap, 0, stop))),
        }
    });
    Ok(ndjson(Body::from_stream(lines)))
}
