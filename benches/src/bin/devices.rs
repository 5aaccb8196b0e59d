//! What a device costs: memory while it is awake and while it sleeps, and how long it takes to wake very many.
//!
//! `cargo run --release -p benches --bin devices -- --devices 100000`
//!
//! A real data plane (`engine::core::Core`) on a real directory, without listeners; each device has a shadow and records
//! under three alert rules. Three processes one after the other, so that no figure holds what an earlier step left in the
//! allocator: one with no device at all, one that makes the devices and sees them fall asleep, one that finds them asleep in
//! the store and wakes them all. Memory is the resident set, with the allocator of `weir`. Nothing is asserted about figures.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actors::admission::Credit;
use actors::message::{Channel, Inbound, Ingress, Outcome, OutcomeSink, Reply};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use device::id::DeviceId;
use device::machine::Message;
use device::shadow::{Answer, Ask};
use device::time::{SECOND, Timestamp};
use engine::config::Config;
use engine::core::{Core, Silent};
use engine::project;
use serde_json::{Map, Value, json};
use sql::SourceFile;
use tokio::sync::oneshot;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn Error + Send + Sync>;

/// Three rules: with a dead-band, with FOR, with severities.
const PROJECT: &str = "CREATE STREAM telemetry (temperature DOUBLE, humidity DOUBLE, vibration DOUBLE);
CREATE ALERT hot ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 75 WITH (severity = 'critical');
CREATE ALERT damp ON telemetry WHEN humidity > 90 FOR INTERVAL '30 seconds' WITH (keep_firing_for = INTERVAL '1 minute');
CREATE ALERT shaking ON telemetry WHEN vibration > 5 CLEAR WHEN vibration < 4 WITH (severity = 'warning', min_samples = 3);\n";

/// A device that has been silent for so long sleeps.
const PASSIVATE: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(about = "Memory per device, awake and asleep, and the time to wake all of them")]
struct Args {
    /// Devices.
    #[arg(long, default_value_t = 100_000)]
    devices: usize,
    /// Bytes of the shadow as JSON: one half desired, one half reported.
    #[arg(long, default_value_t = 1024)]
    shadow: usize,
    /// Records of each device while it is made.
    #[arg(long, default_value_t = 5)]
    records: usize,
    /// Messages under way at the same time.
    #[arg(long, default_value_t = 512)]
    at_once: usize,
    /// Where the data goes; it must not exist, and is removed at the end.
    #[arg(long, default_value = "devices.data")]
    data: PathBuf,
    /// One step alone, in this process.
    #[arg(long, hide = true)]
    step: Option<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    Empty,
    Make,
    Wake,
}

/// One waiter is told that a message is decided.
#[derive(Debug)]
struct Told(Mutex<Option<oneshot::Sender<Outcome>>>);

impl OutcomeSink for Told {
    fn decided(&self, _: u64, outcome: Outcome) {
        if let Some(sender) = self.0.lock().ok().and_then(|mut sender| sender.take()) {
            let _ = sender.send(outcome);
        }
    }
}

struct Bench {
    core: Core,
    /// How far the engine's clock is ahead of the machine's, in nanoseconds.
    ahead: Arc<AtomicI64>,
}

impl Bench {
    async fn open(data: &Path, ahead: i64) -> Result<Self, Failure> {
        let mut config = Config::default();
        config.store.data = data.to_owned();
        config.node.passivate_after = PASSIVATE;
        let file = SourceFile { name: "devices.sql".to_owned(), text: PROJECT.to_owned() };
        let project = project::check(vec![file]).map_err(|error| error.to_string())?;
        let ahead = Arc::new(AtomicI64::new(ahead));
        let clock: engine::clock::Clock = {
            let ahead = ahead.clone();
            Arc::new(move || engine::clock::now().plus(ahead.load(Ordering::Relaxed)))
        };
        Ok(Self { core: Core::open(&config, project, clock, Arc::new(Silent)).await?, ahead })
    }

    fn now(&self) -> Timestamp {
        engine::clock::now().plus(self.ahead.load(Ordering::Relaxed))
    }

