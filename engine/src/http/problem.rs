//! Problem details for HTTP APIs (RFC 9457).

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error answer.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
    more: Option<(HeaderName, HeaderValue)>,
}

/// The detail of a problem, carried with its answer for whoever writes down what happened.
#[derive(Debug, Clone)]
pub(super) struct Reason(pub(super) String);

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), more: None }
    }

    /// The same with a header that says more.
    pub(super) fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { more: Some((name, value)), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let headers = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, headers, format!("{body}\n")).into_response();
        if let Some((name, value)) = self.more {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(Reason(self.detail));
        response
    }
}
