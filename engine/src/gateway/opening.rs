//! How a connection begins (CONNECT, CONNACK) and what is left to do when it has ended (DISCONNECT, will).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actors::message::{Channel, Inbound, Ingress};
use bytes::BytesMut;
use device::status::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Duration, Instant};

use super::connection::{Client, Connection, End, Peer, RUNNING, Shared, Speaker};
use super::control::{self, Connect, Will};
use super::fault::{Fault, code};
use super::frame::{self, Version, kind};
use super::hub::{Attached, LastWords};
use super::identity::Identity;
use super::ingest;
use super::limits::{CLIENT_ID, READ_MIN};
use super::message::Message;
use super::metrics::up;
use super::reply::{self, Granted};
use super::route::{self, Target};
use crate::guard::NoEntry;

/// A CONNECT is at most this long: a will of a packet's size would otherwise be read from anybody.
const CONNECT_PACKET: usize = 128 * 1024;

/// What is known of somebody before the first packet: who it is, nothing as long as no token was shown, or why a certificate opens
/// nothing; and the guard's revision at a time before it was asked.
pub(crate) type Entry = (Result<Option<Identity>, NoEntry>, u64);

/// Serves one connection from its first byte to its last.
pub(crate) async fn serve<I, S>(shared: Arc<Shared<I>>, mut io: S, (entry, revision): Entry, peer: Peer)
where
    I: Ingress,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let limits = &shared.hub.limits;
    let metrics = shared.hub.metrics.clone();
    let mut buf = BytesMut::with_capacity(READ_MIN);
    let first = tokio::time::timeout(limits.connect, read_connect(&mut io, &mut buf));
    let connect = match shared.leaving.run_until_cancelled(first).await {
        Some(Ok(Ok(Some(connect)))) => connect,
        Some(Ok(Ok(None))) | None => return,
        Some(Ok(Err(refusal))) => return refuse(&shared, &mut io, refusal, usize::MAX).await,
        Some(Err(_)) => return up(&metrics.refused_timeout),
    };
    let (version, most) = (connect.version, connect.maximum_packet as usize);
    let known = match (entry, &shared.guard) {
        (Ok(Some(identity)), _) => Ok(identity),
        (Ok(None), Some(guard)) => guard.log_in(connect.login.as_ref(), peer).await,
        (Ok(None), None) => Err(Fault::new(code::BAD_LOGIN, "nobody here knows tokens")),
        (Err(why), _) => Err(Fault::new(code::NOT_AUTHORIZED, why.text())),
    };
    let identity = match known {
        Ok(identity) => identity,
        Err(fault) => return refuse(&shared, &mut io, (version, fault), most).await,
    };
    let (connect, assigned) = match admit(&shared, &identity, connect) {
        Ok(connect) => connect,
        Err(fault) => {
            if identity.is_strict()
                && let Some(guard) = &shared.guard
            {
                guard.refused(&identity, peer, "connect", fault.text);
            }
            return refuse(&shared, &mut io, (version, fault), most).await;
        }
    };
    if let Err(fault) = came_in(&shared, &identity).await {
        return refuse(&shared, &mut io, (version, fault), most).await;
    }
    let keep_alive = granted_keep_alive(limits.keep_alive, &connect);
    let expiry = shared.hub.expiry(connect.session_expiry).as_secs();
    let granted = Granted {
        session_expiry: (u64::from(connect.session_expiry) > expiry).then_some(expiry as u32),
        receive_maximum: limits.receive_maximum,
        maximum_packet: limits.packet as u32,
        topic_aliases: limits.topic_aliases,
        keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
        assigned,
    };
    if !reply::connack(version, false, &granted, most, &mut Vec::new()) {
        let fault = Fault::new(code::TOO_LARGE, "the answer would be larger than the client's maximum packet size");
        return refuse(&shared, &mut io, (version, fault), most).await;
    }
    let client: Arc<str> = Arc::from(identity.session(&connect.client_id));
    let attached = match shared.hub.attach(client, &connect).await {
        Ok(attached) => attached,
        Err(fault) => return refuse(&shared, &mut io, (version, fault), most).await,
    };
    publish_wills(&shared, attached.last_words).await;
    let Attached { session, core, present, claim, .. } = Attached { last_words: Vec::new(), ..attached };
    let mut out = Vec::new();
    reply::connack(version, present, &granted, most, &mut out);
    let client = Client {
        version,
        maximum_packet: most,
        topic_aliases: connect.topic_aliases.min(limits.topic_aliases),
        problem_information: connect.problem_information,
        silence: (keep_alive > 0).then(|| Duration::from_millis(u64::from(keep_alive) * 1500)),
        persistent: connect.session_expiry > 0,
    };
    drop(connect);
    tracing::debug!(client = %session.client, ?version, present, "connected");
    let speaker = Speaker { identity, revision, peer };
    // On the heap: the task then costs what a connection needs and not what its opening needed.
    let mut connection =
        Box::new(Connection::new(shared.clone(), io, speaker, client, session, core, claim, (buf, out)));
    let end = connection.run().await;
    close(&shared, connection, end).await;
}

