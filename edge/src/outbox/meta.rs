//! The small object beside the segments: who this store is, how often it was opened, and which numbers are
//! declared lost but not yet acknowledged as such.

use device::entry::LossReason;
use device::seq::Epoch;
use minicbor::decode::Error;
use minicbor::{Decoder, Encoder};

/// Name of the object.
pub(super) const NAME: &str = "meta";
pub(super) const VERSION: u8 = 1;

/// Numbers of one epoch that will never be sent as records, `from` and `to` inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Whose numbers.
    pub epoch: Epoch,
    /// First.
    pub from: u64,
    /// Last.
    pub to: u64,
    /// Why.
    pub reason: LossReason,
}

/// What the object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) install: [u8; 16],
    pub(super) boots: u64,
    pub(super) lost: Vec<Lost>,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut e = Encoder::new(&mut bytes);
        // Writing to a Vec cannot fail; a short encoding would not pass the checksum's reader anyway.
        let _ = (|| {
            e.array(4)?.u8(VERSION)?.bytes(&self.install)?.u64(self.boots)?.array(self.lost.len() as u64)?;
            for lost in &self.lost {
                e.array(4)?.u64(lost.epoch.0)?.u64(lost.from)?.u64(lost.to)?.u8(lost.reason as u8)?;
            }
            Ok::<(), minicbor::encode::Error<std::convert::Infallible>>(())
        })();
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The version of a whole object, also of a newer one: an array that begins with it, and a checksum at the end.
    pub(super) fn version(bytes: &[u8]) -> Option<u8> {
        let mut d = Decoder::new(whole(bytes)?);
        d.array().ok()?;
        d.u8().ok()
    }

    /// `None`: not whole, or of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let body = whole(bytes)?;
        let mut d = Decoder::new(body);
        (|| {
            d.array()?;
            if d.u8()? != VERSION {
                return Err(Error::message("version"));
            }
            let install = d.bytes()?.try_into().map_err(|_| Error::message("install id"))?;
            let boots = d.u64()?;
            let count = d.array()?.unwrap_or(0);
            let mut lost = Vec::new();
            for _ in 0..count {
                d.array()?;
                let (epoch, from, to) = (Epoch(d.u64()?), d.u64()?, d.u64()?);
                let reason = LossReason::from_u8(d.u8()?).ok_or_else(|| Error::message("loss reason"))?;
                lost.push(Lost { epoch, from, to, reason });
            }
            Ok::<_, Error>(Self { install, boots, lost })
        })()
        .ok()
    }
}

/// What stands before the checksum, if that is right.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    (crc32fast::hash(body).to_le_bytes() == crc).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: what clients out there have on their disks.
    #[test]
    fn the_bytes_are_those_of_version_1() {
        let lost = vec![Lost { epoch: Epoch(300), from: 4, to: 9, reason: LossReason::RingFull }];
        let hex: String =
            Meta { install: [9; 16], boots: 3, lost }.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "8401500909090909090909090909090909090903818419012c0409012500d9a6");
    }

    #[test]
    fn both_ways_and_no_damage_passes() {
        let meta = Meta {
            install: [9; 16],
            boots: 3,
            lost: vec![Lost { epoch: Epoch(1 << 62), from: 4, to: 9, reason: LossReason::RingFull }],
        };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Some(meta));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(Meta::decode(&bad), None, "byte {at}");
            assert_eq!(Meta::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
