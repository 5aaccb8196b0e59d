//! Entries and records through their encoding and back.

use proptest::prelude::*;
use smallvec::smallvec;

use super::*;

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
    let records = (format, bytes(), prop::collection::vec(run, 1..4), stamps, any::<bool>()).prop_map(
        |(format, payload, runs, stamps, assured)| {
            Body::Records(Records { format, payload, runs: runs.into(), stamps: stamps.into(), assured })
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
    prop_oneof![records, loss, letter, epochs().prop_map(|epoch| Body::Closed { epoch })]
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
    let error = LogRecord::decode(Bytes::from_static(&[4, 1, 0, 0])).unwrap_err();
    assert_eq!(error, DecodeError::Newer { found: 4, known: 3 });
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
