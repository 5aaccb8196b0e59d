//! PUBLISH, read and written without a copy of anything.
//!
//! It is the one packet on the hot path, so it does not go through the protocol library: parsing borrows from the
//! read buffer. Properties that travel with a message to its receivers are kept as the bytes they came in.

use bytes::{BufMut, Bytes};

use super::fault::{Fault, code};
use super::frame::{self, Version, kind};
use super::topic;

/// Property identifiers that a PUBLISH may hold.
pub(crate) mod property {
    pub(crate) const PAYLOAD_FORMAT: u8 = 1;
    pub(crate) const EXPIRY: u8 = 2;
    pub(crate) const CONTENT_TYPE: u8 = 3;
    pub(crate) const RESPONSE_TOPIC: u8 = 8;
    pub(crate) const CORRELATION_DATA: u8 = 9;
    pub(crate) const SUBSCRIPTION_ID: u8 = 11;
    pub(crate) const TOPIC_ALIAS: u8 = 35;
    pub(crate) const USER_PROPERTY: u8 = 38;
}

/// A PUBLISH as it stands in the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    /// Empty only when `alias` stands for it.
    pub(crate) topic: &'a str,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// 0 with QoS 0.
    pub(crate) packet_id: u16,
    /// 0: none.
    pub(crate) alias: u16,
    pub(crate) expiry: Option<u32>,
    pub(crate) content_type: Option<&'a str>,
    /// All properties, checked, as they came.
    pub(crate) properties: &'a [u8],
    /// The payload is the rest of the packet.
    pub(crate) payload: &'a [u8],
}

/// Reads the body of a PUBLISH that a client sent.
pub(crate) fn parse(version: Version, flags: u8, body: &[u8]) -> Result<Publish<'_>, Fault> {
    let mut rest = body;
    let qos = (flags >> 1) & 3;
    if qos == 3 {
        return Err(Fault::malformed("QoS 3 does not exist"));
    }
    if qos == 0 && flags & 8 != 0 {
        return Err(Fault::malformed("DUP must not be set with QoS 0"));
    }
    let topic = frame::take_field(&mut rest)?;
    let packet_id = if qos > 0 { frame::take_u16(&mut rest)? } else { 0 };
    if qos > 0 && packet_id == 0 {
        return Err(Fault::protocol("packet identifier 0 must not be used"));
    }
    let mut publish = Publish {
        topic: "",
        qos,
        retain: flags & 1 != 0,
        packet_id,
        alias: 0,
        expiry: None,
        content_type: None,
        properties: &[],
        payload: &[],
    };
    if version == Version::V5 {
        read_properties(&mut rest, &mut publish)?;
    }
    if !(topic.is_empty() && publish.alias != 0) {
        publish.topic = topic::name(topic)?;
    }
    publish.payload = rest;
    Ok(publish)
}

fn read_properties<'a>(rest: &mut &'a [u8], publish: &mut Publish<'a>) -> Result<(), Fault> {
    let properties = frame::take_properties(rest)?;
    publish.properties = properties;
    let mut left = properties;
    let mut seen = 0u64;
    while !left.is_empty() {
        let id = frame::take_u8(&mut left)?;
        if id != property::USER_PROPERTY && id < 64 {
            if seen & (1 << id) != 0 {
                return Err(Fault::protocol("a property stands twice that may stand once"));
            }
            seen |= 1 << id;
        }
        match id {
            property::PAYLOAD_FORMAT if frame::take_u8(&mut left)? > 1 => {
                return Err(Fault::protocol("the payload format indicator is 0 or 1"));
            }
            property::PAYLOAD_FORMAT => {}
            property::EXPIRY => publish.expiry = Some(frame::take_u32(&mut left)?),
            property::CONTENT_TYPE => publish.content_type = Some(frame::take_text(&mut left)?),
            property::RESPONSE_TOPIC => {
                topic::name(frame::take_field(&mut left)?)
                    .map_err(|_| Fault::protocol("the response topic is not a valid topic name"))?;
            }
            property::CORRELATION_DATA => {
                frame::take_field(&mut left)?;
            }
            property::TOPIC_ALIAS => match frame::take_u16(&mut left)? {
                0 => return Err(Fault::new(code::TOPIC_ALIAS, "topic alias 0 must not be used")),
                alias => publish.alias = alias,
            },
            property::USER_PROPERTY => {
                frame::take_text(&mut left)?;
                frame::take_text(&mut left)?;
            }
            property::SUBSCRIPTION_ID => {
                return Err(Fault::protocol("a client must not send a subscription identifier in PUBLISH"));
            }
            _ => return Err(Fault::malformed("PUBLISH holds a property that it cannot have")),
        }
    }
    Ok(())
}

