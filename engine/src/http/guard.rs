//! Who may ask for what: every request passes here, before and after its handler.
//!
//! Before: the address and whoever asks may not ask too often, who it is is found out by a token or a certificate, and its role is
//! held against that of the route. After: what changed something stands in the audit trail before the answer goes out, also
//! if the client has gone away meanwhile.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use access::audit::{Act, Audit, Outcome};
use access::users::{Principal, Role};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::problem::{Problem, Reason};
use crate::clock::Clock;
use crate::config::LimitsConfig;
use crate::login::{Login, NoLogin, PATIENCE};
use crate::rates::Rates;

/// How long a client may take to send the body of its request.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Bytes of a body that the trail keeps; of a longer one it says how long it was.
const MOST_NOTED: usize = 2048;

/// The other side of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its certificate in DER form, verified against those to trust.
    pub certificate: Option<Arc<[u8]>>,
    /// Whether nobody else can read along.
    pub secure: bool,
}

/// Whose a certificate is: the name of the user, or why it is nobody's, as a code and a text.
pub type Certificates = Arc<dyn Fn(&[u8]) -> Result<String, (String, String)> + Send + Sync>;

/// Whoever made a request.
#[derive(Debug, Clone)]
pub(super) struct Who {
    name: Option<String>,
    pub(super) role: Role,
}

impl Who {
    /// In whose name a change is made: that of the user, whatever the request says; without users, what it says.
    pub(super) fn by(&self, said: Option<String>) -> String {
        self.name.clone().or(said).unwrap_or_else(|| "operator".to_owned())
    }

    fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or("anonymous")
    }
}

/// What a route asks of whoever calls it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// The least role; `None`: open to all.
    pub(super) least: Option<Role>,
    /// What it changes, as the trail calls it.
    pub(super) changes: Option<&'static str>,
}

/// Decides on requests.
pub struct Guard {
    /// Whether anybody has to say who it is.
    required: bool,
    login: Arc<Login>,
    audit: Arc<Audit>,
    certificates: Option<Certificates>,
    clock: Clock,
    limits: LimitsConfig,
    stop: CancellationToken,
    enrolments: Rates<IpAddr>,
    by_address: Rates<IpAddr>,
    by_user: Rates<String>,
    queries: Mutex<HashMap<String, usize>>,
}

/// A query under way.
pub(super) struct Running {
    guard: Arc<Guard>,
    name: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut queries = self.guard.queries.lock();
        if let Some(count) = queries.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                queries.remove(&self.name);
            }
        }
    }
}

impl Guard {
    /// `required`: whether users have to say who they are. Without, everybody may do everything.
    pub fn new(
        required: bool,
        (login, audit): (Arc<Login>, Arc<Audit>),
        certificates: Option<Certificates>,
        limits: &LimitsConfig,
        (clock, stop): (Clock, CancellationToken),
    ) -> Self {
        let per_second = |rate: u32| Rates::new(f64::from(rate), f64::from(rate) * 2.0);
        Self {
            required,
            login,
            audit,
            certificates,
            clock,
            stop,
            enrolments: {
                let most = f64::from(limits.enrolments);
                Rates::new(most / 60.0, most)
            },
            by_address: {
                let rate = limits.requests_per_address;
                Rates::new(f64::from(rate), f64::from(rate) * 2.0)
            },
            by_user: per_second(limits.requests_per_user),
            queries: Mutex::default(),
            limits: limits.clone(),
        }
    }

    /// The trail.
    pub(super) fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// Whether somebody may ask for a first certificate without any other sign of who it is.
    pub(super) fn may_enrol(&self, peer: &Peer) -> Result<(), Problem> {
        if self.required && !peer.secure {
            let text =
                "a token or a voucher goes over TLS only: let [http] listen with `tls = true`, or connect to mqtts";
            return Err(Problem::new(StatusCode::FORBIDDEN, text));
        }
        let (address, now) = (peer.address.ip(), Instant::now());
        self.login.may_try(address).map_err(|wait| too_many(FAILURES, wait))?;
        self.enrolments.take(address, now).map_err(|wait| {
            too_many(format!("{address} asks for certificates more often than limits.enrolments allows"), wait)
        })
    }

