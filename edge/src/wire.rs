//! What the device's own messages look like as bytes, and what the engine's answers mean to the agent.

use device::ack as wire;
use device::hello::{HeldEpoch, Hello, HelloAck, MAX_EPOCHS};
use device::time::Timestamp;
use minicbor::Encoder;

use crate::agent::{Ack, EpochAck};
use crate::clock::Exchange;
use crate::outbox::EpochView;

/// Version and delta of the default shadow.
pub type Wish = (Option<u64>, Option<Vec<u8>>);

/// The epochs of a hello. If there are too many, the oldest and the live one: the engine closes an open epoch
/// that is not listed, and the newer old ones were never sent.
pub fn held(epochs: &[EpochView]) -> Vec<HeldEpoch> {
    let held = |view: &EpochView| HeldEpoch {
        epoch: view.epoch,
        first_held: view.first,
        last_seq: view.last,
        live: view.live,
    };
    let mut list: Vec<HeldEpoch> = epochs.iter().take(MAX_EPOCHS).map(held).collect();
    if epochs.len() > MAX_EPOCHS
        && let (Some(slot), Some(live)) = (list.last_mut(), epochs.last())
    {
        *slot = held(live);
    }
    list
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// What is stored.
    pub ack: Ack,
    /// What is desired of the device.
    pub wish: Wish,
    /// The times of the answer.
    pub times: Option<Exchange>,
    /// Whether the device's certificate is due to be renewed.
    pub renew: bool,
}

/// Reads the answer to a hello; `None` if it is none, or not to this session's.
pub fn hello_ack(payload: &[u8], session: u64) -> Option<Greeting> {
    let answer = HelloAck::decode(payload).ok().filter(|answer| answer.session == session)?;
    let times = exchange(answer.st, answer.server_rx, answer.server_tx);
    let epochs = epochs(&answer.acks);
    let ack = Ack { epochs, credit: Some(u64::from(answer.credit)), nacks: 0, resend: Vec::new() };
    Some(Greeting { ack, wish: (answer.dv, answer.delta), times, renew: answer.renew })
}

fn exchange(sent: Option<Timestamp>, received: Timestamp, answered: Timestamp) -> Option<Exchange> {
    sent.map(|sent| Exchange { sent, received, answered })
}

/// An ack frame, and its times.
pub fn ack(payload: &[u8]) -> Option<(Ack, Option<Exchange>)> {
    let frame = wire::Ack::decode(payload).ok()?;
    let times = exchange(frame.echo, frame.server_rx, frame.server_tx);
    let resend = frame.resend.iter().flat_map(|resend| {
        inclusive(&resend.ranges).into_iter().map(|(from, to)| (resend.epoch.0, from, to)).collect::<Vec<_>>()
    });
    let ack = Ack {
        epochs: epochs(&frame.epochs),
        credit: Some(u64::from(frame.credit)),
        nacks: frame.nacks.len() as u64,
        resend: resend.collect(),
    };
    Some((ack, times))
}

fn epochs(acks: &[wire::EpochAck]) -> Vec<EpochAck> {
    acks.iter().map(|ack| EpochAck { epoch: ack.epoch.0, cum: ack.cum, ranges: inclusive(&ack.ranges) }).collect()
}

fn inclusive(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    ranges.iter().filter_map(|(start, len)| Some((*start, start.checked_add(len.checked_sub(1)?)?))).collect()
}

/// What the will says, and a goodbye: the device is gone. A will of an older session means nothing.
pub fn offline(session: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to a vector cannot fail.
    let _ = (|| {
        Encoder::new(&mut bytes).map(2)?.str("online")?.bool(false)?.str("session")?.u64(session)?;
        Ok::<(), minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    bytes
}

/// What a device says of itself once it is connected.
pub fn online(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = (|| {
        let mut e = Encoder::new(&mut bytes);
        e.map(5)?.str("online")?.bool(true)?.str("session")?.u64(hello.session)?;
        e.str("boot_no")?.u64(hello.boot_no)?.str("fw")?.str(&hello.fw)?;
        e.str("ts")?.i64(hello.st.unwrap_or_default().0)?;
        Ok::<(), minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    bytes
}
