//! What cannot become rows: the dead letter, and the report to its sender.

use smallvec::smallvec;

use super::types::{Counts, Decision, Effect, Message, Verdict};
use crate::entry::{Body, DeadLetter, Entries, Entry};
use crate::id::DeviceId;
use crate::payload::{Refusal, put_text};
use crate::topic::Leaf;

/// The report on `devices/{id}/errors`: `{"topic", "reason", "text", "seq"?}`.
pub(super) fn report(id: &DeviceId, leaf: Leaf, refusal: &Refusal, seq: Option<u64>) -> Effect {
    let mut json = String::with_capacity(96 + refusal.text.len());
    json.push_str("{\"topic\":");
    put_text(&leaf.topic(id), &mut json);
    json.push_str(",\"reason\":");
    put_text(refusal.reason.as_str(), &mut json);
    json.push_str(",\"text\":");
    put_text(&refusal.text, &mut json);
    if let Some(seq) = seq {
        json.push_str(",\"seq\":");
        json.push_str(&seq.to_string());
    }
    json.push('}');
    Effect::Publish { topic: "errors".into(), payload: json.into_bytes(), qos: 0 }
}

/// The whole payload is kept and the sender told why.
pub(super) fn kept(
    id: &DeviceId,
    message: Message<'_>,
    leaf: Leaf,
    refusal: Refusal,
    seq: Option<u64>,
    records: u64,
) -> Verdict {
    let body = Body::DeadLetter(DeadLetter {
        sender: String::new(),
        topic: leaf.topic(id),
        reason: refusal.reason,
        text: refusal.text.clone(),
        payload: message.payload.clone(),
        accounted: None,
    });
    Verdict {
        entries: smallvec![Entry { device: id.clone(), received: message.received, body }],
        effects: vec![report(id, leaf, &refusal, seq)],
        decision: Decision::Kept(refusal),
        counts: Counts { received: records, dead: records, ..Counts::default() },
        streams: 0,
    }
}

/// There is nothing to keep.
pub(super) fn refused(id: &DeviceId, leaf: Leaf, refusal: Refusal) -> Verdict {
    Verdict {
        entries: Entries::new(),
        effects: vec![report(id, leaf, &refusal, None)],
        decision: Decision::Refused(refusal),
        counts: Counts { received: 1, nacked: 1, ..Counts::default() },
        streams: 0,
    }
}
