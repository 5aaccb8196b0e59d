//! Requests to a running engine.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use super::{Exit, Output};

/// Address of a local engine with default configuration.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Longest time that an engine may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An answer of more bytes than this is not read.
const MAX_ANSWER: u64 = 4 << 30;

/// What this process shows to engines, and whom it trusts. Set once, before anything is asked.
static IDENTITY: OnceLock<Identity> = OnceLock::new();

#[derive(Default)]
struct Identity {
    /// The value of the header `Authorization`.
    bearer: Option<String>,
    roots: Option<Vec<ureq::tls::Certificate<'static>>>,
}

/// Reads the token (from a file or $WEIR_TOKEN: a command line can be read by everybody) and those to trust.
pub(super) fn identify(token: Option<PathBuf>, ca: Option<PathBuf>) -> Result<(), Exit> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| Exit::Usage(format!("{}: {error}", path.display())))
    };
    let token = match &token {
        Some(path) => Some(read(path)?.lines().next().unwrap_or_default().trim().to_owned()),
        None => std::env::var("WEIR_TOKEN").ok().map(|token| token.trim().to_owned()),
    };
    let token = token.filter(|token| !token.is_empty());
    if token.as_ref().is_some_and(|token| access::users::parts(token).is_none()) {
        let text = "the token in --token-file or WEIR_TOKEN is none: it looks like weir_<16 digits>_<64 digits>";
        return Err(Exit::Usage(text.to_owned()));
    }
    let roots = match &ca {
        Some(path) => {
            let pem = read(path)?;
            let items = ureq::tls::parse_pem(pem.as_bytes());
            let certificates = items.filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            let certificates: Vec<_> = certificates.collect();
            if certificates.is_empty() {
                return Err(Exit::Usage(format!("--ca {}: holds no certificate in PEM form", path.display())));
            }
            Some(certificates)
        }
        None => None,
    };
    let _ = IDENTITY.set(Identity { bearer: token.map(|token| format!("Bearer {token}")), roots });
    Ok(())
}

/// What sends requests to `url`.
fn agent(config: ureq::config::ConfigBuilder<ureq::typestate::AgentScope>) -> ureq::Agent {
    let config = config.http_status_as_error(false);
    // A redirect would take the token to where somebody else says.
    let config = config.max_redirects(0);
    let config = match IDENTITY.get().and_then(|identity| identity.roots.clone()) {
        Some(roots) => {
            let roots = ureq::tls::RootCerts::Specific(std::sync::Arc::new(roots));
            config.tls_config(ureq::tls::TlsConfig::builder().root_certs(roots).build())
        }
        None => config,
    };
    config.build().into()
}

/// The token, if there is one and it does not go over a network in the clear.
fn bearer(url: &str) -> Result<Option<&'static str>, Exit> {
    let Some(bearer) = IDENTITY.get().and_then(|identity| identity.bearer.as_deref()) else { return Ok(None) };
    let local = url::Url::parse(url).is_ok_and(|url| match url.host() {
        _ if url.scheme() == "https" => true,
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    });
    match local {
        true => Ok(Some(bearer)),
        false => {
            Err(Exit::Usage(format!("--url {url}: a token is not sent over a network in the clear; use https://")))
        }
    }
}

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
    let agent = agent(ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)));
    let mut answer = send(&agent, method, &url, Some(accept), body)?;
    let failed = |error: ureq::Error| Exit::Failed(format!("{url}: {error}; is an engine running there?"));
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
    let agent = agent(ureq::Agent::config_builder().timeout_connect(Some(TIMEOUT)));
    let mut answer = send(&agent, method, &url, None, body)?;
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

/// Sends a request, with the token if there is one.
fn send(
    agent: &ureq::Agent,
    method: &str,
    url: &str,
    accept: Option<&str>,
    body: Option<&str>,
) -> Result<ureq::http::Response<ureq::Body>, Exit> {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(accept) = accept {
        request = request.header("accept", accept);
    }
    if let Some(bearer) = bearer(url)? {
        let mut value = ureq::http::HeaderValue::from_str(bearer).map_err(Exit::failed)?;
        value.set_sensitive(true);
        request = request.header("authorization", value);
    }
    let failed = |error: ureq::Error| Exit::Failed(format!("{url}: {error}; is an engine running there?"));
    match (method, body) {
        ("GET" | "DELETE", _) | (_, None) => agent.run(request.body(()).map_err(Exit::failed)?).map_err(failed),
        (_, Some(body)) => agent.run(request.body(body).map_err(Exit::failed)?).map_err(failed),
    }
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

/// A base URL must be one of HTTP.
pub(super) fn check_url(url: &str) -> Result<(), Exit> {
    match url::Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => Ok(()),
        Ok(parsed) => {
            Err(Exit::Usage(format!("--url {url}: scheme {} is not supported, use http or https", parsed.scheme())))
        }
        Err(error) => Err(Exit::Usage(format!("--url {url}: {error}"))),
    }
}
