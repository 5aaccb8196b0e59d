//! Keys, signing requests, certificates, and the messages about them (JSON).

use data_encoding::BASE64;
use device::id::DeviceId;
use device::time::{SECOND, Timestamp};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Answer, Event, Held, Trust};

/// Why a key or a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPaper(String);

fn bad(error: impl std::fmt::Display) -> BadPaper {
    BadPaper(error.to_string())
}

/// A new key, PEM.
pub fn new_key() -> Result<String, BadPaper> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bad)?.serialize_pem())
}

fn key(pem: &str) -> Result<KeyPair, BadPaper> {
    // The error of a key must not show what stands in the file.
    KeyPair::from_pem(pem).map_err(|_| BadPaper("is no private key".to_owned()))
}

/// A signing request for this key, PEM. What names the device is the connection that it is sent over, or its serial number.
pub fn request(key_pem: &str) -> Result<String, BadPaper> {
    CertificateParams::default().serialize_request(&key(key_pem)?).and_then(|request| request.pem()).map_err(bad)
}

/// When a chain's own certificate (its first) begins and ends.
pub fn held(chain_pem: &str) -> Result<Held, BadPaper> {
    leaf(chain_pem, |leaf| {
        let time = |time: x509_parser::time::ASN1Time| Timestamp(time.timestamp().saturating_mul(SECOND));
        Ok(Held { not_before: time(leaf.validity().not_before), not_after: time(leaf.validity().not_after) })
    })
}

/// Whether a chain's own certificate is for this key.
pub fn fits(chain_pem: &str, key_pem: &str) -> Result<(), BadPaper> {
    let key = key(key_pem)?.subject_public_key_info();
    leaf(chain_pem, |leaf| match leaf.public_key().raw == key {
        true => Ok(()),
        false => Err(BadPaper("the certificate is for another key".to_owned())),
    })
}

/// The group that a claim certificate is for.
pub fn group(chain_pem: &str) -> Result<String, BadPaper> {
    leaf(chain_pem, |leaf| {
        for extension in leaf.extensions() {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
            for name in &names.general_names {
                // `urn:claim:{tenant}:{group}`
                if let GeneralName::URI(uri) = name
                    && let Some((_, group)) = uri.strip_prefix("urn:claim:").and_then(|rest| rest.split_once(':'))
                {
                    return Ok(group.to_owned());
                }
            }
        }
        Err(BadPaper("it is not the claim certificate of a group".to_owned()))
    })
}

fn leaf<T>(chain_pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> Result<T, BadPaper>) -> Result<T, BadPaper> {
    let der = CertificateDer::from_pem_slice(chain_pem.as_bytes()).map_err(bad)?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(bad)?;
    read(&certificate)
}

/// Asks for what is to be signed.
pub fn ask_nonce(request_id: &str) -> Vec<u8> {
    json!({ "request_id": request_id, "step": "nonce" }).to_string().into_bytes()
}

/// Asks for a first certificate for a key, which signs the nonce and the request's own name.
pub fn ask_first(
    request_id: &str,
    device: &DeviceId,
    hardware: &str,
    key_pem: &str,
    nonce: &[u8],
) -> Result<Vec<u8>, BadPaper> {
    let proof = key(key_pem)?.sign(&[nonce, request_id.as_bytes()].concat()).map_err(bad)?;
    let request = json!({
        "request_id": request_id, "serial": device.as_str(), "hw": hardware, "csr": request(key_pem)?,
        "proof": BASE64.encode(&proof),
    });
    Ok(request.to_string().into_bytes())
}

/// Asks for the next certificate, for a key.
pub fn ask_next(request_id: &str, key_pem: &str) -> Result<Vec<u8>, BadPaper> {
    Ok(json!({ "request_id": request_id, "csr": request(key_pem)? }).to_string().into_bytes())
}

/// Says that whom to trust, by this name of it, is kept.
pub fn say_trust(request_id: &str, bundle_id: &str) -> Vec<u8> {
    json!({ "request_id": request_id, "step": "trust", "bundle_id": bundle_id }).to_string().into_bytes()
}

/// Reads what the engine says unasked; `None`: it is something else.
pub fn unasked(payload: &[u8]) -> Option<Event> {
    let value: Value = serde_json::from_slice(payload).ok()?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    match value["cert_action"].as_str()? {
        "renew" => Some(Event::Due),
        "trust" => Some(Event::Trust(Trust { bundle: text("bundle")?, id: text("bundle_id")? })),
        _ => None,
    }
}

/// Whether these are certificates, and an authority's among them.
pub fn authorities(bundle_pem: &str) -> Result<(), BadPaper> {
    let mut found = false;
    for der in CertificateDer::pem_slice_iter(bundle_pem.as_bytes()) {
        let der = der.map_err(bad)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(bad)?;
        // An operator may have added the engine's own, signed by itself.
        found |= certificate.is_ca();
    }
    if found { Ok(()) } else { Err(BadPaper("holds no certificate of an authority in PEM form".to_owned())) }
}

/// Reads an answer to the request of this name; `None`: it is to another one, or cannot be read.
pub fn answer(request_id: &str, payload: &[u8]) -> Option<Answer> {
    let value: Value = serde_json::from_slice(payload).ok()?;
    if value["request_id"].as_str() != Some(request_id) {
        return None;
    }
    if let Some(reason) = value["error"]["reason"].as_str() {
        return Some(Answer::Refused(reason.to_owned()));
    }
    if let Some(nonce) = value["nonce"].as_str() {
        return BASE64.decode(nonce.as_bytes()).ok().map(Answer::Nonce);
    }
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Some(Answer::Given { chain: text("chain")?, bundle: text("bundle")? })
}
