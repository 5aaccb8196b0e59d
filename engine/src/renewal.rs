//! Devices that have a certificate and ask for the next one, on `devices/{id}/cert/req`.
//!
//! A request is a map, in CBOR or JSON: `{request_id, csr}`. The connection itself proves who asks, the signature in the request
//! that the asker holds the new key. Answered on `devices/{id}/cert/res` with `{request_id, chain, bundle, not_after,
//! server_time}` (times in nanoseconds since 1970), or `{request_id, error: {reason, text}}`. Repeated, a request for the same
//! key has the same certificate in its answer. What is decided is decided by [`access::renew`].
//!
//! Whom to trust: `{request_id, step: "trust"}` is answered with `{request_id, bundle, bundle_id, server_time}`, and with the
//! `bundle_id` in the request the device says that it has that bundle, durably. While a root is rolled ([`access::roll`]),
//! devices that have not said so are sent `{cert_action: "trust", bundle, bundle_id}` of the engine's own accord, and those whose
//! certificate is due `{cert_action: "renew"}`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use access::audit::{Act, Audit};
use access::authority::roll::bundle_id;
use access::authority::{self, AuthorityError, Key, write_file};
use access::journal::JournalError;
use access::leaf::Serial;
use access::registry::{Certificate, Fact, Registry};
use access::renew::{self, NotRenewed, Verdict};
use access::subject::Subject;
use device::id::DeviceId;
use device::time::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::clock::Clock;
use crate::request::{self, Blob, chain_file};

/// Days that the certificate of a device is valid.
const DAYS: u32 = authority::MAX_DAYS;

/// Why a device gets no other certificate.
#[derive(Debug, Error)]
enum Failure {
    /// The request cannot be read.
    #[error("{0}")]
    Request(String),
    /// A gateway asks for a child.
    #[error("{0} has no certificate here: it is reached through its gateway, which renews its own")]
    Child(DeviceId),
    /// It says that it trusts what is not to be trusted now.
    #[error("whom to trust has changed; ask for it without a bundle_id")]
    Bundle,
    /// A rule says no.
    #[error(transparent)]
    Denied(#[from] NotRenewed),
    /// Not now.
    #[error("the registry cannot be written: {0}")]
    Journal(#[from] JournalError),
    /// Not now.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Failure {
    fn code(&self) -> &'static str {
        match self {
            Self::Request(_) | Self::Authority(AuthorityError::Request(_)) => "bad_request",
            Self::Child(_) => "child",
            Self::Bundle => "other_bundle",
            Self::Denied(denied) => denied.code(),
            Self::Journal(_) | Self::Authority(_) => "unavailable",
        }
    }
}

#[derive(Debug, Deserialize)]
struct Request {
    request_id: String,
    #[serde(default)]
    step: Option<String>,
    #[serde(default)]
    csr: Option<Blob>,
    #[serde(default)]
    bundle_id: Option<String>,
}

/// Who asks.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    /// The device whose certificate has opened the connection, and the number of that.
    pub(crate) device: &'a DeviceId,
    /// See `device`.
    pub(crate) serial: &'a str,
    /// The device that the topic names.
    pub(crate) named: &'a DeviceId,
    /// Whether it came by the listener for certificates that have expired.
    pub(crate) recovers: bool,
    /// Where it came from.
    pub(crate) from: &'a str,
}

/// A certificate that a device is given.
struct Given {
    serial: Serial,
    not_after: Timestamp,
    /// The one that it replaces; none: it was given before.
    replaces: Option<Serial>,
}

/// Gives devices their next certificates.
pub(crate) struct Renewals {
    data: PathBuf,
    registry: Arc<Registry>,
    audit: Arc<Audit>,
    clock: Clock,
}

impl Renewals {
    pub(crate) fn new(data: &Path, registry: Arc<Registry>, audit: Arc<Audit>, clock: Clock) -> Self {
        Self { data: data.to_owned(), registry, audit, clock }
    }