    fn awake(&self) -> usize {
        self.core.node.shards().iter().map(|shard| shard.awake_count()).sum()
    }

    /// One record of a device; returns when it is durable.
    async fn record(&self, device: &DeviceId, n: usize) -> Result<(), Failure> {
        let now = self.now();
        let record =
            json!({ "ts": now.0, "epoch": 7, "seq": n, "temperature": 21.5, "humidity": 40.0, "vibration": 0.5 });
        let (sender, told) = oneshot::channel();
        let sink = Arc::new(Told(Mutex::new(Some(sender))));
        let mut inbound = Inbound {
            channel: Channel::Telemetry,
            payload: Bytes::from(record.to_string()),
            format: None,
            received: now,
            session: 1,
            reply: Some(Reply { sink, ticket: 0 }),
            credit: Credit::free(),
        };
        // A device that falls asleep gives the message back.
        while let Err(back) = {
            let door = self.core.node.open(device).await;
            self.core.node.push(&door, inbound)
        } {
            inbound = back;
            tokio::task::yield_now().await;
        }
        match told.await? {
            Outcome::Stored => Ok(()),
            Outcome::Refused { text, .. } => Err(format!("{device}: {text}").into()),
        }
    }

    /// The shadow of a device: desired, and reported as desired.
    async fn shadow(&self, device: &DeviceId, values: &Map<String, Value>) -> Result<(), Failure> {
        let ask = || Ask {
            shadow: "main".into(),
            patch: Some(values.clone()),
            by: "bench".into(),
            request: None,
            if_dv: None,
            ttl: None,
        };
        let answer = self.core.node.request(device, |device, now| device.ask(ask(), now)).await;
        let Some(Answer::Changed(dv)) = answer else { return Err(format!("{device}: {answer:?}").into()) };
        let report = Bytes::from(json!({ "based_on_dv": dv, "full": values }).to_string());
        let reported = self.core.node.request(device, |device, received| {
            let channel = device::machine::Channel::Telemetry;
            let verdict =
                device.report(Message { channel, payload: &report, format: None, received, session: 1 }, None);
            ((), verdict.entries)
        });
        reported.await.ok_or_else(|| format!("{device} does not answer").into())
    }
}

fn name(n: usize) -> Result<DeviceId, Failure> {
    DeviceId::new(&format!("device-{n:07}")).map_err(|error| error.to_string().into())
}

/// Values that are about so many bytes as JSON.
fn values(bytes: usize) -> Map<String, Value> {
    let mut values = Map::new();
    let mut length = 2;
    for n in 0.. {
        let (name, value) = (format!("setting_{n:02}"), f64::from(n) + 0.25);
        length += name.len() + value.to_string().len() + 4;
        if length > bytes {
            break;
        }
        values.insert(name, value.into());
    }
    values
}

/// Does something with each device, with so many at a time.
async fn each<F>(bench: &Arc<Bench>, args: &Args, act: impl Fn(Arc<Bench>, DeviceId) -> F) -> Result<Duration, Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let begin = Instant::now();
    let mut under_way = tokio::task::JoinSet::new();
    for n in 0..args.devices {
        if under_way.len() >= args.at_once.max(1)
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
        under_way.spawn(act(bench.clone(), name(n)?));
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(begin.elapsed())
}

/// The resident set of this process, in bytes.
fn resident() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Resident memory when it has come to rest: the least of a few seconds.
async fn at_rest() -> Result<u64, Failure> {
    let mut least = resident()?;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        least = least.min(resident()?);
    }
    Ok(least)
}

fn say(name: &str, value: impl std::fmt::Display) {
    println!("{name}={value}");
}

