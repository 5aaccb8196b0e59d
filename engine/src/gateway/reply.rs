//! Packets that the gateway writes, apart from PUBLISH.
//!
//! Written by hand: they are short, none can fail, and the common ones (PUBACK) are written by the hundred. The
//! tests read each of them back with the protocol library.

use bytes::BufMut;

use super::frame::{self, Version, kind};

/// Properties of CONNACK that may differ from what a client would assume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) session_expiry: Option<u32>,
    pub(crate) receive_maximum: u16,
    pub(crate) maximum_packet: u32,
    pub(crate) topic_aliases: u16,
    pub(crate) keep_alive: Option<u16>,
    pub(crate) assigned: Option<String>,
}

/// CONNACK that accepts; false, and nothing written, if it would be larger than `limit`. Maximum QoS is not written: 2 is what its absence means, and so with retain, wildcard,
/// shared subscriptions and subscription identifiers, which are written all the same, if there is room, because
/// clients print them.
pub(crate) fn connack(version: Version, present: bool, granted: &Granted, limit: usize, out: &mut Vec<u8>) -> bool {
    [true, false].into_iter().any(|talkative| {
        let before = out.len();
        put_connack(version, present, granted, talkative, out);
        let fits = out.len() - before <= limit;
        if !fits {
            out.truncate(before);
        }
        fits
    })
}

fn put_connack(version: Version, present: bool, granted: &Granted, talkative: bool, out: &mut Vec<u8>) {
    let mut properties = Vec::new();
    if version == Version::V5 {
        if let Some(expiry) = granted.session_expiry {
            properties.put_u8(17);
            properties.put_u32(expiry);
        }
        properties.put_u8(33);
        properties.put_u16(granted.receive_maximum);
        if talkative {
            properties.put_slice(&[37, 1]);
        }
        properties.put_u8(39);
        properties.put_u32(granted.maximum_packet);
        if let Some(assigned) = &granted.assigned {
            properties.put_u8(18);
            put_text(&mut properties, assigned);
        }
        properties.put_u8(34);
        properties.put_u16(granted.topic_aliases);
        if talkative {
            properties.put_slice(&[40, 1, 41, 1, 42, 1]);
        }
        if let Some(seconds) = granted.keep_alive {
            properties.put_u8(19);
            properties.put_u16(seconds);
        }
    }
    put(version, kind::CONNACK, &[u8::from(present), 0], Some(&properties), &[], out);
}

/// CONNACK that refuses, with a MQTT 5 reason code.
///
/// A client's maximum packet size is not known where its CONNECT could not be read, so the words are kept short.
pub(crate) fn connack_refused(version: Version, reason: u8, text: &str, limit: usize, out: &mut Vec<u8>) {
    use super::fault::code;
    let byte = match (version, reason) {
        (Version::V5, reason) => reason,
        (Version::V3, code::VERSION) => 1,
        (Version::V3, code::CLIENT_ID) => 2,
        (Version::V3, code::BAD_LOGIN) => 4,
        (Version::V3, code::NOT_AUTHORIZED) => 5,
        // 3.1.1 knows no other words: the server is unavailable (to this client).
        (Version::V3, _) => 3,
    };
    let words = reason_string(text);
    // Fixed header, flags, code, length of the properties.
    let words = if words.len() + 8 <= limit { &words[..] } else { &[] };
    if 5 <= limit {
        put(version, kind::CONNACK, &[0, byte], Some(words), &[], out);
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. `limit` is the client's maximum packet size: a reason string that would
/// break it is left out.
pub(crate) fn ack(
    version: Version,
    kind: u8,
    id: u16,
    reason: u8,
    text: Option<&str>,
    limit: usize,
    out: &mut Vec<u8>,
) {
    let [high, low] = id.to_be_bytes();
    if version == Version::V3 || reason == 0 {
        out.extend_from_slice(&[first(kind), 2, high, low]);
        return;
    }
    let properties = text.map(reason_string).filter(|properties| properties.len() + 10 <= limit);
    match properties {
        Some(properties) => put(version, kind, &[high, low, reason], Some(&properties), &[], out),
        None => out.extend_from_slice(&[first(kind), 3, high, low, reason]),
    }
}

/// SUBACK. In 3.1.1 every refusal is 0x80.
pub(crate) fn suback(version: Version, id: u16, codes: &[u8], out: &mut Vec<u8>) {
    let codes: Vec<u8> = match version {
        Version::V5 => codes.to_vec(),
        Version::V3 => codes.iter().map(|code| if *code > 2 { 0x80 } else { *code }).collect(),
    };
    put(version, kind::SUBACK, &id.to_be_bytes(), Some(&[]), &codes, out);
}

/// UNSUBACK. In 3.1.1 it has no codes.
pub(crate) fn unsuback(version: Version, id: u16, codes: &[u8], out: &mut Vec<u8>) {
    let codes = if version == Version::V5 { codes } else { &[] };
    put(version, kind::UNSUBACK, &id.to_be_bytes(), Some(&[]), codes, out);
}

/// PINGRESP.
pub(crate) fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[first(kind::PINGRESP), 0]);
}

/// DISCONNECT, for MQTT 5 only: in 3.1.1 a server just closes.
pub(crate) fn disconnect(reason: u8, text: Option<&str>, limit: usize, out: &mut Vec<u8>) {
    let properties = text.map(reason_string).filter(|properties| properties.len() + 8 <= limit);
    match properties {
        Some(properties) => put(Version::V5, kind::DISCONNECT, &[reason], Some(&properties), &[], out),
        None => out.extend_from_slice(&[first(kind::DISCONNECT), 1, reason]),
    }
}

