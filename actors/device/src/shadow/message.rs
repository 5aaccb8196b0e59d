//! What devices send and get about their shadows. Our own agent speaks CBOR on `config` and `config/reported`; plain
//! clients speak JSON below `shadow/`. Reports may be either on both.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::decide::Report;
use super::document::Path;
use crate::payload::parse_rfc3339;
use crate::time::Timestamp;

/// Most paths that a report may give times for, or name as local.
const MAX_PATHS: usize = 1024;

/// `{"shadow", "dv", "delta"}` as JSON.
pub fn delta_json(shadow: &str, dv: u64, delta: &Map<String, Value>) -> Vec<u8> {
    message(shadow, dv, delta).to_string().into_bytes()
}

/// The same in CBOR.
pub fn delta_cbor(shadow: &str, dv: u64, delta: &Map<String, Value>) -> Vec<u8> {
    match message(shadow, dv, delta) {
        Value::Object(message) => cbor(&message),
        _ => Vec::new(),
    }
}

/// An object in CBOR.
pub fn cbor(object: &Map<String, Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to a vector cannot fail, and JSON has nothing that CBOR has not.
    let _ = ciborium::into_writer(object, &mut bytes);
    bytes
}

fn message(shadow: &str, dv: u64, delta: &Map<String, Value>) -> Value {
    serde_json::json!({ "shadow": shadow, "dv": dv, "delta": delta })
}

/// Reads an object, JSON or CBOR with text keys. The error says what is wrong.
pub fn read_object(payload: &[u8]) -> Result<Map<String, Value>, String> {
    let first = payload.iter().find(|byte| !byte.is_ascii_whitespace());
    let value: Value = if first == Some(&b'{') {
        serde_json::from_slice(payload).map_err(|error| format!("not JSON: {error}"))?
    } else {
        let mut rest = payload;
        let value = ciborium::from_reader(&mut rest)
            .map_err(|error| format!("neither a JSON object nor a CBOR map with text keys: {error}"))?;
        if !rest.is_empty() {
            return Err("bytes after the end of the CBOR map".to_owned());
        }
        value
    };
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("not an object".to_owned()),
    }
}

/// Reads a report. On a plain topic (`plain`, with the name of the shadow in the topic) the payload is the merge patch
/// itself; else it is `{"shadow"?, "session"?, "rseq"?, "based_on_dv"?, "patch" or "full", "t"?, "local"?}`.
pub fn read_report(payload: &[u8], plain: Option<&str>) -> Result<Report, String> {
    let mut object = read_object(payload)?;
    if let Some(shadow) = plain {
        return Ok(Report { shadow: shadow.to_owned(), patch: object, ..Report::default() });
    }
    let mut report = Report::default();
    let number = |value: Option<Value>, key: &str| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("`{key}` must be an unsigned number")),
    };
    report.session = number(object.remove("session"), "session")?;
    report.rseq = number(object.remove("rseq"), "rseq")?;
    report.based_on = number(object.remove("based_on_dv"), "based_on_dv")?;
    match object.remove("shadow") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) => report.shadow = name,
        Some(_) => return Err("`shadow` must be the name of a shadow".to_owned()),
    }
    report.full = object.contains_key("full");
    report.patch = match (object.remove("patch"), object.remove("full")) {
        (Some(Value::Object(patch)), None) | (None, Some(Value::Object(patch))) => patch,
        (Some(_), Some(_)) => return Err("a report has `patch` or `full`, not both".to_owned()),
        (None, None) => return Err("a report needs `patch` (what has changed) or `full` (all there is)".to_owned()),
        _ => return Err("`patch` and `full` are objects".to_owned()),
    };
    match object.remove("t") {
        None | Some(Value::Null) => {}
        Some(Value::Object(times)) if times.len() <= MAX_PATHS => {
            for (path, time) in times {
                let at = time_of(&time).ok_or_else(|| {
                    format!("`t`.{path:?} must be nanoseconds since the Unix epoch or an RFC 3339 text, not {time}")
                })?;
                report.times.push((path_of(&path), at));
            }
        }
        Some(_) => return Err(format!("`t` is an object of paths and times, at most {MAX_PATHS}")),
    }
    match object.remove("local") {
        None | Some(Value::Null) => {}
        Some(Value::Array(paths)) if paths.len() <= MAX_PATHS => {
            let paths = paths.iter().map(|path| path.as_str().map(path_of));
            let paths: Option<Vec<Path>> = paths.collect();
            report.local = Some(paths.ok_or("`local` is a list of paths such as \"heating.limit\"")?);
        }
        Some(_) => return Err(format!("`local` is a list of at most {MAX_PATHS} paths")),
    }
    Ok(report)
}

fn path_of(text: &str) -> Path {
    text.split('.').map(Arc::from).collect()
}

fn time_of(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => parse_rfc3339(text).ok(),
        value => value.as_i64().map(Timestamp),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_are_read_from_json_and_cbor() {
        let full = json!({"shadow": "net", "session": 7, "rseq": 2, "based_on_dv": 5, "full": {"a": {"b": 1}},
            "t": {"a.b": "2026-11-28T12:00:00Z", "c": 5}, "local": ["a.b"]});
        let mut cbor = Vec::new();
        ciborium::into_writer(&full, &mut cbor).unwrap();
        let path = path_of("a.b");
        let expected = Report {
            shadow: "net".to_owned(),
            session: Some(7),
            rseq: Some(2),
            based_on: Some(5),
            full: true,
            patch: full["full"].as_object().unwrap().clone(),
            times: vec![(path.clone(), Timestamp(1_795_867_200_000_000_000)), (path_of("c"), Timestamp(5))],
            times_err: 0,
            local: Some(vec![path]),
        };
        assert_eq!(read_report(full.to_string().as_bytes(), None), Ok(expected.clone()));
        assert_eq!(read_report(&cbor, None), Ok(expected));
        let plain = read_report(br#" {"a": 1}"#, Some("main")).unwrap();
        assert_eq!((&*plain.shadow, plain.patch.len(), plain.full), ("main", 1, false));
        let mut delta: Value = serde_json::from_slice(&delta_json("net", 3, &plain.patch)).unwrap();
        assert_eq!(delta, json!({"shadow": "net", "dv": 3, "delta": {"a": 1}}));
        delta = ciborium::from_reader(&delta_cbor("net", 3, &plain.patch)[..]).unwrap();
        assert_eq!(delta, json!({"shadow": "net", "dv": 3, "delta": {"a": 1}}));
    }

    #[test]
    fn what_is_no_report_is_named() {
        let why = |payload: &[u8]| read_report(payload, None).unwrap_err();
        assert!(why(b"{").contains("not JSON"));
        assert!(why(b"[1]").contains("neither"));
        assert!(why(b"{}").contains("`patch`"));
        assert!(why(br#"{"patch": 1}"#).contains("objects"));
        assert!(why(br#"{"patch": {}, "full": {}}"#).contains("not both"));
        assert!(why(br#"{"patch": {}, "rseq": -1}"#).contains("`rseq`"));
        assert!(why(br#"{"patch": {}, "t": {"a": true}}"#).contains("\"a\""));
        assert!(why(br#"{"patch": {}, "local": [1]}"#).contains("`local`"));
        assert!(why(&[0xa0, 0x00]).contains("after the end"));
    }
}
