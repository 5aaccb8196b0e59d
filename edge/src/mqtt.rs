//! One MQTT connection of a device: TCP or TLS, 5.0 or 3.1.1, on tokio.
//!
//! The protocol itself comes from `mqtt-protocol-core`, which does no I/O; this is the only place that knows it.
//! [`Link`] reads and writes at the same time, so a peer that stops reading cannot block our reading, and what
//! waits to be written is visible ([`Link::queued`]) to whoever must slow down. Absent: reconnecting, and any
//! session that outlives the connection: what was not acknowledged is sent again by the owner of the data.

mod packet;
mod tls;

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use mqtt_protocol_core::mqtt::connection::{ConnectionOptions, Event, TimerKind};
use mqtt_protocol_core::mqtt::packet::Packet;
use mqtt_protocol_core::mqtt::{Connection, Version, common::Cursor, role};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

pub use tls::TlsConfig;

/// Largest packet taken from the engine: the largest thing it sends is a configuration document.
const MAX_INCOMING: u32 = 1 << 20;
/// How long connecting may take, TLS and CONNACK included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read at once.
const READ: usize = 4 << 10;

/// Which MQTT is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5.0.
    #[default]
    V5,
    /// MQTT 3.1.1.
    V311,
}

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct MqttConfig {
    /// `host:port`.
    pub address: String,
    /// With TLS, or plainly.
    pub tls: Option<TlsConfig>,
    /// Which MQTT.
    pub protocol: Protocol,
    /// Silence after which a ping is sent.
    pub keep_alive: Duration,
}

impl MqttConfig {
    /// Plain MQTT 5.0 to this `host:port`.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), tls: None, protocol: Protocol::V5, keep_alive: Duration::from_secs(30) }
    }
}

/// Why a connection failed or ended.
#[derive(Debug, thiserror::Error)]
pub enum MqttError {
    /// The network.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The certificate authority, or what the engine presented.
    #[error("tls: {0}")]
    Tls(String),
    /// The engine said no.
    #[error("the engine refused the connection: {0}")]
    Refused(String),
    /// The engine refused the device's own topics.
    #[error("the engine refused the subscription to {0}")]
    Subscription(String),
    /// No answer in time.
    #[error("no answer within {} s: is the engine running at this address?", .0.as_secs())]
    Timeout(Duration),
    /// The peer breaks the protocol, or we would.
    #[error("{0}")]
    Protocol(String),
    /// The engine closed the connection.
    #[error("the engine closed the connection{0}")]
    Closed(String),
}

impl MqttError {
    /// Whether the engine has refused our certificate because it has expired.
    pub fn is_expired(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        let cause = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        matches!(cause, Some(rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired)))
    }
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct Outgoing<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// 0 or 1.
    pub qos: u8,
    /// Whether the engine keeps it for later subscribers.
    pub retain: bool,
    /// Whether it was sent before (QoS 1).
    pub dup: bool,
    /// MIME type (MQTT 5).
    pub content_type: Option<&'a str>,
}

/// Who connects, and what is said when the connection dies.
#[derive(Debug, Clone)]
pub struct Hail {
    /// Client id.
    pub client_id: String,
    /// Topic and payload of the will; QoS 1, retained.
    pub will: Option<(String, Vec<u8>)>,
    /// Topics to subscribe to, with QoS 1 at most.
    pub subscribe: Vec<String>,
}

/// What comes from the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message.
    Message {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// A QoS 1 message of ours is acknowledged.
    Acknowledged {
        /// Its packet id.
        id: u16,
        /// Why it was refused, if it was (MQTT 5 only).
        refused: Option<String>,
    },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that stands.
pub struct Link {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
    protocol: Protocol,
    core: Connection<role::Client>,
    /// Bytes to send.
    out: BytesMut,
    /// Bytes read.
    input: BytesMut,
    /// When to send a ping, and when one has not been answered.
    ping_at: Option<Instant>,
    pong_by: Option<Instant>,
    received: Vec<Incoming>,
    failure: Option<MqttError>,
    connected: Option<Result<(), String>>,
    subscribed: Option<Result<(), ()>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("protocol", &self.protocol).field("queued", &self.out.len()).finish()
    }
}

