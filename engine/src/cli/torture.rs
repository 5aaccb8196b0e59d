//! `weir torture`

use std::path::PathBuf;
use std::time::Duration;

use crate::config::parse_bytes;
use crate::torture::{self, TortureConfig, TortureError};

use super::{Exit, Output, print, stop_at_signal};

/// Arguments of `weir torture`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Real engine and agents as processes under SIGKILL, SIGSTOP, a full disk and a lying network; then a \
                  verdict.\n\nWhen the faults are over, everything is acknowledged and audited: each number that an \
                  agent recorded is exactly one row or a declared loss, the pipeline's files equal a batch query over \
                  the raw rows, the engine's counters add up. Status 1 if not; the files are then kept.",
    after_help = "The full disk is a tmpfs, and mounting one takes root; without that this fault is left out.\n\nExamples:\n  weir torture\n  weir torture --for 30m --seed 7 --data /tmp/torture"
)]
pub(super) struct Args {
    /// How long faults come.
    #[arg(long = "for", default_value = "5m", value_parser = humantime::parse_duration, value_name = "TIME")]
    duration: Duration,
    /// Seed of the faults: the same seed gives the same faults after the same pauses. Drawn and printed if absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for everything that is written; it must be empty, and is kept. Without it a temporary one is used.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Agents of all four fleets together.
    #[arg(long, default_value_t = 40)]
    devices: usize,
    /// Records per second of all agents together.
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
    /// Size of the disk that gets full; it stands in memory.
    #[arg(long, default_value = "512 MiB", value_parser = size, value_name = "SIZE")]
    disk: u64,
    /// How to print the verdict.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is not a size; write for example \"512 MiB\""))
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let folder = match &args.data {
        Some(data) => data.clone(),
        None => std::env::temp_dir().join(format!("weir-torture-{}", std::process::id())),
    };
    let config = TortureConfig {
        program: std::env::current_exe().map_err(Exit::failed)?,
        folder: folder.clone(),
        keep: args.data.is_some(),
        duration: args.duration,
        seed: args.seed.unwrap_or_else(|| rand::random::<u64>() >> 32),
        devices: args.devices,
        rate: args.rate,
        disk: args.disk,
    };
    let verdict = torture::run(config, stop_at_signal()?).await.map_err(|error| match error {
        TortureError::Config(message) => Exit::Usage(message),
        error => Exit::failed(error),
    })?;
    match args.format {
        Output::Json => print(&format!("{}\n", serde_json::to_string(&verdict).map_err(Exit::failed)?))?,
        Output::Text => print(&format!("{verdict}\n"))?,
    }
    if !verdict.passed() {
        let seed = verdict.seed;
        return Err(Exit::Failed(format!(
            "the files are kept in {}; `weir torture --seed {seed}` gives the same faults again",
            folder.display()
        )));
    }
    if args.data.is_none() {
        // Best effort: an operating system clears its temporary files anyway.
        let _ = std::fs::remove_dir_all(&folder);
    }
    Ok(())
}
