//! The command line of `load`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::workload::Workload;

/// MQTT load of known content, and the truth about it.
#[derive(Debug, Parser)]
#[command(name = "load", version)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `load` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish the workload and measure; one line of JSON on standard output.
    Publish(Publish),
    /// Write what must be stored: windows.csv, rows.csv (some devices, row by row) and totals.json.
    Truth(Truth),
    /// Subscribe and only count: the consumer beside brokers that store nothing.
    Count(Count),
    /// Take MQTT publishes, acknowledge and forget them: what generator and sockets cost by themselves.
    Sink(Sink),
}

/// Which records; the same for `publish` and `truth`.
#[derive(Debug, Clone, Args)]
pub struct Content {
    /// How many devices.
    #[arg(long, default_value_t = 10_000)]
    pub devices: u32,
    /// Records of each device.
    #[arg(long, default_value_t = 300)]
    pub rounds: u32,
    /// Event time before the first record, ns since the Unix epoch. Choose it so that the last one is not in the
    /// future: now - (rounds + 1) * interval.
    #[arg(long)]
    pub base_ns: i64,
    /// Milliseconds of event time between two records of a device.
    #[arg(long, default_value_t = 1000)]
    pub interval_ms: u32,
    /// How many of 1,000 records are sent twice.
    #[arg(long, default_value_t = 20)]
    pub duplicates: u32,
    /// How many of 1,000 neighbouring pairs change places.
    #[arg(long, default_value_t = 10)]
    pub disorder: u32,
    /// Other values and another epoch.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Content {
    /// As a workload.
    pub fn workload(&self) -> Workload {
        Workload {
            devices: self.devices,
            rounds: self.rounds,
            interval_ns: i64::from(self.interval_ms.max(1)) * 1_000_000,
            base_ns: self.base_ns,
            duplicates: self.duplicates,
            disorder: self.disorder,
            seed: self.seed,
        }
    }
}

/// How a record travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One CBOR map with text keys per message.
    Cbor,
    /// One JSON object per message.
    Json,
    /// Telemetry frames at QoS 0, acknowledged by cumulative ack frames.
    Frame,
}

/// Layout of the records in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// One item per record.
    Rows,
    /// One item per field.
    Columns,
}

/// Options of `publish`.
#[derive(Debug, Clone, Args)]
pub struct Publish {
    /// Which records.
    #[command(flatten)]
    pub content: Content,
    /// The broker.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    /// How many connections share the devices.
    #[arg(long, default_value_t = 50)]
    pub connections: u32,
    /// Threads of the generator.
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Unacknowledged publishes a connection may have.
    #[arg(long, default_value_t = 100)]
    pub window: u16,
    /// 0 or 1; frames always travel at 0.
    #[arg(long, default_value_t = 1)]
    pub qos: u8,
    /// Messages a second in all. Without it: as fast as the windows allow.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Stop after so many seconds, whatever is left of the workload.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Seconds without any acknowledgement after which the run is given up.
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// How records travel.
    #[arg(long, value_enum, default_value_t = Format::Cbor)]
    pub format: Format,
    /// Layout of frames.
    #[arg(long, value_enum, default_value_t = Layout::Rows)]
    pub layout: Layout,
    /// Records of a frame.
    #[arg(long, default_value_t = 16)]
    pub frame_records: u32,
    /// Unacknowledged records a device may have when it sends frames.
    #[arg(long, default_value_t = 256)]
    pub frame_window: u32,
    /// Schema id of the stream in frames.
    #[arg(long, default_value_t = 1)]
    pub schema_id: u32,
    /// Report latencies for each second of the plan too (plain messages only).
    #[arg(long)]
    pub series: bool,
    /// Device ids are this and a number; `truth` knows the default only.
    #[arg(long, default_value = "d")]
    pub device_prefix: String,
    /// Client ids are this and a number.
    #[arg(long, default_value = "load-")]
    pub client_prefix: String,
}

impl Publish {
    /// The workload of it.
    pub fn workload(&self) -> Workload {
        self.content.workload()
    }
}

impl std::ops::Deref for Publish {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.content
    }
}

/// Options of `truth`.
#[derive(Debug, Clone, Args)]
pub struct Truth {
    /// Which records.
    #[command(flatten)]
    pub content: Content,
    /// Length of the windows in seconds.
    #[arg(long, default_value_t = 60)]
    pub window_seconds: u32,
    /// Devices whose rows are written one by one.
    #[arg(long, default_value_t = 100)]
    pub sample: u32,
    /// Folder for the files.
    #[arg(long)]
    pub out: PathBuf,
}

/// Options of `count`.
#[derive(Debug, Clone, Args)]
pub struct Count {
    /// The broker.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    /// Topic filter.
    #[arg(long, default_value = "devices/#")]
    pub filter: String,
    /// QoS of the subscription, 0 or 1.
    #[arg(long, default_value_t = 1)]
    pub qos: u8,
    /// Stop after so many messages.
    #[arg(long)]
    pub expect: u64,
    /// Stop after so many seconds without a message, once there was one.
    #[arg(long, default_value_t = 5)]
    pub idle: u64,
}

/// Options of `sink`.
#[derive(Debug, Clone, Args)]
pub struct Sink {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
}
