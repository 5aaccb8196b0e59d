//! `weir pipelines repair` and `weir pipelines backfill`

use std::time::Instant;

use pipelines::repair::Totals;

use super::remote::{DEFAULT_URL, check_url, lines};
use super::{Exit, Output, print};
use crate::repair::{Begin, Event};

/// Arguments of `weir pipelines repair`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir pipelines repair climate_1m --from 2026-11-23T10:00:00Z --to 2026-11-23T12:00:00Z
  weir query --url http://127.0.0.1:8080 \"SELECT pipeline, device, window_start, records FROM _late\"

Partitions are written whole: the span is widened to them. Windows that are still open are left to the engine.
Rows of _late stay, as a history.")]
pub(super) struct Repair {
    /// The pipeline; of a rollup, the table.
    name: String,
    /// Windows that begin at this time or later, RFC 3339.
    #[arg(long, value_name = "TIME")]
    from: String,
    /// Windows that begin before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    to: String,
    #[command(flatten)]
    at: At,
}

/// Arguments of `weir pipelines backfill`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  weir pipelines backfill climate_1h --from 2026-01-01T00:00:00Z

The stream's files are read from that time on, and what the pipeline would have made of them, had it been there, is
written. Windows that are still open are left to the engine; of those in which the pipeline began it writes a part only:
run it again when they are closed.")]
pub(super) struct Backfill {
    /// The pipeline; of a rollup, the table.
    name: String,
    /// Windows that begin at this time or later, RFC 3339.
    #[arg(long, value_name = "TIME")]
    from: String,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
struct At {
    /// The engine.
    #[arg(long, env = "WEIR_URL", default_value = DEFAULT_URL)]
    url: String,
    /// How to print what was done.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) fn repair(args: &Repair) -> Result<(), Exit> {
    run(&args.name, &args.from, Some(&args.to), &args.at)
}

pub(super) fn backfill(args: &Backfill) -> Result<(), Exit> {
    run(&args.name, &args.from, None, &args.at)
}

fn run(name: &str, from: &str, to: Option<&str>, at: &At) -> Result<(), Exit> {
    check_url(&at.url)?;
    for (flag, text) in [("--from", Some(from)), ("--to", to)] {
        let Some(text) = text else { continue };
        device::payload::parse_rfc3339(text)
            .map_err(|e| Exit::Usage(format!("{flag} {text}: {e}; write 2026-11-23T10:00:00Z")))?;
    }
    let body = serde_json::json!({ "from": from, "to": to }).to_string();
    let began = Instant::now();
    let (mut begin, mut end) = (None, None);
    let path = format!("/v1/pipelines/{}/repair", super::remote::segment(name));
    lines("POST", &at.url, &path, Some(&body), |line| {
        match serde_json::from_str(line).map_err(Exit::failed)? {
            Event::Begin(what) => {
                eprintln!("{}", header(&what));
                begin = Some(what);
            }
            Event::Partition(done) => {
                let kept = if done.kept > 0 { format!(", {} of them as they were", done.kept) } else { String::new() };
                eprintln!(
                    "{} shard {}: {} rows{kept}, {} files replaced",
                    done.partition, done.shard, done.rows, done.files
                );
            }
            last => end = Some(last),
        }
        Ok(true)
    })?;
    match (begin, end) {
        (Some(begin), Some(Event::Done(totals))) => match at.format {
            Output::Json => print(&format!("{}\n", serde_json::json!({ "repair": begin, "done": totals }))),
            Output::Text => print(&summary(&begin, &totals, began.elapsed().as_secs_f64())),
        },
        (_, Some(Event::Failed { error })) => Err(Exit::Failed(error)),
        _ => Err(Exit::Failed("the engine ended before the repair was done; what it had done stands".to_owned())),
    }
}

fn header(begin: &Begin) -> String {
    let to = begin.to.as_deref().map_or_else(|| "what is still open".to_owned(), str::to_owned);
    let mut text = format!("{}: windows from {} to {to}", begin.pipeline, begin.from);
    if begin.widened {
        text.push_str(&format!(" (widened: partitions, each of one {}, are written whole)", begin.partition));
    }
    if !begin.joins.is_empty() {
        text.push_str(&format!("; with the rows that {} has now", begin.joins.join(", ")));
    }
    text
}

fn summary(begin: &Begin, totals: &Totals, seconds: f64) -> String {
    let Totals { partitions, rows, kept, open, at_edges, unknown, failed } = totals;
    let mut text = format!("{}: {rows} rows in {partitions} partitions written in {seconds:.1} s\n", begin.pipeline);
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            text.push_str(&format!("  {count} {what}\n"));
        }
    };
    note(*kept as u64, "of them as they were");
    note(*open as u64, "windows are still open: the engine writes them when they close");
    note(*at_edges as u64, "sessions reach over an end of the span and are as they were: widen --from and --to");
    note(
        *unknown as u64,
        "devices left out: they were silent since before the pipeline began, and their windows may still come",
    );
    note(*failed, "records left out: an expression fails on them, see _late");
    text
}
