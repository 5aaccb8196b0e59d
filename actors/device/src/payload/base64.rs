//! Base64 with padding (RFC 4648, section 4): how bytes stand in JSON.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn symbol(bits: u32) -> char {
    char::from(ALPHABET.get((bits & 63) as usize).copied().unwrap_or(b'='))
}

/// Appends `bytes` as text.
pub(crate) fn encode(bytes: &[u8], out: &mut String) {
    for chunk in bytes.chunks(3) {
        let (bits, symbols) = match *chunk {
            [a, b, c] => (u32::from_be_bytes([0, a, b, c]), 4),
            [a, b] => (u32::from_be_bytes([0, a, b, 0]), 3),
            [a] => (u32::from_be_bytes([0, a, 0, 0]), 2),
            _ => break,
        };
        for at in 0..4 {
            out.push(if at < symbols { symbol(bits >> (18 - 6 * at)) } else { '=' });
        }
    }
}

/// Appends what `text` stands for; false if it is not Base64. Padding may be missing.
pub(crate) fn decode(text: &str, out: &mut Vec<u8>) -> bool {
    let body = text.trim_end_matches('=');
    let padded = body.len() != text.len();
    if body.len() % 4 == 1 || (padded && !text.len().is_multiple_of(4)) {
        return false;
    }
    let (mut bits, mut have) = (0u32, 0);
    for byte in body.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return false,
        };
        bits = bits << 6 | u32::from(value);
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            let mut out = String::new();
            encode(bytes.as_bytes(), &mut out);
            assert_eq!(out, text);
            for text in [text, text.trim_end_matches('=')] {
                let mut back = Vec::new();
                assert!(decode(text, &mut back), "{text}");
                assert_eq!(back, bytes.as_bytes());
            }
        }
        for bad in ["Z", "Zg=", "Zm9v====v", "Zm-v", "Zm9vY"] {
            assert!(!decode(bad, &mut Vec::new()), "{bad}");
        }
    }
}