    /// What somebody showed to be let enrol is worth nothing.
    pub(super) fn enrolment_failed(&self, peer: &Peer) {
        self.login.failed(peer.address.ip());
    }

    /// Counts a query of this user while what is given lives.
    pub(super) fn query(self: &Arc<Self>, who: &Who) -> Result<Option<Running>, Problem> {
        let Some(name) = who.name.clone() else { return Ok(None) };
        let mut queries = self.queries.lock();
        let count = queries.entry(name.clone()).or_default();
        if *count >= self.limits.queries {
            let text = format!(
                "{name} has {count} queries under way, and limits.queries allows no more; try again when one has ended"
            );
            return Err(too_many(text, Duration::from_secs(1)));
        }
        *count += 1;
        drop(queries);
        Ok(Some(Running { guard: self.clone(), name }))
    }

    /// Who asks.
    async fn who(&self, headers: &HeaderMap, peer: &Peer) -> Result<Who, (Problem, String, &'static str)> {
        let unknown = |text: String, code: &'static str, who: &str| (unauthorized(&text), who.to_owned(), code);
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            let Some((certificate, whose)) = peer.certificate.as_ref().zip(self.certificates.as_ref()) else {
                let text = "this needs a token: send the header `Authorization: Bearer weir_..`; \
                            `weir tokens create USER` makes one, and `weir` commands read it from WEIR_TOKEN or --token-file";
                return Err(unknown(text.to_owned(), "no_token", "anonymous"));
            };
            let name = whose(certificate).map_err(|(code, text)| {
                let code = if code == "revoked" { "revoked" } else { "certificate" };
                unknown(text, code, "anonymous")
            })?;
            let found = self.login.users().look(|state| state.named(&name));
            let Principal { name, role } =
                found.map_err(|refusal| unknown(refusal.to_string(), refusal.code(), &name))?;
            return Ok(Who { name: Some(name), role });
        };
        let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
        let Some(token) = token else {
            let text = "the header must be `Authorization: Bearer weir_..`";
            return Err(unknown(text.to_owned(), "no_token", "anonymous"));
        };
        let id = access::users::parts(token).map(|(id, _)| id.to_owned());
        // Whose token it is said to be: what was refused is told by its id, never by its text.
        let claimed = id.map_or_else(|| "anonymous".to_owned(), |id| format!("token {id}"));
        match self.login.principal(token, peer.address.ip()).await {
            Ok(Principal { name, role }) => Ok(Who { name: Some(name), role }),
            Err(NoLogin::Refused(refusal)) => Err(unknown(refusal.to_string(), refusal.code(), &claimed)),
            Err(NoLogin::TooOften(wait)) => Err((too_many(FAILURES, wait), claimed, "too_many_failures")),
            Err(NoLogin::Busy) => {
                let problem = too_many("too many tokens are being verified now; try again", PATIENCE);
                Err((problem, claimed, "too_many_failures"))
            }
        }
    }

    /// Whether this may go on, and as whom.
    async fn admit(&self, rule: Rule, asked: &str, headers: &HeaderMap, peer: &Peer) -> Result<Who, Problem> {
        let anybody = Who { name: None, role: Role::Admin };
        if !self.required {
            return Ok(anybody);
        }
        let address = peer.address.ip();
        let often = |wait, whose: &str, key: &str| {
            too_many(format!("{whose} asks more often than {key} allows; slow down"), wait)
        };
        let taken = self.by_address.take(address, Instant::now());
        taken.map_err(|wait| often(wait, &address.to_string(), "limits.requests_per_address"))?;
        let Some(least) = rule.least else { return Ok(Who { name: None, role: Role::Viewer }) };
        let who = match self.who(headers, peer).await {
            Ok(who) => who,
            Err((problem, who, code)) => {
                let act = Act::refused(who, "http", asked, code).from(peer.address.to_string());
                self.audit.note((self.clock)(), act);
                return Err(problem);
            }
        };
        let taken = self.by_user.take(who.shown().to_owned(), Instant::now());
        taken.map_err(|wait| often(wait, who.shown(), "limits.requests_per_user"))?;
        if who.role < least {
            let act = Act::refused(who.shown(), "http", asked, "role")
                .role(who.role.as_str())
                .from(peer.address.to_string())
                .detail(json!({ "needs": least.as_str() }));
            self.audit.note((self.clock)(), act);
            let text = format!(
                "{} has the role {}, and {asked} needs {least}; an admin changes it with `weir users role {} {least}`",
                who.shown(),
                who.role,
                who.shown()
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, text));
        }
        Ok(who)
    }
}

