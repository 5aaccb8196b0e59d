//! Whose a client certificate is: that of a user of this tenant, as long as the registry lets it stand.
//!
//! The chain was verified by the handshake. What may change while a connection lives is looked at for each request:
//! revocation, and the end of the certificate's time.

use std::sync::Arc;

use access::leaf::Leaf;
use access::registry::{Refusal, Registry};
use access::subject::Subject;

use super::guard::Certificates;
use crate::clock::Clock;

/// Reads names by the registry of a data directory.
pub fn certificates(registry: Arc<Registry>, tenant: String, clock: Clock) -> Certificates {
    Arc::new(move |der| {
        let other = |text: &str| ("certificate".to_owned(), text.to_owned());
        let leaf = Leaf::read(der).map_err(|error| other(&error.to_string()))?;
        let now = clock();
        if now >= leaf.not_after {
            return Err(other("the time of this certificate is over; ask for another"));
        }
        let [uri] = leaf.uris.as_slice() else {
            return Err(other("a certificate of a user has one name, urn:user:<tenant>:<name>"));
        };
        let Some(Subject::User(name)) = Subject::parse(uri, &tenant) else {
            return Err(other("this certificate is not one of a user; HTTP takes those, or a token"));
        };
        let standing = registry.look(|state| match state.issued(&leaf) {
            true => state.standing(&leaf.serial, None, now),
            false => Err(Refusal::Unknown),
        });
        standing.map_err(|refusal| (refusal.code().to_owned(), refusal.to_string()))?;
        Ok(name)
    })
}

#[cfg(test)]
mod tests {
    use access::authority::{self, Key};
    use access::journal::JournalError;
    use access::registry::{Certificate, Fact};
    use device::id::DeviceId;
    use device::time::Timestamp;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);

    #[test]
    fn only_a_standing_certificate_of_a_user_of_this_tenant_counts() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority::init(&dir.path().join("ca"), "main", NOW, || [7; 16]).unwrap();
        let registry = Arc::new(Registry::open(dir.path()).unwrap());
        let issue = |subject: &Subject, n: u8, known: bool| {
            let made = authority.issue(subject, &[], &Key::New, 1, (NOW, [n; 16])).unwrap();
            if known {
                let fact = Fact::Issued(Certificate::new(&made.leaf, subject.uri("main")));
                registry.change::<JournalError>(NOW, |_| Ok(vec![fact])).unwrap();
            }
            let der = CertificateDer::from_pem_slice(made.chain.as_bytes()).unwrap();
            (der.as_ref().to_vec(), made.leaf.serial)
        };
        let whose = |tenant: &str, now: Timestamp, der: &[u8]| {
            certificates(registry.clone(), tenant.to_owned(), Arc::new(move || now))(der)
        };
        let (ada, serial) = issue(&Subject::User("ada".into()), 1, true);
        assert_eq!(whose("main", NOW, &ada), Ok("ada".to_owned()));
        let code = |found: Result<String, (String, String)>| found.unwrap_err().0;
        assert_eq!(code(whose("other", NOW, &ada)), "certificate");
        assert_eq!(code(whose("main", NOW.plus(86_400_000_000_000), &ada)), "certificate");
        assert_eq!(code(whose("main", NOW, &ada[1..])), "certificate");
        let (pump, _) = issue(&Subject::Device(DeviceId::new("ada").unwrap()), 2, true);
        assert_eq!(code(whose("main", NOW, &pump)), "certificate", "a device is no user of its name");
        let (eve, _) = issue(&Subject::User("eve".into()), 3, false);
        assert_eq!(code(whose("main", NOW, &eve)), "unknown_certificate");
        let revoked = Fact::Revoked { serial, reason: "lost".into() };
        registry.change::<JournalError>(NOW, |_| Ok(vec![revoked])).unwrap();
        assert_eq!(code(whose("main", NOW, &ada)), "revoked");
    }
}
