//! `weir alerts silence`, `unsilence`, `silences` and `channels`: who is told, and who is not.

use super::Of;
use crate::cli::remote::{check_url, request, segment};
use crate::cli::{Exit, Output, print};
use crate::http::{ChannelsItem, SilenceItem, SilenceRequest, SilencesItem};

/// Arguments of `weir alerts silence`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir alerts silence rule=overheating 'device=~pump-.*' --for 2h --reason \"pump house is being repaired\"
  weir alerts silence team=plant severity!=critical --from 2026-11-23T22:00:00Z --until 2026-11-24T06:00:00Z --reason night

A matcher is NAME=VALUE, NAME!=VALUE, NAME=~PATTERN or NAME!~PATTERN over rule, device, severity and the labels of rules;
a pattern has to fit the whole value, and all matchers have to hold. Incidents go on and are listed as muted; one that
still fires when the silence ends is told of then.")]
pub(super) struct Silence {
    /// What it is about.
    #[arg(required = true, value_name = "MATCHER")]
    matchers: Vec<String>,
    /// For how long, up to 30 days.
    #[arg(long = "for", value_name = "TIME", conflicts_with = "until", required_unless_present = "until")]
    lasts: Option<String>,
    /// Until when, RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// From when on, RFC 3339; without it from now on.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Who wants it.
    #[arg(long, env = "USER", default_value = "operator")]
    by: String,
    /// Why.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    of: Of,
}

pub(super) fn silence(args: &Silence) -> Result<(), Exit> {
    check_url(&args.of.url)?;
    for text in &args.matchers {
        alerts::Matcher::parse(text).map_err(Exit::Usage)?;
    }
    let wanted = SilenceRequest {
        matchers: args.matchers.clone(),
        start: args.from.clone(),
        end: args.until.clone(),
        lasts: args.lasts.clone(),
        author: args.by.clone(),
        reason: args.reason.clone(),
    };
    let body = serde_json::to_string(&wanted).map_err(Exit::failed)?;
    let answer = request("POST", &args.of.url, "/v1/alerts/silences", "application/json", Some(&body))?;
    if let Output::Json = args.of.format {
        return print(&format!("{}\n", String::from_utf8_lossy(&answer)));
    }
    let item: SilenceItem = serde_json::from_slice(&answer).map_err(Exit::failed)?;
    print(&format!(
        "{}: nobody is told where {} from {} to {}\n",
        item.id,
        item.matchers.join(" and "),
        item.start,
        item.end
    ))
}

pub(super) fn unsilence(id: &str, url: &str) -> Result<(), Exit> {
    check_url(url)?;
    request("DELETE", url, &format!("/v1/alerts/silences/{}", segment(id)), "application/json", None)?;
    print(&format!("{id} is over\n"))
}

pub(super) fn silences(of: &Of) -> Result<(), Exit> {
    check_url(&of.url)?;
    let answer = request("GET", &of.url, "/v1/alerts/silences", "application/json", None)?;
    if let Output::Json = of.format {
        return print(&format!("{}\n", String::from_utf8_lossy(&answer)));
    }
    let SilencesItem { silences } = serde_json::from_slice(&answer).map_err(Exit::failed)?;
    if silences.is_empty() {
        return print("no silences\n");
    }
    let mut text = format!("{:<6}  {:<30}  {:<30}  {:<12}  matchers (reason)\n", "id", "start", "end", "author");
    for item in &silences {
        let later = if item.active { "" } else { ", still to come" };
        text.push_str(&format!(
            "{:<6}  {:<30}  {:<30}  {:<12}  {} ({}{later})\n",
            item.id,
            item.start,
            item.end,
            item.author,
            item.matchers.join(" "),
            item.reason
        ));
    }
    print(&text)
}

pub(super) fn channels(of: &Of) -> Result<(), Exit> {
    check_url(&of.url)?;
    let answer = request("GET", &of.url, "/v1/alerts/channels", "application/json", None)?;
    if let Output::Json = of.format {
        return print(&format!("{}\n", String::from_utf8_lossy(&answer)));
    }
    let ChannelsItem { channels, people, unreached } = serde_json::from_slice(&answer).map_err(Exit::failed)?;
    let mut text = String::new();
    if channels.is_empty() {
        text.push_str("no channels; add [[alerts.channels]] to the configuration\n");
    } else {
        text.push_str(&format!(
            "{:<16}  {:<7}  {:>8}  {:>8}  {:>8}  {:>8}  target\n",
            "channel", "kind", "waiting", "accepted", "failed", "given up"
        ));
    }
    for item in &channels {
        let target = item.target.as_deref().unwrap_or("-");
        let error = item.report.last_error.as_ref().filter(|_| item.report.failing > 0);
        let error = error.map_or_else(String::new, |error| format!("  (fails: {error})"));
        text.push_str(&format!(
            "{:<16}  {:<7}  {:>8}  {:>8}  {:>8}  {:>8}  {target}{error}\n",
            item.name, item.kind, item.waiting, item.report.accepted, item.report.failed, item.report.gave_up
        ));
    }
    for (name, channels) in &people {
        let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
        text.push_str(&format!("{name}: {}\n", channels.join(", ")));
    }
    for (name, rules) in &unreached {
        text.push_str(&format!("{name}: NOBODY, and it is told by {}; add it to [alerts.people]\n", rules.join(", ")));
    }
    print(&text)
}