    /// Answers a request. Reads and writes files.
    pub(crate) fn answer(&self, asker: &Asker<'_>, payload: &[u8]) -> Vec<u8> {
        let request = read(payload);
        let id = request.as_ref().map(|request| request.request_id.clone()).unwrap_or_default();
        let answered = request.and_then(|request| self.handle(asker, request));
        let mut answer = answered.unwrap_or_else(|failure| {
            let act =
                self.act(asker, Act::refused(asker.device.as_str(), ACTION, asker.named.as_str(), failure.code()));
            self.audit.note((self.clock)(), act);
            json!({ "error": { "reason": failure.code(), "text": failure.to_string() } })
        });
        answer["request_id"] = Value::String(id);
        request::answer(&answer, request::is_json(payload))
    }

    fn act(&self, asker: &Asker<'_>, act: Act) -> Act {
        act.role("device").from(asker.from)
    }

    fn handle(&self, asker: &Asker<'_>, request: Request) -> Result<Value, Failure> {
        if asker.named != asker.device {
            return Err(Failure::Child(asker.named.clone()));
        }
        match request.step.as_deref() {
            None | Some("renew") => {}
            Some("trust") => return self.trust(asker, request.bundle_id),
            Some(other) => {
                return Err(Failure::Request(format!("step {other:?} is neither \"renew\" nor \"trust\"")));
            }
        }
        let csr = request.csr.ok_or_else(|| Failure::Request("the request has no csr".to_owned()))?;
        let csr = csr.bytes("csr").map_err(Failure::Request)?;
        let now = (self.clock)();
        let authority = authority::open(&self.data.join("ca"))?;
        let given = self.give(asker, &authority, &csr, now)?;
        let path = chain_file(&self.data, &given.serial);
        let chain = std::fs::read_to_string(&path).map_err(|source| AuthorityError::Io { path, source })?;
        if let Some(replaces) = given.replaces {
            let detail = json!({ "serial": given.serial, "replaces": replaces, "recovered": asker.recovers });
            let act = Act::done(asker.device.as_str(), ACTION, asker.device.as_str()).detail(detail);
            self.audit.note(now, self.act(asker, act));
        }
        Ok(json!({
            "chain": chain, "bundle": authority.bundle()?, "not_after": given.not_after.0, "server_time": now.0,
        }))
    }

    /// Whom to trust; or notes that a device does, with that `bundle_id`.
    fn trust(&self, asker: &Asker<'_>, said: Option<String>) -> Result<Value, Failure> {
        let now = (self.clock)();
        let bundle = authority::open(&self.data.join("ca"))?.bundle()?;
        let id = bundle_id(&bundle);
        let Some(said) = said else {
            return Ok(json!({ "bundle": bundle, "bundle_id": id, "server_time": now.0 }));
        };
        if said != id {
            return Err(Failure::Bundle);
        }
        let device = asker.device.to_string();
        let new = self.registry.change::<JournalError>(now, |state| {
            let is_new = state.roll().untold(&device) == Some(id.as_str());
            Ok(is_new.then(|| Fact::Trusts { device: device.clone(), bundle: id.clone() }).into_iter().collect())
        })?;
        if new.iter().any(|line| matches!(&line.fact, Fact::Trusts { device: who, .. } if *who == device)) {
            let act = Act::done(device.as_str(), TRUST, device.as_str()).detail(json!({ "bundle": id }));
            self.audit.note(now, self.act(asker, act));
        }
        Ok(json!({ "bundle_id": id, "server_time": now.0 }))
    }

    /// What devices are sent that are to trust others from now on; none: nobody is, or that is being written just now.
    pub(crate) fn whom_to_trust(&self) -> Option<Vec<u8>> {
        let bundle = authority::open(&self.data.join("ca")).and_then(|authority| authority.bundle());
        let bundle = bundle.inspect_err(|error| tracing::error!(%error, "devices are not told whom to trust")).ok()?;
        let id = bundle_id(&bundle);
        let is_current = self.registry.look(|state| state.roll().last().is_some_and(|(roll, _)| roll.bundle == id));
        let text = json!({ "cert_action": TRUST_NOW, "bundle": bundle, "bundle_id": id });
        is_current.then(|| text.to_string().into_bytes())
    }

