//! Certificates that have expired, at the listener where they can be renewed: the handshake judges them as of their last second.
//!
//! What the registry says of them (revoked, barred, replaced) is asked afterwards, as for all others, and what their holders may
//! do is decided by who they are then.

use std::sync::Arc;
use std::time::Duration;

use access::leaf::Leaf;
use device::time::{SECOND, Timestamp};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// A verifier that lets in whom another lets in, or would have, while the certificate was valid.
#[derive(Debug)]
pub(crate) struct Expired {
    inner: Arc<dyn ClientCertVerifier>,
    /// How long after its end, in nanoseconds.
    window: i64,
}

impl Expired {
    /// Wraps a verifier. `window`: how long after its end a certificate is let in, in nanoseconds.
    pub(crate) fn wrap(inner: Arc<dyn ClientCertVerifier>, window: i64) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self { inner, window })
    }
}

/// The time at which a certificate that ends then is looked at.
fn judged_at(not_after: Timestamp, now: Timestamp, window: i64) -> Timestamp {
    let late = now.since(not_after);
    if (0..=window).contains(&late) { not_after.plus(-SECOND) } else { now }
}

impl ClientCertVerifier for Expired {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let time = Timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_mul(SECOND));
        // What cannot be read is for the other to refuse.
        let at = Leaf::read(end_entity).map_or(time, |leaf| judged_at(leaf.not_after, time, self.window));
        let seconds = u64::try_from(at.0.div_euclid(SECOND)).unwrap_or(0);
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        self.inner.verify_client_cert(end_entity, intermediates, at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use access::authority::{self, DAY, Key};
    use access::registry::Registry;
    use access::subject::Subject;
    use device::id::DeviceId;
    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::ca;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    #[test]
    fn a_certificate_is_let_in_for_a_while_after_its_end_and_not_before_its_begin() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority::init(&dir.path().join("ca"), "main", NOW, rand::random).unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let subject = Subject::Device(DeviceId::new("a").unwrap());
        let made = authority.issue(&subject, &[], &Key::New, 10, (NOW, rand::random())).unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(made.chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
        let verifier =
            |days: i64| Expired::wrap(ca::verifier(&authority, &registry, NOW, false, &[]).unwrap(), days * DAY);
        let let_in = |window, day: i64| {
            let at = UnixTime::since_unix_epoch(Duration::from_secs((NOW.plus(day * DAY).0 / SECOND) as u64));
            verifier(window).verify_client_cert(&chain[0], &chain[1..], at).is_ok()
        };
        assert!(let_in(90, 0) && let_in(90, 9));
        assert!(let_in(90, 11) && let_in(90, 100));
        assert!(!let_in(90, 101) && !let_in(5, 16));
        assert!(!let_in(90, -2), "not valid yet");
        let foreign = authority::init(&dir.path().join("other"), "main", NOW, rand::random).unwrap();
        let made = foreign.issue(&subject, &[], &Key::New, 10, (NOW, rand::random())).unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(made.chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs((NOW.plus(11 * DAY).0 / SECOND) as u64));
        assert!(verifier(90).verify_client_cert(&chain[0], &chain[1..], at).is_err(), "another authority's");
    }
}
