//! What is known of certificates and of those who hold them: facts in a journal, and the state that follows from them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use device::id::DeviceId;
use device::time::{SECOND, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::journal::JournalError;
use crate::leaf::{Leaf, Serial};
use crate::origin::{Factory, VoucherKey};
use crate::roll::{Roll, Rolling};
pub use kept::Registry;

/// A certificate that was handed out over the network must be used within this time, or it is worth nothing.
pub const PROVE_WITHIN: i64 = 3600 * SECOND;
/// A certificate that was replaced stays valid for so long after its successor was first used.
pub const OVERLAP: i64 = 86_400 * SECOND;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fact {
    /// A certificate was made.
    Issued(Certificate),
    /// The holder of a certificate has used it for the first time.
    Proven {
        /// Which.
        serial: Serial,
    },
    /// A certificate is not to be accepted any more.
    Revoked {
        /// Which.
        serial: Serial,
        /// Why.
        reason: String,
    },
    /// A device is not to be let in, whatever it shows.
    Barred {
        /// Which.
        device: String,
        /// Why.
        reason: String,
    },
    /// A device that was barred may come in again.
    Admitted {
        /// Which.
        device: String,
    },
    /// A device speaks for others from now on: all of these, and no more.
    Gateway {
        /// Which.
        device: String,
        /// For whom.
        children: BTreeSet<String>,
    },
    /// Devices of a group may enrol with its claim certificate from now on, by this rule and no other.
    Claim(ClaimRule),
    /// They may not any more.
    Unclaimed {
        /// Which group.
        group: String,
    },
    /// What devices of a group are told as their first configuration, however they enrol; none: what its claim says.
    Config {
        /// Which group.
        group: String,
        /// A JSON object.
        config: Option<serde_json::Value>,
    },
    /// Devices of a factory may enrol from now on, by this rule and no other.
    Factory(Factory),
    /// They may not any more.
    FactoryGone {
        /// Its name.
        name: String,
    },
    /// Devices that somebody vouches for may enrol from now on.
    VoucherKey(VoucherKey),
    /// They may not any more.
    VoucherKeyGone {
        /// Its name.
        name: String,
    },
    /// A device is expected: it may enrol.
    Expected(Expected),
    /// A device has been given a certificate.
    Enrolled(Enrolled),
    /// It was told that a certificate, the last of its device, ends within so many days.
    Told {
        /// Which.
        serial: Serial,
        /// Days.
        days: u32,
    },
    /// One root takes the place of another, up to here.
    Roll(Roll),
    /// A device has said whom it trusts from now on.
    Trusts {
        /// Which.
        device: String,
        /// The bundle, as [`Roll::bundle`] has it.
        bundle: String,
    },
    /// A device that is enrolled may enrol once more, with another key.
    Reopened {
        /// Which.
        device: String,
        /// Until when.
        #[serde(with = "nanos")]
        until: Timestamp,
    },
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Its number.
    pub serial: Serial,
    /// Whose it is: the URI in it.
    pub subject: String,
    /// SHA-256 of its public key, hexadecimal.
    pub key: String,
    /// From when it is valid.
    #[serde(with = "nanos")]
    pub not_before: Timestamp,
    /// Until when it is valid.
    #[serde(with = "nanos")]
    pub not_after: Timestamp,
    /// Whether it counts only once its holder has used it, within [`PROVE_WITHIN`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// The certificate that it takes the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Serial>,
    /// The name of the authority that has signed it; none: one of before such names were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// Who may enrol with the claim certificate of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRule {
    /// The group.
    pub group: String,
    /// Serial numbers of devices: `*` stands for any characters. Those that are expected in this group may enrol besides; nobody
    /// else.
    pub allow: Vec<String>,
    /// How many devices may enrol with it at most, over all time.
    pub quota: u64,
    /// What each of them is told as its first configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// Labels of each of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A device that is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Its serial number, which becomes its id.
    pub device: String,
    /// Its group.
    pub group: String,
    /// Its hardware.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hw: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// SHA-256 of the public key that it has, if that is known; it may enrol with no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// SHA-256 of a token that it may enrol with once, and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<(String, i64)>,
}

/// A device that was given a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// Its id.
    pub device: String,
    /// SHA-256 of its public key.
    pub key: String,
    /// The number of the certificate.
    pub serial: Serial,
    /// Its group.
    pub group: String,
    /// The group whose claim let it in; none: it had something of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Who vouched for it; none: nobody, it had the claim or a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Its hardware, as it said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hw: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Who vouched for a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The factory of this name.
    Factory(String),
    /// The voucher key of this name.
    Voucher(String),
}

