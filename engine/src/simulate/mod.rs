//! A fleet of simulated devices: real edge clients, or plain MQTT clients, with plausible sensors behind them.
//!
//! [`run`] starts them, lets them record for a while, waits until everything is acknowledged and says what
//! happened. The sensors and the trouble (`chaos`) follow from the seed; ids, epochs and the network do not,
//! since two runs against one engine must never number different records alike. Absent: any look into the
//! engine; it is on the other end of a socket, as for real devices.

mod chaos;
mod edge_device;
mod plain_device;
mod report;
mod sensor;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use device::id::DeviceId;
use device::payload::Layout;
use device::time::Timestamp;
use edge::mqtt::{MqttConfig, Protocol, TlsConfig};
use edge::{EdgeError, Latency};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use report::Report;
use report::Tally;

/// The wall clock that the simulated devices' clocks deviate from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How long the fleet waits for the last acknowledgements.
const LAST_ACKS: Duration = Duration::from_secs(30);
/// Pause between two starts: the engine's queue of new connections is short.
const START_EVERY: Duration = Duration::from_micros(500);

/// A device looks this often for what it should have made, so fast ones make several records at once.
const STEP: Duration = Duration::from_millis(50);

/// What the devices speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Edge clients: frames with QoS 0, cumulative acks, resends.
    Edge,
    /// Plain MQTT clients that publish JSON with this QoS (0 or 1).
    PlainJson {
        /// Quality of service.
        qos: u8,
    },
    /// Plain MQTT clients that publish CBOR with this QoS (0 or 1).
    PlainCbor {
        /// Quality of service.
        qos: u8,
    },
}

/// How the engine is recognised over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulateTls {
    /// PEM file of the authority.
    pub ca: PathBuf,
    /// The name in the engine's certificate, if it is not the address.
    pub server_name: Option<String>,
}

/// Certificates of the devices' own, which they ask for and renew by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identities {
    /// Each device keeps its own below this, in `NAME/identity/`.
    pub state: PathBuf,
    /// The claim of their group, certificate and key, for the first one.
    pub claim: Option<(PathBuf, PathBuf)>,
    /// Where those that have expired are renewed.
    pub recovery: Option<SocketAddr>,
    /// How often they are renewed although they are not due.
    pub rotate_every: Option<Duration>,
}

/// A fleet and what it does.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulateConfig {
    /// The engine's MQTT listener.
    pub addr: SocketAddr,
    /// With TLS, or plainly.
    pub tls: Option<SimulateTls>,
    /// Certificates of their own; needs `tls`.
    pub identities: Option<Identities>,
    /// How many devices.
    pub devices: usize,
    /// Records per second of all devices together; 0: as fast as acknowledgements allow.
    pub rate: f64,
    /// How long they record.
    pub duration: Duration,
    /// Most records of a frame, or of a plain message.
    pub frame: usize,
    /// Layout of frames.
    pub layout: Layout,
    /// What they speak.
    pub mode: Mode,
    /// Which MQTT.
    pub protocol: Protocol,
    /// Directory for the outboxes; `None`: in memory.
    pub data: Option<PathBuf>,
    /// Broken connections, resends, duplicates, disorder, wrong clocks, bad payloads and (with `data`) restarts.
    pub chaos: bool,
    /// What sensors and chaos follow from.
    pub seed: u64,
    /// Devices are called this and a number.
    pub prefix: String,
}

impl SimulateConfig {
    /// A small quiet fleet of edge clients.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            tls: None,
            identities: None,
            devices: 50,
            rate: 50.0,
            duration: Duration::from_secs(60),
            frame: 64,
            layout: Layout::Rows,
            mode: Mode::Edge,
            protocol: Protocol::V5,
            data: None,
            chaos: false,
            seed: 1,
            prefix: "device-".to_owned(),
        }
    }
}

/// Why a fleet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A setting that cannot work.
    #[error("{0}")]
    Config(String),
    /// Nobody answers.
    #[error("cannot connect to {addr}: {source}: is the engine running, and is this its MQTT address?")]
    Unreachable {
        /// Where.
        addr: SocketAddr,
        /// What happened.
        source: std::io::Error,
    },
    /// An edge client failed.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

impl From<edge::mqtt::MqttError> for SimulateError {
    fn from(error: edge::mqtt::MqttError) -> Self {
        Self::Edge(EdgeError::Mqtt(error))
    }
}

/// What every device of the fleet shares.
struct Fleet {
    config: SimulateConfig,
    mqtt: MqttConfig,
    clock: Clock,
    stop: CancellationToken,
    latency: Arc<Latency>,
    /// When recording ends.
    ends: Instant,
}