    /// Decides and makes the certificate, as one step: of two requests at once the second sees what the first did.
    fn give(
        &self,
        asker: &Asker<'_>,
        authority: &authority::Authority,
        csr: &[u8],
        now: Timestamp,
    ) -> Result<Given, Failure> {
        // This also looks at the signature of the request: who asks holds the key.
        let key = authority::request_key(csr)?;
        let mut given = None;
        self.registry.change::<Failure>(now, |state| {
            let replaces = match renew::decide(state, asker.device, asker.serial, &key, now)? {
                Verdict::Again(serial) => {
                    let not_after = state.certificate(&serial).map_or(now, |entry| entry.certificate.not_after);
                    given = Some(Given { serial, not_after, replaces: None });
                    return Ok(Vec::new());
                }
                Verdict::New { replaces } => replaces,
            };
            let subject = Subject::Device(asker.device.clone());
            let made = authority.issue(&subject, &[], &Key::Request(csr), DAYS, (now, rand::random()))?;
            // Before it counts: an answer that is asked for again must find it.
            let path = chain_file(&self.data, &made.leaf.serial);
            let dir = path.parent().unwrap_or(&self.data);
            std::fs::create_dir_all(dir).map_err(|source| AuthorityError::Io { path: dir.to_owned(), source })?;
            write_file(&path, &made.chain, 0o644)?;
            let certificate = Certificate::new(&made.leaf, subject.uri(authority.tenant()));
            let (serial, not_after) = (certificate.serial.clone(), certificate.not_after);
            given = Some(Given { serial, not_after, replaces: Some(replaces.clone()) });
            Ok(vec![Fact::Issued(Certificate { pending: true, replaces: Some(replaces), ..certificate })])
        })?;
        given.ok_or_else(|| Failure::Request("nothing was decided".to_owned()))
    }
}

/// As it stands in the audit trail.
const ACTION: &str = "certificate.renew";
const TRUST: &str = "authority.trust";

/// What `cert_action` says to a device that is to trust others.
const TRUST_NOW: &str = "trust";
/// What a device is sent whose certificate is due.
pub(crate) const RENEW_NOW: &str = r#"{"cert_action":"renew"}"#;

