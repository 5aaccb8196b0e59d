//! The configuration of `weir run`: defaults, then the file, then `WEIR_*` variables, then flags.

mod alerts;
mod http;
mod shadow;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::gateway;
pub use alerts::{AlertsConfig, ChannelConfig, ChannelKind, Secret};
pub use http::{HttpConfig, LimitsConfig};
pub use shadow::{ShadowConfig, ShadowRule, Writers};

/// What is wrong with a configuration. Ends the program with status 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or a value has the wrong type.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value is not one that can work.
    #[error("{key}: {message}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
}

/// The whole configuration, one section per part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This process.
    pub node: NodeConfig,
    /// Where data stands.
    pub store: StoreConfig,
    /// MQTT listeners.
    pub mqtt: MqttConfig,
    /// The HTTP listener.
    pub http: HttpConfig,
    /// When things become durable and visible.
    pub durability: DurabilityConfig,
    /// Retention and compaction.
    pub tables: TablesConfig,
    /// The pipeline project.
    pub pipelines: PipelinesConfig,
    /// What devices are wanted to be, and what they say they are.
    pub shadow: ShadowConfig,
    /// Who is told of incidents.
    pub alerts: AlertsConfig,
    /// Bounds.
    pub limits: LimitsConfig,
}

/// `[node]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Shards of a new data directory. An existing one keeps its number.
    pub shards: u16,
    /// A device that has been silent for so long sleeps: its actor ends, its state stays in the store.
    #[serde(with = "duration")]
    pub passivate_after: Duration,
    /// Allow listeners without authentication, on loopback addresses only.
    pub insecure: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        // Two shards keep two cores busy; more cost a log record and a file each per commit and cut.
        Self { shards: 2, passivate_after: Duration::from_secs(300), insecure: false }
    }
}

/// `[store]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The data directory: log, state and tables.
    pub data: PathBuf,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { data: PathBuf::from("weir-data") }
    }
}

/// `[mqtt]`: without a listener, [`Config::listen`] chooses one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttConfig {
    /// Plain TCP listener.
    pub plain: Option<SocketAddr>,
    /// TLS 1.3 listener.
    pub tls: Option<SocketAddr>,
    /// TLS 1.3 listener for devices whose certificates have expired: they may renew them there, and nothing else. Absent: there
    /// is none.
    pub recovery: Option<SocketAddr>,
    /// Days after the end of a certificate in which it can be renewed there.
    pub recovery_days: u32,
    /// Certificate chain of the TLS listener (PEM). Absent: the authority in the data directory makes one.
    pub tls_cert: Option<PathBuf>,
    /// Private key of the TLS listener (PEM).
    pub tls_key: Option<PathBuf>,
    /// Hosts and addresses that devices reach this engine by, beside `localhost`: they stand in the certificate that the
    /// authority makes for it.
    pub names: Vec<String>,
    /// Longest keep alive; MQTT 5 clients that ask for more, or for none, are told this one. Absent: any.
    #[serde(with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub max_keep_alive: Option<Duration>,
    /// Topic filters that nobody may subscribe to, nor to a part of them.
    pub no_subscribe: Vec<String>,
    /// Let clients without a certificate in on the TLS listener that have the name of a user and one of its tokens as password.
    pub user_tokens: bool,
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            plain: None,
            tls: None,
            recovery: None,
            recovery_days: 90,
            tls_cert: None,
            tls_key: None,
            names: Vec::new(),
            max_keep_alive: None,
            no_subscribe: Vec::new(),
            user_tokens: false,
        }
    }
}

/// `[durability]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DurabilityConfig {
    /// A checkpoint at least this often while records come.
    #[serde(with = "duration")]
    pub checkpoint_every: Duration,
    /// Parquet files at least this often while records come.
    #[serde(with = "duration")]
    pub cut_every: Duration,
    /// Parquet files when this many bytes of log have gathered in a shard.
    #[serde(with = "bytes_text")]
    pub cut_bytes: u64,
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        Self { checkpoint_every: Duration::from_secs(15), cut_every: Duration::from_secs(300), cut_bytes: 128 << 20 }
    }
}

