//! What a sink was told, in a form that can be compared: all NaNs are one.

use device::payload::{Head, RecordSink};
use device::schema::Value;

/// Keeps everything it is told, as text of one line per call.
#[derive(Default)]
pub(super) struct Transcript {
    pub(super) lines: Vec<String>,
    pub(super) heads: Vec<Head>,
    pub(super) extras: Vec<(Head, String)>,
    /// Wants only records with these indexes, if given: 0 even, 1 odd.
    pub(super) only: Option<u32>,
}

/// A value as text; doubles by their bits.
fn shown(value: Value<'_>) -> String {
    let double = |value: f64| if value.is_nan() { "NaN".to_owned() } else { format!("{:x}", value.to_bits()) };
    match value {
        Value::F32(value) => format!("F32 {}", double(f64::from(value))),
        Value::F64(value) => format!("F64 {}", double(value)),
        Value::F64List(values) => {
            format!("F64List {}", values.iter().map(|v| double(*v)).collect::<Vec<_>>().join(" "))
        }
        value => format!("{value:?}"),
    }
}

impl RecordSink for Transcript {
    fn clock(&mut self, measured: (i64, u64)) {
        assert!(self.heads.is_empty(), "the clock comes ahead of all records");
        self.lines.push(format!("clock {measured:?}"));
    }
    fn start(&mut self, head: &Head) -> bool {
        let wanted = self.only.is_none_or(|only| head.index % 2 == only);
        if wanted {
            self.heads.push(*head);
            self.lines.push(format!("{head:?}"));
        }
        wanted
    }
    fn value(&mut self, field: u16, value: Value<'_>) {
        self.lines.push(format!("{field}: {}", shown(value)));
    }
    fn extra(&mut self, json: &str) {
        let head = *self.heads.last().expect("an extra belongs to a record");
        self.extras.push((head, json.to_owned()));
        self.lines.push(format!("extra {json}"));
    }
    fn end(&mut self) {
        self.lines.push("end".to_owned());
    }
}
