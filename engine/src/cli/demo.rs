//! `weir demo`: the whole system on this machine.

use std::path::PathBuf;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use sql::SourceFile;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::query::{self, Bounds, Format};
use crate::simulate::{self, SimulateConfig};
use crate::{clock, project};

use super::audit::audit_core;
use super::{Exit, print};

/// The pipelines of the demo.
const PIPELINES: &str = include_str!("../../../pipelines/library/demo/demo.sql");

/// Arguments of `weir demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir demo --devices 200 --for 5m --data /tmp/weir-demo")]
pub(super) struct Args {
    /// How many simulated devices.
    #[arg(long, default_value_t = 50)]
    devices: usize,
    /// Records per second of one device.
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
    /// How long; without it until Ctrl-C.
    #[arg(long = "for", value_parser = humantime::parse_duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// Data directory; it is kept. Without it a temporary one is used and removed.
    #[arg(long)]
    data: Option<PathBuf>,
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let (data, temporary) = match &args.data {
        Some(data) => (data.clone(), false),
        None => (std::env::temp_dir().join(format!("weir-demo-{}", std::process::id())), true),
    };
    let result = demo(&args, data.clone()).await;
    if temporary {
        // Best effort: an operating system clears its temporary files anyway.
        let _ = std::fs::remove_dir_all(&data);
    }
    result
}

async fn demo(args: &Args, data: PathBuf) -> Result<(), Exit> {
    let mut config = Config::default();
    config.store.data = data;
    config.node.insecure = true;
    config.mqtt.plain = Some(([127, 0, 0, 1], 0).into());
    config.http.listen = Some(([127, 0, 0, 1], 0).into());
    config.durability.checkpoint_every = Duration::from_secs(5);
    config.durability.cut_every = Duration::from_secs(10);
    let file = SourceFile { name: "demo.sql".to_owned(), text: PIPELINES.to_owned() };
    let loaded = project::check(vec![file]).map_err(Exit::failed)?;

    let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failed)?;
    let engine = Engine::start(&config, loaded, clock::wall()).await.map_err(Exit::failed)?;
    let mut mqtt = None;
    let mut text = format!("the engine runs; its data stands in {}\n", config.store.data.display());
    for (name, address) in engine.listeners() {
        text.push_str(&format!("  {name:<5} {address}\n"));
        match *name {
            "mqtt" => mqtt = Some(*address),
            "http" => text.push_str(&format!(
                "try:  weir query --url http://{address} \"SELECT * FROM climate_10s ORDER BY window_start DESC LIMIT 5\"\n\
                 \x20     curl http://{address}/metrics\n"
            )),
            _ => {}
        }
    }
    let Some(mqtt) = mqtt else { return Err(Exit::Failed("the MQTT listener did not start".to_owned())) };
    text.push_str(&format!(
        "      mosquitto_pub -h {} -p {} -q 1 -t devices/my-device/telemetry -m '{{\"temperature\": 21.5}}'\n\
         {} devices send {} records a second each, some of them badly: lost connections, repeats, disorder\n",
        mqtt.ip(),
        mqtt.port(),
        args.devices,
        args.rate
    ));
    print(&text)?;

    let stop = CancellationToken::new();
    let fleet = SimulateConfig {
        devices: args.devices,
        rate: args.rate * args.devices as f64,
        duration: args.duration.unwrap_or(Duration::from_secs(365 * 24 * 3600)),
        chaos: true,
        ..SimulateConfig::new(mqtt)
    };
    let mut running = tokio::spawn(simulate::run(fleet, clock::wall(), stop.clone()));
    let done = tokio::select! {
        done = &mut running => done,
        _ = interrupt.recv() => { stop.cancel(); running.await }
        _ = terminate.recv() => { stop.cancel(); running.await }
        error = engine.failed() => return Err(Exit::failed(error)),
    };
    let report = done.map_err(Exit::failed)?.map_err(Exit::failed)?;

    let audits = audit_core(engine.core(), None).await?;
    let sum = |of: fn(&crate::audit::EpochAudit) -> u64| audits.iter().flat_map(|a| &a.epochs).map(of).sum::<u64>();
    let (stored, duplicate) = (sum(|e| e.rows), sum(|e| e.duplicate));
    let (missing, double, declared) = (sum(|e| e.missing), sum(|e| e.double), sum(|e| e.lost));
    let lost = report.recorded.saturating_sub(stored + declared).max(missing);
    let mut text = format!("\nthe fleet\n{report}\n\nthe ledger\n");
    text.push_str(&format!(
        "  sent (with repeats)   {:>10}\n  recorded by devices   {:>10}\n  stored, once each     {:>10}\n  \
         repeats recognised    {:>10}\n  lost                  {:>10}\n  double                {:>10}\n",
        report.sent, report.recorded, stored, duplicate, lost, double
    ));
    text.push_str(&tables(&engine).await?);
    print(&text)?;
    let mismatches = engine.books().close(Duration::from_secs(10)).await;
    engine.shutdown(true).await.map_err(Exit::failed)?;
    if lost > 0 || double > 0 || report.unacknowledged > 0 {
        return Err(Exit::Failed("records were lost, double or not acknowledged".to_owned()));
    }
    if !mismatches.is_empty() {
        return Err(Exit::Failed(format!("counters do not add up: {mismatches:?}")));
    }
    Ok(())
}

/// Rows of each table, and its first rows.
async fn tables(engine: &Engine) -> Result<String, Exit> {
    let runtime = query::runtime(crate::limits::QUERY_MEMORY).map_err(Exit::failed)?;
    let context = query::over_engine(engine.core(), runtime).await.map_err(Exit::failed)?;
    let bounds = Bounds { rows: 1000, time: Duration::from_secs(60) };
    let mut names: Vec<String> = context
        .catalog("datafusion")
        .and_then(|catalog| catalog.schema("public"))
        .map(|schema| schema.table_names())
        .unwrap_or_default();
    names.sort();
    let mut text = String::new();
    for name in names {
        let count = query::run(&context, &format!("SELECT count(*) FROM \"{name}\""), bounds).await;
        let count = count.map_err(Exit::failed)?;
        let rows = count
            .batches
            .first()
            .and_then(|batch| batch.column(0).as_primitive_opt::<arrow::datatypes::Int64Type>())
            .filter(|column| !column.is_empty())
            .map_or(0, |column| column.value(0));
        text.push_str(&format!("\ntable {name}: {rows} rows\n"));
        if rows > 0 {
            let first = query::run(&context, &format!("SELECT * FROM \"{name}\" LIMIT 3"), bounds).await;
            let mut body = Vec::new();
            query::write(&first.map_err(Exit::failed)?, Format::Table, &mut body).map_err(Exit::failed)?;
            text.push_str(&String::from_utf8_lossy(&body));
        }
    }
    Ok(text)
}
