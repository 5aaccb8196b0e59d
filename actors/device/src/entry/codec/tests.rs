//! Entries and records through their encoding and back.

use proptest::prelude::*;
use smallvec::smallvec;

use super::*;
use std::sync::Arc;

use crate::clock::{self, ChangeKind, Piece, Sighting};
use crate::command::{Order, State};
use crate::shadow::{Conflict, Policy, Reported, What, Winner};

fn epochs() -> impl Strategy<Value = Epoch> {
    (0..=MAX_SEQ).prop_map(Epoch)
}

fn bodies() -> impl Strategy<Value = Body> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
    let format = prop::sample::select(vec![PayloadFormat::Frame, PayloadFormat::Json, PayloadFormat::Cbor]);
    let run = (any::<u16>(), 1u32..2000, epochs(), 0..MAX_SEQ - 2000).prop_map(|(index, len, epoch, seq)| Run {
        index: u32::from(index),
        len,
        epoch,
        seq,
    });
    let stamps = prop::collection::vec(any::<i64>().prop_map(Timestamp), 0..4);
    let clock = prop::option::of(notes().prop_map(Box::new));
    let records = (format, bytes(), prop::collection::vec(run, 1..4), stamps, any::<bool>(), clock).prop_map(
        |(format, payload, runs, stamps, assured, clock)| {
            Body::Records(Records { format, payload, runs: runs.into(), stamps: stamps.into(), assured, clock })
        },
    );
    let loss = (epochs(), 0..MAX_SEQ, 0..MAX_SEQ, 1u8..=6).prop_map(|(epoch, from, to, reason)| {
        Body::Loss(Loss { epoch, from, to, reason: LossReason::from_u8(reason).unwrap() })
    });
    let reason = prop::sample::select(Reason::ALL.to_vec());
    let accounted = prop::option::of((epochs(), 0..MAX_SEQ, any::<u32>()));
    let letter = ("\\PC{0,5}", "\\PC{0,9}", reason, "\\PC{0,9}", bytes(), accounted).prop_map(
        |(sender, topic, reason, text, payload, accounted)| {
            Body::DeadLetter(DeadLetter { sender, topic, reason, text, payload, accounted })
        },
    );
    let command = ("[a-z]{1,5}", 0u8..7, any::<i64>()).prop_map(|(id, state, deadline)| {
        let (id, out) = (Arc::from(&*id), serde_json::json!({ "x": [1, "y", null] }));
        Body::Command(if state == 0 {
            let (name, by) = (Arc::from("open"), Arc::from("ann"));
            Step::Queued(Box::new(Order { id, name, args: out, deadline: Timestamp(deadline), by }))
        } else {
            Step::Moved { id, state: State::ALL[usize::from(state)], out }
        })
    });
    let path = || vec![Arc::from("a"), Arc::from("b")];
    let shadow = (0u8..5, any::<u64>(), any::<bool>(), prop::option::of(any::<i64>())).prop_map(
        move |(kind, version, flag, time)| {
            let serde_json::Value::Object(patch) = serde_json::json!({ "a": { "b": 1.5 }, "c": null }) else {
                unreachable!()
            };
            let time = time.map(Timestamp);
            let what = match kind {
                0 => What::Desired { dv: version, patch, expires: time, adopted: flag },
                1 => What::Expired { dv: version, paths: vec![path()] },
                2 => What::Deleted { dv: version, rv: 7 },
                3 => What::Conflict(Box::new(Conflict {
                    path: path(),
                    base: serde_json::Value::Null,
                    desired: 1.into(),
                    reported: "x".into(),
                    desired_at: time,
                    reported_at: None,
                    policy: Policy::Later,
                    winner: if flag { Winner::Device } else { Winner::Nobody },
                })),
                _ => What::Reported(Box::new(Reported {
                    rv: version,
                    patch,
                    full: flag,
                    applied: flag.then_some(5),
                    turn: flag.then_some((version, 3)),
                    times: time.into_iter().map(|at| (path(), at)).collect(),
                    open: vec![path(), Vec::new()],
                })),
            };
            let request = flag.then(|| Arc::from("r"));
            Body::Shadow(Box::new(Change { shadow: Arc::from("main"), by: Arc::from("ann"), request, what }))
        },
    );
    let status = (any::<bool>(), prop::option::of(any::<u64>()), any::<i64>()).prop_map(|(online, session, since)| {
        let fw = online.then(|| Arc::from("1.2"));
        Body::Status(Status { online, session, boot_no: session, fw, since: Timestamp(since) })
    });
    prop_oneof![records, loss, letter, command, shadow, status, epochs().prop_map(|epoch| Body::Closed { epoch })]
}

