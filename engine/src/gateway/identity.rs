//! Who is speaking, and what follows from it. The one place that decides this.
//!
//! Anybody, on a loopback port that was opened on purpose, may do everything, so the gateway is also an ordinary MQTT
//! broker. A device, known by its certificate, may do what the table of topics gives it under its own id (and under those
//! of its children, if it is a gateway), and nothing else; one whose certificate has expired may ask for the next, on a listener of
//! its own. Whoever has the claim certificate of a group, or one of a factory, may ask for a device's.

use std::collections::BTreeSet;
use std::sync::Arc;

use access::origin::Factory;
use access::subject::Subject;
use access::users::Role;
use device::id::DeviceId;
use device::time::Timestamp;

/// The speaker on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    kind: Kind,
}

/// First levels of topics that only the server publishes on.
const OWN: [&str; 3] = ["$SYS", "$engine", "$share"];

/// First levels of topics that users do not publish on.
const CLOSED: [&str; 3] = ["devices", "groups", "provisioning"];

/// What a device says, behind `devices/{id}/`.
const SAID: [&str; 9] = [
    "telemetry",
    "hello",
    "status",
    "commands/result",
    "config/reported",
    "shadow/reported",
    "ota/status",
    "ota/get",
    RENEW,
];

/// What a device is told, behind `devices/{id}/`.
const TOLD: [&str; 9] =
    ["hello/ack", "ack", "commands", "config", "errors", "shadow/delta", "ota/offer", "ota/chunk", RENEWED];

/// Where a device asks for its next certificate, and where it is answered.
const RENEW: &str = "cert/req";
const RENEWED: &str = "cert/res";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Nobody asked. Only on ports opened with `--insecure`.
    Anonymous,
    /// A device with a certificate.
    Device(Arc<Card>),
    /// A person or a program that is no device.
    User(Arc<User>),
    /// A device that has only its group's certificate, and may ask for one of its own.
    Claim(Arc<Claim>),
    /// A device that has only its factory's certificate, and may ask for one of ours.
    Factory(Arc<Made>),
}

/// Who may ask for a first certificate over a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asker {
    /// Whoever has the claim certificate of this group.
    Claim(String),
    /// A device with a certificate of a factory.
    Factory {
        /// Which factory.
        name: String,
        /// The serial number in the certificate.
        device: String,
    },
}

impl Asker {
    /// What stands in its topics.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Claim(name) | Self::Factory { name, .. } => name,
        }
    }
}

impl std::fmt::Display for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claim(group) => write!(f, "claim {group}"),
            Self::Factory { name, .. } => write!(f, "factory {name}"),
        }
    }
}

/// What the certificate of a factory says, and by which rule.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    factory: Factory,
    asker: Asker,
    device: String,
}

/// Whether a topic is this one of those that serve for asking.
fn is_asking(topic: &str, name: &str, what: &str) -> bool {
    let rest = topic.strip_prefix("provisioning/").and_then(|rest| rest.strip_prefix(name));
    rest.and_then(|rest| rest.strip_prefix('/')) == Some(what)
}

/// What the certificate of a claim says.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    group: String,
    asker: Asker,
    subject: Subject,
    serial: String,
}

/// What a user's certificate or token says, and the role that the user has.
#[derive(Debug, PartialEq, Eq)]
struct User {
    subject: Subject,
    /// The number of the certificate, or else the id of the token.
    shown: Result<String, String>,
    role: Role,
}

/// What a device's certificate, and the registry, say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Card {
    id: DeviceId,
    subject: Subject,
    serial: String,
    children: BTreeSet<DeviceId>,
    /// From when on its certificate is to be renewed, if that has not been done.
    due: Option<Timestamp>,
    /// Whether it is to be told whom to trust, because that has changed.
    to_trust: bool,
    /// Whether it may do nothing but renew its certificate.
    recovers: bool,
}

/// What a device is told of its own accord, not because it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reminder {
    /// Whom it trusts is to change.
    Trust,
    /// Its certificate is due to be renewed.
    Renew,
}

impl Card {
    /// What stands behind `devices/{id}/`, where the id is this device's or a child's.
    fn own<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let (id, rest) = topic.strip_prefix("devices/")?.split_once('/')?;
        (id == self.id.as_str() || self.children.contains(id)).then_some(rest)
    }

    /// The same for this device alone.
    fn itself<'t>(&self, topic: &'t str) -> Option<&'t str> {
        topic.strip_prefix("devices/")?.strip_prefix(self.id.as_str())?.strip_prefix('/')
    }
}

