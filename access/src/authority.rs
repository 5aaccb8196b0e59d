//! The certificate authority: a root that signs nothing but issuing authorities, and an issuing one that signs the rest.
//!
//! Files in its folder, PEM: `root.crt`, `root.key` (to be kept elsewhere: nothing reads it but the making of an issuing
//! authority), `issuing.crt`, `issuing.key`, and `ca.crt`, the authorities that are trusted, which is what others are given.
//! `tenant` holds the name that stands in every certificate. Keys can be read by their owner only. While one root takes the place of
//! another there are two more folders; see `authority/roll.rs`.
//!
//! What was issued is not remembered here but in the [registry](crate::registry).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use device::time::{SECOND, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SanType, SerialNumber,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::leaf::{Leaf, Serial};
use crate::subject::{Subject, is_name};

pub mod roll;

/// A day in nanoseconds.
pub const DAY: i64 = 86_400 * SECOND;
/// Certificates are valid from so long before they were made, for devices whose clocks are behind.
pub const BACKDATE: i64 = DAY;
/// Days that a certificate of a device, a user or a server may be valid at most.
pub const MAX_DAYS: u32 = 365;
/// Days that a claim certificate may be valid at most.
pub const MAX_CLAIM_DAYS: u32 = 90;
const ROOT_DAYS: i64 = 20 * 365;
const ISSUING_DAYS: i64 = 5 * 365;
/// A list of revocations says that the next one comes within so many days; ours come with each revocation.
const CRL_DAYS: i64 = 30;

