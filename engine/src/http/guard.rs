//! Who may ask for what: every request passes here, before and after its handler.
//!
//! Before: the address and whoever asks may not ask too often, who it is is found out by a token or a certificate, and its role is
//! held against that of the route. After: what changed something stands in the audit trail before the answer goes out, also
//! if the client has gone away meanwhile.
//!
//! A token is verified by Argon2id once, then it is known by its SHA-256 for a while; so checking many requests costs
//! nothing, and inventing tokens costs the one who does it his address's patience and us two computations at a time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use access::audit::{Act, Audit, Outcome};
use access::users::{Principal, Refusal, Role, Users};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::problem::{Problem, Reason};
use super::rates::Rates;
use crate::clock::Clock;
use crate::config::LimitsConfig;

/// How long a token that was verified is known by its SHA-256. Whether it is revoked or expired is looked at each time.
const KNOWN_FOR: Duration = Duration::from_secs(300);

/// Tokens that are known at a time.
const KNOWN: usize = 1024;

/// Verifications at a time: each takes a core for tens of milliseconds, and 19 MiB.
const VERIFYING: usize = 2;

/// How long a request waits for its turn to be verified.
const PATIENCE: Duration = Duration::from_secs(5);

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
    users: Arc<Users>,
    audit: Arc<Audit>,
    certificates: Option<Certificates>,
    clock: Clock,
    limits: LimitsConfig,
    stop: CancellationToken,
    known: Mutex<HashMap<[u8; 32], (String, Instant)>>,
    verifying: Semaphore,
    failures: Rates<IpAddr>,
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
        (users, audit): (Arc<Users>, Arc<Audit>),
        certificates: Option<Certificates>,
        limits: &LimitsConfig,
        (clock, stop): (Clock, CancellationToken),
    ) -> Self {
        let per_second = |rate: u32| Rates::new(f64::from(rate), f64::from(rate) * 2.0);
        let failed = f64::from(limits.failed_logins);
        Self {
            required,
            users,
            audit,
            certificates,
            clock,
            stop,
            known: Mutex::default(),
            verifying: Semaphore::new(VERIFYING),
            failures: Rates::new(failed / 60.0, failed),
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
            let found = self.users.look(|state| state.named(&name));
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
        match self.principal(token, peer.address.ip()).await {
            Ok(Principal { name, role }) => Ok(Who { name: Some(name), role }),
            Err(Denied::Refused(refusal)) => Err(unknown(refusal.to_string(), refusal.code(), &claimed)),
            Err(Denied::Later(problem)) => Err((problem, claimed, "too_many_failures")),
        }
    }

    async fn principal(&self, token: &str, address: IpAddr) -> Result<Principal, Denied> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let now = Instant::now();
        let known = self.known.lock().get(&key).filter(|(_, until)| *until > now).map(|(id, _)| id.clone());
        if let Some(id) = known {
            return self.users.look(|state| state.principal(&id, (self.clock)())).map_err(Denied::Refused);
        }
        self.failures.look(address, now).map_err(|wait| {
            let text = "too many requests of this address had tokens that are not accepted (limits.failed_logins)";
            Denied::Later(too_many(text, wait))
        })?;
        let verified = self.verify(token).await?;
        if verified.is_err() {
            let _ = self.failures.take(address, now);
        }
        let principal = verified.map_err(Denied::Refused)?;
        if let Some((id, _)) = access::users::parts(token) {
            let mut known = self.known.lock();
            if known.len() >= KNOWN {
                known.retain(|_, (_, until)| *until > now);
            }
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(key, (id.to_owned(), now + KNOWN_FOR));
        }
        Ok(principal)
    }

    async fn verify(&self, token: &str) -> Result<Result<Principal, Refusal>, Denied> {
        // What does not even look like a token, or has an id that nobody knows, costs nothing.
        let now = (self.clock)();
        let id = access::users::parts(token).map(|(id, _)| id);
        let sight = id.ok_or(Refusal::Unknown).and_then(|id| self.users.look(|state| state.principal(id, now)));
        if let Err(refusal) = sight {
            return Ok(Err(refusal));
        }
        let busy = || Denied::Later(too_many("too many tokens are being verified now; try again", PATIENCE));
        let turn = tokio::time::timeout(PATIENCE, self.verifying.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(busy()) };
        let (users, token) = (self.users.clone(), token.to_owned());
        let verified = tokio::task::spawn_blocking(move || users.verify(&token, now)).await;
        verified.map_err(|_| busy())
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

/// Why a token does not count now.
enum Denied {
    Refused(Refusal),
    Later(Problem),
}

fn unauthorized(text: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, text).with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

fn too_many(text: impl Into<String>, wait: Duration) -> Problem {
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
    Problem::new(StatusCode::TOO_MANY_REQUESTS, text).with(header::RETRY_AFTER, HeaderValue::from(seconds))
}

/// The way of every request.
pub(super) async fn pass(State((guard, rule)): State<(Arc<Guard>, Rule)>, request: Request, next: Next) -> Response {
    let nobody = || Peer { address: SocketAddr::from(([0, 0, 0, 0], 0)), certificate: None };
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