async fn step(args: &Args, step: Step) -> Result<(), Failure> {
    let ahead = if step == Step::Wake { 1000 * SECOND } else { 0 };
    let bench = Arc::new(Bench::open(&args.data, ahead).await?);
    say("resident_open", at_rest().await?);
    match step {
        Step::Empty => {}
        Step::Make => {
            let shadow = Arc::new(values(args.shadow / 2));
            let records = args.records.max(1);
            let took = each(&bench, args, |bench, device| {
                let shadow = shadow.clone();
                async move {
                    bench.shadow(&device, &shadow).await?;
                    for n in 1..=records {
                        bench.record(&device, n).await?;
                    }
                    Ok(())
                }
            });
            say("seconds_make", took.await?.as_secs_f64());
            say("awake", bench.awake());
            // Rows and log of the records are not what a device costs.
            bench.core.flush().await?;
            say("resident_awake", at_rest().await?);
            bench.ahead.fetch_add(PASSIVATE.as_nanos() as i64 + SECOND, Ordering::Relaxed);
            let begin = Instant::now();
            while bench.awake() > 0 {
                if begin.elapsed() > Duration::from_secs(120) {
                    return Err(format!("{} devices do not fall asleep", bench.awake()).into());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            say("seconds_fall_asleep", begin.elapsed().as_secs_f64());
            bench.core.flush().await?;
            say("resident_fallen_asleep", at_rest().await?);
        }
        Step::Wake => {
            if bench.awake() > 0 {
                return Err(format!("{} devices are awake before they are woken", bench.awake()).into());
            }
            let next = args.records.max(1) + 1;
            static LATER: AtomicU64 = AtomicU64::new(0);
            for label in ["seconds_wake", "seconds_awake_already"] {
                let n = next + LATER.fetch_add(1, Ordering::Relaxed) as usize;
                let took = each(&bench, args, |bench, device| async move { bench.record(&device, n).await });
                say(label, took.await?.as_secs_f64());
            }
            say("awake", bench.awake());
            bench.core.flush().await?;
            say("resident_woken", at_rest().await?);
        }
    }
    let Ok(bench) = Arc::try_unwrap(bench) else { return Err("something still uses the engine".into()) };
    bench.core.shutdown(true).await?;
    Ok(())
}

/// Runs a step in a process of its own; what it says, by name.
fn run(args: &Args, step: &str, data: &Path) -> Result<std::collections::BTreeMap<String, f64>, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--step", step, "--devices", &args.devices.to_string(), "--shadow", &args.shadow.to_string()])
        .args(["--records", &args.records.to_string(), "--at-once", &args.at_once.to_string(), "--data"])
        .arg(data)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the step {step} has failed").into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter_map(|(k, v)| Some((k.into(), v.parse().ok()?)))
        .collect())
}

fn whole(args: &Args) -> Result<(), Failure> {
    if args.data.exists() {
        return Err(format!("{} exists: name a directory that does not", args.data.display()).into());
    }
    if args.devices == 0 {
        return Err("--devices is at least 1".into());
    }
    let none = args.data.join("none");
    let some = args.data.join("some");
    let outcome = (|| {
        std::fs::create_dir_all(&args.data)?;
        let (empty, make, wake) = (run(args, "empty", &none)?, run(args, "make", &some)?, run(args, "wake", &some)?);
        let of = |all: &std::collections::BTreeMap<String, f64>, name: &str| -> Result<f64, Failure> {
            all.get(name).copied().ok_or_else(|| format!("a step has not said {name}").into())
        };
        let base = of(&empty, "resident_open")?;
        let each = |bytes: f64| (bytes - base) / args.devices as f64;
        println!("devices                         {:>12}", args.devices);
        println!("engine without devices          {:>12.1} MB", base / 1e6);
        println!("awake, each                     {:>12.0} B", each(of(&make, "resident_awake")?));
        println!("woken from the store, each      {:>12.0} B", each(of(&wake, "resident_woken")?));
        println!("asleep since the start, each    {:>12.0} B", each(of(&wake, "resident_open")?));
        println!("fallen asleep just now, each    {:>12.0} B", each(of(&make, "resident_fallen_asleep")?));
        println!("to make all                     {:>12.2} s", of(&make, "seconds_make")?);
        println!("to wake all, record durable     {:>12.2} s", of(&wake, "seconds_wake")?);
        println!("the same record, awake already  {:>12.2} s", of(&wake, "seconds_awake_already")?);
        Ok(())
    })();
    let _ = std::fs::remove_dir_all(&args.data);
    outcome
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    match args.step {
        None => whole(&args),
        Some(of) => tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(step(&args, of)),
    }
}
