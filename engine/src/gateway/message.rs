//! A live message, and its way to one session.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::time::{Duration, Instant};

/// A message on its way to subscribers. Shared by all of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) topic: Arc<str>,
    pub(crate) payload: Bytes,
    /// As published.
    pub(crate) qos: u8,
    /// As published; what a subscriber sees depends on its subscription.
    pub(crate) retain: bool,
    /// MQTT 5 properties that go with it, encoded (see [`super::publish::forwarded`]).
    pub(crate) properties: Bytes,
    /// When it is of no use any more.
    pub(crate) expires: Option<Instant>,
    /// Number of the session that published it, for "no local"; 0 for the engine.
    pub(crate) publisher: u64,
}

impl Message {
    /// What it costs to keep it.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len() + std::mem::size_of::<Self>()
    }

    /// Seconds left, rounded up; `None`: it does not expire. `Some(0)`: it has expired.
    pub(crate) fn seconds_left(&self, now: Instant) -> Option<u32> {
        self.expires.map(|at| {
            let left = at.saturating_duration_since(now);
            left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0)).min(u64::from(u32::MAX)) as u32
        })
    }

    /// Whether it has expired.
    pub(crate) fn expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// One message for one session.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Identifiers of the subscriptions that it matched.
    pub(crate) ids: Vec<u32>,
}

/// A message as it travels through the bus: everything the hub needs to finish the delivery on the other side.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) message: Message,
    /// Sessions with an exact and a wildcard subscription for it: they get one copy, from the other side.
    pub(crate) through: Vec<u64>,
}

impl Envelope {
    /// Writes it. `origin` is what expiry is counted from; it must be the same on both sides.
    pub(crate) fn encode(&self, origin: Instant, out: &mut BytesMut) {
        let message = &self.message;
        out.reserve(64 + message.topic.len() + message.properties.len() + message.payload.len());
        out.put_u64(message.publisher);
        out.put_u8(message.qos << 1 | u8::from(message.retain));
        // 0 stands for "does not expire"; a message that expires at the origin itself has expired long ago.
        let expires = message.expires.map_or(0, |at| at.saturating_duration_since(origin).as_nanos().max(1) as u64);
        out.put_u64(expires);
        out.put_u32(self.through.len() as u32);
        for session in &self.through {
            out.put_u64(*session);
        }
        out.put_u16(message.topic.len() as u16);
        out.put_slice(message.topic.as_bytes());
        out.put_u32(message.properties.len() as u32);
        out.put_slice(&message.properties);
        out.put_slice(&message.payload);
    }

    /// Reads one. `None` if it is not what [`Envelope::encode`] wrote.
    pub(crate) fn decode(mut bytes: Bytes, origin: Instant) -> Option<Self> {
        let publisher = bytes.try_get_u64().ok()?;
        let flags = bytes.try_get_u8().ok()?;
        let expires = bytes.try_get_u64().ok()?;
        let count = bytes.try_get_u32().ok()? as usize;
        if bytes.len() < count.checked_mul(8)? {
            return None;
        }
        let through = (0..count).map_while(|_| bytes.try_get_u64().ok()).collect();
        let topic = bytes.try_get_u16().ok().map(usize::from).filter(|len| *len <= bytes.len())?;
        let topic = bytes.split_to(topic);
        let properties = bytes.try_get_u32().ok().map(|len| len as usize).filter(|len| *len <= bytes.len())?;
        let properties = bytes.split_to(properties);
        let message = Message {
            topic: Arc::from(std::str::from_utf8(&topic).ok()?),
            payload: bytes,
            qos: flags >> 1,
            retain: flags & 1 != 0,
            properties,
            expires: (expires > 0).then(|| origin + Duration::from_nanos(expires)),
            publisher,
        };
        Some(Self { message, through })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_gives_back_what_was_put_in() {
        let origin = Instant::now();
        let now = origin + Duration::from_millis(1500);
        let message = Message {
            topic: Arc::from("é/temp"),
            payload: Bytes::from_static(b"load"),
            qos: 2,
            retain: true,
            properties: Bytes::from_static(&[1, 1]),
            expires: Some(now + Duration::from_millis(2500)),
            publisher: 77,
        };
        assert_eq!(message.seconds_left(now), Some(3));
        assert!(message.expired(now + Duration::from_millis(2500)));
        let envelope = Envelope { message, through: vec![1, 2] };
        let mut out = BytesMut::new();
        envelope.encode(origin, &mut out);
        let bytes = out.freeze();
        assert_eq!(Envelope::decode(bytes.clone(), origin), Some(envelope));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(Envelope::decode(bytes.slice(..cut), origin), None, "cut at {cut}");
        }
    }
}
