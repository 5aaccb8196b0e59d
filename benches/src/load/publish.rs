//! Plain publishes (jobs J1 and J1m): one record per message, a window of unacknowledged ones per connection.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::connection::{Connection, WRITE_SIZE, open_all};
use super::options::{Format, Publish};
use super::packet;
use super::record;
use super::report::Outcome;
use super::workload::{Cursor, device_name};

/// One connection and what it has under way.
struct Publisher {
    connection: Connection,
    cursor: Cursor,
    next: Option<(u32, super::workload::Reading, bool)>,
    /// Packet ids that are free; never longer than the window.
    free: Vec<u16>,
    /// For each packet id under way, when it was (or should have been) sent, in microseconds; else `u64::MAX`.
    sent_at: Vec<u64>,
    taken: u64,
    phase: f64,
    queued: bool,
    done: bool,
}

const IDLE: u64 = u64::MAX;

/// How long acknowledgements are gathered; also how late a planned message may leave.
const GATHER: Duration = Duration::from_micros(100);

/// Messages of a connection that are due within this time are planned together.
const BURST: Duration = Duration::from_millis(2);

/// Runs this thread's share of the connections to the end.
pub(crate) fn run(options: &Publish, thread: u32, start: &std::sync::Barrier) -> io::Result<Outcome> {
    let mut poll = Poll::new()?;
    let opened = open_all(
        options.addr,
        &options.client_prefix,
        (thread..options.connections).step_by(options.threads as usize),
        |_| Vec::new(),
        &poll,
    );
    // Whoever measures starts its clocks here. A thread that failed must not keep the others waiting.
    if start.wait().is_leader() {
        eprintln!("connected");
    }
    let workload = options.workload();
    let topics: Vec<Vec<u8>> = (0..options.devices)
        .map(|d| format!("devices/{}/telemetry", device_name(&options.device_prefix, d)).into_bytes())
        .collect();
    let mut publishers = Vec::new();
    for (at, connection) in opened?.into_iter().enumerate() {
        let number = thread + at as u32 * options.threads;
        let mut cursor = Cursor::new(workload, number, options.connections);
        let next = cursor.next();
        publishers.push(Publisher {
            connection,
            cursor,
            done: next.is_none(),
            next,
            free: (1..=options.window).rev().collect(),
            sent_at: vec![IDLE; usize::from(options.window) + 1],
            taken: 0,
            phase: f64::from(number) / f64::from(options.connections),
            queued: false,
        });
    }
    let pace = options.rate.map(|rate| Pace::new(rate / f64::from(options.connections)));
    let stop = options.seconds.map(Duration::from_secs_f64);
    let mut outcome = Outcome::start();
    outcome.series = options.series.then(Vec::new);
    let began = Instant::now();
    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0u8; 256 * 1024];
    let mut payload = Vec::with_capacity(256);
    let mut ready: Vec<usize> = (0..publishers.len()).collect();
    let mut again: Vec<usize> = Vec::new();
    let mut open = publishers.iter().filter(|p| !p.done).count();
    let mut progress = Instant::now();
    while open > 0 {
        let stopped = stop.is_some_and(|limit| began.elapsed() >= limit);
        if pace.is_some() || stopped {
            ready.clear();
            ready.extend(0..publishers.len());
        }
        let now = began.elapsed().as_micros() as u64;
        for at in ready.drain(..) {
            let publisher = &mut publishers[at];
            publisher.queued = false;
            if stopped {
                publisher.next = None;
            }
            publisher.fill(options, pace, now, &topics, &mut payload, &mut outcome);
            publisher.connection.flush()?;
            let waits_for_socket = !publisher.connection.can_write();
            if !publisher.done && publisher.next.is_none() && publisher.settled(options) {
                publisher.done = true;
                open -= 1;
            } else if pace.is_none() && !waits_for_socket && publisher.has_room(options) && publisher.next.is_some() {
                publisher.queued = true;
                again.push(at);
            }
        }
        std::mem::swap(&mut ready, &mut again);
        if open == 0 {
            break;
        }
        let patience = if !ready.is_empty() {
            Duration::ZERO
        } else {
            // Many acknowledgements in one turn cost little more than one: without this pause a server that sends
            // them one by one would make the generator wake for each.
            std::thread::sleep(GATHER);
            if pace.is_some() { Duration::ZERO } else { Duration::from_secs(1) }
        };
        if let Err(e) = poll.poll(&mut events, Some(patience))
            && e.kind() != io::ErrorKind::Interrupted
        {
            return Err(e);
        }
        let now = began.elapsed().as_micros() as u64;
        for event in &events {
            let Some(publisher) = publishers.get_mut(event.token().0) else { continue };
            if event.is_writable() {
                publisher.connection.set_writable();
                // At QoS 0 room in the socket is all the answer there is.
                progress = Instant::now();
            }
            if event.is_readable() && publisher.acks(&mut scratch, now, &mut outcome)? > 0 {
                progress = Instant::now();
            }
            if !publisher.queued && !publisher.done {
                publisher.queued = true;
                ready.push(event.token().0);
            }
        }
        if progress.elapsed() > Duration::from_secs(options.patience) {
            outcome.stalled = true;
            break;
        }
    }
    outcome.finish(began);
    for publisher in publishers {
        outcome.bytes += publisher.connection.written;
        publisher.connection.close();
    }
    Ok(outcome)
}

