//! Telling payload formats apart: by what the sender declared, else by the first bytes.

use super::wire::{Item, Wire};
use super::{PayloadFormat, Refusal};
use crate::entry::Reason;

/// The format that a content type names; parameters (`; charset=utf-8`) do not matter.
pub fn content_type(text: &str) -> Option<PayloadFormat> {
    let name = text.split(';').next().unwrap_or_default().trim();
    [
        ("application/json", PayloadFormat::Json),
        ("application/cbor", PayloadFormat::Cbor),
        ("application/vnd.weir.frame+cbor", PayloadFormat::Frame),
    ]
    .into_iter()
    .find_map(|(known, format)| name.eq_ignore_ascii_case(known).then_some(format))
}

/// The format of a payload. What was declared counts, but for CBOR whose first key is the integer 0: that is a
/// frame whatever the sender calls it.
pub fn detect(payload: &[u8], declared: Option<PayloadFormat>) -> Result<PayloadFormat, Refusal> {
    let Some(first) = payload.iter().copied().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) else {
        return Err(match payload.len() {
            0 => Refusal::new(Reason::Empty, "the payload is empty: send a JSON object, a CBOR map or a frame"),
            _ => Refusal::new(Reason::BadPayload, "the payload is only white space: send a JSON object"),
        });
    };
    match declared {
        Some(PayloadFormat::Cbor) if is_frame(payload) => return Ok(PayloadFormat::Frame),
        Some(format) => return Ok(format),
        None => {}
    }
    if matches!(first, b'{' | b'[') {
        return Ok(PayloadFormat::Json);
    }
    if is_frame(payload) {
        return Ok(PayloadFormat::Frame);
    }
    let body = payload.strip_prefix(&SELF_DESCRIBED).unwrap_or(payload);
    if matches!(body.first(), Some(0x80..=0xbf)) {
        return Ok(PayloadFormat::Cbor);
    }
    let hint = match payload {
        [0xef, 0xbb, 0xbf, ..] => "it begins with a byte order mark: leave that away",
        [0x08, ..] => "protobuf is not taken: send JSON, CBOR or a frame",
        _ => "JSON begins with { or [, CBOR with a map or an array",
    };
    Err(Refusal::new(Reason::BadPayload, format!("neither JSON nor CBOR (first byte {first:#04x}): {hint}")))
}

/// Tag 55799: "what follows is CBOR".
pub(crate) const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];

fn is_frame(payload: &[u8]) -> bool {
    let mut wire = Wire::new(payload, 0);
    matches!(wire.item(), Ok(Item::Map(_))) && wire.item() == Ok(Item::Uint(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use PayloadFormat::{Cbor, Frame, Json};

    fn check(payload: &[u8], declared: Option<PayloadFormat>, expected: Result<PayloadFormat, Reason>) {
        assert_eq!(detect(payload, declared).map_err(|refusal| refusal.reason), expected, "{payload:02x?}");
    }

    #[test]
    fn formats_are_told_apart() {
        check(b"{}", None, Ok(Json));
        check(b" \r\n\t[1]", None, Ok(Json));
        check(&[0xa1, 0x00, 0x01], None, Ok(Frame));
        check(&[0xa1, 0x00, 0x01], Some(Cbor), Ok(Frame));
        check(&[0xa1, 0x01, 0x01], None, Ok(Cbor));
        check(&[0xa0], None, Ok(Cbor));
        check(&[0x80], None, Ok(Cbor));
        check(&[0xbf, 0xff], None, Ok(Cbor));
        check(&[0xd9, 0xd9, 0xf7, 0xa0], None, Ok(Cbor));
        check(b"{}", Some(Cbor), Ok(Cbor));
        check(b"", None, Err(Reason::Empty));
        check(b"", Some(Json), Err(Reason::Empty));
        check(b"  ", None, Err(Reason::BadPayload));
        check(b"hello", None, Err(Reason::BadPayload));
        check(&[0x08, 0x01], None, Err(Reason::BadPayload));
        check("\u{feff}{}".as_bytes(), None, Err(Reason::BadPayload));
    }

    #[test]
    fn content_types() {
        assert_eq!(content_type("application/json"), Some(Json));
        assert_eq!(content_type("Application/JSON; charset=utf-8"), Some(Json));
        assert_eq!(content_type("application/cbor"), Some(Cbor));
        assert_eq!(content_type("application/vnd.weir.frame+cbor"), Some(Frame));
        assert_eq!(content_type("text/plain"), None);
        assert_eq!(content_type(""), None);
    }
}
