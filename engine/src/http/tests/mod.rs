//! The API as those meet it who may not everything.

mod limits;
mod rights;
mod sql;

use std::sync::Arc;
use std::time::Duration;

use access::audit::Audit;
use access::users::{Role, Users, Wanted};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use device::time::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::config::{Config, LimitsConfig};
use crate::core::Silent;
use crate::login::Login;
use crate::project;

const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);
const DAY: i64 = 86_400_000_000_000;

/// An API over a data directory of its own.
struct Lab {
    router: Router,
    users: Arc<Users>,
    guard: Arc<Guard>,
    dir: tempfile::TempDir,
}

impl Lab {
    async fn new(limits: LimitsConfig, certificates: Option<Certificates>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.store.data = dir.path().to_owned();
        let safety = "shadow = \"app\"\npath = \"safety.*\"\nwrite = \"admin\"";
        config.shadow.rules = vec![toml::from_str(safety).unwrap()];
        let clock: Clock = Arc::new(|| NOW);
        let project = project::check(Vec::new()).unwrap();
        let core = Arc::new(Core::open(&config, project, clock.clone(), Arc::new(Silent)).await.unwrap());
        let users = Arc::new(Users::open(dir.path()).unwrap());
        let audit = Arc::new(Audit::open(dir.path()).unwrap());
        let trail = Trail::open(dir.path(), core.tables.store().clone(), &core.tables).await.unwrap();
        let stop = CancellationToken::new();
        let login = Arc::new(Login::new(users.clone(), clock.clone(), limits.failed_logins));
        let guard = Arc::new(Guard::new(true, (login, audit), certificates, &limits, (clock.clone(), stop.clone())));
        let gateway = Arc::new(GatewayMetrics::default());
        let api = Api {
            runtime: query::runtime(limits.query_memory).unwrap(),
            bounds: Bounds { rows: limits.query_rows, time: limits.query_time },
            books: Arc::new(Books::new(core.clone(), gateway.clone())),
            gateway,
            deployments: Arc::default(),
            housekeeping: Arc::default(),
            told: Arc::default(),
            channels: Vec::new(),
            writers: Arc::new(config.shadow.writers().unwrap()),
            expiring: Arc::default(),
            clock,
            repairs: Arc::new(Repairs::new().unwrap()),
            trail: Arc::new(trail),
            guard: guard.clone(),
            entry: None,
            stop,
            core,
        };
        Self { router: routes::router(api, &guard), users, guard, dir }
    }

    /// A token of a new user of this role.
    fn token(&self, role: Role) -> String {
        self.users.add(NOW, role.as_str(), role).unwrap();
        self.make(role, role as u8 + 1, NOW.plus(DAY)).1
    }

    fn make(&self, role: Role, n: u8, expires: Timestamp) -> (String, String) {
        let wanted = Wanted { user: role.as_str().to_owned(), name: String::new(), role: None, expires };
        let (id, text) = self.users.create(NOW, wanted, (&[n; 8], &[n; 32], &[n; 16])).unwrap();
        (id, text.0)
    }

    async fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap()
    }

    /// Status and text of an answer.
    async fn text(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (StatusCode, String) {
        let answer = self.ask(method, path, token, body).await;
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 64 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn query(&self, token: &str, sql: &str) -> (StatusCode, String) {
        self.text("POST", "/v1/query", Some(token), sql).await
    }
}

fn detail(text: &str) -> String {
    let problem: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    problem["detail"].as_str().unwrap().to_owned()
}