fn put(version: Version, kind: u8, head: &[u8], properties: Option<&[u8]>, tail: &[u8], out: &mut Vec<u8>) {
    let properties = properties.filter(|_| version == Version::V5);
    let middle = properties.map_or(0, |p| frame::varint_len(p.len()) + p.len());
    out.put_u8(first(kind));
    frame::put_varint(out, head.len() + middle + tail.len());
    out.put_slice(head);
    if let Some(properties) = properties {
        frame::put_varint(out, properties.len());
        out.put_slice(properties);
    }
    out.put_slice(tail);
}

fn first(kind: u8) -> u8 {
    kind << 4 | if kind == kind::PUBREL { 2 } else { 0 }
}

/// A reason string: cut to a size that fits any client, at a character's border.
fn reason_string(text: &str) -> Vec<u8> {
    let mut end = text.len().min(1024);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = vec![31];
    // U+0000 is not allowed in any string; a text quoting a payload could hold one.
    put_text(&mut out, &text.get(..end).unwrap_or_default().replace('\0', "\u{fffd}"));
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};

    fn body(out: &[u8], kind: u8) -> &[u8] {
        let frame = frame::next(out, 1 << 20).unwrap().unwrap();
        assert_eq!((frame.kind, frame.len), (kind, out.len()));
        &out[frame.head..]
    }

    #[test]
    fn the_library_reads_what_we_write() {
        let granted = Granted {
            session_expiry: Some(7),
            receive_maximum: 100,
            maximum_packet: 4096,
            topic_aliases: 3,
            keep_alive: Some(60),
            assigned: Some("auto-1".into()),
        };
        let mut out = Vec::new();
        assert!(connack(Version::V5, true, &granted, usize::MAX, &mut out));
        let (packet, used) = v5_0::Connack::parse(body(&out, kind::CONNACK)).unwrap();
        assert!(packet.session_present() && used == out.len() - 2);
        assert_eq!(packet.props().len(), 10);

        let full = out.len();
        out.clear();
        assert!(connack(Version::V5, true, &granted, full - 1, &mut out), "what says nothing is left out");
        assert_eq!(v5_0::Connack::parse(body(&out, kind::CONNACK)).unwrap().0.props().len(), 6);
        let short = out.len();
        out.clear();
        assert!(!connack(Version::V5, true, &granted, short - 1, &mut out) && out.is_empty());

        connack(Version::V3, false, &granted, usize::MAX, &mut out);
        assert_eq!(out, [0x20, 2, 0, 0]);

        out.clear();
        connack_refused(Version::V5, 0x85, "no", 13, &mut out);
        assert!(v5_0::Connack::parse(body(&out, kind::CONNACK)).is_ok());
        out.clear();
        connack_refused(Version::V5, 0x85, "no", 9, &mut out);
        assert_eq!(out, [0x20, 3, 0, 0x85, 0]);
        out.clear();
        connack_refused(Version::V5, 0x85, "no", 4, &mut out);
        assert!(out.is_empty());
        out.clear();
        connack_refused(Version::V3, 0x85, "no", usize::MAX, &mut out);
        assert_eq!(out, [0x20, 2, 0, 2]);

        out.clear();
        suback(Version::V5, 5, &[0, 2, 0x8f], &mut out);
        assert_eq!(v5_0::Suback::parse(body(&out, kind::SUBACK)).unwrap().0.reason_codes().len(), 3);
        out.clear();
        suback(Version::V3, 5, &[0, 0x8f], &mut out);
        assert_eq!(v3_1_1::Suback::parse(body(&out, kind::SUBACK)).unwrap().0.return_codes().len(), 2);
        out.clear();
        unsuback(Version::V5, 5, &[0, 0x11], &mut out);
        assert_eq!(v5_0::Unsuback::parse(body(&out, kind::UNSUBACK)).unwrap().0.reason_codes().len(), 2);
        out.clear();
        disconnect(0x8e, Some("elsewhere"), 100, &mut out);
        assert!(v5_0::Disconnect::parse(body(&out, kind::DISCONNECT)).is_ok());
    }

    #[test]
    fn acks_are_short_and_respect_the_clients_limit() {
        let mut out = Vec::new();
        ack(Version::V5, kind::PUBACK, 258, 0, None, 100, &mut out);
        ack(Version::V3, kind::PUBREL, 1, 0x92, Some("x"), 100, &mut out);
        assert_eq!(out, [0x40, 2, 1, 2, 0x62, 2, 0, 1]);
        out.clear();
        ack(Version::V5, kind::PUBACK, 1, 0x99, Some("the payload is empty"), 1000, &mut out);
        assert!(v5_0::Puback::parse(body(&out, kind::PUBACK)).is_ok());
        out.clear();
        ack(Version::V5, kind::PUBACK, 1, 0x99, Some("the payload is empty"), 12, &mut out);
        assert_eq!(out, [0x40, 3, 0, 1, 0x99]);
        out.clear();
        ack(Version::V5, kind::PUBREC, 1, 0x99, Some(&"é".repeat(4000)), 1 << 20, &mut out);
        assert!(v5_0::Pubrec::parse(body(&out, kind::PUBREC)).is_ok() && out.len() < 1100);
    }
}