/// `[tables]`: how long streams and pipelines are kept stands in their own `WITH (...)`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesConfig {
    /// How often retention and compaction look at the tables.
    #[serde(with = "duration")]
    pub retention_every: Duration,
    /// How long a file that is out of the listings stays for readers of other programs, which may have listed it before.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// How long system tables are kept, by name; those that are not named are kept for ever.
    #[serde(with = "durations")]
    pub retain: BTreeMap<String, Duration>,
    /// How long after its end a partition of a system table is cold, so that its files are merged; those that are not
    /// named are left as they are.
    #[serde(with = "durations")]
    pub compact: BTreeMap<String, Duration>,
}

impl Default for TablesConfig {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { retention_every: minute, grace: minute, retain: BTreeMap::new(), compact: BTreeMap::new() }
    }
}

/// `[pipelines]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PipelinesConfig {
    /// Folder of `.sql` files. Absent: no pipelines, every field goes to `extra`.
    pub dir: Option<PathBuf>,
    /// Whether what is saved in the folder is deployed while the engine runs; else at the next start.
    pub watch: bool,
    /// How often objects that hold reference tables are asked whether they have changed.
    #[serde(with = "duration")]
    pub objects_every: Duration,
}

impl Default for PipelinesConfig {
    fn default() -> Self {
        // A request a minute costs nothing, and reference data changes by the day.
        Self { dir: None, watch: true, objects_every: Duration::from_secs(60) }
    }
}

impl Config {
    /// Reads a file; an unknown key is an error that names the nearest known one.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str::<Self>(text).map_err(|error| explain(&error.to_string()))
    }

    /// Opens a listener for devices where none is named: with TLS, or without it if that was asked for.
    pub fn listen(&mut self) {
        if self.node.insecure {
            self.mqtt.plain.get_or_insert(SocketAddr::from(([127, 0, 0, 1], 1883)));
        } else {
            self.mqtt.tls.get_or_insert(SocketAddr::from(([0, 0, 0, 0], 8883)));
        }
    }

    /// Checks what the parts cannot check for themselves.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.node.shards == 0 || self.node.shards > 1024 {
            return Err(ConfigError::Value { key: "node.shards", message: "must be from 1 to 1024".into() });
        }
        if self.mqtt.tls_cert.is_some() != self.mqtt.tls_key.is_some() {
            let message = "a certificate needs its key: set both mqtt.tls_cert and mqtt.tls_key, or neither".into();
            return Err(ConfigError::Value { key: "mqtt.tls_cert", message });
        }
        if let Some(address) = self.mqtt.plain {
            let key = "mqtt.plain";
            if !self.node.insecure {
                let message = format!(
                    "{address} would serve anybody. Devices with certificates connect to mqtt.tls; \
                     say --insecure to serve others, on loopback"
                );
                return Err(ConfigError::Value { key, message });
            }
            if !address.ip().is_loopback() {
                let message = format!("{address} is not a loopback address; --insecure serves loopback only");
                return Err(ConfigError::Value { key, message });
            }
        }
        if let Some(address) = self.mqtt.tls.filter(|address| self.node.insecure && !address.ip().is_loopback()) {
            let message =
                format!("{address} is not a loopback address; with --insecure, devices without certificates come in");
            return Err(ConfigError::Value { key: "mqtt.tls", message });
        }
        if self.mqtt.recovery.is_some() && self.mqtt.tls.is_none() {
            let message = "devices that have renewed their certificates come back to mqtt.tls: set it".into();
            return Err(ConfigError::Value { key: "mqtt.recovery", message });
        }
        if !(1..=3650).contains(&self.mqtt.recovery_days) {
            return Err(ConfigError::Value { key: "mqtt.recovery_days", message: "must be from 1 to 3650".into() });
        }
        if let Some(name) =
            self.mqtt.names.iter().find(|name| rcgen::CertificateParams::new(vec![(*name).clone()]).is_err())
        {
            let message = format!("{name:?} is neither a host name nor an address");
            return Err(ConfigError::Value { key: "mqtt.names", message });
        }
        self.http.validate(self.node.insecure)?;
        if let Some(most) = self.mqtt.max_keep_alive
            && (most.subsec_nanos() != 0 || !(1..=u64::from(u16::MAX)).contains(&most.as_secs()))
        {
            let message = "must be whole seconds, from \"1s\" to \"65535s\" (18h 12m 15s)".into();
            return Err(ConfigError::Value { key: "mqtt.max_keep_alive", message });
        }
        for text in &self.mqtt.no_subscribe {
            let wrong = match gateway::topic_filter(text) {
                Err(why) => why,
                Ok(()) if text.starts_with("$share/") => "name the filter without $share/; it holds for groups too",
                Ok(()) => continue,
            };
            let message = format!("{text:?} is not a topic filter that can be closed: {wrong}");
            return Err(ConfigError::Value { key: "mqtt.no_subscribe", message });
        }
        self.tables.validate()?;
        self.shadow.rules()?;
        self.shadow.writers()?;
        self.alerts.validate()?;
        self.limits.validate()?;
        Ok(())
    }
}

