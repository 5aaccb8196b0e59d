//! `weir alerts`

mod people;
mod replay;

use serde::Deserialize;

use crate::http::AlertItem;

use super::remote::{DEFAULT_URL, Of, check_url, request};
use super::{Exit, Output, print};

/// Arguments of `weir alerts`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Alerts that are not ok.
    #[command(
        after_help = "Examples:\n  weir alerts list\n  weir alerts list --state firing --severity critical --format json"
    )]
    List {
        /// Only those: pending, firing, recovering or no_data.
        #[arg(long)]
        state: Option<String>,
        /// Only those of a rule.
        #[arg(long)]
        rule: Option<String>,
        /// Only those of a device.
        #[arg(long)]
        device: Option<String>,
        /// Only those of a severity.
        #[arg(long)]
        severity: Option<String>,
        #[command(flatten)]
        of: Of,
    },
    /// One incident: where it stands, and everything that happened to it.
    #[command(after_help = "Example:\n  weir alerts show 5f0c6a1e9b3d2c47")]
    Show {
        /// Its id, as `list` and the table `_alerts` have it.
        id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Take care of an incident: its ladder stops until it ends, gets worse, or the time is over.
    #[command(after_help = "Example:\n  weir alerts ack 5f0c6a1e9b3d2c47 --by ann --for 2h")]
    Ack {
        /// Its id.
        id: String,
        /// Who takes care.
        #[arg(long, env = "USER", default_value = "operator")]
        by: String,
        /// For how long.
        #[arg(long = "for", default_value = "4h")]
        lasts: String,
        #[command(flatten)]
        of: Of,
    },
    /// No longer take care of it: the ladder goes on where it stood.
    Unack {
        /// Its id.
        id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Tell nobody of some incidents for a while.
    Silence(people::Silence),
    /// End a silence before its time.
    #[command(after_help = "Example:\n  weir alerts unsilence s7")]
    Unsilence {
        /// Its id, as `weir alerts silences` shows it.
        id: String,
        /// A running engine.
        #[arg(long, default_value = DEFAULT_URL)]
        url: String,
    },
    /// The silences that are not over.
    Silences {
        #[command(flatten)]
        of: Of,
    },
    /// What rules would have done with records of the past, and what other rules would have done otherwise.
    Replay(replay::Args),
    /// Who is told by which channels, what waits there, and whom nobody tells.
    Channels {
        #[command(flatten)]
        of: Of,
    },
}

#[derive(Deserialize)]
struct Page {
    alerts: Vec<AlertItem>,
    next: Option<String>,
}

pub(super) async fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Command::List { state, rule, device, severity, of } => {
            let filters = [("state", state), ("rule", rule), ("device", device), ("severity", severity)];
            list(&filters.map(|(name, value)| (name, value.clone())), of)
        }
        Command::Show { id, of } => show(id, of),
        Command::Ack { id, by, lasts, of } => {
            let body = serde_json::json!({ "by": by, "for": lasts }).to_string();
            change(id, "ack", Some(&body), of)
        }
        Command::Unack { id, of } => change(id, "unack", None, of),
        Command::Silence(silence) => people::silence(silence),
        Command::Unsilence { id, url } => people::unsilence(id, url),
        Command::Replay(args) => replay::main(args).await,
        Command::Silences { of } => people::silences(of),
        Command::Channels { of } => people::channels(of),
    }
}

