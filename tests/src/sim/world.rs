//! The event loop of a world: devices, the network between them and the engine, and everything that goes wrong.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use device::id::DeviceId;
use tokio::task::LocalSet;

use super::device::{Common, Uplink};
use super::disk::Disks;
use super::edge_device::EdgeDevice;
use super::hub::{Answer, Hub, SimClock};
use super::live::{CREDIT, Ground, Live};
use super::machine::Machine;
use super::params::{Fault, Params};
use super::plain_device::PlainDevice;
use super::random::Random;
use super::soak::Soak;
use super::trace::Trace;
use super::{oracle, plan};
use crate::note;

/// How long a world may take to come to rest when trouble is over, in milliseconds.
const PATIENCE: i64 = 900_000;

/// How often an actor fails when it answers, of a thousand.
const FAILING: u64 = 150;

/// A device and its connection.
struct Node {
    machine: Machine,
    session: Option<u64>,
    /// Nothing gets through until then.
    deaf_until: i64,
    /// A connection delivers in order: nothing arrives before this.
    arrives: i64,
    ticks_at: i64,
}

/// Something that happens.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A device records.
    Record(usize),
    /// A device looks at the time.
    Tick(usize),
    /// A device tries to connect.
    Connect(usize),
    /// A device's connection breaks.
    Cut(usize),
    /// A device's connection carries nothing for so many milliseconds, then breaks.
    HalfOpen(usize, i64),
    /// A message arrives at the engine.
    Up(usize, u64, Uplink),
    /// An answer arrives at a device.
    Down(usize, u64, Answer),
    /// A device is switched off.
    Crash(usize),
    /// And on.
    Boot(usize),
    /// A device's clock is set.
    Clock(usize),
    /// A device's storage begins to fail, or stops to.
    Media(usize, u64),
    /// A payload that nobody can read.
    Garbage(usize),
    /// The engine's clock is set.
    Skew(i64),
    /// The engine is killed.
    Kill,
    /// Nobody reaches the engine, or everybody again.
    Partition(bool),
    /// The log's disk is full, or not.
    Full(bool),
    /// Somebody asks for a barrier.
    Barrier(bool),
    /// Somebody looks at what the engine keeps.
    Look,
    /// Trouble is over.
    Calm,
}

/// A world.
pub(super) struct World {
    ground: Ground,
    nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(i64, u64)>>,
    bodies: std::collections::BTreeMap<u64, Event>,
    scheduled: u64,
    random: Random,
    now: i64,
    partition: bool,
    calm: bool,
    /// When trouble ended.
    calm_at: i64,
    life: u64,
    /// Lives after everything is settled: the engine has to find everything again.
    encores: u64,
    soak: Soak,
}

enum End {
    Died,
    Settled,
}

impl World {
    /// The world of these parameters.
    pub(super) fn new(params: &Params, trace: &Trace, soak: Soak) -> Self {
        let disks = Disks::new(params, trace);
        let hub = Hub::new(params.seed, &disks, trace, CREDIT);
        if params.has(Fault::Actor) {
            hub.set_failing(FAILING);
        }
        let ground = Ground {
            params: params.clone(),
            trace: trace.clone(),
            hub,
            disks,
            clock: Arc::new(SimClock::default()),
            version: Arc::default(),
            begun: Arc::default(),
            fatal: Arc::default(),
        };
        let mut random = Random::named(params.seed, "network");
        let nodes = (0..params.devices)
            .map(|number| {
                let mut common = Common::new(params, number);
                let machine = if common.random.chance(650) {
                    Machine::Edge(Box::new(EdgeDevice::new(common)))
                } else {
                    Machine::Plain(PlainDevice::new(common))
                };
                Node { machine, session: None, deaf_until: 0, arrives: 0, ticks_at: i64::MAX }
            })
            .collect();
        let encores = random.below(3);
        let mut this = Self {
            ground,
            nodes,
            events: BinaryHeap::new(),
            bodies: Default::default(),
            scheduled: 0,
            random,
            now: 0,
            partition: false,
            calm: false,
            calm_at: 0,
            life: 0,
            encores,
            soak,
        };
        for (at, event) in plan::events(params) {
            this.schedule(at, event);
        }
        this
    }

