//! `[alerts]`: who is told of incidents, and by which channels.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ConfigError, duration};

/// Shortest and longest time that a receiver gets for one message.
const TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(120);

/// `[alerts]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsConfig {
    /// A message that no receiver has accepted for so long is given up.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// Most messages of one channel that wait for its receiver; the oldest of more are given up.
    pub max_waiting: usize,
    /// How long the first news of a group wait for more.
    #[serde(with = "duration")]
    pub group_wait: Duration,
    /// How long later ones wait.
    #[serde(with = "duration")]
    pub group_interval: Duration,
    /// After how long it is said again what goes on in a group.
    #[serde(with = "duration")]
    pub repeat: Duration,
    /// Ways to receivers.
    pub channels: Vec<ChannelConfig>,
    /// Whom the names in `escalate = '..'` stand for: names of channels.
    pub people: BTreeMap<String, BTreeSet<String>>,
    /// Who of them is told of certificates of devices that end soon and were not renewed; none: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<String>,
    /// Which incidents make which others not worth telling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inhibit: Vec<alerts::Inhibit>,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(86_400),
            max_waiting: 10_000,
            group_wait: Duration::from_secs(30),
            group_interval: Duration::from_secs(300),
            repeat: Duration::from_secs(4 * 3600),
            channels: Vec::new(),
            people: BTreeMap::new(),
            certificates: None,
            inhibit: Vec::new(),
        }
    }
}

/// What a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// A POST to a URL.
    Webhook,
    /// A message on a topic of this engine's broker.
    Mqtt,
    /// A mail.
    Email,
    /// A line in the engine's log.
    Log,
}

impl ChannelKind {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Mqtt => "mqtt",
            Self::Email => "email",
            Self::Log => "log",
        }
    }
}

/// `[[alerts.channels]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelConfig {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ChannelKind,
    /// Of a webhook; of mails, their server: `smtps://HOST[:465]`, or `smtp://HOST[:587]`, which must offer STARTTLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Of a webhook: what its messages are signed with. Of mails: the password of `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// The same in a file of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Of a webhook, and of mails: how long one attempt may take.
    #[serde(default = "ten_seconds", with = "duration")]
    pub timeout: Duration,
    /// Of MQTT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Of mails: whom their server knows; none: it asks nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Of mails: who they come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Of mails: who gets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Of mails: an authority (PEM) that their server's certificate may come from, beside those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

/// A text that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// What it is.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl AlertsConfig {
    /// What decides who is told.
    pub fn settings(&self, project: &sql::Project) -> alerts::Settings {
        let ns = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        alerts::Settings {
            groups: project.groups(),
            group_wait_ns: ns(self.group_wait),
            group_interval_ns: ns(self.group_interval),
            repeat_ns: ns(self.repeat),
            channels: self.channels.iter().map(|channel| channel.name.clone()).collect(),
            people: self.people.clone(),
            inhibit: self.inhibit.clone(),
            max_age_ns: ns(self.max_age),
            max_waiting: self.max_waiting,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, message: String| Err(ConfigError::Value { key, message });
        if self.max_age < Duration::from_secs(1) {
            return wrong("alerts.max_age", "must be at least \"1s\"".to_owned());
        }
        if !(1..=1_000_000).contains(&self.max_waiting) {
            return wrong("alerts.max_waiting", "must be from 1 to 1000000".to_owned());
        }
        if self.group_interval.is_zero() || self.repeat < Duration::from_secs(60) {
            let message = "alerts.group_interval has to be longer than nothing, and alerts.repeat at least \"1m\"";
            return wrong("alerts.repeat", message.to_owned());
        }
        let mut names = BTreeSet::new();
        for channel in &self.channels {
            let name = &channel.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
                let message = format!("{name:?}: a name has 1 to 63 letters, digits, `_`, `-` and `.`");
                return wrong("alerts.channels", message);
            }
            if !names.insert(name) {
                return wrong("alerts.channels", format!("there are two channels {name:?}: give one another name"));
            }
            if let Err(why) = channel.check() {
                return wrong("alerts.channels", format!("{name:?}: {why}"));
            }
        }
        for (person, channels) in &self.people {
            if channels.is_empty() {
                let message = format!("{person:?} has no channel: name one, or leave the line out");
                return wrong("alerts.people", message);
            }
            if let Some(unknown) = channels.iter().find(|channel| !names.contains(channel)) {
                let near = names.iter().map(|name| (strsim::damerau_levenshtein(unknown, name), *name)).min();
                let help = match near.filter(|(distance, _)| *distance <= 3) {
                    Some((_, name)) => format!("did you mean {name:?}?"),
                    None => "add it as one of [[alerts.channels]]".to_owned(),
                };
                return wrong("alerts.people", format!("{person:?}: there is no channel {unknown:?}; {help}"));
            }
        }
        if let Some(who) = self.certificates.as_ref().filter(|who| !self.people.contains_key(*who)) {
            return wrong("alerts.certificates", format!("{who:?} has no line in [alerts.people]: add one"));
        }
        if self.inhibit.iter().any(|inhibit| inhibit.source.is_empty() || inhibit.target.is_empty()) {
            let message = "`source` and `target` need a matcher each, such as \"rule=gateway_down\"";
            return wrong("alerts.inhibit", message.to_owned());
        }
        Ok(())
    }
}

