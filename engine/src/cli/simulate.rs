//! `weir simulate`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use device::payload::Layout;
use edge::mqtt::Protocol;

use crate::clock;
use crate::simulate::{self, Identities, Mode, SimulateConfig, SimulateTls};

use super::{Exit, Output, print, stop_at_signal};

/// What the simulated devices speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Speak {
    /// Edge agents: numbered frames, cumulative acks, resends.
    Edge,
    /// Plain MQTT clients with JSON.
    Json,
    /// Plain MQTT clients with CBOR.
    Cbor,
}

/// Arguments of `weir simulate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weir simulate --devices 200 --rate 1000 --for 1m --chaos\n  weir simulate --mqtt 127.0.0.1:8883 --ca claim/ca.crt --claim claim/line-1.crt --state agents/ --prefix pump- --devices 3\n    (agents that ask for certificates of their own, keep them below agents/, and renew them)"
)]
pub(super) struct Args {
    /// The engine's MQTT listener.
    #[arg(long, env = "WEIR_MQTT", default_value = "127.0.0.1:1883", value_name = "ADDR")]
    mqtt: SocketAddr,
    /// Connect with TLS and trust this authority (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Devices have certificates of their own and keep them, and their outboxes, below this directory: in NAME/identity/.
    #[arg(long, value_name = "DIR", requires = "ca")]
    state: Option<PathBuf>,
    /// The claim certificate of their group (PEM), with which devices that have none ask for their first.
    #[arg(long, value_name = "FILE", requires = "state")]
    claim: Option<PathBuf>,
    /// Its private key (PEM) [default: the same name with .key].
    #[arg(long, value_name = "FILE", requires = "claim")]
    claim_key: Option<PathBuf>,
    /// Where certificates that have expired are renewed: the engine's --mqtts-recovery.
    #[arg(long, value_name = "ADDR", requires = "state")]
    recovery: Option<SocketAddr>,
    /// Renew the certificates so often, although they are not due.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME", requires = "state")]
    rotate_every: Option<Duration>,
    /// How many devices.
    #[arg(long, default_value_t = 50)]
    devices: usize,
    /// Records per second of all devices together; 0: as fast as acknowledgements allow.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// How long they record.
    #[arg(long = "for", default_value = "60s", value_parser = humantime::parse_duration, value_name = "TIME")]
    duration: Duration,
    /// What they speak.
    #[arg(long, value_enum, default_value = "edge")]
    speak: Speak,
    /// Quality of service of plain clients.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    qos: u8,
    /// Records in one frame or message at most.
    #[arg(long, default_value_t = 64)]
    frame: usize,
    /// Send frames by columns instead of by rows.
    #[arg(long)]
    columns: bool,
    /// Speak MQTT 3.1.1 instead of 5.
    #[arg(long)]
    v3: bool,
    /// Broken connections, resends, duplicates, disorder, wrong clocks, bad payloads.
    #[arg(long)]
    chaos: bool,
    /// Keep outboxes in files below this directory; without it they are in memory.
    #[arg(long, value_name = "DIR")]
    outbox: Option<PathBuf>,
    /// Seed of sensors and chaos.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Devices are called this and a number.
    #[arg(long, default_value = "device-")]
    prefix: String,
    /// How to print the report.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let claim = args.claim.map(|certificate| {
        let key = args.claim_key.unwrap_or_else(|| certificate.with_extension("key"));
        (certificate, key)
    });
    let (recovery, rotate_every) = (args.recovery, args.rotate_every);
    let identities = args.state.clone().map(|state| Identities { state, claim, recovery, rotate_every });
    let config = SimulateConfig {
        identities,
        tls: args.ca.map(|ca| SimulateTls { ca, server_name: None }),
        devices: args.devices,
        rate: args.rate,
        duration: args.duration,
        frame: args.frame,
        layout: if args.columns { Layout::Columns } else { Layout::Rows },
        mode: match args.speak {
            Speak::Edge => Mode::Edge,
            Speak::Json => Mode::PlainJson { qos: args.qos },
            Speak::Cbor => Mode::PlainCbor { qos: args.qos },
        },
        protocol: if args.v3 { Protocol::V311 } else { Protocol::V5 },
        data: args.outbox.or(args.state),
        chaos: args.chaos,
        seed: args.seed,
        prefix: args.prefix,
        ..SimulateConfig::new(args.mqtt)
    };
    // Asked for before anything starts: an early signal must end in a report, too.
    let stop = stop_at_signal()?;
    let report = simulate::run(config, clock::wall(), stop).await.map_err(|error| match error {
        simulate::SimulateError::Config(message) => Exit::Usage(message),
        error => Exit::failed(error),
    })?;
    match args.format {
        Output::Json => print(&format!("{}\n", serde_json::to_string(&report).map_err(Exit::failed)?))?,
        Output::Text => print(&format!("{report}\n"))?,
    }
    // Devices that were told to lose nothing must not have lost anything.
    if report.lost > 0 || report.unacknowledged > 0 { Err(Exit::Silent) } else { Ok(()) }
}
