//! Connections as clients see them: a real gateway on a loopback port, hand-made packets, and devices that answer
//! when they are told to.

mod client;
mod devices;
mod flows;
mod garbage;
mod live;
mod secure;
mod sessions;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use actors::admission::Admission;
use actors::message::{Inbound, Ingress, Outcome, Stray};
use device::id::DeviceId;
use device::time::Timestamp;
use parking_lot::Mutex;

use super::*;
use client::Client;

/// Devices that keep what they are given, and answer by order.
#[derive(Debug)]
struct Devices {
    admission: Admission,
    inbox: Mutex<VecDeque<(DeviceId, Inbound)>>,
    strays: Mutex<Vec<Stray>>,
    opened: AtomicUsize,
    /// The next push finds its door shut.
    asleep: AtomicBool,
    /// Answer at once.
    prompt: AtomicBool,
}

impl Devices {
    fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            admission: Admission::new(bytes),
            inbox: Mutex::default(),
            strays: Mutex::default(),
            opened: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            prompt: AtomicBool::new(false),
        })
    }

    /// Waits until so many messages lie here, and takes them.
    async fn take(&self, count: usize) -> Vec<(DeviceId, Inbound)> {
        for _ in 0..500 {
            if self.inbox.lock().len() >= count {
                return self.inbox.lock().drain(..).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} messages expected, {} came", self.inbox.lock().len());
    }
}

impl Ingress for Devices {
    type Door = DeviceId;

    async fn open(&self, device: &DeviceId) -> DeviceId {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.opened.fetch_add(1, Ordering::Relaxed);
        device.clone()
    }

    fn push(&self, door: &DeviceId, inbound: Inbound) -> Result<(), Inbound> {
        if self.asleep.swap(false, Ordering::Relaxed) {
            return Err(inbound);
        }
        if self.prompt.load(Ordering::Relaxed) {
            if let Some(reply) = inbound.reply {
                reply.send(Outcome::Stored);
            }
            return Ok(());
        }
        self.inbox.lock().push_back((door.clone(), inbound));
        Ok(())
    }

    fn stray(&self, stray: Stray) {
        self.strays.lock().push(stray);
    }

    fn admission(&self) -> &Admission {
        &self.admission
    }
}

/// Tells a message's sender its outcome.
fn answer(inbound: Inbound, outcome: Outcome) {
    if let Some(reply) = inbound.reply {
        reply.send(outcome);
    }
}

struct Bench {
    gateway: Gateway,
    hub: Arc<Hub>,
    devices: Arc<Devices>,
}

impl Bench {
    fn with(change: impl FnOnce(&mut Limits)) -> Self {
        Self::devices(Devices::new(1 << 20), change)
    }

    fn devices(devices: Arc<Devices>, change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits::default();
        change(&mut limits);
        let hub = Hub::new(limits);
        let config = GatewayConfig { plain: Some(([127, 0, 0, 1], 0).into()), ..GatewayConfig::default() };
        let gateway = start(config, &hub, &devices);
        Self { gateway, hub, devices }
    }

    fn new() -> Self {
        Self::with(|_| {})
    }

    async fn open(&self) -> Client {
        Client::open(self.gateway.plain_address().unwrap()).await
    }

    /// A connected client without a persistent session.
    async fn v3(&self, id: &str) -> Client {
        let mut client = self.open().await;
        client.connect_v3(id, true, 0).await;
        client
    }

    async fn v5(&self, id: &str) -> Client {
        let mut client = self.open().await;
        client.connect_v5(id, true, &[]).await;
        client
    }

    fn value(&self, name: &str, labels: &str) -> u64 {
        let snapshot = self.gateway.metrics().snapshot();
        snapshot.iter().find(|(n, l, _)| *n == name && *l == labels).unwrap_or_else(|| panic!("{name}")).2
    }
}

fn start(config: GatewayConfig, hub: &Arc<Hub>, devices: &Arc<Devices>) -> Gateway {
    let counter = AtomicUsize::new(1);
    let random = Arc::new(move || u64::MAX - counter.fetch_add(1, Ordering::Relaxed) as u64);
    Gateway::start(config, hub.clone(), devices.clone(), Arc::new(|| Timestamp(1)), random).unwrap()
}
