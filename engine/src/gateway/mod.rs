//! The gateway: MQTT 3.1.1 and 5 for devices and applications, over TCP and TLS.
//!
//! A map, from the socket inwards:
//! - `listener`, `tls`, `crowd`: sockets, handshakes, bounds. `identity`: who is speaking and what follows from it.
//! - `opening`: CONNECT, takeover, wills. `connection`: the loop. `packets`, `ingest`: what packets do.
//! - `frame`, `publish`, `control`, `reply`, `fault`, `topic`: the protocol on the wire.
//! - `incoming`, `outgoing`, `session`: what is in flight in each direction, and who owns it. Pure state machines.
//! - `hub`, `fanout`, `trie`, `retained`, `message`: who wants what, and how it gets there.
//! - `route`: where a topic leads. `limits`, `metrics`. `probe`: a way in without a socket, for tests.
//!
//! Messages on `devices/{id}/telemetry` and `devices/{id}/hello` go through the [`Ingress`] to the device, and
//! are acknowledged (PUBACK, PUBREC) only when their outcome is durable. Credit is taken before anything is
//! handed on; without credit the socket is not read. Every other topic is live: it goes to whoever is
//! subscribed now, is retained if it asks for it, and is nowhere on disk. Sessions, wills and retained messages
//! are in memory: a restart of the engine forgets them.
//!
//! Absent: bridges, WebSockets, MQTT 3.1, extended authentication, anything that decides about devices.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use actors::message::{Downlink, Ingress};
use device::time::Timestamp;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod connection;
mod control;
mod crowd;
mod fanout;
mod fault;
mod frame;
mod hub;
mod identity;
mod incoming;
mod ingest;
mod limits;
mod listener;
mod message;
mod metrics;
mod opening;
mod outgoing;
mod packets;
pub mod probe;
mod publish;
mod reply;
mod retained;
mod route;
mod session;
mod tls;
mod topic;
mod trie;

#[cfg(test)]
mod tests;

pub(crate) use connection::Peer;
pub(crate) use control::Password;
pub(crate) use fault::{Fault, code};
pub use hub::Hub;
pub(crate) use identity::Asker;
pub use identity::Identity;
pub use limits::Limits;
pub use metrics::GatewayMetrics;
pub use tls::TlsSettings;

use crate::bus::{Bus, BusConfig};
use crate::guard::Guard;
use connection::{CLOSED, DRAINING, RUNNING, Shared};
use crowd::{Addresses, Turns};
use listener::Way;
use metrics::up;

/// Whether a text is a topic filter; if not, why not.
pub fn topic_filter(text: &str) -> Result<(), &'static str> {
    topic::filter(text).map(drop).map_err(topic::NoFilter::text)
}

/// How often delayed wills and expired sessions are looked for.
const JANITOR: Duration = Duration::from_millis(200);

/// Where a gateway listens. Its limits are those of its [`Hub`].
#[derive(Debug, Clone, Default)]
pub struct GatewayConfig {
    /// Plain TCP. Whoever opens it must see to it that the address is a loopback address.
    pub plain: Option<SocketAddr>,
    /// TLS 1.3.
    pub tls: Option<(SocketAddr, Arc<ServerConfig>)>,
    /// TLS 1.3 for devices whose certificates have expired; its verifier demands one.
    pub recovery: Option<(SocketAddr, Arc<ServerConfig>)>,
    /// Who decides about the certificates of clients; none: nobody is asked for one.
    pub guard: Option<Arc<Guard>>,
}

/// Why a gateway could not be started.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// An address cannot be listened on.
    #[error("cannot listen for MQTT on {address}: {source}; choose another address or stop what uses it")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The hub has a gateway already.
    #[error("a hub serves one gateway; make another hub for another gateway")]
    HubInUse,
}

/// A running gateway. Dropping it without [`Gateway::shutdown`] ends its connections at once.
pub struct Gateway {
    hub: Arc<Hub>,
    control: Arc<dyn Control>,
    tasks: TaskTracker,
    stop: CancellationToken,
    end: CancellationToken,
    plain: Option<SocketAddr>,
    secure: Option<(SocketAddr, TlsSettings)>,
    recovery: Option<(SocketAddr, TlsSettings)>,
}

/// The part of the shared state that does not depend on the kind of ingress.
trait Control: Send + Sync {
    /// Moves to a phase other than running.
    fn set_phase(&self, phase: u8);
}

