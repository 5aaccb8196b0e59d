//! Who is speaking, and what follows from it. The one place that decides this.
//!
//! Today there is one kind of speaker: anybody, on a loopback port that was opened on purpose. It may do
//! everything, so the gateway is also an ordinary MQTT broker. Certificates and roles join here, and nowhere else.

/// The speaker on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    kind: Kind,
}

/// First levels of topics that only the server publishes on.
const OWN: [&str; 3] = ["$SYS", "$engine", "$share"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Nobody asked. Only on ports opened with `--insecure`.
    Anonymous,
}

impl Identity {
    /// A speaker who was not asked for a name.
    pub fn anonymous() -> Self {
        Self { kind: Kind::Anonymous }
    }

    /// Whether it may publish on this (valid) topic. `$SYS` and `$engine` belong to the server.
    pub fn may_publish(&self, topic: &str) -> bool {
        match self.kind {
            Kind::Anonymous => !OWN.contains(&topic.split('/').next().unwrap_or_default()),
        }
    }

    /// Whether a message of it on this topic may be retained.
    pub fn may_retain(&self, _topic: &str) -> bool {
        match self.kind {
            Kind::Anonymous => true,
        }
    }

    /// Whether it may subscribe with this (valid) filter.
    pub fn may_subscribe(&self, _filter: &str) -> bool {
        match self.kind {
            Kind::Anonymous => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_topics_are_closed_to_everybody() {
        let identity = Identity::anonymous();
        assert!(!identity.may_publish("$SYS/x"));
        assert!(!identity.may_publish("$engine"));
        assert!(identity.may_publish("$SYSTEM/x"));
        assert!(identity.may_publish("devices/a/commands"));
        assert!(identity.may_subscribe("$SYS/#"));
    }
}