impl Identity {
    /// A speaker who was not asked for a name.
    pub fn anonymous() -> Self {
        Self { kind: Kind::Anonymous }
    }

    /// A device that showed a certificate with this number, and the devices that it speaks for.
    pub fn device(id: DeviceId, serial: String, children: BTreeSet<DeviceId>) -> Self {
        let (subject, due, to_trust, recovers) = (Subject::Device(id.clone()), None, false, false);
        Self { kind: Kind::Device(Arc::new(Card { subject, id, serial, children, due, to_trust, recovers })) }
    }

    /// The same device, whose certificate is to be renewed from this time on.
    pub fn due(mut self, due: Option<Timestamp>) -> Self {
        if let Kind::Device(card) = &mut self.kind {
            Arc::make_mut(card).due = due;
        }
        self
    }

    /// The same device, which is (not) to be told whom to trust.
    pub fn to_trust(mut self, to_trust: bool) -> Self {
        if let Kind::Device(card) = &mut self.kind {
            Arc::make_mut(card).to_trust = to_trust;
        }
        self
    }

    /// The device itself, not its gateway, and what it is to be told now.
    pub(crate) fn reminder(&self, now: Timestamp) -> Option<(&DeviceId, Reminder)> {
        let Kind::Device(card) = &self.kind else { return None };
        // Whom to trust comes first: a certificate of an authority that the device does not know yet is worth little to it.
        let due = || card.due.is_some_and(|due| now >= due).then_some(Reminder::Renew);
        let reminder = if card.to_trust { Some(Reminder::Trust) } else { due() };
        reminder.filter(|_| !card.recovers).map(|reminder| (&card.id, reminder))
    }

    /// The same device, which may do nothing but ask for its next certificate.
    pub fn recovering(mut self) -> Self {
        if let Kind::Device(card) = &mut self.kind {
            Arc::make_mut(card).recovers = true;
        }
        self
    }

    /// Whether it may do nothing but ask for its next certificate.
    pub fn recovers(&self) -> bool {
        matches!(&self.kind, Kind::Device(card) if card.recovers)
    }

    /// Whether the certificate of this device itself, not of its gateway, is to be renewed now.
    pub fn is_due(&self, device: &DeviceId, now: Timestamp) -> bool {
        matches!(&self.kind, Kind::Device(card) if card.id == *device && card.due.is_some_and(|due| now >= due))
    }