impl<I: Ingress> Control for Shared<I> {
    fn set_phase(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
        self.leaving.cancel();
        self.hub.wake_all();
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("plain", &self.plain).field("tls", &self.tls_address()).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Opens the listeners and starts serving. Must be called inside a tokio runtime.
    ///
    /// `clock` gives the time that messages are received at; `random` draws session numbers and client names.
    pub fn start<I: Ingress>(
        config: GatewayConfig,
        hub: Arc<Hub>,
        ingress: Arc<I>,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
        random: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Self, GatewayError> {
        let listen = |address| {
            let listener = listener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
            listener.map_err(|source| GatewayError::Bind { address, source })
        };
        let plain = config.plain.map(listen).transpose()?;
        let secured = |config: &Option<(SocketAddr, Arc<ServerConfig>)>| match config {
            Some((address, config)) => Ok(Some((listen(*address)?, TlsSettings::new(config)))),
            None => Ok(None),
        };
        let (secure, recovery) = (secured(&config.tls)?, secured(&config.recovery)?);
        let tasks = TaskTracker::new();
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        start_bus(&hub, &end)?;
        let shared = Arc::new(Shared {
            hub: hub.clone(),
            ingress,
            clock,
            random,
            phase: AtomicU8::new(RUNNING),
            guard: config.guard,
            leaving: CancellationToken::new(),
        });
        let door = Arc::new(listener::Door {
            shared: shared.clone(),
            connections: Arc::new(Semaphore::new(hub.limits.connections)),
            addresses: Addresses::new(hub.limits.connections_per_address),
            handshakes: Turns::new(hub.limits.handshakes),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let mut gateway = Self {
            hub,
            control: shared.clone(),
            tasks: tasks.clone(),
            stop,
            end: end.clone(),
            plain: None,
            secure: None,
            recovery: None,
        };
        if let Some((address, listener)) = plain {
            gateway.plain = Some(address);
            tasks.spawn(listener::accept(door.clone(), listener, Way::Plain));
        }
        if let Some(((address, listener), settings)) = secure {
            gateway.secure = Some((address, settings.clone()));
            tasks.spawn(listener::accept(door.clone(), listener, Way::Secure(settings)));
        }
        if let Some(((address, listener), settings)) = recovery {
            gateway.recovery = Some((address, settings.clone()));
            tasks.spawn(listener::accept(door, listener, Way::Recovery(settings)));
        }
        tokio::spawn(async move {
            let janitor = async {
                loop {
                    tokio::time::sleep(JANITOR).await;
                    let wills = shared.hub.due(Instant::now());
                    if !wills.is_empty() {
                        // Aside: a will for a device may have to wait for credit, the clock must not.
                        let shared = shared.clone();
                        tokio::spawn(async move { opening::publish_wills(&shared, wills).await });
                    }
                }
            };
            let _ = end.run_until_cancelled(janitor).await;
        });
        Ok(gateway)
    }

    /// The address of the plain listener, with the port that was really bound.
    pub fn plain_address(&self) -> Option<SocketAddr> {
        self.plain
    }

    /// The address of the TLS listener.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.secure.as_ref().map(|(address, _)| *address)
    }

    /// The address of the listener for devices whose certificates have expired.
    pub fn recovery_address(&self) -> Option<SocketAddr> {
        self.recovery.as_ref().map(|(address, _)| *address)
    }

    /// The TLS configuration, to be swapped when certificates or revocations change.
    pub fn tls(&self) -> Option<&TlsSettings> {
        self.secure.as_ref().map(|(_, settings)| settings)
    }

    /// The same of the listener for devices whose certificates have expired.
    pub fn recovery_tls(&self) -> Option<&TlsSettings> {
        self.recovery.as_ref().map(|(_, settings)| settings)
    }

    /// The way to subscribers of devices' topics. The same as `hub.clone()`, which exists before the gateway.
    pub fn downlink(&self) -> Arc<dyn Downlink> {
        self.hub.clone()
    }

    /// The gateway's counters.
    pub fn metrics(&self) -> Arc<GatewayMetrics> {
        self.hub.metrics()
    }

    /// Closes the listeners. Open connections go on.
    pub fn stop_accepting(&self) {
        self.stop.cancel();
    }

    /// Ends the gateway: nothing more is read, what was read is handed on and acknowledged, then every client is
    /// told and its connection closed. After `deadline` connections are closed as they are. True: all
    /// acknowledgements went out in time.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.control.set_phase(DRAINING);
        self.tasks.close();
        let in_time = tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok();
        if !in_time {
            self.control.set_phase(CLOSED);
            // Connections say goodbye within two seconds or not at all.
            let _ = tokio::time::timeout(Duration::from_secs(3), self.tasks.wait()).await;
        }
        self.end.cancel();
        in_time
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
        self.control.set_phase(CLOSED);
        self.end.cancel();
    }
}

fn start_bus(hub: &Arc<Hub>, end: &CancellationToken) -> Result<(), GatewayError> {
    let config = BusConfig { bytes: hub.limits.bus_bytes, deadline: hub.limits.bus_deadline };
    let (restarts, lost) = (hub.metrics(), hub.metrics());
    let weak = Arc::downgrade(hub);
    let (bus, drive) = Bus::new(
        config,
        move || up(&restarts.bus_restarts),
        move |count| {
            lost.dropped_bus.fetch_add(count, Ordering::Relaxed);
        },
        Arc::new(move |bytes| {
            if let Some(hub) = weak.upgrade() {
                hub.arrived(bytes);
            }
        }),
    );
    hub.bus.set(bus).map_err(|_| GatewayError::HubInUse)?;
    let end = end.clone();
    tokio::spawn(async move {
        let _ = end.run_until_cancelled(drive).await;
    });
    Ok(())
}
