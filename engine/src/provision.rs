//! Devices that come for the first time: from a request to a certificate.
//!
//! A request comes over a connection of a claim or of a factory's certificate, or as the body of an HTTP request. It is a map,
//! in CBOR or, if it begins with `{`, in JSON:
//! - `{request_id, step: "nonce"}` is answered with `{request_id, nonce}`: 32 bytes that this connection must sign.
//! - `{request_id, serial, hw?, csr, proof}`: the serial number, a certificate signing request (PKCS #10), and the signature of
//!   the new key over nonce and request id. Answered with `{request_id, id, chain, bundle, endpoints, server_time, group, labels,
//!   config}`, or `{request_id, error: {reason, text}}`.
//!
//! Over HTTP there is no connection to sign for: the request has `token`, or `voucher` and `voucher_sig`, in the place of the
//! proof, and that the asker has the key is shown by the signature of the signing request.
//!
//! Bytes stand as such in CBOR, in JSON as base64 (a signing request also as PEM, in both). Repeated, a request of the same device
//! with the same key has the same certificate in its answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use access::audit::{Act, Audit};
use access::authority::{self, AuthorityError, Key, Secret, write_file};
use access::enrol::{self, Ask, By, Denied, Verdict};
use access::journal::JournalError;
use access::origin::Shown;
use access::registry::{Certificate, Enrolled, Fact, Registry};
use access::subject::Subject;
use data_encoding::BASE64;
use device::id::DeviceId;
use device::time::{SECOND, Timestamp};
use ring::hmac;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::clock::Clock;
use crate::gateway::Asker;
use crate::request::{self, Blob, MAX_TEXT, chain_file};

/// A nonce counts for this long, and for as long again.
const NONCE: i64 = 60 * SECOND;
/// Days that the certificate of a device is valid.
const DAYS: u32 = authority::MAX_DAYS;

/// Why somebody gets no certificate.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The request cannot be read.
    #[error("{0}")]
    Request(String),
    /// The proof does not fit.
    #[error(
        "the proof is no signature of the new key over nonce and request id; ask for a nonce on this connection, then sign"
    )]
    Proof,
    /// A rule says no.
    #[error(transparent)]
    Denied(#[from] Denied),
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
            Self::Proof => "bad_proof",
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
    serial: Option<String>,
    #[serde(default)]
    hw: String,
    #[serde(default)]
    csr: Option<Blob>,
    #[serde(default)]
    proof: Option<Blob>,
    #[serde(default, deserialize_with = "secret")]
    token: Option<Secret>,
    #[serde(default)]
    voucher: Option<Blob>,
    #[serde(default)]
    voucher_sig: Option<Blob>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret))
}

/// On which way a request came.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way<'a> {
    /// Over a connection, with its number.
    Connection(&'a Asker, u64),
    /// As the body of an HTTP request.
    Http,
}

/// An answer to a request.
#[derive(Debug)]
pub(crate) struct Answered {
    /// A map.
    pub(crate) answer: Value,
    /// Whether the request was JSON; else it was CBOR.
    pub(crate) is_json: bool,
    /// The code of a refusal.
    pub(crate) refused: Option<&'static str>,
    nonce: Option<Vec<u8>>,
}

impl Answered {
    /// As it goes out, in the form of the request.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match (&self.nonce, self.is_json) {
            (Some(nonce), false) => cbor_nonce(self.answer["request_id"].as_str().unwrap_or_default(), nonce),
            _ => request::answer(&self.answer, self.is_json),
        }
    }
}

/// Gives first certificates.
pub(crate) struct Provisioning {
    data: PathBuf,
    registry: Arc<Registry>,
    audit: Arc<Audit>,
    clock: Clock,
    /// Nonces of another process, or of before a restart, are worth nothing.
    secret: hmac::Key,
    endpoints: Vec<String>,
}

impl Provisioning {
    pub(crate) fn new(
        data: &Path,
        registry: Arc<Registry>,
        audit: Arc<Audit>,
        clock: Clock,
        endpoints: Vec<String>,
    ) -> Self {
        let secret: [u8; 32] = rand::random();
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Self { data: data.to_owned(), registry, audit, clock, secret, endpoints }
    }

