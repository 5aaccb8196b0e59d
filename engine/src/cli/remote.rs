//! Requests to a running engine.

use std::time::Duration;

use serde_json::Value;

use super::{Exit, Output};

/// Address of a local engine with default configuration.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Longest time that an engine may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An answer of more bytes than this is not read.
const MAX_ANSWER: u64 = 4 << 30;

/// Of which engine, and how to print what it says.
#[derive(Debug, clap::Args)]
pub(super) struct Of {
    /// A running engine.
    #[arg(long, default_value = DEFAULT_URL)]
    pub(super) url: String,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Output,
}

impl Of {
    /// Asks the engine; the answer as JSON, `null` if it has none.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Result<Value, Exit> {
        check_url(&self.url)?;
        let answer = request(method, &self.url, path, "application/json", body)?;
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(Exit::failed)
    }
}

/// Sends a request and gives the body of a successful answer; the text of a failed one is the error.
pub(super) fn request(method: &str, base: &str, path: &str, accept: &str, body: Option<&str>) -> Result<Vec<u8>, Exit> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build().into();
    let failed = |error: ureq::Error| Exit::Failed(format!("{url}: {error}; is an engine running there?"));
    let mut answer = match (method, body) {
        ("GET", _) => agent.get(&url).header("accept", accept).call(),
        ("DELETE", _) => agent.delete(&url).header("accept", accept).call(),
        ("PUT", body) => agent.put(&url).header("accept", accept).send(body.unwrap_or_default()),
        ("PATCH", body) => agent.patch(&url).header("accept", accept).send(body.unwrap_or_default()),
        (_, Some(body)) => agent.post(&url).header("accept", accept).send(body),
        (_, None) => agent.post(&url).header("accept", accept).send_empty(),
    }
    .map_err(failed)?;
    if !answer.status().is_success() {
        return Err(refused(&url, &mut answer));
    }
    answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(failed)
}

/// Sends a request and hands on each line of a successful answer, for as long as it lasts and `each` wants more.
pub(super) fn lines(
    method: &str,
    base: &str,
    path: &str,
    body: Option<&str>,
    mut each: impl FnMut(&str) -> Result<bool, Exit>,
) -> Result<(), Exit> {
    use std::io::BufRead;
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_connect(Some(TIMEOUT)).build().into();
    let failed = |error: ureq::Error| Exit::Failed(format!("{url}: {error}; is an engine running there?"));
    let mut answer = match (method, body) {
        ("GET", _) => agent.get(&url).call(),
        (_, Some(body)) => agent.post(&url).send(body),
        (_, None) => agent.post(&url).send_empty(),
    }
    .map_err(failed)?;
    if !answer.status().is_success() {
        return Err(refused(&url, &mut answer));
    }
    for line in std::io::BufReader::new(answer.body_mut().as_reader()).lines() {
        let line =
            line.map_err(|error| Exit::Failed(format!("{url}: {error}; the engine has ended, or cut it off")))?;
        if !each(&line)? {
            break;
        }
    }
    Ok(())
}

/// What an answer says that is none.
fn refused(url: &str, answer: &mut ureq::http::Response<ureq::Body>) -> Exit {
    let bytes = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().unwrap_or_default();
    let detail = serde_json::from_slice::<serde_json::Value>(&bytes)
        .ok()
        .and_then(|problem| problem.get("detail").and_then(|d| d.as_str()).map(str::to_owned));
    Exit::Failed(detail.unwrap_or_else(|| format!("{url}: {}", answer.status())))
}

/// A name as a part of a path.
pub(super) fn segment(name: &str) -> String {
    url::form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20")
}

/// A base URL must be plain HTTP for now.
pub(super) fn check_url(url: &str) -> Result<(), Exit> {
    match url::Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "http" => Ok(()),
        Ok(parsed) => Err(Exit::Usage(format!("--url {url}: scheme {} is not supported, use http", parsed.scheme()))),
        Err(error) => Err(Exit::Usage(format!("--url {url}: {error}"))),
    }
}