/// What an address is told whose tokens are none.
const FAILURES: &str = "too many requests of this address had tokens that are not accepted (limits.failed_logins)";

fn unauthorized(text: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, text).with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

fn too_many(text: impl Into<String>, wait: Duration) -> Problem {
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
    Problem::new(StatusCode::TOO_MANY_REQUESTS, text).with(header::RETRY_AFTER, HeaderValue::from(seconds))
}

/// The way of every request.
pub(super) async fn pass(State((guard, rule)): State<(Arc<Guard>, Rule)>, request: Request, next: Next) -> Response {
    let nobody = || Peer { address: SocketAddr::from(([0, 0, 0, 0], 0)), certificate: None, secure: false };
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_else(nobody);
    // Not the request itself: a body must not be lent across a wait.
    let (asked, headers) = (format!("{} {}", request.method(), request.uri().path()), request.headers().clone());
    let who = match guard.admit(rule, &asked, &headers, &peer).await {
        Ok(who) => who,
        Err(problem) => return problem.into_response(),
    };
    let (mut request, body) = match gathered(&guard, request).await {
        Ok(gathered) => gathered,
        Err(problem) => return problem.into_response(),
    };
    request.extensions_mut().insert(who.clone());
    request.extensions_mut().insert(peer.clone());
    let Some(action) = rule.changes else { return next.run(request).await };
    if guard.audit.failing() {
        let text = "the audit trail cannot be written, so nothing is changed; see the engine's log and its disk";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    let subject = request.uri().path().trim_start_matches("/v1/").to_owned();
    let query = request.uri().query().map(str::to_owned);
    // A task of its own: a client that goes away must not keep from the trail what was done for it.
    let doing = tokio::spawn(async move {
        let ended = guard.stop.run_until_cancelled(next.run(request)).await;
        let response = ended.unwrap_or_else(|| {
            let text = "the engine is stopping; what was asked for may have been done: look before you ask again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        });
        let act = act(action, subject, &response).role(if guard.required { who.role.as_str() } else { "" });
        let act = Act { who: who.shown().to_owned(), from: peer.address.to_string(), ..act };
        let act = act.detail(detail(&response, query, &body));
        match guard.audit.noted((guard.clock)(), act).await {
            Ok(()) => response,
            Err(error) => {
                let text = format!("{error}; what was asked for may have been done: look before you ask again");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
            }
        }
    });
    doing.await.unwrap_or_else(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed inside the engine").into_response()
    })
}

/// The request with its body in memory: of bounded size, within a bounded time.
async fn gathered(guard: &Guard, request: Request) -> Result<(Request, Bytes), Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok((request, Bytes::new()));
    }
    let most = usize::try_from(guard.limits.body).unwrap_or(usize::MAX);
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, most)).await;
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {BODY_TIME:?}"));
    let body = read.map_err(late)?.map_err(|error| {
        let text = format!("the body cannot be read, or is longer than limits.body ({most} bytes): {error}");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    })?;
    Ok((Request::from_parts(parts, Body::from(body.clone())), body))
}

fn act(action: &str, subject: String, response: &Response) -> Act {
    let status = response.status();
    let outcome = if status.is_success() { Outcome::Ok } else { Outcome::Failed };
    let reason = response.extensions().get::<Reason>().map(|reason| reason.0.clone()).unwrap_or_default();
    Act { outcome, reason, ..Act::done("", action, subject) }
}

fn detail(response: &Response, query: Option<String>, body: &[u8]) -> Value {
    let mut detail = json!({ "status": response.status().as_u16() });
    let Some(map) = detail.as_object_mut() else { return detail };
    if let Some(query) = query {
        map.insert("query".to_owned(), query.into());
    }
    if body.len() > MOST_NOTED {
        map.insert("body_bytes".to_owned(), body.len().into());
    } else if !body.is_empty() {
        let text = || Value::from(String::from_utf8_lossy(body).into_owned());
        map.insert("body".to_owned(), serde_json::from_slice(body).unwrap_or_else(|_| text()));
    }
    detail
}
