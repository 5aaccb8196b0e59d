//! `weir test`

use std::collections::HashMap;
use std::path::PathBuf;

use super::{Exit, Output, print};
use crate::testing::{self, Report};

/// Arguments of `weir test`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir test
  weir test pipelines/climate.slt --update

A test is a file in the sqllogictest format:
  statement ok
  INSERT INTO telemetry (device, ts, temperature) VALUES ('a', '2026-01-01T00:00:10Z', 20.5)

  statement ok
  COPY telemetry FROM 'recorded.ndjson'

  statement ok
  FLUSH

  query TIR
  SELECT device, n, temperature_avg FROM climate_1m ORDER BY device
  ----
  a 1 20.5")]
pub(super) struct Args {
    /// Test files, and folders of projects with everything below them.
    #[arg(default_value = "pipelines")]
    paths: Vec<PathBuf>,
    /// Write the results into the files instead of comparing them.
    #[arg(long)]
    update: bool,
    /// How to print how it went.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) async fn main(args: Args) -> Result<(), Exit> {
    let found = testing::find(&args.paths).map_err(|e| Exit::Usage(e.to_string()))?;
    if found.is_empty() {
        let paths: Vec<String> = args.paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Exit::Usage(format!("there is no test (*.slt) below {}", paths.join(", "))));
    }
    let mut projects = HashMap::new();
    for (_, folder) in &found {
        if !projects.contains_key(folder) {
            let project = testing::load(folder).map_err(Exit::failed)?;
            projects.insert(folder.clone(), project);
        }
    }
    let mut reports = Vec::new();
    for (file, folder) in found {
        let Some(project) = projects.get(&folder) else { continue };
        let report = testing::run(file, project.clone(), args.update).await;
        if args.format == Output::Text {
            print(&line(&report, args.update))?;
        }
        reports.push(report);
    }
    let failed = reports.iter().filter(|report| report.failure.is_some()).count();
    match args.format {
        Output::Text => {
            print(&format!("{} tests, {} passed, {failed} failed\n", reports.len(), reports.len() - failed))?
        }
        Output::Json => {
            let all: Vec<serde_json::Value> = reports.iter().map(json).collect();
            print(&format!("{}\n", serde_json::Value::Array(all)))?;
        }
    }
    if failed > 0 { Err(Exit::Silent) } else { Ok(()) }
}

fn line(report: &Report, update: bool) -> String {
    let Report { file, records, took, failure } = report;
    let (file, ms) = (file.display(), took.as_millis());
    match failure {
        None if update => format!("written  {file}  {records} records, {ms} ms\n"),
        None => format!("ok  {file}  {records} records, {ms} ms\n"),
        Some(failure) => format!("FAILED  {file}\n{}\n\n", indented(failure)),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn json(report: &Report) -> serde_json::Value {
    let Report { file, records, took, failure } = report;
    serde_json::json!({
        "file": file.display().to_string(),
        "ok": failure.is_none(),
        "records": records,
        "ms": took.as_millis() as u64,
        "error": failure,
    })
}
