//! Where a published topic leads, remembered per connection.
//!
//! Most connections publish on one topic for their whole life, so the last route is tried first; a gateway device
//! that speaks for many children finds the others by hash.

use std::collections::HashMap;
use std::sync::Arc;

use actors::message::Channel;
use device::entry::Reason;
use device::id::DeviceId;
use device::shadow;

use super::fanout::Interest;
use super::hub::{self, Hub};
use super::identity::{Asker, Identity};
use super::limits::ROUTES;

/// Where a topic leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To a device.
    Device(Channel, DeviceId),
    /// It names a channel of devices but no device that could exist.
    Stray {
        /// What stands in the place of the device id.
        sender: String,
        reason: Reason,
        text: String,
    },
    /// To whoever gives first certificates.
    Provisioning(Asker),
    /// To whoever gives devices their next certificates.
    Renewal(DeviceId),
    /// To whoever is subscribed.
    Live,
    /// The speaker may not publish there.
    Denied,
}

impl Target {
    /// Whether a message may be retained: those for devices are theirs, but for their presence.
    pub(crate) fn retains(&self) -> bool {
        matches!(self, Self::Live | Self::Device(Channel::Status, _))
    }
}

/// Decides where a (valid) topic name leads.
pub(crate) fn target(topic: &str, identity: &Identity) -> Target {
    if !identity.may_publish(topic) {
        return Target::Denied;
    }
    if let Some(asker) = identity.asks() {
        return Target::Provisioning(asker.clone());
    }
    let Some(rest) = topic.strip_prefix("devices/") else { return Target::Live };
    let (sender, channel) = rest.split_once('/').unwrap_or((rest, ""));
    let stray = |reason, text: String| Target::Stray { sender: sender.to_owned(), reason, text };
    if sender == DeviceId::nobody().as_str() {
        return stray(Reason::BadDevice, "the device id ~ is reserved".into());
    }
    let device = match DeviceId::new(sender) {
        Ok(device) => device,
        Err(error) => return stray(Reason::BadDevice, error.to_string()),
    };
    match channel {
        "telemetry" => Target::Device(Channel::Telemetry, device),
        "hello" => Target::Device(Channel::Hello, device),
        "config/reported" => Target::Device(Channel::Reported, device),
        "commands/result" => Target::Device(Channel::CommandResult, device),
        "status" => Target::Device(Channel::Status, device),
        // Who has no certificate has none to renew.
        "cert/req" if identity.certificate().is_some() => Target::Renewal(device),
        "" => stray(Reason::BadTopic, "a topic below devices/ names a device and a channel".into()),
        _ => match reported(channel) {
            Some(shadow) => Target::Device(Channel::PlainReported(shadow.into()), device),
            None => Target::Live,
        },
    }
}

/// The shadow whose plain topic this is, behind `devices/{id}/`.
fn reported(channel: &str) -> Option<&str> {
    let rest = channel.strip_prefix("shadow/")?;
    if rest == "reported" {
        return Some(shadow::DEFAULT);
    }
    rest.strip_suffix("/reported").filter(|name| !name.is_empty() && !name.contains('/'))
}

/// The device whose own topics, those that it is told something on, a filter covers.
pub(crate) fn listener(filter: &str) -> Option<DeviceId> {
    let (device, rest) = filter.strip_prefix("devices/")?.split_once('/')?;
    let told = matches!(rest, "commands" | "config" | "#" | "+") || rest.starts_with("shadow/");
    if !told || rest.ends_with("/reported") || device == DeviceId::nobody().as_str() {
        return None;
    }
    // A wildcard is no device.
    DeviceId::new(device).ok()
}

/// A topic that was published on.
#[derive(Debug)]
pub(crate) struct Route<D> {
    pub(crate) topic: Arc<str>,
    pub(crate) target: Target,
    /// The way to the device, once it was opened.
    pub(crate) door: Option<D>,
    stripe: usize,
    interest: Option<Interest>,
}

impl<D> Route<D> {
    /// Whether anybody is subscribed to it; asked again only when subscriptions have changed.
    pub(crate) fn interest(&mut self, hub: &Hub) -> Interest {
        match self.interest {
            Some(interest) if hub.current(&interest, self.stripe) => interest,
            _ => {
                let interest = hub.interest(&self.topic, self.stripe);
                self.interest = Some(interest);
                interest
            }
        }
    }
}

/// The routes of one connection.
#[derive(Debug)]
pub(crate) struct Routes<D> {
    routes: Vec<Route<D>>,
    by_topic: HashMap<Arc<str>, usize>,
    last: usize,
}

