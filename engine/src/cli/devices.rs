//! `weir devices`

use serde_json::Value;

use super::remote::{Of, segment};
use super::{Exit, Output, print};

/// Arguments of `weir devices`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Every device that was ever heard of.
    #[command(
        after_help = "Examples:\n  weir devices list\n  weir query --url http://127.0.0.1:8080 \"SELECT * FROM devices WHERE NOT in_sync\""
    )]
    List {
        #[command(flatten)]
        of: Of,
    },
    /// One device: its numbering, shadow and commands.
    Show {
        /// The device.
        device: String,
        #[command(flatten)]
        of: Of,
    },
    /// Tell a device to do something. It waits for a device that is away, until its time is over.
    #[command(
        after_help = "Examples:\n  weir devices command pump-7 open '{\"valve\": 3}' --wait 10s\n  weir devices command pump-7 reboot --ttl 1h --id reboot-2026-11-28"
    )]
    Command {
        /// The device.
        device: String,
        /// What to do.
        name: String,
        /// With what, in JSON.
        #[arg(default_value = "null")]
        args: String,
        /// Its id: asked twice, it counts once. Absent: one is drawn.
        #[arg(long)]
        id: Option<String>,
        /// How long from now the device may begin.
        #[arg(long, default_value = "1h")]
        ttl: String,
        /// How long to wait for the result.
        #[arg(long, default_value = "0s")]
        wait: String,
        /// Who asks.
        #[arg(long, env = "USER", default_value = "operator")]
        by: String,
        #[command(flatten)]
        of: Of,
    },
    /// Commands to a device, newest first.
    Commands {
        /// The device.
        device: String,
        #[command(flatten)]
        of: Of,
    },
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Action::List { of } => list(of),
        Action::Show { device, of } => show(device, of),
        Action::Command { device, name, args, id, ttl, wait, by, of } => {
            let args: Value = serde_json::from_str(args)
                .map_err(|error| Exit::Usage(format!("the arguments {args:?} are not JSON: {error}")))?;
            let mut body = serde_json::json!({ "name": name, "args": args, "ttl": ttl, "by": by });
            if let (Some(id), Some(body)) = (id, body.as_object_mut()) {
                body.insert("cmd_id".to_owned(), id.as_str().into());
            }
            let path = format!("/v1/devices/{}/commands?timeout={}", segment(device), segment(wait));
            let command = of.ask("POST", &path, Some(&body.to_string()))?;
            let failed = matches!(command["state"].as_str(), Some("failed" | "expired" | "rejected"));
            print(&match of.format {
                Output::Json => format!("{command}\n"),
                Output::Text => line(&command),
            })?;
            if failed { Err(Exit::Silent) } else { Ok(()) }
        }
        Action::Commands { device, of } => {
            let all = of.ask("GET", &format!("/v1/devices/{}/commands", segment(device)), None)?;
            if let Output::Json = of.format {
                return print(&format!("{all}\n"));
            }
            let lines: String = all["commands"].as_array().into_iter().flatten().map(line).collect();
            print(if lines.is_empty() { "no commands\n" } else { &lines })
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn line(command: &Value) -> String {
    let of = |name: &str| text(&command[name]);
    let mut line =
        format!("{}  {:<8}  {} {}  until {}", of("cmd_id"), of("state"), of("name"), of("args"), of("deadline"));
    if !command["out"].is_null() {
        line.push_str(&format!("  -> {}", of("out")));
    }
    line.push('\n');
    line
}

fn list(of: &Of) -> Result<(), Exit> {
    let mut devices: Vec<Value> = Vec::new();
    let mut after = String::new();
    loop {
        let page = of.ask("GET", &format!("/v1/devices?limit=1000{after}"), None)?;
        devices.extend(page["devices"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", segment(next)),
            None => break,
        }
    }
    if let Output::Json = of.format {
        return print(&format!("{}\n", serde_json::json!({ "devices": devices })));
    }
    let wide = devices.iter().map(|device| text(&device["device"]).len()).max().unwrap_or(0).max(6);
    let mut out = format!("{:<wide$}  {:<6}  shard\n", "device", "awake");
    for device in &devices {
        let (name, awake, shard) = (text(&device["device"]), text(&device["awake"]), text(&device["shard"]));
        out.push_str(&format!("{name:<wide$}  {awake:<6}  {shard}\n"));
    }
    print(&out)
}

fn show(device: &str, of: &Of) -> Result<(), Exit> {
    let found = of.ask("GET", &format!("/v1/devices/{}", segment(device)), None)?;
    if let Output::Json = of.format {
        return print(&format!("{found}\n"));
    }
    let mut out = format!("{}  shard {}, awake: {}\n", text(&found["device"]), found["shard"], found["awake"]);
    if let Some(online) = found["status"]["online"].as_bool() {
        let since = text(&found["status"]["since"]);
        out.push_str(&format!("{}, last said at {since}\n", if online { "online" } else { "offline" }));
    }
    if let Some(offset) = found["clock"]["offset_ns"].as_i64() {
        let seconds = |nanos: i64| format!("{:.3} s", nanos as f64 / 1e9);
        let err = found["clock"]["err_ns"].as_i64().unwrap_or(0);
        let drifts = if found["clock"]["drifting"] == Value::Bool(true) { ", drifts" } else { "" };
        out.push_str(&format!("clock: {} to be added, within {}{drifts}\n", seconds(offset), seconds(err)));
    }
    let groups: Vec<String> = found["groups"].as_array().into_iter().flatten().map(text).collect();
    if !groups.is_empty() {
        out.push_str(&format!("groups: {}\n", groups.join(", ")));
    }
    for epoch in found["epochs"].as_array().into_iter().flatten() {
        let closed = if epoch["closed"] == Value::Bool(true) { ", closed" } else { "" };
        out.push_str(&format!(
            "epoch {}: all up to {}, {} stored{closed}\n",
            epoch["epoch"], epoch["cum"], epoch["stored"]
        ));
    }
    out.push_str(&format!("more: weir shadow show {device}, weir devices commands {device}, weir audit {device}\n"));
    print(&out)
}