    /// What somebody is told who tries what is not open.
    pub fn closed(&self, what: &'static str) -> &'static str {
        match self.recovers() {
            true => "expired_certificate: here a device may only renew its certificate, by cert/req and cert/res",
            false => what,
        }
    }

    /// Somebody who showed the claim certificate with this number.
    pub fn claim(group: String, serial: String) -> Self {
        let (subject, asker) = (Subject::Claim(group.clone()), Asker::Claim(group.clone()));
        Self { kind: Kind::Claim(Arc::new(Claim { subject, asker, group, serial })) }
    }

    /// A user who showed the certificate with this number.
    pub fn user(name: String, serial: String, role: Role) -> Self {
        Self { kind: Kind::User(Arc::new(User { subject: Subject::User(name), shown: Ok(serial), role })) }
    }

    /// A user who showed the token with this id.
    pub fn token_user(name: String, token: String, role: Role) -> Self {
        Self { kind: Kind::User(Arc::new(User { subject: Subject::User(name), shown: Err(token), role })) }
    }

    /// The id of its token, if it has shown that.
    pub fn token(&self) -> Option<&str> {
        match &self.kind {
            Kind::User(user) => user.shown.as_ref().err().map(String::as_str),
            _ => None,
        }
    }

    /// The name in what it has shown; none: it has shown nothing, or what is not ours.
    pub fn name(&self) -> Option<&str> {
        match &self.kind {
            Kind::User(user) => Some(user.subject.name()),
            _ => self.certificate().map(|(_, subject)| subject.name()),
        }
    }

    /// Somebody who showed a certificate of this factory, which is that of this device.
    pub fn factory(factory: Factory, device: String) -> Self {
        let asker = Asker::Factory { name: factory.name.clone(), device: device.clone() };
        Self { kind: Kind::Factory(Arc::new(Made { factory, asker, device })) }
    }

    /// Who it asks as, if asking for a certificate is all that it may do.
    pub(crate) fn asks(&self) -> Option<&Asker> {
        match &self.kind {
            Kind::Claim(claim) => Some(&claim.asker),
            Kind::Factory(made) => Some(&made.asker),
            _ => None,
        }
    }

    /// The factory whose certificate it has, and the device that is named there.
    pub fn made(&self) -> Option<(&Factory, &str)> {
        match &self.kind {
            Kind::Factory(made) => Some((&made.factory, &made.device)),
            _ => None,
        }
    }

    /// The name of its session. That of a device is its id, which nobody else can take.
    pub fn session<'c>(&self, client_id: &'c str) -> std::borrow::Cow<'c, str> {
        match &self.kind {
            Kind::Claim(claim) => format!("claim/{}/{client_id}", claim.group).into(),
            Kind::Factory(made) => format!("factory/{}/{}/{client_id}", made.factory.name, made.device).into(),
            Kind::User(user) => format!("user/{}/{client_id}", user.subject.name()).into(),
            // Whoever shows a certificate that has expired ends nobody's connection.
            Kind::Device(card) if card.recovers => format!("recovery/{}", card.id).into(),
            _ => client_id.into(),
        }
    }

    /// The number of its certificate, and whom that is for.
    pub fn certificate(&self) -> Option<(&str, &Subject)> {
        match &self.kind {
            Kind::Anonymous | Kind::Factory(_) => None,
            Kind::Device(card) => Some((card.serial.as_str(), &card.subject)),
            Kind::Claim(claim) => Some((claim.serial.as_str(), &claim.subject)),
            Kind::User(user) => user.shown.as_ref().ok().map(|serial| (serial.as_str(), &user.subject)),
        }
    }

    /// In which role it acts, for the audit trail.
    pub fn role(&self) -> &'static str {
        match &self.kind {
            Kind::Anonymous => "",
            Kind::Claim(_) => "claim",
            Kind::Factory(_) => "factory",
            Kind::User(user) => user.role.as_str(),
            Kind::Device(card) if card.children.is_empty() => "device",
            Kind::Device(_) => "gateway",
        }
    }

    /// For how many devices it speaks.
    pub fn speaks_for(&self) -> u64 {
        match &self.kind {
            Kind::Anonymous | Kind::Claim(_) | Kind::Factory(_) | Kind::User(_) => 1,
            Kind::Device(card) => 1 + card.children.len() as u64,
        }
    }

    /// The only client identifier it may have.
    pub fn client_id(&self) -> Option<&str> {
        match &self.kind {
            Kind::Anonymous | Kind::Claim(_) | Kind::Factory(_) | Kind::User(_) => None,
            Kind::Device(card) => Some(card.id.as_str()),
        }
    }

    /// Whether a connection ends when it tries what it may not do: somebody who has a name knows what is his.
    pub fn is_strict(&self) -> bool {
        !matches!(self.kind, Kind::Anonymous)
    }

    /// Whether it may publish on this (valid) topic. `$SYS` and `$engine` belong to the server.
    pub fn may_publish(&self, topic: &str) -> bool {
        match &self.kind {
            Kind::Anonymous => !OWN.contains(&topic.split('/').next().unwrap_or_default()),
            Kind::Claim(claim) => is_asking(topic, &claim.group, "req"),
            Kind::Factory(made) => is_asking(topic, &made.factory.name, "req"),
            // What devices say only they say, and what they are told goes through the API, which asks for the role and notes it.
            Kind::User(user) => {
                let first = topic.split('/').next().unwrap_or_default();
                user.role >= Role::Operator && !OWN.contains(&first) && !CLOSED.contains(&first)
            }
            Kind::Device(card) if card.recovers => card.itself(topic) == Some(RENEW),
            Kind::Device(card) => {
                card.own(topic).is_some_and(|rest| SAID.contains(&rest) || is_shadow(rest, "reported"))
            }
        }
    }

    /// Whether a message of it on this topic may be retained.
    pub fn may_retain(&self, topic: &str) -> bool {
        match &self.kind {
            Kind::Anonymous => true,
            Kind::Claim(_) | Kind::Factory(_) => false,
            Kind::User(_) => self.may_publish(topic),
            Kind::Device(card) => card.own(topic) == Some("status"),
        }
    }

    /// Whether it may subscribe with this (valid) filter.
    pub fn may_subscribe(&self, filter: &str) -> bool {
        match &self.kind {
            Kind::Anonymous => true,
            Kind::Claim(claim) => is_asking(filter, &claim.group, "res"),
            Kind::Factory(made) => is_asking(filter, &made.factory.name, "res"),
            Kind::User(user) => user.role >= Role::Admin || !filter.split('/').any(|level| level == "$engine"),
            Kind::Device(card) if card.recovers => card.itself(filter) == Some(RENEWED),
            Kind::Device(card) => card.own(filter).is_some_and(|rest| {
                let whole = rest == "#" || rest.strip_suffix("/#").is_some_and(|above| !above.contains('+'));
                whole || TOLD.contains(&rest) || is_shadow(rest, "delta")
            }),
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Anonymous => f.write_str("anonymous"),
            Kind::Device(card) => card.subject.fmt(f),
            Kind::Claim(claim) => claim.subject.fmt(f),
            Kind::Factory(made) => write!(f, "device {} of factory {}", made.device, made.factory.name),
            Kind::User(user) => user.subject.fmt(f),
        }
    }
}