/// The properties that go on to receivers unchanged: all but expiry (it counts down) and topic alias (it belongs
/// to one connection). The section must have been checked by [`parse`].
pub(crate) fn forwarded(properties: &[u8]) -> Bytes {
    if properties.is_empty() {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(properties.len());
    let mut left = properties;
    while let Some(&id) = left.first() {
        let len = match id {
            property::PAYLOAD_FORMAT => 2,
            property::TOPIC_ALIAS => 3,
            property::EXPIRY => 5,
            property::USER_PROPERTY => {
                let key = field_len(left, 1);
                1 + key + field_len(left, 1 + key)
            }
            _ => 1 + field_len(left, 1),
        };
        let Some((one, rest)) = left.split_at_checked(len) else { break };
        if id != property::TOPIC_ALIAS && id != property::EXPIRY {
            out.extend_from_slice(one);
        }
        left = rest;
    }
    Bytes::from(out)
}

fn field_len(buf: &[u8], at: usize) -> usize {
    let byte = |i: usize| usize::from(buf.get(i).copied().unwrap_or(0));
    2 + (byte(at) << 8 | byte(at + 1))
}

/// What is written into a PUBLISH to a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// Empty when an alias that the client knows stands for it.
    pub(crate) topic: &'a str,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    pub(crate) packet_id: u16,
    /// 0: none.
    pub(crate) alias: u16,
    pub(crate) expiry: Option<u32>,
    /// As [`forwarded`] gave them.
    pub(crate) properties: &'a [u8],
    pub(crate) subscriptions: &'a [u32],
    pub(crate) payload: &'a [u8],
}