impl Link {
    /// Connects, says who we are, subscribes; returns when the engine agreed to all of it.
    pub async fn connect(config: &MqttConfig, hail: &Hail) -> Result<Self, MqttError> {
        match timeout(CONNECT_TIMEOUT, Self::establish(config, hail)).await {
            Ok(result) => result,
            Err(_) => Err(MqttError::Timeout(CONNECT_TIMEOUT)),
        }
    }

    async fn establish(config: &MqttConfig, hail: &Hail) -> Result<Self, MqttError> {
        let failed = |source| MqttError::Io { doing: "cannot connect", source };
        let tcp = TcpStream::connect(&config.address).await.map_err(failed)?;
        // Frames are gathered already; waiting for more only delays acks.
        tcp.set_nodelay(true).map_err(failed)?;
        let stream: Box<dyn Stream> = match &config.tls {
            None => Box::new(tcp),
            Some(tls) => Box::new(tls::connect(tls, &config.address, tcp).await?),
        };
        let (read, write) = tokio::io::split(stream);
        let options = ConnectionOptions::new().maximum_packet_size_recv(MAX_INCOMING).receive_maximum(64);
        let version = match config.protocol {
            Protocol::V5 => Version::V5_0,
            Protocol::V311 => Version::V3_1_1,
        };
        let mut core = Connection::<role::Client>::with_options(version, options);
        core.set_auto_pub_response(true);
        core.set_pingresp_recv_timeout(config.keep_alive.as_millis() as u64);
        let mut link = Self {
            read,
            write,
            protocol: config.protocol,
            core,
            out: BytesMut::new(),
            input: BytesMut::new(),
            ping_at: None,
            pong_by: None,
            received: Vec::new(),
            failure: None,
            connected: None,
            subscribed: None,
        };
        let connect = packet::connect(config, hail)?;
        link.send(connect)?;
        loop {
            match link.connected.take() {
                Some(Ok(())) => break,
                Some(Err(reason)) => return Err(MqttError::Refused(reason)),
                None => link.turn().await?,
            }
        }
        if !hail.subscribe.is_empty() {
            let id = link.core.acquire_packet_id().map_err(packet::broken)?;
            let subscribe = packet::subscribe(config.protocol, id, &hail.subscribe)?;
            link.send(subscribe)?;
            loop {
                match link.subscribed.take() {
                    Some(Ok(())) => break,
                    Some(Err(())) => return Err(MqttError::Subscription(hail.subscribe.join(", "))),
                    None => link.turn().await?,
                }
            }
        }
        Ok(link)
    }

    /// Queues a message. Returns the packet id of a QoS 1 message.
    pub fn publish(&mut self, message: &Outgoing<'_>) -> Result<Option<u16>, MqttError> {
        let id = match message.qos {
            0 => None,
            _ => Some(self.core.acquire_packet_id().map_err(packet::broken)?),
        };
        let packet = packet::publish(self.protocol, id, message)?;
        self.send(packet)?;
        Ok(id)
    }

    /// How many QoS 1 messages the engine takes beyond those it has not acknowledged.
    pub fn vacancy(&self) -> usize {
        self.core.get_receive_maximum_vacancy_for_send().map_or(usize::from(u16::MAX), usize::from)
    }

    /// Bytes that wait for the socket.
    pub fn queued(&self) -> usize {
        self.out.len()
    }