/// Why the authority did not do what it was asked to.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// There is none.
    #[error("there is no certificate authority in {0}; make one with `weir ca init`")]
    Absent(PathBuf),
    /// There is one.
    #[error("there is a certificate authority in {0} already; its certificates would be worth nothing with another")]
    Present(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {message}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A lifetime that is not given out.
    #[error("a certificate for a {what} is valid for 1 to {most} days, not {days}")]
    Days {
        /// What it is for.
        what: &'static str,
        /// How many were asked for.
        days: u32,
        /// How many there are at most.
        most: u32,
    },
    /// The issuing authority itself ends.
    #[error("the issuing authority has ended; make a new one with `weir ca renew --issuing`")]
    Ended,
    /// A signing request that cannot be used.
    #[error("the certificate signing request: {0}")]
    Request(String),
    /// A name that cannot stand in a certificate.
    #[error("{0:?} cannot name a tenant: use 1 to 64 letters, digits, `.`, `_` or `-`")]
    Tenant(String),
    /// A step of a roll whose time has not come.
    #[error("a root cannot be rolled so: {0}")]
    Roll(&'static str),
    /// Cryptography failed.
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The key that a certificate is made for.
#[derive(Debug)]
pub enum Key<'a> {
    /// A new one, which is handed out with the certificate.
    New,
    /// That of a signing request (PKCS #10, DER), which the asker keeps.
    Request(&'a [u8]),
}

/// A certificate that was made, and is not yet in the registry.
#[derive(Debug)]
pub struct Made {
    /// What it says.
    pub leaf: Leaf,
    /// The certificate and those that lead to the root, PEM.
    pub chain: String,
    /// The private key, PEM, if it was made here.
    pub key: Option<Secret>,
}

/// A text that no `{:?}` shows.
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// An authority that can issue.
pub struct Authority {
    dir: PathBuf,
    tenant: String,
    issuer: Issuer<'static, KeyPair>,
    /// The issuing certificate, PEM.
    issuing: String,
    /// Its subject.
    name: String,
    not_after: Timestamp,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir).field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Whether there is an authority in this folder.
pub fn exists(dir: &Path) -> bool {
    dir.join("issuing.crt").exists()
}

/// Makes an authority in this folder: root, issuing authority, and the file of those to trust. `draw` gives random bytes.
pub fn init(
    dir: &Path,
    tenant: &str,
    now: Timestamp,
    draw: impl Fn() -> [u8; 16],
) -> Result<Authority, AuthorityError> {
    if exists(dir) {
        return Err(AuthorityError::Present(dir.to_owned()));
    }
    if !is_name(tenant) {
        return Err(AuthorityError::Tenant(tenant.to_owned()));
    }
    std::fs::create_dir_all(dir).map_err(|source| AuthorityError::Io { path: dir.to_owned(), source })?;
    new_root(dir, tenant, now, draw())?;
    write(dir, "ca.crt", &read(dir, "root.crt")?, 0o644)?;
    write(dir, "tenant", tenant, 0o644)?;
    issuing(dir, tenant, now, draw())?;
    open(dir)
}

fn new_root(dir: &Path, tenant: &str, now: Timestamp, serial: [u8; 16]) -> Result<(), AuthorityError> {
    let params = ca_params(&name("root", tenant, serial), now, ROOT_DAYS, BasicConstraints::Constrained(1), serial)?;
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?;
    write(dir, "root.key", &key.serialize_pem(), 0o600)?;
    write(dir, "root.crt", &root.pem(), 0o644)
}

/// Makes a new issuing authority, signed by the root, whose key must be there. Certificates of the last one stay valid.
pub fn renew_issuing(dir: &Path, now: Timestamp, draw: impl Fn() -> [u8; 16]) -> Result<Authority, AuthorityError> {
    if !exists(dir) {
        return Err(AuthorityError::Absent(dir.to_owned()));
    }
    if roll::is_under_way(dir) {
        return Err(AuthorityError::Roll("finish it before you make another issuing authority, or cancel it"));
    }
    let tenant = read(dir, "tenant")?;
    issuing(dir, tenant.trim(), now, draw())?;
    open(dir)
}

/// The file that says that an authority exists comes last: after a crash before it, `init` begins again.
fn issuing(dir: &Path, tenant: &str, now: Timestamp, serial: [u8; 16]) -> Result<(), AuthorityError> {
    let root = Issuer::from_ca_cert_pem(&read(dir, "root.crt")?, key_pair(dir, "root.key")?)?;
    let constraints = BasicConstraints::Constrained(0);
    let params = ca_params(&name("issuing", tenant, serial), now, ISSUING_DAYS, constraints, serial)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &root)?;
    // Both at once would need a folder; a key without its certificate is noticed by `open`.
    write(dir, "issuing.key", &key.serialize_pem(), 0o600)?;
    write(dir, "issuing.crt", &certificate.pem(), 0o644)
}

/// Opens the authority in this folder.
pub fn open(dir: &Path) -> Result<Authority, AuthorityError> {
    open_in(dir, dir)
}

/// Opens the authority in a folder, with the keys in that one.
fn open_in(dir: &Path, keys: &Path) -> Result<Authority, AuthorityError> {
    if !exists(keys) {
        return Err(AuthorityError::Absent(dir.to_owned()));
    }
    let issuing = read(keys, "issuing.crt")?;
    let path = keys.join("issuing.crt");
    let wrong = |message: String| AuthorityError::File { path: path.clone(), message };
    let der = CertificateDer::from_pem_slice(issuing.as_bytes()).map_err(|e| wrong(e.to_string()))?;
    let leaf = Leaf::read(&der).map_err(|e| wrong(e.to_string()))?;
    let fits = |key: &KeyPair| {
        let info = key.subject_public_key_info();
        crate::leaf::hex(ring::digest::digest(&ring::digest::SHA256, &info).as_ref()) == leaf.key
    };
    let mut key = key_pair(keys, "issuing.key")?;
    if !fits(&key) {
        // It may be on its way.
        let next = key_pair(&roll::next(keys), "issuing.key").ok().filter(fits);
        let Some(next) = next else {
            // Both were changed after the first was read.
            if read(keys, "issuing.crt")? != issuing {
                return open_in(dir, keys);
            }
            return Err(wrong("it is not the certificate of issuing.key; run `weir ca renew --issuing`".to_owned()));
        };
        key = next;
    }
    let issuer = Issuer::from_ca_cert_der(&der, key)?;
    let tenant = read(dir, "tenant")?.trim().to_owned();
    let name = leaf.subject;
    Ok(Authority { dir: dir.to_owned(), tenant, issuer, issuing, name, not_after: leaf.not_after })
}

impl Authority {
    /// The name that stands in every certificate.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The authorities to trust, PEM.
    pub fn bundle(&self) -> Result<String, AuthorityError> {
        read(&self.dir, "ca.crt")
    }

    /// The issuing certificate, PEM.
    pub fn issuing(&self) -> &str {
        &self.issuing
    }

    /// Its name, as it stands in certificates that it has signed ([`Leaf::issuer`]).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificate of the former issuing authority, PEM, while a root is rolled.
    pub fn former(&self) -> Result<Option<String>, AuthorityError> {
        roll::former(&self.dir)
    }

    /// Until when certificates can be issued.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Makes a certificate, valid for `days` from `now` on, or as long as the issuing authority is. `names`: hosts and
    /// addresses of a server. `random`: what its number is made of.
    pub fn issue(
        &self,
        subject: &Subject,
        names: &[String],
        key: &Key<'_>,
        days: u32,
        (now, random): (Timestamp, [u8; 16]),
    ) -> Result<Made, AuthorityError> {
        let (what, most) = match subject {
            Subject::Device(_) => ("device", MAX_DAYS),
            Subject::Claim(_) => ("claim", MAX_CLAIM_DAYS),
            Subject::User(_) => ("user", MAX_DAYS),
            Subject::Server => ("server", MAX_DAYS),
        };
        if days == 0 || days > most {
            return Err(AuthorityError::Days { what, days, most });
        }
        if now >= self.not_after {
            return Err(AuthorityError::Ended);
        }
        let mut params = CertificateParams::new(names.to_vec())?;
        params.not_before = offset(now.plus(-BACKDATE))?;
        params.not_after = offset(now.plus(i64::from(days) * DAY).min(self.not_after))?;
        params.serial_number = Some(number(random));
        // A common name is for people; what counts is the URI. It has 64 characters at most (RFC 5280, appendix A.1).
        let name: String = subject.name().chars().take(64).collect();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::URI(subject.uri(&self.tenant).try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match subject {
            Subject::Server => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let (certificate, key) = match key {
            Key::New => {
                let key = KeyPair::generate()?;
                (params.signed_by(&key, &self.issuer)?, Some(Secret(key.serialize_pem())))
            }
            Key::Request(der) => (params.signed_by(&requested_key(der)?, &self.issuer)?, None),
        };
        let wrong = |e: crate::leaf::NoCertificate| AuthorityError::Request(e.to_string());
        let leaf = Leaf::read(certificate.der()).map_err(wrong)?;
        Ok(Made { leaf, chain: format!("{}{}", certificate.pem(), self.issuing), key })
    }

    /// The list of revoked certificates (RFC 5280, section 5), each with the time of its revocation.
    pub fn revocations(
        &self,
        revoked: impl Iterator<Item = (Serial, Timestamp)>,
        now: Timestamp,
    ) -> Result<rcgen::CertificateRevocationList, AuthorityError> {
        let revoked_certs = revoked.map(|(serial, at)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(unhex(&serial)),
                revocation_time: offset(at)?,
                reason_code: None,
                invalidity_date: None,
            })
        });
        let list = CertificateRevocationListParams {
            this_update: offset(now.plus(-BACKDATE))?,
            next_update: offset(now.plus(CRL_DAYS * DAY))?,
            crl_number: SerialNumber::from(u64::try_from(now.0).unwrap_or(0)),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_, AuthorityError>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?)
    }
}