impl Certificate {
    /// The record of a certificate for this subject.
    pub fn new(leaf: &Leaf, subject: String) -> Self {
        let Leaf { serial, key, not_before, not_after, issuer, .. } = leaf.clone();
        let issuer = Some(issuer);
        Self { serial, subject, key, not_before, not_after, pending: false, replaces: None, issuer }
    }
}

/// A certificate with what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it was issued.
    pub certificate: Certificate,
    /// When it was issued.
    pub issued: Timestamp,
    /// When its holder first used it.
    pub proven: Option<Timestamp>,
    /// When it was revoked, and why.
    pub revoked: Option<(Timestamp, String)>,
    /// From when on its successor has taken its place.
    pub ends: Option<Timestamp>,
    /// Within how many days of its end that was told last.
    pub told: Option<u32>,
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It was not issued here.
    #[error("this certificate was not issued here")]
    Unknown,
    /// It was revoked.
    #[error("this certificate is revoked: {0}")]
    Revoked(String),
    /// Another has taken its place.
    #[error("this certificate was replaced by a newer one")]
    Replaced,
    /// It was not used in time.
    #[error("this certificate was not used within an hour after it was issued; ask for another")]
    Lapsed,
    /// Its device is barred.
    #[error("this device is barred: {0}")]
    Barred(String),
}

impl Refusal {
    /// A word for logs and counters.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown_certificate",
            Self::Revoked(_) => "revoked",
            Self::Replaced => "replaced",
            Self::Lapsed => "lapsed",
            Self::Barred(_) => "barred",
        }
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub struct State {
    certificates: HashMap<Serial, Entry>,
    by_subject: BTreeMap<String, Vec<Serial>>,
    barred: BTreeMap<String, String>,
    gateways: BTreeMap<String, BTreeSet<String>>,
    claims: BTreeMap<String, ClaimRule>,
    expected: BTreeMap<String, Expected>,
    enrolled: BTreeMap<String, (Enrolled, Timestamp)>,
    factories: BTreeMap<String, Factory>,
    voucher_keys: BTreeMap<String, VoucherKey>,
    /// What devices of a group are told first: said for the group, and by its claim, also one that is closed.
    configs: [BTreeMap<String, serde_json::Value>; 2],
    reopened: BTreeMap<String, Timestamp>,
    roll: Rolling,
    /// Devices that each group's claim has let in.
    used: BTreeMap<String, u64>,
    /// Devices that somebody has vouched for.
    vouched: BTreeMap<Origin, u64>,
    /// Facts up to now, and how many of them matter to a TLS handshake.
    facts: (u64, u64),
}

