//! Those who vouch for devices that nobody here has seen: factories, by the certificates that they put into devices, and
//! holders of a voucher key, by statements that they sign.

use device::id::DeviceId;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::leaf::Leaf;

/// Factories, and voucher keys, at most: a certificate or a voucher is held against each of them.
pub const MAX_ORIGINS: usize = 64;

/// Where in a factory's certificate the serial number of a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IdFrom {
    /// The common name of its subject.
    Cn,
    /// The attribute serialNumber of its subject (IEEE 802.1AR).
    SerialNumber,
    /// Its URI among the alternative names, as a whole.
    Uri,
}

impl IdFrom {
    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cn => "cn",
            Self::SerialNumber => "serialNumber",
            Self::Uri => "uri",
        }
    }
}

/// A factory whose devices have certificates of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factory {
    /// Its name, which stands in the topic of requests.
    pub name: String,
    /// Its authority: certificates, PEM.
    pub ca: String,
    /// The group of its devices.
    pub group: String,
    /// Where the serial number of a device stands.
    pub id_from: IdFrom,
    /// Serial numbers of devices: `*` stands for any characters. Those that are expected in the group may enrol besides; nobody
    /// else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// How many devices may enrol at most, over all time; none: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

impl Factory {
    /// The serial number of the device that has this certificate; `None`: there is none, or more than one, or it cannot name
    /// a device.
    pub fn device(&self, leaf: &Leaf) -> Option<String> {
        let all = match self.id_from {
            IdFrom::Cn => &leaf.common_names,
            IdFrom::SerialNumber => &leaf.serial_numbers,
            IdFrom::Uri => &leaf.uris,
        };
        let [one] = all.as_slice() else { return None };
        DeviceId::new(one).ok().filter(|id| *id != DeviceId::nobody()).map(|id| id.to_string())
    }
}

/// What is wrong with the certificates (PEM) of an authority of others; `None`: nothing.
pub fn no_authority(pem: &str) -> Option<String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = match all {
        Ok(all) if all.is_empty() => return Some("there is no certificate in PEM form in it".to_owned()),
        Ok(all) => all,
        Err(error) => return Some(error.to_string()),
    };
    all.iter().find_map(|der| match X509Certificate::from_der(der) {
        Err(error) => Some(format!("this is no X.509 certificate: {error}")),
        Ok((_, certificate)) if !certificate.is_ca() => {
            let name = certificate.subject().to_string();
            Some(format!("the certificate of {name} is not one of an authority (its basic constraints do not say CA)"))
        }
        Ok(_) => None,
    })
}

/// Somebody who signs vouchers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoucherKey {
    /// A name for it.
    pub name: String,
    /// The public key (SubjectPublicKeyInfo, DER), hexadecimal.
    pub key: String,
    /// The group of devices that it vouches for.
    pub group: String,
}

/// What a voucher says: the device with this serial number has this key, and belongs to this owner.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
// What else it says could be a condition, and we would not keep it.
#[serde(deny_unknown_fields)]
pub struct Voucher {
    /// The serial number.
    pub serial: String,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER), hexadecimal.
    pub key: String,
    /// The tenant.
    pub owner: String,
}

/// A voucher as it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    /// The statement: a JSON object.
    pub text: &'a [u8],
    /// The signature over it.
    pub signature: &'a [u8],
    /// Who we are.
    pub tenant: &'a str,
}

/// Whether the key (SubjectPublicKeyInfo, DER) has signed this message: ECDSA P-256 with SHA-256 in ASN.1 form, or Ed25519.
pub fn signed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Some((algorithm, key)) = verifier(key) else { return false };
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

/// Whether this (SubjectPublicKeyInfo, DER) is a key that can sign vouchers.
pub fn can_sign(key: &[u8]) -> bool {
    verifier(key).is_some()
}

fn verifier(key: &[u8]) -> Option<(&'static dyn VerificationAlgorithm, Vec<u8>)> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(key).ok()?;
    let named = info.algorithm.algorithm.to_id_string();
    let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
    let algorithm: &'static dyn VerificationAlgorithm = match (named.as_str(), curve.as_deref()) {
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => &ECDSA_P256_SHA256_ASN1,
        ("1.3.101.112", None) => &ED25519,
        _ => return None,
    };
    rest.is_empty().then(|| (algorithm, info.subject_public_key.data.to_vec()))
}