fn list(filters: &[(&str, Option<String>)], of: &Of) -> Result<(), Exit> {
    check_url(&of.url)?;
    let mut alerts: Vec<AlertItem> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in filters.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?))) {
            query.append_pair(name, value);
        }
        query.append_pair("limit", "1000");
        if let Some(after) = &after {
            query.append_pair("after", after);
        }
        let path = format!("/v1/alerts?{}", query.finish());
        let body = request("GET", &of.url, &path, "application/json", None)?;
        let page: Page = serde_json::from_slice(&body).map_err(Exit::failed)?;
        alerts.extend(page.alerts);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if let Output::Json = of.format {
        let text = serde_json::to_string(&serde_json::json!({ "alerts": alerts })).map_err(Exit::failed)?;
        return print(&format!("{text}\n"));
    }
    if alerts.is_empty() {
        return print("all is well\n");
    }
    let wide = |of: fn(&AlertItem) -> usize, least: usize| alerts.iter().map(of).max().unwrap_or(0).max(least);
    let (rule, device, severity) =
        (wide(|a| a.rule.len(), 4), wide(|a| a.device.len(), 6), wide(|a| a.severity.len(), 8));
    let mut text = format!(
        "{:<16}  {:<rule$}  {:<device$}  {:<10}  {:<severity$}  {:<30}  {:>10}  ack\n",
        "id", "rule", "device", "state", "severity", "since", "value"
    );
    for alert in &alerts {
        let value = alert.value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let ack = alert.ack.as_ref().map_or_else(|| "-".to_owned(), |ack| format!("{} until {}", ack.by, ack.until));
        let stale = if alert.stale { " (stale)" } else { "" };
        let flapping = if alert.flapping { " (flapping)" } else { "" };
        let muted = alert.muted_by.as_ref().map_or_else(String::new, |by| format!(" (muted: {by})"));
        text.push_str(&format!(
            "{:<16}  {:<rule$}  {:<device$}  {:<10}  {:<severity$}  {:<30}  {value:>10}  {ack}{stale}{muted}{flapping}\n",
            alert.id, alert.rule, alert.device, alert.state, alert.severity, alert.since
        ));
    }
    print(&text)
}

fn show(id: &str, of: &Of) -> Result<(), Exit> {
    check_url(&of.url)?;
    if id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Exit::Usage(format!("{id:?} is not the id of an incident: it has 16 hex digits")));
    }
    let sql = format!(
        "SELECT ts, event, before, state, severity, value, backfilled, ack_by, told, device, rule, since FROM _alerts \
         WHERE incident = '{}' ORDER BY number",
        id.to_ascii_lowercase()
    );
    let rows = request("POST", &of.url, "/v1/query", "application/json", Some(&sql))?;
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&rows).map_err(Exit::failed)?;
    let Some(first) = rows.first() else {
        return Err(Exit::Failed(format!("there is no incident {id}; `weir alerts list` shows those that are open")));
    };
    if let Output::Json = of.format {
        return print(&format!("{}\n", serde_json::json!({ "id": id, "transitions": rows })));
    }
    let text_of = |row: &serde_json::Value, name: &str| match row.get(name) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let of_first = |name: &str| text_of(first, name);
    let mut text = format!("{id}  {} of {}, since {}\n", of_first("rule"), of_first("device"), of_first("since"));
    for row in &rows {
        let mut line =
            format!("{:<30}  {:<14} {:<10}", text_of(row, "ts"), text_of(row, "event"), text_of(row, "state"));
        for (name, what) in [("severity", ""), ("value", "value "), ("told", "to "), ("ack_by", "by ")] {
            let value = text_of(row, name);
            if !value.is_empty() {
                line.push_str(&format!("  {what}{value}"));
            }
        }
        if row.get("backfilled").and_then(serde_json::Value::as_bool) == Some(true) {
            line.push_str("  from old samples");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    print(&text)
}

fn change(id: &str, what: &str, body: Option<&str>, of: &Of) -> Result<(), Exit> {
    check_url(&of.url)?;
    let path = format!("/v1/alerts/{}/{what}", url::form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>());
    let answer = request("POST", &of.url, &path, "application/json", body)?;
    if let Output::Json = of.format {
        return print(&String::from_utf8_lossy(&answer));
    }
    let alert: AlertItem = serde_json::from_slice(&answer).map_err(Exit::failed)?;
    print(&match &alert.ack {
        Some(ack) => format!("{} of {}: {} takes care until {}\n", alert.rule, alert.device, ack.by, ack.until),
        None => format!("{} of {}: nobody takes care\n", alert.rule, alert.device),
    })
}