impl State {
    /// Takes in what happened at a time.
    pub fn apply(&mut self, at: Timestamp, fact: &Fact) {
        self.facts.0 += 1;
        let is_for_tls =
            matches!(fact, Fact::Revoked { .. } | Fact::Factory(_) | Fact::FactoryGone { .. } | Fact::Roll(_));
        self.facts.1 += u64::from(is_for_tls);
        match fact {
            Fact::Issued(certificate) => {
                let serial = certificate.serial.clone();
                self.by_subject.entry(certificate.subject.clone()).or_default().push(serial.clone());
                let certificate = certificate.clone();
                self.certificates.insert(
                    serial,
                    Entry { certificate, issued: at, proven: None, revoked: None, ends: None, told: None },
                );
            }
            Fact::Proven { serial } => {
                let Some(entry) = self.certificates.get_mut(serial) else { return };
                entry.proven.get_or_insert(at);
                let replaced = entry.certificate.replaces.clone();
                if let Some(old) = replaced.and_then(|old| self.certificates.get_mut(&old)) {
                    old.ends.get_or_insert(at.plus(OVERLAP));
                }
            }
            Fact::Revoked { serial, reason } => {
                if let Some(entry) = self.certificates.get_mut(serial) {
                    entry.revoked.get_or_insert_with(|| (at, reason.clone()));
                }
            }
            Fact::Barred { device, reason } => {
                self.barred.entry(device.clone()).or_insert_with(|| reason.clone());
            }
            Fact::Admitted { device } => {
                self.barred.remove(device);
            }
            Fact::Gateway { device, children } => {
                if children.is_empty() {
                    self.gateways.remove(device);
                } else {
                    self.gateways.insert(device.clone(), children.clone());
                }
            }
            Fact::Claim(rule) => {
                let [_, configs] = &mut self.configs;
                set(configs, &rule.group, rule.config.as_ref());
                self.claims.insert(rule.group.clone(), rule.clone());
            }
            Fact::Unclaimed { group } => {
                self.claims.remove(group);
            }
            Fact::Config { group, config } => {
                let [configs, _] = &mut self.configs;
                set(configs, group, config.as_ref());
            }
            Fact::Factory(factory) => {
                self.factories.insert(factory.name.clone(), factory.clone());
            }
            Fact::FactoryGone { name } => {
                self.factories.remove(name);
            }
            Fact::VoucherKey(key) => {
                self.voucher_keys.insert(key.name.clone(), key.clone());
            }
            Fact::VoucherKeyGone { name } => {
                self.voucher_keys.remove(name);
            }
            Fact::Expected(expected) => {
                self.expected.insert(expected.device.clone(), expected.clone());
            }
            Fact::Enrolled(enrolled) => {
                self.reopened.remove(&enrolled.device);
                if let Some(group) = &enrolled.claim {
                    *self.used.entry(group.clone()).or_default() += 1;
                }
                if let Some(origin) = &enrolled.origin {
                    *self.vouched.entry(origin.clone()).or_default() += 1;
                }
                // Its token has been used.
                if let Some(expected) = self.expected.get_mut(&enrolled.device) {
                    expected.token = None;
                }
                self.enrolled.insert(enrolled.device.clone(), (enrolled.clone(), at));
            }
            Fact::Told { serial, days } => {
                if let Some(entry) = self.certificates.get_mut(serial) {
                    entry.told = Some(*days);
                }
            }
            Fact::Roll(roll) => self.roll.step(roll, at),
            Fact::Trusts { device, bundle } => self.roll.trusts(device, bundle),
            Fact::Reopened { device, until } => {
                self.reopened.insert(device.clone(), *until);
            }
        }
    }

    /// How many facts this state comes from, and how many of them matter to a TLS handshake: whoever has seen the same numbers has seen
    /// the same state, also if somebody else took the facts in.
    pub fn facts(&self) -> (u64, u64) {
        self.facts
    }

    /// What is known of the last roll of a root.
    pub fn roll(&self) -> &Rolling {
        &self.roll
    }

    /// The rule of a group's claim.
    pub fn claim(&self, group: &str) -> Option<&ClaimRule> {
        self.claims.get(group)
    }

    /// All claims, with how many devices each has let in.
    pub fn claims(&self) -> impl Iterator<Item = (&ClaimRule, u64)> {
        self.claims.values().map(|rule| (rule, self.used.get(&rule.group).copied().unwrap_or(0)))
    }

    /// How many devices the claim of a group has let in.
    pub(crate) fn used(&self, group: &str) -> u64 {
        self.used.get(group).copied().unwrap_or(0)
    }

    /// What is expected of a device.
    pub fn expected(&self, device: &str) -> Option<&Expected> {
        self.expected.get(device)
    }

    /// How a device was enrolled last.
    pub fn enrolled(&self, device: &str) -> Option<&Enrolled> {
        self.enrolled.get(device).map(|(enrolled, _)| enrolled)
    }

    /// When that was.
    pub fn enrolled_at(&self, device: &str) -> Option<Timestamp> {
        self.enrolled.get(device).map(|(_, at)| *at)
    }

    /// What devices of this group are told as their first configuration.
    pub fn config(&self, group: &str) -> Option<&serde_json::Value> {
        self.configs.iter().find_map(|configs| configs.get(group))
    }

    /// All factories, by name.
    pub fn factories(&self) -> &BTreeMap<String, Factory> {
        &self.factories
    }

    /// All keys that sign vouchers, by name.
    pub fn voucher_keys(&self) -> &BTreeMap<String, VoucherKey> {
        &self.voucher_keys
    }

    /// How many devices somebody has vouched for that were let in.
    pub fn vouched(&self, origin: &Origin) -> u64 {
        self.vouched.get(origin).copied().unwrap_or(0)
    }

    /// Whether this certificate is one that was issued here: the number alone says nothing, others can give it, too.
    pub fn issued(&self, leaf: &Leaf) -> bool {
        self.certificates.get(&leaf.serial).is_some_and(|entry| {
            let known = &entry.certificate;
            known.key == leaf.key && leaf.uris.contains(&known.subject)
        })
    }