/// The public key of a signing request whose signature is right, so that the asker has the private one.
fn requested_key(der: &[u8]) -> Result<rcgen::PublicKey, AuthorityError> {
    let request = CertificateSigningRequestParams::from_der(&der.into());
    let request = request.map_err(|e| AuthorityError::Request(e.to_string()))?;
    let algorithm = request.public_key.algorithm();
    if *algorithm != rcgen::PKCS_ECDSA_P256_SHA256 && *algorithm != rcgen::PKCS_ED25519 {
        return Err(AuthorityError::Request("its key must be ECDSA P-256 or Ed25519".to_owned()));
    }
    Ok(request.public_key)
}

/// SHA-256 of the public key of a signing request, hexadecimal, as [`Leaf::key`] has it.
pub fn request_key(der: &[u8]) -> Result<String, AuthorityError> {
    let info = requested_key(der)?.subject_public_key_info();
    Ok(crate::leaf::hex(ring::digest::digest(&ring::digest::SHA256, &info).as_ref()))
}

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER), hexadecimal, as [`Leaf::key`] has it.
pub fn public_key_hash(info: &[u8]) -> Result<String, AuthorityError> {
    let wrong = |e: &dyn std::fmt::Display| AuthorityError::Request(format!("this is no public key: {e}"));
    let (rest, _) = SubjectPublicKeyInfo::from_der(info).map_err(|e| wrong(&e))?;
    if !rest.is_empty() {
        return Err(wrong(&"something follows it"));
    }
    Ok(crate::leaf::hex(ring::digest::digest(&ring::digest::SHA256, info).as_ref()))
}

