//! Telemetry frames written by hand, and what the generator needs of ack frames.
//!
//! Frame `n` of a device holds the records `n * size + 1 ..= (n + 1) * size` (the last one may be shorter).

use minicbor::Decoder;
use minicbor::decode::Error;

use super::options::Layout;
use super::record::{put_double, put_head, put_int};
use super::workload::Workload;

/// What does not change between the frames of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layout: Layout,
    pub(crate) size: u32,
    pub(crate) schema_id: u32,
}

impl Shape {
    /// How many frames a device's records make.
    pub(crate) fn frames(&self, workload: &Workload) -> u32 {
        workload.rounds.div_ceil(self.size)
    }

    /// The last seq in frame `number`.
    pub(crate) fn last_seq(&self, workload: &Workload, number: u32) -> u32 {
        ((number + 1) * self.size).min(workload.rounds)
    }

    /// Appends frame `number` of a device, stamped with the sending time `sent_ns`.
    pub(crate) fn put(&self, out: &mut Vec<u8>, workload: &Workload, device: u32, number: u32, sent_ns: i64) {
        let first = number * self.size + 1;
        let last = self.last_seq(workload, number);
        let count = u64::from(last + 1 - first);
        let base = workload.reading(device, first).ts;
        let columns = self.layout == Layout::Columns;
        put_head(out, 5, if columns { 9 } else { 8 });
        put_pair(out, 0, 1);
        put_pair(out, 1, workload.epoch());
        put_pair(out, 2, u64::from(first));
        put_pair(out, 3, u64::from(self.schema_id));
        // Version 1.0: major in the high half.
        put_pair(out, 4, 1 << 16);
        put_pair(out, 5, base as u64);
        put_head(out, 0, 6);
        if columns {
            put_head(out, 4, 7);
            put_head(out, 4, count);
            let mut before = base;
            for seq in first..=last {
                let ts = workload.reading(device, seq).ts;
                put_int(out, ts - before);
                before = ts;
            }
            for field in 0..3usize {
                put_head(out, 0, field as u64 + 1);
                put_head(out, 4, count);
                for seq in first..=last {
                    let value = workload.reading(device, seq).values().get(field).copied();
                    put_double(out, value.unwrap_or(f64::NAN));
                }
            }
        } else {
            put_head(out, 4, count);
            for seq in first..=last {
                let reading = workload.reading(device, seq);
                put_head(out, 4, 2);
                put_int(out, reading.ts - base);
                put_head(out, 5, 3);
                for (value, id) in reading.values().into_iter().zip(1..) {
                    put_head(out, 0, id);
                    put_double(out, value);
                }
            }
        }
        put_pair(out, 7, sent_ns as u64);
        if columns {
            put_pair(out, 10, 1);
        }
    }
}

fn put_pair(out: &mut Vec<u8>, key: u64, value: u64) {
    put_head(out, 0, key);
    put_head(out, 0, value);
}

/// What an ack frame says about one epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Every seq up to this one is accounted for, if the ack names the epoch.
    pub(crate) cum: Option<u64>,
    /// Records the device may have under way, if the ack says.
    pub(crate) credit: Option<u64>,
    /// How many refusals it carries.
    pub(crate) refused: u64,
}

impl Ack {
    /// Reads an ack frame.
    pub(crate) fn read(bytes: &[u8], epoch: u64) -> Result<Self, Error> {
        let mut ack = Self::default();
        let mut d = Decoder::new(bytes);
        for _ in 0..d.map()?.ok_or_else(|| Error::message("an ack frame has a definite length"))? {
            match d.u64()? {
                1 => {
                    for _ in 0..d.array()?.unwrap_or(0) {
                        let length = d.array()?.unwrap_or(0);
                        let (named, cum) = (d.u64()?, d.u64()?);
                        for _ in 2..length {
                            d.skip()?;
                        }
                        if named == epoch {
                            ack.cum = Some(cum);
                        }
                    }
                }
                3 => ack.credit = Some(d.u64()?),
                7 => {
                    ack.refused = d.array()?.unwrap_or(0);
                    for _ in 0..ack.refused {
                        d.skip()?;
                    }
                }
                _ => d.skip()?,
            }
        }
        Ok(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOAD: Workload = Workload {
        devices: 3,
        rounds: 21,
        interval_ns: 1_000_000_000,
        base_ns: 1_790_000_000_000_000_000,
        duplicates: 0,
        disorder: 0,
        seed: 1,
    };

    fn header(d: &mut Decoder<'_>) -> i64 {
        let mut base = 0;
        for key in 0..6 {
            assert_eq!(d.u64().unwrap(), key);
            base = d.i64().unwrap();
        }
        assert_eq!(d.u64().unwrap(), 6);
        base
    }

    #[test]
    fn both_layouts_hold_the_records() {
        for (layout, keys) in [(Layout::Rows, 8), (Layout::Columns, 9)] {
            let shape = Shape { layout, size: 16, schema_id: 1 };
            assert_eq!(shape.frames(&WORKLOAD), 2);
            let mut out = Vec::new();
            shape.put(&mut out, &WORKLOAD, 2, 1, 99);
            let mut d = Decoder::new(&out);
            assert_eq!(d.map().unwrap(), Some(keys));
            let base = header(&mut d);
            if layout == Layout::Rows {
                assert_eq!(d.array().unwrap(), Some(5));
                for seq in 17..=21 {
                    let reading = WORKLOAD.reading(2, seq);
                    assert_eq!(d.array().unwrap(), Some(2));
                    assert_eq!(base + d.i64().unwrap(), reading.ts);
                    assert_eq!(d.map().unwrap(), Some(3));
                    for (id, value) in (1..).zip(reading.values()) {
                        assert_eq!((d.u64().unwrap(), d.f64().unwrap()), (id, value));
                    }
                }
            } else {
                assert_eq!(d.array().unwrap(), Some(7));
                assert_eq!(d.array().unwrap(), Some(5));
                let mut ts = base;
                for seq in 17..=21 {
                    ts += d.i64().unwrap();
                    assert_eq!(ts, WORKLOAD.reading(2, seq).ts);
                }
                for id in 1..=3u64 {
                    assert_eq!(d.u64().unwrap(), id);
                    assert_eq!(d.array().unwrap(), Some(5));
                    for seq in 17..=21 {
                        assert_eq!(d.f64().unwrap(), WORKLOAD.reading(2, seq).values()[id as usize - 1]);
                    }
                }
            }
            assert_eq!((d.u64().unwrap(), d.u64().unwrap()), (7, 99));
        }
    }

    #[test]
    fn acks_are_understood() {
        let mut bytes = Vec::new();
        let mut e = minicbor::Encoder::new(&mut bytes);
        e.map(5).unwrap().u8(0).unwrap().u8(1).unwrap();
        e.u8(1).unwrap().array(2).unwrap();
        e.array(3).unwrap().u64(8).unwrap().u64(1).unwrap().array(0).unwrap();
        e.array(4).unwrap().u64(9).unwrap().u64(77).unwrap();
        e.array(1).unwrap().array(2).unwrap().u64(80).unwrap().u64(2).unwrap().u64(90).unwrap();
        e.u8(2).unwrap().u8(1).unwrap().u8(3).unwrap().u32(1024).unwrap();
        e.u8(7).unwrap().array(1).unwrap().array(1).unwrap().str("bad_frame").unwrap();
        let ack = Ack::read(&bytes, 9).unwrap();
        assert_eq!(ack, Ack { cum: Some(77), credit: Some(1024), refused: 1 });
        assert!(Ack::read(&bytes[..10], 9).is_err());
    }
}
