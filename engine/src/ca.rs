//! Certificates of the TLS listener. Those of devices come with the certificate authority, which is not here yet.
//!
//! Without a configured certificate a development CA and a server certificate for `localhost` are made once and
//! kept in the data directory, so that a first try with TLS needs no other tool.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use thiserror::Error;

/// Why there is no TLS configuration.
#[derive(Debug, Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{path}: {message}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A certificate chain is none.
    #[error("the certificate: {0}")]
    Cert(String),
    /// A private key is none.
    #[error("the private key: {0}")]
    Key(String),
    /// A certificate cannot be made.
    #[error("cannot make the development certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Certificate and key do not belong together, or are not usable.
    #[error("cannot use the TLS certificate: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where a certificate chain and its key stand, both PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// Chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// The development certificate below `dir`, made if it is not there. `ca.crt` beside it is what clients trust.
pub fn development(dir: &Path) -> Result<Files, CaError> {
    let files = Files { cert: dir.join("server.crt"), key: dir.join("server.key") };
    if files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    let error = |path: &Path, e: std::io::Error| CaError::File { path: path.to_owned(), message: e.to_string() };
    std::fs::create_dir_all(dir).map_err(|e| error(dir, e))?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "weir development CA");
    let ca_key = KeyPair::generate()?;
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let mut server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])?;
    server.distinguished_name.push(DnType::CommonName, "weir development server");
    // Strict verifiers (OpenSSL's, Python's since 3.13) want to see whose key signed.
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = KeyPair::generate()?;
    let server_cert = server.signed_by(&server_key, &issuer)?;
    let ca_file = dir.join("ca.crt");
    std::fs::write(&ca_file, ca_cert.pem()).map_err(|e| error(&ca_file, e))?;
    write_secret(&files.key, &server_key.serialize_pem()).map_err(|e| error(&files.key, e))?;
    std::fs::write(&files.cert, server_cert.pem()).map_err(|e| error(&files.cert, e))?;
    Ok(files)
}

/// Only the owner may read a key.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The configuration of [`config`] from files. The certificate is read and looked at before the key, so the first
/// file that is wrong is the one that is named.
pub fn server_config(files: &Files) -> Result<Arc<ServerConfig>, CaError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|e| CaError::File { path: path.to_owned(), message: e.to_string() });
    let named = |path: &Path, error: CaError| match error {
        CaError::Cert(message) | CaError::Key(message) => CaError::File { path: path.to_owned(), message },
        other => other,
    };
    let chain = chain(&read(&files.cert)?).map_err(|e| named(&files.cert, e))?;
    let key = private_key(&read(&files.key)?).map_err(|e| named(&files.key, e))?;
    with_chain(chain, key)
}

/// TLS 1.3 only, without session resumption: a resumed session would not pass the client verifier again. `cert` is
/// the chain, leaf first, `key` its private key, both PEM.
pub fn config(cert: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, CaError> {
    with_chain(chain(cert)?, private_key(key)?)
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let chain =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| CaError::Cert(e.to_string()))?;
    if chain.is_empty() {
        return Err(CaError::Cert("holds no certificate in PEM form".to_owned()));
    }
    Ok(chain)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CaError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| CaError::Key(e.to_string()))
}

fn with_chain(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>, CaError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_development_certificate_is_made_once_and_works() {
        let dir = tempfile::tempdir().unwrap();
        let files = development(dir.path()).unwrap();
        let before = std::fs::read(&files.cert).unwrap();
        server_config(&files).unwrap();
        development(dir.path()).unwrap();
        assert_eq!(std::fs::read(&files.cert).unwrap(), before);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_that_is_none_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { cert: dir.path().join("a.crt"), key: dir.path().join("a.key") };
        std::fs::write(&files.cert, "hello").unwrap();
        let error = server_config(&files).unwrap_err().to_string();
        assert!(error.contains("a.crt") && error.contains("no certificate"), "{error}");
        development(dir.path()).unwrap();
        std::fs::copy(dir.path().join("server.crt"), &files.cert).unwrap();
        for wrong in [None, Some("hello")] {
            if let Some(text) = wrong {
                std::fs::write(&files.key, text).unwrap();
            }
            let error = server_config(&files).unwrap_err().to_string();
            assert!(error.contains("a.key"), "{error}");
        }
    }
}
