//! Every default bound of the engine, with its reason.

use std::time::Duration;

/// Bytes of messages between socket and log. Two commits of a fast disk's worth at full rate; in memory a small
/// message costs about three times its bytes on the wire.
pub const IN_FLIGHT: u64 = 32 << 20;

/// MQTT connections: half of the usual hard limit of open files, which files and queries need too.
pub const CONNECTIONS: usize = 10_000;

/// Largest MQTT packet. A frame has at most 64 KiB; plain arrays may be larger, up to 1 MiB with their topic.
pub const PACKET: u64 = (1 << 20) + 4096;

/// HTTP connections: people, dashboards and programs, not devices.
pub const HTTP_CONNECTIONS: usize = 1024;

/// Largest body of an HTTP request: the longest SQL text, or a group of tens of thousands of devices.
pub const BODY: u64 = 1 << 20;

/// MQTT connections of one address: many devices may stand behind one, but one must not take all places.
pub const CONNECTIONS_PER_ADDRESS: usize = 20_000;

/// Messages a second of one device: more than any sends one by one; who has more to say sends frames.
pub const MESSAGES_PER_SECOND: u32 = 2000;

/// MQTT packets of any kind a second of one device: its messages with all that is said about them (QoS 2 has four packets a
/// message), and room for commands; what is more is no telemetry.
pub const PACKETS_PER_SECOND: u32 = 10_000;

/// Subscriptions of one MQTT session: a device needs one, an application some dozens.
pub const SUBSCRIPTIONS: usize = 1000;

/// HTTP requests a second of one user: ten dashboards that ask ten times a second.
pub const REQUESTS_PER_USER: u32 = 100;

/// HTTP requests a second of one address, behind which there may be several users.
pub const REQUESTS_PER_ADDRESS: u32 = 500;

/// HTTP requests a minute of one address whose tokens are not accepted. A secret has 256 bits; this bounds what the
/// attempts cost.
pub const FAILED_LOGINS: u32 = 20;

/// Requests a minute of one address for a first certificate over HTTP: devices on a bench, one after the other.
pub const ENROLMENTS: u32 = 120;

/// Queries of one user at a time: each has a thread and its share of the memory.
pub const QUERIES: usize = 8;

/// Memory of all queries together.
pub const QUERY_MEMORY: u64 = 1 << 30;

/// Rows that one answer of the HTTP API holds; a client that needs more reads the Parquet files.
pub const QUERY_ROWS: usize = 1_000_000;

/// Longest time of one query through the HTTP API.
pub const QUERY_TIME: Duration = Duration::from_secs(60);

/// Durable records on their way to a shard's consumer. Their credit is still held, so this bounds no memory; it
/// only keeps the committer from running ahead of a consumer that writes files.
pub const CONSUMER_QUEUE: usize = 1024;