    /// What a connection has to sign. It follows from the connection and the time, so nothing is remembered.
    fn nonce(&self, connection: u64, now: Timestamp, ago: i64) -> hmac::Tag {
        let slot = now.0.div_euclid(NONCE) - ago;
        hmac::sign(&self.secret, &[connection.to_be_bytes(), slot.to_be_bytes()].concat())
    }

    /// Answers a request. Reads and writes files.
    pub(crate) fn answer(&self, way: Way<'_>, from: &str, payload: &[u8]) -> Answered {
        let is_json = request::is_json(payload);
        let request = read(payload);
        let id = request.as_ref().map(|request| request.request_id.clone()).unwrap_or_default();
        let serial = request.as_ref().ok().and_then(|request| request.serial.clone()).unwrap_or_default();
        let who = match (way, &request) {
            (Way::Connection(asker, _), _) => asker.to_string(),
            (Way::Http, Ok(request)) if request.voucher.is_some() => "voucher".to_owned(),
            (Way::Http, _) => "token".to_owned(),
        };
        let answered = request.and_then(|request| self.handle(way, request));
        let now = (self.clock)();
        let (mut refused, mut nonce) = (None, None);
        let mut answer = match answered {
            Ok(Answer::Nonce(drawn)) => {
                let answer = json!({ "nonce": BASE64.encode(&drawn) });
                nonce = Some(drawn);
                answer
            }
            Ok(Answer::Certificate(certificate, enrolled, new)) => {
                if new {
                    let detail = json!({
                        "serial": enrolled.serial, "key": enrolled.key, "hw": enrolled.hw, "origin": enrolled.origin,
                    });
                    let act = Act::done(who, "device.enrol", enrolled.device).detail(detail);
                    self.audit.note(now, act.from(from));
                }
                certificate
            }
            Err(failure) => {
                let subject: String = serial.chars().take(MAX_TEXT).collect();
                let act = Act::refused(who, "device.enrol", subject, failure.code()).from(from);
                self.audit.note(now, act);
                refused = Some(failure.code());
                json!({ "error": { "reason": failure.code(), "text": failure.to_string() } })
            }
        };
        answer["request_id"] = Value::String(id);
        Answered { answer, is_json, refused, nonce }
    }

    fn handle(&self, way: Way<'_>, request: Request) -> Result<Answer, Failure> {
        let now = (self.clock)();
        match (request.step.as_deref(), way) {
            (Some("nonce"), Way::Connection(_, connection)) => {
                return Ok(Answer::Nonce(self.nonce(connection, now, 0).as_ref().to_vec()));
            }
            (None | Some("enrol"), _) => {}
            (Some("nonce"), Way::Http) => {
                let text = "over HTTP there is no nonce: send serial and csr with a token or a voucher";
                return Err(Failure::Request(text.to_owned()));
            }
            (Some(other), _) => {
                return Err(Failure::Request(format!("step {other:?} is neither \"nonce\" nor \"enrol\"")));
            }
        }
        let missing = |what: &str| Failure::Request(format!("the request has no {what}"));
        let device = request.serial.ok_or_else(|| missing("serial"))?;
        let csr = request.csr.ok_or_else(|| missing("csr"))?.bytes("csr").map_err(Failure::Request)?;
        if request.hw.len() > MAX_TEXT {
            return Err(Failure::Request(format!("hw is longer than {MAX_TEXT} bytes")));
        }
        // Also whether whoever made the signing request has the key.
        let key = authority::request_key(&csr)?;
        let ask = |by| Ask { device: &device, key: &key, hw: &request.hw, by };
        let (asker, connection) = match way {
            Way::Connection(asker, connection) => (asker, connection),
            Way::Http => match (request.token, request.voucher) {
                (Some(token), None) => return self.enrol(&ask(By::Token(&token.0)), &csr, now),
                (None, Some(voucher)) => {
                    let text = voucher.bytes("voucher").map_err(Failure::Request)?;
                    let signature = request.voucher_sig.ok_or_else(|| missing("voucher_sig"))?;
                    let signature = signature.bytes("voucher_sig").map_err(Failure::Request)?;
                    let tenant = authority::open(&self.data.join("ca"))?.tenant().to_owned();
                    let shown = Shown { text: &text, signature: &signature, tenant: &tenant };
                    return self.enrol(&ask(By::Voucher(shown)), &csr, now);
                }
                (None, None) => return Err(missing("token, and no voucher")),
                (Some(_), Some(_)) => {
                    return Err(Failure::Request("the request has a token and a voucher: send one".to_owned()));
                }
            },
        };
        if request.token.is_some() || request.voucher.is_some() {
            let text = "a token or a voucher goes to POST /v1/provision, not over the connection of a certificate";
            return Err(Failure::Request(text.to_owned()));
        }
        let proof = request.proof.ok_or_else(|| missing("proof"))?.bytes("proof").map_err(Failure::Request)?;
        let proved = [0, 1].iter().any(|ago| {
            let signed = [self.nonce(connection, now, *ago).as_ref(), request.request_id.as_bytes()].concat();
            authority::request_signed(&csr, &signed, &proof)
        });
        if !proved {
            return Err(Failure::Proof);
        }
        let by = match asker {
            Asker::Claim(group) => By::Claim(group),
            Asker::Factory { name, device } => By::Factory { name, device },
        };
        self.enrol(&ask(by), &csr, now)
    }