/// A refusal of a CONNECT: how to say it, and what.
type Refusal = (Version, Fault);

async fn read_connect<S: AsyncRead + Unpin>(io: &mut S, buf: &mut BytesMut) -> Result<Option<Connect>, Refusal> {
    loop {
        // Before the version is known a fault cannot be answered; it is counted as one of the older version.
        match frame::next(buf, CONNECT_PACKET).map_err(|fault| (Version::V3, fault))? {
            Some(found) if found.kind != kind::CONNECT => {
                return Err((Version::V3, Fault::protocol("the first packet is not CONNECT")));
            }
            Some(found) => {
                let packet = buf.split_to(found.len);
                let body = packet.get(found.head..).unwrap_or_default();
                let version = match control::version(body).map_err(|fault| (Version::V3, fault))? {
                    Ok(version) => version,
                    Err(level) => {
                        let version = if level > 5 { Version::V5 } else { Version::V3 };
                        return Err((version, Fault::new(code::VERSION, "speak MQTT 3.1.1 or 5")));
                    }
                };
                return control::connect(version, body).map(Some).map_err(|fault| (version, fault));
            }
            None => {
                if buf.capacity() == buf.len() {
                    buf.reserve(buf.len().max(READ_MIN));
                }
                match io.read_buf(buf).await {
                    Ok(0) | Err(_) => return Ok(None),
                    Ok(_) => {}
                }
            }
        }
    }
}

/// Checks what a CONNECT asks for, and gives a client without a name one.
fn admit<I: Ingress>(
    shared: &Shared<I>,
    identity: &Identity,
    mut connect: Connect,
) -> Result<(Connect, Option<String>), Fault> {
    if shared.phase.load(Ordering::Acquire) != RUNNING {
        return Err(Fault::new(code::SHUTTING_DOWN, "the server is shutting down"));
    }
    if connect.authentication {
        return Err(Fault::new(code::AUTH_METHOD, "there is no extended authentication"));
    }
    if connect.client_id.len() > CLIENT_ID {
        return Err(Fault::new(code::CLIENT_ID, "the client identifier is longer than 1024 bytes"));
    }
    if let Some(will) = connect.will.as_ref().filter(|_| identity.is_strict()) {
        if !identity.may_publish(&will.topic) {
            return Err(Fault::new(code::NOT_AUTHORIZED, identity.closed("the topic of the will is not open to you")));
        }
        if will.retain && !identity.may_retain(&will.topic) {
            return Err(Fault::new(code::NOT_AUTHORIZED, "only status may be retained, also as a will"));
        }
    }
    if let Some(own) = identity.client_id() {
        if connect.client_id == own {
            return Ok((connect, None));
        }
        if !connect.client_id.is_empty() {
            return Err(Fault::new(code::CLIENT_ID, "the client identifier must be the device id in the certificate"));
        }
        connect.client_id = own.to_owned();
        return Ok((connect, Some(own.to_owned())));
    }
    if !connect.client_id.is_empty() {
        return Ok((connect, None));
    }
    if connect.version == Version::V3 && !connect.clean {
        return Err(Fault::new(code::CLIENT_ID, "a persistent session needs a client identifier"));
    }
    let name = format!("auto-{:016x}{:016x}", (shared.random)(), (shared.random)());
    connect.client_id.clone_from(&name);
    Ok((connect, Some(name)))
}

