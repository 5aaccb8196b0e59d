//! `/v1/provision`: a device asks for its first certificate with a token of its own, or with a voucher.
//!
//! Nobody has to say who it is: the token in the body is what lets it ask. So this needs TLS, an address may ask only so often,
//! and what was wrong with a token is not told.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::guard::Peer;
use super::problem::Problem;

/// Status of an answer that refuses for this reason.
fn status(reason: &str) -> StatusCode {
    match reason {
        "bad_request" | "bad_proof" | "bad_serial" => StatusCode::BAD_REQUEST,
        "already_provisioned" => StatusCode::CONFLICT,
        "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::FORBIDDEN,
    }
}

pub(super) async fn enrol(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Problem> {
    let Some(entry) = api.entry.clone() else {
        let text =
            "this engine has no authority that could give certificates: it listens neither for mqtts nor for https";
        return Err(Problem::new(StatusCode::NOT_FOUND, text));
    };
    api.guard.may_enrol(&peer)?;
    let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the engine is stopping; ask again");
    let mut answered = entry.provision(None, Some(peer.address), body).await.ok_or_else(stopping)?;
    let Some(reason) = answered.refused else {
        let kind = if answered.is_json { "application/json" } else { "application/cbor" };
        return Ok(([(header::CONTENT_TYPE, kind)], answered.bytes()).into_response());
    };
    if matches!(reason, "bad_token" | "bad_voucher") {
        api.guard.enrolment_failed(&peer);
    }
    let status = status(reason);
    // The answer of the other way, and what every answer of this API that refuses has.
    let text = answered.answer["error"]["text"].clone();
    answered.answer["type"] = "about:blank".into();
    answered.answer["title"] = status.canonical_reason().unwrap_or("error").into();
    answered.answer["status"] = status.as_u16().into();
    answered.answer["detail"] = text;
    let kind = if answered.is_json { "application/problem+json" } else { "application/cbor" };
    Ok((status, [(header::CONTENT_TYPE, kind)], answered.bytes()).into_response())
}
