//! Requests for certificates as devices send them, and the answers: what first certificates (`provision`) and renewals
//! (`renewal`) have in common.
//!
//! A request is a map, in CBOR or, if it begins with `{`, in JSON; the answer has the same form. Bytes stand as such in CBOR,
//! in JSON as base64; a signing request also as PEM, in both.

use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest request.
const MAX_REQUEST: usize = 16 * 1024;
/// Longest text of what it names.
pub(crate) const MAX_TEXT: usize = 256;

/// Text or bytes, as the sender's format has them.
#[derive(Debug)]
pub(crate) enum Blob {
    /// Base64, PEM, or a JSON object.
    Text(String),
    /// As they are.
    Bytes(Vec<u8>),
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl serde::de::Visitor<'_> for Visit {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text or bytes")
            }

            fn visit_str<E>(self, text: &str) -> Result<Blob, E> {
                Ok(Blob::Text(text.to_owned()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob::Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl Blob {
    /// The bytes that are meant; of a signing request in PEM form, its DER form. `what`: its name, for the error.
    pub(crate) fn bytes(self, what: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Text(text) if text.starts_with("-----BEGIN") => {
                let request = CertificateSigningRequestDer::from_pem_slice(text.as_bytes());
                Ok(request.map_err(|e| format!("{what}: {e}"))?.to_vec())
            }
            // A statement that was signed as it stands.
            Self::Text(text) if text.starts_with('{') => Ok(text.into_bytes()),
            Self::Text(text) => BASE64.decode(text.trim().as_bytes()).map_err(|e| format!("{what} is not base64: {e}")),
        }
    }
}

/// Whether a payload is a request in JSON.
pub(crate) fn is_json(payload: &[u8]) -> bool {
    payload.first() == Some(&b'{')
}

/// Reads a request; the error says what is wrong.
pub(crate) fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    if payload.len() > MAX_REQUEST {
        return Err(format!("a request has at most {MAX_REQUEST} bytes"));
    }
    match is_json(payload) {
        true => serde_json::from_slice(payload).map_err(|e| format!("the request is no JSON: {e}")),
        false => ciborium::from_reader(payload).map_err(|e| format!("the request is no CBOR: {e}")),
    }
}

/// Checks the name that a request has for its answer.
pub(crate) fn named(request_id: &str) -> Result<(), String> {
    match request_id.len() {
        1..=MAX_TEXT => Ok(()),
        _ => Err(format!("request_id must have 1 to {MAX_TEXT} bytes")),
    }
}

/// An answer in the form of its request.
pub(crate) fn answer(value: &Value, is_json: bool) -> Vec<u8> {
    if is_json {
        return value.to_string().into_bytes();
    }
    let mut out = Vec::new();
    // Into memory, of a value that has no other kinds than CBOR has.
    let _ = ciborium::into_writer(value, &mut out);
    out
}

/// Where the chain of a certificate stands that was given to a device: an answer that is asked for again must find it.
pub(crate) fn chain_file(data: &Path, serial: &str) -> PathBuf {
    data.join("access/certificates").join(format!("{serial}.crt"))
}
