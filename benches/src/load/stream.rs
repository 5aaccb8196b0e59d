//! Devices that send frames (job J1f): QoS 0 on the wire, and per device a window of records that the cumulative
//! ack has not covered yet. What is not covered in time is sent again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::connection::{Connection, WRITE_SIZE, open_all};
use super::frame::{Ack, Shape};
use super::options::Publish;
use super::packet;
use super::report::Outcome;
use super::workload::{Workload, device_name};

/// How long a device waits for an ack before it sends again.
const RESEND_AFTER: Duration = Duration::from_secs(5);

/// One device and what it has under way.
struct Sender {
    device: u32,
    /// How many frames were sent at least once; the next one's turn.
    turn: u32,
    /// Frames under way: number, when first sent (microseconds).
    unacked: VecDeque<(u32, u64)>,
    /// Records under way.
    in_flight: u32,
    /// All records up to here are acknowledged.
    cum: u32,
    limit: u32,
    progress_us: u64,
    queued: bool,
}

/// One connection and the devices behind it.
struct Gateway {
    connection: Connection,
    senders: Vec<Sender>,
    /// Devices that may have room for another frame.
    ready: VecDeque<usize>,
    left: usize,
}

/// What all of a thread's connections share.
struct Run<'a> {
    options: &'a Publish,
    workload: Workload,
    shape: Shape,
    frames: u32,
    topics: Vec<Vec<u8>>,
    by_ack_topic: HashMap<Vec<u8>, usize>,
    outcome: Outcome,
}

/// Runs this thread's share of the connections to the end.
pub(crate) fn run(options: &Publish, thread: u32, start: &std::sync::Barrier) -> io::Result<Outcome> {
    let mut poll = Poll::new()?;
    let devices_of = |c: u32| (c..options.devices).step_by(options.connections as usize);
    let ack_topic = |device: u32| format!("devices/{}/ack", device_name(&options.device_prefix, device));
    let opened = open_all(
        options.addr,
        &options.client_prefix,
        (thread..options.connections).step_by(options.threads as usize),
        |connection| devices_of(connection).map(ack_topic).collect(),
        &poll,
    );
    if start.wait().is_leader() {
        eprintln!("connected");
    }
    let workload = options.workload();
    let shape = Shape { layout: options.layout, size: options.frame_records.max(1), schema_id: options.schema_id };
    let mut run = Run {
        options,
        workload,
        shape,
        frames: shape.frames(&workload),
        topics: (0..options.devices)
            .map(|d| format!("devices/{}/telemetry", device_name(&options.device_prefix, d)).into_bytes())
            .collect(),
        by_ack_topic: HashMap::new(),
        outcome: Outcome::start(),
    };
    let mut gateways = Vec::new();
    for (at, connection) in opened?.into_iter().enumerate() {
        let senders: Vec<Sender> = devices_of(thread + at as u32 * options.threads).map(Sender::new).collect();
        for (index, sender) in senders.iter().enumerate() {
            run.by_ack_topic.insert(ack_topic(sender.device).into_bytes(), index);
        }
        let (ready, left) = ((0..senders.len()).collect(), senders.len());
        gateways.push(Gateway { connection, senders, ready, left });
    }
    let began = Instant::now();
    let mut events = Events::with_capacity(256);
    let mut scratch = vec![0u8; 256 * 1024];
    let mut payload = Vec::with_capacity(2048);
    let mut progress = Instant::now();
    let mut looked_for_losses = Instant::now();
    while gateways.iter().any(|g| g.left > 0) {
        let now = began.elapsed();
        let mut busy = false;
        for gateway in &mut gateways {
            busy |= gateway.pump(&mut run, now, &mut payload)?;
        }
        if looked_for_losses.elapsed() > Duration::from_secs(1) {
            looked_for_losses = Instant::now();
            for gateway in &mut gateways {
                gateway.send_again(&mut run, now, &mut payload);
            }
        }
        let patience = if busy { Duration::ZERO } else { Duration::from_millis(500) };
        if let Err(e) = poll.poll(&mut events, Some(patience))
            && e.kind() != io::ErrorKind::Interrupted
        {
            return Err(e);
        }
        let now = began.elapsed();
        for event in &events {
            let Some(gateway) = gateways.get_mut(event.token().0) else { continue };
            if event.is_writable() {
                gateway.connection.set_writable();
            }
            if event.is_readable() && gateway.acks(&mut run, &mut scratch, now.as_micros() as u64)? {
                progress = Instant::now();
            }
        }
        if progress.elapsed() > Duration::from_secs(options.patience) {
            run.outcome.stalled = true;
            break;
        }
    }
    run.outcome.finish(began);
    for gateway in gateways {
        run.outcome.bytes += gateway.connection.written;
        gateway.connection.close();
    }
    Ok(run.outcome)
}