impl TablesConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.retention_every < Duration::from_millis(100) {
            let message = "must be at least \"100ms\": each look lists the tables".into();
            return Err(ConfigError::Value { key: "tables.retention_every", message });
        }
        for (key, all) in [("tables.retain", &self.retain), ("tables.compact", &self.compact)] {
            for (name, time) in all {
                if !storage::schema::is_system(name) {
                    let message = format!(
                        "{name} is no system table (those are {}); \
                         how long a stream or pipeline is kept stands in its WITH (...)",
                        storage::schema::SYSTEM.join(", ")
                    );
                    return Err(ConfigError::Value { key, message });
                }
                if time.is_zero() && key == "tables.retain" {
                    let message = format!("{name} must be kept for longer than nothing");
                    return Err(ConfigError::Value { key, message });
                }
            }
        }
        match self.compact.iter().find(|(name, cold)| self.retain.get(*name).is_some_and(|retain| retain <= *cold)) {
            Some((name, _)) => {
                let message = format!("{name} is not kept for so long: shorten it, or leave it out");
                Err(ConfigError::Value { key: "tables.compact", message })
            }
            None => Ok(()),
        }
    }
}

/// Adds the nearest known key to an "unknown field" error.
fn explain(message: &str) -> String {
    let Some(rest) = message.split("unknown field `").nth(1) else { return message.trim_end().to_owned() };
    let Some((unknown, rest)) = rest.split_once('`') else { return message.to_owned() };
    let nearest = rest
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    match nearest {
        Some((_, known)) => format!("{}\nhelp: did you mean `{known}`?", message.trim_end()),
        None => message.trim_end().to_owned(),
    }
}

mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&humantime::format_duration(*value).to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|e| D::Error::custom(format!("`{text}` is not a duration ({e}); write for example \"15s\"")))
    }
}

mod durations {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Text(#[serde(with = "super::duration")] Duration);

    pub(super) fn serialize<S: Serializer>(all: &BTreeMap<String, Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(all.iter().map(|(name, time)| (name, Text(*time))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Duration>, D::Error> {
        let all = BTreeMap::<String, Text>::deserialize(deserializer)?;
        Ok(all.into_iter().map(|(name, Text(time))| (name, time)).collect())
    }
}

mod optional_duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }
}

mod bytes_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_bytes(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_bytes(&text)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a size; write for example \"128 MiB\"")))
    }
}

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// A size in bytes: `4096`, `64 KiB`, `128MiB`, `1 GiB`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    for (unit, shift) in UNITS {
        if let Some(number) = text.strip_suffix(unit) {
            return number.trim().parse::<u64>().ok()?.checked_mul(1 << shift);
        }
    }
    text.strip_suffix('B').unwrap_or(text).trim().parse().ok()
}