    /// Decides and makes the certificate, as one step: of two requests at once the second sees what the first did.
    fn enrol(&self, ask: &Ask<'_>, csr: &[u8], now: Timestamp) -> Result<Answer, Failure> {
        let authority = authority::open(&self.data.join("ca"))?;
        let mut enrolled = None;
        let mut is_new = false;
        self.registry.change::<Failure>(now, |state| {
            let mut new = match enrol::decide(state, ask, now)? {
                Verdict::Again(known) => {
                    enrolled = Some(known);
                    return Ok(Vec::new());
                }
                Verdict::New(new) => new,
            };
            let id = DeviceId::new(&new.device).map_err(|e| Denied::BadSerial(e.to_string()))?;
            let subject = Subject::Device(id);
            let made = authority.issue(&subject, &[], &Key::Request(csr), DAYS, (now, rand::random()))?;
            new.serial.clone_from(&made.leaf.serial);
            // Before it counts: an answer that is asked for again must find it.
            let path = chain_file(&self.data, &new.serial);
            let dir = path.parent().unwrap_or(&self.data);
            std::fs::create_dir_all(dir).map_err(|source| AuthorityError::Io { path: dir.to_owned(), source })?;
            write_file(&path, &made.chain, 0o644)?;
            let certificate =
                Certificate { pending: true, ..Certificate::new(&made.leaf, subject.uri(authority.tenant())) };
            let facts = vec![Fact::Issued(certificate), Fact::Enrolled(new.clone())];
            enrolled = Some(new);
            is_new = true;
            Ok(facts)
        })?;
        let Some(enrolled) = enrolled else { return Err(Failure::Request("nothing was decided".to_owned())) };
        let path = chain_file(&self.data, &enrolled.serial);
        let chain = std::fs::read_to_string(&path).map_err(|source| AuthorityError::Io { path, source })?;
        let config = self.registry.look(|state| state.config(&enrolled.group).cloned());
        let answer = json!({
            "id": enrolled.device, "chain": chain, "bundle": authority.bundle()?, "endpoints": self.endpoints,
            "server_time": now.0, "group": enrolled.group, "labels": enrolled.labels, "config": config,
        });
        Ok(Answer::Certificate(answer, Box::new(enrolled), is_new))
    }
}

enum Answer {
    Nonce(Vec<u8>),
    Certificate(Value, Box<Enrolled>, bool),
}

fn read(payload: &[u8]) -> Result<Request, Failure> {
    let request: Request = request::read(payload).map_err(Failure::Request)?;
    request::named(&request.request_id).map_err(Failure::Request)?;
    Ok(request)
}

fn cbor_nonce(id: &str, nonce: &[u8]) -> Vec<u8> {
    let text = |text: &str| ciborium::Value::Text(text.to_owned());
    let map = vec![(text("request_id"), text(id)), (text("nonce"), ciborium::Value::Bytes(nonce.to_vec()))];
    let mut out = Vec::new();
    let _ = ciborium::into_writer(&ciborium::Value::Map(map), &mut out);
    out
}
