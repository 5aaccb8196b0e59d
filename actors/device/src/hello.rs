//! The first message of a session, `devices/{id}/hello`, and the engine's answer on `devices/{id}/hello/ack`: CBOR
//! maps with text keys.
//!
//! Both pass over keys they do not know, so that either side can learn new ones first.

use minicbor::data::Type;
use minicbor::decode::Error;
use minicbor::{Decoder, Encoder};

use crate::ack::{EpochAck, WireError, definite, get_epochs, put_epochs};
use crate::seq::{Epoch, MAX_SEQ};
use crate::time::Timestamp;

/// What `cert_action` says when a certificate is due.
const RENEW: &str = "renew";

/// Most epochs in a hello. A device sends at most 8 at a time and opens at most 100 a day.
pub const MAX_EPOCHS: usize = 1024;

/// An epoch that a device still holds records of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldEpoch {
    /// Which.
    pub epoch: Epoch,
    /// Lowest number it holds.
    pub first_held: u64,
    /// Last number it gave.
    pub last_seq: u64,
    /// Whether it still adds to it.
    pub live: bool,
}

/// What a device says of itself at the beginning of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// 16 random bytes made with the device's store.
    pub install: Vec<u8>,
    /// Firmware version.
    pub fw: String,
    /// Schemas it speaks.
    pub schemas: Vec<String>,
    /// Every epoch it holds records of.
    pub epochs: Vec<HeldEpoch>,
    /// Version of the desired state that it has applied.
    pub applied_dv: Option<u64>,
    /// Counts its boots.
    pub boot_no: u64,
    /// Its monotonic clock now.
    pub mono: Option<u64>,
    /// Its wall clock now.
    pub st: Option<Timestamp>,
    /// Random number of this connection.
    pub session: u64,
    /// What it can do.
    pub caps: Vec<String>,
}

/// The engine's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HelloAck {
    /// What is stored of the epochs the device named.
    pub acks: Vec<EpochAck>,
    /// How durable "stored" is.
    pub ack_level: u8,
    /// How many records the device may have in flight.
    pub credit: u32,
    /// The device's wall clock as it stood in the hello.
    pub st: Option<Timestamp>,
    /// When the hello was received.
    pub server_rx: Timestamp,
    /// When this answer was made.
    pub server_tx: Timestamp,
    /// The session it answers.
    pub session: u64,
    /// The version of what is desired of it in its default shadow; `None`: nothing ever was.
    pub dv: Option<u64>,
    /// All that is desired and not reported there, as a CBOR map, unless it has applied that version.
    pub delta: Option<Vec<u8>>,
    /// Whether the certificate that the connection was opened with is due to be renewed.
    pub renew: bool,
}

type Done = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

impl Hello {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        // Writing to a vector cannot fail.
        let _ = self.put(&mut Encoder::new(&mut bytes));
        bytes
    }

    fn put(&self, out: &mut Encoder<&mut Vec<u8>>) -> Done {
        let optional = [self.applied_dv.is_some(), self.mono.is_some(), self.st.is_some()];
        out.map(7 + optional.iter().filter(|present| **present).count() as u64)?;
        out.str("install")?.bytes(&self.install)?.str("fw")?.str(&self.fw)?;
        out.str("schemas")?;
        put_texts(out, &self.schemas)?;
        out.str("epochs")?.array(self.epochs.len() as u64)?;
        for held in &self.epochs {
            out.array(4)?.u64(held.epoch.0)?.u64(held.first_held)?.u64(held.last_seq)?.bool(held.live)?;
        }
        if let Some(version) = self.applied_dv {
            out.str("applied_dv")?.u64(version)?;
        }
        out.str("boot_no")?.u64(self.boot_no)?;
        if let Some(mono) = self.mono {
            out.str("mono")?.u64(mono)?;
        }
        if let Some(st) = self.st {
            out.str("st")?.i64(st.0)?;
        }
        out.str("session")?.u64(self.session)?.str("caps")?;
        put_texts(out, &self.caps)
    }

    /// Reads a hello; only `epochs` and `session` have to be there.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut input = Decoder::new(bytes);
        let hello = Self::get(&mut input).map_err(|error| WireError { what: "hello", why: error.to_string() })?;
        if input.position() < bytes.len() {
            return Err(WireError { what: "hello", why: "bytes after its end".to_owned() });
        }
        Ok(hello)
    }

    fn get(input: &mut Decoder<'_>) -> Result<Self, Error> {
        let mut hello = Self::default();
        let (mut has_epochs, mut has_session) = (false, false);
        for _ in 0..definite(input.map()?)? {
            match input.str()? {
                "install" => hello.install = input.bytes()?.to_vec(),
                "fw" => hello.fw = input.str()?.to_owned(),
                "schemas" => hello.schemas = texts(input)?,
                "epochs" => {
                    has_epochs = true;
                    hello.epochs = held(input)?;
                }
                "applied_dv" => hello.applied_dv = optional(input, Decoder::u64)?,
                "boot_no" => hello.boot_no = input.u64()?,
                "mono" => hello.mono = optional(input, Decoder::u64)?,
                "st" => hello.st = optional(input, Decoder::i64)?.map(Timestamp),
                "session" => {
                    has_session = true;
                    hello.session = input.u64()?;
                }
                "caps" => hello.caps = texts(input)?,
                _ => input.skip()?,
            }
        }
        match (has_epochs, has_session) {
            (true, true) => Ok(hello),
            (false, _) => Err(Error::message("`epochs` is missing: send [] if the device holds nothing")),
            (_, false) => Err(Error::message("`session` is missing")),
        }
    }
}

