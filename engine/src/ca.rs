//! TLS for devices: the server's certificate, and who of those that connect has one that counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use access::authority::{self, Authority, AuthorityError, DAY, Key, write_file};
use access::journal::JournalError;
use access::leaf::Leaf;
use access::registry::{Certificate, Fact, Registry, RegistryError};
use access::subject::Subject;
use device::time::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;

/// A server certificate is made anew when it is valid for no longer than this.
const RENEW: i64 = 30 * DAY;

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
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Certificate and key do not belong together, or are not usable.
    #[error("cannot use the TLS certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The authorities are not usable.
    #[error("cannot verify certificates of devices: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl From<JournalError> for CaError {
    fn from(error: JournalError) -> Self {
        Self::Registry(error.into())
    }
}

/// Where a certificate chain and its key stand, both PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// Chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// The authority of a data directory, made if there is none. `ca.crt` in its folder is what clients trust.
pub fn authority(data: &Path, now: Timestamp) -> Result<Authority, CaError> {
    let dir = data.join("ca");
    if authority::exists(&dir) {
        return Ok(authority::open(&dir)?);
    }
    tracing::info!(folder = %dir.display(), "made a certificate authority; `weir ca issue ID` makes certificates for devices");
    Ok(authority::init(&dir, "main", now, rand::random)?)
}

/// The server certificate that an authority gives this engine, for these names; made if it is not there, ends soon, has other
/// names, or is another authority's.
pub fn server(
    data: &Path,
    authority: &Authority,
    registry: &Registry,
    names: &[String],
    now: Timestamp,
) -> Result<Files, CaError> {
    let dir = data.join("ca");
    let files = Files { cert: dir.join("server.crt"), key: dir.join("server.key") };
    let named = dir.join("server.names");
    let wanted = names.join("\n");
    let is_good = || {
        let text = std::fs::read_to_string(&files.cert).ok()?;
        let der = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let leaf = Leaf::read(&der).ok()?;
        let same = text.ends_with(authority.issuing()) && std::fs::read_to_string(&named).ok()? == wanted;
        Some(same && files.key.exists() && leaf.not_after.since(now) > RENEW)
    };
    if is_good() == Some(true) {
        return Ok(files);
    }
    let made = authority.issue(&Subject::Server, names, &Key::New, authority::MAX_DAYS, (now, rand::random()))?;
    let certificate = Certificate::new(&made.leaf, Subject::Server.uri(authority.tenant()));
    registry.change::<RegistryError>(now, |_| Ok(vec![Fact::Issued(certificate)]))?;
    // What says that the other two are right comes last.
    write_file(&named, "", 0o644)?;
    write_file(&files.key, &made.key.map(|key| key.0).unwrap_or_default(), 0o600)?;
    write_file(&files.cert, &made.chain, 0o644)?;
    write_file(&named, &wanted, 0o644)?;
    Ok(files)
}

/// Accepts certificates that lead to the authority, or to one of `others` (PEM), are valid now, and are not on its list of
/// revocations. `optional`: also whoever shows none.
pub fn verifier(
    authority: &Authority,
    registry: &Registry,
    now: Timestamp,
    optional: bool,
    others: &[String],
) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(authority.bundle()?.as_bytes())? {
        roots.add(certificate)?;
    }
    // For devices that show their own certificate and not what leads to the root.
    let former = authority.former()?;
    for issuing in std::iter::once(authority.issuing()).chain(former.as_deref()) {
        for certificate in chain(issuing.as_bytes())? {
            roots.add(certificate)?;
        }
    }
    for certificate in others.iter().flat_map(|pem| chain(pem.as_bytes()).unwrap_or_default()) {
        // One that is no certificate any more for whatever reads it must not keep all others out.
        let _ = roots.add(certificate);
    }
    let revoked = registry.look(|state| authority.revocations(state.revoked(now), now))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // What is revoked is decided by the registry, for every connection; the list gives a client the reason in the handshake.
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls([revoked.der().clone()])
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status();
    Ok(if optional { builder.allow_unauthenticated().build()? } else { builder.build()? })
}

