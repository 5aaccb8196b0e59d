//! The listeners' certificates while the engine runs: revoked, renewed, replaced without a restart.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use access::audit::Audit;
use access::authority::{self, DAY};
use access::registry::Registry;
use alerts::Keeper;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::ca::{self, CaError, Files};
use crate::clock::Clock;
use crate::config::Config;
use crate::expiring::{self, Expiring};
use crate::gateway::{Hub, TlsSettings};
use crate::guard::{self, Guard};
use crate::http;
use crate::login::Login;
use crate::provision::Provisioning;
use crate::recovery::Expired;
use crate::renewal::Renewals;

/// Who may come in at a listener, as far as the handshake goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Whoever shows a certificate that is valid, or none.
    Anybody,
    /// Whoever shows one that is valid.
    Certified,
    /// Also whoever shows one that has ended not long ago.
    Expired,
}

/// Everything that TLS configurations are made of.
#[derive(Clone)]
pub(crate) struct Trust {
    data: PathBuf,
    registry: Arc<Registry>,
    tenant: String,
    /// Certificates that were given to the engine, instead of one of its own authority.
    given: (Option<Files>, Option<Files>),
    names: Vec<String>,
    /// Whether a client of the device listener needs no certificate.
    optional: bool,
    /// How long after its end a certificate may still be renewed, in nanoseconds.
    recovery: i64,
    clock: Clock,
    pub(crate) guard: Arc<Guard>,
    /// That of the HTTP listener as of now.
    http: Arc<OnceLock<TlsSettings>>,
}

impl Trust {
    /// Opens authority and registry of the data directory; makes them if they are not there.
    pub(crate) fn open(config: &Config, clock: Clock, audit: Arc<Audit>, login: &Arc<Login>) -> Result<Self, CaError> {
        let data = config.store.data.clone();
        let authority = ca::authority(&data, clock())?;
        let registry = Arc::new(Registry::open(&data)?);
        let files = |cert: &Option<PathBuf>, key: &Option<PathBuf>| {
            cert.as_ref().zip(key.as_ref()).map(|(cert, key)| Files { cert: cert.clone(), key: key.clone() })
        };
        let given =
            (files(&config.mqtt.tls_cert, &config.mqtt.tls_key), files(&config.http.tls_cert, &config.http.tls_key));
        let names = names(&[config.mqtt.tls, config.http.listen], &config.mqtt.names);
        let port = config.mqtt.tls.map_or(8883, |address| address.port());
        // As configured; a device that gets none keeps the address that it came by.
        let endpoints = config.mqtt.names.iter().map(|name| format!("mqtts://{name}:{port}")).collect();
        let provisioning = Provisioning::new(&data, registry.clone(), audit.clone(), clock.clone(), endpoints);
        let tenant = authority.tenant().to_owned();
        let users = login.users().clone();
        // Without a certificate, and without a token, everybody may come in where nobody has to say who it is.
        let login = (config.mqtt.user_tokens && !config.node.insecure).then(|| login.clone());
        let renewals = Renewals::new(&data, registry.clone(), audit.clone(), clock.clone());
        let asked = (provisioning, renewals);
        let guard = Guard::new(registry.clone(), tenant.clone(), clock.clone(), (audit, users), login, asked);
        let optional = config.node.insecure || config.mqtt.user_tokens;
        let recovery = i64::from(config.mqtt.recovery_days) * DAY;
        Ok(Self { data, registry, tenant, given, names, optional, recovery, clock, guard, http: Arc::default() })
    }

    /// `others`: authorities (PEM) that are not ours.
    fn config(&self, given: Option<&Files>, who: Who, others: &[String]) -> Result<Arc<ServerConfig>, CaError> {
        let now = (self.clock)();
        // Not made again: an authority that has gone away while the engine runs is a mistake.
        let authority = authority::open(&self.data.join("ca"))?;
        let files = match given {
            Some(files) => files.clone(),
            None => {
                let serving = authority::roll::serving(&self.data.join("ca"))?;
                ca::server(&self.data, &serving, &self.registry, &self.names, now)?
            }
        };
        let verifier = ca::verifier(&authority, &self.registry, now, who == Who::Anybody, others)?;
        let verifier = if who == Who::Expired { Expired::wrap(verifier, self.recovery) } else { verifier };
        ca::server_config(&files, verifier)
    }

    /// What is known of certificates and of those who hold them.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The device listener's configuration as of now.
    pub(crate) fn devices(&self) -> Result<Arc<ServerConfig>, CaError> {
        let factories =
            self.registry.look(|state| state.factories().values().map(|f| f.ca.clone()).collect::<Vec<_>>());
        let who = if self.optional { Who::Anybody } else { Who::Certified };
        self.config(self.given.0.as_ref(), who, &factories)
    }

    /// That of the listener for devices whose certificates have expired.
    pub(crate) fn recovery(&self) -> Result<Arc<ServerConfig>, CaError> {
        self.config(self.given.0.as_ref(), Who::Expired, &[])
    }

    /// The configuration of the HTTP listener, whose clients may have a certificate or a token.
    pub(crate) fn http(&self) -> Result<http::Tls, CaError> {
        let config = self.config(self.given.1.as_ref(), Who::Anybody, &[])?;
        let settings = self.http.get_or_init(|| TlsSettings::new(&config)).clone();
        Ok(Arc::new(move || settings.config()))
    }

    /// Whose certificates end soon.
    pub(crate) fn expiring(
        &self,
        audit: Arc<Audit>,
        report: Arc<expiring::Report>,
        tell: Option<(Arc<Keeper>, String)>,
    ) -> Expiring {
        let (registry, tenant, clock) = (self.registry.clone(), self.tenant.clone(), self.clock.clone());
        Expiring { registry, tenant, audit, clock, report, tell }
    }

    /// Whose a certificate is that was shown to the HTTP listener.
    pub(crate) fn certificates(&self) -> http::Certificates {
        http::certificates(self.registry.clone(), self.tenant.clone(), self.clock.clone())
    }

    /// Follows registry and files until the engine stops: connections that are not allowed any more are cut, handshakes are
    /// judged by what is known now.
    pub(crate) async fn follow(
        self,
        hub: Arc<Hub>,
        (devices, recovery): (Option<TlsSettings>, Option<TlsSettings>),
        stop: CancellationToken,
    ) {
        let guard = self.guard.clone();
        let changed = move |files: bool| {
            hub.wake_all();
            if !files {
                return;
            }
            let swap =
                |settings: Option<&TlsSettings>, config: Result<Arc<ServerConfig>, CaError>| match (settings, config) {
                    (Some(settings), Ok(config)) => settings.swap(&config),
                    (Some(_), Err(error)) => {
                        tracing::error!(%error, "the certificates of a listener stay as they were")
                    }
                    (None, _) => {}
                };
            swap(devices.as_ref(), self.devices());
            swap(recovery.as_ref(), self.recovery());
            swap(self.http.get(), self.config(self.given.1.as_ref(), Who::Anybody, &[]));
        };
        guard::follow(guard, changed, stop).await;
    }
}

/// What devices may call this engine: its own machine, the address it listens on, and what the configuration says.
fn names(listen: &[Option<SocketAddr>], more: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let listen = listen.iter().flatten().map(SocketAddr::ip).filter(|ip: &IpAddr| !ip.is_unspecified());
    for name in listen.map(|ip| ip.to_string()).chain(more.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