impl Fleet {
    /// Time between two records of one device; zero: as fast as possible.
    fn interval(&self) -> Duration {
        if self.config.rate > 0.0 {
            Duration::from_secs_f64((self.config.devices as f64 / self.config.rate).min(1e9))
        } else {
            Duration::ZERO
        }
    }

    fn over(&self) -> bool {
        self.stop.is_cancelled() || Instant::now() >= self.ends
    }

    /// How many records a device should have made `elapsed` after its first one.
    fn due(&self, elapsed: Option<Duration>) -> u64 {
        let interval = self.interval();
        match elapsed {
            Some(elapsed) if !interval.is_zero() => (elapsed.as_secs_f64() / interval.as_secs_f64()) as u64 + 1,
            _ => 0,
        }
    }

    /// When a device looks next, having made `made` records since `first`.
    fn look(&self, first: Instant, made: u64) -> Instant {
        let next = first + Duration::from_secs_f64((self.interval().as_secs_f64() * made as f64).min(1e9));
        next.max(Instant::now() + STEP.min(self.interval()))
    }

    /// Sleeps until then, but not beyond the end.
    async fn sleep_until(&self, at: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(at.min(self.ends)) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// How long a device may still wait for its last acknowledgements.
    fn patience(&self) -> Duration {
        let until = Instant::now().min(self.ends) + LAST_ACKS;
        until.saturating_duration_since(Instant::now())
    }
}

/// Runs the fleet: records for `duration` or until `stop`, then waits (bounded) for the last acknowledgements.
pub async fn run(config: SimulateConfig, clock: Clock, stop: CancellationToken) -> Result<Report, SimulateError> {
    let names = names(&config)?;
    let tls = match &config.tls {
        // Each device trusts, and shows, what stands in its own folder.
        Some(_) if config.identities.is_some() => None,
        Some(tls) => Some(TlsConfig::new(&tls.ca, tls.server_name.clone())?),
        None => None,
    };
    // One attempt with a clear error; the clients themselves would go on trying for ever.
    let addr = config.addr;
    TcpStream::connect(addr).await.map_err(|source| SimulateError::Unreachable { addr, source })?;
    let begun = Instant::now();
    let fleet = Arc::new(Fleet {
        mqtt: MqttConfig { tls, protocol: config.protocol, ..MqttConfig::new(addr.to_string()) },
        clock,
        stop,
        latency: Arc::new(Latency::default()),
        ends: begun + config.duration,
        config,
    });
    let mut tasks = JoinSet::new();
    for (index, name) in names.into_iter().enumerate() {
        let fleet = fleet.clone();
        tasks.spawn(async move {
            fleet.sleep_until(begun + START_EVERY * u32::try_from(index).unwrap_or(u32::MAX)).await;
            match fleet.config.mode {
                Mode::Edge => edge_device::run(&fleet, index, name).await,
                Mode::PlainJson { qos } => plain_device::run(&fleet, index, name, plain_device::Form::Json, qos).await,
                Mode::PlainCbor { qos } => plain_device::run(&fleet, index, name, plain_device::Form::Cbor, qos).await,
            }
        });
    }
    let mut total = Tally::default();
    while let Some(done) = tasks.join_next().await {
        // A panic in a device's task is a bug of the simulator; it must not pass for a quiet device.
        let tally = done.map_err(|error| SimulateError::Config(format!("a simulated device failed: {error}")))??;
        total.add(&tally);
    }
    Ok(Report::new(&fleet.config, &total, begun.elapsed(), &fleet.latency))
}

fn names(config: &SimulateConfig) -> Result<Vec<DeviceId>, SimulateError> {
    let refuse = |text: String| Err(SimulateError::Config(text));
    if config.devices == 0 {
        return refuse("a fleet needs at least one device".to_owned());
    }
    if config.identities.is_some() && (config.mode != Mode::Edge || config.tls.is_none()) {
        return refuse("only edge agents keep certificates of their own, and only with TLS".to_owned());
    }
    let every = config.identities.as_ref().and_then(|identities| identities.rotate_every);
    if let Some(every) = every.filter(|every| *every < STEP) {
        return refuse(format!("certificates cannot be renewed every {every:?}: each takes two connections"));
    }
    if !config.rate.is_finite() || config.rate < 0.0 {
        return refuse(format!(
            "a rate of {} is none: give records per second, or 0 for as fast as possible",
            config.rate
        ));
    }
    if config.frame == 0 || config.frame > device::payload::MAX_RECORDS {
        return refuse(format!("a frame has 1 to {} records, not {}", device::payload::MAX_RECORDS, config.frame));
    }
    let digits = (config.devices - 1).to_string().len().max(2);
    (0..config.devices)
        .map(|index| {
            DeviceId::new(&format!("{}{index:0digits$}", config.prefix))
                .map_err(|error| SimulateError::Config(format!("the prefix makes no device ids: {error}")))
        })
        .collect()
}