/// The shortest exact form that [`parse_bytes`] reads back.
pub fn format_bytes(bytes: u64) -> String {
    for (unit, shift) in UNITS.iter().rev() {
        if bytes > 0 && bytes.trailing_zeros() >= *shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back() {
        for bytes in [0, 1, 4096, 128 << 20, 3 << 30, 5000] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Some(bytes));
        }
        assert_eq!(parse_bytes("64KiB"), Some(65536));
        assert_eq!(parse_bytes("lots"), None);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one() {
        let error = Config::parse("[node]\nshard = 3\n").unwrap_err();
        assert!(error.contains("did you mean `shards`"), "{error}");
        assert!(error.contains("line 2"), "{error}");
        let error = Config::parse("[durability]\ncut_every = \"soon\"\n").unwrap_err();
        assert!(error.contains("`soon` is not a duration"), "{error}");
    }

    #[test]
    fn nobody_is_served_without_authentication_by_accident() {
        let mut config = Config::default();
        config.listen();
        config.validate().unwrap();
        assert_eq!((config.mqtt.plain, config.mqtt.tls.map(|address| address.port())), (None, Some(8883)));
        config.mqtt.plain = Some("127.0.0.1:1883".parse().unwrap());
        assert!(config.validate().unwrap_err().to_string().contains("--insecure"));
        config.node.insecure = true;
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with("mqtt.tls") && error.contains("loopback"), "{error}");
        let mut config = Config::default();
        config.node.insecure = true;
        config.listen();
        config.validate().unwrap();
        assert_eq!((config.mqtt.plain.map(|address| address.port()), config.mqtt.tls), (Some(1883), None));
        config.http.listen = Some("0.0.0.0:8080".parse().unwrap());
        assert!(config.validate().unwrap_err().to_string().contains("loopback only"));
    }

    #[test]
    fn the_effective_configuration_reads_back() {
        let mut config = Config::default();
        Config::parse(&toml::to_string(&config).unwrap()).unwrap();
        config.mqtt.max_keep_alive = Some(Duration::from_secs(60));
        config.mqtt.no_subscribe = vec!["secret/#".into()];
        let again = Config::parse(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again.mqtt.max_keep_alive, config.mqtt.max_keep_alive);
        assert_eq!(again.mqtt.no_subscribe, config.mqtt.no_subscribe);
    }

    #[test]
    fn how_long_system_tables_are_kept_is_said_by_name() {
        let text =
            "[tables]\ngrace = \"2m\"\n[tables.retain]\n_late = \"90 days\"\n[tables.compact]\n_late = \"1day\"\n";
        let config = Config::parse(text).unwrap();
        config.tables.validate().unwrap();
        let again = Config::parse(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!((&again.tables.retain, &again.tables.compact), (&config.tables.retain, &config.tables.compact));
        assert_eq!(again.tables.retain["_late"], Duration::from_secs(90 * 86_400));
        for (text, key, why) in [
            ("retain = { telemetry = \"1day\" }", "tables.retain", "WITH (...)"),
            ("retain = { _late = \"0s\" }", "tables.retain", "longer than nothing"),
            ("retain = { _late = \"1day\" }\ncompact = { _late = \"1day\" }", "tables.compact", "shorten"),
            ("retention_every = \"1ms\"", "tables.retention_every", "100ms"),
        ] {
            let config = Config::parse(&format!("[tables]\n{text}\n")).unwrap();
            let error = config.tables.validate().unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains(why), "{text}: {error}");
        }
        let error = Config::parse("[tables.retain]\n_late = 90\n").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn what_mqtt_cannot_do_is_refused_by_key() {
        for (text, key, why) in [
            ("recovery = \"127.0.0.1:1\"", "mqtt.recovery", "mqtt.tls"),
            ("recovery_days = 0", "mqtt.recovery_days", "1 to 3650"),
            ("max_keep_alive = \"0s\"", "mqtt.max_keep_alive", "whole seconds"),
            ("max_keep_alive = \"1500ms\"", "mqtt.max_keep_alive", "whole seconds"),
            ("max_keep_alive = \"1day\"", "mqtt.max_keep_alive", "65535s"),
            ("no_subscribe = [\"a/#/b\"]", "mqtt.no_subscribe", "a/#/b"),
            ("no_subscribe = [\"\"]", "mqtt.no_subscribe", "topic filter"),
            ("no_subscribe = [\"$share/g/a\"]", "mqtt.no_subscribe", "without $share/"),
        ] {
            let mut config = Config::parse(&format!("[mqtt]\n{text}\n")).unwrap();
            config.node.insecure = true;
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(key) && error.contains(why), "{text}: {error}");
        }
    }
}