impl ChannelConfig {
    fn check(&self) -> Result<(), String> {
        use ChannelKind::{Email, Log, Mqtt, Webhook};
        let of = |kinds: &[ChannelKind], key: &str, given: bool| match given && !kinds.contains(&self.kind) {
            true => {
                let kinds: Vec<String> = kinds.iter().map(|kind| format!("\"{}\"", kind.as_str())).collect();
                Err(format!("`{key}` belongs to channels of kind {}", kinds.join(" and ")))
            }
            false => Ok(()),
        };
        of(&[Webhook, Email], "url", self.url.is_some())?;
        of(&[Webhook, Email], "secret", self.secret.is_some())?;
        of(&[Webhook, Email], "secret_file", self.secret_file.is_some())?;
        of(&[Mqtt], "topic", self.topic.is_some())?;
        of(&[Email], "user", self.user.is_some())?;
        of(&[Email], "from", self.from.is_some())?;
        of(&[Email], "to", !self.to.is_empty())?;
        of(&[Email], "ca", self.ca.is_some())?;
        if self.secret.is_some() && self.secret_file.is_some() {
            return Err("`secret` and `secret_file` say the same: leave out one".to_owned());
        }
        if self.secret.as_ref().is_some_and(|secret| secret.reveal().is_empty()) {
            let without = if self.kind == Email { "a password" } else { "a signature" };
            return Err(format!("`secret` is empty: leave it out to send without {without}"));
        }
        if matches!(self.kind, Webhook | Email) && !TIMEOUT.contains(&self.timeout) {
            return Err("`timeout` must be from \"100ms\" to \"120s\"".to_owned());
        }
        match self.kind {
            Log => Ok(()),
            Webhook => self.address("a webhook", ["http", "https"]).map(drop),
            Email => self.check_mail(),
            Mqtt => {
                let topic = self.topic.as_deref().ok_or("a channel of kind \"mqtt\" needs `topic`")?;
                let first = topic.split('/').next().unwrap_or_default();
                if topic.is_empty() || topic.len() > 1024 || topic.contains(['+', '#', '\0']) {
                    return Err(format!("topic {topic:?} has to be one topic, without `+` and `#`"));
                }
                if matches!(first, "devices" | "groups" | "provisioning") || first.starts_with('$') {
                    return Err(format!("topic {topic:?}: what begins with {first:?} belongs to devices and engine"));
                }
                Ok(())
            }
        }
    }

