//! The whole process: the data plane with listeners in front of it, and the order in which it starts and stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use access::audit::Audit;
use alerts::Happening;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::core::{Core, CoreError};
use crate::gateway::{Gateway, GatewayConfig, Hub, Limits};
use crate::housekeeping;
use crate::http::{self, Api};
use crate::ledger::{self, Books};
use crate::notify::{self, Channels};
use crate::project::Loaded;
use crate::query::{self, Bounds};
use crate::repair::Repairs;
use crate::trust::Trust;
use crate::watch::{self, Deployments};

/// How long connections get to finish at a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// A running engine.
pub struct Engine {
    core: Arc<Core>,
    gateway: Gateway,
    books: Arc<Books>,
    listeners: Vec<(&'static str, SocketAddr)>,
    http: Option<JoinHandle<std::io::Result<()>>>,
    notifying: JoinHandle<()>,
    stop: CancellationToken,
}

impl Engine {
    /// Recovers the data directory, then opens the listeners: a device that gets in is served.
    pub async fn start(config: &Config, loaded: Loaded, clock: Clock) -> Result<Self, CoreError> {
        let listen = |what: &str, address: SocketAddr, e: String| {
            CoreError::Other(format!("cannot listen on {address} for {what}: {e}"))
        };
        // Bound first, served last: an address in use is found before a long recovery.
        let http_listener = match config.http.listen {
            Some(address) => Some(http::bind(address).await.map_err(|e| listen("HTTP", address, e.to_string()))?),
            None => None,
        };
        let audit = Audit::open(&config.store.data).map_err(|e| CoreError::Other(e.to_string()))?;
        let audit = Arc::new(audit);
        let trust = match config.mqtt.tls {
            Some(address) => {
                let trust =
                    Trust::open(config, clock.clone(), audit.clone()).map_err(|e| CoreError::Other(e.to_string()))?;
                let tls = trust.tls().map_err(|e| CoreError::Other(e.to_string()))?;
                Some((address, tls, trust))
            }
            None => None,
        };
        let limits = Limits {
            connections: config.limits.connections,
            packet: config.limits.packet as usize,
            keep_alive: config.mqtt.max_keep_alive.and_then(|most| u16::try_from(most.as_secs()).ok()),
            no_subscribe: config.mqtt.no_subscribe.clone(),
            ..Limits::default()
        };
        let hub = Hub::new(limits);
        let channels = Channels::new(&config.alerts, &hub).map_err(|e| CoreError::Other(e.to_string()))?;
        let core = Arc::new(Core::open(config, loaded, clock.clone(), hub.clone()).await?);
        let (tls, trust) = match trust {
            Some((address, tls, trust)) => (Some((address, tls)), Some(trust)),
            None => (None, None),
        };
        let listeners =
            GatewayConfig { plain: config.mqtt.plain, tls, guard: trust.as_ref().map(|trust| trust.guard.clone()) };
        let random = Arc::new(rand::random::<u64>);
        let gateway = Gateway::start(listeners, hub.clone(), core.node.clone(), clock.clone(), random)
            .map_err(|e| CoreError::Other(e.to_string()))?;
        let stop = CancellationToken::new();
        if let (Some(trust), Some(settings)) = (trust, gateway.tls()) {
            tokio::spawn(trust.follow(hub, settings.clone(), stop.clone()));
        }
        let books = Arc::new(Books::new(core.clone(), gateway.metrics()));
        tokio::spawn(compare(books.clone(), stop.clone()));
        let told = Arc::new(notify::Report::default());
        let settings = config.alerts.settings(&core.project());
        notify::warn_unreached(&core.project(), &settings);
        if core.desk.with(|desk| *desk.settings() != settings) {
            core.desk.happen(clock(), Happening::Settings(settings));
        }
        let notifying = notify::run(core.desk.clone(), channels, told.clone(), clock.clone(), stop.clone());
        let notifying = tokio::spawn(notifying);
        let report = Arc::new(housekeeping::Report::default());
        let keep = (core.clone(), config.tables.clone(), report.clone(), clock.clone(), stop.clone());
        tokio::spawn(housekeeping::keep(keep.0, keep.1, keep.2, keep.3, keep.4));
        let deployments = Arc::new(Deployments::default());
        if let (Some(dir), true) = (&config.pipelines.dir, config.pipelines.watch) {
            tokio::spawn(watch::watch(
                core.clone(),
                (dir.clone(), config.pipelines.objects_every),
                deployments.clone(),
                stop.clone(),
            ));
        }
        let mut listeners: Vec<(&'static str, SocketAddr)> = Vec::new();
        listeners.extend(gateway.plain_address().map(|address| ("mqtt", address)));
        listeners.extend(gateway.tls_address().map(|address| ("mqtts", address)));
        let http = match http_listener {
            Some(listener) => {
                let address = listener.local_addr().map_err(|e| CoreError::Other(e.to_string()))?;
                listeners.push(("http", address));
                let api = Api {
                    core: core.clone(),
                    runtime: query::runtime(config.limits.query_memory).map_err(|e| CoreError::Other(e.to_string()))?,
                    bounds: Bounds { rows: config.limits.query_rows, time: config.limits.query_time },
                    gateway: gateway.metrics(),
                    books: books.clone(),
                    deployments,
                    housekeeping: report,
                    told,
                    channels: config.alerts.channels.clone(),
                    clock,
                    repairs: Arc::new(Repairs::new()?),
                    stop: stop.clone(),
                };
                Some(tokio::spawn(http::serve(listener, api, stop.clone())))
            }
            None => None,
        };
        Ok(Self { core, gateway, books, listeners, http, notifying, stop })
    }

    /// Name and address of each listener.
    pub fn listeners(&self) -> &[(&'static str, SocketAddr)] {
        &self.listeners
    }

    /// The data plane.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether its counters add up.
    pub fn books(&self) -> &Arc<Books> {
        &self.books
    }

    /// Waits for a failure that ends the process.
    pub async fn failed(&self) -> CoreError {
        self.core.failed().await
    }

    /// Stops accepting, drains, checkpoints, ends.
    pub async fn shutdown(self, flush: bool) -> Result<(), CoreError> {
        self.gateway.stop_accepting();
        if !self.gateway.shutdown(DRAIN).await {
            tracing::warn!("some connections were cut before everything they had sent was acknowledged");
        }
        self.stop.cancel();
        if let Some(http) = self.http {
            // A client that keeps its request open must not keep the process.
            if tokio::time::timeout(Duration::from_secs(5), http).await.is_err() {
                tracing::warn!("HTTP requests were cut off");
            }
        }
        let _ = self.notifying.await;
        drop(self.books);
        // Tasks that are just ending may still hold the data plane for a moment.
        let mut core = self.core;
        for _ in 0..200 {
            match Arc::try_unwrap(core) {
                Ok(core) => return core.shutdown(flush).await,
                Err(shared) => core = shared,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(CoreError::Other("requests still run after the listeners have stopped; ended without a checkpoint".into()))
    }
}

/// Looks at the counters until the engine stops.
async fn compare(books: Arc<Books>, stop: CancellationToken) {
    let looking = async {
        loop {
            tokio::time::sleep(ledger::EVERY).await;
            books.compare();
        }
    };
    let _ = stop.run_until_cancelled(looking).await;
}
