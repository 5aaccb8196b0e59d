//! What a certificate says, of all that it may say, that matters here.

use device::time::Timestamp;
use ring::digest::{SHA256, digest};
use thiserror::Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_SERIALNUMBER};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate's number, as lower-case hexadecimal digits without leading zeros.
pub type Serial = String;

/// What is read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its number.
    pub serial: Serial,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), hexadecimal.
    pub key: String,
    /// The URIs among its alternative names.
    pub uris: Vec<String>,
    /// Its subject: the distinguished name.
    pub subject: String,
    /// The common names of its subject.
    pub common_names: Vec<String>,
    /// The attributes serialNumber of its subject.
    pub serial_numbers: Vec<String>,
    /// Who has signed it: the distinguished name.
    pub issuer: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// The bytes are no certificate.
#[derive(Debug, Error)]
#[error("this is no X.509 certificate: {0}")]
pub struct NoCertificate(String);

impl Leaf {
    /// Reads a certificate in DER form. Nothing is verified.
    pub fn read(der: &[u8]) -> Result<Self, NoCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| NoCertificate(e.to_string()))?;
        let mut uris = Vec::new();
        for extension in certificate.extensions() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some((*uri).to_owned()),
                    _ => None,
                }));
            }
        }
        let subject = certificate.subject();
        let texts = |oid| subject.iter_by_oid(oid).filter_map(|value| value.as_str().ok()).map(str::to_owned).collect();
        let time = |time: x509_parser::time::ASN1Time| Timestamp(time.timestamp().saturating_mul(device::time::SECOND));
        Ok(Self {
            serial: serial(certificate.raw_serial()),
            key: hex(digest(&SHA256, certificate.public_key().raw).as_ref()),
            uris,
            subject: subject.to_string(),
            common_names: texts(&OID_X509_COMMON_NAME),
            serial_numbers: texts(&OID_X509_SERIALNUMBER),
            issuer: certificate.issuer().to_string(),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
        })
    }
}

/// A number in the form that is used everywhere here.
pub fn serial(bytes: &[u8]) -> Serial {
    hex(bytes).trim_start_matches('0').to_owned()
}

/// The bytes of a text of hexadecimal digits; none: it has other characters, or half a byte.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| text.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