    /// Waits until something comes in, something goes out or a timer runs out. Returns what came in, which may be
    /// nothing. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Incoming>, MqttError> {
        if self.received.is_empty() {
            self.turn().await?;
        }
        Ok(std::mem::take(&mut self.received))
    }

    /// Writes until nothing is queued.
    pub async fn flush(&mut self) -> Result<(), MqttError> {
        while !self.out.is_empty() {
            self.turn().await?;
        }
        self.write.flush().await.map_err(|source| MqttError::Io { doing: "cannot write", source })
    }

    /// Says goodbye, so that the will is not published.
    pub async fn disconnect(mut self) -> Result<(), MqttError> {
        let packet = packet::disconnect(self.protocol)?;
        self.send(packet)?;
        self.flush().await?;
        self.write.shutdown().await.map_err(|source| MqttError::Io { doing: "cannot close", source })
    }

    async fn turn(&mut self) -> Result<(), MqttError> {
        let lost = |source| MqttError::Io { doing: "the connection broke", source };
        self.input.reserve(READ);
        let timer = self.ping_at.into_iter().chain(self.pong_by).min();
        let unsent = !self.out.is_empty();
        tokio::select! {
            read = self.read.read_buf(&mut self.input) => {
                if read.map_err(lost)? == 0 {
                    return Err(self.failure.take().unwrap_or_else(|| MqttError::Closed(String::new())));
                }
                self.take_input()?;
            }
            written = self.write.write_buf(&mut self.out), if unsent => {
                written.map_err(lost)?;
                if self.out.is_empty() && self.out.capacity() > 8 * READ {
                    self.out = BytesMut::new();
                }
                // TLS keeps what it encrypted until it is flushed.
                if self.out.is_empty() {
                    self.write.flush().await.map_err(lost)?;
                }
            }
            () = sleep_until(timer), if timer.is_some() => self.fire()?,
        }
        Ok(())
    }

    fn take_input(&mut self) -> Result<(), MqttError> {
        while !self.input.is_empty() {
            let mut cursor = Cursor::new(&self.input[..]);
            let events = self.core.recv(&mut cursor);
            let taken = cursor.position() as usize;
            self.input.advance(taken.min(self.input.len()));
            let idle = events.is_empty();
            self.handle(events)?;
            if idle && taken == 0 {
                break;
            }
        }
        Ok(())
    }

    fn fire(&mut self) -> Result<(), MqttError> {
        let now = Instant::now();
        if self.ping_at.take_if(|at| *at <= now).is_some() {
            let events = self.core.notify_timer_fired(TimerKind::PingreqSend);
            self.handle(events)?;
        }
        if self.pong_by.take_if(|at| *at <= now).is_some() {
            return Err(MqttError::Closed(": it did not answer a ping".to_owned()));
        }
        Ok(())
    }

    fn send(&mut self, packet: Packet) -> Result<(), MqttError> {
        let events = self.core.send(packet);
        self.handle(events)
    }

    fn handle(&mut self, events: Vec<Event>) -> Result<(), MqttError> {
        for event in events {
            match event {
                Event::RequestSendPacket { packet, .. } => packet::write(&packet, &mut self.out),
                Event::NotifyPacketReceived(packet) => self.received(packet),
                Event::NotifyPacketIdReleased(_) => {}
                Event::RequestTimerReset { kind, duration_ms } => {
                    let at = Some(Instant::now() + Duration::from_millis(duration_ms));
                    match kind {
                        TimerKind::PingreqSend => self.ping_at = at,
                        TimerKind::PingrespRecv => self.pong_by = at,
                        TimerKind::PingreqRecv => {}
                    }
                }
                Event::RequestTimerCancel(TimerKind::PingreqSend) => self.ping_at = None,
                Event::RequestTimerCancel(TimerKind::PingrespRecv) => self.pong_by = None,
                Event::RequestTimerCancel(TimerKind::PingreqRecv) => {}
                Event::NotifyError(error) => return Err(self.failure.take().unwrap_or(packet::broken(error))),
                Event::RequestClose => {
                    return Err(self.failure.take().unwrap_or_else(|| MqttError::Closed(String::new())));
                }
            }
        }
        Ok(())
    }

    fn received(&mut self, packet: Packet) {
        match packet::read(packet) {
            packet::Read::Incoming(incoming) => self.received.push(incoming),
            packet::Read::Connected(result) => self.connected = Some(result),
            packet::Read::Subscribed(all) => self.subscribed = Some(if all { Ok(()) } else { Err(()) }),
            packet::Read::Disconnected(reason) => self.failure = Some(MqttError::Closed(format!(": {reason}"))),
            packet::Read::Other => {}
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
