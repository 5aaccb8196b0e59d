//! The device: from any bytes as a snapshot, and through any messages.

use std::collections::VecDeque;

use bytes::Bytes;
use device::entry::{Body, Entry};
use device::id::DeviceId;
use device::machine::{Channel, Decision, Device, Message, Verdict};
use device::payload::PayloadFormat;
use device::seq::Position;
use device::time::{SECOND, Timestamp};

use super::catalog::catalog;
use super::meter::bounded;

/// When the messages are received.
const START: i64 = 1_760_000_000 * SECOND;

fn id() -> DeviceId {
    DeviceId::new("d").expect("a name")
}

/// Any bytes as a snapshot; what can be restored says the same again, and lives on.
pub fn snapshot(data: &[u8]) {
    // An epoch of a few bytes may stand for a bitmap of the whole window.
    let Ok(mut device) = bounded(data.len(), 8192, 1024, || Device::restore(id(), data)) else { return };
    let once = device.snapshot();
    let back = Device::restore(id(), &once).expect("what was written reads back");
    assert_eq!(back.snapshot(), once, "a snapshot comes back");
    assert_eq!(back.ledger(), device.ledger());
    let _ = device.tick(Timestamp(START));
    let mut next = 1u64;
    for payload in [r#"{"seq": 9, "epoch": 5, "on": true}"#, r#"{"seq": 3, "ts": 1760000000000000000}"#, "{}"] {
        let payload = Bytes::from_static(payload.as_bytes());
        let message = message(&payload, Channel::Telemetry, None, START);
        let verdict = device.admit(message, catalog(), &mut || 42);
        next += 1;
        let position = Position(device.as_of().0.saturating_add(next));
        apply(&mut device, position, &verdict.entries);
    }
    let _ = (device.tick(Timestamp(i64::MAX)), device.ledger(), device.snapshot());
}

fn message(payload: &Bytes, channel: Channel, format: Option<PayloadFormat>, received: i64) -> Message<'_> {
    Message { channel, payload, format, received: Timestamp(received), session: 7 }
}

fn apply(device: &mut Device, position: Position, entries: &[Entry]) {
    for entry in entries {
        let _ = device.apply(position, entry);
    }
    device.advance(position);
}

/// Any messages, in any order with commits, ticks and restarts: the input is a list of steps, each a byte that says
/// what happens and, for a message, the two bytes of its length and its payload.
pub fn machine(data: &[u8]) {
    let mut device = Device::new(id());
    let mut waiting: VecDeque<Verdict> = VecDeque::new();
    let (mut position, mut now, mut random) = (0, START, 1u64);
    let mut stored = 0u64;
    let mut rest = data;
    while let Some((step, tail)) = rest.split_first() {
        rest = tail;
        now += SECOND / 8;
        match step % 8 {
            0..=3 => {
                let Some((len, tail)) = rest.split_first_chunk::<2>() else { break };
                let len = usize::from(u16::from_be_bytes(*len)).min(tail.len());
                let (payload, tail) = tail.split_at(len);
                rest = tail;
                let channel = if step % 8 == 3 { Channel::Hello } else { Channel::Telemetry };
                let format = [None, Some(PayloadFormat::Json), Some(PayloadFormat::Cbor), None];
                let format = format[usize::from(step / 8 % 4)];
                let payload = Bytes::copy_from_slice(payload);
                let mut draw = || {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    random
                };
                let verdict = device.admit(message(&payload, channel, format, now), catalog(), &mut draw);
                counts_add_up(&verdict);
                stored += rows(&verdict.entries);
                if !verdict.entries.is_empty() {
                    waiting.push_back(verdict);
                }
            }
            4 | 5 => {
                if let Some(verdict) = waiting.pop_front() {
                    position += 1;
                    apply(&mut device, Position(position), &verdict.entries);
                }
            }
            6 => drop(device.tick(Timestamp(now + 40 * SECOND))),
            // A restart: everything that was decided becomes durable, then the device comes back from its snapshot.
            _ => {
                while let Some(verdict) = waiting.pop_front() {
                    position += 1;
                    apply(&mut device, Position(position), &verdict.entries);
                }
                let snapshot = device.snapshot();
                let back = Device::restore(id(), &snapshot).expect("a snapshot is restored");
                assert_eq!(back.ledger(), device.ledger());
                assert_eq!(back.snapshot(), snapshot);
                device = back;
            }
        }
    }
    for verdict in waiting {
        position += 1;
        apply(&mut device, Position(position), &verdict.entries);
    }
    // Epochs are forgotten after a long while, so the account may know of fewer rows, never of more.
    let known = device.unnumbered() + device.ledger().iter().map(|epoch| epoch.stored).sum::<u64>();
    assert!(known <= stored, "{known} rows are accounted for, {stored} were made");
}

fn rows(entries: &[Entry]) -> u64 {
    let runs = entries.iter().filter_map(|entry| match &entry.body {
        Body::Records(records) => Some(records.runs.iter().map(|run| u64::from(run.len)).sum::<u64>()),
        _ => None,
    });
    runs.sum()
}

fn counts_add_up(verdict: &Verdict) {
    let counts = verdict.counts;
    let sum = counts.stored + counts.duplicate + counts.nacked + counts.dead;
    assert_eq!(counts.received, sum, "{counts:?}");
    assert_eq!(counts.stored, rows(&verdict.entries), "rows are what is counted as stored");
    let commits = matches!(verdict.decision, Decision::Commit | Decision::Kept(_));
    assert!(commits || verdict.entries.is_empty(), "entries need a commit");
}
