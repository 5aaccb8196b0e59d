//! A simulated device with an edge client.

use std::time::Duration;

use device::id::DeviceId;
use device::schema::Value;
use edge::identity::IdentityConfig;
use edge::outbox::WhenFull;
use edge::twin::Task;
use edge::{EdgeClient, EdgeConfig, Fault, Reading, SchemaRef, Store};
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::chaos::{Chaos, Trouble};
use super::report::Tally;
use super::sensor::{Sample, Sensor, random};
use super::{Fleet, SimulateError};

/// The stream `telemetry`: schema 1, version 1.0.
const SCHEMA: SchemaRef = SchemaRef { id: 1, version: 1 << 16 };
/// Records of one device that may wait for an ack in a flood: two full windows, so that the client never idles.
const FLOOD_AHEAD: u64 = 2048;
/// Most records made at once; more only come up when the device had to wait for room.
const AT_ONCE: u64 = 4096;
/// A fleet comes back fast after the engine restarts.
const RECONNECT: Duration = Duration::from_secs(2);

pub(super) async fn run(fleet: &Fleet, index: usize, name: DeviceId) -> Result<Tally, SimulateError> {
    let (seed, chaotic) = (fleet.config.seed, fleet.config.chaos);
    let mut sensor = Sensor::new(seed, index, (fleet.clock)(), chaotic);
    let mut chaos = Chaos::new(chaotic, seed, index);
    let mut tally = Tally::default();
    let (commands, mut tasks) = mpsc::channel(16);
    let config = EdgeConfig { commands: Some(commands), ..config(fleet, name) };
    let (clock, offset) = (fleet.clock.clone(), sensor.offset());
    let clock: edge::Clock = std::sync::Arc::new(move || clock().plus(offset));
    let mut client = EdgeClient::start(config.clone(), clock.clone()).await?;

    let interval = fleet.interval();
    let begun = Instant::now();
    // Devices do not sample in step.
    let phase = interval.min(Duration::from_secs(60)).mul_f64(random(seed, index, 2).random::<f64>());
    let first = begun + phase;
    let mut made = 0;
    let mut last = (fleet.clock)();
    let every = fleet.config.identities.as_ref().and_then(|identities| identities.rotate_every);
    let mut rotate_at = every.map(|every| begun + every);
    while !fleet.over() {
        if let (Some(every), Some(at)) = (every, rotate_at)
            && at <= Instant::now()
        {
            client.rotate().await?;
            rotate_at = Some(Instant::now() + every);
        }
        let count = if interval.is_zero() {
            if client.stats().unacknowledged > FLOOD_AHEAD {
                fleet.sleep_until(Instant::now() + Duration::from_millis(1)).await;
                0
            } else {
                fleet.config.frame as u64
            }
        } else {
            let next = fleet.look(first, made).min(rotate_at.unwrap_or(fleet.ends));
            loop {
                tokio::select! {
                    () = fleet.sleep_until(next) => break,
                    Some(task) = tasks.recv() => obey(&client, task).await?,
                }
            }
            fleet.due(Instant::now().checked_duration_since(first)).saturating_sub(made).min(AT_ONCE)
        };
        if count > 0 && !fleet.over() {
            let now = (fleet.clock)();
            let readings = readings(&mut sensor, last, now, count);
            last = now;
            made += count;
            client.record_all(readings).await?;
        }
        for trouble in chaos.as_mut().map(|chaos| chaos.due(begun.elapsed())).unwrap_or_default() {
            let fault = match trouble {
                Trouble::Cut => Fault::Cut,
                Trouble::Repeat => Fault::Repeat,
                Trouble::Twice(frames) => Fault::Twice(frames),
                Trouble::Disorder(frames) => Fault::Disorder(frames),
                Trouble::Bad(payload) => {
                    tally.bad += 1;
                    Fault::Raw(payload)
                }
                Trouble::Restart => {
                    if fleet.config.data.is_some() {
                        tally.restarts += 1;
                        count_up(&mut tally, &client.abandon().await?);
                        client = EdgeClient::start(config.clone(), clock.clone()).await?;
                    }
                    continue;
                }
            };
            client.disturb(fault).await?;
        }
    }
    // What is not acknowledged in time is counted below.
    let _ = client.flush(fleet.patience()).await;
    let stats = client.shutdown().await?;
    count_up(&mut tally, &stats);
    tally.unacknowledged = stats.unacknowledged;
    Ok(tally)
}

/// Does a command, as far as a simulated device can: `fail` fails, everything else is done.
async fn obey(client: &EdgeClient, task: Task) -> Result<(), SimulateError> {
    let state = if task.name == "fail" { "failed" } else { "ok" };
    let out = serde_json::json!({ "simulated": task.name, "args": task.args });
    client.ended(&task.id, state, out).await?;
    Ok(())
}

fn count_up(tally: &mut Tally, stats: &edge::Stats) {
    tally.recorded += stats.recorded;
    tally.sent += stats.sent;
    tally.messages += stats.sent_frames;
    tally.resent += stats.resent;
    tally.lost += stats.lost;
    tally.refused += stats.refused;
    tally.connects += stats.connects;
    tally.renewed += stats.renewed;
}

fn config(fleet: &Fleet, name: DeviceId) -> EdgeConfig {
    let store = match &fleet.config.data {
        Some(data) => Store::Directory(data.join(name.as_str())),
        None => Store::Memory,
    };
    let mut config = EdgeConfig::new(name, fleet.mqtt.clone(), store);
    // A simulated device waits rather than drops: what is lost here would hide what is lost there.
    config.outbox.when_full = WhenFull::Block;
    config.frame.records = fleet.config.frame;
    config.frame.layout = fleet.config.layout;
    config.commit_records = fleet.config.frame;
    config.reconnect_at_most = RECONNECT;
    config.latency = fleet.latency.clone();
    config.firmware = "simulated".to_owned();
    if let (Some(identities), Some(tls)) = (&fleet.config.identities, &fleet.config.tls) {
        config.identity = Some(IdentityConfig {
            folder: identities.state.join(config.device.as_str()).join("identity"),
            authority: Some(tls.ca.clone()),
            claim: identities.claim.clone(),
            server_name: tls.server_name.clone(),
            recovery: identities.recovery.map(|address| address.to_string()),
        });
    }
    config
}

/// `count` readings, evenly spread over the time since the last ones.
fn readings(
    sensor: &mut Sensor,
    last: device::time::Timestamp,
    now: device::time::Timestamp,
    count: u64,
) -> Vec<Reading> {
    let step = now.since(last).max(0) / count as i64;
    (1..=count as i64).map(|n| reading(&sensor.sample(last.plus(step * n), step as f64 / 1e9))).collect()
}

fn reading(sample: &Sample) -> Reading {
    let values = [
        (1, Value::F64(sample.temperature)),
        (2, Value::F64(sample.humidity)),
        (3, Value::F64(sample.vibration)),
        (4, Value::Text(sample.status)),
    ];
    Reading::new(sample.ts, SCHEMA, &values)
}