/// Whether this is the plain topic of a named shadow, of all with `+`: `shadow/{name}/{what}`.
fn is_shadow(rest: &str, what: &str) -> bool {
    let name =
        rest.strip_prefix("shadow/").and_then(|rest| rest.strip_suffix(what)).and_then(|rest| rest.strip_suffix('/'));
    name.is_some_and(|name| !name.is_empty() && !name.contains('/') && (what == "delta" || name != "+"))
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

    fn id(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    #[test]
    fn a_device_says_what_devices_say_under_its_own_name() {
        let device = Identity::device(id("a"), "1".into(), BTreeSet::new());
        for rest in SAID.iter().copied().chain(["shadow/net/reported"]) {
            assert!(device.may_publish(&format!("devices/a/{rest}")), "{rest}");
            assert!(!device.may_publish(&format!("devices/b/{rest}")), "{rest}");
            assert_eq!(device.may_retain(&format!("devices/a/{rest}")), rest == "status", "{rest}");
            assert!(!device.may_retain(&format!("devices/b/{rest}")), "{rest}");
        }
        for rest in TOLD.iter().copied().chain([
            "shadow/net/delta",
            "x",
            "telemetry/x",
            "shadow/a/b/reported",
            "shadow//reported",
        ]) {
            assert!(!device.may_publish(&format!("devices/a/{rest}")), "{rest}");
        }
        for topic in [
            "devices/a",
            "devices/a/",
            "devices//telemetry",
            "devices/aa/telemetry",
            "plain",
            "groups/g/commands",
            "provisioning/g/req",
            "$engine/x",
            "$SYS/x",
            "devices/A/telemetry",
        ] {
            assert!(!device.may_publish(topic), "{topic}");
        }
    }

    #[test]
    fn a_device_hears_what_devices_are_told_under_its_own_name() {
        let device = Identity::device(id("a"), "1".into(), BTreeSet::new());
        for rest in TOLD.iter().copied().chain(["#", "shadow/#", "shadow/net/delta", "shadow/+/delta"]) {
            assert!(device.may_subscribe(&format!("devices/a/{rest}")), "{rest}");
            assert!(!device.may_subscribe(&format!("devices/b/{rest}")), "{rest}");
            assert!(!device.may_subscribe(&format!("devices/+/{rest}")), "{rest}");
            assert!(!device.may_subscribe(&format!("$share/g/devices/a/{rest}")), "{rest}");
        }
        for filter in [
            "#",
            "+/#",
            "devices/#",
            "devices/+/#",
            "devices/a",
            "devices/a/telemetry",
            "devices/a/+",
            "devices/a/+/#",
            "devices/a/+/delta",
            "groups/#",
            "$SYS/#",
            "+/a/commands",
        ] {
            assert!(!device.may_subscribe(filter), "{filter}");
        }
    }

    #[test]
    fn a_user_hears_everything_and_says_what_the_role_allows() {
        let user = |role| Identity::user("u".into(), "1".into(), role);
        for role in [Role::Viewer, Role::Analyst, Role::Engineer] {
            assert!(user(role).may_subscribe("devices/+/telemetry") && !user(role).may_publish("plant/x"));
            assert!(!user(role).may_subscribe("$engine/#"));
        }
        for role in [Role::Operator, Role::Admin] {
            assert!(user(role).may_publish("plant/x"));
            for topic in [
                "devices/a/telemetry",
                "devices/a/commands",
                "groups/g/commands",
                "provisioning/g/req",
                "$engine/x",
                "$SYS/x",
            ] {
                assert!(!user(role).may_publish(topic), "{topic}");
            }
        }
        assert_eq!(user(Role::Viewer).session("pump-7"), "user/u/pump-7", "no device's session");
    }

    #[test]
    fn a_claim_may_ask_and_nothing_else() {
        let claim = Identity::claim("g".into(), "1".into());
        assert!(claim.may_publish("provisioning/g/req") && claim.may_subscribe("provisioning/g/res"));
        for topic in [
            "provisioning/g/res",
            "provisioning/h/req",
            "provisioning/gg/req",
            "provisioning/g/req/x",
            "devices/g/telemetry",
        ] {
            assert!(!claim.may_publish(topic) && !claim.may_retain(topic), "{topic}");
        }
        for filter in ["provisioning/g/req", "provisioning/g/#", "provisioning/+/res", "#", "devices/g/#"] {
            assert!(!claim.may_subscribe(filter), "{filter}");
        }
        assert_eq!(claim.session("g"), "claim/g/g", "no device can have this name");
    }

    #[test]
    fn a_device_of_a_factory_may_ask_and_nothing_else() {
        let factory = Factory {
            name: "f".into(),
            ca: String::new(),
            group: "g".into(),
            id_from: access::origin::IdFrom::Cn,
            allow: vec!["*".into()],
            quota: None,
        };
        let made = Identity::factory(factory, "a".into());
        assert!(made.may_publish("provisioning/f/req") && made.may_subscribe("provisioning/f/res"));
        for topic in ["provisioning/g/req", "provisioning/f/res", "devices/a/telemetry", "devices/a/status", "x"] {
            assert!(!made.may_publish(topic) && !made.may_retain(topic), "{topic}");
        }
        for filter in ["provisioning/f/req", "provisioning/+/res", "devices/a/#", "#"] {
            assert!(!made.may_subscribe(filter), "{filter}");
        }
        assert_eq!((made.certificate(), made.client_id(), made.speaks_for()), (None, None, 1));
        assert!(made.is_strict());
        assert_eq!(made.session("b"), "factory/f/a/b", "no device can have this name, nor another one of the factory");
    }

    #[test]
    fn whose_certificate_has_expired_may_renew_it_and_nothing_else() {
        let gateway = Identity::device(id("a"), "1".into(), BTreeSet::from([id("b")])).recovering();
        assert!(gateway.may_publish("devices/a/cert/req") && gateway.may_subscribe("devices/a/cert/res"));
        for rest in SAID.iter().chain(&TOLD).filter(|rest| **rest != RENEW) {
            assert!(!gateway.may_publish(&format!("devices/a/{rest}")), "{rest}");
        }
        for topic in ["devices/b/cert/req", "devices/aa/cert/req", "devices/a/cert/req/x", "plain"] {
            assert!(!gateway.may_publish(topic), "{topic}");
        }
        for filter in ["devices/a/#", "devices/a/cert/#", "devices/a/commands", "devices/b/cert/res"] {
            assert!(!gateway.may_subscribe(filter), "{filter}");
        }
        assert_eq!(gateway.session("a"), "recovery/a");
        assert!(gateway.closed("no").starts_with("expired_certificate"));
        assert_eq!(Identity::anonymous().closed("no"), "no");
    }

    #[test]
    fn a_device_is_reminded_of_its_own_certificate_and_of_nobody_elses() {
        let gateway = Identity::device(id("a"), "1".into(), BTreeSet::from([id("b")])).due(Some(Timestamp(5)));
        assert!(!gateway.is_due(&id("a"), Timestamp(4)));
        assert!(gateway.is_due(&id("a"), Timestamp(5)));
        assert!(!gateway.is_due(&id("b"), Timestamp(5)));
        assert!(!gateway.due(None).is_due(&id("a"), Timestamp(5)));
    }

    #[test]
    fn a_gateway_speaks_for_its_children_and_for_nobody_else() {
        let gateway = Identity::device(id("gw"), "1".into(), BTreeSet::from([id("a"), id("b")]));
        for child in ["gw", "a", "b"] {
            assert!(gateway.may_publish(&format!("devices/{child}/telemetry")));
            assert!(gateway.may_subscribe(&format!("devices/{child}/commands")));
            assert!(gateway.may_retain(&format!("devices/{child}/status")));
        }
        assert!(!gateway.may_publish("devices/c/telemetry"));
        assert!(!gateway.may_subscribe("devices/c/#"));
        assert_eq!(gateway.client_id(), Some("gw"));
    }
}
