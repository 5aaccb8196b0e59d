//! `weir provision`

mod batch;
mod factory;
mod token;
mod voucher_key;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use access::registry::{ClaimRule, Fact, RegistryError};
use access::subject::is_name;
use data_encoding::BASE64;
use device::id::DeviceId;
use device::shadow;

use super::files::At;
use super::{Exit, Output, print};
use crate::clock;

/// Arguments of `weir provision`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A device without a certificate connects with the claim certificate of its group and asks for one of its own:\n  weir ca issue line-1 --claim --days 30 --out claim/\n  weir provision claim line-1 --allow 'pump-*' --quota 500\n\nWho is not allowed by a rule, nor registered with `weir provision batch` or `weir provision token`, gets none."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Say which devices may enrol with the claim certificate of a group; replaces what was said before.
    Claim {
        /// The group.
        group: String,
        /// Serial numbers that may, `*` stands for any characters; repeat for more. Without one, only devices that are
        /// registered in this group.
        #[arg(long, value_name = "PATTERN")]
        allow: Vec<String>,
        /// How many devices at most, over all time.
        #[arg(long)]
        quota: u64,
        /// A label for each of them.
        #[arg(long = "label", value_name = "NAME=VALUE")]
        labels: Vec<String>,
        /// A file with the JSON object that each is wanted to be first.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
    /// Let no more devices enrol with the claim of a group.
    Close {
        /// The group.
        group: String,
        #[command(flatten)]
        at: At,
    },
    /// Every claim, and how many devices it has let in.
    List {
        #[arg(long, value_enum, default_value = "text")]
        format: Output,
        #[command(flatten)]
        at: At,
    },
    /// Register devices from a file, so that they may enrol with the claim of their group. Repeat it after a crash: it goes on.
    #[command(
        after_help = "CSV with a head line, or JSON lines: serial,hw,group,labels[,pubkey]. Labels are `name=value;name=value` in CSV, an object in\nJSON; pubkey is the public key that the device has (PEM, or base64 of its DER form). Each row has a line in the result file."
    )]
    Batch(batch::Args),
    /// Let one device enrol with a token of its own, which is printed.
    Token(token::Args),
    /// Factories whose devices may enrol with the certificates that they were made with: add, list, remove.
    Factory(factory::Args),
    /// Keys that sign vouchers, with which devices may enrol: add, list, remove.
    VoucherKey(voucher_key::Args),
    /// What devices of a group are wanted to be first, however they enrol; what their claim says counts no more.
    Config {
        /// The group.
        group: String,
        /// A file with a JSON object.
        #[arg(required_unless_present = "remove", conflicts_with = "remove")]
        file: Option<PathBuf>,
        /// What the claim says counts again.
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        at: At,
    },
    /// Let a device that has a certificate enrol once more with another key, for some time.
    Reopen {
        /// The device.
        device: String,
        /// For how long.
        #[arg(long = "for", default_value = "1h", value_parser = humantime::parse_duration)]
        time: Duration,
        #[command(flatten)]
        at: At,
    },
}

pub(super) fn main(args: &Args) -> Result<(), Exit> {
    match &args.command {
        Action::Claim { group, allow, quota, labels, config, at } => {
            let config = config.as_deref().map(read_config).transpose()?;
            let labels = labels.iter().map(|text| label(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
            let rule = ClaimRule { group: name(group)?, allow: allow.clone(), quota: *quota, config, labels };
            let detail = serde_json::to_value(&rule).map_err(Exit::failed)?;
            at.change(|_| Ok(vec![Fact::Claim(rule)]))?;
            at.note("provision.claim", group, detail)
        }
        Action::Close { group, at } => {
            at.change(|state| match state.claim(group) {
                Some(_) => Ok(vec![Fact::Unclaimed { group: group.clone() }]),
                None => Err(RegistryError::Refused(format!("group {group} has no claim; see `weir provision list`"))),
            })?;
            at.note("provision.close", group, serde_json::Value::Null)
        }
        Action::List { format, at } => list(at, *format),
        Action::Batch(args) => batch::main(args),
        Action::Token(args) => token::main(args),
        Action::Factory(args) => factory::main(args),
        Action::VoucherKey(args) => voucher_key::main(args),
        Action::Config { group, file, remove: _, at } => {
            let config = file.as_deref().map(read_config).transpose()?;
            let (group, detail) = (name(group)?, config.clone().unwrap_or_default());
            at.change(|_| Ok(vec![Fact::Config { group: group.clone(), config }]))?;
            at.note("provision.config", &group, detail)
        }
        Action::Reopen { device, time, at } => {
            DeviceId::new(device).map_err(|e| Exit::Usage(format!("device {device:?}: {e}")))?;
            let now = clock::now();
            let until = now.plus(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
            at.change(|state| match state.enrolled(device) {
                Some(_) => Ok(vec![Fact::Reopened { device: device.clone(), until }]),
                None => Err(RegistryError::Refused(format!("{device} is not enrolled, so nothing keeps it from that"))),
            })?;
            at.note("provision.reopen", device, serde_json::json!({ "seconds": time.as_secs() }))
        }
    }
}

fn name(text: &str) -> Result<String, Exit> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(Exit::Usage(format!("{text:?} names no group: use 1 to 64 letters, digits, `.`, `_` or `-`"))),
    }
}

fn label(text: &str) -> Result<(String, String), Exit> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Exit::Usage(format!("--label {text:?}: write name=value"))),
    }
}

fn read_config(path: &std::path::Path) -> Result<serde_json::Value, Exit> {
    let text = std::fs::read_to_string(path).map_err(|e| Exit::Usage(format!("{}: {e}", path.display())))?;
    // It becomes what is desired of a device.
    let object: Result<serde_json::Map<_, _>, _> = serde_json::from_str(&text);
    let object = object.map_err(|e| Exit::Usage(format!("{}: this is no JSON object: {e}", path.display())))?;
    match shadow::unfit(&object) {
        Some(wrong) => Err(Exit::Usage(format!("{}: {wrong}", path.display()))),
        None => Ok(serde_json::Value::Object(object)),
    }
}

/// A public key (SubjectPublicKeyInfo, DER) from PEM, or from base64.
fn public_key(text: &str) -> Result<Vec<u8>, String> {
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    BASE64.decode(body.as_bytes()).map_err(|e| format!("neither PEM nor base64: {e}"))
}

fn list(at: &At, format: Output) -> Result<(), Exit> {
    let registry = at.registry()?;
    let mut text = String::new();
    let mut items = Vec::new();
    registry.look(|state| {
        for (rule, used) in state.claims() {
            match format {
                Output::Text => {
                    let allow = if rule.allow.is_empty() { "registered devices".to_owned() } else { rule.allow.join(" ") };
                    text.push_str(&format!("{}  {used} of {}  {allow}\n", rule.group, rule.quota));
                }
                Output::Json => items.push(serde_json::json!({
                    "group": rule.group, "allow": rule.allow, "quota": rule.quota, "enrolled": used, "labels": rule.labels,
                    "config": rule.config,
                })),
            }
        }
    });
    match format {
        Output::Text => print(&text),
        Output::Json => print(&format!("{}\n", serde_json::json!({ "claims": items }))),
    }
}
