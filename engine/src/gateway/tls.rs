//! TLS 1.3 for devices: a configuration that can be swapped while connections are open.
//!
//! Sessions are never resumed: a resumed session does not pass the certificate verifier again, so a revoked
//! certificate could come back. Whatever configuration is handed in, that is switched off here.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use tokio_rustls::TlsAcceptor;

/// The present TLS configuration of a listener. Clones share it.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

impl TlsSettings {
    /// Takes a configuration, without its session resumption.
    pub fn new(config: &ServerConfig) -> Self {
        Self { config: Arc::new(RwLock::new(without_resumption(config))) }
    }

    /// Replaces the configuration: handshakes that begin from now on use it.
    pub fn swap(&self, config: &ServerConfig) {
        *self.config.write() = without_resumption(config);
    }

    /// The configuration of handshakes that begin now.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.read().clone()
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config())
    }
}

fn without_resumption(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}
