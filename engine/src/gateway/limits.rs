//! Every bound of the gateway, each with its reason.

use std::time::Duration;

/// What one gateway may hold and how long it waits. The defaults suit one machine with up to 100,000 devices.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections, TLS handshakes included. Each costs a task and a file descriptor.
    pub connections: usize,
    /// Open connections of one address. Many devices may stand behind one; one address must not take all places.
    pub connections_per_address: usize,
    /// Messages per second that a device with a certificate may publish, for itself and for each of its children; 0: any. Its
    /// socket is not read when it publishes more.
    pub messages_per_second: u32,
    /// Packets of any kind per second that a client with a name may send, a gateway for itself and for each of its children; 0: any.
    /// Its socket is not read when it sends more.
    pub packets_per_second: u32,
    /// TLS handshakes at one time: they burn CPU before anybody has proved who they are.
    pub handshakes: usize,
    /// A TLS handshake takes two round trips; a 2G link needs seconds for that, an attacker takes for ever.
    pub handshake: Duration,
    /// From the first byte we could read to a complete CONNECT.
    pub connect: Duration,
    /// Largest packet that is read: a frame of 64 KiB or a plain batch, with room for properties.
    pub packet: usize,
    /// QoS 1 and 2 messages that a client may have unacknowledged (MQTT 5 receive maximum). A 3.1.1 client cannot
    /// be told: its socket is not read beyond this number.
    pub receive_maximum: u16,
    /// Topic aliases per connection and direction: each costs a copy of the topic.
    pub topic_aliases: u16,
    /// Longest keep alive that is accepted; `None` accepts all, also 0 (never).
    pub keep_alive: Option<u16>,
    /// Filters that nobody may subscribe to, nor to a part of them.
    pub no_subscribe: Vec<String>,
    /// Longest time that a session outlives its connection. Sessions live in memory only.
    pub session_expiry: Duration,
    /// Sessions, connected or not.
    pub sessions: usize,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Messages that wait for one session, connected or not.
    pub queue_messages: usize,
    /// Bytes that wait for one session.
    pub queue_bytes: usize,
    /// Bytes that wait for all sessions together.
    pub queued_bytes: usize,
    /// Retained messages.
    pub retained_messages: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
    /// A peer that takes no byte for this long while we have some for it is gone.
    pub write_stall: Duration,
    /// Bytes on their way through the bus. rumqttd's ring is made larger, so that it never overwrites unread ones.
    pub bus_bytes: usize,
    /// The bus has this long to give back a message before it counts as dead.
    pub bus_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_address: 20_000,
            messages_per_second: 2000,
            packets_per_second: 10_000,
            handshakes: 1024,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(8),
            packet: 256 * 1024,
            receive_maximum: 1024,
            topic_aliases: 32,
            keep_alive: None,
            no_subscribe: Vec::new(),
            session_expiry: Duration::from_secs(7 * 24 * 3600),
            sessions: 200_000,
            subscriptions: 1000,
            queue_messages: 1000,
            queue_bytes: 1 << 20,
            queued_bytes: 256 << 20,
            retained_messages: 500_000,
            retained_bytes: 256 << 20,
            write_stall: Duration::from_secs(30),
            bus_bytes: 4 << 20,
            bus_deadline: Duration::from_secs(5),
        }
    }
}

/// Unwritten bytes of a connection above which it neither reads nor takes further messages from its queue.
pub(crate) const OUT_HIGH: usize = 128 * 1024;
/// Largest read at one time: about 700 messages of a typical device.
pub(crate) const READ_MAX: usize = 64 * 1024;
/// Read buffer of a quiet connection.
pub(crate) const READ_MIN: usize = 512;
/// Levels of a topic filter: bounds the depth of the subscription tree, and so of its recursion.
pub(crate) const FILTER_LEVELS: usize = 64;
/// Longest client identifier in bytes.
pub(crate) const CLIENT_ID: usize = 1024;
/// Topics whose route a connection remembers; a gateway device speaks for this many children without a new lookup.
pub(crate) const ROUTES: usize = 1024;