    fn address(&self, what: &str, schemes: [&str; 2]) -> Result<url::Url, String> {
        let text = self.url.as_deref().ok_or_else(|| format!("{what} needs `url`"))?;
        let url = url::Url::parse(text).map_err(|error| format!("url {text:?}: {error}"))?;
        if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
            let [one, other] = schemes;
            return Err(format!("url {text:?} has to begin with {one}:// or {other}:// and a host"));
        }
        Ok(url)
    }

    fn check_mail(&self) -> Result<(), String> {
        let url = self.address("a channel of kind \"email\"", ["smtps", "smtp"])?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "`url` is shown to people: put the name into `user`, and the password into `secret_file`".into()
            );
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(format!("url {:?} has more than a host and a port", url.as_str()));
        }
        match (&self.user, self.secret.is_some() || self.secret_file.is_some()) {
            (Some(_), true) | (None, false) => {}
            (Some(user), false) => return Err(format!("user {user:?} needs `secret` or `secret_file`, a password")),
            (None, true) => return Err("there is a password, but no `user`".to_owned()),
        }
        let from = self.from.as_deref().ok_or("a channel of kind \"email\" needs `from`")?;
        if self.to.is_empty() {
            return Err("a channel of kind \"email\" needs `to`, a list of addresses".to_owned());
        }
        for text in std::iter::once(from).chain(self.to.iter().map(String::as_str)) {
            text.parse::<lettre::message::Mailbox>().map_err(|error| format!("{text:?} is no address: {error}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const GOOD: &str = r#"
[alerts]
max_age = "2h"
certificates = "oncall"

[[alerts.channels]]
name = "ops"
kind = "webhook"
url = "https://example.com/hook?a=1"
secret = "s3cret-value"

[[alerts.channels]]
name = "bus"
kind = "mqtt"
topic = "alerts/plant"

[[alerts.channels]]
name = "file"
kind = "log"

[[alerts.channels]]
name = "mail"
kind = "email"
url = "smtps://mail.example.com"
user = "weir"
secret = "s3cret-word"
from = "Weir <weir@example.com>"
to = ["ann@example.com"]

[[alerts.inhibit]]
source = ["rule=gateway"]
target = ["severity!=critical"]
equal = ["site"]

[alerts.people]
oncall = ["ops", "file"]
"#;

    fn read(text: &str) -> Result<AlertsConfig, String> {
        let alerts = toml::from_str::<Config>(text).map_err(|error| error.to_string())?.alerts;
        alerts.validate().map_err(|error| error.to_string())?;
        Ok(alerts)
    }

    #[test]
    fn channels_and_people_are_read_and_secrets_are_not_shown() {
        let alerts = read(GOOD).unwrap();
        assert_eq!(alerts.channels[0].secret.as_ref().unwrap().reveal(), "s3cret-value");
        let settings = alerts.settings(&sql::Project::empty());
        assert_eq!(settings.reach("oncall").collect::<Vec<_>>(), ["file", "ops"]);
        assert!(!settings.reaches("lead") && settings.max_age_ns == 7200 * 1_000_000_000);
        let shown = toml::to_string(&toml::from_str::<Config>(GOOD).unwrap()).unwrap();
        assert!(shown.contains("(hidden)") && !shown.contains("s3cret"), "{shown}");
        assert!(!format!("{alerts:?}").contains("s3cret"));
        assert_eq!(
            read(&shown).unwrap().settings(&sql::Project::empty()),
            settings,
            "the effective configuration reads back"
        );
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (from, to, why) in [
            ("\"ops\"\nkind", "\"o s\"\nkind", "alerts.channels: \"o s\": a name has"),
            ("\"bus\"\nkind", "\"ops\"\nkind", "two channels \"ops\""),
            ("[\"ops\", \"file\"]", "[\"osp\"]", "no channel \"osp\"; did you mean \"ops\"?"),
            ("[\"ops\", \"file\"]", "[]", "alerts.people: \"oncall\" has no channel"),
            ("url = \"https://example.com/hook?a=1\"", "", "needs `url`"),
            ("https://example.com", "ftp://example.com", "http:// or https://"),
            (
                "kind = \"log\"",
                "kind = \"log\"\nurl = \"http://x\"",
                "`url` belongs to channels of kind \"webhook\" and",
            ),
            ("kind = \"log\"", "kind = \"pigeon\"", "pigeon"),
            ("smtps://mail.example.com", "https://mail.example.com", "smtps:// or smtp://"),
            ("smtps://mail.example.com", "smtps://a:b@mail.example.com", "into `user`"),
            ("smtps://mail.example.com", "smtps://mail.example.com/x?tls=none", "more than a host"),
            ("secret = \"s3cret-word\"\n", "", "user \"weir\" needs `secret`"),
            ("user = \"weir\"\n", "", "no `user`"),
            ("from = \"Weir <weir@example.com>\"\n", "", "needs `from`"),
            ("to = [\"ann@example.com\"]\n", "", "needs `to`"),
            ("ann@example.com", "ann at example", "\"ann at example\" is no address"),
            ("kind = \"mqtt\"", "kind = \"mqtt\"\nfrom = \"a@b.c\"", "`from` belongs to channels of kind \"email\""),
            ("alerts/plant", "devices/x", "belongs to devices"),
            ("alerts/plant", "alerts/#", "one topic"),
            ("topic = \"alerts/plant\"", "", "needs `topic`"),
            ("secret = \"s3cret-value\"", "secret = \"\"", "`secret` is empty"),
            ("secret = \"s3cret-value\"", "timeout = \"1ms\"", "100ms"),
            ("max_age = \"2h\"", "max_age = \"0s\"", "alerts.max_age"),
            ("max_age = \"2h\"", "max_waiting = 0", "alerts.max_waiting"),
            ("certificates = \"oncall\"", "certificates = \"lead\"", "alerts.certificates: \"lead\" has no line"),
            ("secret = ", "secrets = ", "unknown field"),
            ("rule=gateway", "gateway", "is no matcher"),
            ("[\"rule=gateway\"]", "[]", "alerts.inhibit: `source` and `target`"),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}
