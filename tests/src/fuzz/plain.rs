//! Plain records, JSON and CBOR.

use device::payload::{PayloadFormat, detect, parse_rfc3339, read, validate};

use super::catalog::catalog;
use super::meter::bounded;
use super::transcript::Transcript;

/// Any bytes as plain records, in both formats, whatever they look like.
pub fn plain(data: &[u8]) {
    let _ = (detect(data, None), detect(data, Some(PayloadFormat::Json)));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (device::payload::content_type(text), parse_rfc3339(text));
    }
    for format in [PayloadFormat::Json, PayloadFormat::Cbor] {
        records(format, data);
    }
}

fn records(format: PayloadFormat, data: &[u8]) {
    let catalog = catalog();
    let mut heads = Vec::new();
    // A flattened name repeats its outer names at every field inside, so a byte of input can stand for a whole name.
    let quadratic = 16 * data.len() * data.len().min(4096);
    let valid = bounded(data.len(), (16 << 10) + quadratic, 256, || {
        validate(format, data, catalog, &mut |head| heads.push(*head))
    });
    let mut full = Transcript::default();
    let whole = read(format, data, catalog, &mut full);
    assert_eq!(valid, whole, "what validates also reads, and the other way round");
    assert_eq!(heads, full.heads);
    if valid.is_err() {
        return;
    }
    assert!(!full.heads.is_empty(), "a good payload has records");
    for (at, head) in full.heads.iter().enumerate() {
        assert_eq!(head.index as usize, at);
    }
    for only in [0, 1] {
        let mut half = Transcript { only: Some(only), ..Transcript::default() };
        read(format, data, catalog, &mut half).expect("unwanted records do no harm");
        assert_eq!(half.heads.len(), full.heads.iter().filter(|head| head.index % 2 == only).count());
    }
    for (head, json) in &full.extras {
        if head.stream == 0 {
            extra_again(json);
        }
    }
}

/// What stands in the column `extra` is a JSON object that reads as a record with that same extra.
fn extra_again(json: &str) {
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(json) {
        panic!("the column extra holds no JSON: {error}: {json}");
    }
    let mut back = Transcript::default();
    if let Err(refusal) = read(PayloadFormat::Json, json.as_bytes(), catalog(), &mut back) {
        // Escapes and Base64 make it longer than the payload it came from.
        assert!(json.len() > device::payload::MAX_PLAIN, "{refusal}: {json}");
        return;
    }
    assert_eq!(back.extras.first().map(|(_, text)| text.as_str()), Some(json));
}
