//! `weir torture`: the engine and its agents as processes, under everything that may happen to them, and a verdict.
//!
//! - `schedule`: which fault comes when; pure, from the seed. `process`: the children. `proxy`: a network that lies.
//!   `disk`: a disk that can be full. `numbers`: what the agents' own outboxes say they have recorded.
//! - `verdict`: what must hold in the end, by the outboxes, the agents' reports and the ledger; `files`: and by the
//!   files, the pipeline's against a batch query over the raw rows.
//!
//! The seed gives the same faults after the same pauses. What they meet depends on the machine, as it does for real.
//! Absent: faults within a process (that is for simulation), lost or torn writes of the disk.

mod disk;
mod files;
mod numbers;
mod process;
mod proxy;
mod schedule;
mod verdict;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use verdict::Verdict;

use disk::Disk;
use numbers::Numbers;
use process::{Engine, Fleet};
use proxy::{Cut, Proxy};
use schedule::{Fault, Schedule};

/// The stream that the agents send and the pipeline that is computed once more.
const PIPELINES: &str = include_str!("../../../pipelines/library/torture/torture.sql");
/// How long the engine may take from its start to `ready`.
const READY: Duration = Duration::from_secs(120);
/// How long after the end of the faults everything may take to be acknowledged.
const DRAIN: Duration = Duration::from_secs(120);

/// What is tortured, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct TortureConfig {
    /// The program: this one.
    pub program: PathBuf,
    /// Everything that is written stands here.
    pub folder: PathBuf,
    /// Keep the engine's data, also if all is well.
    pub keep: bool,
    /// How long faults come.
    pub duration: Duration,
    /// What the faults follow from.
    pub seed: u64,
    /// Agents of all fleets together.
    pub devices: usize,
    /// Records a second of all of them together.
    pub rate: f64,
    /// Size of the disk that gets full.
    pub disk: u64,
}

/// Why there is no verdict.
#[derive(Debug, Error)]
pub enum TortureError {
    /// A setting that cannot work.
    #[error("{0}")]
    Config(String),
    /// The engine did something that it must not do.
    #[error("{0}")]
    Broke(String),
    /// The machine does not do what this needs.
    #[error("{0}")]
    Failed(String),
}

/// Everything that is running.
struct Torture {
    config: TortureConfig,
    engine: Engine,
    fleets: Vec<Fleet>,
    proxy: Proxy,
    disk: Option<Disk>,
    numbers: Numbers,
    faults: BTreeMap<&'static str, u64>,
    left_out: Vec<String>,
}

/// Tortures, and says what came of it. `stop` ends the faults before their time; the verdict is given all the same.
pub async fn run(config: TortureConfig, stop: CancellationToken) -> Result<Verdict, TortureError> {
    check(&config)?;
    let begun = Instant::now();
    let mut torture = Torture::set_up(config).await?;
    let outcome = torture.faults(&stop).await;
    let tortured = begun.elapsed();
    let mut verdict = match outcome {
        Ok(()) => torture.settle().await,
        Err(error) => Err(error),
    };
    if let Err(TortureError::Broke(text)) = verdict {
        // What the engine broke is the verdict, and the figures so far belong to it.
        let mut broken = torture.figures();
        broken.wrong.push(text);
        verdict = Ok(broken);
    }
    let passed = verdict.as_ref().is_ok_and(Verdict::passed);
    torture.rescue(torture.config.keep || !passed);
    let mut verdict = verdict?;
    verdict.seconds = tortured.as_secs_f64();
    Ok(verdict)
}

fn check(config: &TortureConfig) -> Result<(), TortureError> {
    let refuse = |text: String| Err(TortureError::Config(text));
    if config.devices < 4 || config.devices > 10_000 {
        return refuse(format!("{} devices: give 4 to 10000, there are four fleets", config.devices));
    }
    if !config.rate.is_finite() || config.rate <= 0.0 {
        return refuse(format!("a rate of {} is none: give records per second", config.rate));
    }
    if config.disk < 64 << 20 {
        return refuse("a disk of less than 64 MiB does not hold what the engine needs to run".to_owned());
    }
    if config.duration < Duration::from_secs(1) {
        return refuse("torture for at least a second".to_owned());
    }
    let used = std::fs::read_dir(&config.folder).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        let folder = config.folder.display();
        return refuse(format!("{folder} is not empty; what it holds could not be told from what this run writes"));
    }
    Ok(())
}

/// A port that nobody uses now, and that the system does not give away: the engine must find it free at every start,
/// and a connection that is tried while it is down must not happen to be given its port.
fn free_port() -> Result<SocketAddr, TortureError> {
    (0..200)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(10_000..32_768))))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| TortureError::Failed("no free port from 10000 to 32767".to_owned()))
}

