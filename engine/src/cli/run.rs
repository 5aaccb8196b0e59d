//! `weir run`

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::engine::Engine;
use crate::{clock, project};

use super::{Exit, print};

/// Arguments of `weir run`.
#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Flags win over WEIR_* variables, those over the configuration file.\n\nExample:\n  weir run --insecure --data weir-data --pipelines pipelines/"
)]
pub(super) struct Args {
    /// Configuration file (TOML).
    #[arg(long, env = "WEIR_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory: log, state and tables.
    #[arg(long, env = "WEIR_DATA")]
    data: Option<PathBuf>,
    /// Folder of .sql files.
    #[arg(long, env = "WEIR_PIPELINES")]
    pipelines: Option<PathBuf>,
    /// Plain MQTT listener; only with --insecure, and then 127.0.0.1:1883 by default.
    #[arg(long, env = "WEIR_MQTT", value_name = "ADDR")]
    mqtt: Option<SocketAddr>,
    /// MQTT listener with TLS 1.3 and client certificates [default without --insecure: 0.0.0.0:8883].
    #[arg(long, env = "WEIR_MQTTS", value_name = "ADDR")]
    mqtts: Option<SocketAddr>,
    /// Listener for devices whose certificates have expired, to renew them and nothing else [default: none].
    #[arg(long, env = "WEIR_MQTTS_RECOVERY", value_name = "ADDR")]
    mqtts_recovery: Option<SocketAddr>,
    /// Certificate chain of the TLS listener (PEM); without it the engine's own authority makes one.
    #[arg(long, env = "WEIR_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the TLS listener (PEM).
    #[arg(long, env = "WEIR_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// HTTP listener.
    #[arg(long, env = "WEIR_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Serve without authentication, on loopback only.
    #[arg(long, env = "WEIR_INSECURE")]
    insecure: bool,
    /// Print the effective configuration and end.
    #[arg(long)]
    print_config: bool,
}

impl Args {
    fn config(&self) -> Result<Config, Exit> {
        let usage = |e: crate::config::ConfigError| Exit::Usage(e.to_string());
        let mut config = match &self.config {
            Some(path) => Config::load(path).map_err(usage)?,
            None => Config::default(),
        };
        if let Some(data) = &self.data {
            config.store.data = data.clone();
        }
        if let Some(dir) = &self.pipelines {
            config.pipelines.dir = Some(dir.clone());
        }
        config.mqtt.plain = self.mqtt.or(config.mqtt.plain);
        config.mqtt.tls = self.mqtts.or(config.mqtt.tls);
        config.mqtt.recovery = self.mqtts_recovery.or(config.mqtt.recovery);
        config.http.listen = self.http.or(config.http.listen);
        config.mqtt.tls_cert = self.tls_cert.clone().or(config.mqtt.tls_cert);
        config.mqtt.tls_key = self.tls_key.clone().or(config.mqtt.tls_key);
        config.node.insecure |= self.insecure;
        config.listen();
        if !self.print_config {
            config.validate().map_err(usage)?;
        }
        Ok(config)
    }
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let config = args.config()?;
    if args.print_config {
        return print(&toml::to_string(&config).map_err(Exit::failed)?);
    }
    let loaded = project::load_for(config.pipelines.dir.as_deref(), &config.store.data)
        .map_err(|e| Exit::Usage(e.to_string()))?;
    loaded.warn();
    // Asked for before anything starts: a signal during recovery must end the process cleanly too.
    let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failed)?;
    let engine = Engine::start(&config, loaded, clock::wall()).await.map_err(Exit::failed)?;
    let mut lines = String::new();
    for (name, address) in engine.listeners() {
        lines.push_str(&format!("{name} {address}\n"));
    }
    lines.push_str("ready\n");
    print(&lines)?;
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = engine.failed() => Some(error),
    };
    match failure {
        None => {
            tracing::info!("stopping: no more connections, then what is on its way, then a last checkpoint");
            engine.shutdown(true).await.map_err(Exit::failed)
        }
        Some(error) => {
            // What is in the log is safe; a checkpoint from a state in doubt is not wanted.
            let _ = engine.shutdown(false).await;
            Err(Exit::Failed(error.to_string()))
        }
    }
}
