//! The few MQTT 3.1.1 packets a publisher needs, written and found by hand: a generator that spends more than the
//! system it measures measures itself.

/// First byte of a PUBACK.
pub(crate) const PUBACK: u8 = 0x40;
/// First byte of a CONNACK.
pub(crate) const CONNACK: u8 = 0x20;
/// First byte of a SUBACK.
pub(crate) const SUBACK: u8 = 0x90;
/// The whole of a DISCONNECT.
pub(crate) const DISCONNECT: [u8; 2] = [0xe0, 0];

/// A CONNECT with a clean session and a keep-alive of ten minutes.
pub(crate) fn connect(client: &str) -> Vec<u8> {
    let mut out = vec![0x10];
    put_length(&mut out, 12 + client.len());
    out.extend_from_slice(&[0, 4, b'M', b'Q', b'T', b'T', 4, 2, 2, 88]);
    put_text(&mut out, client.as_bytes());
    out
}

/// A SUBSCRIBE to all of `filters`.
pub(crate) fn subscribe(id: u16, filters: &[String], qos: u8) -> Vec<u8> {
    let mut out = vec![0x82];
    put_length(&mut out, 2 + filters.iter().map(|f| f.len() + 3).sum::<usize>());
    out.extend_from_slice(&id.to_be_bytes());
    for filter in filters {
        put_text(&mut out, filter.as_bytes());
        out.push(qos);
    }
    out
}

/// A PUBLISH; `id` counts only above QoS 0.
pub(crate) fn put_publish(out: &mut Vec<u8>, topic: &[u8], id: u16, qos: u8, payload: &[u8]) {
    out.push(0x30 | qos << 1);
    put_length(out, 2 + topic.len() + if qos > 0 { 2 } else { 0 } + payload.len());
    put_text(out, topic);
    if qos > 0 {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 128 {
        out.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
}

/// The first packet of `bytes`: its first byte, its body, and how many bytes it takes. `None`: not all there yet.
pub(crate) fn first(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let kind = *bytes.first()?;
    let mut length = 0usize;
    for (at, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 127) << (7 * at);
        if byte & 128 == 0 {
            let start = 2 + at;
            let body = bytes.get(start..start + length)?;
            return Some((kind, body, start + length));
        }
    }
    None
}

/// Topic and payload of the body of a received PUBLISH, and its packet id above QoS 0.
pub(crate) fn publish_parts(kind: u8, body: &[u8]) -> Option<(&[u8], Option<u16>, &[u8])> {
    let (length, rest) = body.split_first_chunk::<2>()?;
    let (topic, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    if kind & 0x06 == 0 {
        return Some((topic, None, rest));
    }
    let (id, payload) = rest.split_first_chunk::<2>()?;
    Some((topic, Some(u16::from_be_bytes(*id)), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_again() {
        for size in [0usize, 1, 100, 127, 128, 20_000] {
            let payload = vec![7u8; size];
            let mut bytes = Vec::new();
            put_publish(&mut bytes, b"devices/d1/telemetry", 77, 1, &payload);
            bytes.extend_from_slice(&DISCONNECT);
            let (kind, body, used) = first(&bytes).unwrap();
            assert_eq!(publish_parts(kind, body).unwrap(), (&b"devices/d1/telemetry"[..], Some(77), &payload[..]));
            assert_eq!(&bytes[used..], &DISCONNECT);
            assert!(first(&bytes[..used - 1]).is_none());
        }
    }
}