fn notes() -> impl Strategy<Value = Note> {
    let number = any::<i64>;
    let piece = (any::<[i64; 6]>(), any::<u8>(), any::<bool>()).prop_map(
        |([from, at, offset, rate, err, err_rate], quality, begin)| Piece {
            from: Timestamp(if begin { i64::MIN } else { from }),
            at: Timestamp(at),
            offset,
            rate,
            err,
            err_rate,
            quality,
        },
    );
    let sample = prop::option::of((number(), any::<u64>()));
    let seen = (number(), number(), prop::option::of(any::<u64>()), sample, any::<bool>()).prop_map(
        |(wall, since, mono, sample, plain)| Sighting {
            wall: Timestamp(wall),
            since: Timestamp(since),
            mono,
            sample,
            plain,
        },
    );
    let kinds =
        [ChangeKind::Synced, ChangeKind::Ended, ChangeKind::Drifting, ChangeKind::Settled, ChangeKind::Rejected];
    let change = (prop::sample::select(kinds.to_vec()), any::<u64>(), any::<[i64; 4]>(), prop::option::of(number()))
        .prop_map(|(kind, clock, [from, to, offset, err], rate)| clock::Change {
            kind,
            clock,
            span: (Timestamp(from), Timestamp(to)),
            offset,
            err,
            rate,
        });
    (prop::collection::vec(piece, 1..4), prop::option::of(seen), prop::collection::vec(change, 0..3))
        .prop_map(|(pieces, seen, changes)| Note { pieces: pieces.into(), seen, changes })
}

fn log_records() -> impl Strategy<Value = LogRecord> {
    let device = "[a-zA-Z0-9._~-]{1,6}".prop_map(|name| DeviceId::new(&name).unwrap());
    let entry = (device, any::<i64>(), bodies()).prop_map(|(device, received, body)| Entry {
        device,
        received: Timestamp(received),
        body,
    });
    let batch = prop::collection::vec(entry, 0..6).prop_map(LogBody::Batch);
    let barrier = (any::<u64>(), any::<bool>(), any::<u64>()).prop_map(|(barrier, cut, catalog)| LogBody::Barrier {
        barrier: Barrier(barrier),
        cut,
        catalog,
    });
    (any::<i64>(), prop_oneof![4 => batch, 1 => barrier])
        .prop_map(|(time, body)| LogRecord { time: Timestamp(time), body })
}

fn encoded(record: &LogRecord) -> Bytes {
    let mut out = Vec::new();
    record.encode(&mut out);
    Bytes::from(out)
}

proptest! {
    #[test]
    fn records_come_back(record in log_records()) {
        prop_assert_eq!(LogRecord::decode(encoded(&record)), Ok(record));
    }

    #[test]
    fn no_part_of_a_record_is_one(record in log_records(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&record);
        prop_assert!(LogRecord::decode(bytes.slice(..cut.index(bytes.len()))).is_err());
    }

    #[test]
    fn no_bytes_panic(
        record in log_records(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        bytes in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut damaged = encoded(&record).to_vec();
        for (at, byte) in damage {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        let _ = (LogRecord::decode(damaged.into()), LogRecord::decode(bytes.into()));
    }
}

#[test]
fn payloads_share_the_input() {
    let records = Records {
        format: PayloadFormat::Json,
        payload: Bytes::from(vec![b'x'; 1000]),
        runs: smallvec![Run { index: 0, len: 1, epoch: Epoch(1), seq: 1 }],
        stamps: Stamps::new(),
        assured: true,
        clock: None,
    };
    let device = DeviceId::new("a").unwrap();
    let entry = Entry { device, received: Timestamp(5), body: Body::Records(records) };
    let bytes = encoded(&LogRecord { time: Timestamp(5), body: LogBody::Batch(vec![entry.clone(), entry]) });
    let whole = bytes.as_ptr_range();
    let LogBody::Batch(entries) = LogRecord::decode(bytes).unwrap().body else { panic!("a batch") };
    for entry in entries {
        let Body::Records(records) = entry.body else { panic!("records") };
        assert!(whole.contains(&records.payload.as_ptr()));
    }
}

#[test]
fn a_newer_version_says_so() {
    let error = LogRecord::decode(Bytes::from_static(&[6, 1, 0, 0])).unwrap_err();
    assert_eq!(error, DecodeError::Newer { found: 6, known: 5 });
    assert!(error.to_string().contains("run the newer engine"));
    assert_eq!(LogRecord::decode(Bytes::new()), Err(DecodeError::Damaged { at: 0, what: "a version" }));
}

#[test]
fn reasons_have_numbers_and_names() {
    for (at, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!((reason as usize, Reason::from_u8(reason as u8)), (at + 1, Some(reason)));
        assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
    }
    assert_eq!((Reason::from_u8(0), Reason::from_u8(13), LossReason::from_u8(7)), (None, None, None));
}