fn held(input: &mut Decoder<'_>) -> Result<Vec<HeldEpoch>, Error> {
    let len = definite(input.array()?)?;
    if len > MAX_EPOCHS as u64 {
        return Err(Error::message("a hello has at most 1024 epochs"));
    }
    let mut epochs = Vec::new();
    for _ in 0..len {
        let len = definite(input.array()?)?;
        if !(3..=4).contains(&len) {
            return Err(Error::message("an epoch is [epoch, first held, last seq, ?live]"));
        }
        let (epoch, first_held, last_seq) = (Epoch(input.u64()?), input.u64()?, input.u64()?);
        if epoch.0 > MAX_SEQ || first_held > MAX_SEQ || last_seq > MAX_SEQ {
            return Err(Error::message("epochs and sequence numbers end at 2^63-1"));
        }
        let live = len == 4 && input.bool()?;
        epochs.push(HeldEpoch { epoch, first_held, last_seq, live });
    }
    Ok(epochs)
}

fn put_texts(out: &mut Encoder<&mut Vec<u8>>, texts: &[String]) -> Done {
    out.array(texts.len() as u64)?;
    for text in texts {
        out.str(text)?;
    }
    Ok(())
}

fn texts(input: &mut Decoder<'_>) -> Result<Vec<String>, Error> {
    let mut texts = Vec::new();
    for _ in 0..definite(input.array()?)? {
        texts.push(input.str()?.to_owned());
    }
    Ok(texts)
}

fn optional<'b, T>(
    input: &mut Decoder<'b>,
    get: impl FnOnce(&mut Decoder<'b>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    match input.datatype()? {
        Type::Null | Type::Undefined => input.skip().map(|()| None),
        _ => get(input).map(Some),
    }
}

impl HelloAck {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        // Writing to a vector cannot fail.
        let _ = self.put(&mut Encoder::new(&mut bytes));
        bytes
    }

    fn put(&self, out: &mut Encoder<&mut Vec<u8>>) -> Done {
        let optional = [self.st.is_some(), self.dv.is_some(), self.delta.is_some(), self.renew];
        out.map(6 + optional.iter().filter(|present| **present).count() as u64)?.str("acks")?;
        put_epochs(out, &self.acks)?;
        out.str("ack_level")?.u8(self.ack_level)?.str("credit")?.u32(self.credit)?;
        if let Some(st) = self.st {
            out.str("st")?.i64(st.0)?;
        }
        out.str("server_rx")?.i64(self.server_rx.0)?.str("server_tx")?.i64(self.server_tx.0)?;
        out.str("session")?.u64(self.session)?;
        if let Some(dv) = self.dv {
            out.str("dv")?.u64(dv)?;
        }
        if let Some(delta) = &self.delta {
            out.str("delta")?.writer_mut().extend_from_slice(delta);
        }
        if self.renew {
            out.str("cert_action")?.str(RENEW)?;
        }
        Ok(())
    }

    /// Reads an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        Self::get(&mut Decoder::new(bytes)).map_err(|error| WireError { what: "hello/ack", why: error.to_string() })
    }

    fn get(input: &mut Decoder<'_>) -> Result<Self, Error> {
        let mut ack = Self::default();
        for _ in 0..definite(input.map()?)? {
            match input.str()? {
                "acks" => ack.acks = get_epochs(input)?,
                "ack_level" => ack.ack_level = input.u8()?,
                "credit" => ack.credit = input.u32()?,
                "st" => ack.st = optional(input, Decoder::i64)?.map(Timestamp),
                "server_rx" => ack.server_rx = Timestamp(input.i64()?),
                "server_tx" => ack.server_tx = Timestamp(input.i64()?),
                "session" => ack.session = input.u64()?,
                "dv" => ack.dv = optional(input, Decoder::u64)?,
                "delta" => {
                    let from = input.position();
                    input.skip()?;
                    ack.delta = input.input().get(from..input.position()).map(<[u8]>::to_vec);
                }
                "cert_action" => ack.renew = optional(input, Decoder::str)? == Some(RENEW),
                _ => input.skip()?,
            }
        }
        Ok(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_come_back() {
        let held = HeldEpoch { epoch: Epoch(9), first_held: 4, last_seq: 17, live: true };
        let full = Hello {
            install: vec![7; 16],
            fw: "1.2.3".to_owned(),
            schemas: vec!["telemetry 1.0".to_owned()],
            epochs: vec![held, HeldEpoch { live: false, ..held }],
            applied_dv: Some(3),
            boot_no: 12,
            mono: Some(99),
            st: Some(Timestamp(-1)),
            session: u64::MAX,
            caps: vec!["columns".to_owned()],
        };
        for hello in [Hello::default(), full] {
            assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
        let answer = HelloAck {
            acks: vec![EpochAck { epoch: Epoch(9), cum: 3, ranges: vec![(5, 1)], last: None }],
            ack_level: 1,
            credit: 1024,
            st: Some(Timestamp(5)),
            server_rx: Timestamp(6),
            server_tx: Timestamp(7),
            session: 8,
            dv: Some(3),
            delta: Some(vec![0xa1, 0x61, b'a', 1]),
            renew: true,
        };
        assert_eq!(HelloAck::decode(&answer.encode()), Ok(answer));
    }

    #[test]
    fn a_hello_needs_epochs_and_a_session() {
        let why = |bytes: &[u8]| Hello::decode(bytes).unwrap_err().to_string();
        assert!(why(&[0xa0]).contains("`epochs` is missing"));
        assert!(why(b"\xa1\x66epochs\x80").contains("`session` is missing"));
        assert!(Hello::decode(b"\xa2\x66epochs\x80\x67session\x05").is_ok());
        assert!(why(b"\xa2\x66epochs\x80\x67session\x05\x00").contains("after its end"));
        assert!(why(b"{}").contains("hello does not decode"));
    }
}
