//! Every route with its method, the least role that may call it, and what it changes. The router is made of this table, so
//! there is no route that anybody forgot to protect; and what is no route needs a role all the same.

use std::sync::Arc;

use access::users::Role::{self, Admin, Analyst, Engineer, Operator, Viewer};
use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use tower::ServiceExt;

use super::guard::{Guard, Rule, pass};
use super::problem::Problem;
use super::{Api, alerts, commands, groups, messages, metrics, pipelines, provision, shadow, silences};

/// One method of one path.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) rule: Rule,
    handler: MethodRouter<Api>,
}

fn open(method: &'static str, path: &'static str, handler: MethodRouter<Api>) -> Route {
    Route { method, path, rule: Rule { least: None, changes: None }, handler }
}

fn read(method: &'static str, path: &'static str, least: Role, handler: MethodRouter<Api>) -> Route {
    Route { method, path, rule: Rule { least: Some(least), changes: None }, handler }
}

fn change(
    method: &'static str,
    path: &'static str,
    least: Role,
    action: &'static str,
    handler: MethodRouter<Api>,
) -> Route {
    Route { method, path, rule: Rule { least: Some(least), changes: Some(action) }, handler }
}

/// The API.
pub(super) fn table() -> Vec<Route> {
    const SHADOW: &str = "/v1/devices/{id}/shadow";
    const NAMED: &str = "/v1/devices/{id}/shadow/{name}";
    const COMMANDS: &str = "/v1/devices/{id}/commands";
    const GROUP: &str = "/v1/groups/{name}";
    vec![
        open("GET", "/healthz", get(async || "ok\n")),
        open("GET", "/readyz", get(super::ready)),
        // What lets somebody ask stands in the body.
        open("POST", "/v1/provision", post(provision::enrol)),
        read("GET", "/metrics", Viewer, get(metrics::render)),
        read("POST", "/v1/query", Analyst, post(super::run_query)),
        change("POST", "/v1/flush", Operator, "flush", post(super::flush)),
        read("GET", "/v1/pipelines", Viewer, get(pipelines::list)),
        change("POST", "/v1/pipelines/{name}/repair", Engineer, "pipeline.repair", post(pipelines::repair)),
        read("GET", "/v1/pipelines/{name}/tap", Engineer, get(pipelines::tap)),
        read("GET", "/v1/retention/{table}", Viewer, get(super::retention)),
        read("GET", "/v1/alerts", Viewer, get(alerts::list)),
        read("GET", "/v1/alerts/channels", Viewer, get(messages::channels)),
        read("GET", "/v1/alerts/silences", Viewer, get(silences::list)),
        change("POST", "/v1/alerts/silences", Operator, "alert.silence", post(silences::create)),
        change("DELETE", "/v1/alerts/silences/{id}", Operator, "alert.unsilence", delete(silences::remove)),
        read("GET", "/v1/alerts/{id}", Viewer, get(alerts::show)),
        change("POST", "/v1/alerts/{id}/ack", Operator, "alert.ack", post(alerts::acknowledge)),
        change("POST", "/v1/alerts/{id}/unack", Operator, "alert.unack", post(alerts::release)),
        read("GET", "/v1/audit", Viewer, get(super::audit_all)),
        read("GET", "/v1/audit/{id}", Viewer, get(super::audit_one)),
        read("GET", "/v1/trail", Admin, get(super::trail)),
        read("GET", "/v1/devices", Viewer, get(super::devices)),
        read("GET", "/v1/devices/{id}", Viewer, get(super::device)),
        read("GET", SHADOW, Viewer, get(shadow::default_get)),
        // Which values an engineer may change, the configuration says by path: without a word there, none.
        change("PATCH", SHADOW, Engineer, "shadow.set", patch(shadow::default_patch)),
        change("DELETE", SHADOW, Operator, "shadow.delete", delete(shadow::default_delete)),
        read("GET", NAMED, Viewer, get(shadow::get)),
        change("PATCH", NAMED, Engineer, "shadow.set", patch(shadow::patch)),
        change("DELETE", NAMED, Operator, "shadow.delete", delete(shadow::delete)),
        read("GET", "/v1/devices/{id}/shadows", Viewer, get(shadow::names)),
        read("GET", COMMANDS, Viewer, get(commands::list)),
        change("POST", COMMANDS, Operator, "command", post(commands::send)),
        read("GET", "/v1/devices/{id}/commands/{command}", Viewer, get(commands::show)),
        read("GET", "/v1/groups", Viewer, get(groups::list)),
        read("GET", GROUP, Viewer, get(groups::show)),
        change("PUT", GROUP, Operator, "group.set", put(groups::set)),
        change("DELETE", GROUP, Operator, "group.delete", delete(groups::remove)),
        read("GET", "/v1/groups/{name}/shadow", Viewer, get(groups::progress)),
        change("PATCH", "/v1/groups/{name}/shadow", Engineer, "group.shadow.set", patch(groups::push)),
        change("POST", "/v1/groups/{name}/commands", Operator, "group.command", post(groups::command)),
    ]
}

/// The router of the table; all that is not in it is refused to those who are nobody, and not found by all others.
pub(super) fn router(api: Api, guard: &Arc<Guard>) -> Router {
    let under = |rule: Rule| from_fn_with_state((guard.clone(), rule), pass);
    let mut router = Router::new();
    for route in table() {
        tracing::trace!(method = route.method, path = route.path, least = ?route.rule.least, "a route");
        router = router.route(route.path, route.handler.route_layer(under(route.rule)));
    }
    let rest = Rule { least: Some(Viewer), changes: None };
    let nothing = Router::new()
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such resource; the API stands under /v1"))
        .layer(under(rest));
    let other = Router::new()
        .fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this resource has no such method"))
        .layer(under(rest));
    let other = move |request: axum::extract::Request| async move {
        match other.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    };
    // The guard has read the body, and bounded it.
    let router = router.method_not_allowed_fallback(other).fallback_service(nothing);
    router.layer(axum::extract::DefaultBodyLimit::disable()).with_state(api)
}