fn written<T>(path: &Path, result: std::io::Result<T>) -> Result<T, TortureError> {
    result.map_err(|e| TortureError::Failed(format!("{}: {e}", path.display())))
}

impl Torture {
    async fn set_up(config: TortureConfig) -> Result<Self, TortureError> {
        let folder = &config.folder;
        let (store, pipelines) = (folder.join("disk"), folder.join("pipelines"));
        for path in [&store, &pipelines, &folder.join("outbox")] {
            written(path, std::fs::create_dir_all(path))?;
        }
        let file = pipelines.join("torture.sql");
        written(&file, std::fs::write(&file, PIPELINES))?;
        let mut left_out = Vec::new();
        let disk = match Disk::mount(&store, config.disk) {
            Ok(disk) => Some(disk),
            Err(why) => {
                tracing::warn!("the full disk is left out: {why}");
                left_out.push(format!("full disk: {why}"));
                None
            }
        };
        let (mqtt, http) = (free_port()?, free_port()?);
        let proxy = Proxy::start(mqtt, config.seed)
            .await
            .map_err(|e| TortureError::Failed(format!("the proxy cannot listen: {e}")))?;
        let engine = Engine {
            program: config.program.clone(),
            data: store.join("data"),
            pipelines,
            log: folder.join("engine.log"),
            config: folder.join("weir.toml"),
            mqtt,
            http,
            process: None,
            ready: Vec::new(),
            starts: 0,
        };
        // Outboxes on disk first: those are the fleets that can be killed.
        let kinds: [(&str, bool, &[&str]); 4] = [
            ("disk", true, &[]),
            ("disk-columns", true, &["--columns", "--v3"]),
            ("memory", false, &["--columns"]),
            ("plain", false, &["--speak", "json", "--frame", "8"]),
        ];
        let share = config.devices / kinds.len();
        let fleets = kinds
            .into_iter()
            .enumerate()
            .map(|(at, (name, on_disk, speaks))| Fleet {
                name,
                devices: if at == 0 { config.devices - 3 * share } else { share },
                rate: config.rate / kinds.len() as f64,
                speaks,
                outbox: on_disk.then(|| folder.join("outbox").join(name)),
                process: None,
                starts: 0,
            })
            .collect();
        let (numbers, faults) = (Numbers::default(), BTreeMap::new());
        Ok(Self { config, engine, fleets, proxy, disk, numbers, faults, left_out })
    }

    /// Starts everything and does one fault after the other until the time is over.
    async fn faults(&mut self, stop: &CancellationToken) -> Result<(), TortureError> {
        let killable = self.fleets.iter().filter(|fleet| fleet.outbox.is_some()).count();
        let mut schedule = Schedule::new(self.config.seed, killable, self.fleets.len(), self.disk.is_some());
        self.engine.start(schedule.settings(), READY).await?;
        for at in 0..self.fleets.len() {
            self.start_fleet(at)?;
        }
        let until = Instant::now() + self.config.duration;
        tracing::info!(seed = self.config.seed, folder = %self.config.folder.display(), "torture begins");
        for step in schedule {
            if Instant::now() + step.after >= until {
                break;
            }
            if stop.run_until_cancelled(tokio::time::sleep(step.after)).await.is_none() {
                tracing::info!("no more faults; giving the verdict");
                break;
            }
            self.engine.check()?;
            tracing::info!(fault = ?step.fault, "torture");
            *self.faults.entry(step.fault.name()).or_default() += 1;
            self.act(step.fault).await?;
        }
        Ok(())
    }

    fn start_fleet(&mut self, at: usize) -> Result<(), TortureError> {
        let (program, folder) = (self.config.program.clone(), self.config.folder.clone());
        let (address, seed) = (self.proxy.address(), self.config.seed);
        match self.fleets.get_mut(at) {
            Some(fleet) => fleet.start(&program, &folder, address, seed),
            None => Ok(()),
        }
    }