/// Notes that a certificate is in use, before its holder is told that it is in: else it could lapse all the same.
async fn came_in<I: Ingress>(shared: &Shared<I>, identity: &Identity) -> Result<(), Fault> {
    let Some(guard) = shared.guard.clone().filter(|guard| guard.awaits(identity)) else { return Ok(()) };
    match guard.came_in(identity).await {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(%error, "the first use of a certificate cannot be noted");
            Err(Fault::new(code::BUSY, "the registry of certificates cannot be written; try again"))
        }
    }
}

/// MQTT 5 clients can be told a shorter keep alive than they asked for; others keep their own.
fn granted_keep_alive(most: Option<u16>, connect: &Connect) -> u16 {
    match most {
        Some(most) if connect.version == Version::V5 && (connect.keep_alive == 0 || connect.keep_alive > most) => most,
        _ => connect.keep_alive,
    }
}

async fn refuse<I, S>(shared: &Shared<I>, io: &mut S, (version, fault): Refusal, limit: usize)
where
    I: Ingress,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let metrics = &shared.hub.metrics;
    up(match fault.code {
        code::VERSION => &metrics.refused_version,
        code::CLIENT_ID | code::NOT_AUTHORIZED | code::AUTH_METHOD | code::BAD_LOGIN => &metrics.refused_identity,
        code::BUSY | code::CONNECTION_RATE | code::QUOTA | code::SHUTTING_DOWN | code::TAKEN_OVER => {
            &metrics.refused_busy
        }
        _ => &metrics.refused_protocol,
    });
    // 3.1.1 forbids an answer to a malformed CONNECT.
    let silent = version == Version::V3
        && matches!(fault.code, code::MALFORMED | code::PROTOCOL | code::TOO_LARGE | code::TOPIC_NAME);
    if silent {
        return;
    }
    let mut out = Vec::new();
    reply::connack_refused(version, fault.code, fault.text, limit, &mut out);
    part(io, &out, if fault.code == code::SHUTTING_DOWN { LINGER_QUIET } else { LINGER }).await;
}

async fn close<I, S>(shared: &Arc<Shared<I>>, mut connection: Box<Connection<I, S>>, end: End)
where
    I: Ingress,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let metrics = &shared.hub.metrics;
    let said = match &end {
        End::Fault(fault) => {
            if fault.code != code::KEEP_ALIVE {
                up(&metrics.protocol_errors);
            }
            Some((fault.code, Some(fault.text)))
        }
        End::Told(code) => Some((*code, None)),
        End::Client(_) | End::Lost | End::Stalled => None,
    };
    tracing::debug!(client = %connection.session.client, ?end, "disconnected");
    if let Some((code, text)) = said
        && connection.client.version == Version::V5
    {
        let text = text.filter(|_| connection.client.problem_information);
        let limit = connection.client.maximum_packet;
        reply::disconnect(code, text, limit, &mut connection.out);
    }
    let mut will = true;
    if let End::Client(disconnect) = &end {
        // Whatever else the client says than that all is well, its will is wanted.
        will = disconnect.code != code::SUCCESS;
        if let Some(seconds) = disconnect.session_expiry {
            connection.core.expiry = shared.hub.expiry(seconds);
        }
    }
    // A server that goes takes the sessions with it, and says nothing in its clients' names.
    will &= end != End::Told(code::SHUTTING_DOWN);
    connection.counts.hand_in(metrics);
    let Connection { mut io, out, written, core, session, .. } = *connection;
    // The session first: a client that takes over must not wait for our last words to an unreachable peer.
    let last_words = shared.hub.detach(&session, core, will);
    publish_wills(shared, last_words).await;
    if end != End::Lost {
        let linger = match said {
            None => Duration::ZERO,
            Some((code::SHUTTING_DOWN, _)) => LINGER_QUIET,
            Some(_) => LINGER,
        };
        part(&mut io, out.get(written..).unwrap_or_default(), linger).await;
    }
}

