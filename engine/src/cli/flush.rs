//! `weir flush`

use super::remote::{DEFAULT_URL, check_url, request};
use super::{Exit, Output, print};

/// Arguments of `weir flush`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The engine.
    #[arg(long, env = "WEIR_URL", default_value = DEFAULT_URL)]
    url: String,
    /// How to print the barriers.
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    check_url(&args.url)?;
    let body = request("POST", &args.url, "/v1/flush", "application/json", None)?;
    let text = String::from_utf8_lossy(&body).into_owned();
    match args.format {
        Output::Json => print(&format!("{text}\n")),
        Output::Text => {
            let answer: serde_json::Value = serde_json::from_str(&text).map_err(Exit::failed)?;
            let barriers = answer.get("barriers").map(ToString::to_string).unwrap_or_default();
            print(&format!("all files are visible up to barriers {barriers} (by shard)\n"))
        }
    }
}