impl Outgoing<'_> {
    /// Bytes of the property section, without its length.
    fn properties_len(&self) -> usize {
        let ids: usize = self.subscriptions.iter().map(|id| 1 + frame::varint_len(*id as usize)).sum();
        self.properties.len() + ids + if self.expiry.is_some() { 5 } else { 0 } + if self.alias != 0 { 3 } else { 0 }
    }

    fn remaining(&self, version: Version) -> usize {
        let properties = match version {
            Version::V3 => 0,
            Version::V5 => frame::varint_len(self.properties_len()) + self.properties_len(),
        };
        2 + self.topic.len() + if self.qos > 0 { 2 } else { 0 } + properties + self.payload.len()
    }

    /// Bytes of the whole packet.
    pub(crate) fn size(&self, version: Version) -> usize {
        let remaining = self.remaining(version);
        1 + frame::varint_len(remaining) + remaining
    }

    /// Writes the packet.
    pub(crate) fn put(&self, version: Version, out: &mut Vec<u8>) {
        let remaining = self.remaining(version);
        out.reserve(5 + remaining);
        out.put_u8(kind::PUBLISH << 4 | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain));
        frame::put_varint(out, remaining);
        out.put_u16(self.topic.len() as u16);
        out.put_slice(self.topic.as_bytes());
        if self.qos > 0 {
            out.put_u16(self.packet_id);
        }
        if version == Version::V5 {
            frame::put_varint(out, self.properties_len());
            if let Some(expiry) = self.expiry {
                out.put_u8(property::EXPIRY);
                out.put_u32(expiry);
            }
            if self.alias != 0 {
                out.put_u8(property::TOPIC_ALIAS);
                out.put_u16(self.alias);
            }
            out.put_slice(self.properties);
            for id in self.subscriptions {
                out.put_u8(property::SUBSCRIPTION_ID);
                frame::put_varint(out, *id as usize);
            }
        }
        out.put_slice(self.payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mqtt_protocol_core::mqtt::Arc;
    use mqtt_protocol_core::mqtt::packet::v5_0;

    fn packet(flags: u8, body: &[u8]) -> Result<Publish<'_>, Fault> {
        parse(Version::V5, flags, body)
    }

    #[test]
    fn a_publish_with_every_property_is_read_and_passed_on() {
        let mut properties = vec![1, 1, 2, 0, 0, 0, 60, 3, 0, 4];
        properties.extend_from_slice(b"text");
        properties.extend_from_slice(&[8, 0, 1, b'r', 9, 0, 2, 7, 8, 35, 0, 5, 38, 0, 1, b'k', 0, 1, b'v']);
        let mut body = vec![0, 1, b't', 0, 9, properties.len() as u8];
        body.extend_from_slice(&properties);
        body.extend_from_slice(b"load");
        let publish = packet(0b0011, &body).unwrap();
        assert_eq!((publish.topic, publish.qos, publish.retain, publish.packet_id), ("t", 1, true, 9));
        assert_eq!((publish.alias, publish.expiry, publish.content_type), (5, Some(60), Some("text")));
        assert_eq!(publish.payload, b"load");
        let kept = forwarded(publish.properties);
        assert_eq!(kept.len(), properties.len() - 5 - 3, "expiry and alias stay behind");

        let outgoing = Outgoing {
            topic: "t",
            qos: 1,
            retain: true,
            dup: false,
            packet_id: 9,
            alias: 0,
            expiry: Some(59),
            properties: &kept,
            subscriptions: &[1, 300],
            payload: b"load",
        };
        let mut out = Vec::new();
        outgoing.put(Version::V5, &mut out);
        assert_eq!(out.len(), outgoing.size(Version::V5));
        let frame = frame::next(&out, 1000).unwrap().unwrap();
        assert_eq!(frame.len, out.len());
        let (read, _) = v5_0::Publish::parse(frame.flags, Arc::from(&out[frame.head..])).unwrap();
        assert_eq!(read.props().len(), 8, "the library reads what we write: {read:?}");
    }

    #[test]
    fn what_a_client_must_not_send_is_refused() {
        for (flags, body, expected) in [
            (0b0110u8, &[0u8, 1, b't', 0, 1, 0][..], code::MALFORMED),
            (0b1000, &[0, 1, b't', 0][..], code::MALFORMED),
            (0b0010, &[0, 1, b't', 0, 0, 0][..], code::PROTOCOL),
            (0, &[0, 0, 0][..], code::TOPIC_NAME),
            (0, &[0, 3, b'a', b'/', b'#', 0][..], code::TOPIC_NAME),
            (0, &[0, 1, b't', 3, 35, 0, 0][..], code::TOPIC_ALIAS),
            (0, &[0, 1, b't', 2, 11, 1][..], code::PROTOCOL),
            (0, &[0, 1, b't', 4, 1, 0, 1, 0][..], code::PROTOCOL),
            (0, &[0, 1, b't', 2, 1, 2][..], code::PROTOCOL),
            (0, &[0, 1, b't', 2, 99, 2][..], code::MALFORMED),
            (0, &[0, 1, b't', 9, 2][..], code::MALFORMED),
            (0, &[0, 9, b't'][..], code::MALFORMED),
            (0, &[0, 1, b't'][..], code::MALFORMED),
            (0, &[][..], code::MALFORMED),
            (0, &[0, 1, b't', 5, 8, 0, 2, b'a', b'+'][..], code::PROTOCOL),
        ] {
            assert_eq!(packet(flags, body).unwrap_err().code, expected, "{flags} {body:?}");
        }
        assert!(parse(Version::V3, 0, &[0, 1, b't']).unwrap().payload.is_empty());
    }
}