fn read(payload: &[u8]) -> Result<Request, Failure> {
    let request: Request = request::read(payload).map_err(Failure::Request)?;
    request::named(&request.request_id).map_err(Failure::Request)?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use access::roll::{Roll, Stage};
    use device::time::SECOND;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    struct Place {
        dir: tempfile::TempDir,
        registry: Arc<Registry>,
        renewals: Renewals,
        serial: String,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority::init(&dir.path().join("ca"), "main", NOW, rand::random).unwrap();
        let registry = Arc::new(Registry::open(dir.path()).unwrap());
        let subject = Subject::Device(DeviceId::new("a").unwrap());
        let made = authority.issue(&subject, &[], &Key::New, 30, (NOW, rand::random())).unwrap();
        let first = Certificate::new(&made.leaf, subject.uri("main"));
        registry.change::<JournalError>(NOW, |_| Ok(vec![Fact::Issued(first)])).unwrap();
        let audit = Arc::new(Audit::open(dir.path()).unwrap());
        let renewals = Renewals::new(dir.path(), registry.clone(), audit, Arc::new(|| NOW));
        Place { dir, registry, renewals, serial: made.leaf.serial }
    }

    fn csr() -> (String, Vec<u8>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        (request.pem().unwrap(), request.der().to_vec())
    }

    impl Place {
        fn ask(&self, named: &str, payload: &[u8]) -> Value {
            let (device, named) = (DeviceId::new("a").unwrap(), DeviceId::new(named).unwrap());
            let asker =
                Asker { device: &device, serial: &self.serial, named: &named, recovers: false, from: "127.0.0.1:1" };
            let answer = self.renewals.answer(&asker, payload);
            match request::is_json(payload) {
                true => serde_json::from_slice(&answer).unwrap(),
                false => ciborium::from_reader(&answer[..]).unwrap(),
            }
        }
    }

    #[test]
    fn a_device_gets_the_next_certificate_once_however_often_it_asks() {
        let place = place();
        let (pem, der) = csr();
        let first = place.ask("a", json!({ "request_id": "1", "csr": pem }).to_string().as_bytes());
        assert_eq!(first["request_id"], "1");
        assert!(first["chain"].as_str().unwrap().matches("BEGIN CERTIFICATE").count() == 2, "{first}");
        assert_eq!(first["server_time"], NOW.0);
        assert!(first["not_after"].as_i64().unwrap() > NOW.plus(300 * authority::DAY).0);
        // The same key in CBOR, as bytes.
        let text = |text: &str| ciborium::Value::Text(text.to_owned());
        let map = vec![(text("request_id"), text("2")), (text("csr"), ciborium::Value::Bytes(der))];
        let mut payload = Vec::new();
        ciborium::into_writer(&ciborium::Value::Map(map), &mut payload).unwrap();
        let again = place.ask("a", &payload);
        assert_eq!((&again["request_id"], &again["chain"]), (&json!("2"), &first["chain"]));
        place.registry.look(|state| {
            let all: Vec<_> = state.of("urn:dev:main:a").collect();
            assert_eq!(all.len(), 2);
            assert!(all[1].certificate.pending);
            assert_eq!(all[1].certificate.replaces.as_deref(), Some(place.serial.as_str()));
            assert_eq!(all[0].ends, None, "not before the new one is used");
        });
        assert!(place.dir.path().join("access/certificates").is_dir());
    }

    #[test]
    fn a_device_is_told_whom_to_trust_until_it_says_that_it_does() {
        let place = place();
        let ask = |request: Value| place.ask("a", request.to_string().as_bytes());
        let untold = || place.registry.look(|state| state.roll().untold("a").is_some());
        let first = ask(json!({ "request_id": "1", "step": "trust" }));
        assert!(first["bundle"].as_str().unwrap().contains("BEGIN CERTIFICATE"), "{first}");
        assert_eq!(place.renewals.whom_to_trust(), None, "nothing has changed");
        let said = ask(json!({ "request_id": "2", "step": "trust", "bundle_id": first["bundle_id"] }));
        assert_eq!((&said["bundle_id"], untold()), (&first["bundle_id"], false));

        let bundle = authority::roll::begin(&place.dir.path().join("ca"), NOW, rand::random).unwrap();
        assert_eq!(place.renewals.whom_to_trust(), None, "it does not stand in the registry yet");
        let roll = Roll { stage: Stage::Begun, bundle: bundle_id(&bundle), over: 0, issuer: None };
        place.registry.change::<JournalError>(NOW, |_| Ok(vec![Fact::Roll(roll)])).unwrap();
        assert!(untold());
        let told: Value = serde_json::from_slice(&place.renewals.whom_to_trust().unwrap()).unwrap();
        assert_eq!((&told["cert_action"], &told["bundle"]), (&json!("trust"), &json!(bundle)));
        let old = ask(json!({ "request_id": "3", "step": "trust", "bundle_id": first["bundle_id"] }));
        assert_eq!((&old["error"]["reason"], untold()), (&json!("other_bundle"), true));
        for _ in 0..2 {
            let said = ask(json!({ "request_id": "4", "step": "trust", "bundle_id": told["bundle_id"] }));
            assert_eq!((&said["bundle_id"], untold()), (&told["bundle_id"], false));
        }
        let facts = place.registry.look(|state| state.facts().0);
        assert_eq!(facts, 3, "said once: the certificate, the roll, the device");
    }

    #[test]
    fn what_cannot_be_renewed_is_refused_with_its_reason() {
        let place = place();
        let (pem, _) = csr();
        for (named, request, reason) in [
            ("a", json!({ "request_id": "1" }), "bad_request"),
            ("a", json!({ "request_id": "1", "csr": "bm8=" }), "bad_request"),
            ("a", json!({ "request_id": "", "csr": pem }), "bad_request"),
            ("a", json!({ "request_id": "1", "step": "dance", "csr": pem }), "bad_request"),
            ("child", json!({ "request_id": "1", "csr": pem }), "child"),
        ] {
            let answer = place.ask(named, request.to_string().as_bytes());
            assert_eq!(answer["error"]["reason"], reason, "{request}: {answer}");
        }
        assert_eq!(place.ask("a", b"\x01")["error"]["reason"], "bad_request");
        place
            .registry
            .change::<access::registry::RegistryError>(NOW, |state| state.revoke("a", "urn:dev:main:a", "stolen"))
            .unwrap();
        let answer = place.ask("a", json!({ "request_id": "1", "csr": pem }).to_string().as_bytes());
        assert_eq!(answer["error"]["reason"], "barred");
    }
}