/// Whether a certificate, with those that were shown beside it, leads to this authority (PEM) and is valid at this time.
pub fn is_from(authority: &str, shown: &[CertificateDer<'_>], now: Timestamp) -> bool {
    let Some((leaf, between)) = shown.split_first() else { return false };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain(authority.as_bytes()).unwrap_or_default());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Ok(verifier) = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build() else {
        return false;
    };
    let since = std::time::Duration::from_nanos(u64::try_from(now.0).unwrap_or(0));
    verifier.verify_client_cert(leaf, between, UnixTime::since_unix_epoch(since)).is_ok()
}

/// Asks nobody for a certificate.
pub fn anybody() -> Arc<dyn ClientCertVerifier> {
    WebPkiClientVerifier::no_client_auth()
}

/// A TLS 1.3 configuration from files, without session resumption: a resumed session would not pass the verifier again. The
/// certificate is read and looked at before the key, so the first file that is wrong is the one that is named.
pub fn server_config(files: &Files, verifier: Arc<dyn ClientCertVerifier>) -> Result<Arc<ServerConfig>, CaError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|e| CaError::File { path: path.to_owned(), message: e.to_string() });
    let named = |path: &Path, error: CaError| match error {
        CaError::Cert(message) | CaError::Key(message) => CaError::File { path: path.to_owned(), message },
        other => other,
    };
    let chain = chain(&read(&files.cert)?).map_err(|e| named(&files.cert, e))?;
    let key = private_key(&read(&files.key)?).map_err(|e| named(&files.key, e))?;
    with_chain(chain, key, verifier)
}

/// The same from the texts of the files, both PEM.
pub fn config(cert: &[u8], key: &[u8], verifier: Arc<dyn ClientCertVerifier>) -> Result<Arc<ServerConfig>, CaError> {
    with_chain(chain(cert)?, private_key(key)?, verifier)
}

fn with_chain(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, CaError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
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

#[cfg(test)]
mod tests {
    use device::time::SECOND;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn made(data: &Path, names: &[&str], now: Timestamp) -> Files {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let registry = Registry::open(data).unwrap();
        server(data, &authority(data, now).unwrap(), &registry, &names, now).unwrap()
    }

    #[test]
    fn the_servers_certificate_is_made_once_and_again_when_it_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let text = |files: &Files| std::fs::read_to_string(&files.cert).unwrap();
        let first = text(&made(dir.path(), &["localhost"], NOW));
        assert_eq!(text(&made(dir.path(), &["localhost"], NOW.plus(300 * DAY))), first);
        let renewed = text(&made(dir.path(), &["localhost"], NOW.plus(336 * DAY)));
        assert_ne!(renewed, first);
        let named = made(dir.path(), &["localhost", "10.0.0.1"], NOW.plus(336 * DAY));
        assert_ne!(text(&named), renewed);
        let authority = authority(dir.path(), NOW).unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        server_config(&named, verifier(&authority, &registry, NOW, false, &[]).unwrap()).unwrap();
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&named.key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_that_is_none_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let good = made(dir.path(), &["localhost"], NOW);
        let authority = authority(dir.path(), NOW).unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let config =
            |files: &Files| server_config(files, verifier(&authority, &registry, NOW, false, &[]).unwrap()).map(drop);
        let files = Files { cert: dir.path().join("a.crt"), key: dir.path().join("a.key") };
        std::fs::write(&files.cert, "hello").unwrap();
        let error = config(&files).unwrap_err().to_string();
        assert!(error.contains("a.crt") && error.contains("no certificate"), "{error}");
        std::fs::copy(&good.cert, &files.cert).unwrap();
        for wrong in [None, Some("hello")] {
            if let Some(text) = wrong {
                std::fs::write(&files.key, text).unwrap();
            }
            let error = config(&files).unwrap_err().to_string();
            assert!(error.contains("a.key"), "{error}");
        }
    }
}
