//! The ack frame: what the engine tells a device on `devices/{id}/ack` about what is stored.
//!
//! A CBOR map with integer keys: `{0: 1, 1: [[epoch, cum, [[start, len], ...], ?last], ...], 2: level, 3: credit,
//! ?4: echo of the send time, 5: received, 6: sent, ?7: [[epoch, seq, reason], ...], ?8: [[epoch, [[start, len],
//! ...]], ...]}`. Acks are cumulative: losing one is harmless.

use minicbor::decode::Error;
use minicbor::{Decoder, Encoder};

use crate::entry::Reason;
use crate::seq::Epoch;
use crate::time::Timestamp;

/// The ack level of one machine: written to its disk, fsynced.
pub const LEVEL_LOCAL: u8 = 1;

/// How many records a device may have in flight.
pub const CREDIT: u32 = 1024;

/// What is stored of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochAck {
    /// Which.
    pub epoch: Epoch,
    /// Every number up to this one is accounted for.
    pub cum: u64,
    /// Numbers above `cum` that are accounted for: first number and how many.
    pub ranges: Vec<(u64, u64)>,
    /// The last number of a closed epoch.
    pub last: Option<u64>,
}

/// A frame that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Its epoch.
    pub epoch: Epoch,
    /// The number of its first record.
    pub seq: u64,
    /// Why. After [`Reason::Window`] and [`Reason::EpochStorm`] send it again later; after anything else never.
    pub reason: Reason,
}

/// Numbers that the device is asked to send again or to declare lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resend {
    /// Their epoch.
    pub epoch: Epoch,
    /// First number and how many.
    pub ranges: Vec<(u64, u64)>,
}

/// One ack frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ack {
    /// The epochs about which there is news.
    pub epochs: Vec<EpochAck>,
    /// How durable "stored" is: [`LEVEL_LOCAL`] on one machine.
    pub level: u8,
    /// How many records the device may have in flight; 0: wait for the next ack.
    pub credit: u32,
    /// The send time of the last frame received, if one was.
    pub echo: Option<Timestamp>,
    /// When that frame was received.
    pub server_rx: Timestamp,
    /// When this ack was made.
    pub server_tx: Timestamp,
    /// Frames that were not taken.
    pub nacks: Vec<Nack>,
    /// What is missing.
    pub resend: Vec<Resend>,
}

/// Why bytes are not an ack frame or hello.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} does not decode: {why}")]
pub struct WireError {
    /// What was expected.
    pub what: &'static str,
    /// What is wrong.
    pub why: String,
}

type Out<'a> = Encoder<&'a mut Vec<u8>>;
type Done = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

impl Ack {
    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + 32 * self.epochs.len());
        // Writing to a vector cannot fail.
        let _ = self.put(&mut Encoder::new(&mut bytes));
        bytes
    }

    fn put(&self, out: &mut Out<'_>) -> Done {
        let optional = [self.echo.is_some(), !self.nacks.is_empty(), !self.resend.is_empty()];
        out.map(6 + optional.iter().filter(|present| **present).count() as u64)?;
        out.u8(0)?.u8(1)?.u8(1)?;
        put_epochs(out, &self.epochs)?;
        out.u8(2)?.u8(self.level)?.u8(3)?.u32(self.credit)?;
        if let Some(echo) = self.echo {
            out.u8(4)?.i64(echo.0)?;
        }
        out.u8(5)?.i64(self.server_rx.0)?.u8(6)?.i64(self.server_tx.0)?;
        if !self.nacks.is_empty() {
            out.u8(7)?.array(self.nacks.len() as u64)?;
            for nack in &self.nacks {
                out.array(3)?.u64(nack.epoch.0)?.u64(nack.seq)?.str(nack.reason.as_str())?;
            }
        }
        if !self.resend.is_empty() {
            out.u8(8)?.array(self.resend.len() as u64)?;
            for resend in &self.resend {
                out.array(2)?.u64(resend.epoch.0)?;
                put_ranges(out, &resend.ranges)?;
            }
        }
        Ok(())
    }

    /// Reads an ack frame. Unknown keys, and nack reasons of newer engines, are passed over.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        Self::get(&mut Decoder::new(bytes)).map_err(|error| WireError { what: "ack frame", why: error.to_string() })
    }

    fn get(input: &mut Decoder<'_>) -> Result<Self, Error> {
        let mut ack = Self::default();
        for _ in 0..definite(input.map()?)? {
            match input.u64()? {
                0 => match input.u8()? {
                    1 => {}
                    _ => return Err(Error::message("this device knows ack version 1 only")),
                },
                1 => ack.epochs = get_epochs(input)?,
                2 => ack.level = input.u8()?,
                3 => ack.credit = input.u32()?,
                4 => ack.echo = Some(Timestamp(input.i64()?)),
                5 => ack.server_rx = Timestamp(input.i64()?),
                6 => ack.server_tx = Timestamp(input.i64()?),
                7 => {
                    for _ in 0..definite(input.array()?)? {
                        if definite(input.array()?)? != 3 {
                            return Err(Error::message("a nack is [epoch, seq, reason]"));
                        }
                        let (epoch, seq) = (Epoch(input.u64()?), input.u64()?);
                        if let Some(reason) = Reason::from_name(input.str()?) {
                            ack.nacks.push(Nack { epoch, seq, reason });
                        }
                    }
                }
                8 => {
                    for _ in 0..definite(input.array()?)? {
                        if definite(input.array()?)? != 2 {
                            return Err(Error::message("a resend request is [epoch, ranges]"));
                        }
                        ack.resend.push(Resend { epoch: Epoch(input.u64()?), ranges: get_ranges(input)? });
                    }
                }
                _ => input.skip()?,
            }
        }
        Ok(ack)
    }
}

