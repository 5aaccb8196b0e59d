//! Who a certificate is for: one URI among its alternative names (RFC 5280, section 4.2.1.6).
//!
//! `urn:dev:{tenant}:{id}` a device, `urn:claim:{tenant}:{group}` whoever may ask for a device's certificate,
//! `urn:user:{tenant}:{name}` a person or a program, `urn:server:{tenant}` an engine.

use std::fmt;

use device::id::DeviceId;

/// Longest name of a tenant, group or user, in bytes.
pub const MAX_NAME: usize = 64;

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A device.
    Device(DeviceId),
    /// Devices of this group that have no certificate of their own yet.
    Claim(String),
    /// A person or a program that is no device.
    User(String),
    /// An engine.
    Server,
}

impl Subject {
    /// The URI in the certificate.
    pub fn uri(&self, tenant: &str) -> String {
        match self {
            Self::Device(id) => format!("urn:dev:{tenant}:{id}"),
            Self::Claim(group) => format!("urn:claim:{tenant}:{group}"),
            Self::User(name) => format!("urn:user:{tenant}:{name}"),
            Self::Server => format!("urn:server:{tenant}"),
        }
    }

    /// The subject that a URI names within this tenant; `None`: it names none.
    pub fn parse(uri: &str, tenant: &str) -> Option<Self> {
        let (kind, rest) = uri.strip_prefix("urn:")?.split_once(':')?;
        if kind == "server" {
            return (rest == tenant).then_some(Self::Server);
        }
        let name = rest.strip_prefix(tenant)?.strip_prefix(':')?;
        match kind {
            "dev" => DeviceId::new(name).ok().filter(|id| *id != DeviceId::nobody()).map(Self::Device),
            "claim" => is_name(name).then(|| Self::Claim(name.to_owned())),
            "user" => is_name(name).then(|| Self::User(name.to_owned())),
            _ => None,
        }
    }

    /// Its name without the kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Device(id) => id.as_str(),
            Self::Claim(name) | Self::User(name) => name,
            Self::Server => "weir",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(id) => write!(f, "device {id}"),
            Self::Claim(group) => write!(f, "claim of group {group}"),
            Self::User(name) => write!(f, "user {name}"),
            Self::Server => f.write_str("server"),
        }
    }
}

/// Whether a text may name a tenant, a group or a user: 1 to [`MAX_NAME`] of `A-Z a-z 0-9 . _ -`.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_read_back_from_its_uri_and_from_no_other() {
        let device = |id| Subject::Device(DeviceId::new(id).unwrap());
        for subject in
            [device("a"), device("urn:x:1"), Subject::Claim("g".into()), Subject::User("u".into()), Subject::Server]
        {
            let uri = subject.uri("main");
            assert_eq!(Subject::parse(&uri, "main"), Some(subject), "{uri}");
            assert_eq!(Subject::parse(&uri, "mai"), None, "{uri}");
            assert_eq!(Subject::parse(&uri, "other"), None, "{uri}");
        }
        for uri in [
            "",
            "urn:dev:main",
            "urn:dev:main:",
            "urn:dev:main:~",
            "urn:dev:main:a/b",
            "urn:user:main:a:b",
            "URN:dev:main:a",
            "urn:x:main:a",
        ] {
            assert_eq!(Subject::parse(uri, "main"), None, "{uri}");
        }
    }
}