impl Sender {
    fn new(device: u32) -> Self {
        Self {
            device,
            turn: 0,
            unacked: VecDeque::new(),
            in_flight: 0,
            cum: 0,
            limit: u32::MAX,
            progress_us: 0,
            queued: true,
        }
    }
}

impl Run<'_> {
    /// Writes one frame of a device.
    fn put(&mut self, out: &mut Vec<u8>, payload: &mut Vec<u8>, device: u32, number: u32, now: Duration) -> u32 {
        payload.clear();
        let sent_ns = self.workload.end_ns() + now.as_nanos() as i64;
        self.shape.put(payload, &self.workload, device, number, sent_ns);
        if let Some(topic) = self.topics.get(device as usize) {
            packet::put_publish(out, topic, 0, 0, payload);
        }
        let records = self.shape.last_seq(&self.workload, number) - number * self.shape.size;
        self.outcome.sent += u64::from(records);
        records
    }
}

impl Gateway {
    /// Sends what windows and buffer allow. True: there is more to send at once.
    fn pump(&mut self, run: &mut Run<'_>, now: Duration, payload: &mut Vec<u8>) -> io::Result<bool> {
        while self.connection.can_write() && self.connection.unsent() < WRITE_SIZE {
            let Some(at) = self.ready.pop_front() else { break };
            let Some(sender) = self.senders.get_mut(at) else { continue };
            let limit = run.options.frame_window.min(sender.limit);
            if sender.turn == run.frames || (sender.in_flight > 0 && sender.in_flight + run.shape.size > limit) {
                sender.queued = false;
                continue;
            }
            let number = run.workload.order(sender.device, sender.turn, run.frames);
            let records = run.put(&mut self.connection.out, payload, sender.device, number, now);
            run.outcome.unique += u64::from(records);
            if run.workload.is_sent_twice(sender.device, number) {
                run.put(&mut self.connection.out, payload, sender.device, number, now);
            }
            let now_us = now.as_micros() as u64;
            if sender.unacked.is_empty() {
                sender.progress_us = now_us;
            }
            sender.unacked.push_back((number, now_us));
            sender.in_flight += records;
            sender.turn += 1;
            self.ready.push_back(at);
        }
        self.connection.flush()?;
        Ok(self.connection.can_write() && !self.ready.is_empty())
    }

    /// Sends again whatever a device has waited for too long.
    fn send_again(&mut self, run: &mut Run<'_>, now: Duration, payload: &mut Vec<u8>) {
        let now_us = now.as_micros() as u64;
        for sender in &mut self.senders {
            if sender.unacked.is_empty() || now_us < sender.progress_us + RESEND_AFTER.as_micros() as u64 {
                continue;
            }
            sender.progress_us = now_us;
            for (number, _) in &sender.unacked {
                run.put(&mut self.connection.out, payload, sender.device, *number, now);
                run.outcome.resent += 1;
            }
        }
    }

