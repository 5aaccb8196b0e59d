//! A narrow way past the sockets, for whoever tests the gateway with bytes of his own: packets read one by one, and
//! one connection over any stream.
//!
//! The engine does not use it. Nothing here decides anything: it calls what the listeners call.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use actors::message::Ingress;
use device::time::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::connection::{RUNNING, Shared};
use super::frame::{self, Version, kind};
use super::hub::Hub;
use super::identity::Identity;
use super::{control, opening, publish};

/// A packet of a client, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its bytes, header included.
    pub len: usize,
    /// What it says.
    pub text: String,
    /// A PUBLISH once more, as the gateway writes one to a receiver.
    pub again: Option<Vec<u8>>,
}

/// Reads the packet at the start of `bytes` as one of MQTT 5 or 3.1.1. `Ok(None)`: it is not complete. `Err`: the
/// reason code that ends the connection.
pub fn packet(v5: bool, bytes: &[u8], limit: usize) -> Result<Option<Packet>, u8> {
    let version = if v5 { Version::V5 } else { Version::V3 };
    let Some(found) = frame::next(bytes, limit).map_err(|fault| fault.code)? else { return Ok(None) };
    let body = bytes.get(found.head..found.len).unwrap_or_default();
    let mut again = None;
    let text = match found.kind {
        kind::CONNECT => match control::version(body).map_err(|fault| fault.code)? {
            Ok(version) => control::connect(version, body).map(|packet| format!("{packet:?}")),
            Err(level) => Ok(format!("a CONNECT of level {level}")),
        },
        kind::PUBLISH => publish::parse(version, found.flags, body).map(|packet| {
            let properties = publish::forwarded(packet.properties);
            let outgoing = publish::Outgoing {
                topic: packet.topic,
                qos: packet.qos,
                retain: packet.retain,
                dup: found.flags & 8 != 0,
                packet_id: packet.packet_id,
                alias: packet.alias,
                expiry: packet.expiry,
                properties: &properties,
                subscriptions: &[],
                payload: packet.payload,
            };
            let mut out = Vec::with_capacity(outgoing.size(version));
            outgoing.put(version, &mut out);
            again = Some(out);
            format!("{:?}", publish::Publish { properties: &[], ..packet })
        }),
        kind::PUBACK | kind::PUBREC | kind::PUBREL | kind::PUBCOMP => {
            control::ack(version, found.kind, body).map(|packet| format!("{packet:?}"))
        }
        kind::SUBSCRIBE => control::subscribe(version, body).map(|packet| format!("{packet:?}")),
        kind::UNSUBSCRIBE => control::unsubscribe(version, body).map(|packet| format!("{packet:?}")),
        kind::DISCONNECT => control::disconnect(version, body).map(|packet| format!("{packet:?}")),
        other => Ok(format!("a packet of type {other}")),
    };
    Ok(Some(Packet { len: found.len, text: text.map_err(|fault| fault.code)?, again }))
}

/// Serves one connection over `stream`, from CONNECT to its end, as if it came through the plain listener of a
/// gateway over `hub`. Messages for wildcard subscribers are dropped: there is no bus.
pub async fn serve<I, S>(
    hub: Arc<Hub>,
    ingress: Arc<I>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
    stream: S,
) where
    I: Ingress,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (phase, leaving) = (AtomicU8::new(RUNNING), CancellationToken::new());
    let shared = Arc::new(Shared { hub, ingress, clock, random, phase, guard: None, leaving });
    opening::serve(shared, stream, (Ok(Some(Identity::anonymous())), 0), None).await;
}
