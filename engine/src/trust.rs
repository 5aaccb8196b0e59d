//! The device listener's certificates while the engine runs: revoked, renewed, replaced without a restart.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use access::audit::Audit;
use access::registry::{Fact, Registry};
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::ca::{self, CaError, Files};
use crate::clock::Clock;
use crate::config::Config;
use crate::gateway::{Hub, TlsSettings};
use crate::guard::{self, Guard};
use crate::provision::Provisioning;

/// Everything that the device listener's TLS configuration is made of.
#[derive(Clone)]
pub(crate) struct Trust {
    data: PathBuf,
    registry: Arc<Registry>,
    /// A certificate that was given to the engine, instead of one of its own authority.
    given: Option<Files>,
    names: Vec<String>,
    insecure: bool,
    clock: Clock,
    pub(crate) guard: Arc<Guard>,
}

impl Trust {
    /// Opens authority and registry of the data directory; makes them if they are not there.
    pub(crate) fn open(config: &Config, clock: Clock, audit: Arc<Audit>) -> Result<Self, CaError> {
        let data = config.store.data.clone();
        let authority = ca::authority(&data, clock())?;
        let registry = Arc::new(Registry::open(&data)?);
        let given = match (&config.mqtt.tls_cert, &config.mqtt.tls_key) {
            (Some(cert), Some(key)) => Some(Files { cert: cert.clone(), key: key.clone() }),
            _ => None,
        };
        let names = names(config.mqtt.tls, &config.mqtt.names);
        let port = config.mqtt.tls.map_or(8883, |address| address.port());
        // As configured; a device that gets none keeps the address that it came by.
        let endpoints = config.mqtt.names.iter().map(|name| format!("mqtts://{name}:{port}")).collect();
        let provisioning = Provisioning::new(&data, registry.clone(), audit.clone(), clock.clone(), endpoints);
        let guard = Guard::new(registry.clone(), authority.tenant().to_owned(), clock.clone(), audit, provisioning);
        Ok(Self { data, registry, given, names, insecure: config.node.insecure, clock, guard })
    }

    /// The configuration as of now.
    pub(crate) fn tls(&self) -> Result<Arc<ServerConfig>, CaError> {
        let now = (self.clock)();
        let authority = ca::authority(&self.data, now)?;
        let files = match &self.given {
            Some(files) => files.clone(),
            None => ca::server(&self.data, &authority, &self.registry, &self.names, now)?,
        };
        ca::server_config(&files, ca::verifier(&authority, &self.registry, now, self.insecure)?)
    }

    /// Follows registry and files until the engine stops: connections that are not allowed any more are cut, handshakes are
    /// judged by what is known now.
    pub(crate) async fn follow(self, hub: Arc<Hub>, settings: TlsSettings, stop: CancellationToken) {
        let guard = self.guard.clone();
        let changed = move |facts: &[Fact]| {
            hub.wake_all();
            // Without facts it is time to look at the files.
            if facts.is_empty() || facts.iter().any(|fact| matches!(fact, Fact::Revoked { .. })) {
                match self.tls() {
                    Ok(config) => settings.swap(&config),
                    Err(error) => tracing::error!(%error, "the certificates of the device listener stay as they were"),
                }
            }
        };
        guard::follow(guard, changed, stop).await;
    }
}

/// What devices may call this engine: its own machine, the address it listens on, and what the configuration says.
fn names(listen: Option<SocketAddr>, more: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let listen = listen.map(|address| address.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    for name in listen.map(|ip| ip.to_string()).into_iter().chain(more.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