impl<D> Default for Routes<D> {
    fn default() -> Self {
        Self { routes: Vec::new(), by_topic: HashMap::new(), last: 0 }
    }
}

impl<D> Routes<D> {
    /// The route of a topic, found or made.
    pub(crate) fn find(&mut self, topic: &str, identity: &Identity) -> usize {
        if self.routes.get(self.last).is_some_and(|route| &*route.topic == topic) {
            return self.last;
        }
        let known = match self.by_topic.get(topic) {
            Some(at) => *at,
            None => self.add(topic, identity),
        };
        self.last = known;
        known
    }

    fn add(&mut self, topic: &str, identity: &Identity) -> usize {
        if self.routes.len() >= ROUTES {
            *self = Self::default();
        }
        let topic: Arc<str> = Arc::from(topic);
        let target = target(&topic, identity);
        let stripe = hub::stripe(&topic);
        self.by_topic.insert(topic.clone(), self.routes.len());
        self.routes.push(Route { topic, target, door: None, stripe, interest: None });
        self.routes.len() - 1
    }

    pub(crate) fn get(&mut self, at: usize) -> Option<&mut Route<D>> {
        self.routes.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_lead_where_they_should() {
        let identity = Identity::anonymous();
        let id = |text| DeviceId::new(text).unwrap();
        for (topic, expected) in [
            ("devices/a/telemetry", Target::Device(Channel::Telemetry, id("a"))),
            ("devices/a/hello", Target::Device(Channel::Hello, id("a"))),
            ("devices/a/hello/ack", Target::Live),
            ("devices/a/status", Target::Device(Channel::Status, id("a"))),
            ("devices/a/config/reported", Target::Device(Channel::Reported, id("a"))),
            ("devices/a/commands/result", Target::Device(Channel::CommandResult, id("a"))),
            ("devices/a/shadow/reported", Target::Device(Channel::PlainReported("main".into()), id("a"))),
            ("devices/a/shadow/net/reported", Target::Device(Channel::PlainReported("net".into()), id("a"))),
            ("devices/a/shadow/net/x/reported", Target::Live),
            ("devices/a/shadow/delta", Target::Live),
            ("devices/a/telemetry/x", Target::Live),
            ("device/a/telemetry", Target::Live),
            ("plain", Target::Live),
            ("$SYS/x", Target::Denied),
        ] {
            assert_eq!(target(topic, &identity), expected, "{topic}");
        }
        for (topic, named, why) in [
            ("devices//telemetry", "", Reason::BadDevice),
            ("devices/é/telemetry", "é", Reason::BadDevice),
            ("devices/a b/status", "a b", Reason::BadDevice),
            ("devices/~/telemetry", "~", Reason::BadDevice),
            ("devices/", "", Reason::BadDevice),
            ("devices/a", "a", Reason::BadTopic),
            ("devices/a/", "a", Reason::BadTopic),
        ] {
            match target(topic, &identity) {
                Target::Stray { sender, reason, .. } => assert_eq!((&*sender, reason), (named, why), "{topic}"),
                other => panic!("{topic}: {other:?}"),
            }
        }
    }

    #[test]
    fn who_listens_to_what_a_device_is_told_is_known() {
        for (filter, expected) in [
            ("devices/a/commands", Some("a")),
            ("devices/a/#", Some("a")),
            ("devices/a/shadow/delta", Some("a")),
            ("devices/a/shadow/+/delta", Some("a")),
            ("devices/a/shadow/net/reported", None),
            ("devices/a/telemetry", None),
            ("devices/+/commands", None),
            ("devices/~/commands", None),
            ("#", None),
        ] {
            assert_eq!(listener(filter).map(|id| id.to_string()).as_deref(), expected, "{filter}");
        }
    }

    #[test]
    fn routes_are_remembered_and_bounded() {
        let identity = Identity::anonymous();
        let mut routes: Routes<u32> = Routes::default();
        let a = routes.find("a", &identity);
        routes.get(a).unwrap().door = Some(7);
        let b = routes.find("b", &identity);
        assert_ne!(a, b);
        assert_eq!(routes.find("a", &identity), a);
        assert_eq!(routes.get(a).unwrap().door, Some(7));
        for i in 0..3 * ROUTES {
            let at = routes.find(&format!("t/{i}"), &identity);
            assert_eq!(&*routes.get(at).unwrap().topic, format!("t/{i}"));
        }
        assert!(routes.routes.len() <= ROUTES);
    }
}
