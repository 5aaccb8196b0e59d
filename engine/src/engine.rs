//! The whole process: the data plane with listeners in front of it, and the order in which it starts and stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use access::audit::Audit;
use access::users::Users;
use alerts::Happening;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::core::{Core, CoreError};
use crate::expiring;
use crate::fleets;
use crate::gateway::{Gateway, GatewayConfig, Hub, Limits};
use crate::gateways;
use crate::housekeeping;
use crate::http::{self, Api, Guard};
use crate::ledger::{self, Books};
use crate::login::Login;
use crate::notify::{self, Channels};
use crate::project::Loaded;
use crate::query::{self, Bounds};
use crate::repair::Repairs;
use crate::trail::Trail;
use crate::trust::Trust;
use crate::watch::{self, Deployments};
use crate::welcome::Welcome;

/// How often the files of users are asked for changes: a revoked token must not work for longer than a second.
const FOLLOW: Duration = Duration::from_millis(300);

/// How long connections get to finish at a stop.
const DRAIN: Duration = Duration::from_secs(10);

/// A running engine.
pub struct Engine {
    core: Arc<Core>,
    gateway: Gateway,
    books: Arc<Books>,
    audit: Arc<Audit>,
    trail: Arc<Trail>,
    listeners: Vec<(&'static str, SocketAddr)>,
    http: Option<JoinHandle<std::io::Result<()>>>,
    notifying: JoinHandle<()>,
    following: Option<JoinHandle<()>>,
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
        let users = Users::open(&config.store.data).map_err(|e| CoreError::Other(e.to_string()))?;
        let users = Arc::new(users);
        let login = Arc::new(Login::new(users.clone(), clock.clone(), config.limits.failed_logins));
        let trust = match config.mqtt.tls.is_some() || config.http.speaks_tls() {
            true => Some(Trust::open(config, clock.clone(), audit.clone(), &login)),
            false => None,
        };
        let trust = trust.transpose().map_err(|e| CoreError::Other(e.to_string()))?;
        let limits = Limits {
            connections: config.limits.connections,
            connections_per_address: config.limits.connections_per_address,
            messages_per_second: config.limits.messages_per_second,
            packets_per_second: config.limits.packets_per_second,
            subscriptions: config.limits.subscriptions,
            packet: config.limits.packet as usize,
            keep_alive: config.mqtt.max_keep_alive.and_then(|most| u16::try_from(most.as_secs()).ok()),
            no_subscribe: config.mqtt.no_subscribe.clone(),
            ..Limits::default()
        };
        let hub = Hub::new(limits);
        let channels = Channels::new(&config.alerts, &hub).map_err(|e| CoreError::Other(e.to_string()))?;
        let core = Arc::new(Core::open(config, loaded, clock.clone(), hub.clone()).await?);
        if let Some(trust) = &trust {
            trust.guard.receive_by(Welcome::new(core.node.clone(), core.groups.clone()));
            let _ = core.enrolled.set(trust.registry().clone());
        }
        let other = |e: &dyn std::fmt::Display| CoreError::Other(e.to_string());
        let trail = Trail::open(&config.store.data, core.tables.store().clone(), &core.tables).await;
        let trail = Arc::new(trail.map_err(|e| other(&e))?);
        let tls = match (config.mqtt.tls, &trust) {
            (Some(address), Some(trust)) => Some((address, trust.devices().map_err(|e| other(&e))?)),
            _ => None,
        };
        let recovery = match (config.mqtt.recovery, &trust) {
            (Some(address), Some(trust)) => Some((address, trust.recovery().map_err(|e| other(&e))?)),
            _ => None,
        };
        let guard = trust.as_ref().map(|trust| trust.guard.clone());
        let listeners = GatewayConfig { plain: config.mqtt.plain, tls, recovery, guard };
        let random = Arc::new(rand::random::<u64>);
        let gateway = Gateway::start(listeners, hub.clone(), core.node.clone(), clock.clone(), random)
            .map_err(|e| CoreError::Other(e.to_string()))?;
        let stop = CancellationToken::new();
        if let Some(trust) = &trust {
            let who = (hub.clone(), core.desk.clone());
            tokio::spawn(gateways::watch(trust.registry().clone(), who, clock.clone(), stop.clone()));
        }
        let memory = query::runtime(config.limits.query_memory).map_err(|e| other(&e))?;
        let bounds = Bounds { rows: config.limits.query_rows, time: config.limits.query_time };
        tokio::spawn(fleets::follow(core.clone(), memory.clone(), bounds, stop.clone()));
        let settings = (gateway.tls().cloned(), gateway.recovery_tls().cloned());
        let following = trust.clone().map(|trust| tokio::spawn(trust.follow(hub, settings, stop.clone())));
        let expiring = Arc::new(expiring::Report::default());
        let books = Arc::new(Books::new(core.clone(), gateway.metrics()));
        tokio::spawn(compare(books.clone(), stop.clone()));
        tokio::spawn(follow(users.clone(), stop.clone()));
        tokio::spawn(trail.clone().keep(config.durability.cut_every, stop.clone()));
        let told = Arc::new(notify::Report::default());
        let settings = config.alerts.settings(&core.project());
        notify::warn_unreached(&core.project(), &settings);
        if core.desk.with(|desk| *desk.settings() != settings) {
            core.desk.happen(clock(), Happening::Settings(settings));
        }
        if let Some(trust) = &trust {
            let tell = config.alerts.certificates.clone().map(|who| (core.desk.clone(), who));
            tokio::spawn(expiring::watch(trust.expiring(audit.clone(), expiring.clone(), tell), stop.clone()));
        }
        let notifying = notify::run(core.desk.clone(), channels, told.clone(), clock.clone(), stop.clone());
        let notifying = tokio::spawn(notifying);
        let report = Arc::new(housekeeping::Report::default());
        let keep = ((core.clone(), trail.clone()), config.tables.clone(), report.clone(), clock.clone(), stop.clone());
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
        listeners.extend(gateway.recovery_address().map(|address| ("mqtts-recovery", address)));
        let http = match http_listener {
            Some(listener) => {
                let address = listener.local_addr().map_err(|e| CoreError::Other(e.to_string()))?;
                let tls = match &trust {
                    Some(trust) if config.http.speaks_tls() => {
                        Some(trust.http().map_err(|e| other(&format!("HTTP: {e}")))?)
                    }
                    _ => None,
                };
                let certificates = trust.as_ref().map(|trust| trust.certificates());
                listeners.push((if tls.is_some() { "https" } else { "http" }, address));
                let guard = Guard::new(
                    !config.node.insecure,
                    (login, audit.clone()),
                    certificates,
                    &config.limits,
                    (clock.clone(), stop.clone()),
                );
                let api = Api {
                    core: core.clone(),
                    runtime: memory,
                    bounds,
                    gateway: gateway.metrics(),
                    books: books.clone(),
                    deployments,
                    housekeeping: report,
                    expiring,
                    told,
                    channels: config.alerts.channels.clone(),
                    writers: Arc::new(config.shadow.writers().map_err(|e| CoreError::Other(e.to_string()))?),
                    clock,
                    repairs: Arc::new(Repairs::new()?),
                    trail: trail.clone(),
                    guard: Arc::new(guard),
                    entry: trust.as_ref().map(|trust| trust.guard.clone()),
                    stop: stop.clone(),
                };
                Some(tokio::spawn(http::serve(listener, api, tls, config.limits.http_connections, stop.clone())))
            }
            None => None,
        };
        Ok(Self { core, gateway, books, audit, trail, listeners, http, notifying, following, stop })
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
        if let Some(following) = self.following {
            let _ = following.await;
        }
        // Ends its writer: what was noted is in the journal, then in files.
        drop(self.audit);
        if flush && let Err(error) = self.trail.cut().await {
            tracing::warn!(%error, "the last acts are in no file yet; the next start writes them");
        }
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

/// Takes in what commands change in the users, until the engine stops.
async fn follow(users: Arc<Users>, stop: CancellationToken) {
    let following = async {
        let mut failing = false;
        loop {
            tokio::time::sleep(FOLLOW).await;
            // An attribute of a file, and mostly no more.
            let read = users.read_on();
            if let (Err(error), false) = (&read, failing) {
                tracing::error!(%error, "changes of users do not reach the engine");
            }
            failing = read.is_err();
        }
    };
    let _ = stop.run_until_cancelled(following).await;
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