    fn schedule(&mut self, at: i64, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at.max(self.now), self.scheduled)));
        self.bodies.insert(self.scheduled, event);
    }

    /// Runs it to its end.
    pub(super) fn run(&mut self) {
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let Ok(runtime) = runtime else { return self.ground.trace.wrong("there is no runtime".to_owned()) };
            let end = LocalSet::new().block_on(&runtime, self.live());
            // As a kill would: nothing of it runs any more.
            drop(runtime);
            self.soak.gone(self.now, self.life);
            self.ground.hub.reset();
            match end {
                _ if self.ground.trace.is_wrong() => return,
                End::Settled if self.encores == 0 => return,
                End::Settled => self.encores -= 1,
                End::Died => {}
            }
            self.down();
        }
    }

    /// The engine is away for a while.
    fn down(&mut self) {
        note!(self.ground.trace, "the engine is gone");
        for at in 0..self.nodes.len() {
            let notices = self.now + self.random.below(2_000) as i64;
            self.schedule(notices, Event::Cut(at));
        }
        let back = self.now + self.random.between(20, 3_000) as i64;
        while let Some(event) = self.next_until(back) {
            self.handle(event, None);
        }
        self.at(back);
    }

    fn at(&mut self, now: i64) {
        self.now = self.now.max(now);
        self.ground.trace.at(self.now);
    }

    fn next_until(&mut self, until: i64) -> Option<Event> {
        let Reverse((at, number)) = *self.events.peek()?;
        if at > until {
            return None;
        }
        self.events.pop();
        self.at(at);
        self.bodies.remove(&number)
    }

    async fn live(&mut self) -> End {
        self.life += 1;
        self.ground.clock.start(self.now);
        self.ground.disks.revive();
        *self.ground.fatal.lock() = None;
        note!(self.ground.trace, "the engine starts, life {}", self.life);
        let ground = self.ground.clone();
        let started = tokio::select! {
            biased;
            () = ground.disks.death.notified() => Err("killed".to_owned()),
            started = Live::start(&ground, self.life) => started,
        };
        self.at(self.ground.clock.now());
        let mut live = match started {
            Ok(live) => live,
            Err(error) => {
                note!(self.ground.trace, "the engine does not start: {error}");
                if self.calm && self.now > self.calm_at + PATIENCE {
                    self.ground.trace.wrong(format!("the engine does not start: {error}"));
                }
                return End::Died;
            }
        };
        for at in 0..self.nodes.len() {
            let tries = self.now + self.random.below(500) as i64;
            self.schedule(tries, Event::Connect(at));
        }
        let end = self.serve(&mut live).await;
        self.soak.going();
        end
    }

    async fn serve(&mut self, live: &mut Live) -> End {
        let ground = self.ground.clone();
        loop {
            self.at(self.ground.clock.now());
            for (device, answer) in self.ground.hub.answers() {
                self.answer(&device, answer);
            }
            while let Some(event) = self.next_until(self.now) {
                if matches!(event, Event::Kill) && !self.calm {
                    note!(self.ground.trace, "the engine is killed");
                    return End::Died;
                }
                self.handle(event, Some(live));
            }
            if self.ground.disks.dead() || self.ground.fatal.lock().is_some() || self.ground.trace.is_wrong() {
                return End::Died;
            }
            if self.calm && self.now > self.calm_at + 46_500 && self.nodes.iter().all(|node| node.machine.is_settled())
            {
                return self.settle(live).await;
            }
            if self.calm && self.now > self.calm_at + PATIENCE {
                let waiting: Vec<_> =
                    self.nodes.iter().filter(|n| !n.machine.is_settled()).map(|n| n.machine.id().to_string()).collect();
                self.ground.trace.wrong(format!("not everything is acknowledged in time: {}", waiting.join(", ")));
                return End::Died;
            }
            let next = self.events.peek().map_or(self.now + 60_000, |Reverse((at, _))| *at);
            let wait = Duration::from_millis((next - self.now).max(0) as u64);
            tokio::select! {
                biased;
                () = ground.disks.death.notified() => {}
                () = ground.hub.activity.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Everybody is content: files are cut and compared with what should be in them.
    async fn settle(&mut self, live: &Live) -> End {
        note!(self.ground.trace, "everything is acknowledged");
        // Until no device counts as live any more, and the windows that they share are closed.
        tokio::time::sleep(Duration::from_nanos(pipelines::IDLE as u64) + Duration::from_secs(5)).await;
        if !live.flush().await {
            self.ground.trace.wrong("a flush does not end".to_owned());
            return End::Died;
        }
        self.at(self.ground.clock.now());
        let machines: Vec<&mut Machine> = self.nodes.iter_mut().map(|node| &mut node.machine).collect();
        oracle::check(&self.ground, live, machines).await;
        End::Settled
    }

    fn answer(&mut self, device: &DeviceId, answer: Answer) {
        let Some(at) = self.nodes.iter().position(|node| node.machine.id() == device) else { return };
        let Some(session) = self.nodes[at].session else { return };
        let arrival = self.now + self.random.between(1, 15) as i64;
        match answer {
            Answer::Outcome(of, ..) if of != session => {}
            // An outcome is not lost by itself: it goes with its connection.
            Answer::Outcome(..) => self.schedule(arrival, Event::Down(at, session, answer)),
            Answer::Message(..) => {
                if self.loses(at) {
                    return;
                }
                self.schedule(arrival, Event::Down(at, session, answer));
            }
        }
    }

    fn loses(&mut self, _: usize) -> bool {
        !self.calm && self.ground.params.has(Fault::Loss) && self.random.chance(60)
    }

    /// Takes what a device wants to send, and sees when it wants to be woken.
    fn collect(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        let ordered = matches!(node.machine, Machine::Plain(_));
        let common = node.machine.common();
        let (out, hangup) = (std::mem::take(&mut common.out), std::mem::take(&mut common.hangup));
        let session = node.session;
        if let Some(session) = session {
            for uplink in out {
                self.send(at, session, uplink, ordered);
            }
        }
        if hangup {
            self.schedule(self.now, Event::Cut(at));
        }
        let node = &mut self.nodes[at];
        if let Some(due) = node.machine.deadline()
            && (node.ticks_at > due || node.ticks_at < self.now)
        {
            node.ticks_at = due.max(self.now);
            self.schedule(due, Event::Tick(at));
        }
    }

    fn send(&mut self, at: usize, session: u64, uplink: Uplink, ordered: bool) {
        let params = &self.ground.params;
        let (delay, twice) = (params.has(Fault::Delay) && !self.calm, params.has(Fault::Twice) && !self.calm);
        let mut arrival = self.now + self.random.between(1, 15) as i64;
        if delay && self.random.chance(120) {
            arrival += self.random.below(4_000) as i64;
        }
        if ordered || uplink.hello {
            arrival = arrival.max(self.nodes[at].arrives);
            self.nodes[at].arrives = arrival;
        } else {
            if self.loses(at) {
                return;
            }
            if twice && self.random.chance(150) {
                let again = arrival + self.random.below(3_000) as i64;
                self.schedule(again, Event::Up(at, session, uplink.clone()));
            }
        }
        self.schedule(arrival, Event::Up(at, session, uplink));
    }

    fn disconnect(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        if node.session.take().is_none() {
            return;
        }
        node.machine.disconnected(now);
        let again = self.now + self.random.between(100, 3_000) as i64;
        self.schedule(again, Event::Connect(at));
    }

    fn handle(&mut self, event: Event, live: Option<&mut Live>) {
        let now = self.now;
        let at = match event {
            Event::Record(at) => {
                self.nodes[at].machine.record(now);
                at
            }
            Event::Tick(at) => {
                self.nodes[at].machine.tick(now);
                at
            }
            Event::Connect(at) if self.partition => {
                let again = now + self.random.between(300, 3_000) as i64;
                self.schedule(again, Event::Connect(at));
                return;
            }
            Event::Connect(at) => {
                if live.is_none() || self.nodes[at].session.is_some() || !self.nodes[at].machine.is_on() {
                    return;
                }
                let session = self.random.next() >> 1;
                note!(self.ground.trace, "{} connects", self.nodes[at].machine.id());
                let node = &mut self.nodes[at];
                node.session = Some(session);
                node.machine.connected(now, session);
                at
            }
            Event::Cut(at) => {
                self.disconnect(at);
                at
            }
            Event::HalfOpen(at, time) => {
                if !self.calm {
                    self.nodes[at].deaf_until = now + time;
                    self.schedule(now + time, Event::Cut(at));
                }
                return;
            }
            Event::Up(at, session, uplink) => {
                let node = &self.nodes[at];
                let stale = node.session != Some(session);
                // A hello of a session that is over does not overtake the next one: connections end in order.
                if self.partition || node.deaf_until > now || (uplink.hello && stale) {
                    return;
                }
                if let Some(live) = live {
                    let device = node.machine.id().clone();
                    note!(self.ground.trace, "{device} -> {} bytes, ticket {}", uplink.payload.len(), uplink.ticket);
                    live.carry(&device, session, uplink);
                }
                return;
            }
            Event::Down(at, session, answer) => {
                let node = &mut self.nodes[at];
                if self.partition || node.deaf_until > now || node.session != Some(session) {
                    return;
                }
                node.machine.answer(now, &answer);
                at
            }
            Event::Crash(_) if self.calm => return,
            Event::Crash(at) => {
                note!(self.ground.trace, "{} is switched off", self.nodes[at].machine.id());
                self.nodes[at].session = None;
                self.nodes[at].machine.crash();
                let back = now + self.random.between(50, 8_000) as i64;
                self.schedule(back, Event::Boot(at));
                return;
            }
            Event::Boot(at) => {
                if self.nodes[at].machine.is_on() {
                    return;
                }
                let on = self.nodes[at].machine.boot(now);
                note!(self.ground.trace, "{} is switched on: {on}", self.nodes[at].machine.id());
                self.schedule(now + if on { 10 } else { 1_000 }, if on { Event::Connect(at) } else { Event::Boot(at) });
                return;
            }
            Event::Clock(at) => {
                self.nodes[at].machine.common().jump();
                return;
            }
            Event::Media(at, rate) => {
                self.nodes[at].machine.set_failing(if self.calm { 0 } else { rate });
                return;
            }
            Event::Garbage(at) => {
                if let Some(live) = live {
                    live.stray();
                    let payload = vec![0xff; 1 + self.random.below(40) as usize];
                    let device = self.nodes[at].machine.id().clone();
                    let ticket = u64::MAX - self.random.below(1 << 40);
                    live.carry(&device, 0, Uplink { hello: false, payload, ticket });
                }
                return;
            }
            Event::Look => return self.soak.look(now, self.life, &self.ground, live.as_deref()),
            Event::Skew(skew) => return self.ground.clock.skew.store(skew, Ordering::Relaxed),
            Event::Kill => return,
            Event::Partition(on) => {
                self.partition = on && !self.calm;
                if self.partition {
                    for at in 0..self.nodes.len() {
                        let notices = now + self.random.below(6_000) as i64;
                        self.schedule(notices, Event::Cut(at));
                    }
                }
                return;
            }
            Event::Full(full) => return self.ground.disks.set_full(full && !self.calm),
            Event::Barrier(cut) => {
                if let Some(live) = live {
                    live.barrier(cut);
                }
                return;
            }
            Event::Calm => return self.becalm(),
        };
        self.collect(at);
    }

    /// Trouble is over: everybody comes back, says a last word, and has to be heard.
    fn becalm(&mut self) {
        note!(self.ground.trace, "trouble is over");
        self.calm = true;
        self.calm_at = self.now;
        self.partition = false;
        self.ground.disks.calm();
        self.ground.hub.set_failing(0);
        self.ground.clock.skew.store(0, Ordering::Relaxed);
        for at in 0..self.nodes.len() {
            self.nodes[at].deaf_until = 0;
            self.nodes[at].machine.set_failing(0);
            self.schedule(self.now, Event::Boot(at));
            self.schedule(self.now + 1, Event::Connect(at));
            // Late enough that windows close.
            for after in [100, 20_000, 45_000] {
                self.schedule(self.now + after, Event::Record(at));
            }
            self.schedule(self.now + 46_000, Event::Tick(at));
        }
    }
}