    /// Until when a device may enrol once more.
    pub(crate) fn reopened(&self, device: &str) -> Option<Timestamp> {
        self.reopened.get(device).copied()
    }

    /// Whether a certificate of this number is accepted now. `device`: the name that it gives its holder, if that is a device.
    pub fn standing(&self, serial: &str, device: Option<&str>, now: Timestamp) -> Result<(), Refusal> {
        if let Some(reason) = device.and_then(|device| self.barred.get(device)) {
            return Err(Refusal::Barred(reason.clone()));
        }
        let entry = self.certificates.get(serial).ok_or(Refusal::Unknown)?;
        if let Some((_, reason)) = &entry.revoked {
            return Err(Refusal::Revoked(reason.clone()));
        }
        if entry.ends.is_some_and(|end| now >= end) {
            return Err(Refusal::Replaced);
        }
        if entry.certificate.pending && entry.proven.is_none() && now.since(entry.issued) > PROVE_WITHIN {
            return Err(Refusal::Lapsed);
        }
        Ok(())
    }

    /// The certificate of this number.
    pub fn certificate(&self, serial: &str) -> Option<&Entry> {
        self.certificates.get(serial)
    }

    /// All certificates of a subject (its URI), in the order in which they were issued.
    pub fn of(&self, subject: &str) -> impl Iterator<Item = &Entry> {
        self.by_subject.get(subject).into_iter().flatten().filter_map(|serial| self.certificates.get(serial))
    }

    /// Whoever was given a certificate (their URIs), in order.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        self.by_subject.keys().map(String::as_str)
    }

    /// All certificates, by subject.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.by_subject.values().flatten().filter_map(|serial| self.certificates.get(serial))
    }

    /// Numbers of those that are revoked and would still be valid, with the time of their revocation.
    pub fn revoked(&self, now: Timestamp) -> impl Iterator<Item = (Serial, Timestamp)> {
        self.certificates
            .values()
            .filter(move |entry| entry.certificate.not_after >= now)
            .filter_map(|entry| entry.revoked.as_ref().map(|(at, _)| (entry.certificate.serial.clone(), *at)))
    }

    /// Why a device is not let in.
    pub fn barred(&self, device: &str) -> Option<&str> {
        self.barred.get(device).map(String::as_str)
    }

    /// The devices that this one speaks for.
    pub fn children(&self, device: &str) -> Option<&BTreeSet<String>> {
        self.gateways.get(device)
    }

    /// All devices that speak for others, with those.
    pub fn gateways(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.gateways
    }

    /// What makes a certificate, by number, or all of a device, worth nothing. `uri`: the subject that the device would be.
    pub fn revoke(&self, what: &str, uri: &str, reason: &str) -> Result<Vec<Fact>, RegistryError> {
        let revoked = |serial: &Serial| Fact::Revoked { serial: serial.clone(), reason: reason.to_owned() };
        if let Some(entry) = self.certificates.get(&what.to_ascii_lowercase()) {
            return Ok(if entry.revoked.is_some() { vec![] } else { vec![revoked(&entry.certificate.serial)] });
        }
        if self.of(uri).next().is_none() {
            return Err(RegistryError::NoSuch(what.to_owned()));
        }
        let mut facts: Vec<Fact> = self
            .of(uri)
            .filter(|entry| entry.revoked.is_none())
            .map(|entry| revoked(&entry.certificate.serial))
            .collect();
        if DeviceId::new(what).is_ok() && uri.starts_with("urn:dev:") && !self.barred.contains_key(what) {
            facts.push(Fact::Barred { device: what.to_owned(), reason: reason.to_owned() });
        }
        Ok(facts)
    }
}

fn set(configs: &mut BTreeMap<String, serde_json::Value>, group: &str, config: Option<&serde_json::Value>) {
    match config {
        Some(config) => configs.insert(group.to_owned(), config.clone()),
        None => configs.remove(group),
    };
}

/// Why the registry did not take a change.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// Its file.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Nobody knows this one.
    #[error("{0} is neither the number of a certificate nor a name that one was issued for; see `weir ca list`")]
    NoSuch(String),
    /// The change is not allowed.
    #[error("{0}")]
    Refused(String),
}

/// Times as nanoseconds since 1970.
mod nanos {
    use device::time::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp)
    }
}

mod kept;
#[cfg(test)]
mod tests;
