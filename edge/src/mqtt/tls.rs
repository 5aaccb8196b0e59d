//! TLS towards the engine: its certificate must come from the given authority; optionally we show our own.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::MqttError;

/// How the engine is recognised, and we by it. Made once and shared by all clients of a process.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    config: Arc<ClientConfig>,
    server_name: Option<String>,
}

impl TlsConfig {
    /// Trusts engines whose certificate comes from the authority in this PEM file. `server_name`: the name that
    /// the certificate must carry; by default the host of the address.
    pub fn new(authority: &Path, server_name: Option<String>) -> Result<Self, MqttError> {
        let config = builder(authority)?.with_no_client_auth();
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// The same, and shows the engine this certificate (chain) with this key, both PEM files.
    pub fn with_identity(
        authority: &Path,
        server_name: Option<String>,
        certificate: &Path,
        key: &Path,
    ) -> Result<Self, MqttError> {
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
        Self::certified(builder(authority)?, server_name, chain, key)
    }

    /// The same from texts, all PEM.
    pub fn from_pem(authority: &str, server_name: Option<String>, chain: &str, key: &str) -> Result<Self, MqttError> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| MqttError::Tls(format!("the {what}: {error}"));
        let read = |what: &str, text: &str| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            found.map_err(|error| wrong(what, &error))
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| wrong("private key", &error))?;
        let builder = trusting(read("authority", authority)?, "the authority")?;
        Self::certified(builder, server_name, read("certificate", chain)?, key)
    }

    fn certified(
        builder: Builder,
        server_name: Option<String>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, MqttError> {
        let config = builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| MqttError::Tls(format!("certificate and key do not work together: {error}")))?;
        Ok(Self { config: Arc::new(config), server_name })
    }
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(authority: &Path) -> Result<Builder, MqttError> {
    trusting(certificates(authority)?, &authority.display().to_string())
}

fn trusting(authorities: Vec<CertificateDer<'static>>, named: &str) -> Result<Builder, MqttError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots.add(certificate).map_err(|error| MqttError::Tls(format!("{named} is no usable authority: {error}")))?;
    }
    // The provider is named, not taken from the process: a library must not depend on who installed one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| MqttError::Tls(error.to_string()))?;
    Ok(builder.with_root_certificates(roots))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MqttError> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, &error))?.collect();
    let found = found.map_err(|error| unreadable(path, &error))?;
    if found.is_empty() {
        return Err(MqttError::Tls(format!("{} holds no certificate", path.display())));
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> MqttError {
    MqttError::Tls(format!("cannot read {}: {error}", path.display()))
}

pub(super) async fn connect(tls: &TlsConfig, address: &str, tcp: TcpStream) -> Result<TlsStream<TcpStream>, MqttError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = tls.server_name.as_deref().unwrap_or(host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name.clone()).map_err(|_| MqttError::Tls(format!("{name:?} is no server name")))?;
    TlsConnector::from(tls.config.clone()).connect(name, tcp).await.map_err(|error| MqttError::Tls(error.to_string()))
}