/// The plan of one connection in an open load: bursts at even distances. One write per message would cost the
/// generator more than the system under test.
#[derive(Debug, Clone, Copy)]
struct Pace {
    burst: u64,
    /// Microseconds from one burst to the next.
    distance: f64,
}

impl Pace {
    fn new(messages_per_second: f64) -> Self {
        let burst = (messages_per_second * BURST.as_secs_f64()).floor().max(1.0);
        Self { burst: burst as u64, distance: burst / messages_per_second * 1e6 }
    }

    /// When the message after `taken` others is due, in microseconds; `phase` (0 to 1) keeps connections apart.
    fn intended(&self, taken: u64, phase: f64) -> u64 {
        (((taken / self.burst) as f64 + phase) * self.distance) as u64
    }
}

impl Publisher {
    fn has_room(&self, options: &Publish) -> bool {
        self.connection.unsent() < WRITE_SIZE && (options.qos == 0 || !self.free.is_empty())
    }

    /// Nothing of it is under way any more.
    fn settled(&self, options: &Publish) -> bool {
        self.connection.unsent() == 0 && (options.qos == 0 || self.free.len() == usize::from(options.window))
    }

    /// Appends as many publishes as window, buffer and pace allow.
    fn fill(
        &mut self,
        options: &Publish,
        pace: Option<Pace>,
        now: u64,
        topics: &[Vec<u8>],
        payload: &mut Vec<u8>,
        outcome: &mut Outcome,
    ) {
        let epoch = self.cursor.epoch();
        while self.has_room(options) {
            let Some((device, reading, repeated)) = self.next else { return };
            // An open load has a plan; latency counts from the planned time, so that a stall is not hidden.
            let intended = match pace {
                Some(pace) => pace.intended(self.taken, self.phase),
                None => now,
            };
            if intended > now {
                return;
            }
            let Some(topic) = topics.get(device as usize) else { return };
            payload.clear();
            match options.format {
                Format::Json => record::put_json(payload, epoch, &reading),
                Format::Cbor | Format::Frame => record::put_cbor(payload, epoch, &reading),
            }
            let id = if options.qos == 0 { 0 } else { self.free.pop().unwrap_or(0) };
            packet::put_publish(&mut self.connection.out, topic, id, options.qos, payload);
            self.sent_at[usize::from(id)] = intended;
            self.taken += 1;
            outcome.sent += 1;
            outcome.unique += u64::from(!repeated);
            self.next = self.cursor.next();
        }
    }

    /// Takes the acknowledgements that arrived and says how many.
    fn acks(&mut self, scratch: &mut [u8], now: u64, outcome: &mut Outcome) -> io::Result<u64> {
        let (free, sent_at) = (&mut self.free, &mut self.sent_at);
        let mut count = 0;
        self.connection.read(scratch, |kind, body| {
            if kind != packet::PUBACK {
                outcome.unexpected += 1;
                return;
            }
            let id = body.first_chunk::<2>().map_or(0, |b| u16::from_be_bytes(*b));
            match sent_at.get_mut(usize::from(id)) {
                Some(at) if id > 0 && *at != IDLE => {
                    outcome.acknowledged(*at, now);
                    *at = IDLE;
                    free.push(id);
                    count += 1;
                }
                _ => outcome.unexpected += 1,
            }
        })?;
        outcome.acked += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_keeps_the_rate() {
        for rate in [0.5, 10.0, 499.0, 501.0, 6000.0, 123_456.0] {
            let pace = Pace::new(rate);
            let ten_seconds = (rate * 10.0) as u64;
            let due = pace.intended(ten_seconds, 0.0) as f64 / 1e6;
            assert!((due - 10.0).abs() <= 2.0 / rate + 0.004, "{rate}: {due}");
            assert!(pace.distance <= 2000.0_f64.max(1e6 / rate) + 1.0);
        }
    }
}