pub(crate) fn definite(len: Option<u64>) -> Result<u64, Error> {
    len.ok_or_else(|| Error::message("lengths have to be definite"))
}

pub(crate) fn put_epochs(out: &mut Out<'_>, epochs: &[EpochAck]) -> Done {
    out.array(epochs.len() as u64)?;
    for ack in epochs {
        out.array(3 + u64::from(ack.last.is_some()))?.u64(ack.epoch.0)?.u64(ack.cum)?;
        put_ranges(out, &ack.ranges)?;
        if let Some(last) = ack.last {
            out.u64(last)?;
        }
    }
    Ok(())
}

fn put_ranges(out: &mut Out<'_>, ranges: &[(u64, u64)]) -> Done {
    out.array(ranges.len() as u64)?;
    for (start, len) in ranges {
        out.array(2)?.u64(*start)?.u64(*len)?;
    }
    Ok(())
}

pub(crate) fn get_epochs(input: &mut Decoder<'_>) -> Result<Vec<EpochAck>, Error> {
    let mut epochs = Vec::new();
    for _ in 0..definite(input.array()?)? {
        let len = definite(input.array()?)?;
        if len < 3 {
            return Err(Error::message("an epoch is [epoch, cum, ranges, ?last]"));
        }
        let (epoch, cum) = (Epoch(input.u64()?), input.u64()?);
        let ranges = get_ranges(input)?;
        let last = if len > 3 { Some(input.u64()?) } else { None };
        for _ in 4..len {
            input.skip()?;
        }
        epochs.push(EpochAck { epoch, cum, ranges, last });
    }
    Ok(epochs)
}

fn get_ranges(input: &mut Decoder<'_>) -> Result<Vec<(u64, u64)>, Error> {
    let mut ranges = Vec::new();
    for _ in 0..definite(input.array()?)? {
        if definite(input.array()?)? != 2 {
            return Err(Error::message("a range is [start, len]"));
        }
        let (start, len) = (input.u64()?, input.u64()?);
        if start.checked_add(len).is_none() {
            return Err(Error::message("a range leaves 64 bits"));
        }
        ranges.push((start, len));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_frames_come_back() {
        let full = Ack {
            epochs: vec![
                EpochAck { epoch: Epoch(7), cum: 41, ranges: vec![(43, 2), (99, 1)], last: None },
                EpochAck { epoch: Epoch(u64::MAX >> 1), cum: 5, ranges: vec![], last: Some(5) },
            ],
            level: LEVEL_LOCAL,
            credit: CREDIT,
            echo: Some(Timestamp(-5)),
            server_rx: Timestamp(1),
            server_tx: Timestamp(i64::MAX),
            nacks: vec![Nack { epoch: Epoch(7), seq: 9000, reason: Reason::Window }],
            resend: vec![Resend { epoch: Epoch(7), ranges: vec![(42, 1)] }],
        };
        for ack in [Ack::default(), full] {
            assert_eq!(Ack::decode(&ack.encode()), Ok(ack));
        }
    }

    #[test]
    fn the_keys_are_those_of_the_contract() {
        let ack = Ack { level: 1, credit: 2, server_rx: Timestamp(3), server_tx: Timestamp(4), ..Ack::default() };
        assert_eq!(ack.encode(), [0xa6, 0, 1, 1, 0x80, 2, 1, 3, 2, 5, 3, 6, 4]);
    }

    #[test]
    fn other_bytes_are_refused() {
        for bad in [
            b"".as_slice(),
            b"{}",
            &[0xa1, 0x00, 0x02],
            &[0xa1, 0x01, 0x9b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[0xbf],
        ] {
            assert!(Ack::decode(bad).is_err(), "{bad:02x?}");
        }
        assert_eq!(Ack::decode(&[0xa1, 0x18, 0x63, 0x80]), Ok(Ack::default()));
    }
}
