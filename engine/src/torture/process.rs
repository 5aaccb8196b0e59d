//! The engine and the fleets of agents as child processes of the same program.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::TortureError;
use super::schedule::Settings;

/// How often a process that should end is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A process that was started so long ago has handlers for signals, however busy the machine is.
const SETTLED: Duration = Duration::from_secs(5);

/// A running child. Dropping it kills it.
pub(super) struct Process {
    child: Child,
    started: Instant,
}

impl Process {
    fn start(command: &mut Command) -> Result<Self, TortureError> {
        // A group of its own: Ctrl-C at the terminal is for us; we end our children in order.
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let started = Instant::now();
        child
            .map(|child| Self { child, started })
            .map_err(|e| TortureError::Failed(format!("cannot start a process: {e}")))
    }

    /// Sends a signal; a process that is gone already has no use for it.
    pub(super) fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits until it has had the time to ask for signals: until then, SIGINT ends a process as SIGKILL does.
    pub(super) async fn listens(&self) {
        tokio::time::sleep(SETTLED.saturating_sub(self.started.elapsed())).await;
    }

    /// Its exit status, if it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log(path: &Path) -> Result<File, TortureError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| TortureError::Failed(format!("{}: {e}", path.display())))
}

/// The engine: where it lives, and the process if there is one.
pub(super) struct Engine {
    pub(super) program: PathBuf,
    pub(super) data: PathBuf,
    pub(super) pipelines: PathBuf,
    pub(super) log: PathBuf,
    pub(super) config: PathBuf,
    pub(super) mqtt: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) process: Option<Process>,
    /// How long each start took until it was ready.
    pub(super) ready: Vec<Duration>,
    pub(super) starts: u32,
}

impl Engine {
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Writes the configuration that the next start reads.
    fn configure(&self, settings: Settings) -> Result<(), TortureError> {
        let text = format!(
            "[node]\npassivate_after = \"{}ms\"\n[durability]\ncheckpoint_every = \"{}ms\"\ncut_every = \"{}ms\"\n",
            settings.passivate.as_millis(),
            settings.checkpoint.as_millis(),
            settings.cut.as_millis()
        );
        std::fs::write(&self.config, text).map_err(|e| TortureError::Failed(format!("{}: {e}", self.config.display())))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["run", "--insecure", "--config"]).arg(&self.config).arg("--data").arg(&self.data);
        command.arg("--pipelines").arg(&self.pipelines);
        command.args(["--mqtt", &self.mqtt.to_string(), "--http", &self.http.to_string()]);
        // Variables of the user's own engine must not reach this one.
        for name in ["WEIR_CONFIG", "WEIR_DATA", "WEIR_MQTT", "WEIR_MQTTS", "WEIR_HTTP", "WEIR_PIPELINES"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts it; returns as soon as the process runs.
    pub(super) fn launch(&mut self, settings: Settings) -> Result<std::sync::mpsc::Receiver<String>, TortureError> {
        self.configure(settings)?;
        self.starts += 1;
        let mut process = Process::start(self.command().stdout(Stdio::piped()).stderr(log(&self.log)?))?;
        let (sender, receiver) = std::sync::mpsc::sync_channel(64);
        if let Some(out) = process.child.stdout.take() {
            // Ends with the process, whose end closes the pipe.
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        self.process = Some(process);
        Ok(receiver)
    }

    /// Starts it and waits until it says `ready`.
    pub(super) async fn start(&mut self, settings: Settings, patience: Duration) -> Result<(), TortureError> {
        let begun = Instant::now();
        let lines = self.launch(settings)?;
        loop {
            match lines.try_recv() {
                Ok(line) if line == "ready" => break,
                Ok(_) => continue,
                Err(std::sync::mpsc::TryRecvError::Empty) => {}
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    return Err(self.broke("ended instead of getting ready"));
                }
            }
            if begun.elapsed() > patience {
                return Err(self.broke(&format!("was not ready within {patience:?}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.ready.push(begun.elapsed());
        Ok(())
    }

    /// What it did that it must not do, with the end of its log.
    pub(super) fn broke(&self, what: &str) -> TortureError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n  ");
        TortureError::Broke(format!("the engine {what}; its log ends with\n  {tail}"))
    }

    /// Fails if the process has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), TortureError> {
        match self.process.as_mut().map(Process::ended) {
            Some(Some(status)) => Err(self.broke(&format!("ended by itself ({status})"))),
            _ => Ok(()),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }
}

/// A fleet of agents, one process for all of them.
pub(super) struct Fleet {
    pub(super) name: &'static str,
    pub(super) devices: usize,
    pub(super) rate: f64,
    /// Further arguments of `weir simulate`.
    pub(super) speaks: &'static [&'static str],
    /// Where its outboxes stand; a fleet without one is not killed, since it would forget what it sent.
    pub(super) outbox: Option<PathBuf>,
    pub(super) process: Option<Process>,
    pub(super) starts: u32,
}

impl Fleet {
    /// Device ids begin with this.
    pub(super) fn prefix(&self) -> String {
        format!("{}-", self.name)
    }

    pub(super) fn report(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.json", self.name))
    }

    pub(super) fn log(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.log", self.name))
    }

    pub(super) fn start(
        &mut self,
        program: &Path,
        folder: &Path,
        mqtt: SocketAddr,
        seed: u64,
    ) -> Result<(), TortureError> {
        let report = self.report(folder);
        let out = File::create(&report).map_err(|e| TortureError::Failed(format!("{}: {e}", report.display())))?;
        let mut command = Command::new(program);
        command.args(["simulate", "--for", "1000days", "--format", "json", "--mqtt", &mqtt.to_string()]);
        command.args(["--devices", &self.devices.to_string(), "--rate", &self.rate.to_string()]);
        command.args(["--prefix", &self.prefix(), "--seed", &(seed ^ u64::from(self.starts)).to_string()]);
        command.args(self.speaks);
        if let Some(outbox) = &self.outbox {
            command.arg("--outbox").arg(outbox);
        }
        self.starts += 1;
        self.process = Some(Process::start(command.stdout(out).stderr(log(&self.log(folder))?))?);
        Ok(())
    }
}
