//! Plain records: one CBOR map or one JSON object per message.

use std::io::Write as _;

use super::workload::Reading;

/// Keys of the three readings, in the order of [`Reading::values`].
const FIELDS: [&[u8]; 3] = [b"temperature", b"humidity", b"vibration"];

/// Appends one record as a CBOR map with text keys (about 88 bytes).
pub(crate) fn put_cbor(out: &mut Vec<u8>, epoch: u64, reading: &Reading) {
    out.push(0xa6);
    out.extend_from_slice(b"\x65epoch");
    put_head(out, 0, epoch);
    out.extend_from_slice(b"\x63seq");
    put_head(out, 0, u64::from(reading.seq));
    out.extend_from_slice(b"\x62ts");
    put_head(out, 0, reading.ts as u64);
    for (name, value) in FIELDS.iter().zip(reading.values()) {
        put_head(out, 3, name.len() as u64);
        out.extend_from_slice(name);
        put_double(out, value);
    }
}

/// Appends one record as a JSON object.
pub(crate) fn put_json(out: &mut Vec<u8>, epoch: u64, reading: &Reading) {
    let [temperature, humidity, vibration] = reading.values();
    // Writing into a Vec cannot fail.
    let _ = write!(
        out,
        "{{\"epoch\":{epoch},\"seq\":{},\"ts\":{},\"temperature\":{temperature},\"humidity\":{humidity},\"vibration\":{vibration}}}",
        reading.seq, reading.ts
    );
}

/// Appends the head of a CBOR item: major type and argument, in the fewest bytes.
pub(crate) fn put_head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    if value < 24 {
        out.push(major | value as u8);
    } else if let Ok(value) = u8::try_from(value) {
        out.extend_from_slice(&[major | 24, value]);
    } else if let Ok(value) = u16::try_from(value) {
        out.push(major | 25);
        out.extend_from_slice(&value.to_be_bytes());
    } else if let Ok(value) = u32::try_from(value) {
        out.push(major | 26);
        out.extend_from_slice(&value.to_be_bytes());
    } else {
        out.push(major | 27);
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends a signed CBOR integer.
pub(crate) fn put_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 { put_head(out, 1, !value as u64) } else { put_head(out, 0, value as u64) }
}

/// Appends a CBOR double.
pub(crate) fn put_double(out: &mut Vec<u8>, value: f64) {
    out.push(0xfb);
    out.extend_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use minicbor::Decoder;

    const READING: Reading =
        Reading { seq: 300, ts: 1_790_000_000_123_456_789, temperature: 2345, humidity: 4501, vibration: 17 };

    #[test]
    fn cbor_is_what_it_says() {
        let mut out = Vec::new();
        put_cbor(&mut out, 123_456, &READING);
        let mut d = Decoder::new(&out);
        assert_eq!(d.map().unwrap(), Some(6));
        assert_eq!((d.str().unwrap(), d.u64().unwrap()), ("epoch", 123_456));
        assert_eq!((d.str().unwrap(), d.u64().unwrap()), ("seq", 300));
        assert_eq!((d.str().unwrap(), d.i64().unwrap()), ("ts", READING.ts));
        assert_eq!((d.str().unwrap(), d.f64().unwrap()), ("temperature", 23.45));
        assert_eq!((d.str().unwrap(), d.f64().unwrap()), ("humidity", 45.01));
        assert_eq!((d.str().unwrap(), d.f64().unwrap()), ("vibration", 0.017));
        assert_eq!(d.position(), out.len());
        assert!(out.len() < 100);
    }

    #[test]
    fn json_is_what_it_says() {
        let mut out = Vec::new();
        put_json(&mut out, 5, &READING);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["ts"], 1_790_000_000_123_456_789i64);
        assert_eq!(value["vibration"], 0.017);
    }

    #[test]
    fn signed_integers() {
        for value in [0i64, 23, 24, -1, -24, -25, -256, 65_536, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            put_int(&mut out, value);
            assert_eq!(Decoder::new(&out).i64().unwrap(), value);
        }
    }
}
