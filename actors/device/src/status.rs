//! Whether a device is there, by its own word and by its last will (`devices/{id}/status`).
//!
//! Each connection has a session, and the will of a connection names it: the will of an earlier one, which may come long
//! after the next one stands, says nothing about now.

use std::sync::Arc;

use serde_json::Value;

use crate::shadow::read_object;
use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

/// Longest firmware version that is kept, in bytes.
const MAX_TEXT: usize = 128;

/// What is known of a device's presence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether it is there.
    pub online: bool,
    /// The connection that this is about; a plain client has none.
    pub session: Option<u64>,
    /// Counts its boots.
    pub boot_no: Option<u64>,
    /// Version of its firmware.
    pub fw: Option<Arc<str>>,
    /// When it said so.
    pub since: Timestamp,
}

/// What a message on the topic comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// This is so from now on.
    News(Status),
    /// It is known already.
    Known,
    /// The will of a connection that was followed by another one.
    Old,
    /// It cannot be read.
    Refused(String),
}

impl Status {
    /// Decides about a message: `{"online", "session"?, "boot_no"?, "fw"?}` in JSON or CBOR, or the words `online` and
    /// `offline`. `before`: what is known; `session`: the one that the device has greeted with.
    pub fn hear(payload: &[u8], before: Option<&Self>, session: Option<u64>, received: Timestamp) -> Heard {
        let status = match Self::read(payload, received) {
            Ok(status) => status,
            Err(text) => return Heard::Refused(text),
        };
        let current = before.filter(|before| before.online).and_then(|before| before.session).or(session);
        if !status.online
            && let (Some(of), Some(current)) = (status.session, current)
            && of != current
        {
            return Heard::Old;
        }
        let same = before.is_some_and(|before| {
            let of = |status: &Self| (status.online, status.session, status.boot_no, status.fw.clone());
            let gone = !status.online && !before.online;
            gone || of(before) == of(&status)
        });
        if same { Heard::Known } else { Heard::News(status) }
    }

    /// Whether a will is that of an earlier connection than the one that `latest`, the last message on the topic, is of.
    pub fn is_late(will: &[u8], latest: &[u8]) -> bool {
        let now = Timestamp::default();
        Self::read(latest, now).is_ok_and(|latest| Self::hear(will, Some(&latest), None, now) == Heard::Old)
    }

    fn read(payload: &[u8], since: Timestamp) -> Result<Self, String> {
        let nothing = Self { online: false, session: None, boot_no: None, fw: None, since };
        match payload.trim_ascii() {
            b"online" => return Ok(Self { online: true, ..nothing }),
            b"offline" => return Ok(nothing),
            _ => {}
        }
        let object = read_object(payload)
            .map_err(|text| format!("the status is {text}; it is {{\"online\": true}} or {{\"online\": false}}"))?;
        let online = object.get("online").and_then(Value::as_bool);
        let online = online.ok_or("`online` is missing: true or false")?;
        let number = |name: &str| object.get(name).and_then(Value::as_u64);
        let fw = object.get("fw").and_then(Value::as_str).filter(|fw| fw.len() <= MAX_TEXT);
        Ok(Self { online, session: number("session"), boot_no: number("boot_no"), fw: fw.map(Arc::from), since })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.online));
        for number in [self.session, self.boot_no] {
            out.push(u8::from(number.is_some()));
            if let Some(number) = number {
                varint::put(out, number);
            }
        }
        varint::put_bytes(out, self.fw.as_deref().unwrap_or_default().as_bytes());
        varint::put_signed(out, self.since.0);
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let online = cursor.byte("whether it is there")? != 0;
        let number = |cursor: &mut Cursor<'_>| match cursor.byte("whether there is a number")? {
            0 => Ok(None),
            _ => cursor.unsigned("a number").map(Some),
        };
        let (session, boot_no) = (number(cursor)?, number(cursor)?);
        let fw = cursor.text("a firmware version")?;
        let fw = (!fw.is_empty()).then(|| Arc::from(fw));
        Ok(Self { online, session, boot_no, fw, since: Timestamp(cursor.signed("a time")?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_867_200_000_000_000);

    fn hear(text: &str, before: Option<&Status>, session: Option<u64>) -> Heard {
        Status::hear(text.as_bytes(), before, session, NOW)
    }

    fn news(text: &str, before: Option<&Status>) -> Status {
        match hear(text, before, None) {
            Heard::News(status) => status,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_will_of_an_earlier_session_says_nothing() {
        let first = news(r#"{"online": true, "session": 7, "fw": "1.2", "boot_no": 3}"#, None);
        assert_eq!((first.session, first.fw.as_deref(), first.boot_no), (Some(7), Some("1.2"), Some(3)));
        let second = news(r#"{"online": true, "session": 8}"#, Some(&first));
        assert_eq!(hear(r#"{"online": false, "session": 7}"#, Some(&second), None), Heard::Old);
        assert_eq!(hear(r#"{"online": true, "session": 8}"#, Some(&second), None), Heard::Known);
        let gone = news(r#"{"online": false, "session": 8}"#, Some(&second));
        assert!(!gone.online);
        assert_eq!(hear("offline", Some(&gone), None), Heard::Known);
        // It has greeted again, but not said that it is there.
        assert_eq!(hear(r#"{"online": false, "session": 8}"#, None, Some(9)), Heard::Old);
        assert!(news("online", Some(&gone)).online);
        let late = |will: &str, latest: &str| Status::is_late(will.as_bytes(), latest.as_bytes());
        assert!(late(r#"{"online": false, "session": 7}"#, r#"{"online": true, "session": 8}"#));
        assert!(!late(r#"{"online": false, "session": 8}"#, r#"{"online": true, "session": 8}"#));
        assert!(!late("offline", r#"{"online": true, "session": 8}"#) && !late("x", "y"));
        for (text, part) in [("{}", "`online`"), ("[]", "neither"), ("{", "not JSON")] {
            assert!(matches!(hear(text, None, None), Heard::Refused(why) if why.contains(part)), "{text}");
        }
        let mut bytes = Vec::new();
        first.put(&mut bytes);
        assert_eq!(Status::get(&mut Cursor::new(&bytes)), Ok(first));
    }
}