/// A socket that is closed with something unread, or written to after it is closed, resets the connection, and the
/// peer then may not read what we said last. So a client that is sent away while it is still sending has this long
/// to hear why.
const LINGER: Duration = Duration::from_secs(8);
/// A client that is silent for this long has heard it, or will when it looks.
const LINGER_QUIET: Duration = Duration::from_secs(1);
/// Bytes that are read and forgotten at most: more than the buffers of both sockets hold.
const LINGER_BYTES: usize = 16 << 20;

/// Says the last words, and listens for at most `linger` without heeding what comes, until the client goes.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, words: &[u8], linger: Duration) {
    let write = async {
        io.write_all(words).await?;
        io.shutdown().await
    };
    let written = tokio::time::timeout(Duration::from_secs(2), write).await;
    if matches!(written, Ok(Ok(()))) && !linger.is_zero() {
        let _ = tokio::time::timeout(linger, drain(io)).await;
    }
}

async fn drain<S: AsyncRead + Unpin>(io: &mut S) {
    let mut scratch = [0; 2048];
    let mut rest = LINGER_BYTES;
    while rest > 0 {
        match tokio::time::timeout(LINGER_QUIET, io.read(&mut scratch)).await {
            Ok(Ok(count)) if count > 0 => rest = rest.saturating_sub(count),
            _ => return,
        }
    }
}

/// Sends wills whose time has come, to where their topics lead.
pub(crate) async fn publish_wills<I: Ingress>(shared: &Arc<Shared<I>>, wills: Vec<LastWords>) {
    for LastWords { will, publisher } in wills {
        up(&shared.hub.metrics.wills);
        match route::target(&will.topic, &Identity::anonymous()) {
            Target::Device(channel, device) => {
                if channel == Channel::Status && !is_late(shared, &will) {
                    announce(shared, will.clone(), publisher);
                }
                let format = will.content_type.as_deref().and_then(ingest::format);
                let credit = shared.ingress.admission().admit(will.payload.len()).await;
                let message = (channel, will.payload, format, credit);
                tell_device(shared, &device, message).await;
            }
            Target::Live => announce(shared, will, publisher),
            // Of an anonymous speaker nothing leads there.
            Target::Stray { .. } | Target::Denied | Target::Provisioning(_) | Target::Renewal(_) => {
                up(&shared.hub.metrics.wills_denied)
            }
        }
    }
}

/// Whether a device has come back since: its will must not take the place of what it says now.
fn is_late<I: Ingress>(shared: &Arc<Shared<I>>, will: &Will) -> bool {
    let latest = shared.hub.retained.lock().page(&will.topic, None, 1, Instant::now()).messages.pop();
    latest.is_some_and(|latest| Status::is_late(&will.payload, &latest.payload))
}

/// Retains a will if it asks for it, and publishes it.
fn announce<I: Ingress>(shared: &Arc<Shared<I>>, will: Will, publisher: u64) {
    let message = Message {
        topic: Arc::from(will.topic),
        payload: will.payload,
        qos: will.qos,
        retain: will.retain,
        properties: will.properties,
        expires: will.expiry.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds))),
        publisher,
    };
    if message.retain {
        // A full store is counted there; the live copy goes out all the same.
        let _ = shared.hub.retain(&message);
    }
    shared.hub.announce(message);
}

/// A will on a device's inbound topic is a message like any other, except that nobody waits for its outcome.
async fn tell_device<I: Ingress>(
    shared: &Arc<Shared<I>>,
    device: &device::id::DeviceId,
    (channel, payload, format, credit): (
        Channel,
        bytes::Bytes,
        Option<device::payload::PayloadFormat>,
        actors::admission::Credit,
    ),
) {
    let mut inbound = Inbound {
        channel,
        payload,
        format,
        received: (shared.clock)(),
        session: (shared.random)() >> 1,
        reply: None,
        credit,
    };
    // A device that falls asleep between the two steps is woken again; more than a few times does not happen.
    for _ in 0..3 {
        let door = shared.ingress.open(device).await;
        match shared.ingress.push(&door, inbound) {
            Ok(()) => return,
            Err(back) => inbound = back,
        }
    }
}
