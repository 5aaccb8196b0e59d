//! `[http]` and `[limits]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, bytes_text, duration};

/// `[http]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Listener of API and metrics.
    pub listen: Option<SocketAddr>,
    /// Whether it speaks TLS. Absent: unless it is on a loopback address and has no certificate of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Certificate chain (PEM). Absent: one of the engine's own authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        let listen = Some(SocketAddr::from(([127, 0, 0, 1], 8080)));
        Self { listen, tls: None, tls_cert: None, tls_key: None }
    }
}

impl HttpConfig {
    /// Whether the listener speaks TLS.
    pub fn speaks_tls(&self) -> bool {
        let open = self.listen.is_some_and(|address| !address.ip().is_loopback());
        self.tls.unwrap_or(open || self.tls_cert.is_some())
    }

    pub(super) fn validate(&self, insecure: bool) -> Result<(), ConfigError> {
        let wrong = |key, message| Err(ConfigError::Value { key, message });
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let message = "a certificate needs its key: set both http.tls_cert and http.tls_key, or neither";
            return wrong("http.tls_cert", message.to_owned());
        }
        let Some(address) = self.listen else { return Ok(()) };
        if address.ip().is_loopback() {
            return Ok(());
        }
        if insecure {
            let message = format!("{address} is not a loopback address; --insecure serves loopback only");
            return wrong("http.listen", message);
        }
        if !self.speaks_tls() {
            let message = format!(
                "{address} is not a loopback address, and tokens must not go over a network in the clear: \
                 leave http.tls out, or listen on 127.0.0.1"
            );
            return wrong("http.tls", message);
        }
        Ok(())
    }
}

/// `[limits]`: every bound, each with its reason in [`crate::limits`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of messages between socket and log, over all connections.
    #[serde(with = "bytes_text")]
    pub in_flight: u64,
    /// MQTT connections.
    pub connections: usize,
    /// MQTT connections of one address.
    pub connections_per_address: usize,
    /// Messages a second that a device with a certificate may publish, a gateway for each device it speaks for; 0: any number.
    pub messages_per_second: u32,
    /// MQTT packets of any kind a second that a client with a name may send, a gateway for each device it speaks for; each filter of a
    /// SUBSCRIBE or UNSUBSCRIBE counts like a packet; 0: any number.
    pub packets_per_second: u32,
    /// Subscriptions of one MQTT session.
    pub subscriptions: usize,
    /// Largest MQTT packet.
    #[serde(with = "bytes_text")]
    pub packet: u64,
    /// HTTP connections.
    pub http_connections: usize,
    /// Largest body of an HTTP request.
    #[serde(with = "bytes_text")]
    pub body: u64,
    /// HTTP requests a second of one user; for a moment twice as many.
    pub requests_per_user: u32,
    /// HTTP requests a second of one address; for a moment twice as many.
    pub requests_per_address: u32,
    /// HTTP requests a minute of one address whose tokens are not accepted.
    pub failed_logins: u32,
    /// Requests a minute of one address for a first certificate over HTTP.
    pub enrolments: u32,
    /// Queries of one user at a time.
    pub queries: usize,
    /// Memory of all queries together.
    #[serde(with = "bytes_text")]
    pub query_memory: u64,
    /// Rows that `/v1/query` returns at most.
    pub query_rows: usize,
    /// Longest time of one query.
    #[serde(with = "duration")]
    pub query_time: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            in_flight: crate::limits::IN_FLIGHT,
            connections: crate::limits::CONNECTIONS,
            connections_per_address: crate::limits::CONNECTIONS_PER_ADDRESS,
            messages_per_second: crate::limits::MESSAGES_PER_SECOND,
            packets_per_second: crate::limits::PACKETS_PER_SECOND,
            subscriptions: crate::limits::SUBSCRIPTIONS,
            packet: crate::limits::PACKET,
            http_connections: crate::limits::HTTP_CONNECTIONS,
            body: crate::limits::BODY,
            requests_per_user: crate::limits::REQUESTS_PER_USER,
            requests_per_address: crate::limits::REQUESTS_PER_ADDRESS,
            failed_logins: crate::limits::FAILED_LOGINS,
            enrolments: crate::limits::ENROLMENTS,
            queries: crate::limits::QUERIES,
            query_memory: crate::limits::QUERY_MEMORY,
            query_rows: crate::limits::QUERY_ROWS,
            query_time: crate::limits::QUERY_TIME,
        }
    }
}

impl LimitsConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.in_flight < 1 << 20 {
            return Err(ConfigError::Value { key: "limits.in_flight", message: "must be at least 1 MiB".into() });
        }
        let counts = [
            ("limits.connections_per_address", self.connections_per_address),
            ("limits.subscriptions", self.subscriptions),
            ("limits.http_connections", self.http_connections),
            ("limits.requests_per_user", self.requests_per_user as usize),
            ("limits.requests_per_address", self.requests_per_address as usize),
            ("limits.failed_logins", self.failed_logins as usize),
            ("limits.enrolments", self.enrolments as usize),
            ("limits.queries", self.queries),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((key, _)) => Err(ConfigError::Value { key, message: "must be at least 1".into() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_over_a_network_with_tls_only() {
        let at = |text: &str, tls: Option<bool>| HttpConfig {
            listen: Some(text.parse().unwrap()),
            tls,
            ..HttpConfig::default()
        };
        assert!(!at("127.0.0.1:80", None).speaks_tls());
        assert!(at("127.0.0.1:80", Some(true)).speaks_tls());
        assert!(at("0.0.0.0:80", None).speaks_tls());
        at("0.0.0.0:80", None).validate(false).unwrap();
        at("[::1]:80", Some(false)).validate(false).unwrap();
        let error = at("0.0.0.0:80", Some(false)).validate(false).unwrap_err().to_string();
        assert!(error.starts_with("http.tls") && error.contains("in the clear"), "{error}");
        let error = at("0.0.0.0:80", None).validate(true).unwrap_err().to_string();
        assert!(error.contains("loopback only"), "{error}");
        let half = HttpConfig { tls_cert: Some("a".into()), ..HttpConfig::default() };
        assert!(half.validate(false).unwrap_err().to_string().contains("needs its key"));
    }

    #[test]
    fn a_limit_of_nothing_is_named() {
        let limits = LimitsConfig { queries: 0, ..LimitsConfig::default() };
        assert!(limits.validate().unwrap_err().to_string().starts_with("limits.queries"));
    }
}