    async fn act(&mut self, fault: Fault) -> Result<(), TortureError> {
        match fault {
            Fault::KillEngine { flush, again, settings } => {
                if flush {
                    let url = self.engine.url();
                    tokio::task::spawn_blocking(move || {
                        let agent = verdict::http(Duration::from_secs(5));
                        let _ = agent.post(format!("{url}/v1/flush")).send_empty();
                    });
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                self.engine.kill();
                if let Some(into) = again {
                    self.engine.launch(settings)?;
                    tokio::time::sleep(into).await;
                    self.engine.kill();
                }
                self.engine.start(settings, READY).await
            }
            Fault::StopEngine(lasts) => {
                self.engine.signal(Signal::SIGSTOP);
                tokio::time::sleep(lasts).await;
                self.engine.signal(Signal::SIGCONT);
                Ok(())
            }
            Fault::KillAgents { fleet: at, away } => {
                if let Some(fleet) = self.fleets.get_mut(at) {
                    if let Some(mut process) = fleet.process.take() {
                        if let Some(status) = process.ended() {
                            return Err(TortureError::Failed(format!(
                                "fleet {} ended by itself: {status}",
                                fleet.name
                            )));
                        }
                        process.kill();
                    }
                    if let Some(outbox) = &fleet.outbox {
                        self.numbers.look(outbox)?;
                    }
                }
                tokio::time::sleep(away).await;
                self.start_fleet(at)
            }
            Fault::StopAgents { fleet, lasts } => {
                let signal = |signal| {
                    self.fleets
                        .get(fleet)
                        .and_then(|fleet| fleet.process.as_ref())
                        .map(|process| process.signal(signal))
                };
                signal(Signal::SIGSTOP);
                tokio::time::sleep(lasts).await;
                signal(Signal::SIGCONT);
                Ok(())
            }
            Fault::Cut { share } => {
                self.proxy.cut(share, Cut::Both);
                Ok(())
            }
            Fault::HalfOpen { share, keeps_engine, lasts } => {
                self.proxy.cut(share, if keeps_engine { Cut::Agents(lasts) } else { Cut::Engine(lasts) });
                Ok(())
            }
            Fault::Delay { each, lasts } => {
                self.proxy.delay(each);
                tokio::time::sleep(lasts).await;
                self.proxy.delay(Duration::ZERO);
                Ok(())
            }
            Fault::Stall { lasts } => {
                self.proxy.still(true);
                tokio::time::sleep(lasts).await;
                self.proxy.still(false);
                Ok(())
            }
            Fault::FullDisk { lasts } => self.full_disk(lasts).await,
        }
    }

    async fn full_disk(&mut self, lasts: Duration) -> Result<(), TortureError> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let failed = |e: std::io::Error| TortureError::Failed(format!("the disk cannot be filled or emptied: {e}"));
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            // Again and again: the engine may free files of its own.
            disk.fill().map_err(failed)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.engine.check()?;
        }
        disk.free().map_err(failed)?;
        self.ready_again(Duration::from_secs(60)).await
    }

    /// Waits until `/readyz` says yes.
    async fn ready_again(&mut self, patience: Duration) -> Result<(), TortureError> {
        let until = Instant::now() + patience;
        loop {
            self.engine.check()?;
            let url = format!("{}/readyz", self.engine.url());
            let ready =
                tokio::task::spawn_blocking(move || verdict::http(Duration::from_secs(5)).get(&url).call().is_ok());
            if ready.await.unwrap_or(false) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(self
                    .engine
                    .broke(&format!("was not ready within {patience:?} after the faults had ended")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Keeps what stands on a disk that goes away with this process, if anybody will want to look at it.
    fn rescue(&mut self, wanted: bool) {
        self.engine.kill();
        self.fleets.iter_mut().for_each(|fleet| drop(fleet.process.take()));
        if self.disk.is_some() && wanted {
            let (from, to) = (self.engine.data.clone(), self.config.folder.join("data"));
            match std::process::Command::new("cp").arg("-a").arg(&from).arg(&to).status() {
                Ok(status) if status.success() => {}
                _ => tracing::warn!("the data directory could not be copied to {}", to.display()),
            }
        }
        self.disk = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_tortured_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let fine = TortureConfig {
            program: PathBuf::from("weir"),
            folder: folder.path().to_owned(),
            keep: true,
            duration: Duration::from_secs(60),
            seed: 1,
            devices: 40,
            rate: 400.0,
            disk: 512 << 20,
        };
        check(&fine).unwrap();
        check(&TortureConfig { folder: folder.path().join("new"), ..fine.clone() }).unwrap();
        for (config, why) in [
            (TortureConfig { devices: 3, ..fine.clone() }, "four fleets"),
            (TortureConfig { rate: 0.0, ..fine.clone() }, "records per second"),
            (TortureConfig { rate: f64::NAN, ..fine.clone() }, "records per second"),
            (TortureConfig { disk: 1, ..fine.clone() }, "64 MiB"),
            (TortureConfig { duration: Duration::ZERO, ..fine.clone() }, "at least a second"),
        ] {
            let error = check(&config).unwrap_err();
            assert!(matches!(&error, TortureError::Config(text) if text.contains(why)), "{error}");
        }
        std::fs::write(folder.path().join("mine"), "precious").unwrap();
        assert!(check(&fine).unwrap_err().to_string().contains("not empty"));
    }
}