    /// Takes the acks that arrived. True: something was acknowledged.
    fn acks(&mut self, run: &mut Run<'_>, scratch: &mut [u8], now_us: u64) -> io::Result<bool> {
        let Self { connection, senders, ready, left } = self;
        let epoch = run.workload.epoch();
        let mut moved = false;
        connection.read(scratch, |kind, body| {
            let Some((topic, _, payload)) = packet::publish_parts(kind, body) else {
                run.outcome.unexpected += 1;
                return;
            };
            let index = run.by_ack_topic.get(topic).copied();
            let (Some(index), Ok(ack)) = (index, Ack::read(payload, epoch)) else {
                run.outcome.unexpected += 1;
                return;
            };
            let Some(sender) = senders.get_mut(index) else { return };
            run.outcome.refused += ack.refused;
            if let Some(credit) = ack.credit {
                sender.limit = u32::try_from(credit).unwrap_or(u32::MAX);
            }
            let Some(cum) = ack.cum.and_then(|cum| u32::try_from(cum).ok()) else { return };
            if cum > sender.cum {
                moved = true;
                sender.progress_us = now_us;
                run.outcome.acked += u64::from(cum - sender.cum);
                sender.cum = cum;
                let (shape, workload) = (run.shape, run.workload);
                let (in_flight, latency) = (&mut sender.in_flight, &mut run.outcome.latency);
                sender.unacked.retain(|(number, sent_us)| {
                    let last = shape.last_seq(&workload, *number);
                    if last <= cum {
                        *in_flight -= last - number * shape.size;
                        latency.add(now_us.saturating_sub(*sent_us));
                    }
                    last > cum
                });
                if cum == workload.rounds {
                    *left -= 1;
                }
            }
            if !sender.queued && sender.turn < run.frames {
                sender.queued = true;
                ready.push_back(index);
            }
        })?;
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Barrier;

    use clap::Parser as _;
    use minicbor::{Decoder, Encoder};

    use super::super::options::{Command, Options};
    use super::*;

    /// The first seq of a frame and how many records it has (rows layout).
    fn numbers(frame: &[u8]) -> (u64, u64) {
        let mut d = Decoder::new(frame);
        d.map().unwrap();
        for _ in 0..2 {
            d.skip().unwrap();
            d.skip().unwrap();
        }
        d.skip().unwrap();
        let seq = d.u64().unwrap();
        for _ in 3..6 {
            d.skip().unwrap();
            d.skip().unwrap();
        }
        d.skip().unwrap();
        (seq, d.array().unwrap().unwrap())
    }

    /// Serves one client as the engine would: subscriptions granted, each frame answered with a cumulative ack.
    fn serve(mut socket: TcpStream, epoch: u64) -> HashMap<Vec<u8>, BTreeSet<u64>> {
        let mut seen: HashMap<Vec<u8>, BTreeSet<u64>> = HashMap::new();
        let (mut buffer, mut chunk) = (Vec::new(), [0u8; 65536]);
        loop {
            let mut used = 0;
            while let Some((kind, body, length)) = packet::first(&buffer[used..]) {
                used += length;
                match kind & 0xf0 {
                    0x10 => socket.write_all(&[packet::CONNACK, 2, 0, 0]).unwrap(),
                    0x80 => socket.write_all(&[packet::SUBACK, 3, body[0], body[1], 0]).unwrap(),
                    0x30 => {
                        let (topic, _, frame) = packet::publish_parts(kind, body).unwrap();
                        let (seq, count) = numbers(frame);
                        let all = seen.entry(topic.to_vec()).or_default();
                        all.extend(seq..seq + count);
                        let cum = (1..).take_while(|s| all.contains(s)).last().unwrap_or(0);
                        let mut ack = Vec::new();
                        let mut e = Encoder::new(&mut ack);
                        e.map(2).unwrap().u8(0).unwrap().u8(1).unwrap().u8(1).unwrap().array(1).unwrap();
                        e.array(3).unwrap().u64(epoch).unwrap().u64(cum).unwrap().array(0).unwrap();
                        let device = topic.strip_suffix(b"telemetry").unwrap();
                        let mut out = Vec::new();
                        packet::put_publish(&mut out, &[device, b"ack"].concat(), 0, 0, &ack);
                        socket.write_all(&out).unwrap();
                    }
                    _ => return seen,
                }
            }
            buffer.drain(..used);
            match socket.read(&mut chunk).unwrap() {
                0 => return seen,
                n => buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    #[test]
    fn devices_send_until_all_is_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let arguments = "load publish --format frame --connections 2 --devices 5 --rounds 1003 --disorder 200 \
                         --duplicates 100 --frame-window 64 --base-ns 1790000000000000000 --addr";
        let options = Options::parse_from(arguments.split_whitespace().chain([&*addr]));
        let Command::Publish(options) = options.command else { unreachable!() };
        let epoch = options.workload().epoch();
        let servers: Vec<_> = (0..2)
            .map(|_| listener.try_clone().unwrap())
            .map(|listener| std::thread::spawn(move || serve(listener.accept().unwrap().0, epoch)))
            .collect();
        let outcome = run(&options, 0, &Barrier::new(1)).unwrap();
        assert_eq!((outcome.unique, outcome.acked), (5 * 1003, 5 * 1003));
        assert_eq!((outcome.refused, outcome.unexpected, outcome.stalled), (0, 0, false));
        assert!(outcome.sent > outcome.unique, "some frames go twice");
        let mut devices = 0;
        for server in servers {
            for (_, seqs) in server.join().unwrap() {
                devices += 1;
                assert!(seqs.into_iter().eq(1..=1003));
            }
        }
        assert_eq!(devices, 5);
    }
}
