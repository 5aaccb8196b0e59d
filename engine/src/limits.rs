//! Every default bound of the engine, with its reason.

use std::time::Duration;

/// Bytes of messages between socket and log. Two commits of a fast disk's worth at full rate; in memory a small
/// message costs about three times its bytes on the wire.
pub const IN_FLIGHT: u64 = 32 << 20;

/// MQTT connections: half of the usual hard limit of open files, which files and queries need too.
pub const CONNECTIONS: usize = 10_000;

/// Largest MQTT packet. A frame has at most 64 KiB; plain arrays may be larger, up to 1 MiB with their topic.
pub const PACKET: u64 = (1 << 20) + 4096;

/// Memory of all queries together.
pub const QUERY_MEMORY: u64 = 1 << 30;

/// Rows that one answer of the HTTP API holds; a client that needs more reads the Parquet files.
pub const QUERY_ROWS: usize = 1_000_000;

/// Longest time of one query through the HTTP API.
pub const QUERY_TIME: Duration = Duration::from_secs(60);

/// Durable records on their way to a shard's consumer. Their credit is still held, so this bounds no memory; it
/// only keeps the committer from running ahead of a consumer that writes files.
pub const CONSUMER_QUEUE: usize = 1024;