/// Whether the key of a signing request has signed this message (ECDSA P-256 with SHA-256 in ASN.1 form, or Ed25519).
pub fn request_signed(der: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = requested_key(der) else { return false };
    let algorithm: &dyn VerificationAlgorithm = match *key.algorithm() == rcgen::PKCS_ED25519 {
        true => &ED25519,
        false => &ECDSA_P256_SHA256_ASN1,
    };
    UnparsedPublicKey::new(algorithm, key.der_bytes()).verify(message, signature).is_ok()
}

/// Two authorities never have the same name: there are readers that look for the issuer of a certificate by nothing else.
fn name(what: &str, tenant: &str, serial: [u8; 16]) -> String {
    let [a, b, c, d, ..] = serial;
    format!("Weir {what} {}, {tenant}", crate::leaf::hex(&[a, b, c, d]))
}

fn ca_params(
    name: &str,
    now: Timestamp,
    days: i64,
    constraints: BasicConstraints,
    serial: [u8; 16],
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.not_before = offset(now.plus(-BACKDATE))?;
    params.not_after = offset(now.plus(days * DAY))?;
    params.serial_number = Some(number(serial));
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 random bits behind a 1, so that the number is positive and has a fixed length.
fn number(random: [u8; 16]) -> SerialNumber {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&random);
    SerialNumber::from(bytes)
}

fn unhex(text: &str) -> Vec<u8> {
    let text = if text.len().is_multiple_of(2) { text.to_owned() } else { format!("0{text}") };
    (0..text.len() / 2).filter_map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect()
}

fn offset(time: Timestamp) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(time.0.div_euclid(SECOND)).map_err(|_| AuthorityError::Make(rcgen::Error::Time))
}

fn key_pair(dir: &Path, name: &str) -> Result<KeyPair, AuthorityError> {
    let text = read(dir, name)?;
    // The error of a key must not show what stands in the file.
    KeyPair::from_pem(&text)
        .map_err(|_| AuthorityError::File { path: dir.join(name), message: "is no private key".to_owned() })
}

fn read(dir: &Path, name: &str) -> Result<String, AuthorityError> {
    let path = dir.join(name);
    std::fs::read_to_string(&path).map_err(|source| AuthorityError::Io { path, source })
}

/// Writes a file of the authority whole or not at all.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), AuthorityError> {
    write_file(&dir.join(name), text, mode)
}

/// Writes a file whole or not at all, with these permissions from the beginning.
pub fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let error = |source| AuthorityError::Io { path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // One that a crash has left may have other permissions.
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(error)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(error)?;
    std::fs::rename(&new, path).map_err(error)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(error)
}
